package host

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// pristine is the tree that commands see which do not write to it.
const pristine = "source"

// tree is one copy of the source. It has the same place in every run, and files keep their times as long
// as their content does not change: both are what `go test` needs to know a result again.
type tree struct {
	mu    sync.Mutex // held while a command that may write runs in it
	from  string
	root  string
	files []engine.File
}

func (e *Engine) tree(name string) *tree {
	e.mu.Lock()
	defer e.mu.Unlock()
	t, ok := e.trees[name]
	if !ok {
		t = &tree{from: e.dir, root: filepath.Join(e.work, "trees", name), files: e.source.Files}
		e.trees[name] = t
	}
	return t
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

// sync makes the tree equal to the source: it adds and replaces what differs and removes the rest.
func (t *tree) sync() error {
	have := map[string]copied{}
	index := t.root + ".json"
	if b, err := os.ReadFile(index); err == nil {
		_ = json.Unmarshal(b, &have) // a damaged index only costs copying again
	}
	// Should this be killed half-way, the next one must not believe the old index.
	if err := os.Remove(index); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return cacheError(err)
	}
	if err := os.MkdirAll(t.root, 0o755); err != nil {
		return cacheError(err)
	}
	wanted := make(map[string]bool, len(t.files))
	for _, f := range t.files {
		for name := filepath.FromSlash(f.Name); name != "." && !wanted[name]; name = filepath.Dir(name) {
			wanted[name] = true
		}
	}
	if err := t.removeOthers(wanted); err != nil {
		return cacheError(err)
	}
	now := make(map[string]copied, len(t.files))
	for _, f := range t.files {
		c, err := t.place(f, have[f.Name])
		if err != nil {
			return cacheError(err)
		}
		now[f.Name] = c
	}
	b, err := json.Marshal(now)
	if err == nil {
		err = os.WriteFile(index, b, 0o600)
	}
	if err != nil {
		return cacheError(err)
	}
	return nil
}

func (t *tree) removeOthers(wanted map[string]bool) error {
	return filepath.WalkDir(t.root, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) && d != nil && d.IsDir() {
			// A test took away the right to read a directory.
			if err := os.Chmod(file, 0o755); err != nil {
				return err
			}
			return removeAll(file)
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(t.root, file)
		if err != nil || name == "." || wanted[name] {
			return err
		}
		if err := removeAll(file); err != nil {
			return err
		}
		if d.IsDir() {
			return filepath.SkipDir
		}
		return nil
	})
}

// place puts one file into the tree unless it is there unchanged.
func (t *tree) place(f engine.File, had copied) (copied, error) {
	name := filepath.Join(t.root, filepath.FromSlash(f.Name))
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
		if err := removeAll(name); err != nil {
			return had, err
		}
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		// A test put a file where a directory belongs.
		if err := removeAll(filepath.Dir(name)); err != nil {
			return had, err
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return had, err
		}
	}
	c := copied{SHA256: f.SHA256, Link: f.Link, Executable: f.Executable}
	if f.Link != "" {
		return c, os.Symlink(filepath.FromSlash(f.Link), name)
	}
	if err := copyFile(name, filepath.Join(t.from, filepath.FromSlash(f.Name)), f); err != nil {
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

// copyFile copies content and time of a regular file, which must still be what was hashed.
func copyFile(to, from string, f engine.File) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	i, err := r.Stat()
	if err != nil {
		return err
	}
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
	if hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
		return fault.Environmentf(nil, "Run slipway again when nothing writes to the source.", "source: %q changed while slipway read it", f.Name)
	}
	return os.Chtimes(to, i.ModTime(), i.ModTime())
}

// removeAll is os.RemoveAll that also removes directories whose owner may not write them, as tests and
// the module cache leave them.
func removeAll(name string) error {
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
