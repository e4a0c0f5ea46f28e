package pipelines_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

func TestMatrix(t *testing.T) {
	const pinned = `{"schema":1,"go":{"1.22":"1.22.2","stable":"1.26.11"},"toolchains":{"1.22.2":{"linux/amd64":"h1:1.22.2"}},"bases":{}}`
	for name, c := range map[string]struct {
		line     string // of go.mod
		requests []string
		lock     string
		// Expected: exact releases with what was asked for, oldest first; excluded ones with the reason; the
		// lock's choices; and whether the list of releases was needed.
		releases [][2]string
		excluded [][3]string
		pins     map[string]string
		listed   int
	}{
		"default":               {"1.20", nil, "", [][2]string{{"1.20.14", "minimum"}, {"1.26.11", "oldstable"}, {"1.27.4", "stable"}}, nil, map[string]string{"1.20": "1.20.14", "oldstable": "1.26.11", "stable": "1.27.4"}, 1},
		"default, patch":        {"1.22.2", nil, "", [][2]string{{"1.22.10", "minimum"}, {"1.26.11", "oldstable"}, {"1.27.4", "stable"}}, nil, map[string]string{"1.22": "1.22.10", "oldstable": "1.26.11", "stable": "1.27.4"}, 1},
		"default, old go line":  {"1.16", nil, "", [][2]string{{"1.20.14", "minimum"}, {"1.26.11", "oldstable"}, {"1.27.4", "stable"}}, nil, map[string]string{"1.20": "1.20.14", "oldstable": "1.26.11", "stable": "1.27.4"}, 1},
		"default, newest line":  {"1.27", nil, "", [][2]string{{"1.27.4", "minimum,stable"}}, [][3]string{{"oldstable", "1.26.11", "older than the line `go 1.27` of go.mod"}}, map[string]string{"1.27": "1.27.4", "oldstable": "1.26.11", "stable": "1.27.4"}, 1},
		"newest patch":          {"1.20", []string{"1.22"}, "", [][2]string{{"1.22.10", "1.22"}}, nil, map[string]string{"1.22": "1.22.10"}, 1},
		"no candidates":         {"1.20", []string{"1.21"}, "", [][2]string{{"1.21.13", "1.21"}}, nil, map[string]string{"1.21": "1.21.13"}, 1},
		"exact":                 {"1.20", []string{"1.22.5"}, "", [][2]string{{"1.22.5", "1.22.5"}}, nil, map[string]string{}, 0},
		"candidate":             {"1.20", []string{"1.28rc1"}, "", [][2]string{{"1.28rc1", "1.28rc1"}}, nil, map[string]string{}, 0},
		"order and spelling":    {"1.20", []string{" go1.22 ", "stable", "go1.21.13"}, "", [][2]string{{"1.21.13", "1.21.13"}, {"1.22.10", "1.22"}, {"1.27.4", "stable"}}, nil, map[string]string{"1.22": "1.22.10", "stable": "1.27.4"}, 1},
		"duplicates":            {"1.20", []string{"1.22", "1.22.10", "1.22", "minimum", "1.20"}, "", [][2]string{{"1.20.14", "minimum,1.20"}, {"1.22.10", "1.22,1.22.10,1.22"}}, nil, map[string]string{"1.20": "1.20.14", "1.22": "1.22.10"}, 1},
		"too old for slipway":   {"1.16", []string{"1.19", "1.22"}, "", [][2]string{{"1.22.10", "1.22"}}, [][3]string{{"1.19", "1.19.13", "slipway supports Go 1.20 and newer"}}, map[string]string{"1.19": "1.19.13", "1.22": "1.22.10"}, 1},
		"too old for go.mod":    {"1.22.3", []string{"1.22.2", "1.22.3", "1.21", "1.23rc1"}, "", [][2]string{{"1.22.3", "1.22.3"}, {"1.23rc1", "1.23rc1"}}, [][3]string{{"1.22.2", "1.22.2", "older than the line `go 1.22.3` of go.mod"}, {"1.21", "1.21.13", "older than the line `go 1.22.3` of go.mod"}}, map[string]string{"1.21": "1.21.13"}, 1},
		"candidate for go line": {"1.23", []string{"1.23rc1", "1.23.0"}, "", [][2]string{{"1.23rc1", "1.23rc1"}, {"1.23.0", "1.23.0"}}, nil, map[string]string{}, 0},
		"pinned":                {"1.20", []string{"1.22", "stable"}, pinned, [][2]string{{"1.22.2", "1.22"}, {"1.26.11", "stable"}}, nil, map[string]string{"1.22": "1.22.2", "stable": "1.26.11"}, 0},
		"pinned minimum":        {"1.22", []string{"minimum"}, pinned, [][2]string{{"1.22.2", "minimum"}}, nil, map[string]string{"1.22": "1.22.2", "stable": "1.26.11"}, 0},
		"pinned in part":        {"1.20", []string{"1.22", "oldstable"}, pinned, [][2]string{{"1.22.2", "1.22"}, {"1.26.11", "oldstable"}}, nil, map[string]string{"1.22": "1.22.2", "stable": "1.26.11", "oldstable": "1.26.11"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := goModule(c.line)
			if c.lock != "" {
				f.files[pipelines.LockFile] = newFake(map[string]string{"x": c.lock}).files["x"]
			}
			p := mustPipeline(t, f, pipelines.Config{GoVersions: c.requests})
			var releases [][2]string
			for _, r := range p.Plan.Releases {
				releases = append(releases, [2]string{r.Exact, r.Requested})
				assert.Equal(t, "h1:"+r.Exact, r.Toolchain.Checksum)
				assert.Equal(t, "h1:"+r.Exact, p.Lock.Toolchains[r.Exact]["linux/amd64"])
			}
			var excluded [][3]string
			for _, x := range p.Plan.Excluded {
				excluded = append(excluded, [3]string{x.Requested, x.Exact, x.Reason})
				assert.NotContains(t, f.pins, x.Exact, "it is not even fetched")
			}
			assert.Equal(t, c.releases, releases)
			assert.Equal(t, c.excluded, excluded)
			assert.Equal(t, c.pins, p.Lock.Go)
			assert.Equal(t, c.releases[len(c.releases)-1][0], p.Plan.BuildRelease)
			assert.Equal(t, c.listed, f.asked("go list -m -versions"))
		})
	}
}

