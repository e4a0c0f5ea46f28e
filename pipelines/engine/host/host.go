// Package host is the embedded engine: official Go toolchains on this machine, no container engine.
//
// Commands run with the verified toolchain modules of the Go project, over a copy of the source and with
// an environment that is built from nothing. Module and build caches are the user's own.
package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/host/internal/sandbox"
	"github.com/slipway-ci/slipway/pipelines/engine/internal/source"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

// Options change where an engine works. The zero value is right for most.
type Options struct {
	// CacheDir is where copies of sources live between runs. Empty means slipway's directory in the
	// user's cache directory, or what SLIPWAY_CACHE names.
	CacheDir string
	// Exclude names files and directories that are not part of the source, relative to its root: what
	// slipway itself writes.
	Exclude []string
}

// Engine is the host engine. It implements engine.Engine.
type Engine struct {
	dir    string // the user's tree; read once, never written
	work   string // this engine's part of the cache directory
	temp   string // TMPDIR of commands
	cache  string
	goEnv  goEnv
	source engine.Source
	lock   *flock.Flock

	mu         sync.Mutex
	trees      map[string]*tree
	keeps      map[string]*kept
	toolchains map[string]toolchain
	toolMu     sync.Mutex // held while a tool is built
	roots      sandbox.Roots

	relocated struct {
		once sync.Once
		root string
		err  error
	}
}

var _ engine.Engine = (*Engine)(nil)

// Open binds an engine to the source tree in dir. Only one engine at a time works on a tree; a second
// one waits for the first. The caller must Close it.
func Open(ctx context.Context, dir string, o Options) (*Engine, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Environmentf(err, "", "source %s", dir)
	}
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fault.Usagef("Give the directory of a Go module with --source.", "source %s does not exist", dir)
	} else if err != nil {
		return nil, fault.Environmentf(err, "", "source %s", dir)
	}
	dir = real
	if i, err := os.Stat(dir); err != nil || !i.IsDir() {
		return nil, fault.Usagef("Give the directory of a Go module with --source.", "source %s is not a directory", dir)
	}
	cache, err := CacheDir(o.CacheDir)
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256([]byte(dir))
	e := &Engine{
		dir:        dir,
		cache:      cache,
		work:       filepath.Join(cache, "sources", hex.EncodeToString(id[:8])),
		trees:      map[string]*tree{},
		keeps:      map[string]*kept{},
		toolchains: map[string]toolchain{},
	}
	if err := e.open(ctx, o); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (e *Engine) open(ctx context.Context, o Options) error {
	if err := os.MkdirAll(e.work, 0o700); err != nil {
		return cacheError(err)
	}
	e.lock = flock.New(e.work + ".lock")
	if _, err := e.lock.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return fault.Environmentf(err, "Another slipway works on it: wait for that one, or stop it.", "source %s is in use", e.dir)
	}
	if err := e.removeLeftovers(); err != nil {
		return cacheError(err)
	}
	if err := e.makeHome(); err != nil {
		return cacheError(err)
	}
	var err error
	if e.temp, err = ownTemp(e.work); err != nil {
		return err
	}
	e.roots.Dir = e.temp // which the next engine empties, should this one be killed
	pruneSources(filepath.Dir(e.work), 30*24*time.Hour)
	pruneKept(filepath.Join(e.work, "outputs"), 7*24*time.Hour)
	if e.goEnv, err = readGoEnv(ctx, e.temp); err != nil {
		return err
	}
	// Some CI systems keep only what lies in the source from one run to the next, caches too.
	exclude := slices.Clone(o.Exclude)
	for _, d := range []string{e.cache, e.goEnv.GOCACHE, e.goEnv.GOMODCACHE} {
		if real, err := filepath.EvalSymlinks(d); err == nil {
			d = real
		}
		if rel, err := filepath.Rel(e.dir, d); err == nil && filepath.IsLocal(rel) && rel != "." {
			exclude = append(exclude, filepath.ToSlash(rel))
		}
	}
	if e.source, err = source.Read(ctx, e.dir, exclude); err != nil {
		return err
	}
	t := e.tree(pristine)
	if err := t.Sync(); err != nil {
		return cacheError(err)
	}
	e.source.FS = os.DirFS(t.Root)
	return nil
}

