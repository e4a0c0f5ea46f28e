package main

import (
	"context"

	"dagger/slipway/internal/dagger"
)

// Go vet, gofmt and the module files, for `dagger check`.
//
// +check
// +cache="session"
func (m *Slipway) CheckVet(
	ctx context.Context,
	// The source tree. Default: the project.
	// +defaultPath="/"
	source *dagger.Directory,
) error {
	return assert(m.Vet(ctx, source))
}

// Go test under every release, for `dagger check`.
//
// +check
// +cache="session"
func (m *Slipway) CheckTest(
	ctx context.Context,
	// The source tree. Default: the project.
	// +defaultPath="/"
	source *dagger.Directory,
) error {
	return assert(m.Test(ctx, source))
}

// The stripped binaries are the ones that were built, for `dagger check`.
//
// +check
// +cache="session"
func (m *Slipway) CheckVerify(
	ctx context.Context,
	// The source tree. Default: the project.
	// +defaultPath="/"
	source *dagger.Directory,
) error {
	_, err := m.Verify(ctx, source)
	return err
}

// The image starts, answers and stops, for `dagger check`.
//
// +check
// +cache="session"
func (m *Slipway) CheckSmoke(
	ctx context.Context,
	// The source tree. Default: the project.
	// +defaultPath="/"
	source *dagger.Directory,
) error {
	return assert(m.Smoke(ctx, source))
}

func assert(r *Result, err error) error {
	if err == nil {
		_, err = r.Assert()
	}
	return err
}
