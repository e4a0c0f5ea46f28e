package contents

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/internal/layers"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// entry is one of an archive.
type entry struct {
	tar.Header
	content string
}

func plain(name, content string) entry { return modeFile(name, content, 0o644) }
func program(name string) entry        { return modeFile(name, "\x7fELF", 0o755) }

func modeFile(name, content string, mode int64) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(content))}, content}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}, ""}
}

func hardlink(name, target string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}, ""}
}

func dir(name string) entry {
	return entry{tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}, ""}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// imageOf is an image of tar streams.
func imageOf(t testing.TB, layers ...[]byte) v1.Image {
	img := empty.Image
	for _, l := range layers {
		img = withLayer(t, img, static.NewLayer(l, types.OCIUncompressedLayer))
	}
	return img
}

func withLayer(t testing.TB, img v1.Image, l v1.Layer) v1.Image {
	img, err := mutate.AppendLayers(img, l)
	require.NoError(t, err)
	return img
}

const (
	osReleaseDebian = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"
	glibc236        = "\x7fELF\x00GNU C Library (Debian GLIBC 2.36-9+deb12u10) stable release version 2.36.\nCopyright"
	dpkg2           = `Package: libc6
Status: install ok installed
Description: GNU C Library
 Status: install ok installed

Package: old
Status: deinstall ok config-files

Package: broken
Status: install ok half-installed

Package: never
Status: purge ok not-installed

Package: bash
Status: hold ok installed
`
	apk3 = "C:Q1x=\nP:musl\nV:1.2.5-r10\nF:lib\n\nP:busybox\nV:1.37.0-r19\n\nP:apk-tools\nV:2.14.9-r2\n"
)

