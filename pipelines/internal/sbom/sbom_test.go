package sbom

import (
	"bytes"
	"debug/buildinfo"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/spdx/tools-golang/spdxlib"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write golden files")

// twoPrograms is what a platform's programs can be made of: modules that both have, one with two versions, all
// kinds of replacements, a module without a sum, and a main module without a version.
func twoPrograms() []Binary {
	text := &debug.Module{Path: "golang.org/x/text", Version: "v0.14.0", Sum: "h1:ScX5w1eTa3QqT8oi6+ziP7dTV1S2+ALU0bI+0zXKWiQ="}
	server := &debug.BuildInfo{
		GoVersion: "go1.22.12",
		Path:      "example.com/shop/cmd/server",
		Main:      debug.Module{Path: "example.com/shop", Version: "(devel)"},
		Deps: []*debug.Module{
			text,
			{Path: "example.com/Masterminds/~semver_2", Version: "v2.0.0+incompatible", Sum: "h1:2fHxWCzzIsWbb2GeBsNYaPWQzYpU8XbJqNNaTfz3hGA="},
			{Path: "example.com/forked", Version: "v1.0.0", Replace: &debug.Module{Path: "example.net/fork", Version: "v1.0.1",
				Sum: "h1:Z5Wl6LyDYqgYyVwWy9g6PpWmKzhdQvJQqeXBDV0r2aA="}},
			{Path: "example.com/beside", Version: "v0.9.0", Replace: &debug.Module{Path: "../beside"}},
			{Path: "example.com/elsewhere", Version: "v0.9.0", Replace: &debug.Module{Path: "/home/somebody/elsewhere"}},
			{Path: "example.com/unsummed", Version: "v0.1.0"},
		},
	}
	client := &debug.BuildInfo{
		GoVersion: "go1.22.12 X:rangefunc",
		Path:      "example.com/shop/cmd/client",
		Main:      debug.Module{Path: "example.com/shop", Version: "(devel)"},
		Deps:      []*debug.Module{text, {Path: "example.com/unsummed", Version: "v0.2.0"}},
	}
	return []Binary{
		{Name: "server", Package: server.Path, SHA256: strings.Repeat("5e", 32), Info: server},
		{Name: "client", Package: client.Path, SHA256: strings.Repeat("c1", 32), Info: client},
	}
}

func options() Options {
	return Options{
		Name: "shop linux/amd64", Version: "1.0.0", Binaries: twoPrograms(),
		Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600)),
		Image: &Image{
			Name: "registry.example:5000/team/shop:v1", Digest: "sha256:" + strings.Repeat("1a", 32),
			BaseName: "registry.example/base@sha256:" + strings.Repeat("ba", 32), BaseDigest: "sha256:" + strings.Repeat("ba", 32),
		},
	}
}

// requireValid reads a document with the SPDX project's own library.
func requireValid(t testing.TB, text []byte) *v2_3.Document {
	t.Helper()
	doc, err := spdxjson.Read(bytes.NewReader(text))
	require.NoError(t, err)
	require.NoError(t, spdxlib.ValidateDocument(doc))
	require.Equal(t, "SPDX-2.3", doc.SPDXVersion)
	ids := map[string]bool{}
	for _, p := range doc.Packages {
		id := string(p.PackageSPDXIdentifier)
		require.False(t, ids[id], "two packages are %s", id)
		require.Regexp(t, `^[A-Za-z0-9.-]+$`, id)
		ids[id] = true
	}
	return doc
}

func TestGolden(t *testing.T) {
	text, err := SPDX(options())
	require.NoError(t, err)
	requireValid(t, text)
	golden := filepath.Join("testdata", "shop.spdx.json")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, text, 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, strings.ReplaceAll(string(want), "\r\n", "\n"), string(text), "run go test -update if that is meant")
	require.NotContains(t, string(text), "somebody")
}

func TestSameBytes(t *testing.T) {
	want, err := SPDX(options())
	require.NoError(t, err)
	for range 20 {
		o := options()
		slices.Reverse(o.Binaries)
		slices.Reverse(o.Binaries[0].Info.Deps)
		got, err := SPDX(o)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	}
}

func TestNamespaceIsUnique(t *testing.T) {
	seen := map[string]bool{}
	for _, change := range []func(*Options){
		func(*Options) {},
		func(o *Options) { o.Image = nil },
		func(o *Options) { o.Created = o.Created.Add(time.Second) },
		func(o *Options) { o.Version = "1.0.1" },
		func(o *Options) { o.Binaries[0].SHA256 = strings.Repeat("aa", 32) },
		func(o *Options) { o.Binaries[0].Info.Deps[5].Version = "v0.1.1" },
		func(o *Options) { o.Image.BaseDigest = "sha256:" + strings.Repeat("bb", 32) },
	} {
		o := options()
		change(&o)
		text, err := SPDX(o)
		require.NoError(t, err)
		namespace := requireValid(t, text).DocumentNamespace
		require.Regexp(t, `^https://spdx\.org/spdxdocs/slipway/[^#]+-[0-9a-f]{64}$`, namespace)
		require.False(t, seen[namespace])
		seen[namespace] = true
	}
}

