package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

// TestRealPrograms runs the main job on programs that were not made for slipway.
func TestRealPrograms(t *testing.T) {
	env := append(goEnv(t), "HOME="+t.TempDir(), "PATH="+os.Getenv("PATH"), "SLIPWAY_CACHE="+t.TempDir())
	for name, program := range map[string]struct {
		module string
		// config is the slipway.yaml, none if empty.
		config   string
		flags    []string
		commands []string
		tests    int
		smoke    string
	}{
		"several commands": {
			module: "filippo.io/age@v1.3.2",
			// Without internal/stream: its tests alone take more than a minute.
			flags:    []string{"--entrypoint=age", "--packages=.,./agessh,./armor,./cmd/...,./plugin,./tag/..."},
			commands: []string{"age", "age-inspect", "age-keygen", "age-plugin-batchpass"},
			tests:    500,
			smoke:    "printed its usage and ended with exit code 1",
		},
		"one command in the root": {
			module: "github.com/rakyll/hey@v0.1.5",
			// Two of its files are not formatted.
			flags:    []string{"--rebuild=false", "--vet-checks=vet,tidy,verify"},
			commands: []string{"hey"},
			tests:    9,
			smoke:    "printed its usage and ended with exit code 1",
		},
		"service": {
			module:   "github.com/mccutchen/go-httpbin/v2@v2.26.0",
			flags:    []string{"--rebuild=false"},
			commands: []string{"go-httpbin"},
			tests:    1000,
			smoke:    "accepts connections on port 8080",
		},
		"service with probes": {
			module:   "github.com/mccutchen/go-httpbin/v2@v2.26.0",
			config:   "smoke:\n  probes:\n    - {http: /status/204, status: 204}\n    - http: /get?name=value\n      output: '\"name\": *\\['\n",
			flags:    []string{"--rebuild=false", "--packages=./cmd/..."},
			commands: []string{"go-httpbin"},
			smoke:    "GET /get?name=value answered 200",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := download(t, env, program.module)
			if program.config != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, pipelines.ConfigFile), []byte(program.config), 0o644))
			}
			flags := append([]string{"all", "--source=" + dir, "--go-versions=1.26.11", "--to=embedded"}, program.flags...)
			if runtime.GOOS != "linux" {
				flags = append(flags, "--smoke=off") // images run on Linux only
			}
			cmd := exec.Command("slipway", flags...)
			cmd.Env = env
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)

			var r pipelines.Record
			readJSON(t, filepath.Join(dir, "dist", "run.json"), &r)
			require.Equal(t, pipelines.Passed, r.Verdict)
			var commands []string
			for _, b := range r.Binaries {
				commands = append(commands, b.Name)
				require.NotEqual(t, b.FullSHA256, b.SHA256)
				require.False(t, b.Dynamic)
			}
			require.Equal(t, program.commands, commands)
			require.Len(t, r.Published, 1)
			require.Equal(t, r.Image.Digest, r.Published[0].Digest)
			if r.Smoke != nil && runtime.GOOS == "linux" {
				require.Equal(t, pipelines.Passed, r.Smoke.Verdict)
				require.Contains(t, r.Smoke.Runs[0].Detail, program.smoke)
			}
			var tests pipelines.TestResult
			readJSON(t, filepath.Join(dir, "dist", "test.json"), &tests)
			require.GreaterOrEqual(t, tests.Legs[0].Passed, program.tests)
		})
	}
}

// download copies a module from the Go module proxy into a directory that can be written.
func download(t *testing.T, env []string, module string) string {
	cmd := exec.Command("go", "mod", "download", "-json", module)
	cmd.Dir, cmd.Env = t.TempDir(), slices.Concat(env, []string{"GOFLAGS=", "GOWORK=off"})
	out, err := cmd.Output()
	var m struct{ Dir, Error string }
	if json.Unmarshal(out, &m) != nil || err != nil || m.Dir == "" {
		t.Skipf("the Go module proxy is out of reach: %s cannot be fetched: %v %s", module, err, m.Error)
	}
	dir := filepath.Join(t.TempDir(), "source")
	require.NoError(t, os.CopyFS(dir, os.DirFS(m.Dir)))
	return dir
}

func readJSON(t *testing.T, name string, v any) {
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(b, v))
}
