package sbom

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/package-url/packageurl-go"
)

const (
	// maxDocument is the limit in bytes of a document to read; that of a large image has about 5 MiB.
	maxDocument = 32 << 20
	// maxPackages is the limit of a document's packages and of its files.
	maxPackages = 200_000
	// maxEntries is the limit of a package's references and checksums.
	maxEntries = 1000
)

// Module is a Go module of a document.
type Module struct {
	Path string `json:"path"`
	// Version is empty when the document names none, and for a module that is built where it is developed.
	Version string `json:"version,omitempty"`
	// Sum is Go's h1: sum, empty in documents of other tools.
	Sum string `json:"sum,omitempty"`
}

func (m Module) String() string {
	name := m.Path
	if name == stdlib {
		name = "Go's standard library"
	}
	if m.Version == "" {
		return name + " (no version)"
	}
	return name + " " + m.Version
}

// File is a program or another file of a document.
type File struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// Document is what Read finds of interest.
type Document struct {
	// Modules are the Go modules, each once, sorted. The standard library is the module "stdlib" whose
	// version has no "go" before it.
	Modules []Module `json:"modules"`
	// Files are all packages and files that have a name and a SHA-256, sorted.
	Files []File `json:"files"`
}

// Read reads an SPDX 2 document in JSON, written by whatever tool. It needs not be valid in all respects: no
// more is looked at than what is returned.
func Read(spdx []byte) (*Document, error) {
	if len(spdx) > maxDocument {
		return nil, fmt.Errorf("sbom: the document has %d bytes, more than %d", len(spdx), maxDocument)
	}
	var doc struct {
		SPDXVersion string         `json:"spdxVersion"`
		Packages    list[foreign]  `json:"packages"`
		Files       list[fileName] `json:"files"`
	}
	if err := json.Unmarshal(spdx, &doc); err != nil {
		return nil, fmt.Errorf("sbom: not an SPDX document in JSON: %w", err)
	}
	if !strings.HasPrefix(doc.SPDXVersion, "SPDX-2.") {
		return nil, fmt.Errorf("sbom: not an SPDX 2 document: its spdxVersion is %.40q", doc.SPDXVersion)
	}
	out := &Document{Modules: []Module{}, Files: []File{}}
	for _, p := range doc.Packages {
		if p.err != nil {
			return nil, p.err
		}
		if p.module.Path != "" {
			out.Modules = append(out.Modules, p.module)
		}
		if p.file.SHA256 != "" {
			out.Files = append(out.Files, p.file)
		}
	}
	for _, f := range doc.Files {
		if f.SHA256 != "" {
			out.Files = append(out.Files, File(f))
		}
	}
	slices.SortFunc(out.Modules, func(a, b Module) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Sum, b.Sum))
	})
	out.Modules = slices.Compact(out.Modules)
	slices.SortFunc(out.Files, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.SHA256, b.SHA256))
	})
	out.Files = slices.Compact(out.Files)
	return out, nil
}

// list is a JSON array of limited length.
type list[T any] []T

// limited is a type that says how many of it there may be.
type limited interface{ limit() int }

func (l *list[T]) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	t, err := dec.Token()
	if err != nil || t == nil { // null
		return err
	}
	if t != json.Delim('[') {
		return errors.New("not a list where one is expected")
	}
	limit := maxEntries
	if v, ok := any(*new(T)).(limited); ok {
		limit = v.limit()
	}
	for dec.More() {
		if len(*l) >= limit {
			return fmt.Errorf("a list has more than %d entries", limit)
		}
		var v T
		if err := dec.Decode(&v); err != nil {
			return err
		}
		*l = append(*l, v)
	}
	return nil
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

func sha256Of(all []checksum) string {
	for _, c := range all {
		if v := strings.ToLower(c.Value); c.Algorithm == "SHA256" && isSHA256(v) {
			return v
		}
	}
	return ""
}

// fileName is a file of a foreign document.
type fileName File

func (fileName) limit() int { return maxPackages }