func TestRelationships(t *testing.T) {
	o := options()
	text, err := SPDX(o)
	require.NoError(t, err)
	require.Equal(t, []string{
		"DOCUMENT DESCRIBES registry.example:5000/team/shop:v1",
		"client DEPENDS_ON example.com/unsummed v0.2.0",
		"client DEPENDS_ON golang.org/x/text v0.14.0",
		"client DEPENDS_ON stdlib 1.22.12",
		"client GENERATED_FROM example.com/shop (devel)",
		"registry.example:5000/team/shop:v1 CONTAINS client",
		"registry.example:5000/team/shop:v1 CONTAINS server",
		"registry.example:5000/team/shop:v1 DESCENDANT_OF registry.example/base",
		"server DEPENDS_ON example.com/Masterminds/~semver_2 v2.0.0+incompatible",
		"server DEPENDS_ON example.com/beside",
		"server DEPENDS_ON example.com/elsewhere",
		"server DEPENDS_ON example.com/unsummed v0.1.0",
		"server DEPENDS_ON example.net/fork v1.0.1",
		"server DEPENDS_ON golang.org/x/text v0.14.0",
		"server DEPENDS_ON stdlib 1.22.12",
		"server GENERATED_FROM example.com/shop (devel)",
	}, relationships(requireValid(t, text)))

	o.Image = nil
	o.Binaries[0].Info.Main = debug.Module{} // as of "go build file.go"
	text, err = SPDX(o)
	require.NoError(t, err)
	all := relationships(requireValid(t, text))
	require.Subset(t, all, []string{"DOCUMENT DESCRIBES client", "DOCUMENT DESCRIBES server"})
	require.NotContains(t, strings.Join(all, "\n"), "server GENERATED_FROM")
}

func TestImagePurl(t *testing.T) {
	digest := "sha256:" + strings.Repeat("1a", 32)
	for name, want := range map[string]string{
		"hello":                      "pkg:oci/hello@" + digest,
		"hello:v1":                   "pkg:oci/hello@" + digest + "?tag=v1",
		"oci:Base":                   "pkg:oci/base@" + digest,
		"localhost:5000/hello":       "pkg:oci/hello@" + digest + "?repository_url=localhost:5000%2Fhello",
		"r.example/a/b:v1@" + digest: "pkg:oci/b@" + digest + "?repository_url=r.example%2Fa%2Fb&tag=v1",
	} {
		o := options()
		o.Image = &Image{Name: name, Digest: digest}
		text, err := SPDX(o)
		require.NoError(t, err)
		for _, p := range requireValid(t, text).Packages {
			if p.PrimaryPackagePurpose == "CONTAINER" {
				require.Equal(t, want, p.PackageExternalReferences[0].Locator)
			}
		}
	}
}

func relationships(doc *v2_3.Document) []string {
	names := map[string]string{"DOCUMENT": "DOCUMENT"}
	for _, p := range doc.Packages {
		name := p.PackageName
		if p.PrimaryPackagePurpose == "LIBRARY" {
			name = strings.TrimSpace(name + " " + p.PackageVersion)
		}
		name, _, _ = strings.Cut(name, "@")
		names[string(p.PackageSPDXIdentifier)] = name
	}
	var out []string
	for _, r := range doc.Relationships {
		out = append(out, names[string(r.RefA.ElementRefID)]+" "+r.Relationship+" "+names[string(r.RefB.ElementRefID)])
	}
	slices.Sort(out)
	return out
}

func TestUnusableOptions(t *testing.T) {
	for message, change := range map[string]func(*Options){
		"no binaries":                   func(o *Options) { o.Binaries = nil },
		"two binaries are named":        func(o *Options) { o.Binaries[1].Name = o.Binaries[0].Name },
		"no build information":          func(o *Options) { o.Binaries[1].Info = nil },
		`"abc" is no SHA-256`:           func(o *Options) { o.Binaries[1].SHA256 = "abc" },
		`the digest "", which is no`:    func(o *Options) { o.Image.BaseDigest = "" },
		`the digest "sha512:12", which`: func(o *Options) { o.Image.Digest = "sha512:12" },
	} {
		o := options()
		change(&o)
		_, err := SPDX(o)
		require.ErrorContains(t, err, message)
	}
}

