package oci

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Reach asks the registry of a reference whether it is there and lets us in, once, with credentials if there
// are any. It tells whether there were none. A *RefusedError says that the registry is there.
func Reach(ctx context.Context, ref string, auth Auth) (anonymous bool, err error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return false, err
	}
	repo := parsed.Context()
	s, err := newSession(ctx, repo, auth, 0)
	if err != nil {
		return false, err
	}
	authenticator := authn.Anonymous
	if !s.anonymous {
		config, err := auth.resolve(ctx, repo)
		if err != nil {
			return false, err
		}
		authenticator = authn.FromConfig(config)
	}
	t, err := transport.NewWithContext(ctx, repo.Registry, authenticator, s.transport, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return s.anonymous, s.clean(ctx, err)
	}
	// Of some schemes, what was negotiated has not been used yet.
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, repo.Scheme()+"://"+repo.RegistryStr()+"/v2/", nil)
	if err != nil {
		return s.anonymous, err
	}
	response, err := t.RoundTrip(request)
	if err != nil {
		return s.anonymous, s.clean(ctx, err)
	}
	defer response.Body.Close()
	if err := transport.CheckError(response, http.StatusOK); err != nil {
		return s.anonymous, s.clean(ctx, err)
	}
	_, err = io.CopyN(io.Discard, response.Body, blockSize)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return s.anonymous, err
}

// Mirrored is the reference that a base image is fetched from; see BaseOptions.Mirrors.
func Mirrored(ref string, mirrors map[string]string) (string, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return "", err
	}
	there, err := mirrored(parsed, mirrors)
	if err != nil {
		return "", err
	}
	return there.Name(), nil
}
