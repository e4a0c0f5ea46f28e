package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"go/version"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/mod/module"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// tool returns the program that Command.Tool names. It is built once for each version and each Go that
// builds it, and kept in the cache directory.
func (e *Engine) tool(ctx context.Context, name string) (string, error) {
	pkg, v, _ := strings.Cut(name, "@")
	if err := module.Check(pkg, v); err != nil || module.CanonicalVersion(v) != v {
		return "", fmt.Errorf("tool %q: not a package at an exact version", name)
	}
	command, release := e.newestGo()
	id := sha256.Sum256([]byte(name + "\n" + release))
	dir := filepath.Join(e.cache, "tools", path.Base(pkg)+"-"+hex.EncodeToString(id[:8]))
	program := filepath.Join(dir, path.Base(pkg))
	if runtime.GOOS == "windows" {
		program += ".exe"
	}
	e.toolMu.Lock()
	defer e.toolMu.Unlock()
	if i, err := os.Stat(program); err == nil && i.Mode().IsRegular() {
		return program, nil
	}
	if e.goEnv.GOSUMDB == "off" {
		return "", &engine.ToolError{Tool: name, Err: errors.New("GOSUMDB is off, so that nothing can vouch for its modules")}
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", cacheError(err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(dir), "build-")
	if err != nil {
		return "", cacheError(err)
	}
	defer os.RemoveAll(temp)
	cmd := exec.CommandContext(ctx, command, "install", "-trimpath", name)
	cmd.Dir = e.temp // no go.mod of anybody applies
	// As with toolchains, no private-module pattern skips the checksum database. The tool may ask for a newer
	// Go than there is, which the go command then fetches and verifies.
	cmd.Env = append(e.networkEnv(), "GOPRIVATE=", "GONOSUMDB=", "GONOPROXY="+e.goEnv.GONOPROXY, "GOTOOLCHAIN=auto", "GOFLAGS=", "GOWORK=off", "GOENV=off",
		"GO111MODULE=on", "CGO_ENABLED=0", "GOMODCACHE="+e.goEnv.GOMODCACHE, "GOCACHE="+e.goEnv.GOCACHE, "GOPATH="+filepath.Join(e.homeDir(), "go"),
		"GOBIN="+temp, "TMPDIR="+e.temp, "TMP="+e.temp, "TEMP="+e.temp, "PATH="+os.Getenv("PATH"))
	ownGroup(cmd)
	_, err = cmd.Output()
	killGroup(cmd)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		// The answer goes into records, which name no directory of this machine.
		return "", &engine.ToolError{Tool: name, Err: errors.New(strings.ReplaceAll(withStderr(err).Error(), e.goEnv.GOMODCACHE, "GOMODCACHE"))}
	}
	// Another slipway may have been faster: its program is as good.
	if err := os.Rename(temp, dir); err != nil {
		if i, statErr := os.Stat(program); statErr != nil || !i.Mode().IsRegular() {
			return "", cacheError(err)
		}
	}
	return program, nil
}

// newestGo is the go command of the newest release that is here: the user's own or that of a toolchain that
// is ready.
func (e *Engine) newestGo() (command, release string) {
	command, release = e.goEnv.command, e.goEnv.GOVERSION
	e.mu.Lock()
	defer e.mu.Unlock()
	for r, t := range e.toolchains {
		if version.Compare("go"+r, release) > 0 {
			command, release = filepath.Join(t.root, "bin", "go"), "go"+r
		}
	}
	return command, release
}

// fileURL is the URL of a file or directory: https://www.rfc-editor.org/rfc/rfc8089
func fileURL(name string) string {
	name = filepath.ToSlash(name)
	if !strings.HasPrefix(name, "/") {
		name = "/" + name // a drive of Windows
	}
	return (&url.URL{Scheme: "file", Path: name}).String()
}