func (f *fileName) UnmarshalJSON(b []byte) error {
	var raw struct {
		Name      string         `json:"fileName"`
		Checksums list[checksum] `json:"checksums"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	*f = fileName{strings.TrimPrefix(raw.Name, "./"), sha256Of(raw.Checksums)}
	return nil
}

// foreign is a package of a foreign document. What it is made of is dropped at once, as it takes many times
// the memory of what is wanted.
type foreign struct {
	module Module
	file   File
	err    error
}

func (foreign) limit() int { return maxPackages }

func (p *foreign) UnmarshalJSON(b []byte) error {
	var raw struct {
		Name      string         `json:"name"`
		Version   string         `json:"versionInfo"`
		FileName  string         `json:"packageFileName"`
		Purpose   string         `json:"primaryPackagePurpose"`
		Checksums list[checksum] `json:"checksums"`
		Refs      list[struct {
			Type    string `json:"referenceType"`
			Locator string `json:"referenceLocator"`
		}] `json:"externalRefs"`
	}
	if err := json.Unmarshal(b, &raw); err != nil {
		return err
	}
	var sum string
	for _, r := range raw.Refs {
		switch {
		case r.Type == sumType:
			sum = r.Locator
		case r.Type == "purl" && strings.HasPrefix(r.Locator, "pkg:golang/"):
			u, err := packageurl.FromString(r.Locator)
			if err != nil {
				p.err = fmt.Errorf("sbom: package %.100q has the malformed purl %.200q: %w", raw.Name, r.Locator, err)
				return nil
			}
			p.module.Path = path.Join(u.Namespace, u.Name)
			// A purl is in lower case, and tools leave parts of it out.
			if strings.EqualFold(raw.Name, p.module.Path) {
				p.module.Path = raw.Name
			}
			p.module.Version = published(cmp.Or(u.Version, raw.Version))
			if p.module.Path == stdlib {
				p.module.Version = strings.TrimLeft(p.module.Version, "gov")
			}
		}
	}
	if p.module.Path != "" {
		p.module.Sum = sum
		return nil // a checksum is that of an archive
	}
	if name := cmp.Or(raw.FileName, raw.Name); raw.FileName != "" || raw.Purpose == "APPLICATION" || raw.Purpose == "FILE" {
		p.file = File{name, sha256Of(raw.Checksums)}
	}
	return nil
}

// Compare says in sentences where the modules of a document and those of programs differ: what the document
// names that is in none of the programs, and what is in one and not in the document. It returns nothing if
// they agree.
//
// For a main module without a version, any version in the document will do: tools make up their own.
func Compare(doc *Document, programs ...*debug.BuildInfo) []string {
	// Case makes no difference between module paths, and some tools lose it.
	named, held := map[string][]module{}, map[string][]module{}
	add := func(to map[string][]module, m module) {
		key := strings.ToLower(m.Path)
		if !slices.Contains(to[key], m) {
			to[key] = append(to[key], m)
		}
	}
	for _, m := range doc.Modules {
		add(named, module{Module: m})
	}
	for _, info := range programs {
		for _, m := range modules(info) {
			m.Version, m.comment = published(m.Version), ""
			add(held, m)
		}
	}
	var out []string
	for key, all := range held {
		for _, m := range all {
			switch others := named[key]; {
			case len(others) == 0:
				out = append(out, fmt.Sprintf("%s is linked, but the SBOM does not name it", m))
			case !slices.ContainsFunc(others, m.agrees):
				out = append(out, fmt.Sprintf("%s is linked, but the SBOM names %s", m, join(others, m)))
			}
		}
	}
	for key, all := range named {
		for _, m := range all {
			switch linked := held[key]; {
			case len(linked) == 0:
				out = append(out, fmt.Sprintf("the SBOM names %s, which is not linked", m))
			// With one version on both sides, the sentence above has said it.
			case (len(all) > 1 || len(linked) > 1) && !slices.ContainsFunc(linked, func(l module) bool { return l.agrees(m) }):
				out = append(out, fmt.Sprintf("the SBOM names %s, but %s is linked", m, join(linked, m)))
			}
		}
	}
	slices.Sort(out)
	return out
}

// agrees tells whether a document that names other can mean m, which is linked. A sum that one of them does
// not have says nothing.
func (m module) agrees(other module) bool {
	return (m.Version == other.Version || m.main && m.Version == "") &&
		(m.Sum == other.Sum || m.Sum == "" || other.Sum == "")
}

// join names modules of one path that differ from m.
func join(all []module, m module) string {
	var out []string
	for _, other := range all {
		switch {
		case other.Version == m.Version:
			out = append(out, fmt.Sprintf("it with the sum %s instead of %s", other.Sum, m.Sum))
		case other.Version == "":
			out = append(out, "it without a version")
		default:
			out = append(out, other.Version)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " and ")
}
