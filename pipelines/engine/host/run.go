package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/internal/source"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

// grace is how long a cancelled command has between being asked to end and being made to.
const grace = 2 * time.Second

// Run implements engine.Engine.
func (e *Engine) Run(ctx context.Context, c engine.Command) (*engine.Result, error) {
	if c.OutputDir != "" {
		dir, err := filepath.Abs(c.OutputDir) // the command runs in another directory
		if err != nil {
			return nil, fault.Environmentf(err, "", "outputs of %s", c.Name)
		}
		c.OutputDir = dir
	}
	root, done, err := e.root(c)
	if err != nil {
		return nil, err
	}
	defer done()

	out := c.OutputDir
	if c.Keep {
		k, err := e.keep(c)
		if err != nil {
			return nil, err
		}
		defer k.mu.Unlock()
		out = k.dir
	}
	input, err := filepath.Abs(c.Input)
	if err != nil {
		return nil, fault.Environmentf(err, "", "input of %s", c.Name)
	}
	replace := strings.NewReplacer(engine.OutDir, out, engine.SourceDir, root, engine.InputDir, input, engine.InputURL, fileURL(input))
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		args[i] = replace.Replace(a)
	}
	program := e.goEnv.command
	env := e.baseEnv(c)
	if c.Toolchain != "" {
		e.mu.Lock()
		t, ok := e.toolchains[c.Toolchain]
		e.mu.Unlock()
		if !ok {
			return nil, fmt.Errorf("toolchain go%s was not made ready", c.Toolchain)
		}
		if c.Tool == "" {
			program = filepath.Join(t.root, "bin", args[0])
		} else if program, err = e.tool(ctx, c.Tool); err != nil {
			return nil, err
		}
		env = append(env, "PATH="+filepath.Join(t.root, "bin")+string(os.PathListSeparator)+searchPath())
	} else {
		if args[0] != "go" {
			return nil, fmt.Errorf("%s needs a toolchain", args[0])
		}
		env = append(env, "PATH="+searchPath())
	}
	for _, v := range c.Env {
		env = append(env, replace.Replace(v))
	}

	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args[1:]...)
	cmd.Dir = filepath.Join(root, filepath.FromSlash(c.Dir))
	if c.Dir == engine.OutDir {
		cmd.Dir = out
	}
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if c.Stdout != nil {
		cmd.Stdout = c.Stdout
	}
	cmd.WaitDelay = grace
	ownGroup(cmd)
	start := time.Now()
	err = cmd.Run()
	killGroup(cmd) // what a cancelled command or a test left running
	r := &engine.Result{
		Stdout:   stdout.Bytes(),
		Stderr:   bytes.ReplaceAll(stderr.Bytes(), []byte(root), []byte(".")), // where the copy lies is nobody's business
		Dir:      root,
		Duration: time.Since(start),
	}
	if c.Input != "" {
		r.Stderr = bytes.ReplaceAll(r.Stderr, []byte(fileURL(input)), []byte(filepath.Base(input)))
		r.Stderr = bytes.ReplaceAll(r.Stderr, []byte(input), []byte(filepath.Base(input)))
	}
	if ctx.Err() != nil {
		return r, fmt.Errorf("%s: %w", c.Name, ctx.Err())
	}
	for _, o := range c.Outputs {
		dir := out
		name, ok := strings.CutPrefix(o, engine.SourceDir+"/")
		if ok {
			dir = root
		} else if !c.Keep {
			continue // OutDir is OutputDir
		}
		if err := copyOut(filepath.Join(c.OutputDir, filepath.FromSlash(name)), filepath.Join(dir, filepath.FromSlash(name))); err != nil {
			return r, fault.Environmentf(err, "Check that the output directory can be written and that its disk has space.", "outputs of %s", c.Name)
		}
	}
	if c.Keep {
		if err := seal(out); err != nil {
			return r, cacheError(err)
		}
	}
	if x, ok := errors.AsType[*exec.ExitError](err); ok {
		r.ExitCode = exitCode(x)
		// Standard error is the go command's own: what tests print comes on standard output.
		if bytes.Contains(r.Stderr, []byte(syscall.ENOSPC.Error())) {
			return r, fault.Environmentf(errors.New(tail.Lines(r.Stderr, 3)), "Free some space there. `go clean -cache` empties the build cache, SLIPWAY_CACHE moves slipway's.", "%s", c.Name)
		}
		return r, nil
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return r, nil // the command succeeded and a process that it left behind held its output open
	}
	if err != nil {
		return r, fault.Environmentf(err, "", "cannot run %s", c.Name)
	}
	return r, nil
}

// pristine is the name of the tree that commands see which do not write to it.
const pristine = "source"