func TestReadOwn(t *testing.T) {
	o := options()
	text, err := SPDX(o)
	require.NoError(t, err)
	doc, err := Read(text)
	require.NoError(t, err)
	require.Equal(t, []File{{"client", o.Binaries[1].SHA256}, {"server", o.Binaries[0].SHA256}}, doc.Files)
	require.Contains(t, doc.Modules, Module{"example.com/Masterminds/~semver_2", "v2.0.0+incompatible", o.Binaries[0].Info.Deps[1].Sum})
	require.Contains(t, doc.Modules, Module{"stdlib", "1.22.12", ""})
	require.Empty(t, Compare(doc, o.Binaries[0].Info, o.Binaries[1].Info))
	// One of two programs does not hold all that the document names.
	require.Equal(t, []string{
		"the SBOM names example.com/Masterminds/~semver_2 v2.0.0+incompatible, which is not linked",
		"the SBOM names example.com/beside (no version), which is not linked",
		"the SBOM names example.com/elsewhere (no version), which is not linked",
		"the SBOM names example.com/unsummed v0.1.0, but v0.2.0 is linked",
		"the SBOM names example.net/fork v1.0.1, which is not linked",
	}, Compare(doc, o.Binaries[1].Info))
}

// foreignDocument is like those of other tools: programs as files, purls in lower case, no sums, checksums of
// archives, releases with "go" before them, packages of the operating system.
const foreignDocument = `{"spdxVersion": "SPDX-2.2", "SPDXID": "SPDXRef-DOCUMENT", "hasFiles": 7,
"packages": [
  {"name": "example.com/Shop", "versionInfo": "v0.0.0-20260102030405-0123456789ab", "supplier": "whoever",
   "externalRefs": [{"referenceCategory": "PACKAGE_MANAGER", "referenceType": "purl", "referenceLocator": "pkg:golang/example.com/shop@v0.0.0-20260102030405-0123456789ab"}]},
  {"name": "other", "checksums": [{"algorithm": "SHA256", "checksumValue": "0000000000000000000000000000000000000000000000000000000000000000"}],
   "externalRefs": [{"referenceType": "cpe23Type", "referenceLocator": "x"}, {"referenceType": "purl", "referenceLocator": "pkg:golang/example.com/other@v1.0.0%2Bincompatible?type=module"}]},
  {"name": "stdlib", "externalRefs": [{"referenceType": "purl", "referenceLocator": "pkg:golang/stdlib@go1.22.12"}]},
  {"name": "libc6", "externalRefs": [{"referenceType": "purl", "referenceLocator": "pkg:deb/debian/libc6@2.36"}]}],
"files": [{"fileName": "./usr/bin/shop", "checksums": [{"algorithm": "SHA1", "checksumValue": "x"},
  {"algorithm": "SHA256", "checksumValue": "ABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB"}]}]}`

func TestReadForeign(t *testing.T) {
	doc, err := Read([]byte(foreignDocument))
	require.NoError(t, err)
	require.Equal(t, &Document{
		Modules: []Module{
			{Path: "example.com/Shop", Version: "v0.0.0-20260102030405-0123456789ab"},
			{Path: "example.com/other", Version: "v1.0.0+incompatible"},
			{Path: "stdlib", Version: "1.22.12"},
		},
		Files: []File{{"usr/bin/shop", strings.Repeat("ab", 32)}},
	}, doc)
	require.Equal(t, []string{
		"Go's standard library 1.22.11 is linked, but the SBOM names 1.22.12",
		"example.com/more v1.0.0 is linked, but the SBOM does not name it",
		"the SBOM names example.com/other v1.0.0+incompatible, which is not linked",
	}, Compare(doc, &debug.BuildInfo{GoVersion: "go1.22.11", Main: debug.Module{Path: "example.com/shop", Version: "(devel)"},
		Deps: []*debug.Module{{Path: "example.com/more", Version: "v1.0.0", Sum: "h1:x"}}}))
}

