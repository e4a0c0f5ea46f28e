package oci

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
)

func anyMove(string, string, string) bool { return true }

// tagDigest asks a registry for a tag; it returns nothing for a tag that does not exist.
func tagDigest(t *testing.T, ref string) string {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	require.NoError(t, err)
	d, err := remote.Get(parsed)
	if err != nil {
		require.ErrorContains(t, err, "UNKNOWN")
		return ""
	}
	return d.Digest.String()
}

func totals(t *testing.T, dir string) Amount {
	t.Helper()
	l, err := openLayout(dir)
	require.NoError(t, err)
	return Amount{len(l.blobs) + len(l.documents()), l.size()}
}

func TestPush(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{"go-containerregistry": newRegistry, "docker-registry": newDockerRegistry} {
		t.Run(name, func(t *testing.T) {
			host := start(t)
			dir, index := testLayout(t)
			all := totals(t, dir)
			target := host + "/team/app:v1.2.3"
			var done, total int64
			o := PushOptions{Auth: nobody, RetryDelay: fast, Tags: []string{"v1.2", "v1.2.3"}, Progress: func(d, n int64) { done, total = d, n }}
			pushed, err := Push(t.Context(), dir, target, o)
			require.NoError(t, err)
			require.Equal(t, &Pushed{
				Reference: host + "/team/app@" + index.Digest, Digest: index.Digest,
				Tags: []Tag{{Name: "v1.2.3", State: "created"}, {Name: "v1.2", State: "created"}},
				Sent: all, ReadBack: all,
			}, pushed)
			require.Equal(t, all.Bytes, done)
			require.Equal(t, all.Bytes, total)
			require.Equal(t, index.Digest, tagDigest(t, target))
			require.Equal(t, index.Digest, tagDigest(t, host+"/team/app:v1.2"))

			// Again: nothing travels, everything is compared.
			done = 0
			pushed, err = Push(t.Context(), dir, target, o)
			require.NoError(t, err)
			require.Equal(t, Amount{}, pushed.Sent)
			require.Equal(t, all, pushed.Present)
			require.Equal(t, all, pushed.ReadBack)
			require.Equal(t, []Tag{{Name: "v1.2.3", Before: index.Digest, State: "unchanged"}, {Name: "v1.2", Before: index.Digest, State: "unchanged"}}, pushed.Tags)
			require.Equal(t, all.Bytes, done)

			// Other content, most of whose layers are there: only what is missing travels. One tag is new.
			other, otherIndex := testLayout(t, "linux/amd64", "linux/arm64")
			o.MayMove = anyMove
			o.Tags = []string{"v1.3"}
			pushed, err = Push(t.Context(), other, target, o)
			require.NoError(t, err)
			require.Equal(t, []Tag{{Name: "v1.2.3", Before: index.Digest, State: "moved"}, {Name: "v1.3", State: "created"}}, pushed.Tags)
			require.Equal(t, otherIndex.Digest, tagDigest(t, target))
			require.Equal(t, totals(t, other).Objects, pushed.Sent.Objects+pushed.Present.Objects)
			require.GreaterOrEqual(t, pushed.Present.Objects, 4) // certificates, accounts and two applications
			require.Greater(t, pushed.Present.Bytes, pushed.Sent.Bytes)

			t.Run("skopeo", func(t *testing.T) {
				skopeo := tool(t, "skopeo")
				raw := run(t, skopeo, "inspect", "--tls-verify=false", "--raw", "docker://"+target)
				require.Equal(t, otherIndex.Digest, hashOf([]byte(raw)).String())
				run(t, skopeo, "--insecure-policy", "copy", "--src-tls-verify=false", "docker://"+target, "dir:"+filepath.Join(t.TempDir(), "copy"))
			})
		})
	}
}

func TestPushWithoutTag(t *testing.T) {
	host := newRegistry(t)
	dir, index := testLayout(t, "linux/amd64")
	pushed, err := Push(t.Context(), dir, host+"/app", PushOptions{Auth: nobody})
	require.NoError(t, err)
	require.Empty(t, pushed.Tags)
	require.Equal(t, index.Digest, tagDigest(t, pushed.Reference))
	require.Empty(t, tagDigest(t, host+"/app:latest"), "latest is never a default")
}

