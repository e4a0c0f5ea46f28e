package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Auth says with which credentials registries are asked. The zero value uses those of docker login and
// podman login on this machine, as go-containerregistry finds them. An Auth never prints its secrets.
type Auth struct {
	// Username and Password are for registries that take a password, or a token in its place.
	Username, Password string
	// Token is sent as it is, as a bearer token.
	Token string
	// Keychain finds credentials where neither of the above is set; nil means the machine's own.
	Keychain authn.Keychain
}

// String implements fmt.Stringer.
func (a Auth) String() string {
	switch {
	case a.Token != "":
		return "token [hidden]"
	case a.Username != "" || a.Password != "":
		return "user " + a.Username + " [password hidden]"
	}
	return "credentials of this machine"
}

// GoString implements fmt.GoStringer.
func (a Auth) GoString() string { return "oci.Auth{" + a.String() + "}" }

// MarshalText keeps secrets out of JSON as well.
func (a Auth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

func (a Auth) resolve(ctx context.Context, repo name.Repository) (authn.AuthConfig, error) {
	switch {
	case a.Token != "":
		return authn.AuthConfig{RegistryToken: a.Token}, nil
	case a.Username != "" || a.Password != "":
		return authn.AuthConfig{Username: a.Username, Password: a.Password}, nil
	}
	keychain := a.Keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	found, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return authn.AuthConfig{}, fmt.Errorf("credentials for %s cannot be read: %w", repo.RegistryStr(), err)
	}
	config, err := authn.Authorization(ctx, found)
	if err != nil {
		return authn.AuthConfig{}, fmt.Errorf("credentials for %s cannot be read: %w", repo.RegistryStr(), err)
	}
	return *config, nil
}

// A RefusedError says that a registry did not let us in.
type RefusedError struct {
	// Registry and Repository say where: "registry.example", "team/app".
	Registry, Repository string
	// Anonymous tells that no credentials were found, so none were sent.
	Anonymous bool
	// Err is what the registry said.
	Err error
}

func (e *RefusedError) Error() string {
	how := "with the credentials that it was given"
	if e.Anonymous {
		how = "without credentials, as none were found"
	}
	return fmt.Sprintf("registry %s refused access to %s %s: %v; "+
		"credentials are a user name and password or a token given to slipway, or else what docker login left in config.json below $DOCKER_CONFIG or ~/.docker, "+
		"or podman login in $REGISTRY_AUTH_FILE or $XDG_RUNTIME_DIR/containers/auth.json", e.Registry, e.Repository, how, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// registryError is an error of a registry or of the way to it, without secrets. What the library returns
// holds the request with its credentials, so it is not wrapped.
type registryError struct {
	text   string
	status int
	is     error
}

func (e *registryError) Error() string { return e.text }
func (e *registryError) Unwrap() error { return e.is }

// statusOf is the HTTP status in err, or 0.
func statusOf(err error) int {
	if e, ok := errors.AsType[*registryError](err); ok {
		return e.status
	}
	return 0
}

// session talks to one repository.
type session struct {
	repo      name.Repository
	options   []remote.Option
	puller    *remote.Puller
	pusher    *remote.Pusher
	anonymous bool
	transport *carrier
	delay     time.Duration
	reached   atomic.Bool // the registry has answered before
}

// How often and how patiently a registry is asked: at once, then after 0.5, 1.5, 4.5 and 13.5 seconds.
const (
	attempts     = 5
	defaultDelay = 500 * time.Millisecond
)

func newSession(ctx context.Context, repo name.Repository, auth Auth, delay time.Duration) (*session, error) {
	config, err := auth.resolve(ctx, repo)
	if err != nil {
		return nil, err
	}
	if delay <= 0 {
		delay = defaultDelay
	}
	s := &session{repo: repo, transport: &carrier{inner: transportBelow(), delay: delay}, delay: delay}
	s.transport.hide(config.Password, config.Auth, config.IdentityToken, config.RegistryToken)
	authenticator := authn.FromConfig(config)
	if config == (authn.AuthConfig{}) {
		s.anonymous, authenticator = true, authn.Anonymous
	}
	options := []remote.Option{
		remote.WithAuth(authenticator),
		remote.WithTransport(s.transport),
		remote.WithUserAgent("slipway"),
		// The library's own waiting does not end with the context, so try does it.
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}),
	}
	s.options = options
	if s.puller, err = remote.NewPuller(options...); err != nil {
		return nil, err
	}
	s.pusher, err = remote.NewPusher(options...)
	return s, err
}