func TestInspect(t *testing.T) {
	sqlite, err := os.ReadFile("testdata/rpmdb.sqlite")
	require.NoError(t, err)
	rpmdb := string(sqlite)
	type layer = []entry
	for name, test := range map[string]struct {
		layers []layer
		want   Facts
	}{
		"nothing": {},
		"Debian, with /usr merged": {
			[]layer{{
				symlink("bin", "usr/bin"), symlink("sbin", "/usr/sbin"), symlink("lib", "usr/lib"), symlink("lib64", "usr/lib64"), dir("usr"),
				program("usr/bin/dash"), symlink("usr/bin/sh", "dash"), program("usr/bin/apt-get"), program("usr/bin/dpkg"),
				modeFile("usr/bin/su", "1234", 0o4755), modeFile("usr/bin/wall", "12", 0o2755), {tar.Header{Name: "var/mail/", Typeflag: tar.TypeDir, Mode: 0o2775}, ""},
				modeFile("usr/lib/x86_64-linux-gnu/libc.so.6", glibc236, 0o755),
				symlink("etc/os-release", "../usr/lib/os-release"), plain("usr/lib/os-release", osReleaseDebian), plain("var/lib/dpkg/status", dpkg2),
				{tar.Header{Name: "dev/null", Typeflag: tar.TypeChar}, ""}, {tar.Header{Name: "run/x", Typeflag: tar.TypeFifo}, ""},
			}},
			Facts{Files: 14, Size: int64(4*3 + 6 + len(glibc236) + len(osReleaseDebian) + len(dpkg2)), Setuid: []string{"/usr/bin/su", "/usr/bin/wall"}, Shell: "/bin/sh", PackageManager: "apt",
				Libc: "glibc 2.36", Packages: 2, PackageDB: "dpkg", OS: "Debian GNU/Linux 12 (bookworm)"},
		},
		"a database below a link": {
			[]layer{{symlink("lib", "usr/lib")}, {plain("lib/apk/db/installed", apk3), symlink("lib/ld-musl-aarch64.so.1", "libc.so"), plain("usr/lib/libc.so", "")}},
			Facts{Files: 4, Size: int64(len(apk3)), Libc: "musl 1.2.5", Packages: 3, PackageDB: "apk"},
		},
		"an older glibc": {
			[]layer{{symlink("lib64/libc.so.6", "libc-2.5.so"), plain("lib64/libc-2.5.so", "GNU C Library stable release version 2.5, by")}},
			Facts{Files: 2, Size: 44, Libc: "glibc 2.5"},
		},
		"a libc.so.6 of another library": {
			[]layer{{plain("lib/libc.so.6", "\x7fELF"), symlink("lib/ld-musl-x86_64.so.1", "/lib/libc.so.6")}},
			Facts{Files: 2, Size: 4, Libc: "musl"},
		},
		"a loader that leads nowhere": {
			[]layer{{symlink("lib/ld-musl-x86_64.so.1", "/lib/libc.so")}},
			Facts{Files: 1},
		},
		"distroless": {
			[]layer{{
				plain("var/lib/dpkg/status.d/base-files", "Package: base-files\n"), plain("var/lib/dpkg/status.d/base-files.md5sums", ""),
				plain("var/lib/dpkg/status.d/tzdata", "Package: tzdata\n"), dir("var/lib/dpkg/status.d/x"), plain("usr/lib/os-release", "PRETTY_NAME=Distroless"),
			}},
			Facts{Files: 4, Size: 58, Packages: 2, PackageDB: "dpkg", OS: "Distroless"},
		},
		"Alpine": {
			[]layer{{
				program("bin/busybox"), symlink("bin/sh", "/bin/busybox"), program("sbin/apk"), modeFile("lib/ld-musl-x86_64.so.1", "", 0o755), symlink("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1"),
				plain("lib/apk/db/installed", apk3), plain("etc/os-release", "PRETTY_NAME='Alpine Linux v3.22'\n"),
			}},
			Facts{Files: 7, Size: int64(8 + len(apk3) + 33), Shell: "/bin/sh", PackageManager: "apk", Libc: "musl 1.2.5", Packages: 3, PackageDB: "apk", OS: "Alpine Linux v3.22"},
		},
		"Fedora": {
			[]layer{{
				program("usr/bin/dnf5"), symlink("usr/bin/yum", "dnf5"), symlink("usr/bin/microdnf", "gone"), program("usr/bin/bash"), modeFile("usr/bin/sh", "", 0o644),
				symlink("var/lib/rpm", "../../usr/lib/sysimage/rpm"), plain("usr/lib/sysimage/rpm/rpmdb.sqlite", rpmdb), plain("usr/lib/sysimage/rpm/rpmdb.sqlite-wal", ""),
				symlink("etc/os-release", "../usr/lib/os-release"), symlink("usr/lib/os-release", "./os.release.d/os-release-container"), plain("usr/lib/os.release.d/os-release-container", "PRETTY_NAME=\"Fedora \\\"42\\\"\"\n"),
			}},
			Facts{Files: 11, Size: int64(8 + len(rpmdb) + 28), Shell: "/usr/bin/bash", PackageManager: "dnf", Packages: 42, PackageDB: "rpm", OS: `Fedora "42"`},
		},
		"rpm with changes that are not in the database": {
			[]layer{{program("usr/bin/microdnf"), plain("var/lib/rpm/rpmdb.sqlite", rpmdb), plain("var/lib/rpm/rpmdb.sqlite-wal", "x")}},
			Facts{Files: 3, Size: int64(4 + len(rpmdb) + 1), PackageManager: "microdnf", Packages: -1, PackageDB: "rpm"},
		},
		"rpm with Berkeley DB": {
			[]layer{{program("usr/bin/yum"), plain("var/lib/rpm/Packages", "x")}},
			Facts{Files: 2, Size: 5, PackageManager: "yum", Packages: -1, PackageDB: "rpm"},
		},
		"rpm with its own database": {
			[]layer{{program("usr/bin/zypper"), plain("usr/lib/sysimage/rpm/Packages.db", "x")}},
			Facts{Files: 2, Size: 5, PackageManager: "zypper", Packages: -1, PackageDB: "rpm"},
		},
		"rpm with a database that is none": {
			[]layer{{program("usr/bin/rpm"), plain("usr/lib/sysimage/rpm/rpmdb.sqlite", "x")}},
			Facts{Files: 2, Size: 5, PackageManager: "rpm", Packages: -1, PackageDB: "rpm"},
		},
		"an empty database of another system": {
			[]layer{{plain("var/lib/dpkg/status", ""), plain("usr/lib/apk/db/installed", apk3)}},
			Facts{Files: 2, Size: int64(len(apk3)), Packages: 3, PackageDB: "apk"},
		},
		"an empty database": {
			[]layer{{plain("var/lib/dpkg/status", "")}},
			Facts{Files: 1, PackageDB: "dpkg"},
		},
		"a layer installs": {
			[]layer{{plain("var/lib/dpkg/status", "Status: install ok installed\n"), program("usr/bin/apt-get")}, {plain("var/lib/dpkg/status", dpkg2), plain("usr/bin/.wh.apt-get", "")}},
			Facts{Files: 1, Size: int64(len(dpkg2)), Packages: 2, PackageDB: "dpkg"},
		},
		"hard links": {
			[]layer{{modeFile("bin/su", "123", 0o4755), hardlink("bin/sg", "bin/su"), symlink("x", "bin"), hardlink("su", "x/su")}, {hardlink("usr/su", "bin/sg"), plain("bin/.wh.su", "")}},
			Facts{Files: 4, Size: 3, Setuid: []string{"/bin/sg", "/su", "/usr/su"}},
		},
		"a layer clears a bit": {
			[]layer{{modeFile("bin/su", "123", 0o4755)}, {modeFile("bin/su", "123", 0o755)}},
			Facts{Files: 1, Size: 3},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range test.layers {
				layers = append(layers, tarOf(t, l...))
			}
			got, err := Inspect(t.Context(), imageOf(t, layers...))
			require.NoError(t, err)
			assert.Equal(t, test.want, got)
		})
	}
}