func TestMatrixErrors(t *testing.T) {
	for name, c := range map[string]struct {
		line     string
		requests []string
		kind     fault.Kind
		parts    []string
	}{
		"no release":      {"1.20", []string{"1.99"}, fault.Usage, []string{"there is no release of Go 1.99", "go list -m -versions go"}},
		"none yet":        {"1.20", []string{"1.28"}, fault.Usage, []string{"there is no release of Go 1.28"}},
		"no such patch":   {"1.20", []string{"1.22.77"}, fault.Usage, []string{"there is no release of Go 1.22.77"}},
		"garbage":         {"1.20", []string{"latest"}, fault.Usage, []string{`"latest" is not a Go release`, "stable, oldstable or minimum"}},
		"empty":           {"1.20", []string{""}, fault.Usage, []string{`"" is not a Go release`}},
		"wildcard":        {"1.20", []string{"1.x"}, fault.Usage, []string{`"1.x" is not a Go release`}},
		"beta":            {"1.20", []string{"1.22beta1"}, fault.Usage, []string{`"1.22beta1" is not a Go release`}},
		"v":               {"1.20", []string{"v1.22"}, fault.Usage, []string{`"v1.22" is not a Go release`}},
		"path":            {"1.20", []string{"1.22.1/../../x"}, fault.Usage, []string{"is not a Go release"}},
		"all too old":     {"1.22", []string{"1.20", "1.21"}, fault.Usage, []string{"no requested Go release can be used", "1.20: older than the line `go 1.22` of go.mod; 1.21: older", "--go-versions"}},
		"not built there": {"1.20", []string{"1.22.9"}, fault.Environment, []string{"no toolchain go1.22.9"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := goModule(c.line)
			f.missing = []string{"1.22.77", "1.22.9"}
			_, err := newPipeline(t, f, pipelines.Config{GoVersions: c.requests})
			requireFault(t, err, c.kind, c.parts...)
		})
	}
	t.Run("no network", func(t *testing.T) {
		f := goModule("1.20")
		f.answer = func(c engine.Command) (*engine.Result, error) {
			if c.Args[1] == "list" {
				return &engine.Result{ExitCode: 1, Stderr: []byte("go: dial tcp: lookup proxy.example: no such host\n")}, nil
			}
			return nil, nil
		}
		_, err := newPipeline(t, f, pipelines.Config{})
		requireFault(t, err, fault.Environment, "list of Go releases cannot be fetched", "no such host", "GOPROXY", "slipway.lock")
		_, err = newPipeline(t, f, pipelines.Config{GoVersions: []string{"1.22.5"}})
		assert.NotContains(t, err.Error(), "list of Go releases", "an exact release needs no list")
	})
}

