package pipelines

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// Config says what a pipeline does. Keys of slipway.yaml, command-line flags and Dagger arguments of one
// thing have the same name. The zero value of every field means its default.
type Config struct {
	// Profile is the name of the one of Profiles that is in force. Default: none.
	Profile string `yaml:"profile"`
	// Profiles are named settings, such as dev and prod, that take the place of the others. [ReadConfig]
	// applies the one that is in force.
	Profiles map[string]Profile `yaml:"profiles"`

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
	// Count is how often each test runs. One that passes and fails is flaky, and has failed. With any number,
	// go test takes no result from its cache. Default: once.
	Count int `yaml:"count"`
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

	// Base is the base image: "scratch", a short name (distroless, alpine, debian, ubi), a reference, or
	// oci:DIR. Default: scratch.
	Base string `yaml:"base"`
	// Bases are the base images that compare puts side by side. Default: scratch and all short names.
	Bases []string `yaml:"bases"`
	// Mirrors are where base images are fetched from instead: a registry, or a repository with everything
	// below it, to another. {"docker.io": "mirror.example/hub"}. Records, labels and lock name the original.
	Mirrors map[string]string `yaml:"mirrors"`
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
	// Volumes are the directories that the image declares as volumes: absolute paths.
	Volumes []string `yaml:"volumes"`
	// StopSignal is the signal that asks the image to end, such as "SIGINT". Default: the base image's, else
	// SIGTERM.
	StopSignal string `yaml:"stop-signal"`
	// WorkingDir is the image's working directory, an absolute path. Default: the base image's, else /.
	WorkingDir string `yaml:"working-dir"`
	// Health is the health check in the image.
	Health *Health `yaml:"health"`
	// Capabilities are put on the entrypoint's file, so that it has them as an ordinary user:
	// cap_net_bind_service and others of capabilities(7).
	Capabilities []string `yaml:"capabilities"`
	// Files are further files in the image.
	Files []ImageFile `yaml:"files"`
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

	// Format is that of manifests: "oci", or "docker" for registries that take nothing else. Default: oci.
	Format string `yaml:"format"`
	// Compression is that of the layers: "gzip" or "zstd". Default: gzip.
	Compression string `yaml:"compression"`
	// SizeLimit bounds what a pull of one platform's image transfers: a size such as "20MiB", or growth over
	// Previous such as "+5%" or "+512KiB". Default: no limit.
	SizeLimit string `yaml:"size-limit"`
	// LayerLimit bounds each layer likewise, those of the base image too.
	LayerLimit string `yaml:"layer-limit"`
	// Previous is the file of an earlier run record, which sizes are compared with.
	Previous string `yaml:"previous"`

	// Smoke is how the image is tried.
	Smoke Smoke `yaml:"smoke"`

	// To is where publish pushes: references, oci:DIR, tar:FILE, or embedded.
	To []string `yaml:"to"`
	// Publish says which tags the image gets where To names a repository without one.
	Publish TagPolicy `yaml:"publish"`
	// Output is the directory for everything that a run writes. Default: dist.
	Output string `yaml:"output"`
	// Fresh does everything again, also what earlier runs have done with the same inputs.
	Fresh bool `yaml:"fresh"`
	// Parallel bounds how many commands run at the same time. Default: what cores and memory allow.
	Parallel int `yaml:"parallel"`
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
	if c.Count < 0 {
		return c, fault.Usagef("Leave it out to run each test once.", "count: %d is less than 1", c.Count)
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
	for _, to := range c.To {
		if err := oci.CheckTarget(to); err != nil {
			return c, fault.Usagef(nextTarget, "to: %v", err)
		}
	}
	if err := c.Publish.check(); err != nil {
		return c, err
	}
	for key, names := range map[string]map[string]string{"env": c.Env, "labels": c.Labels, "smoke.env": c.Smoke.Env} {
		for name := range names {
			if name == "" || strings.ContainsAny(name, "=\x00") {
				return c, fault.Usagef("Write it as NAME=VALUE.", "%s: %q is not a name", key, name)
			}
		}
	}
	c.Output = cmp.Or(c.Output, "dist")
	if c.Timeout < 0 {
		return c, negative("timeout", c.Timeout)
	}
	if c.Parallel < 0 {
		return c, fault.Usagef("Leave it out for what cores and memory allow.", "parallel: %d is negative", c.Parallel)
	}
	c.Parallel = cmp.Or(c.Parallel, defaultParallel())
	if err := c.imageDefaults(); err != nil {
		return c, err
	}
	if err := c.Smoke.defaults(); err != nil {
		return c, err
	}
	return c, c.checkLimits()
}

func negative(key string, d time.Duration) error {
	return fault.Usagef("Give a positive duration such as 30s.", "%s: %s is negative", key, d)
}

// parseBytes reads a size such as 256MiB, 1GiB or 1000000. key stands in errors.
func parseBytes(key, s string) (int64, error) {
	units := []struct {
		suffix string
		bytes  int64
	}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1}}
	for _, u := range units {
		number, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n <= 0 || strconv.FormatInt(n, 10) != number || n > (1<<62)/u.bytes {
			break
		}
		return n * u.bytes, nil
	}
	return 0, fault.Usagef("Write it as 256MiB or 1GiB.", "%s: %q is not a size", key, s)
}