// Size tells which files are left: each is twice as large as the one before.
func TestInspectLikeARuntime(t *testing.T) {
	one, two, four, eight := strings.Repeat("x", 1), strings.Repeat("x", 2), strings.Repeat("x", 4), strings.Repeat("x", 8)
	type layer = []entry
	for name, test := range map[string]struct {
		layers []layer
		files  int
		size   int64
	}{
		"a whiteout":                          {[]layer{{plain("a/b", one), plain("a/c", two)}, {plain("a/.wh.b", "")}}, 1, 2},
		"a whiteout of a directory":           {[]layer{{plain("a/b/c", one), plain("a/b/d/e", two), plain("a/f", four)}, {plain("a/.wh.b", "")}}, 1, 4},
		"a whiteout of a link":                {[]layer{{symlink("l", "a"), plain("a/b", one)}, {plain(".wh.l", "")}}, 1, 1},
		"a whiteout below a link":             {[]layer{{symlink("l", "a"), plain("a/b", one), plain("a/c", two)}, {plain("l/.wh.b", "")}}, 2, 2},
		"a whiteout of nothing":               {[]layer{{plain("a", one)}, {plain(".wh.b", ""), plain("c/.wh.a", ""), plain("a/.wh.a", ""), plain(".wh.", ""), plain(".wh...", "")}}, 1, 1},
		"a whiteout before the file":          {[]layer{{plain("a/b", one)}, {plain(".wh.a", ""), plain("a/c", two)}}, 1, 2},
		"a whiteout after the file":           {[]layer{{plain("a/b", one)}, {plain("a/c", two), plain(".wh.a", "")}}, 1, 2},
		"a whiteout in the file's layer":      {[]layer{{plain("a", one), plain(".wh.a", "")}}, 1, 1},
		"a whiteout of each layer":            {[]layer{{plain("a/b", one)}, {plain(".wh.a", ""), plain("a/c", two)}, {plain(".wh.a", ""), plain("a/d", four)}}, 1, 4},
		"a whiteout by name":                  {[]layer{{plain("a", one)}, {hardlink("b", "a"), plain(".wh.a", ""), plain(".wh.b", "")}}, 1, 1},
		"an opaque directory":                 {[]layer{{plain("a/b", one), plain("a/c/d", two), plain("e", four)}, {plain("a/.wh..wh..opq", ""), plain("a/f", eight)}}, 2, 12},
		"an opaque directory after the file":  {[]layer{{plain("a/b/c", one)}, {plain("a/b/d", two), plain("a/.wh..wh..opq", ""), plain("a/.wh..wh..opq", "")}}, 1, 2},
		"an opaque root":                      {[]layer{{plain("a/b", one)}, {plain("b", two), plain(".wh..wh..opq", "")}}, 1, 2},
		"an opaque directory below a link":    {[]layer{{symlink("l", "/a"), plain("a/b", one)}, {plain("l/.wh..wh..opq", ""), plain("l/c", two)}}, 2, 2},
		"twice in a layer":                    {[]layer{{plain("a", one), plain("./a", two)}}, 1, 2},
		"in the next layer":                   {[]layer{{plain("a", one)}, {plain("/a", two)}}, 1, 2},
		"a file in a directory's place":       {[]layer{{plain("a/b", one), plain("a/c", two)}, {plain("a", four)}}, 1, 4},
		"a link in a directory's place":       {[]layer{{plain("a/b", one), plain("c/b", two)}, {symlink("a", "c"), plain("a/b", four)}}, 2, 4},
		"a device in a file's place":          {[]layer{{plain("a", one)}, {{tar.Header{Name: "a", Typeflag: tar.TypeBlock}, ""}}}, 0, 0},
		"a directory in a file's place":       {[]layer{{plain("a", one)}, {dir("a"), plain("a/b", two)}}, 1, 2},
		"a directory in a link's place":       {[]layer{{symlink("a", "b"), plain("b/c", one)}, {dir("a"), plain("a/c", two)}}, 2, 3},
		"a directory again":                   {[]layer{{plain("a/b", one)}, {dir("a"), dir("."), plain("a/c", two)}}, 2, 3},
		"a directory that no entry is about":  {[]layer{{plain("a", one)}, {plain("a/b", two)}}, 1, 2},
		"a name that leaves and returns":      {[]layer{{plain("a/b", one)}, {plain("../../a/b", two)}}, 1, 2},
		"a link that leaves and returns":      {[]layer{{symlink("a", "../../../b"), plain("b/c", one)}, {plain("a/c", two)}}, 2, 2},
		"a link to a link":                    {[]layer{{symlink("x", "y/./z/"), symlink("y", "/b//c"), symlink("b/c/z", "../d"), plain("x/f", one)}, {plain("b/d/f", two)}}, 4, 2},
		"a link to a directory that is to be": {[]layer{{symlink("a", "b/c"), plain("a/d", one)}, {plain("b/c/d", two)}}, 2, 2},
		"a link to the root":                  {[]layer{{symlink("a", "/"), plain("b", one)}, {plain("a/a/b", two)}}, 2, 2},
		"a link to itself":                    {[]layer{{symlink("a", "a")}, {plain("a", one)}}, 1, 1},
		"a hard link to a link":               {[]layer{{symlink("a", "b"), hardlink("c", "a"), plain("b/d", one)}, {plain("c/d", two)}}, 3, 2},
		"a hard link and its target":          {[]layer{{plain("a/b", one)}, {hardlink("a", "a/b")}, {hardlink("a", "a")}}, 1, 1},
		"a new file does not change its link": {[]layer{{plain("a", one), hardlink("b", "a")}, {plain("a", two)}}, 2, 3},
		"a note about the archive":            {[]layer{{{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}, ""}, plain("a", one)}}, 1, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range test.layers {
				layers = append(layers, tarOf(t, l...))
			}
			got, err := Inspect(t.Context(), imageOf(t, layers...))
			require.NoError(t, err)
			assert.Equal(t, Facts{Files: test.files, Size: test.size}, got)
		})
	}
}

