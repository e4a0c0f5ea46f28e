package pipelines

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// ConfigFile is the name of the optional configuration file in the root of a source tree.
const ConfigFile = "slipway.yaml"

// Config says what a pipeline does. Keys of slipway.yaml, command-line flags and Dagger arguments of one
// thing have the same name. The zero value of every field means its default.
type Config struct {
	// Engine is where commands run: "host" or "dagger". Whoever opens the engine goes by it; the pipeline
	// itself does not. Default: host.
	Engine string `yaml:"engine"`
	// GoImage is the repository that the dagger engine takes the golang images from, such as a mirror's.
	// Default: golang.
	GoImage string `yaml:"go-image"`
	// GoVersions are the Go releases to vet and test with: "1.22" (its newest patch release, pinned in the
	// lock file), "1.22.5" (exactly that), "stable" and "oldstable" (the two that the Go project supports),
	// "minimum" (that of the module's go line). Default: minimum, oldstable, stable. The newest of them builds.
	GoVersions []string `yaml:"go-versions"`
	// Platforms are built, as os/arch or os/arch/variant. Default: the platform of this machine if that
	// is Linux, else linux with this machine's architecture.
	Platforms []string `yaml:"platforms"`
	// Modules are the directories of the modules to work on. Default: those of go.work, else the root,
	// else every module in the tree.
	Modules []string `yaml:"modules"`
	// Packages are the package patterns that vet, test and build work on. Default: ./...
	Packages []string `yaml:"packages"`
	// Commands are the names of the main packages to build. Default: those in the root of a module and
	// below a directory cmd; if there are none, all.
	Commands []string `yaml:"commands"`
	// Tags are build tags.
	Tags []string `yaml:"tags"`
	// LDFlags are flags for the linker, such as "-X main.version=1.2.3".
	LDFlags string `yaml:"ldflags"`
	// Race tests with the race detector. It needs a C compiler.
	Race bool `yaml:"race"`
	// CGO lets builds and tests use cgo.
	CGO bool `yaml:"cgo"`
	// Shuffle is the order of tests: "off", "on", or the seed of an order. Default: off.
	Shuffle string `yaml:"shuffle"`
	// Timeout bounds the tests of one package. Default: 10m.
	Timeout time.Duration `yaml:"timeout"`
	// VetChecks are the checks of the vet stage: vet, gofmt, tidy, verify, vendor. Default: all.
	VetChecks []string `yaml:"vet-checks"`
	// Vuln says what known vulnerabilities mean: "off" (only the vuln stage by itself looks for them),
	// "check" (all looks too, and those that affect the program are failures), "require" (not having been
	// able to look is one as well). Default: off, as databases change while the source does not.
	Vuln string `yaml:"vuln"`
	// VulnMode is "source" (what packages call) or "binary" (what the linked programs hold). Default: source.
	VulnMode string `yaml:"vuln-mode"`
	// VulnDB is the vulnerability database: a URL, or a directory with a copy. Default: the public one,
	// https://vuln.go.dev.
	VulnDB string `yaml:"vuln-db"`
	// Rebuild builds everything a second time in another directory with an empty build cache and
	// compares. Default: true in all and verify.
	Rebuild *bool `yaml:"rebuild"`

	// Base is the base image: "scratch", a reference, or oci:DIR. Default: scratch.
	Base string `yaml:"base"`
	// Entrypoint is the name of the command that the image starts. Default: the only one, or the one
	// that is named like the module.
	Entrypoint string `yaml:"entrypoint"`
	// Args are the arguments that the image starts its entrypoint with.
	Args []string `yaml:"args"`
	// User is the user that the image runs as. Default: 65532:65532.
	User string `yaml:"user"`
	// Env are environment variables of the image.
	Env map[string]string `yaml:"env"`
	// Ports are the ports that the image exposes: "8080" or "53/udp".
	Ports []string `yaml:"ports"`
	// Labels are image labels, beside the standard ones.
	Labels map[string]string `yaml:"labels"`
	// Certificates puts the CA certificates into the image. Default: true on scratch, else false.
	Certificates *bool `yaml:"certificates"`
	// Timezones puts time zones into the image: "all", "none", or names. Default: all on scratch, else none.
	Timezones []string `yaml:"timezones"`
	// Accounts puts /etc/passwd and /etc/group with root and nonroot into the image. Default: true on
	// scratch, else false.
	Accounts *bool `yaml:"accounts"`
	// Tmp puts an empty /tmp into the image. Default: true on scratch, else false.
	Tmp *bool `yaml:"tmp"`

	// Smoke is how the image is tried.
	Smoke Smoke `yaml:"smoke"`

	// To is where publish pushes: references, oci:DIR, tar:FILE, or embedded.
	To []string `yaml:"to"`
	// Output is the directory for everything that a run writes. Default: dist.
	Output string `yaml:"output"`
	// Parallel bounds how many commands run at the same time. Default: what cores and memory allow.
	Parallel int `yaml:"parallel"`
}

