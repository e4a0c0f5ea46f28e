package pipelines

import (
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// Platform is what a binary is built for. As text it is os/arch or os/arch/variant, the notation of
// container images: linux/amd64, linux/arm/v7, linux/amd64/v3.
type Platform struct {
	OS, Arch, Variant string
}

// NativePlatform is Linux with the architecture of this machine: where images run.
func NativePlatform() Platform {
	p, _ := ParsePlatform("linux/" + runtime.GOARCH)
	return p
}

var platformText = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9]+(/[a-z0-9.,]+)?$`)

// ParsePlatform reads os/arch or os/arch/variant and fills in the variant where an architecture's
// default would otherwise differ between Go releases.
func ParsePlatform(s string) (Platform, error) {
	if !platformText.MatchString(s) {
		return Platform{}, fault.Usagef("Write it as os/arch or os/arch/variant, such as linux/amd64 or linux/arm/v7.", "%q is not a platform", s)
	}
	parts := strings.Split(s, "/")
	p := Platform{OS: parts[0], Arch: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	if p.Arch == "arm" && p.Variant == "" {
		p.Variant = "v7"
	}
	if p.Arch == "arm64" && p.Variant == "v8" || p.Arch == "amd64" && p.Variant == "v1" {
		p.Variant = "" // what the architecture means anyway
	}
	if p.Variant != "" && p.variable() == "" {
		return Platform{}, fault.Usagef("Variants exist of arm (v5, v6, v7), amd64 (v1 to v4), arm64 (v8.0 to v9.5) and others that Go has a variable for.", "platform %q: slipway knows no variants of %s", s, p.Arch)
	}
	if v := p.Variant; v != "" && (v[0] != 'v' || len(v) < 2) && strings.HasPrefix(p.variable(), "GOA") {
		return Platform{}, fault.Usagef("Write it like linux/arm/v7.", "platform %q: %q is not a variant of %s", s, v, p.Arch)
	}
	known := map[string][]string{"arm": {"v5", "v6", "v7"}, "amd64": {"v2", "v3", "v4"}}[p.Arch]
	if p.Variant != "" && known != nil && !slices.Contains(known, p.Variant) {
		return Platform{}, fault.Usagef("There are: "+strings.Join(known, ", ")+".", "platform %q: %q is not a variant of %s", s, p.Variant, p.Arch)
	}
	return p, nil
}

func (p Platform) String() string {
	s := p.OS + "/" + p.Arch
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// dirName is the platform in names of files and directories.
func (p Platform) dirName() string { return strings.ReplaceAll(p.String(), "/", "_") }

// variable is the name of the Go variable that holds the variant.
func (p Platform) variable() string {
	switch p.Arch {
	case "arm":
		return "GOARM"
	case "amd64":
		return "GOAMD64"
	case "arm64":
		return "GOARM64"
	case "386":
		return "GO386"
	case "ppc64", "ppc64le":
		return "GOPPC64"
	case "mips", "mipsle":
		return "GOMIPS"
	case "mips64", "mips64le":
		return "GOMIPS64"
	case "riscv64":
		return "GORISCV64"
	}
	return ""
}

// env is what makes the go command build for the platform. Every variable is set, so that no default of
// a release or a machine decides. GOARM64 came with Go 1.23 and older releases ignore it.
func (p Platform) env() []string {
	env := []string{"GOOS=" + p.OS, "GOARCH=" + p.Arch}
	name, value := p.variable(), p.Variant
	switch p.Arch {
	case "arm":
		value = strings.TrimPrefix(value, "v")
	case "amd64":
		if value == "" {
			value = "v1"
		}
	case "arm64":
		if value == "" {
			value = "v8.0"
		}
	}
	if value != "" {
		env = append(env, name+"="+value)
	}
	return env
}
