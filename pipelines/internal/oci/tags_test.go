package oci

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// moving is a policy by which v1 stays for ever.
func moving(tag, _, _ string) bool { return tag != "v1" }

func behind(later string) func([]string) string {
	return func(existing []string) string {
		if slices.Contains(existing, later) {
			return later
		}
		return ""
	}
}

// A tag that only goes forward stays where a later version has put it.
func TestPushKeepsLaterVersions(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{"go-containerregistry": newRegistry, "docker-registry": newDockerRegistry} {
		t.Run(name, func(t *testing.T) {
			host := start(t)
			later, laterIndex := testLayout(t, "linux/arm64")
			earlier, earlierIndex := testLayout(t, "linux/amd64")
			o := PushOptions{Auth: nobody, RetryDelay: fast, MayMove: anyMove, Tags: []string{"1.4.2", "1.4"}}
			o.Behind = map[string]func([]string) string{"1.4": behind("1.4.9")}
			_, err := Push(t.Context(), later, host+"/app", o)
			require.NoError(t, err)
			o.Tags = []string{"1.4.1", "1.4", "1.3"}
			o.Behind = map[string]func([]string) string{"1.4": behind("1.4.2"), "1.3": behind("1.4.2")}
			for _, state := range []string{"created", "unchanged"} {
				pushed, err := Push(t.Context(), earlier, host+"/app", o)
				require.NoError(t, err)
				first := Tag{Name: "1.4.1", State: state}
				if state == "unchanged" {
					first.Before = earlierIndex.Digest
					require.Zero(t, pushed.Sent)
				}
				require.Equal(t, []Tag{first, {Name: "1.4", Before: laterIndex.Digest, State: "kept", Behind: "1.4.2"}, {Name: "1.3", State: "kept", Behind: "1.4.2"}}, pushed.Tags)
				require.Equal(t, laterIndex.Digest, tagDigest(t, host+"/app:1.4"))
				require.Equal(t, earlierIndex.Digest, tagDigest(t, host+"/app:1.4.1"))
				require.Empty(t, tagDigest(t, host+"/app:1.3"))
			}
			o.Tags, o.Behind = []string{"1.4"}, map[string]func([]string) string{"1.4": behind("1.4.3")}
			pushed, err := Push(t.Context(), earlier, host+"/app", o)
			require.NoError(t, err)
			require.Equal(t, []Tag{{Name: "1.4", Before: laterIndex.Digest, State: "moved"}}, pushed.Tags)
		})
	}
}

// A later version appears while ours is under way.
func TestPushSeesLaterVersionInTime(t *testing.T) {
	backend := newRegistry(t)
	later, laterIndex := testLayout(t, "linux/arm64")
	earlier, _ := testLayout(t, "linux/amd64")
	var once sync.Once
	host := newProxy(t, backend, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			once.Do(func() {
				if _, err := Push(t.Context(), later, backend+"/app", PushOptions{Auth: nobody, RetryDelay: fast, Tags: []string{"1.4.2", "1.4"}}); err != nil {
					t.Error(err)
				}
			})
		}
		return false
	})
	pushed, err := Push(t.Context(), earlier, host+"/app", PushOptions{Auth: nobody, RetryDelay: fast, MayMove: anyMove, Tags: []string{"1.4.1", "1.4"},
		Behind: map[string]func([]string) string{"1.4": behind("1.4.2")}})
	require.NoError(t, err)
	require.Equal(t, Tag{Name: "1.4", Before: laterIndex.Digest, State: "kept", Behind: "1.4.2"}, pushed.Tags[1])
	require.Equal(t, laterIndex.Digest, tagDigest(t, backend+"/app:1.4"))
}