func TestMatrixOfSeveralModules(t *testing.T) {
	f := newFake(map[string]string{
		"go.work": "go 1.22\n\nuse (\n\t./a\n\t./b\n)\n", "a/go.mod": "module example.com/a\n\ngo 1.20\n", "b/go.mod": "module example.com/b\n\ngo 1.21.5\n",
	})
	p := mustPipeline(t, f, pipelines.Config{GoVersions: []string{"minimum", "1.21.4", "1.22"}})
	require.Len(t, p.Plan.Releases, 2)
	assert.Equal(t, "1.21.13", p.Plan.Releases[0].Exact, "the oldest that all modules allow")
	assert.Equal(t, []pipelines.Exclusion{{Requested: "1.21.4", Exact: "1.21.4", Reason: "older than the line `go 1.21.5` of b/go.mod"}}, p.Plan.Excluded)
	assert.Contains(t, p.Record.Notes, "Go 1.21.4 is excluded: older than the line `go 1.21.5` of b/go.mod")
	for _, c := range f.ran {
		if c.Toolchain != "" {
			assert.Contains(t, c.Env, "GOWORK="+engine.SourceDir+"/go.work", "%q", c.Args)
		}
	}
}

// What the lock pins is what the engine is told to compare with.
func TestToolchainPins(t *testing.T) {
	f := goModule("1.20")
	lock := readLock(t, `{"schema":1,"go":{"1.22":"1.22.2","1.19":"1.19.13"},"toolchains":{
		"1.22.2":{"linux/amd64":"h1:pinned","darwin/arm64":"h1:mac"},"1.21.13":{"linux/amd64":"h1:nobody-asks"},"1.19.13":{"linux/amd64":"h1:asked before"}},"bases":{}}`)
	p := mustPipeline(t, f, pipelines.Config{GoVersions: []string{"1.22", "1.26"}}, pipelines.Options{Lock: lock})
	assert.Equal(t, map[string]string{"linux/amd64": "h1:pinned", "darwin/arm64": "h1:mac"}, f.pins["1.22.2"])
	assert.Nil(t, f.pins["1.26.11"])
	assert.Same(t, lock, p.Lock)
	assert.Equal(t, map[string]map[string]string{
		"1.22.2":  {"linux/amd64": "h1:1.22.2", "darwin/arm64": "h1:mac"},
		"1.26.11": {"linux/amd64": "h1:1.26.11"},
		"1.19.13": {"linux/amd64": "h1:asked before"},
	}, lock.Toolchains, "what nothing refers to is dropped")
	require.Len(t, p.Record.Toolchains, 2)
	assert.Equal(t, pipelines.ToolchainID{Release: "1.22.2", Platform: "linux/amd64", Checksum: "h1:1.22.2", VerifiedBy: "checksum database"}, p.Record.Toolchains[0])
}
