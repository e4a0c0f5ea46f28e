package layers

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuzzFind asks the kernel where a path leads to when a directory is the root. The targets of links are lines.
func FuzzFind(f *testing.F) {
	for targets, name := range map[string]string{
		"d/e/..\nl/x":                  "m", // of the link's target, not of the link
		"/d\nl/../x":                   "/m",
		"../../d/e\n..":                "l/l/x",
		"d/e\n\n../../e/../x":          "d/l",
		"d/e\n\n../../../../e/..":      "l/../l/x",
		"x/..\nx/.\nx":                 "l/x",
		"x\nl/.\nx/":                   "m",
		"d//e/./\nx/":                  "l///./x",
		"m\nl":                         "l/x",
		"missing/../x":                 "l",
		"d":                            "x/../x",
		"/\n/..":                       "m/l/../d/x",
		"l":                            "",
		strings.Repeat("/", 300) + "d": strings.Repeat("l/../", 40) + "x",
		"d/":                           strings.Repeat("l/../", 41) + "x",
	} {
		f.Add(targets, name)
	}
	root := f.TempDir()
	require.NoError(f, os.MkdirAll(filepath.Join(root, "d", "e"), 0o755))
	files := []string{"x", "d/x", "d/e/x"} // each larger than the one before
	for i, name := range files {
		require.NoError(f, os.WriteFile(filepath.Join(root, name), make([]byte, i), 0o600))
	}
	dir, err := unix.Open(root, unix.O_PATH, 0)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, targets, name string) {
		tree := newTree()
		for i, name := range files {
			require.NoError(t, tree.entry(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: int64(i)}, strings.NewReader("")))
		}
		all := strings.Split(targets, "\n")
		for i, link := range []string{"l", "m", "d/l", "d/m", "d/e/l"} {
			_ = os.Remove(filepath.Join(root, link))
			if i >= len(all) || all[i] == "" {
				continue
			}
			if os.Symlink(all[i], filepath.Join(root, link)) != nil {
				t.Skip("the kernel takes no such link")
			}
			require.NoError(t, tree.entry(&tar.Header{Name: link, Typeflag: tar.TypeSymlink, Linkname: all[i]}, nil))
		}
		var want unix.Stat_t
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_IN_ROOT})
		switch {
		case err == nil:
			require.NoError(t, unix.Fstat(fd, &want))
			require.NoError(t, unix.Close(fd))
		case !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
			t.Skip(err) // a path that is too long, or a kernel without openat2
		}
		if got := tree.Find(name); want.Mode&unix.S_IFMT == unix.S_IFREG {
			require.NotNil(t, got, "%q", targets)
			assert.Equal(t, want.Size, got.Size, "%q", targets)
		} else {
			assert.Nil(t, got, "%q", targets)
		}
	})
}
