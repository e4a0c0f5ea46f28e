package main

import "strings"

// ciRef is the branch or tag that a CI service says it builds: it often checks out a commit only. What it says
// counts for its own commit, and not for another source that a job happens to work on.
func ciRef(getenv func(string) string, commit string) (branch, tag string) {
	switch commit {
	case "":
	case getenv("GITHUB_SHA"):
		// For a pull request this is refs/pull/12/merge, which is neither.
		if name, ok := strings.CutPrefix(getenv("GITHUB_REF"), "refs/heads/"); ok {
			return name, ""
		}
		if name, ok := strings.CutPrefix(getenv("GITHUB_REF"), "refs/tags/"); ok {
			return "", name
		}
	case getenv("CI_COMMIT_SHA"):
		// CI_COMMIT_BRANCH is not set for merge requests.
		return getenv("CI_COMMIT_BRANCH"), getenv("CI_COMMIT_TAG")
	}
	return "", ""
}
