package pipelines

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// LockFile is the name of the lock file in the root of a source tree.
const LockFile = "slipway.lock"

const lockSchema = 1

// Lock pins what a configuration leaves open, so that every later run on any machine uses the same. It
// is to be committed.
type Lock struct {
	// Schema is the version of this format.
	Schema int `json:"schema"`
	// Go maps what go-versions may ask for ("1.22", "stable") to an exact release.
	Go map[string]string `json:"go"`
	// Toolchains maps an exact release to the verified checksums of what it ran from: "h1:..." of the
	// toolchain module for each platform, "sha256:..." for each image.
	Toolchains map[string]map[string]string `json:"toolchains"`
	// Bases maps the reference of a base image to its digest.
	Bases map[string]string `json:"bases"`

	mu sync.Mutex
}

// ReadLock reads the lock file of a source tree. A tree without one has an empty Lock.
func ReadLock(source fs.FS) (*Lock, error) {
	l := &Lock{Schema: lockSchema}
	text, err := fs.ReadFile(source, LockFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Environmentf(err, "", "%s", LockFile)
	}
	if err == nil {
		if err := l.read(text); err != nil {
			return nil, err
		}
	}
	l.fill()
	return l, nil
}

// fill makes the maps that the text left out.
func (l *Lock) fill() {
	for _, m := range []*map[string]string{&l.Go, &l.Bases} {
		if *m == nil {
			*m = map[string]string{}
		}
	}
	if l.Toolchains == nil {
		l.Toolchains = map[string]map[string]string{}
	}
}

func (l *Lock) read(text []byte) error {
	const next = "Restore it from version control, or remove it to resolve everything anew."
	// A newer schema may have other fields.
	var schema struct{ Schema int }
	if err := json.Unmarshal(text, &schema); err != nil {
		return fault.Usagef(next, "%s cannot be read: %v", LockFile, err)
	}
	if schema.Schema != lockSchema {
		return fault.Usagef("Use a slipway that is as new as the one that wrote it.", "%s has schema %d, this slipway reads %d", LockFile, schema.Schema, lockSchema)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(l); err != nil {
		return fault.Usagef(next, "%s cannot be read: %v", LockFile, err)
	}
	return nil
}

// Bytes is the lock file's content.
func (l *Lock) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		panic(err) // strings and maps of strings
	}
	return append(b, '\n')
}

// Write writes the lock file into dir unless it says the same already. It reports whether it wrote.
func (l *Lock) Write(dir string) (bool, error) {
	name := filepath.Join(dir, LockFile)
	now := l.Bytes()
	if before, err := os.ReadFile(name); err == nil && bytes.Equal(before, now) {
		return false, nil
	}
	temp, err := os.CreateTemp(dir, "."+LockFile+".*")
	if err != nil {
		return false, err
	}
	_, err = temp.Write(now)
	err = errors.Join(err, temp.Chmod(0o644), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), name)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err == nil, err
}

// LockChange is a choice that a lock file makes otherwise than another.
type LockChange struct {
	// Kind is "go" or "base", Name what was left open: "1.22", "stable", a reference.
	Kind, Name string
	// Before and After are what was chosen, empty for nothing.
	Before, After string
}

// Changes lists the choices that l makes otherwise than before did, sorted by kind and name.
func (l *Lock) Changes(before *Lock) []LockChange {
	var changes []LockChange
	for _, x := range []struct {
		kind     string
		old, now map[string]string
	}{{"base", before.Bases, l.Bases}, {"go", before.Go, l.Go}} {
		names := maps.Clone(x.old)
		maps.Copy(names, x.now)
		for _, name := range sortedKeys(names) {
			if x.old[name] != x.now[name] {
				changes = append(changes, LockChange{x.kind, name, x.old[name], x.now[name]})
			}
		}
	}
	return changes
}

// Forget drops every choice, so that the next plan chooses anew. Checksums stay: a release never changes.
func (l *Lock) Forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.Go)
	clear(l.Bases)
}

func (l *Lock) setToolchain(release, pin, sum string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.Toolchains[release] == nil {
		l.Toolchains[release] = map[string]string{}
	}
	l.Toolchains[release][pin] = sum
}

func (l *Lock) base(ref string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Bases[ref]
}

func (l *Lock) setBase(ref, digest string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Bases[ref] = digest
}

// prune drops the checksums of releases that nothing refers to any more.
func (l *Lock) prune(used map[string]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.Toolchains, func(release string, _ map[string]string) bool { return !used[release] })
}
