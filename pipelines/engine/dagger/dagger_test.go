package dagger_test

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	sdk "dagger.io/dagger"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/dagger"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

const release = "1.22.12"

// program writes a source tree.
func program(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
	}
	return dir
}

func failingProgram(t *testing.T) string {
	return program(t, map[string]string{
		"go.mod":       "module example.com/program\n\ngo 1.20\n",
		"main.go":      "package main\n\nimport (\n\t\"os\"\n\t\"syscall\"\n)\n\n// It ends the go command that has started it.\nfunc main() { _ = syscall.Kill(os.Getppid(), syscall.SIGKILL) }\n",
		"main_test.go": "package main\n\nimport \"testing\"\n\nfunc TestFails(t *testing.T) { t.Error(\"on purpose\") }\n",
	})
}

func open(t *testing.T, dir string, o dagger.Options) (*dagger.Engine, *recorded) {
	client, r := connect(t)
	e, err := dagger.Open(t.Context(), client, dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, e.Close()) })
	_, err = e.Toolchain(t.Context(), release, nil)
	require.NoError(t, err)
	return e, r
}

func requireFault(t *testing.T, err error, kind fault.Kind, texts ...string) {
	t.Helper()
	require.Error(t, err)
	assert.Equal(t, kind, fault.Of(err), "%v", err)
	for _, text := range texts {
		assert.ErrorContains(t, err, text)
	}
}

func TestCommandSucceeds(t *testing.T) {
	e, _ := open(t, failingProgram(t), dagger.Options{})
	r, err := e.Run(t.Context(), engine.Command{Name: "go list", Toolchain: release, Dir: ".", Args: []string{"go", "list", "-f", "{{.ImportPath}} {{context.GOOS}}"}, Env: []string{"GOOS=windows"}})
	require.NoError(t, err)
	assert.Equal(t, 0, r.ExitCode, "%s", r.Stderr)
	assert.Equal(t, "example.com/program windows\n", string(r.Stdout))
}

// A command that fails is a result, with what it has written until then.
func TestCommandFails(t *testing.T) {
	e, rec := open(t, failingProgram(t), dagger.Options{})
	out := t.TempDir()
	rec.hide(out, "OUT")
	var stdout bytes.Buffer
	r, err := e.Run(t.Context(), engine.Command{
		Name: "go test", Toolchain: release, Args: []string{"go", "test", "-coverprofile=" + engine.OutDir + "/coverage[1].out", "./..."}, Writes: true,
		Outputs: []string{"coverage[1].out", "never-written"}, OutputDir: out, Stdout: &stdout,
	})
	require.NoError(t, err)
	assert.Equal(t, 1, r.ExitCode)
	assert.Empty(t, r.Stdout)
	assert.Contains(t, stdout.String(), "main_test.go:5: on purpose")
	profile, err := os.ReadFile(filepath.Join(out, "coverage[1].out"))
	require.NoError(t, err)
	assert.Contains(t, string(profile), "mode: set\nexample.com/program/main.go:9.13")
	assert.NoFileExists(t, filepath.Join(out, "never-written"))
}

// No path of the container is left in what people read.
func TestCompilerError(t *testing.T) {
	e, _ := open(t, program(t, map[string]string{"go.mod": "module example.com/program\n", "main.go": "package main\n\nfunc main() { wrong() }\n"}), dagger.Options{})
	r, err := e.Run(t.Context(), engine.Command{Name: "go build", Toolchain: release, Args: []string{"go", "build", "-o", engine.OutDir + "/program", engine.SourceDir}})
	require.NoError(t, err)
	assert.Equal(t, 1, r.ExitCode)
	assert.Contains(t, string(r.Stderr), "./main.go:3:15: undefined: wrong")
	assert.NotContains(t, string(r.Stderr), r.Dir)
}

// A signal ends the command.
func TestCommandKilled(t *testing.T) {
	e, _ := open(t, failingProgram(t), dagger.Options{})
	r, err := e.Run(t.Context(), engine.Command{Name: "go run", Toolchain: release, Args: []string{"go", "run", "."}})
	require.NoError(t, err)
	assert.Equal(t, 137, r.ExitCode)
}

// Files that a command has changed are outputs of the source.
func TestChangedSource(t *testing.T) {
	dir := failingProgram(t)
	e, rec := open(t, dir, dagger.Options{})
	out := t.TempDir()
	rec.hide(out, "OUT")
	_, err := e.Run(t.Context(), engine.Command{
		Name: "go mod edit", Toolchain: release, Args: []string{"go", "mod", "edit", "-go=1.21"}, Writes: true, Outputs: []string{engine.SourceDir + "/go.mod"}, OutputDir: out,
	})
	require.NoError(t, err)
	changed, err := os.ReadFile(filepath.Join(out, "go.mod"))
	require.NoError(t, err)
	assert.Contains(t, string(changed), "go 1.21\n")
	kept, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	require.NoError(t, err)
	assert.Contains(t, string(kept), "go 1.20\n")
}