// Another run moves a tag that may be moved, between our look at it and our move.
func TestPushReportsMovedTag(t *testing.T) {
	backend := newRegistry(t)
	first, _ := testLayout(t, "linux/amd64")
	ours, oursIndex := testLayout(t, "linux/arm64")
	theirs, theirsIndex := testLayout(t, "linux/amd64", "linux/arm64")
	o := PushOptions{Auth: nobody, RetryDelay: fast, MayMove: moving, Tags: []string{"main", "latest"}}
	_, err := Push(t.Context(), first, backend+"/app", o)
	require.NoError(t, err)
	var once sync.Once
	host := newProxy(t, backend, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPatch {
			once.Do(func() {
				if _, err := Push(t.Context(), theirs, backend+"/app", o); err != nil {
					t.Error(err)
				}
			})
		}
		return false
	})
	mine := o
	mine.Tags = []string{"v1", "main", "latest"}
	_, err = Push(t.Context(), ours, host+"/app", mine)
	race, ok := errors.AsType[*RaceError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, &RaceError{Tag: host + "/app:main", Have: theirsIndex.Digest, Want: oursIndex.Digest}, race)
	require.ErrorContains(t, err, "tags main, latest were not moved; tag v1 was moved before")
	for _, tag := range []string{"main", "latest"} {
		require.Equal(t, theirsIndex.Digest, tagDigest(t, backend+"/app:"+tag))
	}
	// The same command again puts it right.
	pushed, err := Push(t.Context(), ours, host+"/app", mine)
	require.NoError(t, err)
	require.Equal(t, "unchanged", pushed.Tags[0].State)
	for _, tag := range []string{"v1", "main", "latest"} {
		require.Equal(t, oursIndex.Digest, tagDigest(t, backend+"/app:"+tag))
	}
}

// Two publish different content under one release tag, and neither sees the other before both have written: no
// write goes on before there are two, and no answer before both are done. One has published, all of it, and one has failed.
func TestTwoPublishersCollide(t *testing.T) {
	backend := newRegistry(t)
	var arrived, done sync.WaitGroup
	arrived.Add(2)
	done.Add(2)
	hold := func() string {
		return newProxy(t, backend, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, "/manifests/v1") {
				return false
			}
			arrived.Done()
			arrived.Wait()
			defer done.Wait()
			defer done.Done()
			request := r.Clone(r.Context())
			request.RequestURI, request.URL.Scheme, request.URL.Host = "", "http", backend
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Error(err)
				return true
			}
			response.Body.Close()
			w.WriteHeader(response.StatusCode)
			return true
		})
	}
	publishBoth(t, backend, [2]string{hold(), hold()}, fast)
}

// The same without a proxy that makes it happen: whoever is late sees the tag before, at, or after its own move.
func TestTwoPublishers(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{"go-containerregistry": newRegistry, "docker-registry": newDockerRegistry} {
		t.Run(name, func(t *testing.T) {
			host := start(t)
			publishBoth(t, host, [2]string{host, host}, 300*time.Millisecond)
		})
	}
}

// publishBoth publishes two images under the same tags at the same time. Exactly one may say that it has published, and the tags must all be of that one.
func publishBoth(t *testing.T, backend string, hosts [2]string, delay time.Duration) {
	t.Helper()
	var dirs, digests [2]string
	for i, platform := range []string{"linux/amd64", "linux/arm64"} {
		dir, index := testLayout(t, platform)
		dirs[i], digests[i] = dir, index.Digest
	}
	var errs [2]error
	var group sync.WaitGroup
	for i := range dirs {
		group.Go(func() {
			_, errs[i] = Push(t.Context(), dirs[i], hosts[i]+"/app", PushOptions{Auth: nobody, RetryDelay: delay, MayMove: moving, Tags: []string{"latest", "v1"}})
		})
	}
	group.Wait()
	won := slices.Index(errs[:], nil)
	require.GreaterOrEqual(t, won, 0, "%v", errs)
	lost := errs[1-won]
	require.Error(t, lost, "both have published")
	_, exists := errors.AsType[*TagExistsError](lost)
	_, race := errors.AsType[*RaceError](lost)
	require.True(t, exists || race, "%v", lost)
	require.Equal(t, digests[won], tagDigest(t, backend+"/app:v1"))
	require.Equal(t, digests[won], tagDigest(t, backend+"/app:latest"), "the one that lost moves no other tag")
	// All of it is there: nothing has to travel, and everything is what its digest says.
	pushed, err := Push(t.Context(), dirs[won], backend+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
	require.NoError(t, err)
	require.Zero(t, pushed.Sent)
	require.Equal(t, totals(t, dirs[won]), pushed.ReadBack)
}

// readOnly stands before a registry, fails whatever could change it, and counts that.
func readOnly(t *testing.T, backend string) (host string, refused *writes) {
	refused = &writes{}
	return newProxy(t, backend, func(w http.ResponseWriter, r *http.Request) bool {
		refused.hook(w, r)
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return false
		}
		w.WriteHeader(http.StatusMethodNotAllowed)
		return true
	}), refused
}

