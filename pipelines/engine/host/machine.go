package host

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/engine/host/internal/sandbox"
)

// Machine is what this engine finds on a machine before it works on any source.
type Machine struct {
	// Go is the release of the installed go command, "1.26.0"; Command is its path.
	Go, Command string
	// GOPROXY and GOSUMDB are what it says. GOPROXY may hold credentials.
	GOPROXY, GOSUMDB string
	// Toolchains are the releases in the module cache for this machine.
	Toolchains []string
}

// Examine asks the installed go command. It changes nothing.
func Examine(ctx context.Context) (Machine, error) {
	g, err := readGoEnv(ctx, os.TempDir())
	m := Machine{Go: strings.TrimPrefix(g.GOVERSION, "go"), Command: g.command, GOPROXY: g.GOPROXY, GOSUMDB: g.GOSUMDB}
	if err != nil {
		return m, err
	}
	const prefix = "toolchain@v0.0.1-go"
	suffix := "." + runtime.GOOS + "-" + runtime.GOARCH
	names, _ := filepath.Glob(filepath.Join(g.GOMODCACHE, "golang.org", prefix+"*"+suffix))
	for _, name := range names {
		m.Toolchains = append(m.Toolchains, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), prefix), suffix))
	}
	return m, nil
}

// Isolation is a kind of isolation for smoke runs.
type Isolation struct {
	// Kind is "runc", "crun", "namespaces" or "process".
	Kind string
	// Reason says why it does not work here, empty if it does.
	Reason string
	// Missing is what is not in force although it works.
	Missing []string
}

// Isolations tries every kind of isolation, the best first.
func Isolations() []Isolation {
	var all []Isolation
	for _, l := range sandbox.Available() {
		all = append(all, Isolation(l))
	}
	return all
}

// Emulator tells whether smoke runs can execute programs for Linux on an architecture, such as "arm64", and which
// emulator does it; none if the processor does.
func Emulator(arch string) (name string, ok bool) { return sandbox.Emulator(arch) }
