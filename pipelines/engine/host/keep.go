package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// kept is a directory for the outputs of one command that lasts from run to run.
type kept struct {
	mu  sync.Mutex
	dir string
}

// keep returns the directory for a command, locked. What is in it is what an earlier run sealed, or gone:
// `go build` goes by the build ID in a program alone and would take over a damaged one.
func (e *Engine) keep(c engine.Command) (*kept, error) {
	key, err := json.Marshal([]any{c.Toolchain, c.Dir, c.Args, c.Env, c.CGO})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(key)
	name := hex.EncodeToString(sum[:8])
	e.mu.Lock()
	k := e.keeps[name]
	if k == nil {
		k = &kept{dir: filepath.Join(e.work, "outputs", name)}
		e.keeps[name] = k
	}
	e.mu.Unlock()
	k.mu.Lock()
	if err := k.open(); err != nil {
		k.mu.Unlock()
		return nil, cacheError(err)
	}
	return k, nil
}

func (k *kept) open() error {
	was, err := os.ReadFile(k.dir + ".json")
	if err == nil {
		var is []byte
		if is, err = fingerprint(k.dir); err == nil && bytes.Equal(was, is) {
			// Should this be killed half-way, the next one must not believe the seal.
			return os.Remove(k.dir + ".json")
		}
	}
	if err := os.RemoveAll(k.dir); err != nil {
		return err
	}
	if err := os.Remove(k.dir + ".json"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.MkdirAll(k.dir, 0o755)
}

// seal remembers what is in a kept directory.
func seal(dir string) error {
	b, err := fingerprint(dir)
	if err != nil {
		return err
	}
	return os.WriteFile(dir+".json", b, 0o600)
}

// pruneKept removes outputs that no command has written for longer than age, those of other linker flags
// for example.
func pruneKept(dir string, age time.Duration) {
	seals, _ := filepath.Glob(filepath.Join(dir, "*.json"))
	for _, name := range seals {
		if i, err := os.Stat(name); err == nil && time.Since(i.ModTime()) > age {
			_ = os.RemoveAll(strings.TrimSuffix(name, ".json"))
			_ = os.Remove(name)
		}
	}
}

func fingerprint(dir string) ([]byte, error) {
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		sums[rel] = hex.EncodeToString(h.Sum(nil))
		return err
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(sums)
}

// copyOut copies a file or a directory, if it is there.
func copyOut(to, from string) error {
	i, err := os.Stat(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if i.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	w, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, i.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r) // in the kernel, where it can
	return errors.Join(err, w.Close())
}
