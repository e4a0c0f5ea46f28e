package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCIRef(t *testing.T) {
	for name, c := range map[string]struct {
		env         map[string]string
		branch, tag string
	}{
		"nothing":               {nil, "", ""},
		"GitHub, branch":        {map[string]string{"GITHUB_SHA": "c1", "GITHUB_REF": "refs/heads/feature/one"}, "feature/one", ""},
		"GitHub, tag":           {map[string]string{"GITHUB_SHA": "c1", "GITHUB_REF": "refs/tags/v1.4.2"}, "", "v1.4.2"},
		"GitHub, pull request":  {map[string]string{"GITHUB_SHA": "c1", "GITHUB_REF": "refs/pull/12/merge", "GITHUB_REF_NAME": "12/merge"}, "", ""},
		"GitHub, other source":  {map[string]string{"GITHUB_SHA": "c2", "GITHUB_REF": "refs/heads/main"}, "", ""},
		"GitLab, branch":        {map[string]string{"CI_COMMIT_SHA": "c1", "CI_COMMIT_BRANCH": "main"}, "main", ""},
		"GitLab, tag":           {map[string]string{"CI_COMMIT_SHA": "c1", "CI_COMMIT_TAG": "v1.4.2"}, "", "v1.4.2"},
		"GitLab, merge request": {map[string]string{"CI_COMMIT_SHA": "c1", "CI_COMMIT_REF_NAME": "main"}, "", ""},
	} {
		branch, tag := ciRef(func(k string) string { return c.env[k] }, "c1")
		require.Equal(t, []string{c.branch, c.tag}, []string{branch, tag}, name)
	}
	branch, _ := ciRef(func(k string) string { return map[string]string{"GITHUB_REF": "refs/heads/main"}[k] }, "")
	require.Empty(t, branch, "a source without a commit")
}