// Smoke says how the finished image is tried.
type Smoke struct {
	// Isolation is "auto" (the best that the machine has), a kind that the engine names, or "off".
	Isolation string `yaml:"isolation"`
	// Probes are done in order. Without any, the image is started; it must end with exit code 0 or a
	// usage text, or stay, accept a connection where it listens, and stop when asked to.
	Probes []Probe `yaml:"probes"`
	// Env are further environment variables for the smoke run.
	Env map[string]string `yaml:"env"`
	// Deadline bounds the time until a service is ready and until a one-shot probe ends. Default: 10s.
	Deadline time.Duration `yaml:"deadline"`
	// Stop bounds the time from SIGTERM to the end. Default: 10s.
	Stop time.Duration `yaml:"stop"`
	// Memory is the memory limit, such as "256MiB". Default: 512MiB.
	Memory string `yaml:"memory"`
	// Processes is the limit of processes and threads. Default: 256.
	Processes int `yaml:"processes"`
}

// Probe is one question to the image. With HTTP it asks the running service, else it runs the
// entrypoint once with Args.
type Probe struct {
	// Args are the arguments of a one-shot run.
	Args []string `yaml:"args"`
	// ExitCode is the exit code that a one-shot run must have.
	ExitCode int `yaml:"exit-code"`
	// Output is a regular expression that the output or the HTTP body must match.
	Output string `yaml:"output"`
	// HTTP is the path to ask for, such as /healthz.
	HTTP string `yaml:"http"`
	// Port is the port to ask. Default: the only one of Ports, else the only one that listens.
	Port int `yaml:"port"`
	// Status is the HTTP status wanted. Default: 200.
	Status int `yaml:"status"`
}

