package host_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
)

// askTool is a program that asks the go command of its environment, and reads a directory.
func askTool(input string) engine.Command {
	return engine.Command{
		Name: "tool", Toolchain: "1.22.12", Tool: "golang.org/x/vuln/cmd/govulncheck@v1.8.0", Args: []string{"govulncheck", "-version", "-db=" + engine.InputURL}, Input: input,
	}
}

func withToolchain(t *testing.T, cache string) *host.Engine {
	t.Helper()
	e := openWith(t, program(t, "package main\n\nfunc main() {}\n"), host.Options{CacheDir: cache})
	_, err := e.Toolchain(t.Context(), "1.22.12", nil)
	require.NoError(t, err)
	return e
}

func TestTool(t *testing.T) {
	cache := t.TempDir()
	e := withToolchain(t, cache)
	// Characters that mean something in URLs.
	input := filepath.Join(t.TempDir(), "a data base%20#1")
	write(t, filepath.Join(input, "index", "modules.json"), "[]")
	write(t, filepath.Join(input, "index", "db.json"), `{"modified":"2026-11-01T00:00:00Z"}`)
	ask := func(e *host.Engine) {
		r, err := e.Run(t.Context(), askTool(input))
		if assert.NoError(t, err) {
			assert.Equal(t, 0, r.ExitCode, "%s", r.Stderr)
			// It runs the toolchain's go command, whichever Go has built it.
			assert.Contains(t, string(r.Stdout), "Go: go1.22.12\n")
			assert.Contains(t, string(r.Stdout), "Scanner: govulncheck@v1.8.0\n")
			assert.Contains(t, string(r.Stdout), "2026-11-01")
		}
	}
	// Those that ask at the same time build it once, here and in another process.
	other := withToolchain(t, cache)
	var wait sync.WaitGroup
	for _, e := range []*host.Engine{e, e, other} {
		wait.Go(func() { ask(e) })
	}
	wait.Wait()
	built, err := filepath.Glob(filepath.Join(cache, "tools", "*", "*"))
	require.NoError(t, err)
	require.Len(t, built, 1, "and leave nothing else")
	was, err := os.Stat(built[0])
	require.NoError(t, err)
	// What is there needs no network.
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOSUMDB", "off")
	ask(e)
	ask(withPinned(t, cache))
	is, err := os.Stat(built[0])
	require.NoError(t, err)
	assert.Equal(t, was.ModTime(), is.ModTime())

	// What the tool says names no directory of this machine.
	r, err := e.Run(t.Context(), askTool(filepath.Join(t.TempDir(), "missing")))
	require.NoError(t, err)
	assert.Equal(t, 1, r.ExitCode)
	assert.Contains(t, string(r.Stderr), "stat missing: no such file or directory")
}

// withPinned needs no checksum database.
func withPinned(t *testing.T, cache string) *host.Engine {
	t.Helper()
	e := openWith(t, program(t, "package main\n\nfunc main() {}\n"), host.Options{CacheDir: cache})

	sum, err := os.ReadFile(filepath.Join(usersModCache, "cache", "download", "golang.org", "toolchain", "@v", "v0.0.1-go1.22.12."+strings.ReplaceAll(platform, "/", "-")+".ziphash"))
	require.NoError(t, err)

	_, err = e.Toolchain(t.Context(), "1.22.12", map[string]string{platform: string(sum)})
	require.NoError(t, err)
	return e
}

func TestToolCannotBeHad(t *testing.T) {
	for name, env := range map[string][2]string{
		"no proxy": {"GOPROXY", "off"},
		"no checksum database, although a pattern lets modules skip it": {"GOSUMDB", "off"},
	} {
		t.Run(name, func(t *testing.T) {
			cache := t.TempDir()
			t.Setenv("GONOSUMDB", "*")
			t.Setenv(env[0], env[1])
			e := withPinned(t, cache)
			c := askTool(t.TempDir())
			c.Tool = "golang.org/x/vuln/cmd/govulncheck@v1.8.1-never.released"
			_, err := e.Run(t.Context(), c)
			var missing *engine.ToolError
			require.ErrorAs(t, err, &missing)
			assert.ErrorContains(t, err, "v1.8.1-never.released cannot be built: ")
			left, err := filepath.Glob(filepath.Join(cache, "tools", "*"))
			require.NoError(t, err)
			assert.Empty(t, left)
		})
	}
	e := withToolchain(t, t.TempDir())
	// The latest version is no exact one; neither is a prefix.
	for _, tool := range []string{"golang.org/x/vuln/cmd/govulncheck", "golang.org/x/vuln/cmd/govulncheck@latest", "golang.org/x/vuln/cmd/govulncheck@v1", "-o=x@v1.0.0", "../x@v1.0.0"} {
		c := askTool(t.TempDir())
		c.Tool = tool
		_, err := e.Run(t.Context(), c)
		assert.ErrorContains(t, err, "not a package at an exact version", tool)
	}
}
