package host

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// Describe implements engine.Describer.
func (e *Engine) Describe() (version string, env []string) {
	system := systemEnv() // Windows: values tell of the machine
	for _, v := range e.baseEnv(engine.Command{}) {
		name, value, _ := strings.Cut(v, "=")
		switch {
		case name == "CGO_ENABLED" || name == "GOWORK":
		case filepath.IsAbs(value) || slices.Contains(system, v):
			env = append(env, name+"=@dir@")
		default:
			env = append(env, v)
		}
	}
	slices.Sort(env)
	return "", env
}
