package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// toolchain is an unpacked and verified toolchain module, https://go.dev/doc/toolchain#internals.
type toolchain struct {
	engine.Toolchain
	root string // its GOROOT
}

// Toolchain implements engine.Engine. The toolchain module is fetched by the user's own go command. Its
// checksum is compared with its pin, or else with the checksum database (which the go command does even for
// modules that are in its cache), and once per machine with the unpacked files.
func (e *Engine) Toolchain(ctx context.Context, release string, pins map[string]string) (engine.Toolchain, error) {
	e.mu.Lock()
	t, ok := e.toolchains[release]
	e.mu.Unlock()
	if ok {
		return t.Toolchain, nil
	}
	version := module.Version{Path: "golang.org/toolchain", Version: fmt.Sprintf("v0.0.1-go%s.%s-%s", release, runtime.GOOS, runtime.GOARCH)}
	t = toolchain{
		Toolchain: engine.Toolchain{Release: release, Platform: runtime.GOOS + "/" + runtime.GOARCH, VerifiedBy: "slipway.lock"},
		root:      filepath.Join(e.goEnv.GOMODCACHE, "golang.org", "toolchain@"+version.Version),
	}
	t.Pin = t.Platform
	pin := pins[t.Pin]
	hashFile := filepath.Join(e.goEnv.GOMODCACHE, "cache", "download", "golang.org", "toolchain", "@v", version.Version+".ziphash")
	sum, err := os.ReadFile(hashFile)
	if err == nil {
		_, err = os.Stat(t.root)
	}
	t.Checksum = string(sum)
	if err != nil || pin == "" {
		if pin == "" && e.goEnv.GOSUMDB == "off" {
			return t.Toolchain, fault.Environmentf(nil, "Commit a slipway.lock made where the checksum database can be reached, or unset GOSUMDB.",
				"toolchain go%s cannot be verified: GOSUMDB is off and slipway.lock has no checksum for %s", release, t.Platform)
		}
		if t.Checksum, err = e.fetchToolchain(ctx, version); err != nil {
			return t.Toolchain, err
		}
		t.VerifiedBy = "checksum database"
	}
	if pin != "" {
		if t.Checksum != pin {
			return t.Toolchain, fault.Environmentf(nil, "Somebody changed one of the two. Find out who before you remove either.",
				"toolchain go%s for %s has checksum %s, but slipway.lock says %s", release, t.Platform, t.Checksum, pin)
		}
		t.VerifiedBy = "slipway.lock"
	}
	if err := e.verifyUnpacked(version, t); err != nil {
		return t.Toolchain, err
	}
	if err := prepare(t.root); err != nil {
		return t.Toolchain, fault.Environmentf(err, "The module cache must be writable once for each toolchain.", "toolchain go%s", release)
	}
	e.mu.Lock()
	e.toolchains[release] = t
	e.mu.Unlock()
	return t.Toolchain, nil
}

func (e *Engine) fetchToolchain(ctx context.Context, m module.Version) (string, error) {
	cmd := exec.CommandContext(ctx, e.goEnv.command, "mod", "download", "-json", m.String())
	cmd.Dir = e.temp
	// As the go command itself does for toolchains, let no private-module pattern skip the database.
	cmd.Env = append(e.networkEnv(), "GOPRIVATE=", "GONOSUMDB=", "GONOPROXY="+e.goEnv.GONOPROXY, "GOTOOLCHAIN=local", "GOFLAGS=", "GOWORK=off", "GOENV=off",
		"GOMODCACHE="+e.goEnv.GOMODCACHE, "PATH="+os.Getenv("PATH"))
	out, err := cmd.Output()
	var r struct{ Sum, Error string }
	if jsonErr := json.Unmarshal(out, &r); jsonErr == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		err = withStderr(err)
		release := strings.TrimPrefix(m.Version, "v0.0.1-")
		if strings.Contains(err.Error(), "404") || strings.Contains(err.Error(), "410") || strings.Contains(err.Error(), "unknown revision") {
			return "", fault.Usagef("`go list -m -versions go` lists the releases that exist.", "there is no toolchain %s", release)
		}
		return "", fault.Environmentf(err, "Check GOPROXY and GOSUMDB, and that the Go module proxy can be reached; a toolchain that is in the module cache and in slipway.lock needs no network.", "toolchain %s cannot be fetched", release)
	}
	if r.Sum == "" {
		return "", fault.Environmentf(nil, "Update the installed Go to 1.21 or newer.", "go mod download gave no checksum for %s", m)
	}
	return r.Sum, nil
}

