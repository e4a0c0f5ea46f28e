package dagger

import (
	"context"
	"fmt"
	"go/version"
	"strings"

	"dagger.io/dagger"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// anyRelease answers questions whose answer does not depend on the release, before any release is known.
const anyRelease = "1.26.8"

// Toolchain implements engine.Engine. The toolchain is an official golang image. Its digest is compared with
// the pin; without one, what the registry says is believed and becomes the pin.
func (e *Engine) Toolchain(ctx context.Context, release string, pins map[string]string) (engine.Toolchain, error) {
	name := DefaultGoImage + ":" + release
	t := engine.Toolchain{Release: release, Platform: e.platform, Pin: name, VerifiedBy: "registry"}
	ref := e.opts.GoImage + ":" + release
	if pin := pins[name]; pin != "" {
		t.VerifiedBy = "slipway.lock"
		ref = e.opts.GoImage + "@" + pin
	}
	full, err := e.client.Container().From(ref).ImageRef(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return t, ctx.Err()
		}
		return t, fault.Environmentf(clean(err), "Check that the Dagger engine reaches the registry; --go-image names a mirror of the golang images.", "image %s cannot be fetched", ref)
	}
	_, digest, ok := strings.Cut(full, "@")
	if !ok {
		return t, fmt.Errorf("the Dagger engine names no digest of image %s: %q", ref, full)
	}
	t.Checksum = digest
	e.mu.Lock()
	defer e.mu.Unlock()
	e.images[release] = e.opts.GoImage + "@" + digest
	if e.newest == "" || version.Compare("go"+release, "go"+e.newest) > 0 {
		e.newest = release
	}
	return t, nil
}

// container is a container with a toolchain. An empty release means any.
func (e *Engine) container(release string) (*dagger.Container, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if release == "" && e.newest == "" {
		return e.client.Container().From(e.opts.GoImage + ":" + anyRelease), nil
	}
	if release == "" {
		release = e.newest
	}
	ref, ok := e.images[release]
	if !ok {
		return nil, fmt.Errorf("toolchain go%s was not made ready", release)
	}
	return e.client.Container().From(ref), nil
}
