// Package store keeps what stages came to, with the files that they wrote, by a digest of everything that
// they depend on.
//
// A store is a directory that any number of processes may use at the same time. What is in it is complete or
// absent, and verified when it is read: a damaged entry is as good as none. What was not used for the
// longest time goes when there is too much.
package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Limit is how much a store holds, in bytes.
const Limit = 4 << 30

// Store is a directory of entries and of the files that they name.
//
//	KEY            an entry, with a digest of itself
//	files/SHA256   content of files
//	tmp/           what is being written
type Store struct {
	dir   string
	limit int64
}

// Open opens the store in a directory, which is made when something is put there.
func Open(dir string) *Store { return &Store{dir, Limit} }

// Entry is what is kept under a key.
type Entry struct {
	// Made is when the entry was put there.
	Made time.Time `json:"made"`
	// Value is whatever the caller wants to know again.
	Value json.RawMessage `json:"value"`
	// Files are those that go with it.
	Files []File `json:"files"`
}

// File is a regular file.
type File struct {
	// Name is slash-separated and relative.
	Name string `json:"name"`
	// Executable is the only part of the mode that is kept.
	Executable bool   `json:"executable,omitempty"`
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256"`
}

// Get puts the files of an entry below dir and returns the entry, or nil where there is none that is whole. What
// it has put there by then it takes away again.
func (s *Store) Get(key, dir string) *Entry {
	name := filepath.Join(s.dir, key)
	text, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	content, sum, _ := bytes.Cut(text, []byte("\n"))
	var e Entry
	if string(sum) != digest(content) || json.Unmarshal(content, &e) != nil {
		return nil
	}
	for i, f := range e.Files {
		if err := s.restore(f, dir); err != nil {
			for _, f := range e.Files[:i] {
				_ = os.Remove(filepath.Join(dir, filepath.FromSlash(f.Name)))
			}
			return nil
		}
	}
	now := time.Now()
	_ = os.Chtimes(name, now, now) // else it goes earlier
	return &e
}

// restore copies a file from the store, and verifies it on the way.
func (s *Store) restore(f File, dir string) (err error) {
	if !filepath.IsLocal(filepath.FromSlash(f.Name)) {
		return fmt.Errorf("%q leads out", f.Name)
	}
	kept := filepath.Join(s.dir, "files", f.SHA256)
	in, err := os.Open(kept)
	if err != nil {
		return err
	}
	defer in.Close()
	to := filepath.Join(dir, filepath.FromSlash(f.Name))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	mode := fs.FileMode(0o644)
	if f.Executable {
		mode = 0o755
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(out, h), in)
	if err == nil && (n != f.Size || hex.EncodeToString(h.Sum(nil)) != f.SHA256) {
		_ = os.Remove(kept)
		err = errors.New("damaged")
	}
	err = errors.Join(err, out.Chmod(mode), out.Close()) // whatever the umask is
	if err != nil {
		_ = os.Remove(to)
		return err
	}
	now := time.Now()
	_ = os.Chtimes(kept, now, now)
	return nil
}

// Put keeps a value and files below dir under a key.
func (s *Store) Put(key string, value []byte, dir string, names []string) error {
	if err := os.MkdirAll(filepath.Join(s.dir, "files"), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "tmp"), 0o755); err != nil {
		return err
	}
	e := Entry{Made: time.Now().UTC().Truncate(time.Second), Value: value}
	for _, name := range names {
		f, err := s.keep(name, dir)
		if err != nil {
			return err
		}
		e.Files = append(e.Files, f)
	}
	content, err := json.Marshal(e)
	if err != nil {
		return err
	}
	err = s.write(func(w io.Writer) (string, error) {
		_, err := w.Write(append(append(content, '\n'), digest(content)...))
		return key, err
	})
	if err != nil {
		return err
	}
	return s.trim()
}

// keep copies a file into the store, unless it is there.
func (s *Store) keep(name, dir string) (File, error) {
	in, err := os.Open(filepath.Join(dir, filepath.FromSlash(name)))
	if err != nil {
		return File{}, err
	}
	defer in.Close()
	info, err := in.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		return File{}, err
	}
	h := sha256.New()
	f := File{Name: name, Executable: info.Mode()&0o111 != 0}
	if f.Size, err = io.Copy(h, in); err != nil {
		return File{}, err
	}
	f.SHA256 = hex.EncodeToString(h.Sum(nil))
	kept := filepath.Join(s.dir, "files", f.SHA256)
	if there, err := os.Stat(kept); err == nil && there.Size() == f.Size {
		now := time.Now()
		return f, os.Chtimes(kept, now, now)
	}
	if _, err := in.Seek(0, io.SeekStart); err != nil {
		return File{}, err
	}
	return f, s.write(func(w io.Writer) (string, error) {
		_, err := io.Copy(w, in)
		return filepath.Join("files", f.SHA256), err
	})
}

// write writes a file of the store that appears complete or not at all.
func (s *Store) write(content func(io.Writer) (name string, err error)) error {
	f, err := os.CreateTemp(filepath.Join(s.dir, "tmp"), "*")
	if err != nil {
		return err
	}
	name, err := content(f)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(s.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// trim removes what killed runs have left, and what was not used for the longest time. An entry whose files have
// gone is as good as none.
func (s *Store) trim() error {
	type aged struct {
		name string
		fs.FileInfo
	}
	var all []aged
	var size int64
	for _, dir := range []string{".", "files", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() {
				continue // another process has removed it
			}
			if dir == "tmp" && time.Since(info.ModTime()) > 24*time.Hour {
				_ = os.Remove(filepath.Join(s.dir, dir, e.Name()))
				continue
			}
			all = append(all, aged{filepath.Join(dir, e.Name()), info})
			size += info.Size()
		}
	}
	if size <= s.limit {
		return nil
	}
	slices.SortFunc(all, func(a, b aged) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.name, b.name))
	})
	for _, f := range all {
		if size <= s.limit*3/4 { // so that it is not done every time
			break
		}
		if err := os.Remove(filepath.Join(s.dir, f.name)); err == nil {
			size -= f.Size()
		}
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