// A rebuild happens elsewhere, with a cache that is empty.
func TestRelocated(t *testing.T) {
	e, _ := open(t, failingProgram(t), dagger.Options{})
	r, err := e.Run(t.Context(), engine.Command{Name: "go list", Toolchain: release, Args: []string{"go", "list", "-f", "{{.Dir}}"}, Relocate: true, CGO: true})
	require.NoError(t, err)
	assert.Equal(t, r.Dir+"\n", string(r.Stdout))
	usual, err := e.Run(t.Context(), engine.Command{Name: "go list", Toolchain: release, Args: []string{"go", "list", "-f", "{{.Dir}}"}})
	require.NoError(t, err)
	assert.NotEqual(t, r.Dir, usual.Dir)
	assert.Equal(t, usual.Dir+"\n", string(usual.Stdout))
}

// Credentials travel as secrets, and only with commands that need them.
func TestCredentials(t *testing.T) {
	const canary = "canary-5b7e1"
	e, rec := open(t, failingProgram(t), dagger.Options{
		Env: []string{"GOPROXY=https://user:" + canary + "@proxy.example", "GOPRIVATE=example.com"}, Netrc: "machine proxy.example login user password " + canary + "\n",
	})
	r, err := e.Run(t.Context(), engine.Command{Name: "go env", Toolchain: release, Args: []string{"go", "env", "GOPRIVATE", "GOPROXY"}, Network: true})
	require.NoError(t, err)
	assert.Contains(t, string(r.Stdout), "example.com\n")
	assert.NotContains(t, string(r.Stdout), canary, "the engine takes secrets out of what commands say")
	r, err = e.Run(t.Context(), engine.Command{Name: "go env", Toolchain: release, Args: []string{"go", "env", "GOPRIVATE", "GOPROXY"}})
	require.NoError(t, err)
	assert.Equal(t, "\noff\n", string(r.Stdout))
	told := 0
	for _, q := range rec.asked {
		if strings.Contains(q, canary) {
			assert.Contains(t, q, "setSecret(")
			assert.NotContains(t, q, "withExec")
			told++
		}
	}
	assert.Equal(t, 2, told)
}

// A tool is built apart, and runs with the go command of the release that was asked for.
func TestTool(t *testing.T) {
	proxy := "PROXY" // stands for that of the machine that has recorded
	if *onEngine {
		out, err := exec.Command("go", "env", "GOPROXY").Output()
		require.NoError(t, err)
		proxy = strings.TrimSpace(string(out))
	}
	e, rec := open(t, failingProgram(t), dagger.Options{Env: []string{"GOPROXY=" + proxy}})
	rec.hide(proxy, "PROXY")
	input := program(t, map[string]string{"index/modules.json": "[]", "index/db.json": `{"modified":"2026-11-01T00:00:00Z"}`})
	rec.hide(input, "INPUT")
	c := engine.Command{
		Name: "govulncheck", Toolchain: release, Tool: "golang.org/x/vuln/cmd/govulncheck@v1.8.0", Args: []string{"govulncheck", "-version", "-db=" + engine.InputURL}, Input: input,
	}
	r, err := e.Run(t.Context(), c)
	require.NoError(t, err)
	assert.Equal(t, 0, r.ExitCode, "%s", r.Stderr)
	assert.Contains(t, string(r.Stdout), "Go: go"+release+"\n")
	assert.Contains(t, string(r.Stdout), "Scanner: govulncheck@v1.8.0\n")
	assert.Contains(t, string(r.Stdout), "2026-11-01")

	c.Tool = "golang.org/x/vuln/cmd/govulncheck@latest"
	_, err = e.Run(t.Context(), c)
	assert.ErrorContains(t, err, "not a package at an exact version")
}

func TestToolCannotBeHad(t *testing.T) {
	c := engine.Command{Name: "govulncheck", Toolchain: release, Tool: "golang.org/x/vuln/cmd/govulncheck@v1.8.1-never.released", Args: []string{"govulncheck"}}
	for name, want := range map[string]string{"GOPROXY=off": "module lookup disabled by GOPROXY=off", "GOSUMDB=off": "nothing can vouch"} {
		t.Run(name, func(t *testing.T) {
			e, _ := open(t, failingProgram(t), dagger.Options{Env: []string{name}})
			_, err := e.Run(t.Context(), c)
			var missing *engine.ToolError
			require.ErrorAs(t, err, &missing)
			assert.ErrorContains(t, err, "v1.8.1-never.released cannot be built: ")
			assert.ErrorContains(t, err, want)
		})
	}
}

