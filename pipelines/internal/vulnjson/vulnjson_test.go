package vulnjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/internal/vulnjson"
)

// What govulncheck v1.8.0 said of testdata/hello of the repository and a database with two invented entries.
func TestRecorded(t *testing.T) {
	f, err := os.Open(filepath.Join("testdata", "hello.json"))
	require.NoError(t, err)
	defer f.Close()
	r, err := vulnjson.Parse(f)
	require.NoError(t, err)
	assert.Equal(t, &vulnjson.Report{
		Scanner:  "govulncheck v1.8.0",
		Modified: time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC),
		Vulnerabilities: []vulnjson.Vulnerability{
			{
				ID: "GO-2026-9001", Summary: "Invented: serving is dangerous", Module: "stdlib", Found: "v1.22.12", Fixed: "v99.0.0", Level: vulnjson.Called,
				Symbols: []string{"http.Server.Serve"}, Trace: []string{"hello.main calls hello.serve (main.go:32)", "hello.serve calls http.Server.Serve (main.go:51)"},
				File: "main.go", Line: 51,
			},
			{ID: "GO-2026-9002", Summary: "Invented: pflag", Module: "github.com/spf13/pflag", Found: "v1.0.10", Fixed: "v1.0.99", Level: vulnjson.Imported},
		},
	}, r)
}

const header = `{"config":{"protocol_version":"v1.0.0","scanner_name":"govulncheck","db_last_modified":"2026-11-01T00:00:00Z"}}`

func parse(t *testing.T, messages ...string) []vulnjson.Vulnerability {
	t.Helper()
	r, err := vulnjson.Parse(strings.NewReader(header + strings.Join(messages, "\n")))
	require.NoError(t, err)
	return r.Vulnerabilities
}

func frame(module, pkg, receiver, function, file string, line int) string {
	b, err := json.Marshal(map[string]any{
		"module": module, "version": "v1.0.0", "package": pkg, "receiver": receiver, "function": function, "position": map[string]any{"filename": file, "line": line},
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

func finding(id string, frames ...string) string {
	return fmt.Sprintf(`{"finding":{"osv":%q,"fixed_version":"v1.2.3","trace":[%s]}}`, id, strings.Join(frames, ","))
}

func TestNothing(t *testing.T) {
	assert.Empty(t, parse(t))
	assert.Empty(t, parse(t, `{"SBOM":{"modules":[]}}`, `{"progress":{"message":"..."}}`, `{"osv":{"id":"GO-1","summary":"no finding names it"}}`, `{"unknown":1}`))
}

// Whatever order the findings come in, the shortest way is told, and of equally short ones always the same.
func TestShortestTrace(t *testing.T) {
	end := frame("m.example/v3", "m.example/v3/codec/v2", "*Decoder", "Read", "codec/v2/d.go", 9)
	long := finding("GO-1", end, frame("app", "app/x", "", "b", "x/b.go", 2), frame("app", "app", "", "main", "main.go", 3))
	short := finding("GO-1", end, frame("app", "app", "", "main", "main.go", 7))
	other := finding("GO-1", frame("m.example/v3", "m.example/v3/codec/v2", "", "Other", "codec/v2/d.go", 20), frame("app", "app", "", "main", "main.go", 8))
	for _, order := range [][]string{{long, short, other}, {other, short, long}, {short, long, other}} {
		v := parse(t, order...)
		require.Len(t, v, 1)
		assert.Equal(t, []string{"app.main calls codec.Decoder.Read (main.go:7)"}, v[0].Trace)
		assert.Equal(t, []string{"codec.Decoder.Read", "codec.Other"}, v[0].Symbols)
		assert.Equal(t, "main.go", v[0].File)
		assert.Equal(t, 7, v[0].Line)
	}
}

// The place to look at is the last one in the program's own module.
func TestPlaceOfCall(t *testing.T) {
	v := parse(t, finding("GO-1",
		frame("m", "m/deep", "", "F", "deep/f.go", 1), frame("app", "app", "", "callback", "cb.go", 5), frame("lib", "lib", "", "Walk", "walk.go", 70),
		frame("app", "app/cmd", "", "run", "cmd/run.go", 12), frame("app", "app/cmd", "", "main", "cmd/main.go", 3)))
	assert.Equal(t, "cmd/run.go", v[0].File)
	assert.Equal(t, 12, v[0].Line)
	assert.Equal(t, []string{"cmd.main calls cmd.run (cmd/main.go:3)", "cmd.run calls lib.Walk (cmd/run.go:12)", "lib.Walk calls app.callback (walk.go:70)", "app.callback calls deep.F (cb.go:5)"}, v[0].Trace)
}

// Directories of one machine are nobody's business.
func TestNoAbsolutePath(t *testing.T) {
	for _, name := range []string{"/home/user/app/main.go", `C:\Users\user\main.go`, "../../home/user/main.go"} {
		v := parse(t, finding("GO-1", frame("m", "m", "", "F", "f.go", 1), frame("app", "app", "", "main", name, 3)))
		assert.Equal(t, []string{"app.main calls m.F (main.go:3)"}, v[0].Trace)
		assert.Equal(t, "main.go", v[0].File)
	}
}

// One entry may be about several modules, and one module may come with several levels.
func TestGroups(t *testing.T) {
	v := parse(t,
		`{"osv":{"id":"GO-2","aliases":["GHSA-b","CVE-a"],"details":"no summary\nbut details"}}`,
		finding("GO-2", `{"module":"b","version":"v1.0.0"}`), finding("GO-2", `{"module":"b","version":"v1.0.0","package":"b/p"}`),
		finding("GO-2", `{"module":"a","version":"v1.0.0"}`), finding("GO-1", `{"module":"b","version":"v1.0.0"}`),
		finding("GO-3", frame("c", "c", "", "init", "", 0)))
	var got []string
	for _, x := range v {
		got = append(got, x.ID+" "+x.Module+" "+string(x.Level))
	}
	assert.Equal(t, []string{"GO-1 b required", "GO-2 a required", "GO-2 b imported", "GO-3 c called"}, got)
	assert.Equal(t, "no summary but details", v[1].Summary)
	assert.Equal(t, []string{"CVE-a", "GHSA-b"}, v[1].Aliases)
	assert.Equal(t, []string{"c.init is part of the program"}, v[3].Trace)
	assert.Empty(t, v[0].Summary, "an entry that was not described is no reason to drop a finding")
}

// What is not whole says nothing: it must not look like a run that found nothing.
func TestNotWhole(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"text":          "No vulnerabilities found.",
		"no config":     `{"progress":{"message":"Checking"}}`,
		"cut":           header + `{"osv":{"id":`,
		"array":         header + "[]",
		"wrong type":    header + `{"finding":{"osv":1}}`,
		"two reports":   header + header,
		"protocol":      `{"config":{"protocol_version":"v2.0.0"}}`,
		"no protocol":   `{"config":{}}`,
		"no trace":      header + `{"finding":{"osv":"GO-1"}}`,
		"no module":     header + `{"finding":{"osv":"GO-1","trace":[{}]}}`,
		"no id":         header + `{"finding":{"trace":[{"module":"m"}]}}`,
		"text after it": header + "\nexit status 1",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := vulnjson.Parse(strings.NewReader(text))
			require.Error(t, err)
			assert.Contains(t, err.Error(), "govulncheck")
		})
	}
	r, err := vulnjson.Parse(strings.NewReader(`{"config":{"protocol_version":"v1.1.0"}}`))
	require.NoError(t, err)
	assert.True(t, r.Modified.IsZero(), "the database did not answer")
}