// tree is a copy of the source with its lock, which is held while a command that may write runs in it.
type tree struct {
	source.Tree
	mu sync.Mutex
}

func (e *Engine) tree(name string) *tree {
	e.mu.Lock()
	defer e.mu.Unlock()
	t, ok := e.trees[name]
	if !ok {
		t = &tree{Tree: source.Tree{From: e.dir, Root: filepath.Join(e.work, "trees", name), Files: e.source.Files}}
		e.trees[name] = t
	}
	return t
}

// root returns the root of the tree that a command runs in, and what to call after it.
func (e *Engine) root(c engine.Command) (string, func(), error) {
	if c.Relocate {
		e.relocated.once.Do(func() { e.relocated.err = e.relocate() })
		return filepath.Join(e.relocated.root, "src"), func() {}, e.relocated.err
	}
	name := pristine
	if c.Writes {
		name = "go" + c.Toolchain
	}
	t := e.tree(name)
	if !c.Writes {
		return t.Root, func() {}, nil
	}
	t.mu.Lock()
	if err := t.Sync(); err != nil {
		t.mu.Unlock()
		return "", nil, cacheError(err)
	}
	return t.Root, t.mu.Unlock, nil
}

// relocate makes the second copy of the source, at a place that differs in every run, with an empty build
// cache beside it.
func (e *Engine) relocate() error {
	root, err := os.MkdirTemp(e.work, "rebuild-")
	if err != nil {
		return cacheError(err)
	}
	e.relocated.root = root
	if err := os.Mkdir(filepath.Join(root, "cache"), 0o755); err != nil {
		return cacheError(err)
	}
	if err := (&source.Tree{From: e.dir, Root: filepath.Join(root, "src"), Files: e.source.Files}).Sync(); err != nil {
		return cacheError(err)
	}
	return nil
}

// baseEnv is the environment that every command gets. Nothing of the caller's environment is in it but
// the places of the caches: GOFLAGS, GOENV, GOWORK and CGO_* of a laptop must not change a result.
func (e *Engine) baseEnv(c engine.Command) []string {
	env := []string{
		"GOCACHE=" + e.goEnv.GOCACHE,
		"GOMODCACHE=" + e.goEnv.GOMODCACHE,
		"GOPATH=" + filepath.Join(e.homeDir(), "go"),
		"GOENV=off", "GOFLAGS=", "GOTOOLCHAIN=local", "GOWORK=off", "GO111MODULE=on",
		"LANG=C.UTF-8", "TZ=UTC",
		"TMPDIR=" + e.temp, "TMP=" + e.temp, "TEMP=" + e.temp,
	}
	if c.Relocate {
		env = append(env, "GOCACHE="+filepath.Join(e.relocated.root, "cache"))
	}
	if c.CGO {
		env = append(env, "CGO_ENABLED=1")
	} else {
		env = append(env, "CGO_ENABLED=0")
	}
	if c.Network {
		return append(env, e.networkEnv()...)
	}
	// What must be fetched was fetched before, with the user's credentials, which no test gets to see.
	return append(append(env, systemEnv()...), "GOPROXY=off", "GOSUMDB=off", "HOME="+e.homeDir(), "USERPROFILE="+e.homeDir())
}

// networkEnv is what the go command needs for fetching modules as its user would.
func (e *Engine) networkEnv() []string {
	g := e.goEnv
	env := append(systemEnv(), "GOPROXY="+g.GOPROXY, "GOSUMDB="+g.GOSUMDB, "GONOSUMDB="+g.GONOSUMDB, "GOPRIVATE="+g.GOPRIVATE,
		"GONOPROXY="+g.GONOPROXY, "GOINSECURE="+g.GOINSECURE, "GOVCS="+g.GOVCS)
	if g.GOAUTH != "" {
		env = append(env, "GOAUTH="+g.GOAUTH)
	}
	return append(env, passed("HOME", "USERPROFILE", "NETRC", "XDG_CONFIG_HOME", "SSH_AUTH_SOCK", "GIT_SSH_COMMAND", "GIT_CONFIG_GLOBAL", "GIT_ASKPASS",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")...)
}

// systemEnv is what Windows programs cannot start without.
func systemEnv() []string {
	if runtime.GOOS != "windows" {
		return nil
	}
	return passed("SYSTEMROOT", "SYSTEMDRIVE", "WINDIR", "COMSPEC", "PATHEXT", "LOCALAPPDATA", "APPDATA", "PROGRAMDATA", "NUMBER_OF_PROCESSORS", "PROCESSOR_ARCHITECTURE")
}

func passed(names ...string) []string {
	var env []string
	for _, name := range names {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// searchPath is where commands find git, the C compiler and what tests call.
func searchPath() string {
	if runtime.GOOS == "windows" {
		return os.Getenv("PATH")
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}
