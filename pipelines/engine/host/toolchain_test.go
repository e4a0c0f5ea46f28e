package host_test

import (
	"context"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// release is the one that these tests use.
const release = "1.22.12"

var platform = runtime.GOOS + "/" + runtime.GOARCH

// unpackedDir is the name that the go command gives to the module's directory.
func unpackedDir(modCache string) string {
	return filepath.Join(modCache, filepath.FromSlash("golang.org/toolchain@v0.0.1-go"+release+"."+runtime.GOOS+"-"+runtime.GOARCH))
}

func TestToolchain(t *testing.T) {
	dir := program(t, `package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

func main() {
	out, err := exec.Command("go", "env", "GOROOT", "GOVERSION").Output()
	fmt.Println(runtime.Version(), string(out), err, os.Getenv("GOROOT"))
}
`)
	e := open(t, dir)
	tc := needToolchain(t, e, release)
	assert.Equal(t, release, tc.Release)
	assert.Equal(t, platform, tc.Platform)
	assert.Regexp(t, `^h1:[A-Za-z0-9+/]{43}=$`, tc.Checksum)
	assert.Equal(t, "checksum database", tc.VerifiedBy)
	again, err := e.Toolchain(t.Context(), release, nil)
	require.NoError(t, err)
	assert.Equal(t, tc, again)

	root := unpackedDir(goEnv(t, "GOMODCACHE"))
	version := run(t, e, engine.Command{Toolchain: release, Args: []string{"go", "version"}})
	assert.Equal(t, "go version go"+release+" "+platform+"\n", string(version.Stdout))
	// What tests start is the same Go.
	out := string(run(t, e, engine.Command{Toolchain: release, Args: []string{"go", "run", "."}, Writes: true}).Stdout)
	assert.Contains(t, out, "go"+release+" "+root+"\ngo"+release+"\n <nil>")
	run(t, e, engine.Command{Toolchain: release, Args: []string{"gofmt", "-l", "."}})
	require.NoError(t, e.Close())

	t.Run("pinned", func(t *testing.T) {
		e := open(t, dir)
		pinned, err := e.Toolchain(t.Context(), release, map[string]string{platform: tc.Checksum, "plan9/386": "h1:other"})
		require.NoError(t, err)
		assert.Equal(t, "slipway.lock", pinned.VerifiedBy)
		assert.Equal(t, tc.Checksum, pinned.Checksum)
	})
	t.Run("wrong pin", func(t *testing.T) {
		e := open(t, dir)
		wrong := "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		_, err := e.Toolchain(t.Context(), release, map[string]string{platform: wrong})
		requireFault(t, err, fault.Environment, "go"+release, platform, wrong, tc.Checksum, "slipway.lock")
		_, err = e.Run(t.Context(), engine.Command{Toolchain: release, Args: []string{"go", "version"}})
		assert.ErrorContains(t, err, "not made ready")
	})
	t.Run("pin for another platform", func(t *testing.T) {
		e := open(t, dir)
		other, err := e.Toolchain(t.Context(), release, map[string]string{"plan9/386": "h1:other"})
		require.NoError(t, err)
		assert.Equal(t, tc, other)
	})
	t.Run("no checksum database", func(t *testing.T) {
		t.Setenv("GOSUMDB", "off")
		e := open(t, dir)
		_, err := e.Toolchain(t.Context(), release, nil)
		requireFault(t, err, fault.Environment, "go"+release+" cannot be verified", "GOSUMDB is off", "Commit a slipway.lock")
		pinned, err := e.Toolchain(t.Context(), release, map[string]string{platform: tc.Checksum})
		require.NoError(t, err, "the pin is enough")
		assert.Equal(t, "slipway.lock", pinned.VerifiedBy)
	})
	t.Run("no network", func(t *testing.T) {
		t.Setenv("GOPROXY", "off")
		t.Setenv("GOSUMDB", goSumDB(t)+" http://127.0.0.1:1")
		e := open(t, dir)
		_, err := e.Toolchain(t.Context(), release, map[string]string{platform: tc.Checksum})
		require.NoError(t, err, "in the module cache and pinned")
		t.Setenv("GOMODCACHE", t.TempDir())
		require.NoError(t, e.Close())
		e = open(t, dir)
		_, err = e.Toolchain(t.Context(), release, map[string]string{platform: tc.Checksum})
		requireFault(t, err, fault.Environment, "toolchain go"+release, "cannot be fetched", "GOPROXY", "module lookup disabled")
	})
	t.Run("cancelled", func(t *testing.T) {
		e := open(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := e.Toolchain(ctx, release, nil)
		assert.Equal(t, fault.Interrupted, fault.Of(err), "%v", err)
	})
}

func TestToolchainThatDoesNotExist(t *testing.T) {
	proxy := httptest.NewServer(http.NotFoundHandler())
	defer proxy.Close()
	t.Setenv("GOPROXY", proxy.URL)
	e := open(t, t.TempDir())
	_, err := e.Toolchain(t.Context(), "1.22.99", nil)
	requireFault(t, err, fault.Usage, "there is no toolchain go1.22.99", "go list -m -versions go")
}

// freshModCache is a module cache with the toolchain as `go mod download` leaves it: files cannot be
// executed, and go.mod files are missing. Files that are not changed are links to those of the user.
func freshModCache(t *testing.T) string {
	t.Helper()
	users := usersModCache
	dir := t.TempDir()
	from, to := unpackedDir(users), unpackedDir(dir)
	require.NoError(t, filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, file)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		top, _, _ := strings.Cut(filepath.ToSlash(rel), "/")
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o755)
		case d.Name() == "go.mod":
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), "_go.mod")); err == nil {
				return nil
			}
		case top == "bin" || top == "pkg" || os.Link(file, target) != nil:
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return os.WriteFile(target, b, 0o444)
		}
		return nil
	}))
	name := "cache/download/golang.org/toolchain/@v/v0.0.1-go" + release + "." + runtime.GOOS + "-" + runtime.GOARCH + ".ziphash"
	sum, err := os.ReadFile(filepath.Join(users, filepath.FromSlash(name)))
	require.NoError(t, err)
	write(t, filepath.Join(dir, filepath.FromSlash(name)), string(sum))
	t.Setenv("GOMODCACHE", dir)
	return to
}