func TestBounds(t *testing.T) {
	var frames []string
	for i := range 1000 {
		frames = append(frames, frame("app", "app", "", fmt.Sprint("f", i), "main.go", i+1))
	}
	v := parse(t, fmt.Sprintf(`{"osv":{"id":"GO-1","summary":%q}}`, strings.Repeat("ü ", 100_000)), finding("GO-1", frames...))
	require.Len(t, v, 1)
	assert.Len(t, v[0].Trace, 41)
	assert.Equal(t, "[959 calls cut]", v[0].Trace[20])
	assert.Equal(t, "app.f1 calls app.f0 (main.go:2)", v[0].Trace[40])
	assert.Less(t, utf8.RuneCountInString(v[0].Summary), 500)
}

func TestCheck(t *testing.T) {
	good := map[string]string{"index/db.json": `{"modified":"2026-11-01T00:00:00Z"}`, "index/modules.json": `[{"path":"m","vulns":[{"id":"GO-1"}]}]`}
	for name, c := range map[string]struct{ file, text, want string }{
		"good":         {"index/other", "", ""},
		"no entries":   {"index/modules.json", "[]", ""},
		"no db":        {"index/db.json", "-", "index/db.json: missing"},
		"no time":      {"index/db.json", "{}", "tells no time of change"},
		"db cut":       {"index/db.json", `{"mod`, "index/db.json: unexpected end"},
		"no modules":   {"index/modules.json", "-", "index/modules.json: missing"},
		"modules cut":  {"index/modules.json", "[", "index/modules.json: unexpected end"},
		"modules null": {"index/modules.json", "null", "holds no list"},
		"no path":      {"index/modules.json", `[{"vulns":[]}]`, "by nothing"},
		"no entry":     {"index/modules.json", `[{"path":"m","vulns":[{}]}]`, "by nothing"},
		"page":         {"index/modules.json", "<html>", "index/modules.json: invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			err := vulnjson.Check(func(file string) ([]byte, error) {
				text := good[file]
				if file == c.file {
					text = c.text
				}
				if text == "-" {
					return nil, errors.New("missing")
				}
				return []byte(text), nil
			})
			if c.want == "" {
				assert.NoError(t, err)
			} else {
				assert.ErrorContains(t, err, c.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	b, err := os.ReadFile(filepath.Join("testdata", "hello.json"))
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte(header + finding("GO-1", frame("m", "m", "*T", "F", `C:\f.go`, 1), frame("app", "app/v2", "", "main", "/m.go", 3))))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := vulnjson.Parse(bytes.NewReader(text))
		if err != nil {
			return
		}
		again, err := vulnjson.Parse(bytes.NewReader(text))
		require.NoError(t, err)
		assert.Equal(t, r, again, "the same every time")
		for _, v := range r.Vulnerabilities {
			assert.LessOrEqual(t, len(v.Trace), 41)
			assert.Equal(t, v.Level == vulnjson.Called, len(v.Trace) > 0)
			assert.Equal(t, v.Level == vulnjson.Called, len(v.Symbols) > 0)
			assert.False(t, filepath.IsAbs(v.File), v.File)
			for _, line := range slices.Concat(v.Trace, v.Symbols, v.Aliases, []string{v.ID, v.Summary, v.Module, v.Found, v.Fixed, v.File}) {
				assert.True(t, utf8.ValidString(line))
				assert.NotContains(t, line, "\n")
			}
		}
	})
}