func TestInspectCompressedLayers(t *testing.T) {
	archive := tarOf(t, plain("a", "1234"), program("busybox/sh"))
	var z, g bytes.Buffer
	zw, err := zstd.NewWriter(&z)
	require.NoError(t, err)
	for b, w := range map[*bytes.Buffer]io.WriteCloser{&z: zw, &g: gzip.NewWriter(&g)} {
		_, err := w.Write(archive)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
		require.NoError(t, err)
		img, err := mutate.Config(withLayer(t, empty.Image, l), v1.Config{Env: []string{"X=y", "PATH=/usr/bin:/busybox"}})
		require.NoError(t, err)
		got, err := Inspect(t.Context(), img)
		require.NoError(t, err)
		assert.Equal(t, Facts{Files: 2, Size: 8, Shell: "/busybox/sh"}, got)
	}
}

func TestInspectDamagedImages(t *testing.T) {
	whole := tarOf(t, plain("a", "content"))
	long := strings.Repeat("x/", 1500)
	// Package tar writes no sparse files, but other keys of the same length.
	sparse := bytes.ReplaceAll(tarOf(t, entry{tar.Header{Name: "sparse", Typeflag: tar.TypeReg, PAXRecords: map[string]string{"XXX.sparse.major": "0", "XXX.sparse.minor": "1", "XXX.sparse.map": "0,0", "XXX.sparse.numblocks": "1"}}, ""}), []byte("XXX.sparse"), []byte("GNU.sparse"))
	for name, test := range map[string]struct {
		layers [][]byte
		want   string
	}{
		"cut off":                       {[][]byte{whole, whole[:515]}, "layer 2 cannot be unpacked: unexpected EOF"},
		"no archive":                    {[][]byte{bytes.Repeat([]byte("x"), 2000)}, "layer 1 cannot be unpacked: archive/tar: invalid"},
		"a loop":                        {[][]byte{tarOf(t, symlink("a", "a"), plain("a/b", ""))}, `layer 1: a loop of symbolic links at "/a/"`},
		"a hard link to nothing":        {[][]byte{tarOf(t, hardlink("a", "b"))}, `layer 1: "/a" is a hard link to "b", which is no file`},
		"a hard link to a directory":    {[][]byte{tarOf(t, dir("c"), hardlink("a", "c"))}, `layer 1: "/a" is a hard link to "c", which is no file`},
		"a hard link to a hidden file":  {[][]byte{whole, tarOf(t, plain(".wh.a", ""), hardlink("b", "a"))}, `layer 2: "/b" is a hard link to "a", which is no file`},
		"an unknown type":               {[][]byte{tarOf(t, entry{tar.Header{Name: "a", Typeflag: 'Z'}, ""})}, `layer 1: "/a" has the type 'Z', which no layer may have`},
		"a sparse file":                 {[][]byte{sparse}, `layer 1: "/sparse" is a sparse file`},
		"a long path":                   {[][]byte{tarOf(t, plain(long+long+"x", ""))}, "layer 1: a path is longer than 4096 bytes"},
		"a path that is long by a link": {[][]byte{tarOf(t, symlink("l", long), plain("l/"+long+"x", ""))}, "layer 1: a path is longer than 4096 bytes"},
		"a link with a long path":       {[][]byte{tarOf(t, symlink("l", long+long))}, "layer 1: a path is longer than 4096 bytes"},
		"a database that is cut off":    {[][]byte{tarOf(t, plain("rpmdb.sqlite", "content"))[:515]}, "layer 1 cannot be unpacked: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Inspect(t.Context(), imageOf(t, test.layers...))
			assert.ErrorContains(t, err, test.want)
			var damaged *layers.DamagedError
			assert.ErrorAs(t, err, &damaged)
		})
	}

	img := imageOf(t, whole)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	for want, ids := range map[string][]v1.Hash{
		"layer 1 unpacks to sha256:":                            {{Algorithm: "sha256", Hex: "00"}},
		"the image has 1 layers, but its configuration lists 0": nil,
	} {
		config = config.DeepCopy()
		config.RootFS.DiffIDs = ids
		other, err := mutate.ConfigFile(img, config)
		require.NoError(t, err)
		_, err = Inspect(t.Context(), other)
		assert.ErrorContains(t, err, want)
	}

	_, err = Inspect(t.Context(), withLayer(t, empty.Image, unreachable{static.NewLayer(whole, types.OCIUncompressedLayer)}))
	var fetch *oci.FetchError
	assert.ErrorAs(t, err, &fetch)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Inspect(ctx, img)
	assert.ErrorIs(t, err, context.Canceled)
}

// unreachable is a layer in a registry that does not answer any more.
type unreachable struct{ v1.Layer }

func (unreachable) Uncompressed() (io.ReadCloser, error) { return nil, &oci.FetchError{} }

// Memory does not grow with what is in files.
func TestLimits(t *testing.T) {
	got, err := look(0, "/var/lib/rpm/rpmdb.sqlite", &tar.Header{Size: maxDatabase + 1}, nil)
	require.NoError(t, err)
	assert.Equal(t, found{packages: -1}, got)
}

func FuzzInspect(f *testing.F) {
	f.Add(tarOf(f, symlink("l", "a"), plain("l/b", "x"), hardlink("c", "l/b")), tarOf(f, plain("a/.wh..wh..opq", ""), plain(".wh.l", ""), dir("l")))
	f.Add(tarOf(f, plain("var/lib/dpkg/status", dpkg2)), tarOf(f, plain("etc/os-release", osReleaseDebian)))
	f.Fuzz(func(t *testing.T, lower, upper []byte) {
		facts, err := Inspect(t.Context(), imageOf(t, lower, upper))
		if err == nil {
			assert.GreaterOrEqual(t, facts.Size, int64(0))
		}
	})
}