func TestPushTargets(t *testing.T) {
	for target, want := range map[string]string{
		"registry.example/app:v1":         "registry.example/app [v1]",
		"registry.example:5000/team/app":  "registry.example:5000/team/app []",
		"registry.example:5000/app:v1":    "registry.example:5000/app [v1]",
		"registry.example/app@sha256:123": "error",
		"registry.example/APP:v1":         "error",
		"registry.example/app:":           "error",
		"registry.example/app:a b":        "error",
		"":                                "error",
	} {
		repo, tags, err := parseTarget(target, nil)
		got := "error"
		if err == nil {
			var names []string
			for _, tag := range tags {
				names = append(names, tag.TagStr())
			}
			got = fmt.Sprint(repo.Name(), " ", names)
		}
		require.Equal(t, want, got, "%q: %v", target, err)
	}
}

// writes counts what could change a registry.
type writes struct{ atomic.Int64 }

func (w *writes) hook(_ http.ResponseWriter, r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Add(1)
	}
	return false
}

func TestPushKeepsTags(t *testing.T) {
	backend := newRegistry(t)
	var sent writes
	host := newProxy(t, backend, sent.hook)
	first, firstIndex := testLayout(t, "linux/amd64")
	second, secondIndex := testLayout(t, "linux/arm64")
	o := PushOptions{Auth: nobody, RetryDelay: fast}
	_, err := Push(t.Context(), first, host+"/app:v1", o)
	require.NoError(t, err)

	// Without a policy no tag is moved, and nothing travels.
	before := sent.Load()
	_, err = Push(t.Context(), second, host+"/app:v2", PushOptions{Auth: nobody, Tags: []string{"v1"}})
	require.ErrorIs(t, err, ErrTagExists)
	exists, ok := errors.AsType[*TagExistsError](err)
	require.True(t, ok)
	require.Equal(t, &TagExistsError{Tag: host + "/app:v1", Have: firstIndex.Digest, Want: secondIndex.Digest}, exists)
	require.ErrorContains(t, err, firstIndex.Digest)
	require.ErrorContains(t, err, secondIndex.Digest)
	require.Equal(t, before, sent.Load())
	require.Empty(t, tagDigest(t, host+"/app:v2"))

	// The policy is asked with what it needs to know.
	var asked []string
	o.MayMove = func(tag, have, want string) bool { asked = []string{tag, have, want}; return false }
	_, err = Push(t.Context(), second, host+"/app:v1", o)
	require.ErrorIs(t, err, ErrTagExists)
	require.Equal(t, []string{"v1", firstIndex.Digest, secondIndex.Digest}, asked)
	require.Equal(t, firstIndex.Digest, tagDigest(t, host+"/app:v1"))
}

// Another run moves the tag while ours is under way: the policy is asked again before the tag is moved.
func TestPushSeesRaces(t *testing.T) {
	backend := newRegistry(t)
	first, firstIndex := testLayout(t, "linux/amd64")
	second, _ := testLayout(t, "linux/arm64")
	var once sync.Once
	host := newProxy(t, backend, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			once.Do(func() {
				_, err := Push(context.WithoutCancel(r.Context()), first, backend+"/app:v1", PushOptions{Auth: nobody})
				if err != nil {
					t.Error(err)
				}
			})
		}
		return false
	})
	_, err := Push(t.Context(), second, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
	require.ErrorIs(t, err, ErrTagExists)
	pushErr, ok := errors.AsType[*PushError](err)
	require.True(t, ok)
	require.Equal(t, []string{"v1"}, pushErr.NotMoved)
	require.Equal(t, firstIndex.Digest, tagDigest(t, backend+"/app:v1"))
}