// verifyUnpacked compares the unpacked files with the verified checksum. Reading a whole toolchain takes
// a second, so what was found is remembered for as long as its directory is not replaced.
func (e *Engine) verifyUnpacked(m module.Version, t toolchain) error {
	i, err := os.Stat(t.root)
	if err != nil {
		return fault.Environmentf(err, "", "toolchain go%s", t.Release)
	}
	stamp := filepath.Join(e.cache, "toolchains", m.Version)
	seen := fmt.Sprintf("%s %s %d\n", t.Checksum, t.root, i.ModTime().UnixNano())
	if b, err := os.ReadFile(stamp); err == nil && string(b) == seen {
		return nil
	}
	sum, err := hashToolchain(t.root, m.String())
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	if err != nil {
		return fault.Environmentf(err, "", "toolchain go%s", t.Release)
	}
	if sum != t.Checksum {
		return fault.Environmentf(nil, nextChanged, "toolchain go%s in the module cache has checksum %s, not %s", t.Release, sum, t.Checksum)
	}
	if err := os.MkdirAll(filepath.Dir(stamp), 0o755); err != nil {
		return cacheError(err)
	}
	if err := os.WriteFile(stamp, []byte(seen), 0o600); err != nil {
		return cacheError(err)
	}
	return nil
}

const nextChanged = "Its files were changed after they were unpacked. `go clean -modcache` removes them; find out who changed them."

// hashToolchain is the h1: checksum of an unpacked toolchain module. A module cannot hold the go.mod files
// of others, so toolchains have them as _go.mod, and whoever unpacks one copies them.
func hashToolchain(root, prefix string) (string, error) {
	names, err := dirhash.DirFiles(root, prefix)
	if err != nil {
		return "", err
	}
	file := func(name string) string {
		return filepath.Join(root, filepath.FromSlash(strings.TrimPrefix(name, prefix)))
	}
	for _, name := range names {
		if path.Base(name) != "_go.mod" {
			continue
		}
		copied := path.Join(path.Dir(name), "go.mod")
		if i := slices.Index(names, copied); i >= 0 {
			a, errA := os.ReadFile(file(name))
			b, errB := os.ReadFile(file(copied))
			if err := errors.Join(errA, errB); err != nil {
				return "", err
			}
			if !bytes.Equal(a, b) {
				return "", fault.Environmentf(nil, nextChanged, "toolchain: %s is not what the module has as _go.mod", file(copied))
			}
		}
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		return path.Base(name) == "go.mod" && slices.Contains(names, path.Join(path.Dir(name), "_go.mod"))
	})
	return dirhash.Hash1(names, func(name string) (io.ReadCloser, error) { return os.Open(file(name)) })
}

// prepare makes an unpacked toolchain module run: it sets the execute bits and copies the go.mod files,
// neither of which a module can hold. The go command does the same when GOTOOLCHAIN makes it switch
// (cmd/go/internal/toolchain), in the same order, so that both may do it at the same time.
func prepare(root string) error {
	if runtime.GOOS != "windows" {
		if err := allowExec(root); err != nil {
			return err
		}
	}
	first, last := filepath.Join(root, "src", "go.mod"), filepath.Join(root, "src", "_go.mod")
	if a, err := os.Stat(first); err == nil {
		if b, err := os.Stat(last); err != nil || a.Size() == b.Size() {
			return err
		}
	}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != "_go.mod" || file == last {
			return err
		}
		return copyModFile(file)
	})
	if err != nil {
		return err
	}
	return copyModFile(last)
}

// copyModFile copies _go.mod to go.mod beside it, in one step. The module cache is read-only.
func copyModFile(from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	dir := filepath.Dir(from)
	i, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, i.Mode().Perm()|0o200); err != nil {
		return err
	}
	defer func() { _ = os.Chmod(dir, i.Mode().Perm()) }()
	temp, err := os.CreateTemp(dir, ".go.mod.*")
	if err != nil {
		return err
	}
	_, err = temp.Write(b)
	err = errors.Join(err, temp.Chmod(0o444), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), filepath.Join(dir, "go.mod"))
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

func allowExec(root string) error {
	if i, err := os.Stat(filepath.Join(root, "bin", "go")); err != nil || i.Mode()&0o111 != 0 {
		return err
	}
	for _, dir := range []string{"pkg/tool", "bin"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || d.Name() == "go" {
				return err
			}
			return addExec(file)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return addExec(filepath.Join(root, "bin", "go"))
}

func addExec(file string) error {
	i, err := os.Stat(file)
	if err != nil {
		return err
	}
	return os.Chmod(file, i.Mode()&0o777|0o111)
}
