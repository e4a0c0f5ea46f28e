package pipelines_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// recordedVulns is what govulncheck said of testdata/hello: it calls GO-2026-9001 of the standard library, and
// does not call GO-2026-9002 of pflag.
func recordedVulns(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("internal", "vulnjson", "testdata", "hello.json"))
	require.NoError(t, err)
	return string(b)
}

const vulnHeader = `{"config":{"protocol_version":"v1.0.0","scanner_name":"govulncheck","db_last_modified":"2026-11-01T00:00:00Z"}}`

// vulnerable is a fake whose tool says what is given for each platform.
func vulnerable(say func(c engine.Command, platform string) (*engine.Result, error)) *fake {
	f := goModule("1.20")
	f.answer = func(c engine.Command) (*engine.Result, error) {
		if c.Tool == "" {
			return nil, nil
		}
		env := map[string]string{}
		for _, v := range c.Env {
			name, value, _ := strings.Cut(v, "=")
			env[name] = value
		}
		return say(c, env["GOOS"]+"/"+env["GOARCH"])
	}
	return f
}

func says(stdout string) *fake {
	return vulnerable(func(engine.Command, string) (*engine.Result, error) {
		return &engine.Result{Stdout: []byte(stdout)}, nil
	})
}

// looked runs the stage and finishes.
func looked(t *testing.T, f *fake, c pipelines.Config) (*pipelines.VulnResult, *pipelines.StageRecord, *pipelines.Record, fs.FS) {
	t.Helper()
	c.GoVersions = []string{"1.22"}
	if c.Platforms == nil {
		c.Platforms = []string{"linux/amd64"}
	}
	dist := filepath.Join(t.TempDir(), "dist")
	p := mustPipeline(t, f, c, pipelines.Options{Output: dist})
	r, err := p.Vuln(t.Context())
	require.NoError(t, err)
	_, err = p.Finish()
	require.NoError(t, err)
	return r, stageOf(t, p, "vuln"), p.Record, os.DirFS(dist)
}

func TestVulnAffected(t *testing.T) {
	f := says(recordedVulns(t))
	r, s, record, dist := looked(t, f, pipelines.Config{Tags: []string{"netgo"}})
	assert.Equal(t, pipelines.Failed, r.Verdict)
	assert.Equal(t, pipelines.Failed, record.Verdict)
	assert.Equal(t, "1 vulnerability affects the program; not called: GO-2026-9002", s.Detail)
	assert.Equal(t, []pipelines.Failure{{
		What: "GO-2026-9001 in Go 1.22.12", File: "main.go", Line: 51,
		Message: "Invented: serving is dangerous\nFixed in Go 99.0.0.\nhello.main calls hello.serve (main.go:32)\nhello.serve calls http.Server.Serve (main.go:51)",
		Next:    "Build with Go 99.0.0 or newer (--go-versions; `slipway lock --update` takes the newest patch releases).",
	}}, s.Failures)
	require.Len(t, r.Vulnerabilities, 2)
	assert.True(t, r.Vulnerabilities[0].Affects())
	assert.False(t, r.Vulnerabilities[1].Affects())
	assert.Equal(t, "2026-11-01T00:00:00Z", r.Modified)

	c := f.ran[len(f.ran)-1]
	assert.Equal(t, []string{"govulncheck", "-format=json", "-scan=symbol", "-tags=netgo", "./..."}, c.Args)
	assert.Equal(t, r.Tool, c.Tool)
	assert.Equal(t, "1.22.10", c.Toolchain)
	assert.True(t, c.Network, "the public database")
	assert.Contains(t, c.Env, "GOOS=linux")

	b, err := fs.ReadFile(dist, "vuln.json")
	require.NoError(t, err)
	var read pipelines.VulnResult
	require.NoError(t, json.Unmarshal(b, &read))
	assert.Equal(t, *r, read)
}

