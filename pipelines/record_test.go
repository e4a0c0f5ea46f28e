package pipelines_test

import (
	"bytes"
	"encoding/json"
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

// failingTests is a fake over a module in which the named tests fail.
func failingTests(t *testing.T, names ...string) *fake {
	t.Helper()
	return answers(t, func(_, _ string) (string, string, string) {
		tests := [][3]string{{"TestGood", "pass", ""}}
		for _, name := range []string{"TestBad", "TestWorse"} {
			if !slices.Contains(names, name) {
				tests = append(tests, [3]string{name, "pass", ""})
			}
		}
		result := "pass"
		for _, name := range names {
			tests = append(tests, [3]string{name, "fail", "    a_test.go:7: no\n"})
			result = "fail"
		}
		return events("example.com/hello", result, "", tests...), "", ""
	})
}

// recordOf runs the test stage and gives the text of the record.
func recordOf(t *testing.T, f *fake, c pipelines.Config, o ...pipelines.Options) []byte {
	t.Helper()
	if len(o) == 0 {
		o = []pipelines.Options{{}}
	}
	o[0].Output = filepath.Join(t.TempDir(), "dist")
	if c.GoVersions == nil {
		c.GoVersions = []string{"1.20", "1.22"}
	}
	p := mustPipeline(t, f, c, o[0])
	_, err := p.Test(t.Context())
	require.NoError(t, err)
	_, err = p.Finish()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(o[0].Output, "run.json"))
	require.NoError(t, err)
	return text
}

func parseRecord(t *testing.T, text []byte) *pipelines.Record {
	t.Helper()
	r, err := pipelines.ParseRecord("run.json", text)
	require.NoError(t, err)
	return r
}

func TestRecordHoldsItsInputs(t *testing.T) {
	text := recordOf(t, failingTests(t, "TestBad"), pipelines.Config{Race: true, Tags: []string{"a"}}, pipelines.Options{Origins: map[string]string{"race": "flag"}})
	r := parseRecord(t, text)
	assert.Equal(t, "flag", r.Origins["race"])
	assert.Equal(t, "caller", r.Origins["tags"], "nobody said where it is from")
	assert.Equal(t, "default", r.Origins["smoke.memory"])
	assert.Equal(t, map[string]string{"1.20": "1.20.14", "1.22": "1.22.10"}, r.Lock.Go)
	assert.Equal(t, []string{"CGO_ENABLED=0", "GOWORK=off"}, r.Environment, "the fake tells of none")
	assert.NotEmpty(t, r.EngineVersion)
	test := r.Stages[1]
	assert.Contains(t, test.Inputs, "shuffle")
	assert.Len(t, test.Outputs, 3)
	assert.Regexp(t, `^sha256:[0-9a-f]{64}$`, test.Outputs["junit.xml"])
	for key := range r.Config {
		if key != "smoke" {
			assert.Contains(t, r.Origins, key)
		}
	}
	again, err := json.MarshalIndent(r, "", "  ")
	require.NoError(t, err)
	assert.Equal(t, string(text), string(again)+"\n", "nothing is lost, and keys have one order")
}

func TestSeedIsRecorded(t *testing.T) {
	f := failingTests(t, "TestBad")
	r := parseRecord(t, recordOf(t, f, pipelines.Config{Shuffle: "on"}))
	test := r.Stages[1]
	require.Regexp(t, `^\d+$`, test.Seed)
	assert.Equal(t, test.Seed, test.Failures[0].Repeat["shuffle"])
	for _, c := range f.ran {
		if c.Args[1] == "test" {
			assert.Contains(t, c.Args, "-shuffle="+test.Seed, "one for all releases")
		}
	}
	assert.Empty(t, parseRecord(t, recordOf(t, failingTests(t), pipelines.Config{})).Stages[1].Seed)
	assert.Equal(t, "42", parseRecord(t, recordOf(t, failingTests(t), pipelines.Config{Shuffle: "42"})).Stages[1].Seed)
}

func TestConfigOrigins(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, pipelines.ConfigFile), []byte("race: false\nsmoke: {memory: 1GiB}\nprofiles:\n  dev:\n    tags: [dev]\n    race: true\n"), 0o600))
	assert.Equal(t, map[string]string{"race": "slipway.yaml", "smoke.memory": "slipway.yaml", "profiles": "slipway.yaml"}, pipelines.ConfigOrigins(dir, ""))
	assert.Equal(t, map[string]string{"race": "profile dev", "tags": "profile dev", "smoke.memory": "slipway.yaml", "profiles": "slipway.yaml"}, pipelines.ConfigOrigins(dir, "dev"))
	assert.Empty(t, pipelines.ConfigOrigins(t.TempDir(), ""))
}