// ReadConfig reads slipway.yaml in a directory, the root of a source. Paths in it are made absolute, for they
// are relative to that directory. Without the file, or without the directory, everything has its default.
func ReadConfig(dir string) (Config, error) {
	text, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if i, statErr := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || statErr == nil && !i.IsDir() {
		return Config{}, nil // what is wrong with a source the engine says
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	if err != nil {
		return Config{}, fault.Environmentf(err, "slipway must be able to read it.", "%s", ConfigFile)
	}
	c, err := ParseConfig(ConfigFile, text)
	c.SetDir(dir)
	return c, err
}

// SetDir makes the relative paths in c absolute, as paths below dir.
func (c *Config) SetDir(dir string) {
	local := func(s string) string {
		for _, kind := range []string{"oci:", "tar:"} {
			if path, ok := strings.CutPrefix(s, kind); ok && path != "" && !filepath.IsAbs(path) {
				return kind + filepath.Join(dir, path)
			}
		}
		return s
	}
	c.Base = local(c.Base)
	for i := range c.To {
		c.To[i] = local(c.To[i])
	}
	if c.VulnDB != "" && !isURL(c.VulnDB) && !filepath.IsAbs(c.VulnDB) {
		c.VulnDB = filepath.Join(dir, c.VulnDB)
	}
	if c.Output != "" && !filepath.IsAbs(c.Output) {
		c.Output = filepath.Join(dir, c.Output)
	}
}

// ParseConfig reads slipway.yaml. An unknown key is an error that names line and nearest known key.
// name stands in errors.
func ParseConfig(name string, text []byte) (Config, error) {
	var c Config
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return c, nil // empty, or nothing but comments
	}
	if err == nil {
		var second yaml.Node
		if err = d.Decode(&second); err == nil {
			err = fmt.Errorf("line %d: there is more than one document", second.Line)
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err == nil {
		err = knownKeys(name, &doc, reflect.TypeFor[Config]())
	}
	if err == nil {
		err = doc.Decode(&c)
	}
	if e, ok := errors.AsType[*yaml.TypeError](err); ok {
		err = errors.New(wrongType(e.Errors[0]))
	}
	if err == nil {
		return c, nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return c, err
	}
	return c, fault.Usagef("docs/architecture.md describes the keys of slipway.yaml.", "%s", name+yamlLine.ReplaceAllString(": "+strings.TrimPrefix(err.Error(), "yaml: "), ":$1: "))
}

var (
	yamlLine = regexp.MustCompile(`^: line (\d+): `)
	yamlType = regexp.MustCompile("cannot unmarshal !!\\w+(?: `(.*)`)? into (.*)$")
)

// wrongType turns the yaml package's words for a value of a wrong type into ours.
func wrongType(text string) string {
	m := yamlType.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	what := "this"
	if m[1] != "" {
		what = strconv.Quote(m[1])
	}
	wanted := "a mapping of keys"
	if strings.HasPrefix(m[2], "[]") {
		wanted = "a list"
	}
	known := map[string]string{
		"int": "a whole number", "bool": "true or false", "time.Duration": "a duration such as 30s", "[]string": "a list such as [a, b]", "map[string]string": "a mapping such as {a: b}",
		"string": "a text",
	}[m[2]]
	return strings.TrimSuffix(text, m[0]) + what + " is not " + cmp.Or(known, wanted)
}

// knownKeys checks the keys of every mapping that is decoded into a struct, and that whole numbers are
// whole, which the yaml package does not.
func knownKeys(file string, n *yaml.Node, t reflect.Type) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Kind == yaml.ScalarNode && t.Kind() == reflect.Int && n.ShortTag() == "!!float":
		return fault.Usagef("", "%s:%d: %q is not a whole number", file, n.Line, n.Value)
	case n.Kind == yaml.DocumentNode:
		return knownKeys(file, n.Content[0], t)
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for _, c := range n.Content {
			if err := knownKeys(file, c, t.Elem()); err != nil {
				return err
			}
		}
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		fields := map[string]reflect.Type{}
		var names []string
		for f := range t.Fields() {
			key := f.Tag.Get("yaml")
			fields[key] = f.Type
			names = append(names, key)
		}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			ft, ok := fields[key.Value]
			if !ok {
				return fault.Usagef(fault.Nearest(key.Value, names), "%s:%d: unknown key %q", file, key.Line, key.Value)
			}
			if err := knownKeys(file, n.Content[i+1], ft); err != nil {
				return err
			}
		}
	}
	return nil
}

