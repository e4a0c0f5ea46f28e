package host_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

func TestCheckout(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			repository := filepath.Join(t.TempDir(), "a repository")
			run := func(args ...string) string {
				c := exec.Command("git", append([]string{"-C", repository, "-c", "user.name=test", "-c", "user.email=test@example.com"}, args...)...)
				out, err := c.CombinedOutput()
				require.NoError(t, err, "git %s: %s", strings.Join(args, " "), out)
				return strings.TrimSpace(string(out))
			}
			write := func(text string) {
				require.NoError(t, os.MkdirAll(filepath.Join(repository, "sub"), 0o755))
				require.NoError(t, os.WriteFile(filepath.Join(repository, "sub", "a.txt"), []byte(text), 0o600))
			}
			write("one")
			run("init", "-q", "--object-format="+format)
			run("add", "-A")
			run("commit", "-q", "-m", "one")
			first := run("rev-parse", "HEAD")
			write("two")
			run("commit", "-q", "-a", "-m", "two")
			worktree := filepath.Join(t.TempDir(), "tree")
			run("worktree", "add", "-q", "--detach", worktree)
			write("changed")

			for _, dir := range []string{filepath.Join(repository, "sub"), filepath.Join(worktree, "sub")} {
				before := run("status", "--porcelain") + run("rev-parse", "HEAD") + run("worktree", "list")
				to, err := host.Checkout(t.Context(), dir, first, t.TempDir())
				require.NoError(t, err)
				text, err := os.ReadFile(filepath.Join(to, "a.txt"))
				require.NoError(t, err)
				assert.Equal(t, "one", string(text))
				e, err := host.Open(t.Context(), to, host.Options{CacheDir: t.TempDir()})
				require.NoError(t, err)
				assert.Equal(t, first, e.Source().Commit)
				assert.False(t, e.Source().Dirty)
				require.NoError(t, e.Close())
				assert.Equal(t, before, run("status", "--porcelain")+run("rev-parse", "HEAD")+run("worktree", "list"))
			}
			e, err := host.Open(t.Context(), repository, host.Options{CacheDir: t.TempDir()})
			require.NoError(t, err)
			assert.Equal(t, []string{"sub/a.txt"}, e.Source().Changed)
			require.NoError(t, e.Close())

			_, err = host.Checkout(t.Context(), repository, strings.Repeat("0", len(first)), t.TempDir())
			require.ErrorContains(t, err, "has no commit 000")
			assert.Equal(t, fault.Usage, fault.Of(err))
		})
	}
	_, err := host.Checkout(t.Context(), t.TempDir(), strings.Repeat("0", 40), t.TempDir())
	require.ErrorContains(t, err, "is no git work tree")
}