func vulnFinding(id, module, rest string) string {
	return `{"finding":{"osv":"` + id + `","fixed_version":"v1.2.3","trace":[{"module":"` + module + `","version":"v1.0.0"` + rest + `]}}`
}

// called ends a finding: main calls what is vulnerable.
const called = `,"package":"m","function":"F"},{"module":"example.com/hello","package":"example.com/hello","function":"main","position":{"filename":"main.go","line":3}}`

func TestVulnModule(t *testing.T) {
	_, s, _, _ := looked(t, says(vulnHeader+`{"osv":{"id":"GO-1","summary":"Bad","aliases":["CVE-1"]}}`+vulnFinding("GO-1", "m.example/m", called)), pipelines.Config{})
	require.Len(t, s.Failures, 1)
	assert.Equal(t, "GO-1 in m.example/m v1.0.0", s.Failures[0].What)
	assert.Equal(t, "Bad (CVE-1)\nFixed in v1.2.3.\nhello.main calls m.F (main.go:3)", s.Failures[0].Message)
	assert.Contains(t, s.Failures[0].Next, "`go get m.example/m@v1.2.3`")

	_, s, _, _ = looked(t, says(vulnHeader+strings.ReplaceAll(vulnFinding("GO-1", "m.example/m", called), "v1.2.3", "")), pipelines.Config{})
	assert.Contains(t, s.Failures[0].Message, "No version is known that is without it.")
	assert.NotContains(t, s.Failures[0].Next, "go get")
}

// What is true on one platform may not be on another.
func TestVulnPlatforms(t *testing.T) {
	f := vulnerable(func(_ engine.Command, platform string) (*engine.Result, error) {
		switch platform {
		case "linux/amd64":
			return &engine.Result{Stdout: []byte(vulnHeader + vulnFinding("GO-2", "m.example/m", "}") + vulnFinding("GO-1", "m.example/m", `,"package":"m"}`))}, nil
		case "linux/arm64":
			return &engine.Result{Stdout: []byte(vulnHeader)}, nil
		}
		return &engine.Result{Stdout: []byte(vulnHeader + vulnFinding("GO-2", "m.example/m", called) + vulnFinding("GO-1", "m.example/m", `,"package":"m"}`))}, nil
	})
	r, s, _, _ := looked(t, f, pipelines.Config{Platforms: []string{"linux/amd64", "linux/arm64", "windows/amd64"}})
	require.Len(t, s.Failures, 1)
	assert.Equal(t, "only windows/amd64", s.Failures[0].Where)
	require.Len(t, r.Vulnerabilities, 2)
	assert.Equal(t, "GO-2", r.Vulnerabilities[0].ID, "what affects the program comes first")
	assert.Equal(t, []string{"windows/amd64"}, r.Vulnerabilities[0].Platforms)
	assert.Equal(t, []string{"linux/amd64", "windows/amd64"}, r.Vulnerabilities[1].Platforms)
	assert.Equal(t, "1 vulnerability affects the program; not called: GO-1", s.Detail)
}