func TestReadRefuses(t *testing.T) {
	for text, message := range map[string]string{
		"":                                 "not an SPDX document in JSON: unexpected end",
		"[]":                               "not an SPDX document in JSON",
		"{}":                               `not an SPDX 2 document: its spdxVersion is ""`,
		`{"@context": "spdx 3"}`:           `not an SPDX 2 document`,
		`{"bomFormat": "CycloneDX"}`:       `not an SPDX 2 document`,
		`{"spdxVersion": "SPDX-3.0"}`:      `its spdxVersion is "SPDX-3.0"`,
		`{"packages": {}}`:                 "not a list",
		`{"packages": [7]}`:                "cannot unmarshal number",
		strings.Repeat(" ", maxDocument+1): "more than 33554432",
		`{"packages": [` + strings.Repeat("null,", maxPackages) + `null]}`:                                                                            "more than 200000 entries",
		`{"packages": [{"checksums": [` + strings.Repeat("{},", maxEntries) + `{}]}]}`:                                                                "more than 1000 entries",
		`{"spdxVersion": "SPDX-2.3", "packages": [{"name": "x", "externalRefs": [{"referenceType": "purl", "referenceLocator": "pkg:golang/%zz"}]}]}`: `package "x" has the malformed purl "pkg:golang/%zz"`,
	} {
		_, err := Read([]byte(text))
		require.ErrorContains(t, err, message)
	}
	for _, text := range []string{`{"spdxVersion": "SPDX-2.3"}`, `{"spdxVersion": "SPDX-2.3", "packages": null, "files": [null]}`} {
		doc, err := Read([]byte(text))
		require.NoError(t, err)
		require.Equal(t, &Document{Modules: []Module{}, Files: []File{}}, doc)
	}
}

func TestSumDiffers(t *testing.T) {
	o := options()
	text, err := SPDX(o)
	require.NoError(t, err)
	doc, err := Read(text)
	require.NoError(t, err)
	o.Binaries[0].Info.Deps[0].Sum = "h1:other="
	require.Equal(t, []string{
		"golang.org/x/text v0.14.0 is linked, but the SBOM names it with the sum h1:ScX5w1eTa3QqT8oi6+ziP7dTV1S2+ALU0bI+0zXKWiQ= instead of h1:other=",
	}, Compare(doc, o.Binaries[0].Info, o.Binaries[1].Info))
}

// TestRealProgram compares a program of somebody else with what "go version -m" says of it.
func TestRealProgram(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("go", "install", "filippo.io/age/cmd/age@v1.2.1")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=-trimpath", "GOOS=", "GOARCH=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("filippo.io/age cannot be had here: %v: %s", err, out)
	}
	file := filepath.Join(dir, "age")
	if runtime.GOOS == "windows" {
		file += ".exe"
	}
	info, err := buildinfo.ReadFile(file)
	require.NoError(t, err)
	text, err := SPDX(Options{Name: "age", Version: "1.0.0", Binaries: []Binary{{Name: "age", Package: info.Path, SHA256: strings.Repeat("a9", 32), Info: info}}})
	require.NoError(t, err)

	lines, err := exec.Command("go", "version", "-m", file).Output()
	require.NoError(t, err)
	var want, got []string
	for line := range strings.Lines(string(lines)) {
		if f := strings.Fields(line); len(f) == 4 && (f[0] == "mod" || f[0] == "dep") {
			want = append(want, strings.Join(f[1:], " "))
		}
	}
	require.GreaterOrEqual(t, len(want), 5)
	want = append(want, "stdlib "+strings.TrimPrefix(info.GoVersion, "go"))
	for _, p := range requireValid(t, text).Packages {
		if p.PrimaryPackagePurpose != "LIBRARY" {
			require.Equal(t, "age", p.PackageName)
			continue
		}
		line := p.PackageName + " " + p.PackageVersion
		for _, r := range p.PackageExternalReferences {
			if r.RefType == sumType {
				line += " " + r.Locator
			} else {
				require.Equal(t, fmt.Sprintf("pkg:golang/%s@%s", p.PackageName, p.PackageVersion), r.Locator)
			}
		}
		got = append(got, line)
	}
	require.ElementsMatch(t, want, got)

	doc, err := Read(text)
	require.NoError(t, err)
	require.Empty(t, Compare(doc, info))
	other := bytes.ReplaceAll(text, []byte("golang.org/x/crypto@v0.24.0"), []byte("golang.org/x/crypto@v0.25.0"))
	doc, err = Read(other)
	require.NoError(t, err)
	require.Equal(t, []string{"golang.org/x/crypto v0.24.0 is linked, but the SBOM names v0.25.0"}, Compare(doc, info))
}

func FuzzRead(f *testing.F) {
	// Small ones: the fuzzer spends its time on making larger ones smaller.
	f.Add([]byte(foreignDocument))
	f.Add([]byte(`{"spdxVersion":"SPDX-2.3","packages":[{"name":"a.b/c","versionInfo":"v1","externalRefs":[` +
		`{"referenceType":"purl","referenceLocator":"pkg:golang/a.b/c@v1"},{"referenceType":"go-sum","referenceLocator":"h1:"}]}]}`))
	info := twoPrograms()[0].Info
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := Read(data)
		if err != nil {
			require.Contains(t, err.Error(), "sbom: ")
			return
		}
		require.Equal(t, Compare(doc, info), Compare(doc, info))
	})
}
