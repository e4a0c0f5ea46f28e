//go:build unix

package pipelines

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removable tells before a run what would stop the old directory from being removed after it, such as that root
// has made it.
func removable(dir string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		if err := unix.Access(name, unix.W_OK|unix.X_OK); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "remove files of", Path: name, Err: err}
		}
		return nil
	})
}