// CacheDir is the directory in which slipway keeps what it can make again: override if that is set, else
// what SLIPWAY_CACHE names, else "slipway" in the user's cache directory.
func CacheDir(override string) (string, error) {
	if override == "" {
		override = os.Getenv("SLIPWAY_CACHE")
	}
	if override != "" {
		return filepath.Abs(override)
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return "", fault.Environmentf(err, "Set SLIPWAY_CACHE to a directory that slipway may write.", "no cache directory")
	}
	return filepath.Join(d, "slipway"), nil
}

func cacheError(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	return fault.Environmentf(err, "slipway needs a writable cache directory with free space: check it, or set SLIPWAY_CACHE to another.", "cache directory")
}

// pruneSources removes the copies of sources that no engine has used for longer than age.
func pruneSources(dir string, age time.Duration) {
	locks, _ := filepath.Glob(filepath.Join(dir, "*.lock"))
	for _, name := range locks {
		i, err := os.Stat(name)
		if err != nil || time.Since(i.ModTime()) < age {
			continue
		}
		l := flock.New(name)
		if ok, err := l.TryLock(); err != nil || !ok {
			continue
		}
		_ = os.RemoveAll(name[:len(name)-len(".lock")])
		_ = l.Unlock()
		_ = os.Remove(name)
	}
}

// Name implements engine.Engine.
func (e *Engine) Name() string { return "host" }

// Fingerprint tells on what of this machine the outcome of commands and of smoke runs depends. It is no secret,
// and the same as long as the machine stays as it is.
func (e *Engine) Fingerprint() string { return sandbox.Fingerprint() }

// Source implements engine.Engine.
func (e *Engine) Source() engine.Source { return e.source }

// Start implements engine.Engine. The kinds of isolation are "runc", "crun", "namespaces" and "process".
func (e *Engine) Start(ctx context.Context, c engine.Container) (engine.Process, error) {
	p, err := e.roots.Start(ctx, c)
	return p, smokeError(err)
}

// CheckIsolation implements pipelines.Isolator.
func (e *Engine) CheckIsolation(kind string) error { return smokeError(e.roots.Check(kind)) }

func smokeError(err error) error {
	if _, ok := errors.AsType[*sandbox.UnavailableError](err); !ok {
		return err
	}
	next := "--smoke=process (in slipway.yaml: smoke: {isolation: process}) tries the image without isolation, --smoke=off does not try it; `slipway doctor` says more."
	if runtime.GOOS != "linux" {
		next = "--smoke=off (in slipway.yaml: smoke: {isolation: off}) does not try the image."
	}
	return fault.Environmentf(err, next, "the smoke run")
}

// Close implements engine.Engine.
func (e *Engine) Close() error {
	if e.lock == nil || !e.lock.Locked() {
		return nil // what there is belongs to another engine
	}
	err := errors.Join(e.roots.Close(), source.RemoveAll(e.homeDir()))
	if e.temp != "" {
		err = errors.Join(err, source.RemoveAll(e.temp))
	}
	if e.relocated.root != "" {
		err = errors.Join(err, source.RemoveAll(e.relocated.root))
	}
	now := time.Now()
	_ = os.Chtimes(e.lock.Path(), now, now) // pruneSources goes by it
	return errors.Join(err, e.lock.Unlock())
}

// homeDir is HOME of commands. It has the same name in every run, as the temporary directory has: `go test`
// keeps a result only as long as the variables that a test looked at have not changed.
func (e *Engine) homeDir() string { return filepath.Join(e.work, "home") }

