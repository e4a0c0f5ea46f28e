package pipelines_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

func TestParseConfig(t *testing.T) {
	yes := true
	for name, c := range map[string]struct {
		text string
		want pipelines.Config
	}{
		"empty":                   {"", pipelines.Config{}},
		"blank":                   {"\n\n", pipelines.Config{}},
		"comments":                {"# nothing yet\n# but comments\n", pipelines.Config{}},
		"marker":                  {"---\n", pipelines.Config{}},
		"null values":             {"platforms:\nsmoke:\nrebuild:\n", pipelines.Config{}},
		"releases are no numbers": {"go-versions: [1.20, '1.21', 1.22]\n", pipelines.Config{GoVersions: []string{"1.20", "1.21", "1.22"}}},
		"everything": {`
go-versions: [minimum, stable]
platforms:
  - linux/amd64
  - linux/arm/v7
modules: [., tools]
packages: [./cmd/...]
commands: [hello]
tags: [netgo]
ldflags: -X main.version=1.2.3
race: true
cgo: true
shuffle: on
timeout: 1m30s
vet-checks: [vet]
vuln: check
vuln-mode: binary
vuln-db: https://db.example
rebuild: true
base: gcr.io/distroless/static-debian12:nonroot
entrypoint: hello
args: [--port, "8080"]
user: "1000"
env: {PORT: 8080, DEBUG: true, EMPTY: }
ports: [8080, 53/udp]
labels:
  org.example.team: blue
certificates: true
timezones: [Europe/Berlin]
accounts: true
tmp: true
smoke:
  isolation: runc
  deadline: 5s
  stop: 3s
  memory: 64MiB
  processes: 10
  env: {A: b}
  probes:
    - args: [--version]
      exit-code: 2
      output: ^hello
    - http: /healthz
      port: 8080
      status: 204
to: [embedded]
output: out
parallel: 3
`, pipelines.Config{
			GoVersions: []string{"minimum", "stable"}, Platforms: []string{"linux/amd64", "linux/arm/v7"}, Modules: []string{".", "tools"}, Packages: []string{"./cmd/..."},
			Commands: []string{"hello"}, Tags: []string{"netgo"}, LDFlags: "-X main.version=1.2.3", Race: true, CGO: true, Shuffle: "on", Timeout: 90 * time.Second,
			VetChecks: []string{"vet"}, Vuln: "check", VulnMode: "binary", VulnDB: "https://db.example", Rebuild: &yes, Base: "gcr.io/distroless/static-debian12:nonroot", Entrypoint: "hello", Args: []string{"--port", "8080"}, User: "1000",
			Env: map[string]string{"PORT": "8080", "DEBUG": "true", "EMPTY": ""}, Ports: []string{"8080", "53/udp"}, Labels: map[string]string{"org.example.team": "blue"},
			Certificates: &yes, Timezones: []string{"Europe/Berlin"}, Accounts: &yes, Tmp: &yes,
			Smoke: pipelines.Smoke{Isolation: "runc", Deadline: 5 * time.Second, Stop: 3 * time.Second, Memory: "64MiB", Processes: 10, Env: map[string]string{"A": "b"}, Probes: []pipelines.Probe{
				{Args: []string{"--version"}, ExitCode: 2, Output: "^hello"}, {HTTP: "/healthz", Port: 8080, Status: 204},
			}},
			To: []string{"embedded"}, Output: "out", Parallel: 3,
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := pipelines.ParseConfig("slipway.yaml", []byte(c.text), "")
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func TestParseConfigErrors(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		parts []string
	}{
		"unknown key":          {"# comment\nplatform: [linux/amd64]\n", []string{`slipway.yaml:2: unknown key "platform"`, `Did you mean "platforms"?`}},
		"unknown, far":         {"zzzzzzzzzzzz: 1\n", []string{`slipway.yaml:1: unknown key "zzzzzzzzzzzz"`, "There are: accounts, args, base"}},
		"capitals":             {"Race: true\n", []string{`slipway.yaml:1: unknown key "Race"`, `Did you mean "race"?`}},
		"nested":               {"race: true\nsmoke:\n  memroy: 1GiB\n", []string{`slipway.yaml:3: unknown key "memroy"`, `Did you mean "memory"?`}},
		"in a list":            {"smoke:\n  probes:\n    - args: [-h]\n      exit_code: 2\n", []string{`slipway.yaml:4: unknown key "exit_code"`, `Did you mean "exit-code"?`}},
		"behind an alias":      {"env: &a {unheard-of: x}\nsmoke: *a\n", []string{`unknown key "unheard-of"`}},
		"merge key":            {"env: &a {x: y}\nsmoke:\n  <<: *a\n", []string{`slipway.yaml:3: unknown key "<<"`}},
		"number for list":      {"\ngo-versions: 1.22\n", []string{`slipway.yaml:2: "1.22" is not a list such as [a, b]`}},
		"text for number":      {"parallel: many\n", []string{`slipway.yaml:1: "many" is not a whole number`}},
		"fraction":             {"parallel: 1.5\n", []string{`slipway.yaml:1: "1.5" is not a whole number`}},
		"text for bool":        {"race: sometimes\n", []string{`slipway.yaml:1: "sometimes" is not true or false`}},
		"list for text":        {"base: [scratch]\n", []string{"slipway.yaml:1: this is not a text"}},
		"number for duration":  {"timeout: 30\n", []string{`slipway.yaml:1: "30" is not a duration such as 30s`}},
		"text for duration":    {"smoke:\n  stop: soon\n", []string{`slipway.yaml:2: "soon" is not a duration such as 30s`}},
		"list for mapping":     {"env: [A=b]\n", []string{"slipway.yaml:1: this is not a mapping such as {a: b}"}},
		"text for mapping":     {"smoke: off\n", []string{`slipway.yaml:1: "off" is not a mapping of keys such as {isolation: off}`}},
		"key of a block":       {"repeat: 3\n", []string{`slipway.yaml:1: unknown key "repeat"`, "Its place is smoke: {repeat: ...}."}},
		"text for probes":      {"smoke:\n  probes: /healthz\n", []string{`slipway.yaml:2: "/healthz" is not a list`}},
		"mapping for list":     {"to: {a: b}\n", []string{"slipway.yaml:1: this is not a list such as [a, b]"}},
		"not a mapping":        {"just a text\n", []string{`slipway.yaml:1: "just a ..." is not a mapping of keys`}},
		"list":                 {"- race\n", []string{"slipway.yaml:1: this is not a mapping of keys"}},
		"twice":                {"race: true\ncgo: true\nrace: false\n", []string{`slipway.yaml:3: `, `"race" already defined at line 1`}},
		"syntax":               {"race: true\n  cgo: [\n", []string{"slipway.yaml:2: "}},
		"tab":                  {"smoke:\n\tmemory: 1\n", []string{"slipway.yaml:2: "}},
		"not UTF-8":            {"base: \xff\xfe\n", []string{"slipway.yaml: "}},
		"unknown alias":        {"race: *x\n", []string{"slipway.yaml: ", "unknown anchor 'x'"}},
		"endless":              {"env: &a\n  x: *a\n", []string{"slipway.yaml:1: this is not a text"}},
		"second document":      {"race: true\n---\ncgo: true\n", []string{"slipway.yaml:2: ", "more than one document"}},
		"two wrong":            {"race: maybe\nparallel: many\n", []string{`slipway.yaml:1: "maybe" is not true or false`}},
		"long text":            {"parallel: " + strings.Repeat("x", 100) + "\n", []string{"is not a whole number"}},
		"with a quote":         {"parallel: \"a `quoted` \\\"word\\\"\"\n", []string{"slipway.yaml:1: ", "is not a whole number"}},
		"number for a mapping": {"labels: {a: [b]}\n", []string{"slipway.yaml:1: this is not a text"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pipelines.ParseConfig("slipway.yaml", []byte(c.text), "")
			requireFault(t, err, fault.Usage, c.parts...)
			assert.NotContains(t, err.Error(), "unmarshal", "these are words of a library")
			assert.NotContains(t, err.Error(), "!!")
			assert.NotContains(t, err.Error(), "pipelines.")
		})
	}
}

func TestConfigurationIsChecked(t *testing.T) {
	for name, c := range map[string]struct {
		config pipelines.Config
		parts  []string
	}{
		"platform":         {pipelines.Config{Platforms: []string{"linux"}}, []string{`"linux" is not a platform`, "linux/arm/v7"}},
		"shuffle":          {pipelines.Config{Shuffle: "yes"}, []string{`shuffle: "yes" is not off, on or a number`}},
		"timeout":          {pipelines.Config{Timeout: -time.Second}, []string{"timeout: -1s is negative"}},
		"smoke deadline":   {pipelines.Config{Smoke: pipelines.Smoke{Deadline: -1}}, []string{"smoke.deadline: -1ns is negative"}},
		"smoke stop":       {pipelines.Config{Smoke: pipelines.Smoke{Stop: -1}}, []string{"smoke.stop: -1ns is negative"}},
		"memory":           {pipelines.Config{Smoke: pipelines.Smoke{Memory: "12Q"}}, []string{`smoke.memory: "12Q" is not a size`, "256MiB"}},
		"parallel":         {pipelines.Config{Parallel: -1}, []string{"parallel: -1 is negative"}},
		"vet check":        {pipelines.Config{VetChecks: []string{"gofm"}}, []string{`vet-checks: there is no check "gofm"`, `Did you mean "gofmt"?`}},
		"base":             {pipelines.Config{Base: "Not A Reference"}, []string{"base: ", "scratch"}},
		"target":           {pipelines.Config{To: []string{"Not A Reference"}}, []string{"to: "}},
		"port":             {pipelines.Config{Ports: []string{"http"}}, []string{`ports: "http" is not a port`, "53/udp"}},
		"port, too large":  {pipelines.Config{Ports: []string{"65536"}}, []string{`ports: "65536" is not a port`}},
		"probe, pattern":   {pipelines.Config{Smoke: pipelines.Smoke{Probes: []pipelines.Probe{{}, {Output: "("}}}}, []string{"smoke.probes[1].output: ", "missing closing"}},
		"probe, path":      {pipelines.Config{Smoke: pipelines.Smoke{Probes: []pipelines.Probe{{HTTP: "healthz"}}}}, []string{`smoke.probes[0].http: "healthz" does not begin with a slash`}},
		"probe, both":      {pipelines.Config{Smoke: pipelines.Smoke{Probes: []pipelines.Probe{{HTTP: "/", ExitCode: 1}}}}, []string{"smoke.probes[0]: args and exit-code belong to a one-shot probe"}},
		"probe, no http":   {pipelines.Config{Smoke: pipelines.Smoke{Probes: []pipelines.Probe{{Status: 200}}}}, []string{"smoke.probes[0]: status, headers and port belong to an http probe"}},
		"probe, port":      {pipelines.Config{Smoke: pipelines.Smoke{Probes: []pipelines.Probe{{HTTP: "/", Port: 70000}}}}, []string{"smoke.probes[0].port: 70000 is not a port"}},
		"module":           {pipelines.Config{Modules: []string{"tools"}}, []string{"there is no tools/go.mod"}},
		"module, outside":  {pipelines.Config{Modules: []string{"../x"}}, []string{"module ../x is outside of the source"}},
		"command":          {pipelines.Config{Commands: []string{"helo"}}, []string{`there is no command "helo"`, `Did you mean "hello"?`}},
		"smoke, processes": {pipelines.Config{Smoke: pipelines.Smoke{Processes: -1}}, []string{"smoke.processes: -1 is negative"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := goModule("1.20")
			_, err := newPipeline(t, f, c.config)
			requireFault(t, err, fault.Usage, c.parts...)
		})
	}
}
