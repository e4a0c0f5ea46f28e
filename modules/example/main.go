// A pipeline of one's own, composed from slipway's functions.
//
// Copy it, with `dagger install github.com/slipway-ci/slipway` in place of the relative dependency.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"dagger/example/internal/dagger"
)

// Example releases a web service.
type Example struct{}

// Release runs the tests, then a test of one's own against the image, and only then publishes it.
//
// +cache="never"
func (m *Example) Release(
	ctx context.Context,
	source *dagger.Directory,
	// Where to push, such as registry.example/team/app:1.4.2.
	to string,
	// +optional
	username string,
	// +optional
	password *dagger.Secret,
) (string, error) {
	pipeline := dag.Slipway(dagger.SlipwayOpts{GoVersions: []string{"1.21", "1.22"}})
	if _, err := pipeline.Test(source).Assert(ctx); err != nil {
		return "", err
	}
	if err := m.Accept(ctx, source); err != nil {
		return "", err
	}
	return pipeline.Publish(ctx, source, []string{to}, dagger.SlipwayPublishOpts{Username: username, Password: password})
}

// Accept starts the image as a service and asks it what a user would.
//
// +cache="session"
func (m *Example) Accept(ctx context.Context, source *dagger.Directory) error {
	image := dag.Slipway(dagger.SlipwayOpts{GoVersions: []string{"1.22"}}).Image(source)
	// An exposed port is waited for.
	service, err := image.WithExposedPort(8080).AsService(dagger.ContainerAsServiceOpts{UseEntrypoint: true}).Start(ctx)
	if err != nil {
		return err
	}
	defer service.Stop(ctx, dagger.ServiceStopOpts{Kill: true})
	url, err := service.Endpoint(ctx, dagger.ServiceEndpointOpts{Port: 8080, Scheme: "http"})
	if err != nil {
		return err
	}
	answer, err := http.Get(url + "/?name=Ada")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if want := "Hello, Ada!\n"; string(body) != want {
		return fmt.Errorf("it said %q, not %q", body, want)
	}
	return nil
}