// A registry that is overloaded: every request is refused twice before it works. One that is broken: every
// kind of request fails once.
func TestPushRetries(t *testing.T) {
	for status, times := range map[int]int{http.StatusTooManyRequests: 2, http.StatusBadGateway: 1} {
		var mu sync.Mutex
		seen := map[string]int{}
		host := newProxy(t, newRegistry(t), func(w http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			key := r.Method + strings.TrimRight(r.URL.Path, "0123456789")
			if seen[key]++; seen[key] <= times {
				w.Header().Set("Retry-After", "0")
				http.Error(w, "later", status)
				return true
			}
			return false
		})
		dir, index := testLayout(t, "linux/amd64")
		var done int64
		pushed, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast, Jobs: 1, Progress: func(d, _ int64) { done = d }})
		require.NoError(t, err)
		require.Equal(t, totals(t, dir), pushed.Sent)
		require.Equal(t, totals(t, dir).Bytes, done)
		require.Equal(t, index.Digest, tagDigest(t, host+"/app:v1"))
	}
}

// A registry that says how long to wait is obeyed.
func TestPushWaitsAsLongAsAsked(t *testing.T) {
	var asked atomic.Bool
	var answered time.Time
	host := newProxy(t, newRegistry(t), func(w http.ResponseWriter, r *http.Request) bool {
		if asked.Swap(true) {
			if answered.IsZero() {
				answered = time.Now()
			}
			return false
		}
		w.Header().Set("Retry-After", "1")
		http.Error(w, "later", http.StatusTooManyRequests)
		return true
	})
	dir, _ := testLayout(t, "linux/amd64")
	start := time.Now()
	_, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast, Jobs: 1})
	require.NoError(t, err)
	require.GreaterOrEqual(t, answered.Sub(start), time.Second)
}

// One that is always overloaded is given up on.
func TestPushGivesUp(t *testing.T) {
	var requests atomic.Int64
	host := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		http.Error(w, strings.Repeat("too much ", 1000), http.StatusTooManyRequests)
	}))
	dir, _ := testLayout(t, "linux/amd64")
	_, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
	require.ErrorContains(t, err, "429 Too Many Requests")
	require.Less(t, len(err.Error()), 1000)
	require.EqualValues(t, attempts, requests.Load())
}

// Connections break in the middle of uploads, once each.
func TestPushSurvivesBrokenConnections(t *testing.T) {
	var mu sync.Mutex
	broken := map[string]bool{}
	host := newProxy(t, newRegistry(t), func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch && r.Method != http.MethodPut {
			return false
		}
		mu.Lock()
		// The content tells uploads apart; their paths are new each time.
		key := fmt.Sprint(r.Method, r.ContentLength, r.URL.Query().Get("digest"))
		again := broken[key]
		broken[key] = true
		mu.Unlock()
		if !again {
			io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			dropConnection(w)
		}
		return !again
	})
	dir, index := testLayout(t, "linux/amd64", "linux/arm64")
	var done int64
	pushed, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast, Progress: func(d, _ int64) { done = d }})
	require.NoError(t, err)
	require.Equal(t, totals(t, dir), pushed.Sent)
	require.Equal(t, totals(t, dir).Bytes, done)
	require.Equal(t, index.Digest, tagDigest(t, host+"/app:v1"))
}

// The registry goes away half-way, for good.
func TestPushToDyingRegistry(t *testing.T) {
	backend := newRegistry(t)
	first, firstIndex := testLayout(t, "linux/amd64")
	second, _ := testLayout(t, "linux/arm64")
	_, err := Push(t.Context(), first, backend+"/app:v1", PushOptions{Auth: nobody})
	require.NoError(t, err)
	var dead atomic.Bool
	host := newProxy(t, backend, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			dead.Store(true)
		}
		if dead.Load() {
			io.CopyN(io.Discard, r.Body, r.ContentLength/2)
			dropConnection(w)
		}
		return dead.Load()
	})
	_, err = Push(t.Context(), second, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast, MayMove: anyMove, Tags: []string{"v2"}})
	pushErr, ok := errors.AsType[*PushError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, host, pushErr.Registry)
	require.Equal(t, []string{"v1", "v2"}, pushErr.NotMoved)
	require.ErrorContains(t, err, "publishing to "+host+": sending blob sha256:")
	require.ErrorContains(t, err, "tags v1, v2 were not moved")
	require.Equal(t, firstIndex.Digest, tagDigest(t, backend+"/app:v1"))
}