// try runs f, again after a while when what failed may pass: an error of the server, a broken connection. Its errors hold no secrets; a refusal is a RefusedError.
func (s *session) try(ctx context.Context, f func() error) error {
	wait := s.delay
	for attempt := 1; ; attempt++ {
		err := f()
		if err == nil {
			s.reached.Store(true)
			return nil
		}
		if attempt == attempts || ctx.Err() != nil || !s.passing(err) {
			return s.clean(ctx, err)
		}
		if pause(ctx, wait) != nil {
			return s.clean(ctx, err)
		}
		wait *= 3
	}
}

// pause waits for d and a little more, so that those who were refused together do not come back together.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d + rand.N(d/10+1)):
		return nil
	}
}

// passing tells whether an error may be gone at the next attempt.
func (s *session) passing(err error) bool {
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		s.reached.Store(true)
		switch answer.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound:
			return false
		case http.StatusTooManyRequests:
			return false // carrier has waited already
		case http.StatusRequestTimeout, 499:
			return true
		}
		return answer.StatusCode >= 500 || answer.Temporary()
	}
	for _, cut := range []error{io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.ECONNABORTED, syscall.EPIPE} {
		if errors.Is(err, cut) {
			return true
		}
	}
	// A registry that was never there is not waited for; one that restarts is.
	if errors.Is(err, syscall.ECONNREFUSED) {
		return s.reached.Load()
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return true
	}
	// HTTP/2 has no exported errors for a broken stream or connection.
	text := err.Error()
	return strings.Contains(text, "stream error:") || strings.Contains(text, "GOAWAY") || strings.Contains(text, "server closed idle connection")
}

// longestText is how much of an error is shown: some registries answer with whole web pages.
const longestText = 600

// clean turns what the library returned into an error that is safe to show and keep.
func (s *session) clean(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*DigestError](err); ok {
		return err // our own
	}
	cleaned := &registryError{text: strings.Join(strings.Fields(s.transport.redact(err.Error())), " "), is: ctx.Err()}
	if len(cleaned.text) > longestText {
		cleaned.text = strings.ToValidUTF8(cleaned.text[:longestText], "") + " ..."
	}
	if answer, ok := errors.AsType[*transport.Error](err); ok {
		cleaned.status = answer.StatusCode
	}
	if cleaned.status == http.StatusUnauthorized || cleaned.status == http.StatusForbidden {
		return &RefusedError{Registry: s.repo.RegistryStr(), Repository: s.repo.RepositoryStr(), Anonymous: s.anonymous, Err: cleaned}
	}
	return cleaned
}

// carrier is the transport below the library's. It has two duties.
//
// It waits where a registry says that there were too many requests, as long as the registry asks for within
// reason, and repeats the request: such a request was not looked at, so it can be repeated as it is.
//
// It remembers which secrets went out, so that they can be taken out of what comes back: a registry or a
// proxy may repeat a request in its error.
type carrier struct {
	inner http.RoundTripper
	delay time.Duration

	mu      sync.Mutex
	secrets []string
}

// transportBelow is the library's transport, which all sessions share, with a limit to how long a registry
// may be silent. It is generous: at the end of an upload some registries first move the blob elsewhere.
var transportBelow = sync.OnceValue(func() http.RoundTripper {
	shared, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return remote.DefaultTransport
	}
	shared = shared.Clone()
	shared.ResponseHeaderTimeout = 5 * time.Minute
	return shared
})

// longestWait is how long a registry can make us wait at a time.
const longestWait = 30 * time.Second

