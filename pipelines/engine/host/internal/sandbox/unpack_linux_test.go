package sandbox

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// unpackLayers unpacks layers and lists what is there then: path and mode, and the content or target.
func unpackLayers(t *testing.T, owners bool, layers ...[]entry) (map[string]string, string, error) {
	t.Helper()
	var s imageSpec
	for _, l := range layers {
		s.layers = append(s.layers, plain(tarOf(t, l...)))
	}
	return unpackImage(t, s.write(t), owners)
}

func unpackImage(t *testing.T, c engine.Container, owners bool) (map[string]string, string, error) {
	t.Helper()
	// There is a file beside the root which nothing may touch.
	parent := t.TempDir()
	canary := filepath.Join(parent, "canary")
	require.NoError(t, os.WriteFile(canary, []byte("alive"), 0o600))
	dir := filepath.Join(parent, "root")
	require.NoError(t, os.Mkdir(dir, 0o755))
	t.Cleanup(func() { require.NoError(t, removeTree(dir)) })
	im, err := readImage(c.Layout, c.Manifest)
	require.NoError(t, err)
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	defer root.Close()
	u, err := unpack(context.Background(), im, root, owners)
	if err == nil {
		err = u.finish(nil)
	}

	beside, rerr := os.ReadDir(parent)
	require.NoError(t, rerr)
	require.Len(t, beside, 2)
	fi, serr := os.Lstat(canary)
	require.NoError(t, serr)
	require.Equal(t, fs.FileMode(0o600), fi.Mode())
	require.Equal(t, uint64(1), uint64(fi.Sys().(*syscall.Stat_t).Nlink))
	b, rerr := os.ReadFile(canary)
	require.NoError(t, rerr)
	require.Equal(t, "alive", string(b))

	found := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		what := fi.Mode().String()
		switch fi.Mode().Type() {
		case 0:
			b, err := os.ReadFile(name)
			if err != nil && !errors.Is(err, fs.ErrPermission) {
				return err
			}
			what += " " + string(b)
		case fs.ModeSymlink:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			what += " " + target
		}
		rel, err := filepath.Rel(dir, name)
		found[rel] = what
		return err
	}))
	return found, dir, err
}

