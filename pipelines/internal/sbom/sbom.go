// Package sbom writes and checks software bills of materials: SPDX 2.3 documents in JSON of what was
// linked into Go programs.
//
// The source is the build information that Go's linker puts into each program, not go.mod: a module that is
// required but of which no package was linked is not in the document.
//
// How things are told in SPDX:
//
//   - Every binary is a package of the purpose APPLICATION with its SHA-256, no SPDX file. Files must have a
//     SHA-1, and a package with files a verification code made of SHA-1 sums, of which consumers use
//     neither. Accordingly filesAnalyzed is false everywhere.
//   - Every module is a package with a purl, and so is the standard library, which is named "stdlib" as
//     Trivy, Grype and OSV know it. A binary is GENERATED_FROM its main module and DEPENDS_ON the others; it
//     is the binary that does, because two programs of a module can link different modules.
//   - A replaced module is what replaces it, with a comment that says so. A directory in its place has the
//     module's path and no version, since no published version is what was linked.
//   - The h1: sum of a module is an external reference of the category OTHER and the type "go-sum". It is a
//     hash of the hashes of a module's files, and as SPDX checksum, where other tools put it in hex, it
//     would claim to be the SHA-256 of a file that nobody has.
//   - Trivy knows programs from libraries by how their SPDX identifiers begin, hence these beginnings.
package sbom

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/package-url/packageurl-go"
	"github.com/spdx/tools-golang/spdx/v2/common"
	spdx "github.com/spdx/tools-golang/spdx/v2/v2_3"
)

// Binary is a program and what was linked into it.
type Binary struct {
	Name    string // the file's
	Package string // import path
	SHA256  string // in hex
	Info    *debug.BuildInfo
}

// Image is the container image that the binaries are in.
type Image struct {
	// Name is the image's reference, with or without a tag.
	Name string
	// Digest is that of the manifest: "sha256:" and hex digits.
	Digest string
	// BaseName and BaseDigest are those of the base image, empty when it has none.
	BaseName, BaseDigest string
}

// Options are what SPDX makes a document of.
type Options struct {
	// Name is the document's, such as "hello linux/amd64".
	Name string
	// Version is that of slipway.
	Version string
	// Created is SOURCE_DATE_EPOCH or the time of the commit.
	Created time.Time
	// Binaries are those of one platform, each of another name.
	Binaries []Binary
	// Image is what the document is about, nil if it is about the binaries.
	Image *Image
}

const (
	noAssertion = "NOASSERTION"
	// sumType is the type of external references that hold Go's h1: sums.
	sumType = "go-sum"
	stdlib  = "stdlib"
	// devel is the version of a module that is built where it is developed.
	devel = "(devel)"
)

// SPDX returns the document in JSON. The same options give the same bytes, in whatever order the binaries
// are.
func SPDX(o Options) ([]byte, error) {
	d := &document{relationships: map[[3]string]bool{}, packages: map[string]*spdx.Package{}}
	binaries := slices.SortedFunc(slices.Values(o.Binaries), func(a, b Binary) int { return cmp.Compare(a.Name, b.Name) })
	root := "DOCUMENT"
	contains := common.TypeRelationshipDescribe
	if o.Image != nil {
		id, err := d.image(o.Image)
		if err != nil {
			return nil, err
		}
		d.relate(root, contains, id)
		root, contains = id, common.TypeRelationshipContains
	}
	if len(binaries) == 0 {
		return nil, errors.New("sbom: no binaries")
	}
	for i, b := range binaries {
		if i > 0 && b.Name == binaries[i-1].Name {
			return nil, fmt.Errorf("sbom: two binaries are named %s", b.Name)
		}
		id, err := d.binary(b)
		if err != nil {
			return nil, fmt.Errorf("sbom: %s: %w", b.Name, err)
		}
		d.relate(root, contains, id)
	}
	doc := &spdx.Document{
		SPDXVersion:    spdx.Version,
		DataLicense:    spdx.DataLicense,
		SPDXIdentifier: "DOCUMENT",
		DocumentName:   o.Name,
		CreationInfo: &spdx.CreationInfo{
			Created:  o.Created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "slipway-" + o.Version}},
		},
	}
	for _, p := range d.packages {
		doc.Packages = append(doc.Packages, p)
	}
	slices.SortFunc(doc.Packages, func(a, b *spdx.Package) int {
		return cmp.Compare(a.PackageSPDXIdentifier, b.PackageSPDXIdentifier)
	})
	for r := range d.relationships {
		doc.Relationships = append(doc.Relationships, &spdx.Relationship{
			RefA:         common.MakeDocElementID("", r[0]),
			Relationship: r[1],
			RefB:         common.MakeDocElementID("", r[2]),
		})
	}
	slices.SortFunc(doc.Relationships, func(a, b *spdx.Relationship) int {
		return cmp.Or(cmp.Compare(a.RefA.ElementRefID, b.RefA.ElementRefID), cmp.Compare(a.Relationship, b.Relationship),
			cmp.Compare(a.RefB.ElementRefID, b.RefB.ElementRefID))
	})

	// The namespace must be another one for every other document. The hash of all the rest is that.
	text, err := encode(doc)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	doc.DocumentNamespace = "https://spdx.org/spdxdocs/slipway/" + url.PathEscape(strings.ReplaceAll(o.Name, " ", "-")) +
		"-" + hex.EncodeToString(sum[:])
	return encode(doc)
}