func (c *carrier) RoundTrip(r *http.Request) (*http.Response, error) {
	if _, value, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
		c.hide(value)
	}
	wait := c.delay
	for attempt := 1; ; attempt++ {
		response, err := c.inner.RoundTrip(r)
		if err != nil || response.StatusCode != http.StatusTooManyRequests || attempt == attempts || r.Body != nil && r.GetBody == nil {
			return response, err
		}
		d := wait
		if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			d = min(time.Duration(seconds)*time.Second, longestWait)
		}
		io.CopyN(io.Discard, response.Body, blockSize) // so that the connection can be used again
		response.Body.Close()
		if err := pause(r.Context(), d); err != nil {
			return nil, err
		}
		wait *= 3
		if r.GetBody != nil {
			body, err := r.GetBody()
			if err != nil {
				return nil, err
			}
			r = r.Clone(r.Context())
			r.Body = body
		}
	}
}

// hide adds secrets.
func (c *carrier) hide(secrets ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range secrets {
		// A few characters would be found in harmless words.
		if len(s) >= 4 && !slices.Contains(c.secrets, s) {
			c.secrets = append(c.secrets, s)
		}
	}
	// The longest first: one may be part of another.
	slices.SortFunc(c.secrets, func(a, b string) int { return len(b) - len(a) })
}

func (c *carrier) redact(text string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.secrets {
		text = strings.ReplaceAll(text, s, "[hidden]")
	}
	return text
}

// head returns the digest that a tag has now; found is false if there is no such tag.
func (s *session) head(ctx context.Context, tag name.Tag) (digest v1.Hash, found bool, err error) {
	err = s.try(ctx, func() error {
		d, err := s.puller.Head(ctx, tag)
		if _, answered := errors.AsType[*transport.Error](err); err != nil && !answered {
			// Not every registry sends the headers that the answer stands in.
			var full *remote.Descriptor
			if full, err = s.puller.Get(ctx, tag); err == nil {
				d = &full.Descriptor
			}
		}
		if err == nil {
			digest, found = d.Digest, true
		}
		return err
	})
	if statusOf(err) == http.StatusNotFound {
		err = nil
	}
	return digest, found, err
}

// manifest fetches a manifest or index by its digest. The bytes are verified.
func (s *session) manifest(ctx context.Context, h v1.Hash) (content []byte, err error) {
	err = s.try(ctx, func() error {
		d, err := s.puller.Get(ctx, s.repo.Digest(h.String()))
		if err == nil {
			content = d.Manifest
			return nil
		}
		if _, answered := errors.AsType[*transport.Error](err); !answered && strings.Contains(err.Error(), "does not match requested digest") {
			return &DigestError{What: "manifest in " + s.repo.Name(), Want: h.String(), Err: errors.New(err.Error())}
		}
		return err
	})
	if err == nil && hashOf(content) != h {
		err = &DigestError{What: "manifest in " + s.repo.Name(), Want: h.String(), Got: hashOf(content).String()}
	}
	return content, err
}

// blob fetches a blob by its digest and writes it to w, verified. reset, if not nil, is called before each
// attempt.
func (s *session) blob(ctx context.Context, desc v1.Descriptor, w io.Writer, reset func() error) error {
	what := "blob in " + s.repo.Name()
	return s.try(ctx, func() error {
		if reset != nil {
			if err := reset(); err != nil {
				return err
			}
		}
		layer, err := s.puller.Layer(ctx, s.repo.Digest(desc.Digest.String()))
		if err != nil {
			return err
		}
		rc, err := layer.Compressed()
		if err != nil {
			return err
		}
		defer rc.Close()
		h := newHasher()
		_, err = copyBuffer(io.MultiWriter(h, w), contextReader{ctx, io.LimitReader(rc, desc.Size+1)})
		if err != nil && (ctx.Err() != nil || s.passing(err)) {
			return err
		}
		// The library verifies as well, with an error of its own that cannot be told from others.
		if got := h.hash(); got != desc.Digest {
			return &DigestError{What: what, Want: desc.Digest.String(), Got: got.String()}
		}
		return err
	})
}