// TestUnpack tests what becomes of layers.
func TestUnpack(t *testing.T) {
	for _, test := range []struct {
		name   string
		layers [][]entry
		want   map[string]string
	}{
		{"modes", [][]entry{{
			dir("./", 0o755), dir("./a", 0o700), file("./a/setuid", 0o4755, "x"), file("./a/closed", 0, ""), dir("sticky", 0o1777),
			link("dangling", "/nowhere"), hardlink("b", "a/setuid"), {Header: tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o600}},
		}}, map[string]string{
			"a": "drwx------", "a/setuid": "urwxr-xr-x x", "a/closed": "---------- ", "sticky": "dtrwxrwxrwx",
			"dangling": "Lrwxrwxrwx /nowhere", "b": "urwxr-xr-x x", "pipe": "prw-------",
		}},
		{"devices are left out", [][]entry{{
			{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Mode: 0o666, Devmajor: 1, Devminor: 3}},
			{Header: tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Mode: 0o666, Devmajor: 8}}, file("dev/x", 0o600, ""),
		}}, map[string]string{"dev": "drwxr-xr-x", "dev/x": "-rw------- "}},
		{"a directory that is closed to its owner", [][]entry{
			{dir("d", 0), file("d/x", 0o600, "1")},
			{file("d/x", 0o600, "2"), file("d/y", 0o600, "3"), dir("d", 0o500)},
		}, map[string]string{"d": "dr-x------", "d/x": "-rw------- 2", "d/y": "-rw------- 3"}},
		{"later layers and entries replace", [][]entry{
			{file("file", 0o644, "1"), file("twice", 0o644, "1"), file("twice", 0o600, "2"), dir("d", 0o755), file("d/x", 0o644, "1"),
				link("l", "file"), file("f", 0o644, "1"), dir("keep", 0o755), file("keep/x", 0o644, "1")},
			{file("file", 0o600, "3"), link("d", "elsewhere"), file("l", 0o644, "not through the link"), dir("f", 0o755), dir("keep", 0o700)},
		}, map[string]string{
			"file": "-rw------- 3", "twice": "-rw------- 2", "d": "Lrwxrwxrwx elsewhere", "l": "-rw-r--r-- not through the link",
			"f": "drwxr-xr-x", "keep": "drwx------", "keep/x": "-rw-r--r-- 1",
		}},
		{"parents that are not listed", [][]entry{{file("a/b/c", 0o644, "x")}, {file("a/b/c/d", 0o644, "y")}}, map[string]string{
			"a": "drwxr-xr-x", "a/b": "drwxr-xr-x", "a/b/c": "drwxr-xr-x", "a/b/c/d": "-rw-r--r-- y",
		}},
		{"whiteouts", [][]entry{
			{file("a", 0o644, ""), file("d/b", 0o644, ""), file("d/e/f", 0o644, ""), file("stay", 0o644, "")},
			{file(".wh.a", 0, ""), file("d/.wh.e", 0, ""), file(".wh.never-there", 0, ""), file(".wh..wh.plnk", 0, "")},
		}, map[string]string{"d": "drwxr-xr-x", "d/b": "-rw-r--r-- ", "stay": "-rw-r--r-- "}},
		{"whiteouts spare their own layer", [][]entry{
			{file("a", 0o644, "1"), file("d/1", 0o644, ""), file("d/e/1", 0o644, "")},
			{file("a", 0o644, "2"), file(".wh.a", 0, ""), file("d/e/2", 0o644, ""), file(".wh.d", 0, "")},
		}, map[string]string{"a": "-rw-r--r-- 2", "d": "drwxr-xr-x", "d/e": "drwxr-xr-x", "d/e/2": "-rw-r--r-- "}},
		{"opaque whiteouts", [][]entry{
			{file("d/1", 0o644, ""), file("d/e/1", 0o644, ""), file("d/f/1", 0o644, ""), link("l", "d"), file("stay", 0o644, "")},
			{file("d/e/2", 0o644, ""), file("d/.wh..wh..opq", 0, ""), file("d/3", 0o644, "")},
		}, map[string]string{
			"d": "drwxr-xr-x", "d/e": "drwxr-xr-x", "d/e/2": "-rw-r--r-- ", "d/3": "-rw-r--r-- ", "l": "Lrwxrwxrwx d", "stay": "-rw-r--r-- ",
		}},
		{"a whiteout of everything", [][]entry{{file("a", 0o644, ""), file("d/x", 0o644, "")}, {file(".wh..wh..opq", 0, "")}}, map[string]string{}},
		{"links are followed inside", [][]entry{
			{dir("usr/bin", 0o755), link("bin", "usr/bin"), link("abs", "/usr"), link("up", "../../../usr"), file("bin/a", 0o644, "1")},
			{file("abs/bin/b", 0o644, "2"), file("up/bin/c", 0o644, "3"), hardlink("d", "/abs/bin/../bin/a"), file("bin/.wh.a", 0, "")},
		}, map[string]string{
			"usr": "drwxr-xr-x", "usr/bin": "drwxr-xr-x", "bin": "Lrwxrwxrwx usr/bin", "abs": "Lrwxrwxrwx /usr", "up": "Lrwxrwxrwx ../../../usr",
			"usr/bin/b": "-rw-r--r-- 2", "usr/bin/c": "-rw-r--r-- 3", "d": "-rw-r--r-- 1",
		}},
		{"a hard link to itself", [][]entry{{file("a", 0o644, "x"), hardlink("a", "./a")}}, map[string]string{"a": "-rw-r--r-- x"}},
		{"a hard link to a link", [][]entry{{link("a", "/etc/passwd"), hardlink("b", "a")}}, map[string]string{
			"a": "Lrwxrwxrwx /etc/passwd", "b": "Lrwxrwxrwx /etc/passwd",
		}},
		{"absolute names", [][]entry{{file("/etc/x", 0o644, "1"), file("//etc//y", 0o644, "2")}}, map[string]string{
			"etc": "drwxr-xr-x", "etc/x": "-rw-r--r-- 1", "etc/y": "-rw-r--r-- 2",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _, err := unpackLayers(t, false, test.layers...)
			require.NoError(t, err)
			if os.Geteuid() != 0 {
				delete(got, "a/closed") // cannot be read
				delete(test.want, "a/closed")
			}
			require.Equal(t, test.want, got)
		})
	}
}