// Whatever keeps it from an answer: that is not a good one, and says why.
func TestVulnNotChecked(t *testing.T) {
	fails := func(stderr string) *fake {
		return vulnerable(func(engine.Command, string) (*engine.Result, error) {
			return &engine.Result{ExitCode: 1, Stdout: []byte(vulnHeader), Stderr: []byte(stderr)}, nil
		})
	}
	for name, c := range map[string]struct {
		f    *fake
		db   string
		want string
	}{
		"no network": {
			fails("govulncheck: fetching vulnerabilities: Get \"https://db.example/index/modules.json.gz\":\n dial tcp: lookup db.example on 192.168.7.1:53: no such host\n"), "",
			`the public vulnerability database gave no answer: fetching vulnerabilities: Get "https://db.example/index/modules.json.gz": dial tcp: lookup db.example: no such host`,
		},
		"other database": {
			fails("creating client: unrecognized vulndb format; see https://example.com\n"), "https://db.example/v1",
			"the vulnerability database https://db.example/v1 cannot be reached, or is no vulnerability database",
		},
		"killed":       {fails(""), "", "the public vulnerability database gave no answer: govulncheck ended without a word"},
		"empty":        {says(""), "", "govulncheck printed no report"},
		"cut":          {says(vulnHeader + `{"osv":`), "", "what govulncheck printed is not whole: unexpected EOF"},
		"ageless":      {says(`{"config":{"protocol_version":"v1.0.0"}}`), "https://db.example", "the vulnerability database https://db.example does not tell when it was last changed"},
		"older tool":   {fails("There are errors with the provided package patterns:\n-: This application uses version go1.21 of the source-processing packages\n"), "", "govulncheck was built with an older Go than 1.22.10"},
		"no directory": {says(vulnHeader), "/no/such/database", "the directory database holds no vulnerability database that can be read: index/db.json: no such file or directory"},
		"tool not built": {vulnerable(func(c engine.Command, _ string) (*engine.Result, error) {
			return nil, &engine.ToolError{Tool: c.Tool, Err: errors.New("no\nproxy")}
		}), "", "golang.org/x/vuln/cmd/govulncheck@v1.8.0 cannot be built: no proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			r, s, record, dist := looked(t, c.f, pipelines.Config{VulnDB: c.db})
			assert.Equal(t, pipelines.NotRun, r.Verdict)
			assert.Equal(t, []string{c.want}, r.NotChecked)
			assert.Equal(t, pipelines.NotRun, s.Verdict)
			assert.Equal(t, "not checked: "+c.want, s.Detail)
			assert.Empty(t, s.Failures)
			assert.Equal(t, pipelines.Passed, record.Verdict)
			assert.Contains(t, record.Notes, "vulnerabilities were not checked: "+c.want)
			b, err := fs.ReadFile(dist, "vuln.json")
			require.NoError(t, err)
			assert.Contains(t, string(b), `"verdict": "not run"`)
			for _, file := range []string{"vuln.json", "run.json"} {
				b, err := fs.ReadFile(dist, file)
				require.NoError(t, err)
				assert.NotContains(t, string(b), "/no/such")
			}

			r, s, record, _ = looked(t, c.f, pipelines.Config{VulnDB: c.db, Vuln: "require"})
			assert.Equal(t, pipelines.Failed, r.Verdict)
			assert.Equal(t, pipelines.Failed, record.Verdict)
			require.Len(t, s.Failures, 1)
			assert.Equal(t, "not checked: "+c.want, s.Failures[0].Message)
		})
	}
}

// One platform without an answer: the others still count, and are not the whole answer.
func TestVulnPartlyChecked(t *testing.T) {
	bad := vulnFinding("GO-1", "m.example/m", called)
	for finding, want := range map[string]pipelines.Verdict{"": pipelines.NotRun, bad: pipelines.Failed} {
		f := vulnerable(func(_ engine.Command, platform string) (*engine.Result, error) {
			if platform == "linux/arm64" {
				return &engine.Result{ExitCode: 1, Stderr: []byte("connection reset")}, nil
			}
			return &engine.Result{Stdout: []byte(vulnHeader + finding)}, nil
		})
		r, s, _, _ := looked(t, f, pipelines.Config{Platforms: []string{"linux/amd64", "linux/arm64"}})
		assert.Equal(t, want, r.Verdict)
		assert.Contains(t, s.Detail, "checked: the public vulnerability database gave no answer: connection reset")
	}
}

func TestVulnPackagesDoNotLoad(t *testing.T) {
	f := vulnerable(func(engine.Command, string) (*engine.Result, error) {
		return &engine.Result{ExitCode: 1, Stderr: []byte("govulncheck: loading packages: \nThere are errors with the provided package patterns:\n\n./main.go:3:9: undefined: x\n\nFor details on package patterns, see https://example.com.\n")}, nil
	})
	r, s, _, _ := looked(t, f, pipelines.Config{})
	assert.Equal(t, pipelines.Failed, r.Verdict)
	assert.Equal(t, "the packages cannot be loaded", s.Detail)
	require.Len(t, s.Failures, 1)
	assert.Equal(t, "./main.go:3:9: undefined: x", s.Failures[0].Message)
}