// The connection breaks while the tag is moved. If the registry can be asked, it is known what has happened;
// if not, that is said.
func TestPushTagInDoubt(t *testing.T) {
	dir, index := testLayout(t, "linux/amd64")
	for _, test := range []struct {
		name string
		done bool // the registry has moved the tag before it breaks the connection
		dies bool // it is not reachable afterwards
		want string
	}{
		{"moved", true, false, ""},
		{"not moved", false, false, "moving tag v1: "},
		{"unknown", true, true, "whether tag v1 was moved is not known"},
	} {
		t.Run(test.name, func(t *testing.T) {
			backend := newRegistry(t)
			var dead atomic.Bool
			host := newProxy(t, backend, func(w http.ResponseWriter, r *http.Request) bool {
				if dead.Load() {
					dropConnection(w)
					return true
				}
				if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/manifests/v1") {
					return false
				}
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				if test.done {
					request, err := http.NewRequest(http.MethodPut, "http://"+backend+r.URL.Path, strings.NewReader(string(body)))
					if err != nil {
						t.Error(err)
					}
					request.Header.Set("Content-Type", r.Header.Get("Content-Type"))
					response, err := http.DefaultClient.Do(request)
					if err != nil {
						t.Error(err)
						return false
					}
					response.Body.Close()
				}
				dead.Store(test.dies)
				dropConnection(w)
				return true
			})
			pushed, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
			if test.want == "" {
				require.NoError(t, err)
				require.Equal(t, []Tag{{Name: "v1", State: "created"}}, pushed.Tags)
				require.Equal(t, index.Digest, tagDigest(t, host+"/app:v1"))
				return
			}
			pushErr, ok := errors.AsType[*PushError](err)
			require.True(t, ok, "%v", err)
			require.ErrorContains(t, err, test.want)
			if test.dies {
				require.Equal(t, "v1", pushErr.Unknown)
				require.Empty(t, pushErr.NotMoved)
			} else {
				require.Equal(t, []string{"v1"}, pushErr.NotMoved)
			}
		})
	}
}

// A registry that gives back something else than it was given is found out, and the tag stays where it was.
func TestPushToLyingRegistry(t *testing.T) {
	dir, index := testLayout(t, "linux/amd64")
	config := index.Images[0].Config
	layer := index.Images[0].Layers[2].Digest
	for _, test := range []struct {
		name string
		lie  func(w http.ResponseWriter, r *http.Request) bool
		want string // the digest that is not honoured
		step string
	}{
		{"layer", func(w http.ResponseWriter, r *http.Request) bool {
			lies := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+layer)
			if lies {
				w.Write([]byte("something else"))
			}
			return lies
		}, layer, "reading back blob " + layer},
		{"layer with more at its end", func(w http.ResponseWriter, r *http.Request) bool {
			lies := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+layer)
			if lies {
				io.WriteString(w, readBlob(t, dir, layer)+"more")
			}
			return lies
		}, layer, "reading back blob " + layer},
		{"configuration", func(w http.ResponseWriter, r *http.Request) bool {
			lies := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+config)
			if lies {
				w.Write([]byte("{}"))
			}
			return lies
		}, config, "reading back blob " + config},
		{"manifest", func(w http.ResponseWriter, r *http.Request) bool {
			lies := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/manifests/"+index.Images[0].Manifest)
			if lies {
				w.Header().Set("Docker-Content-Digest", index.Images[0].Manifest)
				w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
				w.Write([]byte("{}"))
			}
			return lies
		}, index.Images[0].Manifest, "reading back manifest " + index.Images[0].Manifest},
		{"tag", func(w http.ResponseWriter, r *http.Request) bool {
			lies := r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/manifests/v1")
			if lies {
				w.Header().Set("Docker-Content-Digest", index.Digest)
				w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
				w.Write([]byte("{}"))
			}
			return lies
		}, index.Digest, "reading back tag v1"},
		{"tag that looks right before", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/manifests/v1") || r.Method == http.MethodPut {
				return false
			}
			w.Header().Set("Docker-Content-Digest", index.Digest)
			w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
			w.Header().Set("Content-Length", "2")
			if r.Method == http.MethodGet {
				w.Write([]byte("{}"))
			}
			return true
		}, "", "reading back manifest " + index.Images[0].Manifest},
	} {
		t.Run(test.name, func(t *testing.T) {
			backend := newRegistry(t)
			host := newProxy(t, backend, test.lie)
			_, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
			pushErr, ok := errors.AsType[*PushError](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, test.step, pushErr.Step)
			if test.want != "" {
				mismatch, ok := errors.AsType[*DigestError](err)
				require.True(t, ok, "%v", err)
				require.Equal(t, test.want, mismatch.Want)
			}
			if test.name != "tag" {
				require.Empty(t, tagDigest(t, backend+"/app:v1"))
			}
		})
	}
}