func pins(t *testing.T) map[string]string {
	t.Helper()
	e := open(t, t.TempDir())
	defer func() { require.NoError(t, e.Close()) }()
	return map[string]string{platform: needToolchain(t, e, release).Checksum}
}

// The installed Go is of the same release, and is not the one that was verified.
func TestToolchainOfTheInstalledRelease(t *testing.T) {
	want := pins(t)
	installed := filepath.Join(t.TempDir(), "go")
	require.NoError(t, os.Rename(freshModCache(t), installed))
	exe := ""
	if runtime.GOOS == "windows" {
		exe = ".exe"
	}
	for _, name := range []string{"bin/go" + exe, "bin/gofmt" + exe} {
		require.NoError(t, os.Chmod(filepath.Join(installed, name), 0o755))
	}
	write(t, filepath.Join(installed, "src", "fmt", "evil.go"), "package fmt\n")
	t.Setenv("PATH", filepath.Join(installed, "bin")+string(os.PathListSeparator)+os.Getenv("PATH"))
	require.Equal(t, "go"+release, goEnv(t, "GOVERSION"))
	require.Equal(t, installed, goEnv(t, "GOROOT"))

	root := freshModCache(t)
	// The module cache is read-only.
	src := filepath.Join(root, "src")
	require.NoError(t, os.Chmod(src, 0o555))
	t.Cleanup(func() { _ = os.Chmod(src, 0o755) })
	dir := program(t, "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println() }\n")
	o := host.Options{CacheDir: t.TempDir()}
	e := openWith(t, dir, o)
	tc, err := e.Toolchain(t.Context(), release, want)
	require.NoError(t, err)
	assert.Equal(t, want[platform], tc.Checksum)
	for _, c := range []engine.Command{{}, {Writes: true}, {Relocate: true}} {
		c.Toolchain, c.Args = release, []string{"go", "env", "GOROOT", "GOVERSION", "GOTOOLDIR"}
		assert.Equal(t, root+"\ngo"+release+"\n"+filepath.Join(root, "pkg", "tool", runtime.GOOS+"_"+runtime.GOARCH)+"\n", string(run(t, e, c).Stdout))
	}
	assert.FileExists(t, filepath.Join(src, "go.mod"))
	assert.FileExists(t, filepath.Join(src, "cmd", "go.mod"))
	i, err := os.Stat(src)
	require.NoError(t, err)
	assert.True(t, runtime.GOOS == "windows" || i.Mode().Perm() == 0o555)
	list := run(t, e, engine.Command{Toolchain: release, Args: []string{"go", "list", "-f", "{{.GoFiles}}", "fmt"}})
	assert.NotContains(t, string(list.Stdout), "evil")
	require.NoError(t, e.Close())

	t.Run("its files are not hashed again", func(t *testing.T) {
		e := openWith(t, dir, o)
		again, err := e.Toolchain(t.Context(), release, want)
		require.NoError(t, err)
		assert.Equal(t, tc, again)
	})
}

