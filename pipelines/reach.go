package pipelines

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// Place is a registry, or a repository in one, that a configuration names.
type Place struct {
	// Key is the configuration's key: "to", "base" or "mirrors".
	Key string
	// Name is what the configuration names, in full; a base image has this name in the lock file.
	Name string
	// Reference is what is asked, which for a base image may be a mirror.
	Reference string
}

// Places are the registries that a run with this configuration asks, and the mirrors that it might.
func (c Config) Places() []Place {
	var all []Place
	add := func(key, name, ref string) {
		if !slices.ContainsFunc(all, func(p Place) bool { return p.Reference == ref }) {
			all = append(all, Place{key, name, ref})
		}
	}
	for _, to := range c.To {
		if oci.Remote(to) {
			add("to", to, to)
		}
	}
	base := cmp.Or(shortBases[c.Base], c.Base, oci.Scratch)
	if base != oci.Scratch && !strings.HasPrefix(base, "oci:") {
		if there, err := oci.Mirrored(base, c.Mirrors); err == nil {
			add("base", base, there)
		}
	}
	for _, from := range sortedKeys(c.Mirrors) {
		// A mirror may be a whole registry; any repository will do for asking whether it is there.
		if mirror := c.Mirrors[from] + "/"; !slices.ContainsFunc(all, func(p Place) bool { return strings.HasPrefix(p.Reference, mirror) }) {
			add("mirrors", from, mirror+"x")
		}
	}
	return all
}

// Reach asks a registry whether it is there and lets us in. It changes nothing there. login tells with what it was
// asked, in words. known says that the registry is there, whatever the error.
func (p Place) Reach(ctx context.Context, credentials Credentials) (login string, known bool, err error) {
	auth := oci.Auth{}
	if p.Key == "to" {
		auth.Username, auth.Password = credentials.Username, credentials.Password
	}
	anonymous, err := oci.Reach(ctx, p.Reference, auth)
	login = "with credentials"
	if anonymous {
		login = "without credentials"
	}
	_, refused := errors.AsType[*oci.RefusedError](err)
	return login, err == nil || refused, err
}