const password = "correct horse battery staple"

// newLockedRegistry wants a user and password, or a token, and repeats in its errors what it was sent.
func newLockedRegistry(t *testing.T) string {
	backend := newRegistry(t)
	return newProxy(t, backend, func(w http.ResponseWriter, r *http.Request) bool {
		user, pass, _ := r.BasicAuth()
		if user == "robot" && pass == password || r.Header.Get("Authorization") == "Bearer "+password {
			r.Header.Del("Authorization")
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]any{
			"code": "UNAUTHORIZED", "message": fmt.Sprintf("no: %s (user %s, password %s)", r.Header.Get("Authorization"), user, pass),
		}}})
		return true
	})
}

func TestPushCredentials(t *testing.T) {
	host := newLockedRegistry(t)
	dir, index := testLayout(t, "linux/amd64")
	config := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(config, "config.json"), fmt.Appendf(nil, `{"auths": {%q: {"auth": %q}}}`,
		host, base64.StdEncoding.EncodeToString([]byte("robot:"+password))), 0o600))
	for i, auth := range []Auth{{Username: "robot", Password: password}, {Token: password}, {}} {
		if i == 2 {
			t.Setenv("DOCKER_CONFIG", config)
			t.Setenv("HOME", config)
		}
		target := fmt.Sprintf("%s/app%d:v1", host, i)
		pushed, err := Push(t.Context(), dir, target, PushOptions{Auth: auth, RetryDelay: fast})
		require.NoError(t, err, "%v", auth)
		require.Equal(t, index.Digest, pushed.Digest)
		base, err := ResolveBase(t.Context(), target, BaseOptions{CacheDir: t.TempDir(), Auth: auth})
		require.NoError(t, err)
		require.Equal(t, index.Digest, base.Digest)
	}
}

func TestPushRefused(t *testing.T) {
	host := newLockedRegistry(t)
	// This one lets everyone look, so that the refusal is one with a text, which repeats what was sent.
	open := newProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			w.WriteHeader(http.StatusNotFound)
		}
		return r.Method == http.MethodHead
	})
	dir, _ := testLayout(t, "linux/amd64")
	wrong := "not the pass word"
	for _, auth := range []Auth{nobody, {Username: "robot", Password: wrong}, {Token: wrong}} {
		// At the tag, at the first blob, at the first upload, and while a base image is fetched.
		for _, target := range []string{host + "/app:v1", host + "/app", open + "/app:v1", "base"} {
			var err error
			registry := strings.Split(target, "/")[0]
			if target == "base" {
				registry = host
				_, err = ResolveBase(t.Context(), host+"/app:v1", BaseOptions{Auth: auth, CacheDir: t.TempDir(), RetryDelay: fast})
			} else {
				_, err = Push(t.Context(), dir, target, PushOptions{Auth: auth, RetryDelay: fast})
			}
			refused, ok := errors.AsType[*RefusedError](err)
			require.True(t, ok, "%v", err)
			require.Equal(t, registry, refused.Registry)
			require.Equal(t, "app", refused.Repository)
			require.Equal(t, auth.Keychain != nil, refused.Anonymous)
			require.ErrorContains(t, err, "registry "+registry+" refused access to app")
			require.ErrorContains(t, err, "docker login")
			if (registry == open || target == "base") && !refused.Anonymous {
				require.ErrorContains(t, err, "[hidden]")
			}
			for err := err; err != nil; err = errors.Unwrap(err) {
				for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
					text := fmt.Sprintf(format, err)
					require.NotContains(t, text, wrong)
					require.NotContains(t, text, base64.StdEncoding.EncodeToString([]byte("robot:"+wrong)))
				}
			}
		}
	}
}