// TestUnpackHostile tests layers that try to get out. unpackLayers checks that nothing outside was touched.
func TestUnpackHostile(t *testing.T) {
	outside := t.TempDir()
	for _, test := range []struct {
		name   string
		layers [][]entry
		err    string // or else it ends up inside
	}{
		{"parent", [][]entry{{file("../canary", 0o644, "dead")}}, "leads out of the image"},
		{"parent further in", [][]entry{{dir("a", 0o755), file("a/../../canary", 0o644, "dead")}}, "leads out of the image"},
		{"parent whiteout", [][]entry{{file("../.wh.canary", 0o644, "")}}, "leads out of the image"},
		{"whiteout of the parent", [][]entry{{file("a/.wh...", 0o644, "")}}, "a whiteout without a name"},
		{"whiteout of itself", [][]entry{{file("a/.wh..", 0o644, "")}}, "a whiteout without a name"},
		{"whiteout of nothing", [][]entry{{file("a/.wh.", 0o644, "")}}, "a whiteout without a name"},
		{"opaque parent", [][]entry{{file("../.wh..wh..opq", 0o644, "")}}, "leads out of the image"},
		{"through an absolute link", [][]entry{{link("l", outside), file("l/x", 0o644, "dead")}}, ""},
		{"through a relative link", [][]entry{{link("l", ".."), file("l/canary", 0o644, "dead")}}, ""},
		{"through many links", [][]entry{{link("a", "b/../../.."), link("b", "/../.."), file("a/canary", 0o644, "dead")}}, ""},
		{"through a link of an earlier layer", [][]entry{{link("l", outside)}, {file("l/x", 0o644, "dead")}}, ""},
		{"over a link", [][]entry{{link("l", "../canary"), file("l", 0o644, "dead")}}, ""},
		{"a directory over a link", [][]entry{{link("l", ".."), dir("l", 0o777), file("l/canary", 0o644, "dead")}}, ""},
		{"whiteout through a link", [][]entry{{link("l", "..")}, {file("l/.wh.canary", 0o644, "")}}, ""},
		{"opaque whiteout through a link", [][]entry{{link("l", "..")}, {file("l/.wh..wh..opq", 0o644, "")}}, ""},
		{"hard link", [][]entry{{hardlink("h", "../canary"), file("h", 0o644, "dead")}}, "no such file"},
		{"absolute hard link", [][]entry{{hardlink("h", filepath.Join(outside, "..", "canary"))}}, "no such file"},
		{"hard link through a link", [][]entry{{link("l", ".."), hardlink("h", "l/canary")}}, "no such file"},
		{"hard link to a link", [][]entry{{link("l", "../canary"), hardlink("h", "l"), file("h", 0o644, "dead")}}, ""},
		{"hard link to a directory", [][]entry{{dir("d", 0o755), hardlink("h", "d")}}, "the directory"},
		{"links in a circle", [][]entry{{link("a", "b"), link("b", "a"), file("a/x", 0o644, "")}}, "too many"},
		{"the root as a file", [][]entry{{file(".", 0o644, "")}}, "the root is not a directory"},
		{"the root as a link", [][]entry{{link("/", outside)}}, "the root is not a directory"},
		{"an unknown type", [][]entry{{{Header: tar.Header{Typeflag: 'Z', Name: "z"}}}}, "unknown type"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := unpackLayers(t, false, test.layers...)
			if test.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.err)
			}
			entries, err := os.ReadDir(outside)
			require.NoError(t, err)
			require.Empty(t, entries)
		})
	}
}

// TestUnpackOwners tests what only root can keep.
func TestUnpackOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("owners are kept only as root")
	}
	able := file("able", 0o6755, "").owned(7, 8).able(bindService)
	_, root, err := unpackLayers(t, true, []entry{able, dir("d", 0o755).owned(5, 6), link("l", "able").owned(3, 4)})
	require.NoError(t, err)
	for name, want := range map[string]string{"able": "7:8 ugrwxr-xr-x", "d": "5:6 drwxr-xr-x", "l": "3:4 Lrwxrwxrwx"} {
		fi, err := os.Lstat(filepath.Join(root, name))
		require.NoError(t, err)
		st := fi.Sys().(*syscall.Stat_t)
		require.Equal(t, want, fmt.Sprintf("%d:%d %v", st.Uid, st.Gid, fi.Mode()))
		if name != "l" {
			require.True(t, longAgo.Equal(fi.ModTime()), name)
		}
	}
	value := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(root, "able"), "security.capability", value)
	require.NoError(t, err)
	require.Equal(t, bindService, string(value[:n]))
}