// removeLeftovers removes what a killed run could not.
func (e *Engine) removeLeftovers() error {
	left, err := filepath.Glob(filepath.Join(e.work, "rebuild-*"))
	for _, dir := range append(left, e.homeDir()) {
		err = errors.Join(err, source.RemoveAll(dir))
	}
	return err
}

// makeHome makes the home directory, with Go's telemetry switched off: else the first go command in a new
// home starts a process of its own session that outlives it and writes there.
func (e *Engine) makeHome() error {
	config := filepath.Join(e.homeDir(), ".config")
	if runtime.GOOS == "darwin" || runtime.GOOS == "ios" {
		config = filepath.Join(e.homeDir(), "Library", "Application Support")
	}
	telemetry := filepath.Join(config, "go", "telemetry")
	if err := os.MkdirAll(telemetry, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(telemetry, "mode"), []byte("off\n"), 0o600)
}

// ownTemp makes a directory for temporary files of commands. Its name is short, because tests put Unix
// sockets there, whose paths may have no more than 107 bytes. In a directory that all may write, somebody
// else may have taken the name: then it is not used.
func ownTemp(work string) (string, error) {
	id := sha256.Sum256([]byte(work))
	dir := filepath.Join(os.TempDir(), "slipway-"+hex.EncodeToString(id[:4]))
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		if i, lstatErr := os.Lstat(dir); lstatErr == nil && i.IsDir() && i.Mode().Perm() == 0o700 && owned(i) && source.RemoveAll(dir) == nil {
			err = os.Mkdir(dir, 0o700) // what was there was left by a killed run
		}
		if errors.Is(err, fs.ErrExist) {
			dir, err = os.MkdirTemp("", "slipway-")
		}
	}
	if err != nil {
		return "", fault.Environmentf(err, "Set TMPDIR to a directory that can be written and has space.", "directory for temporary files")
	}
	return dir, nil
}

// goEnv is what the user's own Go says about where modules come from and where caches are.
type goEnv struct {
	GOPROXY, GOSUMDB, GONOSUMDB, GOPRIVATE, GONOPROXY, GOINSECURE, GOVCS, GOAUTH string
	GOMODCACHE, GOCACHE                                                          string
	GOVERSION                                                                    string

	command string // path of the user's go
}

func readGoEnv(ctx context.Context, dir string) (goEnv, error) {
	var g goEnv
	path, err := exec.LookPath("go")
	if err != nil {
		return g, fault.Environmentf(nil, "Install any Go from 1.21 on; slipway fetches the other releases with it.", "no go command on the PATH")
	}
	// All of its variables would have it ask the C compiler too.
	cmd := exec.CommandContext(ctx, path, "env", "-json", "GOPROXY", "GOSUMDB", "GONOSUMDB", "GOPRIVATE", "GONOPROXY", "GOINSECURE", "GOVCS", "GOAUTH",
		"GOMODCACHE", "GOCACHE", "GOVERSION")
	cmd.Dir = dir // no go.mod of anybody applies
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=local", "GOWORK=off", "GOFLAGS=", "GO111MODULE=on", "GOROOT=", "GOEXPERIMENT=", "GOOS=", "GOARCH=")
	out, err := cmd.Output()
	if err != nil {
		return g, fault.Environmentf(withStderr(err), "Check the Go installation: `go env` must work.", "go env")
	}
	if err := json.Unmarshal(out, &g); err != nil {
		return g, fault.Environmentf(err, "Check the Go installation: `go env -json` must work.", "go env")
	}
	g.command = path
	return g, nil
}

// withStderr adds to the error of a command what the command said.
func withStderr(err error) error {
	if x, ok := errors.AsType[*exec.ExitError](err); ok && len(x.Stderr) > 0 {
		return &stderrError{err, tail.Lines(x.Stderr, 5)}
	}
	return err
}

type stderrError struct {
	err  error
	text string
}

func (e *stderrError) Error() string { return e.text + " (" + e.err.Error() + ")" }
func (e *stderrError) Unwrap() error { return e.err }
