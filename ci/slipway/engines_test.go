package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var onDagger = flag.Bool("dagger", false, "run the tests that need a Dagger engine")

// TestEnginesAgree runs the main job on the sample and on programs of other people, with both engines: same
// verdicts, same binaries, same image digest.
func TestEnginesAgree(t *testing.T) {
	if !*onDagger {
		t.Skip("needs a Dagger engine: make test-dagger")
	}
	slipway := filepath.Join(t.TempDir(), "slipway")
	out, err := exec.Command("go", "build", "-o", slipway, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, p := range []struct {
		name, module string
		args         []string
	}{
		{"hello", "", nil},
		{"age", "filippo.io/age@v1.2.1", []string{"--go-versions=1.22.12", "--commands=age", "--platforms=linux/amd64,linux/arm64"}},
		{"hey", "github.com/rakyll/hey@v0.1.4", []string{"--go-versions=1.22.12", "--vet-checks=vet,verify"}},
	} {
		t.Run(p.name, func(t *testing.T) {
			run := func(engine string) (code int, record map[string]any, dist string) {
				source := t.TempDir()
				copyProgram(t, p.module, source)
				dist = filepath.Join(t.TempDir(), "dist")
				c := exec.CommandContext(t.Context(), slipway, append([]string{"all", "--source=" + source, "--output=" + dist, "--engine=" + engine}, p.args...)...)
				out, err := c.CombinedOutput()
				code = c.ProcessState.ExitCode()
				require.Contains(t, []int{0, 1}, code, "%v: %s", err, out)
				b, err := os.ReadFile(filepath.Join(dist, "run.json"))
				require.NoError(t, err, "%s", out)
				require.NoError(t, json.Unmarshal(b, &record))
				return code, record, dist
			}
			hostCode, host, hostDist := run("host")
			daggerCode, dagger, daggerDist := run("dagger")
			assert.Equal(t, hostCode, daggerCode, "exit codes")
			for _, name := range []string{"SHA256SUMS", "image/index.json"} {
				want, err := os.ReadFile(filepath.Join(hostDist, filepath.FromSlash(name)))
				require.NoError(t, err)
				got, err := os.ReadFile(filepath.Join(daggerDist, filepath.FromSlash(name)))
				require.NoError(t, err)
				assert.Equal(t, string(want), string(got), name)
			}
			assert.Equal(t, "host", host["engine"])
			assert.Equal(t, "dagger", dagger["engine"])
			assert.Equal(t, withoutEngine(host), withoutEngine(dagger), "run records")
		})
	}
}

var smokeDetail = regexp.MustCompile(` after \d+ ms| \((runc|crun|namespaces|service)\)`)

// withoutEngine is a run record without what may differ between engines: their names, versions and environments, times
// and the files that hold them, how toolchains come, and how the smoke run is isolated. Tasks are in the order in which they ended.
func withoutEngine(v any) any {
	switch v := v.(type) {
	case string:
		// What a smoke run says of itself ends with how it was isolated, and holds times.
		return smokeDetail.ReplaceAllString(v, "")
	case map[string]any:
		kept := map[string]any{}
		for key, x := range v {
			switch key {
			case "engine", "started_ms", "elapsed_ms", "checksum", "verified_by", "isolation", "time", "started", "max_memory", "ready_ms", "starts_us", "stopped_ms",
				"engine_version", "environment", "lock", "test.json", "junit.xml", "provenance.json":
			default:
				kept[key] = withoutEngine(x)
			}
		}
		return kept
	case []any:
		var kept []any
		for _, x := range v {
			kept = append(kept, withoutEngine(x))
		}
		slices.SortStableFunc(kept, func(a, b any) int {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			return bytes.Compare(x, y)
		})
		return kept
	}
	return v
}

// copyProgram copies a module, or the sample if it is empty.
func copyProgram(t *testing.T, module, dir string) {
	from := filepath.Join("..", "..", "testdata", "hello")
	if module != "" {
		c := exec.Command("go", "mod", "download", "-json", module)
		c.Dir = dir
		out, err := c.Output()
		require.NoError(t, err, "%s", out)
		var m struct{ Dir string }
		require.NoError(t, json.Unmarshal(out, &m))
		from = m.Dir
	}
	require.NoError(t, os.CopyFS(dir, os.DirFS(from)))
	git := func(args ...string) {
		c := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=test", "-c", "user.email=test@example.com"}, args...)...)
		c.Env = append(os.Environ(), "GIT_AUTHOR_DATE=2024-05-01T12:00:00Z", "GIT_COMMITTER_DATE=2024-05-01T12:00:00Z")
		out, err := c.CombinedOutput()
		require.NoError(t, err, "git %s: %s", strings.Join(args, " "), out)
	}
	git("init", "-q")
	git("add", "-A")
	git("commit", "-q", "-m", "program")
}