func TestAuthHidesSecrets(t *testing.T) {
	for _, auth := range []Auth{{Username: "robot", Password: password}, {Token: password}, {Password: password}} {
		o := PushOptions{Auth: auth}
		encoded, err := json.Marshal(struct{ Auth Auth }{auth})
		require.NoError(t, err)
		for _, text := range []string{fmt.Sprint(auth), fmt.Sprintf("%+v", o), fmt.Sprintf("%#v", auth), fmt.Sprintf("%#v", o), string(encoded)} {
			require.NotContains(t, text, password)
			require.Contains(t, text, "hidden")
		}
	}
}

// Some registries forbid to look at what does not exist yet.
func TestPushWhereLookingIsForbidden(t *testing.T) {
	var exists atomic.Bool
	host := newProxy(t, newRegistry(t), func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			exists.Store(true)
		}
		if strings.Contains(r.URL.Path, "/manifests/") && !exists.Load() {
			http.Error(w, "forbidden", http.StatusForbidden)
			return true
		}
		return false
	})
	dir, index := testLayout(t, "linux/amd64")
	_, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
	require.NoError(t, err)
	require.Equal(t, index.Digest, tagDigest(t, host+"/app:v1"))
}

// Everything is verified before the first byte travels.
func TestPushDamagedLayout(t *testing.T) {
	var sent writes
	host := newProxy(t, newRegistry(t), sent.hook)
	for _, damage := range []func(dir string, index *Index) string{
		func(_ string, index *Index) string { return index.Images[0].Layers[2].Digest },
		func(_ string, index *Index) string { return index.Images[0].Config },
		func(_ string, index *Index) string { return index.Images[0].Manifest },
		func(_ string, index *Index) string { return index.Digest },
	} {
		dir, index := testLayout(t, "linux/amd64")
		digest := damage(dir, index)
		data := []byte(readBlob(t, dir, digest))
		data[len(data)/2] ^= 1
		require.NoError(t, os.WriteFile(filepath.Join(blobDir(dir), digest[7:]), data, 0o644))
		for _, target := range []string{host + "/app:v1", "oci:" + t.TempDir(), "tar:" + filepath.Join(t.TempDir(), "f"), "embedded"} {
			_, err := Push(t.Context(), dir, target, PushOptions{Auth: nobody, RetryDelay: fast})
			mismatch, ok := errors.AsType[*DigestError](err)
			require.True(t, ok, "%s: %v", target, err)
			require.Equal(t, digest, mismatch.Want)
			require.ErrorContains(t, err, dir)
		}
	}
	require.Zero(t, sent.Load())
	_, err := Push(t.Context(), t.TempDir(), host+"/app:v1", PushOptions{Auth: nobody})
	require.ErrorContains(t, err, "is not an OCI layout")
}

func TestPushIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	host := newProxy(t, newRegistry(t), func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPatch {
			return false
		}
		cancel()
		http.Error(w, "later", http.StatusTooManyRequests)
		return true
	})
	dir, _ := testLayout(t, "linux/amd64")
	_, err := Push(ctx, dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: 1e15})
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "tag v1 was not moved")
}

