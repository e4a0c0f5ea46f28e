package pipelines

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

const testCommit = "0123456789abcdef0123456789abcdef01234567"

func TestTagPolicy(t *testing.T) {
	all := []string{"semver", "commit", "branch"}
	for name, c := range map[string]struct {
		policy  TagPolicy
		source  engine.Source
		tags    string
		without string // words of the reasons
	}{
		"release":                 {TagPolicy{Tags: all}, engine.Source{Tags: []string{"v1.4.2"}, Branch: "main"}, "1.4.2 1.4 1 sha-0123456789ab main", ""},
		"pre-release":             {TagPolicy{Tags: all, Latest: "release"}, engine.Source{Tags: []string{"v1.5.0-rc.1"}}, "1.5.0-rc.1 sha-0123456789ab", "branch: no branch is checked out; latest: the commit is no release"},
		"before the first":        {TagPolicy{Tags: []string{"semver"}}, engine.Source{Tags: []string{"v0.4.2"}}, "0.4.2 0.4", ""},
		"several at one commit":   {TagPolicy{Tags: []string{"semver"}, Latest: "release"}, engine.Source{Tags: []string{"v1.10.0", "v1.9.9", "v1.9.9-rc.1"}}, "1.10.0 1.9.9 1.9.9-rc.1 1.10 1 1.9 latest", ""},
		"no versions":             {TagPolicy{Tags: []string{"semver"}}, engine.Source{Tags: []string{"v1.4", "1.4.2", "v1.4.2+x", "tools/v1.4.2", "release", "v01.2.3"}}, "", "semver: no tag of git"},
		"latest of a branch":      {TagPolicy{Latest: "main"}, engine.Source{Branch: "main"}, "latest", ""},
		"latest of another":       {TagPolicy{Latest: "main"}, engine.Source{Branch: "feature"}, "", "latest: the branch is feature, not main"},
		"latest, detached":        {TagPolicy{Latest: "main"}, engine.Source{}, "", "latest: the branch is not known, not main"},
		"latest of a release":     {TagPolicy{Latest: "release"}, engine.Source{Tags: []string{"v2.0.0"}}, "latest", ""},
		"changed":                 {TagPolicy{Tags: all, Latest: "main"}, engine.Source{Tags: []string{"v1.4.2"}, Branch: "main", Dirty: true}, "main", "semver: the source has changes; commit: the source has changes; latest: the source has changes"},
		"detached":                {TagPolicy{Tags: []string{"branch"}}, engine.Source{}, "", "branch: no branch is checked out"},
		"branch with a slash":     {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: "feature/Über cool#1"}, "feature-ber-cool-1", ""},
		"branch of an issue":      {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: "12-repair"}, "12-repair", ""},
		"branch begins badly":     {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: ".-x"}, "x", ""},
		"branch without a letter": {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: "ü"}, "", "branch: ü has no letter"},
		"long branch":             {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: strings.Repeat("x", 200)}, strings.Repeat("x", 128), ""},
		"branch like a release":   {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: "v1.4.2"}, "", "branch: v1.4.2 is what a release is called"},
		"branch like a line":      {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: "1.4"}, "", "branch: 1.4 is what a release is called"},
		"branch like latest":      {TagPolicy{Tags: []string{"branch"}}, engine.Source{Branch: "latest"}, "", "branch: latest is what a release is called"},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, c.policy.check())
			c.source.Commit = testCommit
			chosen := c.policy.choose(c.source)
			require.Equal(t, c.tags, strings.Join(chosen.names, " "))
			if c.without == "" {
				require.Empty(t, chosen.without)
			}
			for i, part := range strings.Split(c.without, "; ") {
				if part != "" {
					require.Contains(t, chosen.without[i], part)
				}
			}
		})
	}
	require.ErrorContains(t, TagPolicy{Tags: []string{"semvar"}}.check(), `Did you mean "semver"?`)
	chosen := TagPolicy{Tags: all, Latest: "release"}.choose(engine.Source{})
	require.Empty(t, chosen.names)
	require.Len(t, chosen.without, 4)
	require.Contains(t, chosen.without[0], "the source has no commit")
}

// 1.4, 1 and latest only go forward.
func TestTagPolicyGoesForward(t *testing.T) {
	behind := TagPolicy{Tags: []string{"semver"}, Latest: "release"}.choose(engine.Source{Commit: testCommit, Tags: []string{"v1.4.2"}}).behind
	require.Len(t, behind, 3)
	for _, c := range []struct{ existing, minor, major, latest string }{
		{"", "", "", ""},
		{"1.4.1 1.3.9 0.9.0 edge 1.4 1 latest 1.9", "", "", ""},
		{"1.4.2", "", "", ""},
		{"1.4.3 1.4.11 1.4.9", "1.4.11", "1.4.11", "1.4.11"},
		{"1.5.0", "", "1.5.0", "1.5.0"},
		{"v2.0.0", "", "", "v2.0.0"},
		{"1.4.3-rc.1 1.5.0-rc.1 2.0.0-beta", "", "", ""},
	} {
		existing := strings.Fields(c.existing)
		require.Equal(t, c.minor, behind["1.4"](existing), c.existing)
		require.Equal(t, c.major, behind["1"](existing), c.existing)
		require.Equal(t, c.latest, behind["latest"](existing), c.existing)
	}
}

func TestImmutable(t *testing.T) {
	for _, tag := range strings.Fields("1.4.2 v1.4.2 1.5.0-rc.1 0.0.1 1.4.2_build sha-0123456789ab") {
		require.True(t, immutable(tag), tag)
	}
	for _, tag := range strings.Fields("1.4 1 v1 latest main sha-main sha-0123 edge 1.4-alpine nightly-1.4.2") {
		require.False(t, immutable(tag), tag)
	}
}

// Whoever meets another publisher is told so, and what is published nevertheless.
func TestPublishErrors(t *testing.T) {
	err := pushError("registry.example/app", &oci.PushError{Registry: "registry.example", Step: "looking at tag main", NotMoved: []string{"main"}, Err: &oci.RaceError{Tag: "registry.example/app:main", Have: "sha256:1", Want: "sha256:2"}})
	require.Equal(t, fault.Environment, fault.Of(err))
	require.ErrorContains(t, err, "publishing to registry.example: looking at tag main: another run has moved tag registry.example/app:main meanwhile: it is sha256:1 now")
	require.ErrorContains(t, err, "tag main was not moved")
	require.ErrorContains(t, err, "Somebody publishes to the same tags.")
	u := &publication{result: &PublishResult{To: []PublishedTo{{Reference: "mirror.example/app@sha256:2"}}}}
	require.ErrorContains(t, u.already(err), "Published already: mirror.example/app@sha256:2.")
}