// TestLayer tests compression, digests and limits.
func TestLayer(t *testing.T) {
	archive := tarOf(t, file("x", 0o644, strings.Repeat("content", 10000)))
	opener := func(b []byte) tarball.Opener {
		return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	}
	layer := func(t *testing.T, b []byte, o ...tarball.LayerOption) imageSpec {
		l, err := tarball.LayerFromOpener(opener(b), o...)
		require.NoError(t, err)
		return imageSpec{layers: []v1.Layer{l}}
	}
	zw, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	for name, b := range map[string][]byte{"plain": archive, "zstd": zw.EncodeAll(archive, nil)} {
		t.Run(name, func(t *testing.T) {
			s := imageSpec{layers: []v1.Layer{plain(archive)}}
			if name == "zstd" {
				s = layer(t, b, tarball.WithMediaType(types.OCILayerZStd))
			}
			got, _, err := unpackImage(t, s.write(t), false)
			require.NoError(t, err)
			require.Contains(t, got, "x")
		})
	}

	// blob returns the file of the first layer.
	blob := func(t *testing.T, c engine.Container) string {
		im, err := readImage(c.Layout, c.Manifest)
		require.NoError(t, err)
		return filepath.Join(c.Layout, "blobs", "sha256", im.manifest.Layers[0].Digest.Hex)
	}
	t.Run("gzip, as it is and then changed", func(t *testing.T) {
		c := layer(t, archive).write(t)
		got, _, err := unpackImage(t, c, false)
		require.NoError(t, err)
		require.Contains(t, got, "x")

		// The header of gzip has a time, which the content does not depend on.
		b, err := os.ReadFile(blob(t, c))
		require.NoError(t, err)
		require.Equal(t, []byte{0x1f, 0x8b}, b[:2])
		b[4]++
		require.NoError(t, os.WriteFile(blob(t, c), b, 0o644))
		_, _, err = unpackImage(t, c, false)
		require.ErrorContains(t, err, "the content is not that of sha256:")
	})
	t.Run("more behind the end", func(t *testing.T) {
		c := imageSpec{layers: []v1.Layer{plain(archive)}}.write(t)
		require.NoError(t, os.WriteFile(blob(t, c), append(bytes.Clone(archive), make([]byte, 1024)...), 0o644))
		_, _, err := unpackImage(t, c, false)
		require.ErrorContains(t, err, "the content is not that of sha256:")
	})
	t.Run("cut", func(t *testing.T) {
		c := layer(t, archive).write(t)
		require.NoError(t, os.Truncate(blob(t, c), 100))
		_, _, err := unpackImage(t, c, false)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
	t.Run("missing", func(t *testing.T) {
		c := layer(t, archive).write(t)
		require.NoError(t, os.Remove(blob(t, c)))
		_, _, err := unpackImage(t, c, false)
		require.ErrorIs(t, err, fs.ErrNotExist)
	})
	t.Run("another diff id", func(t *testing.T) {
		c := imageSpec{layers: []v1.Layer{otherDiffID{plain(archive)}}}.write(t)
		_, _, err := unpackImage(t, c, false)
		require.ErrorContains(t, err, "the content is not that of sha256:00")
	})
	t.Run("manifest", func(t *testing.T) {
		c := layer(t, archive).write(t)
		for _, digest := range []string{"", "latest", "sha256:../../../etc/passwd", "sha512:" + strings.Repeat("0", 128)} {
			_, err := readImage(c.Layout, digest)
			require.Error(t, err, digest)
		}
		name := filepath.Join(c.Layout, "blobs", strings.ReplaceAll(c.Manifest, ":", "/"))
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(name, append(b, '\n'), 0o644))
		_, err = readImage(c.Layout, c.Manifest)
		require.ErrorContains(t, err, "the content is not that of "+c.Manifest)
	})
	t.Run("limits", func(t *testing.T) {
		defer func(b int64, n int) { maxImageBytes, maxImageEntries = b, n }(maxImageBytes, maxImageEntries)
		twice := imageSpec{layers: []v1.Layer{plain(archive), plain(archive)}}.write(t)
		maxImageBytes = int64(len(archive)) + 100
		_, _, err := unpackImage(t, twice, false)
		require.ErrorIs(t, err, errTooLarge)
		maxImageBytes, maxImageEntries = 1<<30, 1
		_, _, err = unpackImage(t, twice, false)
		require.ErrorIs(t, err, errTooLarge)

		// Padding that hides much behind little, without any entry.
		maxImageBytes, maxImageEntries = 1<<20, 10
		_, _, err = unpackImage(t, layer(t, make([]byte, 2<<20)).write(t), false)
		require.ErrorIs(t, err, errTooLarge)
		_, _, err = unpackImage(t, layer(t, append(bytes.Clone(archive[:len(archive)-1024]), make([]byte, 2<<20)...)).write(t), false)
		require.ErrorIs(t, err, errTooLarge)
	})
	t.Run("cancelled", func(t *testing.T) {
		c := layer(t, archive).write(t)
		im, err := readImage(c.Layout, c.Manifest)
		require.NoError(t, err)
		root, err := os.OpenRoot(t.TempDir())
		require.NoError(t, err)
		defer root.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_, err = unpack(ctx, im, root, false)
		require.ErrorIs(t, err, context.Canceled)
	})
}

// otherDiffID is a layer that claims another content than it has.
type otherDiffID struct{ v1.Layer }

func (otherDiffID) DiffID() (v1.Hash, error) {
	return v1.NewHash("sha256:" + strings.Repeat("0", 64))
}