func encode(doc *spdx.Document) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(doc)
	return out.Bytes(), err
}

// document collects what is in a document. What is added twice is in it once.
type document struct {
	packages      map[string]*spdx.Package
	relationships map[[3]string]bool
}

func (d *document) relate(a, relationship, b string) {
	d.relationships[[3]string{a, relationship, b}] = true
}

// add adds a package and returns its identifier, which is made of kind, name and what else distinguishes
// the package from others.
func (d *document) add(p *spdx.Package, kind string, distinct ...string) string {
	// Identifiers consist of letters, digits, dots and dashes. As that is not enough to tell a/b from a-b,
	// a hash follows.
	sum := sha256.Sum256([]byte(strings.Join(append(distinct, p.PackageName, p.PackageVersion), "\x00")))
	readable := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.':
			return r
		}
		return '-'
	}, p.PackageName)
	id := kind + "-" + readable + "-" + hex.EncodeToString(sum[:6])
	p.PackageSPDXIdentifier = common.ElementID(id)
	p.PackageDownloadLocation = noAssertion
	p.PackageLicenseConcluded = noAssertion
	p.PackageLicenseDeclared = noAssertion
	p.PackageCopyrightText = noAssertion
	d.packages[id] = p
	return id
}

func (d *document) image(i *Image) (string, error) {
	id, err := d.reference(i.Name, i.Digest)
	if err != nil || i.BaseDigest == "" && i.BaseName == "" {
		return id, err
	}
	base, err := d.reference(i.BaseName, i.BaseDigest)
	d.relate(id, common.TypeRelationshipDescendantOf, base)
	return id, err
}

// reference adds an image.
func (d *document) reference(name, digest string) (string, error) {
	sum, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || !isSHA256(sum) {
		return "", fmt.Errorf("sbom: image %s has the digest %q, which is no SHA-256", name, digest)
	}
	repository, _, _ := strings.Cut(name, "@")
	repository = strings.TrimPrefix(repository, "oci:") // a directory, as slipway shows it
	qualifiers := map[string]string{}
	if i := strings.LastIndexByte(repository, ':'); i > strings.LastIndexByte(repository, '/') {
		qualifiers["tag"] = repository[i+1:]
		repository = repository[:i]
	}
	if strings.Contains(repository, "/") {
		qualifiers["repository_url"] = repository
	}
	locator, err := purl(packageurl.TypeOCI, "", strings.ToLower(path.Base(repository)), digest, qualifiers)
	if err != nil {
		return "", err
	}
	return d.add(&spdx.Package{
		PackageName:               name,
		PackageVersion:            digest,
		PrimaryPackagePurpose:     "CONTAINER",
		PackageChecksums:          []common.Checksum{{Algorithm: common.SHA256, Value: sum}},
		PackageExternalReferences: []*spdx.PackageExternalReference{locator},
	}, "ContainerImage"), nil
}