// Faults of the machine and an interrupted run are neither good nor bad.
func TestVulnStopped(t *testing.T) {
	for _, cause := range []error{context.Canceled, fault.Environmentf(nil, "", "disk full")} {
		f := vulnerable(func(engine.Command, string) (*engine.Result, error) { return nil, cause })
		p := mustPipeline(t, f, pipelines.Config{GoVersions: []string{"1.22"}})
		_, err := p.Vuln(t.Context())
		require.ErrorIs(t, err, cause)
	}
}

func TestVulnDirectory(t *testing.T) {
	db := filepath.Join(t.TempDir(), "database")
	require.NoError(t, os.MkdirAll(filepath.Join(db, "index"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(db, "index", "db.json"), []byte(`{"modified":"2026-11-01T00:00:00Z"}`), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(db, "index", "modules.json"), []byte(`[]`), 0o644))
	f := says(vulnHeader)
	r, s, record, _ := looked(t, f, pipelines.Config{VulnDB: db})
	assert.Equal(t, pipelines.Passed, r.Verdict)
	assert.Equal(t, "no known vulnerability affects the program", s.Detail)
	assert.Equal(t, "database", r.Database)
	assert.Equal(t, "database", record.Config["vuln-db"])
	c := f.ran[len(f.ran)-1]
	assert.Equal(t, db, c.Input)
	assert.Contains(t, c.Args, "-db="+engine.InputURL)
	assert.False(t, c.Network)
}

// A whole run asks only when it is told to, and builds nothing that is affected.
func TestVulnInAll(t *testing.T) {
	for mode, want := range map[string]bool{"": false, "off": false, "check": true, "require": true} {
		f := says(recordedVulns(t))
		tool := f.answer
		f.answer = func(c engine.Command) (*engine.Result, error) {
			if c.Args[1] == "test" {
				return testAnswer(c, []byte(events("example.com/hello", "fail", "FAIL\n", [3]string{"TestBad", "fail", "no"})), nil, "")
			}
			return tool(c)
		}
		p := mustPipeline(t, f, pipelines.Config{GoVersions: []string{"1.22"}, Vuln: mode})
		require.NoError(t, p.All(t.Context()))
		var stages []string
		for _, s := range p.Record.Stages {
			stages = append(stages, s.Name)
		}
		assert.Equal(t, want, slices.Contains(stages, "vuln"), "%q: %v", mode, stages)
		assert.NotContains(t, stages, "build")
	}
}

func TestVulnConfig(t *testing.T) {
	for text, part := range map[string]string{
		"vuln: maybe\n":                                 "vuln: \"maybe\" is not off, check or require",
		"vuln-db: file:///database\n":                   "is not the URL of a web server",
		"vuln-db: 'https://'\n":                         "is not the URL of a web server",
		"vuln-db: 'https://%zz'\n":                      "this is not a URL",
		"vuln-db: https://user:canary-5b7@db.example\n": "a password in a URL would be seen",
	} {
		c, err := pipelines.ParseConfig("slipway.yaml", []byte(text), "")
		require.NoError(t, err)
		_, err = newPipeline(t, goModule("1.20"), c)
		requireFault(t, err, fault.Usage, part)
		assert.NotContains(t, err.Error(), "canary")
	}
	c := pipelines.Config{VulnDB: "copies/db"}
	c.SetDir(filepath.FromSlash("/source"))
	assert.Equal(t, filepath.FromSlash("/source/copies/db"), c.VulnDB)
	c.VulnDB = "https://db.example"
	c.SetDir(filepath.FromSlash("/source"))
	assert.Equal(t, "https://db.example", c.VulnDB)
}