func TestPushEmbedded(t *testing.T) {
	dir, index := testLayout(t)
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	pushed, err := Push(t.Context(), dir, "embedded", PushOptions{Auth: Auth{Username: "u", Password: password}})
	require.NoError(t, err)
	require.Equal(t, index.Digest, pushed.Digest)
	require.Equal(t, totals(t, dir), pushed.Sent)
	require.Equal(t, totals(t, dir), pushed.ReadBack)
	require.Equal(t, []Tag{{Name: "embedded", State: "created"}}, pushed.Tags)
	require.Regexp(t, `^127\.0\.0\.1:\d+/slipway/image@`+index.Digest+`$`, pushed.Reference)
	require.Empty(t, tree(t, temp), "nothing is left of it")
}

// The embedded registry is one that others could use: it takes what it was promised and nothing else.
func TestEmbeddedRegistry(t *testing.T) {
	dir := t.TempDir()
	host := newServer(t, newEmbedded(dir))
	send := func(method, path, body string) *http.Response {
		request, err := http.NewRequest(method, "http://"+host+path, strings.NewReader(body))
		require.NoError(t, err)
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		response.Body.Close()
		return response
	}
	digest := hashOf([]byte("content")).String()
	response := send(http.MethodPost, "/v2/app/blobs/uploads/", "")
	require.Equal(t, http.StatusAccepted, response.StatusCode)
	at := response.Header.Get("Location")
	require.Equal(t, http.StatusAccepted, send(http.MethodPatch, at, "other").StatusCode)
	require.Equal(t, http.StatusBadRequest, send(http.MethodPut, at+"?digest="+digest, "").StatusCode)
	require.Equal(t, http.StatusNotFound, send(http.MethodHead, "/v2/app/blobs/"+digest, "").StatusCode)
	require.Equal(t, http.StatusAccepted, send(http.MethodPatch, at, "content").StatusCode)
	require.Equal(t, http.StatusCreated, send(http.MethodPut, at+"?digest="+digest, "").StatusCode)
	require.Equal(t, http.StatusOK, send(http.MethodHead, "/v2/app/blobs/"+digest, "").StatusCode)
	for _, bad := range []string{"/v2/app/blobs/uploads/..%2f..%2fx", "/v2/app/blobs/uploads/a", "/v2/app/blobs/uploads/99?digest=" + digest, at + "?digest=x"} {
		require.Equal(t, http.StatusBadRequest, send(http.MethodPut, bad, "").StatusCode, bad)
	}
	require.Equal(t, http.StatusBadRequest, send(http.MethodDelete, at, "").StatusCode)
}

// Blobs are streamed on their way there and back.
func TestPushMemory(t *testing.T) {
	const size = 48 << 20
	var seed [32]byte
	file := filepath.Join(t.TempDir(), "noise")
	f, err := os.Create(file)
	require.NoError(t, err)
	_, err = io.CopyN(f, rand.NewChaCha8(seed), size)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	dir := t.TempDir()
	layer, err := WriteLayer(dir, "application", []Entry{{Path: "app", File: file}}, LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	require.Greater(t, layer.Info.Size, int64(size))
	_, err = Assemble(t.Context(), dir, Spec{Images: []ImageSpec{{Platform: "linux/amd64", Layers: []*Layer{layer}}}})
	require.NoError(t, err)
	for _, target := range []string{"embedded", "oci:" + filepath.Join(t.TempDir(), "copy"), "tar:" + filepath.Join(t.TempDir(), "file")} {
		peak := watchHeap(t, func() {
			_, err := Push(t.Context(), dir, target, PushOptions{})
			require.NoError(t, err)
		})
		require.Less(t, peak, uint64(size/3), target)
	}
}

// A push reads back from the registry and not from memory: what is deleted behind its back is missed.
func TestPushMissesWhatIsGone(t *testing.T) {
	dir, index := testLayout(t, "linux/amd64")
	store := t.TempDir()
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(store))))
	t.Cleanup(server.Close)
	host := server.Listener.Addr().String()
	_, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody})
	require.NoError(t, err)
	layer := index.Images[0].Layers[2].Digest
	require.NoError(t, os.Remove(filepath.Join(store, "sha256", layer[7:])))
	_, err = Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
	require.ErrorContains(t, err, "reading back blob "+layer)
	require.ErrorContains(t, err, "BLOB_UNKNOWN")
}