func TestToolchainPins(t *testing.T) {
	client, _ := connect(t)
	e, err := dagger.Open(t.Context(), client, failingProgram(t), dagger.Options{})
	require.NoError(t, err)
	defer e.Close()
	first, err := e.Toolchain(t.Context(), release, nil)
	require.NoError(t, err)
	assert.Equal(t, "registry", first.VerifiedBy)
	assert.Equal(t, "golang:"+release, first.Pin)
	assert.True(t, strings.HasPrefix(first.Checksum, "sha256:"), first.Checksum)
	pinned, err := e.Toolchain(t.Context(), release, map[string]string{first.Pin: first.Checksum})
	require.NoError(t, err)
	assert.Equal(t, "slipway.lock", pinned.VerifiedBy)
	assert.Equal(t, first.Checksum, pinned.Checksum)
	// The registry has no such image any more: nothing else is taken in its place.
	_, err = e.Toolchain(t.Context(), release, map[string]string{first.Pin: "sha256:" + strings.Repeat("0", 64)})
	requireFault(t, err, fault.Environment, "image golang@sha256:000", "cannot be fetched", "--go-image")
}

func TestMirrorUnreachable(t *testing.T) {
	client, _ := connect(t)
	e, err := dagger.Open(t.Context(), client, failingProgram(t), dagger.Options{GoImage: "mirror.invalid/golang"})
	require.NoError(t, err)
	defer e.Close()
	_, err = e.Toolchain(t.Context(), release, nil)
	requireFault(t, err, fault.Environment, "image mirror.invalid/golang:"+release+" cannot be fetched", "--go-image")
	assert.NotContains(t, err.Error(), "traceparent")
}

// answers is a connection that gives the same answer to everything.
type answers func(*http.Request) (*http.Response, error)

func (a answers) Do(r *http.Request) (*http.Response, error) { return a(r) }
func (answers) Host() string                                 { return "answers" }
func (answers) Close() error                                 { return nil }

func openWith(t *testing.T, ctx context.Context, a answers) error {
	client, err := sdk.Connect(t.Context(), sdk.WithConn(a))
	require.NoError(t, err)
	e, err := dagger.Open(ctx, client, failingProgram(t), dagger.Options{})
	if err == nil {
		require.NoError(t, e.Close())
	}
	return err
}

func TestEngineTooOld(t *testing.T) {
	err := openWith(t, t.Context(), func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody}, nil
	})
	requireFault(t, err, fault.Environment, "the Dagger engine")
	err = openWith(t, t.Context(), func(*http.Request) (*http.Response, error) {
		rec := bytes.NewBufferString(`{"data":{"version":"v0.18.4"}}`)
		return &http.Response{StatusCode: http.StatusOK, Body: readCloser{rec}}, nil
	})
	requireFault(t, err, fault.Environment, "the Dagger engine is v0.18.4, slipway needs v0.21.8", "Update")
}

type readCloser struct{ *bytes.Buffer }

func (readCloser) Close() error { return nil }

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := openWith(t, ctx, func(r *http.Request) (*http.Response, error) {
		cancel()
		<-r.Context().Done()
		return nil, r.Context().Err()
	})
	assert.ErrorIs(t, err, context.Canceled)
}

func TestEngineCannotBeReached(t *testing.T) {
	path := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir())
	for _, name := range []string{"DAGGER_SESSION_PORT", "_EXPERIMENTAL_DAGGER_CLI_BIN"} {
		t.Setenv(name, "")
		require.NoError(t, os.Unsetenv(name))
	}
	_, err := dagger.Connect(t.Context())
	requireFault(t, err, fault.Environment, "no dagger command on the PATH", "_EXPERIMENTAL_DAGGER_RUNNER_HOST", "--engine=host")
	// A command that cannot start an engine. It ends a little later, as the SDK forgets what it has not read by then.
	command := filepath.Join(t.TempDir(), "dagger")
	require.NoError(t, os.WriteFile(command, []byte("#!/bin/sh\necho 'no container runtime' >&2\nsleep 0.3\nexit 1\n"), 0o755))
	t.Setenv("PATH", path)
	t.Setenv("_EXPERIMENTAL_DAGGER_CLI_BIN", command)
	_, err = dagger.Connect(t.Context())
	requireFault(t, err, fault.Environment, "no Dagger engine can be reached", "no container runtime", "_EXPERIMENTAL_DAGGER_RUNNER_HOST")
}

func TestSourceIsMissing(t *testing.T) {
	_, err := dagger.Open(t.Context(), nil, filepath.Join(t.TempDir(), "missing"), dagger.Options{})
	requireFault(t, err, fault.Usage, "is not a directory")
}