func TestToolchainChangedAfterUnpacking(t *testing.T) {
	want := pins(t)
	root := freshModCache(t)
	file := filepath.Join(root, "src", "fmt", "print.go")
	original, err := os.ReadFile(file)
	require.NoError(t, err)
	replace := func(name, text string) { // never through the link
		require.NoError(t, os.Remove(name))
		write(t, name, text)
	}
	for _, c := range []struct {
		name       string
		do, undo   func()
		complaints []string
	}{
		{"changed", func() { replace(file, string(original)+"// evil\n") }, func() { replace(file, string(original)) }, []string{"has checksum h1:", want[platform]}},
		{"added", func() { write(t, file+".go", "package fmt\n") }, func() { require.NoError(t, os.Remove(file+".go")) }, []string{"has checksum h1:", want[platform]}},
		{"go.mod", func() { write(t, filepath.Join(root, "src", "go.mod"), "module evil\n") }, func() { require.NoError(t, os.Remove(filepath.Join(root, "src", "go.mod"))) }, []string{filepath.Join(root, "src", "go.mod"), "_go.mod"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.do()
			defer c.undo()
			e := openWith(t, t.TempDir(), host.Options{CacheDir: t.TempDir()})
			_, err := e.Toolchain(t.Context(), release, want)
			requireFault(t, err, fault.Environment, append(c.complaints, "toolchain", "changed after they were unpacked", "go clean -modcache")...)
		})
	}
	e := openWith(t, t.TempDir(), host.Options{CacheDir: t.TempDir()})
	_, err = e.Toolchain(t.Context(), release, want)
	assert.NoError(t, err, "it was nothing else")
}

// The recorded checksum of the module in the cache is that of another zip file.
func TestToolchainChecksumChanged(t *testing.T) {
	want := pins(t)
	root := freshModCache(t)
	hash := filepath.Join(os.Getenv("GOMODCACHE"), "cache", "download", "golang.org", "toolchain", "@v", "v0.0.1-go"+release+"."+runtime.GOOS+"-"+runtime.GOARCH+".ziphash")
	wrong := "h1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	write(t, hash, wrong)
	e := openWith(t, t.TempDir(), host.Options{CacheDir: t.TempDir()})
	_, err := e.Toolchain(t.Context(), release, want)
	requireFault(t, err, fault.Environment, wrong, want[platform])
	_, err = e.Toolchain(t.Context(), release, map[string]string{platform: wrong})
	requireFault(t, err, fault.Environment, wrong, want[platform], "changed after they were unpacked")
	assert.DirExists(t, root)
}

// The user's module cache is a module proxy, too.
func TestToolchainIsFetched(t *testing.T) {
	want := pins(t)
	download := filepath.Join(usersModCache, "cache", "download")
	if _, err := os.Stat(filepath.Join(download, "golang.org", "toolchain", "@v", "v0.0.1-go"+release+"."+runtime.GOOS+"-"+runtime.GOARCH+".zip")); err != nil {
		t.Skipf("no zip file in the module cache: %v", err)
	}
	modCache := t.TempDir()
	t.Cleanup(func() {
		_ = filepath.WalkDir(modCache, func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = os.Chmod(name, 0o755)
			}
			return err
		})
	})
	t.Setenv("GOMODCACHE", modCache)
	t.Setenv("GOPROXY", "file://"+filepath.ToSlash(download))
	t.Setenv("GOSUMDB", goSumDB(t)+" http://127.0.0.1:1")
	// No pattern for private modules may skip the checksum database.
	t.Setenv("GOPRIVATE", "*")
	t.Setenv("GONOSUMDB", "*")
	t.Setenv("GONOPROXY", "none")
	e := open(t, t.TempDir())
	_, err := e.Toolchain(t.Context(), release, nil)
	requireFault(t, err, fault.Environment, "go"+release, "cannot be fetched", "127.0.0.1:1", "GOSUMDB")
	require.NoError(t, e.Close())

	t.Setenv("GOSUMDB", "off")
	e = openWith(t, program(t, "package main\n\nfunc main() {}\n"), host.Options{CacheDir: t.TempDir()})
	tc, err := e.Toolchain(t.Context(), release, want)
	require.NoError(t, err)
	assert.Equal(t, engine.Toolchain{Release: release, Platform: platform, Pin: platform, Checksum: want[platform], VerifiedBy: "slipway.lock"}, tc)
	assert.Equal(t, unpackedDir(modCache)+"\n", string(run(t, e, engine.Command{Toolchain: release, Args: []string{"go", "env", "GOROOT"}}).Stdout))
}
