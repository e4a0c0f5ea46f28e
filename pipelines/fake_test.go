package pipelines_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// fake is an engine that has the answers ready.
type fake struct {
	engine.Engine // for what no test asks
	files         fstest.MapFS
	// versions is what `go list -m -versions go` prints.
	versions string
	// packages is what `go list -json` prints.
	packages string
	// missing are the releases that have no toolchain.
	missing []string
	// answer, if set, is asked first; nil leaves the question to the fake.
	answer func(c engine.Command) (*engine.Result, error)

	mu   sync.Mutex
	pins map[string]map[string]string // that Toolchain was given
	ran  []engine.Command
}

const allVersions = "1 1.0.1 1.19 1.19.13 1.20rc1 1.20 1.20.1 1.20.14 1.21rc2 1.21.0 1.21.13 1.22.0 1.22.2 1.22.10 1.22.9 1.26.0 1.26.11 1.27rc1 1.27.0 1.27.4 1.28rc1"

func newFake(files map[string]string) *fake {
	f := &fake{files: fstest.MapFS{}, versions: allVersions, pins: map[string]map[string]string{}}
	for name, text := range files {
		f.files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return f
}

// goModule is a fake over a module with the given go line.
func goModule(line string) *fake {
	f := newFake(map[string]string{"go.mod": "module example.com/hello\n\ngo " + line + "\n", "main.go": "package main\n"})
	f.packages = `{"ImportPath":"example.com/hello","Name":"main"}`
	return f
}

func (f *fake) Name() string { return "fake" }

func (f *fake) Source() engine.Source {
	s := engine.Source{FS: f.files}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		sum := sha256.Sum256(f.files[name].Data)
		s.Files = append(s.Files, engine.File{Name: name, SHA256: hex.EncodeToString(sum[:])})
	}
	return s
}

func (f *fake) Toolchain(_ context.Context, release string, pins map[string]string) (engine.Toolchain, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pins[release] = maps.Clone(pins)
	if slices.Contains(f.missing, release) {
		return engine.Toolchain{}, fault.Environmentf(nil, "", "no toolchain go%s", release)
	}
	return engine.Toolchain{Release: release, Platform: "linux/amd64", Pin: "linux/amd64", Checksum: "h1:" + release, VerifiedBy: "checksum database"}, nil
}

func (f *fake) Run(ctx context.Context, c engine.Command) (*engine.Result, error) {
	f.mu.Lock()
	f.ran = append(f.ran, c)
	f.mu.Unlock()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if f.answer != nil {
		if r, err := f.answer(c); r != nil || err != nil {
			return r, err
		}
	}
	line := strings.Join(c.Args, " ")
	switch {
	case strings.HasPrefix(line, "go list -m -versions"):
		return &engine.Result{Stdout: []byte(f.versions + "\n")}, nil
	case strings.HasPrefix(line, "go list -e -json"):
		return &engine.Result{Stdout: []byte(f.packages)}, nil
	case line == "go version":
		return &engine.Result{Stdout: []byte("go version go" + c.Toolchain + " linux/amd64\n")}, nil
	case strings.HasPrefix(line, "go mod ") || strings.HasPrefix(line, "go vet ") || strings.HasPrefix(line, "gofmt "):
		// They change nothing and complain of nothing.
		for _, o := range c.Outputs {
			name := strings.TrimPrefix(o, engine.SourceDir+"/")
			if file, ok := f.files[name]; ok {
				if err := os.WriteFile(filepath.Join(c.OutputDir, filepath.FromSlash(name)), file.Data, 0o644); err != nil {
					return nil, err
				}
			}
		}
		return &engine.Result{}, nil
	}
	return nil, fmt.Errorf("nobody told the fake about %q", line)
}

func (f *fake) Close() error { return nil }

// asked counts the commands that begin with words.
func (f *fake) asked(words string) int {
	n := 0
	for _, c := range f.ran {
		if strings.HasPrefix(strings.Join(c.Args, " "), words) {
			n++
		}
	}
	return n
}

// newPipeline plans a pipeline that writes to a new directory.
func newPipeline(t *testing.T, f *fake, c pipelines.Config, o ...pipelines.Options) (*pipelines.Pipeline, error) {
	t.Helper()
	if len(o) == 0 {
		o = []pipelines.Options{{}}
	}
	if o[0].Output == "" {
		o[0].Output = filepath.Join(t.TempDir(), "dist")
	}
	p, err := pipelines.New(t.Context(), f, c, o[0])
	if err == nil {
		t.Cleanup(func() { assert.NoError(t, p.Close()) })
	}
	return p, err
}

// mustPipeline is newPipeline for one that can be planned.
func mustPipeline(t *testing.T, f *fake, c pipelines.Config, o ...pipelines.Options) *pipelines.Pipeline {
	t.Helper()
	p, err := newPipeline(t, f, c, o...)
	require.NoError(t, err)
	return p
}

// readLock reads a lock file from its text.
func readLock(t *testing.T, text string) *pipelines.Lock {
	t.Helper()
	l, err := pipelines.ReadLock(fstest.MapFS{pipelines.LockFile: &fstest.MapFile{Data: []byte(text)}})
	require.NoError(t, err)
	return l
}

// requireFault checks whose fault an error is, and that its message has every one of the given parts.
func requireFault(t *testing.T, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	require.Error(t, err)
	assert.Equal(t, kind, fault.Of(err), "%v", err)
	for _, part := range parts {
		assert.ErrorContains(t, err, part)
	}
}

// testAnswer makes a fake answer `go test` of a release with recorded output.
func testAnswer(c engine.Command, stdout, stderr []byte, profile string) (*engine.Result, error) {
	if _, err := bytes.NewReader(stdout).WriteTo(c.Stdout); err != nil {
		return nil, err
	}
	if profile != "" {
		if err := os.WriteFile(filepath.Join(c.OutputDir, "coverage.out"), []byte(profile), 0o644); err != nil {
			return nil, err
		}
	}
	r := &engine.Result{Stderr: stderr, Dir: "/work"}
	if bytes.Contains(stdout, []byte(`"Action":"fail"`)) || bytes.Contains(stdout, []byte("FAIL")) || len(stdout) == 0 && len(stderr) > 0 {
		r.ExitCode = 1
	}
	return r, nil
}
