package host_test

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSourceHasTagsAndBranch(t *testing.T) {
	needGit(t)
	dir := repository(t, map[string]string{"go.mod": "module example.com/x\n"})
	git(t, dir, "checkout", "-q", "-b", "feature/one")
	git(t, dir, "branch", "other")
	for _, args := range [][]string{{"v1.4.2"}, {"-a", "-m", "annotated", "v1.4.10"}, {"tools/v1.0.0"}, {"feature/one"}} {
		git(t, dir, append([]string{"tag"}, args...)...)
	}
	s := source(t, dir)
	require.Equal(t, []string{"feature/one", "tools/v1.0.0", "v1.4.10", "v1.4.2"}, s.Tags)
	require.Equal(t, "feature/one", s.Branch)

	git(t, dir, "checkout", "-q", "--detach")
	require.Empty(t, source(t, dir).Branch)
	write(t, dir+"/new.go", "package x\n")
	commit(t, dir)
	require.Empty(t, source(t, dir).Tags, "those of the commit before")
}