// withDefaults returns c with every default that does not depend on the source filled in, or says what
// is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if len(c.GoVersions) == 0 {
		c.GoVersions = []string{"minimum", "oldstable", "stable"}
	}
	if len(c.Platforms) == 0 {
		c.Platforms = []string{NativePlatform().String()}
	}
	if len(c.Packages) == 0 {
		c.Packages = []string{"./..."}
	}
	c.Shuffle = cmp.Or(c.Shuffle, "off")
	if _, err := strconv.ParseInt(c.Shuffle, 10, 64); err != nil && c.Shuffle != "off" && c.Shuffle != "on" {
		return c, fault.Usagef("A number is the seed of an order.", "shuffle: %q is not off, on or a number", c.Shuffle)
	}
	c.Timeout = cmp.Or(c.Timeout, 10*time.Minute)
	if len(c.VetChecks) == 0 {
		c.VetChecks = slices.Clone(vetChecks)
	}
	for _, check := range c.VetChecks {
		if !slices.Contains(vetChecks, check) {
			return c, fault.Usagef(fault.Nearest(check, vetChecks), "vet-checks: there is no check %q", check)
		}
	}
	c.Vuln, c.VulnMode = cmp.Or(c.Vuln, "off"), cmp.Or(c.VulnMode, "source")
	if err := c.checkVuln(); err != nil {
		return c, err
	}
	c.Base = cmp.Or(c.Base, "scratch")
	if err := oci.CheckBase(c.Base); err != nil {
		return c, fault.Usagef("Write it as scratch, oci:DIR, or a reference such as gcr.io/distroless/static-debian12:nonroot.", "base: %v", err)
	}
	for _, to := range c.To {
		if err := oci.CheckTarget(to); err != nil {
			return c, fault.Usagef(nextTarget, "to: %v", err)
		}
	}
	for key, names := range map[string]map[string]string{"env": c.Env, "labels": c.Labels, "smoke.env": c.Smoke.Env} {
		for name := range names {
			if name == "" || strings.ContainsAny(name, "=\x00") {
				return c, fault.Usagef("Write it as NAME=VALUE.", "%s: %q is not a name", key, name)
			}
		}
	}
	c.User = cmp.Or(c.User, "65532:65532")
	scratch := c.Base == "scratch"
	for _, b := range []**bool{&c.Certificates, &c.Accounts, &c.Tmp} {
		if *b == nil {
			*b = &scratch
		}
	}
	if len(c.Timezones) == 0 {
		c.Timezones = []string{"none"}
		if scratch {
			c.Timezones = []string{"all"}
		}
	}
	c.Smoke.Isolation = cmp.Or(c.Smoke.Isolation, "auto")
	c.Smoke.Deadline = cmp.Or(c.Smoke.Deadline, 10*time.Second)
	c.Smoke.Stop = cmp.Or(c.Smoke.Stop, 10*time.Second)
	c.Smoke.Memory = cmp.Or(c.Smoke.Memory, "512MiB")
	c.Smoke.Processes = cmp.Or(c.Smoke.Processes, 256)
	c.Output = cmp.Or(c.Output, "dist")
	for key, d := range map[string]time.Duration{"timeout": c.Timeout, "smoke.deadline": c.Smoke.Deadline, "smoke.stop": c.Smoke.Stop} {
		if d < 0 {
			return c, fault.Usagef("Give a positive duration such as 30s.", "%s: %s is negative", key, d)
		}
	}
	if c.Smoke.Processes < 0 {
		return c, fault.Usagef("Leave it out for 256.", "smoke.processes: %d is negative", c.Smoke.Processes)
	}
	if c.Parallel < 0 {
		return c, fault.Usagef("Leave it out for what cores and memory allow.", "parallel: %d is negative", c.Parallel)
	}
	c.Parallel = cmp.Or(c.Parallel, defaultParallel())
	if _, err := parseBytes(c.Smoke.Memory); err != nil {
		return c, err
	}
	return c, c.checkProbes()
}

// parseBytes reads a size such as 256MiB, 1GiB or 1000000.
func parseBytes(s string) (int64, error) {
	units := []struct {
		suffix string
		bytes  int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		var n int64
		if _, err := fmt.Sscanf(number+" ", "%d ", &n); err != nil || n <= 0 || fmt.Sprint(n) != number || n > (1<<62)/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, fault.Usagef("Write it as 256MiB or 1GiB.", "smoke.memory: %q is not a size", s)
}