func (d *document) binary(b Binary) (string, error) {
	if b.Info == nil {
		return "", errors.New("no build information")
	}
	if !isSHA256(b.SHA256) {
		return "", fmt.Errorf("%q is no SHA-256", b.SHA256)
	}
	p := &spdx.Package{
		PackageName:           b.Name,
		PackageFileName:       b.Name,
		PrimaryPackagePurpose: "APPLICATION",
		PackageChecksums:      []common.Checksum{{Algorithm: common.SHA256, Value: b.SHA256}},
		PackageSummary:        "Go program " + b.Package,
	}
	if b.Info.Main.Path != "" {
		p.PackageVersion = linked(&b.Info.Main).Version
	}
	id := d.add(p, "Application", b.SHA256)
	for _, m := range modules(b.Info) {
		module, err := d.module(m)
		if err != nil {
			return "", err
		}
		relationship := common.TypeRelationshipDependsOn
		if m.main {
			relationship = common.TypeRelationshipGeneratedFrom
		}
		d.relate(id, relationship, module)
	}
	return id, nil
}

func (d *document) module(m module) (string, error) {
	dir, name := path.Split(m.Path)
	locator, err := purl(packageurl.TypeGolang, strings.TrimSuffix(dir, "/"), name, published(m.Version), nil)
	if err != nil {
		return "", fmt.Errorf("module %q: %w", m.Path, err)
	}
	p := &spdx.Package{
		PackageName:               m.Path,
		PackageVersion:            m.Version,
		PrimaryPackagePurpose:     "LIBRARY",
		PackageComment:            m.comment,
		PackageExternalReferences: []*spdx.PackageExternalReference{locator},
	}
	if m.Sum != "" {
		p.PackageExternalReferences = append(p.PackageExternalReferences,
			&spdx.PackageExternalReference{Category: common.CategoryOther, RefType: sumType, Locator: m.Sum})
	}
	return d.add(p, "Package", m.Sum, m.comment), nil
}

func purl(typ, namespace, name, version string, qualifiers map[string]string) (*spdx.PackageExternalReference, error) {
	p := packageurl.NewPackageURL(typ, namespace, name, version, packageurl.QualifiersFromMap(qualifiers), "")
	if err := p.Normalize(); err != nil {
		return nil, err
	}
	return &spdx.PackageExternalReference{Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: p.ToString()}, nil
}

// module is a module as it was linked.
type module struct {
	Module
	main bool
	// comment says what it replaces.
	comment string
}

// modules returns what was linked: the main module where there is one, the modules that it depends on, and
// the standard library.
func modules(info *debug.BuildInfo) []module {
	var out []module
	if info.Main.Path != "" { // there is none when single files were built
		m := linked(&info.Main)
		m.main = true
		out = append(out, m)
	}
	for _, m := range info.Deps {
		if m != nil && m.Path != "" {
			out = append(out, linked(m))
		}
	}
	return append(out, module{Module: Module{Path: stdlib, Version: release(info.GoVersion)}})
}

// linked tells which module was linked for one that go.mod requires.
func linked(m *debug.Module) module {
	r := m.Replace
	if r == nil {
		return module{Module: Module{m.Path, m.Version, m.Sum}}
	}
	what := m.Path
	if m.Version != "" {
		what += " " + m.Version
	}
	if r.Version != "" {
		return module{Module: Module{r.Path, r.Version, r.Sum}, comment: "replaces " + what}
	}
	// Where a directory is on the machine that built is nobody's business, unless go.mod tells it in a way
	// that holds on all machines.
	directory := "a directory"
	if strings.HasPrefix(r.Path, "./") || strings.HasPrefix(r.Path, "../") {
		directory = "the directory " + r.Path
	}
	return module{Module: Module{Path: m.Path}, comment: directory + " replaces " + what}
}

// release is a Go release's number as in purls: 1.22.12 of "go1.22.12 X:rangefunc".
func release(goVersion string) string {
	for _, f := range strings.Fields(goVersion) {
		if v, ok := strings.CutPrefix(f, "go"); ok {
			return v
		}
	}
	return ""
}

// published returns a version as it is in purls: none if it is none that could be looked up.
func published(version string) string {
	if version == devel {
		return ""
	}
	return version
}

func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size && strings.ToLower(s) == s
}
