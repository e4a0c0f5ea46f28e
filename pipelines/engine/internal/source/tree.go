package source

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// Tree is one copy of the source. It has the same place in every run, and the times of files change with
// their content and only then: both are what `go test` needs to know a result again.
type Tree struct {
	// From is the directory that was read, Root that of the copy.
	From, Root string
	// Files are those that belong into the copy.
	Files []engine.File
}

// copied is what a tree remembers of a file that it holds: enough to see that nobody changed it since.
type copied struct {
	SHA256     string `json:"sha256,omitempty"`
	Link       string `json:"link,omitempty"`
	Executable bool   `json:"executable,omitempty"`
	// Mode is what the file system made of the mode that was asked for.
	Mode fs.FileMode `json:"mode"`
	Size int64       `json:"size"`
	Time time.Time   `json:"time"`
}

// Sync makes the tree equal to the source: it adds and replaces what differs and removes the rest.
func (t *Tree) Sync() error {
	have := map[string]copied{}
	index := t.Root + ".json"
	if b, err := os.ReadFile(index); err == nil {
		_ = json.Unmarshal(b, &have) // a damaged index only costs copying again
	}
	// Should this be killed half-way, the next one must not believe the old index.
	if err := os.Remove(index); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := t.makeRoom(); err != nil {
		return err
	}
	now := make(map[string]copied, len(t.Files))
	for _, f := range t.Files {
		c, err := t.place(f, have[f.Name])
		if err != nil {
			return err
		}
		now[f.Name] = c
	}
	b, err := json.Marshal(now)
	if err == nil {
		err = os.WriteFile(index, b, 0o600)
	}
	if err != nil {
		return err
	}
	return nil
}

// makeRoom removes what is not part of the source, or not of the right kind, and makes all directories.
func (t *Tree) makeRoom() error {
	isDir := map[string]bool{".": true} // of everything that belongs here
	for _, f := range t.Files {
		name := filepath.FromSlash(f.Name)
		isDir[name] = false
		for dir := filepath.Dir(name); !isDir[dir]; dir = filepath.Dir(dir) {
			isDir[dir] = true
		}
	}
	if i, err := os.Lstat(t.Root); err == nil && !i.IsDir() {
		if err := os.Remove(t.Root); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(t.Root, 0o755); err != nil {
		return err
	}
	err := filepath.WalkDir(t.Root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(t.Root, file)
		if err != nil {
			return err
		}
		if wantDir, ok := isDir[name]; !ok || wantDir != d.IsDir() {
			if err := RemoveAll(file); err != nil || !d.IsDir() {
				return err
			}
			return filepath.SkipDir
		}
		if i, err := d.Info(); err != nil || !d.IsDir() || i.Mode().Perm() == 0o755 {
			return err
		}
		return os.Chmod(file, 0o755) // before WalkDir reads it: a test may have taken away the right to
	})
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(isDir)) {
		if !isDir[name] {
			continue
		}
		dir := filepath.Join(t.Root, name)
		if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return err
		}
		if err := os.Chmod(dir, 0o755); err != nil { // a umask does not apply to it
			return err
		}
	}
	return nil
}

// place puts one file into the tree unless it is there unchanged.
func (t *Tree) place(f engine.File, had copied) (copied, error) {
	name := filepath.Join(t.Root, filepath.FromSlash(f.Name))
	i, err := os.Lstat(name)
	if err == nil && had.SHA256 == f.SHA256 && had.Link == f.Link && had.Executable == f.Executable {
		if f.Link != "" {
			if link, err := os.Readlink(name); err == nil && filepath.ToSlash(link) == f.Link {
				return had, nil
			}
		} else if i.Mode().IsRegular() && i.Mode().Perm() == had.Mode && i.Size() == had.Size && i.ModTime().Equal(had.Time) {
			return had, nil
		}
	}
	if err == nil {
		if err := RemoveAll(name); err != nil {
			return had, err
		}
	}
	c := copied{SHA256: f.SHA256, Link: f.Link, Executable: f.Executable}
	if f.Link != "" {
		return c, os.Symlink(filepath.FromSlash(f.Link), name)
	}
	if err := copyFile(name, filepath.Join(t.From, filepath.FromSlash(f.Name)), f); err != nil {
		return c, err
	}
	if i, err = os.Lstat(name); err != nil {
		return c, err
	}
	c.Mode, c.Size, c.Time = i.Mode().Perm(), i.Size(), i.ModTime()
	return c, nil
}

func mode(f engine.File) fs.FileMode {
	if f.Executable {
		return 0o755
	}
	return 0o644
}

// contentTime is the time of a file with the given content. `go test` takes a file for unchanged whose
// size and time are; the time in the source is no help there, since an edit may leave it as it was, and a
// checkout may give one time to all files. It lies between 2001 and 2018, at a second that any file system
// can store.
func contentTime(sum [sha256.Size]byte) time.Time {
	return time.Unix(1_000_000_000+2*int64(binary.BigEndian.Uint32(sum[:])>>4), 0)
}

// copyFile copies the content of a regular file, which must still be what was hashed.
func copyFile(to, from string, f engine.File) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode(f))
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(w, h), r)
	// A umask does not apply to Chmod.
	if err := errors.Join(err, w.Chmod(mode(f)), w.Close()); err != nil {
		return err
	}
	sum := [sha256.Size]byte(h.Sum(nil))
	if hex.EncodeToString(sum[:]) != f.SHA256 {
		return fault.Environmentf(nil, "Run slipway again when nothing writes to the source.", "source: %q changed while slipway read it", f.Name)
	}
	when := contentTime(sum)
	return os.Chtimes(to, when, when)
}

// RemoveAll is os.RemoveAll that also removes directories whose owner may not write them, as tests and
// the module cache leave them.
func RemoveAll(name string) error {
	err := os.RemoveAll(name)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(name, func(file string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(file, 0o700)
		}
		return nil
	})
	return os.RemoveAll(name)
}