func TestPlan(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{"go-containerregistry": newRegistry, "docker-registry": newDockerRegistry} {
		t.Run(name, func(t *testing.T) {
			backend := start(t)
			host, refused := readOnly(t, backend)
			dir, index := testLayout(t)
			all := totals(t, dir)
			o := PushOptions{Auth: nobody, RetryDelay: fast, MayMove: moving, Tags: []string{"edge", "v1"},
				Attach: []Artifact{{Subject: index.Digest, Type: "application/vnd.test", Content: []byte("document")}}}

			// Nothing is there, not even the repository.
			planned, err := Plan(t.Context(), dir, host+"/team/app", o)
			require.NoError(t, err)
			require.Equal(t, host+"/team/app@"+index.Digest, planned.Reference)
			require.Equal(t, []Tag{{Name: "v1", State: "created"}, {Name: "edge", State: "created"}}, planned.Tags)
			require.Len(t, planned.Missing, all.Objects+1)
			require.Zero(t, planned.Present)
			kinds := map[string]int{}
			for _, x := range planned.Missing {
				kinds[x.Kind]++
			}
			require.Equal(t, map[string]int{"blob": all.Objects - 4, "manifest": 3, "index": 1, "document": 1}, kinds)
			require.Equal(t, "application/vnd.test", planned.Missing[all.Objects].Type)
			require.Equal(t, index.Digest, planned.Missing[all.Objects-1].Digest)

			// What was planned is what travels.
			pushed, err := Push(t.Context(), dir, backend+"/team/app", o)
			require.NoError(t, err)
			require.Equal(t, all, pushed.Sent)
			planned, err = Plan(t.Context(), dir, host+"/team/app", o)
			require.NoError(t, err)
			require.Empty(t, planned.Missing)
			require.Equal(t, all, planned.Present)
			require.Equal(t, []Tag{{Name: "v1", Before: index.Digest, State: "unchanged"}, {Name: "edge", Before: index.Digest, State: "unchanged"}}, planned.Tags)

			// Other content: some of it is there, one tag may be moved, one stays, one is refused.
			other, otherIndex := testLayout(t, "linux/amd64", "linux/arm64")
			o.Attach[0].Subject = otherIndex.Digest
			o.Tags = append(o.Tags, "1.4")
			o.Behind = map[string]func([]string) string{"1.4": behind("v1")}
			planned, err = Plan(t.Context(), other, host+"/team/app", o)
			require.NoError(t, err)
			require.Equal(t, []Tag{{Name: "v1", Before: index.Digest, State: "refused"}, {Name: "edge", Before: index.Digest, State: "moved"}, {Name: "1.4", State: "kept", Behind: "v1"}}, planned.Tags)
			require.Positive(t, planned.Present.Objects)
			var missing int64
			for _, x := range planned.Missing[:len(planned.Missing)-1] {
				missing += x.Size
			}
			require.Equal(t, totals(t, other).Bytes, planned.Present.Bytes+missing)
			o.Tags, o.Behind = []string{"edge"}, nil
			pushed, err = Push(t.Context(), other, backend+"/team/app", o)
			require.NoError(t, err)
			require.Equal(t, planned.Present, pushed.Present)
			require.Zero(t, refused.Load(), "requests that write")
		})
	}
}

// Places that are no registry are left alone, too.
func TestPlanLocal(t *testing.T) {
	dir, index := testLayout(t, "linux/amd64")
	place := t.TempDir()
	for _, target := range []string{"oci:" + place + "/layout", "tar:" + place + "/app.tar", "embedded"} {
		planned, err := Plan(t.Context(), dir, target, PushOptions{})
		require.NoError(t, err)
		require.Equal(t, target, planned.Reference)
		require.NotEmpty(t, planned.Missing)
		if target == "embedded" {
			require.Equal(t, index.Digest, planned.Digest)
		}
	}
	require.Empty(t, tree(t, place))
	_, err := Plan(t.Context(), dir, "oci:"+t.TempDir()+"/..", PushOptions{})
	require.ErrorContains(t, err, "is left as it is")
}

// A registry that refuses is named; one that forbids questions about what does not exist yet is not in the way.
func TestPlanRefused(t *testing.T) {
	dir, index := testLayout(t, "linux/amd64")
	_, err := Plan(t.Context(), dir, newLockedRegistry(t)+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast})
	_, ok := errors.AsType[*RefusedError](err)
	require.True(t, ok, "%v", err)
	host := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.TrimSuffix(r.URL.Path, "/") != "/v2" {
			w.WriteHeader(http.StatusForbidden)
		}
	}))
	planned, err := Plan(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, RetryDelay: fast, Attach: []Artifact{{Subject: index.Digest, Type: "a/b"}}})
	require.NoError(t, err)
	require.Len(t, planned.Missing, totals(t, dir).Objects+1)
}