func TestParseRecordErrors(t *testing.T) {
	good := recordOf(t, failingTests(t, "TestBad"), pipelines.Config{})
	edit := func(old, new string) string {
		require.True(t, strings.Contains(string(good), old), old)
		return strings.Replace(string(good), old, new, 1)
	}
	const asWritten = "as it was written"
	for name, c := range map[string]struct {
		text  string
		parts []string
	}{
		"empty":              {"", []string{"run record run.json is cut off after 0 bytes", asWritten}},
		"truncated":          {string(good[:len(good)/2]), []string{"run record run.json is cut off after", asWritten}},
		"not JSON":           {"verdict: failed\n", []string{"run record run.json cannot be read: invalid character 'v'", asWritten}},
		"something else":     {"{}", []string{"has schema 0, this slipway reads 1", asWritten}},
		"newer":              {`{"schema": 2, "stages": {}}`, []string{"run.json has schema 2, this slipway reads 1", "as new as the one that wrote it"}},
		"two":                {string(good) + string(good), []string{"cannot be read: invalid character '{' after top-level value", asWritten}},
		"unknown key":        {edit(`"started": `, `"begun": `), []string{`unknown field "begun"`}},
		"wrong type":         {edit(`"stages": [`, `"stages": ["plan", `), []string{"cannot be read: cannot unmarshal string into stages", asWritten}},
		"unknown stage":      {edit(`"name": "test"`, `"name": "tests"`), []string{`is not as slipway wrote it: stages[1]: there is no stage "tests"`}},
		"null stage":         {edit(`"stages": [`, `"stages": [null, `), []string{`stages[0]: there is no stage ""`}},
		"verdict of a stage": {edit(`"verdict": "passed"`, `"verdict": "good"`), []string{`the verdict of stage plan is "good"`}},
		"verdict of the run": {edit(`"verdict": "failed"`, `"verdict": "passed"`), []string{`its verdict is "passed", which its stages do not say`}},
		"no plan":            {edit(`"plan": {`, `"pla": {`), []string{`cannot be read: unknown field "pla"`}},
		"null plan":          {`{"schema": 1, "plan": null}`, []string{"slipway, engine, config, lock or plan is missing"}},
		"lock":               {edit("\"lock\": {\n    \"schema\": 1", "\"lock\": {\n    \"schema\": 9"), []string{"lock has schema 9"}},
		"digest":             {edit(`"digest": "sha256:`, `"digest": "sha256:zz`), []string{"plan.source.digest is"}},
		"commit":             {edit(`"source": {`, `"source": {"commit": "--upload-pack=x", `), []string{`plan.source.commit is "--upload-pack=x"`}},
		"release":            {edit(`"build_release": "1.22.10"`, `"build_release": "1.27.4"`), []string{`plan.build_release "1.27.4" is none of plan.releases`}},
		"configuration":      {edit(`"race": false`, `"rase": false`), []string{`unknown key "rase"`}},
		"value":              {edit(`"timeout": "10m0s"`, `"timeout": "soon"`), []string{`"soon" is not a duration`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pipelines.ParseRecord("run.json", []byte(c.text))
			requireFault(t, err, fault.Usage, c.parts...)
			assert.NotContains(t, err.Error(), "pipelines.", "no Go types in messages")
			assert.NotContains(t, err.Error(), "Go struct")
		})
	}
	_, err := pipelines.ReadRecord(filepath.Join(t.TempDir(), "run.json"))
	requireFault(t, err, fault.Usage, "run record ", "no such file or directory")
	_, err = pipelines.ReadRecord("oci:" + filepath.Join(t.TempDir(), "image"))
	requireFault(t, err, fault.Usage, "run record oci:", "no such file or directory")
}

func FuzzParseRecord(f *testing.F) {
	record := recordForFuzz(f)
	for _, seed := range [][]byte{record, record[:len(record)/2], []byte("{}"), []byte("null"), []byte(`{"schema":1}`), []byte(`{"schema":2}`)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := pipelines.ParseRecord("run.json", text)
		if err != nil {
			require.Equal(t, fault.Usage, fault.Of(err))
			require.ErrorContains(t, err, "run record run.json ")
			return
		}
		e := pipelines.Explain(r, r)
		require.Empty(t, e.Inputs)
		if x, err := pipelines.Reproduce(r); err == nil {
			got, err := x.Compare(r)
			require.NoError(t, err)
			require.Equal(t, pipelines.SameFailure, got.Outcome)
			require.Empty(t, got.Missing)
		}
		written, err := json.Marshal(r)
		require.NoError(t, err)
		_, err = pipelines.ParseRecord("run.json", written)
		require.NoError(t, err)
	})
}

func recordForFuzz(f *testing.F) []byte {
	e := goModule("1.20")
	e.answer = func(c engine.Command) (*engine.Result, error) {
		if c.Args[1] == "test" {
			return testAnswer(c, []byte(events("example.com/hello", "fail", "", [3]string{"TestBad", "fail", "no"})), nil, "")
		}
		return nil, nil
	}
	output := filepath.Join(f.TempDir(), "dist")
	p, err := pipelines.New(f.Context(), e, pipelines.Config{GoVersions: []string{"1.22"}}, pipelines.Options{Output: output})
	require.NoError(f, err)
	_, err = p.Test(f.Context())
	require.NoError(f, err)
	_, err = p.Finish()
	require.NoError(f, err)
	text, err := os.ReadFile(filepath.Join(output, "run.json"))
	require.NoError(f, err)
	return bytes.TrimSpace(text)
}
