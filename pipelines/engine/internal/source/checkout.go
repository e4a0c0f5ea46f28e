package source

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// Checkout checks a commit of the repository that dir lies in out into a new directory below temp, and returns what
// stands there for dir. The repository itself is only read: objects are shared, and no hook of it runs.
func Checkout(ctx context.Context, dir, commit, temp string) (string, error) {
	if !inGit(dir) {
		return "", fault.Usagef("Name a clone of its repository with --source.", "the source is no git work tree, so commit %s cannot be checked out", commit)
	}
	if _, err := git(ctx, dir, "cat-file", "-e", commit+"^{commit}"); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fault.Usagef("`git fetch` brings it if it was pushed; in a shallow clone, `git fetch --unshallow`.", "the repository of the source has no commit %s", commit)
	}
	ask := func(args ...string) (string, error) {
		out, err := git(ctx, dir, append([]string{"rev-parse"}, args...)...)
		return strings.TrimSuffix(out, "\n"), err
	}
	objects, err := ask("--git-path", "objects")
	if err != nil {
		return "", err
	}
	prefix, err := ask("--show-prefix")
	if err != nil {
		return "", err
	}
	if !filepath.IsAbs(objects) {
		if objects, err = filepath.Abs(filepath.Join(dir, objects)); err != nil {
			return "", err
		}
	}
	to, err := os.MkdirTemp(temp, "commit-")
	if err != nil {
		return "", fault.Environmentf(err, "Check TMPDIR.", "temporary directory")
	}
	format := "--object-format=sha1"
	if len(commit) > 40 {
		format = "--object-format=sha256"
	}
	if _, err := git(ctx, to, "init", "--quiet", "--template=", format); err != nil {
		return "", err
	}
	alternates := filepath.Join(to, ".git", "objects", "info", "alternates")
	err = os.MkdirAll(filepath.Dir(alternates), 0o755)
	if err == nil {
		err = os.WriteFile(alternates, []byte(filepath.ToSlash(objects)+"\n"), 0o644)
	}
	if err != nil {
		return "", fault.Environmentf(err, "Check TMPDIR.", "temporary directory")
	}
	if _, err := git(ctx, to, "-c", "core.hooksPath="+os.DevNull, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", commit, "--"); err != nil {
		return "", err
	}
	return filepath.Join(to, filepath.FromSlash(prefix)), nil
}
