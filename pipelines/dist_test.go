package pipelines_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// vetted runs the vet stage, with the wanted verdict, and finishes.
func vetted(t *testing.T, output string, verdict pipelines.Verdict) (kept bool) {
	t.Helper()
	f := goModule("1.20")
	if verdict == pipelines.Failed {
		f.answer = func(c engine.Command) (*engine.Result, error) {
			if c.Args[1] == "vet" {
				return &engine.Result{ExitCode: 1, Stderr: []byte("main.go:1:1: what is this?\n")}, nil
			}
			return nil, nil
		}
	}
	p, err := pipelines.New(t.Context(), f, pipelines.Config{GoVersions: []string{"1.22"}}, pipelines.Options{Output: output})
	require.NoError(t, err)
	_, err = p.Vet(t.Context())
	require.NoError(t, err)
	kept, err = p.Finish()
	require.NoError(t, err)
	assert.Equal(t, verdict, p.Record.Verdict)
	require.NoError(t, p.Close())
	return kept
}

// verdictIn reads the verdict of the run record in a directory, or says that there is none.
func verdictIn(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "run.json"))
	if os.IsNotExist(err) {
		return "none"
	}
	require.NoError(t, err)
	var r pipelines.Record
	require.NoError(t, json.Unmarshal(b, &r))
	return string(r.Verdict)
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	names := []string{}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func mark(t *testing.T, dir, name string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644))
}

func TestDistIsReplaced(t *testing.T) {
	parent := t.TempDir()
	dist := filepath.Join(parent, "dist")

	assert.False(t, vetted(t, dist, pipelines.Failed))
	assert.Equal(t, []string{"dist"}, entries(t, parent), "nothing is left beside it")
	assert.Equal(t, []string{"run.json", "vet.json"}, entries(t, dist), "work files are gone")
	assert.Equal(t, "failed", verdictIn(t, dist))

	mark(t, dist, "of the failed run")
	assert.False(t, vetted(t, dist, pipelines.Passed))
	assert.Equal(t, []string{"dist"}, entries(t, parent))
	assert.Equal(t, []string{"run.json", "vet.json"}, entries(t, dist))
	assert.Equal(t, "passed", verdictIn(t, dist))

	mark(t, dist, "of the passed run")
	assert.True(t, vetted(t, dist, pipelines.Failed), "the passed run is kept")
	assert.Equal(t, []string{"dist", "dist.passed"}, entries(t, parent))
	assert.Equal(t, "failed", verdictIn(t, dist))
	assert.Equal(t, "passed", verdictIn(t, dist+".passed"))
	assert.Equal(t, []string{"of the passed run", "run.json", "vet.json"}, entries(t, dist+".passed"))

	assert.True(t, vetted(t, dist, pipelines.Failed), "also after a second failure")
	assert.Contains(t, entries(t, dist+".passed"), "of the passed run")

	assert.False(t, vetted(t, dist, pipelines.Passed))
	assert.Equal(t, []string{"dist"}, entries(t, parent), "a newer passed run makes it superfluous")
	assert.Equal(t, "passed", verdictIn(t, dist))
}

func TestDistIsLeftAlone(t *testing.T) {
	dist := filepath.Join(t.TempDir(), "dist")
	vetted(t, dist, pipelines.Passed)
	mark(t, dist, "old")
	t.Run("by a run that was not finished", func(t *testing.T) {
		p, err := pipelines.New(t.Context(), goModule("1.20"), pipelines.Config{}, pipelines.Options{Output: dist})
		require.NoError(t, err)
		_, err = p.Vet(t.Context())
		require.NoError(t, err)
		require.NoError(t, p.Close())
		require.NoError(t, p.Close())
		assert.Equal(t, []string{"dist"}, entries(t, filepath.Dir(dist)))
		assert.Contains(t, entries(t, dist), "old")
	})
	t.Run("by a run that cannot be planned", func(t *testing.T) {
		_, err := newPipeline(t, goModule("1.20"), pipelines.Config{GoVersions: []string{"1.99"}}, pipelines.Options{Output: dist})
		require.Error(t, err)
		assert.Equal(t, []string{"dist"}, entries(t, filepath.Dir(dist)))
		assert.Contains(t, entries(t, dist), "old")
	})
}

func TestDistOfOthers(t *testing.T) {
	const mine = "was not written by slipway, so slipway does not replace it"
	for name, c := range map[string]struct {
		make func(t *testing.T, dist string)
		kind fault.Kind
		part string
	}{
		"files":                 {func(t *testing.T, dist string) { mark(t, dist, "thesis.tex") }, fault.Usage, mine},
		"with a tmp":            {func(t *testing.T, dist string) { mark(t, dist, "thesis.tex"); mark(t, filepath.Join(dist, "tmp"), "x") }, fault.Usage, mine},
		"with another run.json": {func(t *testing.T, dist string) { mark(t, dist, "run.json") }, fault.Usage, mine},
		"with a JSON run.json": {func(t *testing.T, dist string) {
			mark(t, dist, "x")
			require.NoError(t, os.WriteFile(filepath.Join(dist, "run.json"), []byte(`{"verdict":"passed"}`), 0o644))
		}, fault.Usage, mine},
		"beside it, new":    {func(t *testing.T, dist string) { mark(t, dist+".new", "thesis.tex") }, fault.Usage, "dist.new " + mine},
		"beside it, passed": {func(t *testing.T, dist string) { mark(t, dist+".passed", "thesis.tex") }, fault.Usage, "dist.passed " + mine},
		"a file":            {func(t *testing.T, dist string) { mark(t, filepath.Dir(dist), "dist") }, fault.Environment, "output"},
		"below a file": {func(t *testing.T, dist string) {
			require.NoError(t, os.Remove(filepath.Dir(dist)))
			mark(t, filepath.Dir(filepath.Dir(dist)), filepath.Base(filepath.Dir(dist)))
		}, fault.Environment, "output"},
	} {
		t.Run(name, func(t *testing.T) {
			dist := filepath.Join(t.TempDir(), "parent", "dist")
			require.NoError(t, os.MkdirAll(filepath.Dir(dist), 0o755))
			c.make(t, dist)
			before := list(t, filepath.Dir(filepath.Dir(dist)))
			_, err := newPipeline(t, goModule("1.20"), pipelines.Config{}, pipelines.Options{Output: dist})
			requireFault(t, err, c.kind, c.part, "--output")
			assert.Equal(t, before, list(t, filepath.Dir(filepath.Dir(dist))), "nothing was touched")
		})
	}
	t.Run("an empty directory is nobody's", func(t *testing.T) {
		dist := filepath.Join(t.TempDir(), "dist")
		require.NoError(t, os.Mkdir(dist, 0o755))
		vetted(t, dist, pipelines.Passed)
		assert.Equal(t, "passed", verdictIn(t, dist))
	})
	t.Run("read-only parent", func(t *testing.T) {
		if os.Getuid() == 0 || runtime.GOOS == "windows" {
			t.Skip("root writes everywhere")
		}
		parent := t.TempDir()
		require.NoError(t, os.Chmod(parent, 0o555))
		t.Cleanup(func() { _ = os.Chmod(parent, 0o755) })
		_, err := newPipeline(t, goModule("1.20"), pipelines.Config{}, pipelines.Options{Output: filepath.Join(parent, "dist")})
		requireFault(t, err, fault.Environment, "output", "permission denied", "--output")
	})
}

// list is every name below a directory.
func list(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	require.NoError(t, filepath.Walk(dir, func(name string, i os.FileInfo, err error) error {
		names = append(names, name+" "+i.Mode().String())
		return err
	}))
	return names
}

// A run was killed at some point; the next one goes on from what is there, and no passed run is lost.
func TestDistAfterKill(t *testing.T) {
	for name, c := range map[string]struct {
		leave func(t *testing.T, dist string)
		// What the next, failed run leaves.
		passed string
	}{
		"while it worked": {func(t *testing.T, dist string) {
			vetted(t, dist, pipelines.Passed)
			mark(t, filepath.Join(dist+".new", "tmp", "build-1"), "x")
			mark(t, dist+".new", "vet.json")
		}, "passed"},
		"the first, while it worked": {func(t *testing.T, dist string) { mark(t, filepath.Join(dist+".new", "tmp"), "x") }, "none"},
		"before the exchange": {func(t *testing.T, dist string) {
			vetted(t, dist+".new", pipelines.Failed)
			vetted(t, dist, pipelines.Passed)
			vetted(t, filepath.Join(dist+".new"), pipelines.Failed)
			require.NoError(t, os.RemoveAll(dist+".new.passed"))
		}, "passed"},
		"between exchange and rename": {func(t *testing.T, dist string) {
			vetted(t, dist+".new", pipelines.Passed) // this was dist before
			moved := filepath.Join(t.TempDir(), "moved")
			require.NoError(t, os.Rename(dist+".new", moved))
			vetted(t, dist, pipelines.Failed)
			require.NoError(t, os.Rename(moved, dist+".new"))
		}, "passed"},
		"between exchange and removal": {func(t *testing.T, dist string) {
			vetted(t, dist+".new", pipelines.Failed)
			moved := filepath.Join(t.TempDir(), "moved")
			require.NoError(t, os.Rename(dist+".new", moved))
			vetted(t, dist, pipelines.Passed)
			require.NoError(t, os.Rename(moved, dist+".new"))
		}, "passed"},
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dist := filepath.Join(parent, "dist")
			c.leave(t, dist)
			kept := vetted(t, dist, pipelines.Failed)
			assert.Equal(t, c.passed == "passed", kept)
			assert.Equal(t, "failed", verdictIn(t, dist))
			assert.Equal(t, c.passed, verdictIn(t, dist+".passed"))
			assert.NoDirExists(t, dist+".new")
		})
	}
}

// The output directory may be named relative to where the caller is.
func TestDistRelative(t *testing.T) {
	t.Chdir(t.TempDir())
	f := goModule("1.20")
	f.answer = func(c engine.Command) (*engine.Result, error) {
		assert.True(t, c.OutputDir == "" || filepath.IsAbs(c.OutputDir), "%q gets %q", c.Args, c.OutputDir)
		return nil, nil
	}
	p := mustPipeline(t, f, pipelines.Config{GoVersions: []string{"1.22"}}, pipelines.Options{Output: "dist"})
	_, err := p.Vet(t.Context())
	require.NoError(t, err)
	_, err = p.Finish()
	require.NoError(t, err)
	assert.Equal(t, "passed", verdictIn(t, "dist"))
	assert.Equal(t, []string{"dist"}, entries(t, "."))
}

func TestOutputNames(t *testing.T) {
	for _, name := range []string{"out", "out.new", "out.passed"} {
		assert.Contains(t, pipelines.OutputNames("out"), name)
	}
}
