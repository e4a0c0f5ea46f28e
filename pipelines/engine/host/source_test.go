package host_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

func TestSourceIsWhatGitWouldCommit(t *testing.T) {
	dir := repository(t, map[string]string{
		".gitignore":       "*.log\n/build/\n",
		"tracked.go":       "package x\n",
		"sub/tracked.txt":  "1",
		"deleted.txt":      "gone",
		"sub/deleted.txt":  "gone",
		"sub/.gitignore":   "!keep.log\nlocal\n",
		"sub/keep.log":     "tracked although *.log",
		"build/ignored.go": "package build\n",
	})
	write(t, filepath.Join(dir, "forced.log"), "1")
	git(t, dir, "add", "-f", "forced.log")
	write(t, filepath.Join(dir, "untracked.txt"), "1")
	write(t, filepath.Join(dir, "ignored.log"), "1")
	write(t, filepath.Join(dir, "sub", "ignored.log"), "1")
	write(t, filepath.Join(dir, "sub", "local", "ignored.txt"), "1")
	write(t, filepath.Join(dir, "sub", "build", "file.txt"), "the pattern is anchored")
	write(t, filepath.Join(dir, "global.txt"), "1")
	write(t, filepath.Join(dir, "info.txt"), "1")
	require.NoError(t, os.Remove(filepath.Join(dir, "deleted.txt")))
	require.NoError(t, os.Remove(filepath.Join(dir, "sub", "deleted.txt")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	// What only this machine and this clone ignore is part of the source.
	excludes := filepath.Join(t.TempDir(), "excludes")
	write(t, excludes, "global.txt\n")
	git(t, dir, "config", "core.excludesFile", excludes)
	write(t, filepath.Join(dir, ".git", "info", "exclude"), "info.txt\n")

	s := source(t, dir)
	want := []string{".gitignore", "forced.log", "global.txt", "info.txt", "sub/.gitignore", "sub/build/file.txt", "sub/keep.log", "sub/tracked.txt", "tracked.go", "untracked.txt"}
	assert.Equal(t, want, fileNames(s))
	assert.Equal(t, want, sortedKeys(texts(t, s.FS)), "FS shows what Files lists")
	_, ok := s.FS.(fs.ReadLinkFS)
	assert.True(t, ok, "FS must implement fs.ReadLinkFS")
	assert.Equal(t, engine.File{Name: "sub/tracked.txt", SHA256: "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"}, s.Files[7])
}

func TestSourceHasStrangeNames(t *testing.T) {
	files := map[string]string{
		"with space.txt": "1",
		"tab\there":      "2",
		"new\nline":      "3",
		`quote".txt`:     "4",
		"it's":           "5",
		`back\slash`:     "6",
		"ünïcode-日本.txt": "7",
		"-dash":          "8",
		"d ir\n/in side": "9",
		"#hash":          "11",
		"!bang":          "12",
		" leading":       "13",
		"trailing ":      "14",
		"star*":          "15",
		":(glob)x":       "16",
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux allows all of these names")
	}
	t.Run("without git", func(t *testing.T) {
		s := source(t, writeTree(t, files))
		assert.Equal(t, sortedKeys(files), fileNames(s))
		assert.Equal(t, files, texts(t, s.FS))
	})
	t.Run("untracked", func(t *testing.T) {
		needGit(t)
		dir := writeTree(t, files)
		git(t, dir, "init", "-q")
		assert.Equal(t, files, texts(t, source(t, dir).FS))
	})
	t.Run("tracked", func(t *testing.T) {
		s := source(t, repository(t, files))
		assert.Equal(t, sortedKeys(files), fileNames(s))
		assert.Equal(t, files, texts(t, s.FS))
		assert.False(t, s.Dirty)
	})
	t.Run("not UTF-8", func(t *testing.T) {
		want := []string{"a\xff", "a\xff\xfe/b", "a\xfe"}
		slices.Sort(want)
		dir := writeTree(t, map[string]string{want[0]: "1", want[1]: "2", want[2]: "3"})
		assert.Equal(t, want, names(t, dir))
		needGit(t)
		git(t, dir, "init", "-q")
		commit(t, dir)
		assert.Equal(t, want, names(t, dir))
	})
	t.Run("in a subdirectory of the same kind", func(t *testing.T) {
		inner := map[string]string{}
		for name, text := range files {
			inner["pre fix\n\"/"+name] = text
		}
		s := source(t, filepath.Join(repository(t, inner), "pre fix\n\""))
		assert.Equal(t, files, texts(t, s.FS))
		assert.False(t, s.Dirty)
	})
}

func TestSourceSubmodules(t *testing.T) {
	lib := repository(t, map[string]string{"lib.go": "package lib\n", ".gitignore": "*.tmp\n"})
	dir := repository(t, map[string]string{"main.go": "package main\n", ".gitignore": "*.go\n!main.go\n"})
	git(t, dir, "submodule", "--quiet", "add", lib, "third party/lib")
	git(t, dir, "submodule", "--quiet", "add", lib, "absent")
	commit(t, dir)
	git(t, dir, "submodule", "--quiet", "deinit", "-f", "absent")
	write(t, filepath.Join(dir, "third party", "lib", "new.go"), "package lib\n")
	write(t, filepath.Join(dir, "third party", "lib", "x.tmp"), "")
	// A repository that is no submodule is nothing that git would commit the files of.
	clone := filepath.Join(dir, "clone")
	git(t, dir, "clone", "--quiet", lib, clone)

	s := source(t, dir)
	assert.Equal(t, []string{".gitignore", ".gitmodules", "main.go", "third party/lib/.gitignore", "third party/lib/lib.go", "third party/lib/new.go"}, fileNames(s),
		"the submodule's own .gitignore rules over it, not that of its parent")
	assert.True(t, s.Dirty, "the submodule has a new file")
	require.NoError(t, os.Remove(filepath.Join(dir, "third party", "lib", "new.go")))
	require.NoError(t, os.RemoveAll(clone))
	assert.False(t, source(t, dir).Dirty)
	write(t, filepath.Join(dir, "third party", "lib", "lib.go"), "package lib // changed\n")
	assert.True(t, source(t, dir).Dirty)
	git(t, dir, "config", "diff.ignoreSubmodules", "all")
	assert.True(t, source(t, dir).Dirty, "a setting of the user hides no change")

	// The submodule itself is a source, too.
	assert.Equal(t, []string{".gitignore", "lib.go"}, names(t, filepath.Join(dir, "third party", "lib")))
}

func TestSourceSubdirectory(t *testing.T) {
	dir := repository(t, map[string]string{
		".gitignore":         "*.log\n",
		"go.mod":             "module example.com/outer\n",
		"a/go.mod":           "module example.com/a\n",
		"a/a.go":             "package a\n",
		"a/nested/.keep":     "",
		"a-b/not-below-a.go": "package b\n",
	})
	write(t, filepath.Join(dir, "a", "x.log"), "the outer .gitignore counts")
	write(t, filepath.Join(dir, "other.txt"), "untracked, but not in the source")
	write(t, filepath.Join(dir, "go.mod"), "module example.com/changed\n")
	s := source(t, filepath.Join(dir, "a"))
	assert.Equal(t, []string{"a.go", "go.mod", "nested/.keep"}, fileNames(s))
	assert.False(t, s.Dirty, "changes outside of the source are not its changes")
	assert.Equal(t, strings.TrimSpace(git(t, dir, "rev-parse", "HEAD")), s.Commit)
	write(t, filepath.Join(dir, "a", "new.go"), "package a\n")
	assert.True(t, source(t, filepath.Join(dir, "a")).Dirty)
	assert.False(t, source(t, filepath.Join(dir, "a"), "new.go").Dirty)
}

func TestSourceWorktree(t *testing.T) {
	dir := repository(t, map[string]string{"a.go": "package a\n"})
	tree := filepath.Join(t.TempDir(), "tree")
	git(t, dir, "worktree", "add", "-q", tree, "HEAD")
	s := source(t, tree)
	assert.Equal(t, []string{"a.go"}, fileNames(s))
	assert.NotEmpty(t, s.Commit)
}

// A hook runs with GIT_DIR and GIT_INDEX_FILE set, which are those of another repository as often as not.
func TestSourceInGitHook(t *testing.T) {
	other := repository(t, map[string]string{"other.go": "package other\n"})
	dir := repository(t, map[string]string{"a.go": "package a\n"})
	commitOf := strings.TrimSpace(git(t, dir, "rev-parse", "HEAD"))
	t.Setenv("GIT_DIR", filepath.Join(other, ".git"))
	t.Setenv("GIT_WORK_TREE", other)
	t.Setenv("GIT_INDEX_FILE", filepath.Join(other, ".git", "index"))
	t.Setenv("GIT_PREFIX", "x/")
	s := source(t, dir)
	assert.Equal(t, []string{"a.go"}, fileNames(s))
	assert.Equal(t, commitOf, s.Commit)
	assert.False(t, s.Dirty)
}

func TestSourceOfAnotherOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give a repository to another user")
	}
	dir := repository(t, map[string]string{"a.go": "package a\n"})
	require.NoError(t, filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, 12345, 12345)
	}))
	_, err := tryGit(dir, "status")
	require.Error(t, err, "git itself refuses")
	assert.Equal(t, []string{"a.go"}, names(t, dir))
}

func TestSourceModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no executable bits")
	}
	for _, vcs := range []string{"git", "none"} {
		t.Run(vcs, func(t *testing.T) {
			dir := writeTree(t, map[string]string{"plain": "1", "script.sh": "2", "odd": "3", "private": "4", "d/file": "5"})
			for name, mode := range map[string]fs.FileMode{"script.sh": 0o755, "odd": 0o711, "private": 0o600} {
				require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
			}
			require.NoError(t, os.Symlink("script.sh", filepath.Join(dir, "link")))
			require.NoError(t, os.Symlink("d/../plain", filepath.Join(dir, "odd-link")))
			require.NoError(t, os.Symlink("../plain", filepath.Join(dir, "d", "up")))
			require.NoError(t, os.Symlink("d", filepath.Join(dir, "dirlink")))
			require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "dangling")))
			if vcs == "git" {
				needGit(t)
				git(t, dir, "init", "-q")
				commit(t, dir)
			}
			s := source(t, dir)
			got := map[string]string{}
			for _, f := range s.Files {
				i, err := fs.Lstat(s.FS, f.Name)
				require.NoError(t, err)
				got[f.Name] = i.Mode().String()
				assert.Equal(t, i.Mode().IsRegular() && i.Mode()&0o111 != 0, f.Executable, f.Name)
				if f.Link != "" {
					got[f.Name] = "-> " + f.Link
					link, err := fs.ReadLink(s.FS, f.Name)
					require.NoError(t, err)
					assert.Equal(t, f.Link, link)
					assert.Empty(t, f.SHA256)
				}
			}
			assert.Equal(t, map[string]string{
				"plain": "-rw-r--r--", "script.sh": "-rwxr-xr-x", "odd": "-rwxr-xr-x", "private": "-rw-r--r--", "d/file": "-rw-r--r--",
				"link": "-> script.sh", "odd-link": "-> d/../plain", "d/up": "-> ../plain", "dirlink": "-> d", "dangling": "-> nowhere",
			}, got, "executable or not is all that is kept of a mode")
		})
	}
}

func TestSourceRefusesLinksOutOfTheTree(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links need a privilege on Windows")
	}
	outside := t.TempDir()
	for name, c := range map[string]struct{ link, target string }{
		"relative":     {"link", "../x"},
		"parent":       {"link", ".."},
		"nested":       {"a/b/link", "../../../x"},
		"absolute":     {"link", outside},
		"through link": {"a/b/link", "up/../../x"}, // a/b/up is a link to the root
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeTree(t, map[string]string{"a/b/file": "1"})
			require.NoError(t, os.Symlink("../..", filepath.Join(dir, "a", "b", "up")))
			require.NoError(t, os.Symlink(c.target, filepath.Join(dir, filepath.FromSlash(c.link))))
			err := openFails(t, dir)
			requireFault(t, err, fault.Usage, c.link, c.target, "leads out of the tree", "Commit the file itself, or remove the link.")
		})
	}
	t.Run("an ignored one does not matter", func(t *testing.T) {
		dir := writeTree(t, map[string]string{".gitignore": "link\n"})
		require.NoError(t, os.Symlink(outside, filepath.Join(dir, "link")))
		assert.Equal(t, []string{".gitignore"}, names(t, dir))
	})
}

// What git has in its index may have become something else in the work tree.
func TestSourceReplacedInWorkTree(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("symbolic links need a privilege on Windows")
	}
	files := map[string]string{"d/file": "1", "d/deep/file": "2", "f": "3", "other/file": "4", "other/deep/file": "5", "d-x": "6"}
	t.Run("directory by file", func(t *testing.T) {
		dir := repository(t, files)
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "d")))
		write(t, filepath.Join(dir, "d"), "now a file")
		s := source(t, dir)
		assert.Equal(t, map[string]string{"d": "now a file", "d-x": "6", "f": "3", "other/file": "4", "other/deep/file": "5"}, texts(t, s.FS))
		assert.True(t, s.Dirty)
	})
	t.Run("directory by link", func(t *testing.T) {
		dir := repository(t, files)
		require.NoError(t, os.RemoveAll(filepath.Join(dir, "d")))
		require.NoError(t, os.Symlink("other", filepath.Join(dir, "d")))
		s := source(t, dir)
		assert.Equal(t, map[string]string{"d": "-> other", "d-x": "6", "f": "3", "other/file": "4", "other/deep/file": "5"}, texts(t, s.FS))
		assert.Equal(t, []string{"d", "d-x", "f", "other/deep/file", "other/file"}, fileNames(s))
	})
	t.Run("file by directory", func(t *testing.T) {
		dir := repository(t, files)
		require.NoError(t, os.Remove(filepath.Join(dir, "f")))
		write(t, filepath.Join(dir, "f", "inner"), "7")
		assert.Equal(t, []string{"d-x", "d/deep/file", "d/file", "f/inner", "other/deep/file", "other/file"}, names(t, dir))
	})
}

func TestSourceOther(t *testing.T) {
	t.Run("named pipes are no files", func(t *testing.T) {
		dir := writeTree(t, map[string]string{"a": "1"})
		mkfifo(t, filepath.Join(dir, "pipe"))
		assert.Equal(t, []string{"a"}, names(t, dir))
	})
	t.Run("empty directory", func(t *testing.T) {
		s := source(t, t.TempDir())
		assert.Empty(t, s.Files)
		assert.Empty(t, s.Commit)
		assert.True(t, s.Time.IsZero())
	})
	t.Run("repository without a commit", func(t *testing.T) {
		needGit(t)
		dir := writeTree(t, map[string]string{"a": "1", "b": "2"})
		git(t, dir, "init", "-q")
		git(t, dir, "add", "a")
		s := source(t, dir)
		assert.Equal(t, []string{"a", "b"}, fileNames(s))
		assert.Empty(t, s.Commit)
		assert.True(t, s.Dirty)
		assert.True(t, s.Time.IsZero())
	})
	t.Run("excluded names", func(t *testing.T) {
		dir := writeTree(t, map[string]string{"a": "1", "dist/x": "2", "dist2/x": "3", "distant": "4", "sub/dist/x": "5"})
		assert.Equal(t, []string{"a", "dist2/x", "distant", "sub/dist/x"}, fileNames(source(t, dir, "dist")))
	})
	t.Run("the directory's name is a link", func(t *testing.T) {
		if runtime.GOOS == "windows" {
			t.Skip("symbolic links need a privilege on Windows")
		}
		dir := writeTree(t, map[string]string{"a": "1"})
		link := filepath.Join(t.TempDir(), "link")
		require.NoError(t, os.Symlink(dir, link))
		assert.Equal(t, []string{"a"}, names(t, link))
	})
	t.Run("a directory that its repository ignores", func(t *testing.T) {
		dir := repository(t, map[string]string{".gitignore": "/scratch/\n"})
		write(t, filepath.Join(dir, "scratch", "go.mod"), "module example.com/scratch\n")
		err := openFails(t, filepath.Join(dir, "scratch"))
		requireFault(t, err, fault.Usage, "scratch", "git would commit no file", ".gitignore")
	})
}

func TestSourceUnreadable(t *testing.T) {
	if os.Getuid() == 0 || runtime.GOOS == "windows" {
		t.Skip("root reads everything")
	}
	for _, vcs := range []string{"git", "none"} {
		t.Run(vcs, func(t *testing.T) {
			dir := writeTree(t, map[string]string{"a": "1", "secret.txt": "2", "closed/x": "3"})
			if vcs == "git" {
				needGit(t)
				git(t, dir, "init", "-q")
			}
			require.NoError(t, os.Chmod(filepath.Join(dir, "secret.txt"), 0))
			requireFault(t, openFails(t, dir), fault.Environment, `cannot read "secret.txt"`, "permission denied", ".gitignore")
			require.NoError(t, os.Remove(filepath.Join(dir, "secret.txt")))
			require.NoError(t, os.Chmod(filepath.Join(dir, "closed"), 0))
			t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, "closed"), 0o755) })
			requireFault(t, openFails(t, dir), fault.Environment, "closed", "ermission denied")
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	missing := filepath.Join(t.TempDir(), "missing")
	for _, c := range []struct {
		dir   string
		parts []string
	}{
		{missing, []string{missing + " does not exist", "--source"}},
		{file, []string{file + " is not a directory", "--source"}},
		{filepath.Join(file, "below"), []string{"--source"}},
	} {
		requireFault(t, openFails(t, c.dir), fault.Usage, c.parts...)
	}

	t.Run("broken repository", func(t *testing.T) {
		needGit(t)
		dir := writeTree(t, map[string]string{".git": "gitdir: /nowhere\n", "a": "1"})
		requireFault(t, openFails(t, dir), fault.Environment, "git ls-files", "not a git repository", "by hand")
	})
	t.Run("no git", func(t *testing.T) {
		dir := repository(t, map[string]string{"a": "1"})
		goOnly(t)
		requireFault(t, openFails(t, dir), fault.Environment, "there is no git on the PATH", "Install git")
	})
	t.Run("no go", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		requireFault(t, openFails(t, t.TempDir()), fault.Environment, "no go command on the PATH", "Install")
	})
}

func TestCommitFacts(t *testing.T) {
	dir := repository(t, map[string]string{"a.go": "package a\n", ".gitignore": "*.log\n"})
	clean := source(t, dir)
	assert.Equal(t, strings.TrimSpace(git(t, dir, "rev-parse", "HEAD")), clean.Commit)
	assert.Len(t, clean.Commit, 40)
	assert.Equal(t, time.Date(2024, 2, 3, 4, 5, 7, 0, time.UTC), clean.Time, "the committer's time")
	assert.False(t, clean.Dirty)

	change := func(name string, f func(dir string)) {
		t.Run(name, func(t *testing.T) {
			copied := filepath.Join(t.TempDir(), "copy")
			require.NoError(t, os.CopyFS(copied, os.DirFS(dir)))
			git(t, copied, "status") // the copied index does not know the new files
			require.False(t, source(t, copied).Dirty)
			f(copied)
			s := source(t, copied)
			assert.True(t, s.Dirty)
			assert.Equal(t, clean.Commit, s.Commit)
			assert.Equal(t, clean.Time, s.Time)
		})
	}
	change("changed", func(dir string) { write(t, filepath.Join(dir, "a.go"), "package b\n") })
	change("staged", func(dir string) {
		write(t, filepath.Join(dir, "a.go"), "package b\n")
		git(t, dir, "add", "-A")
	})
	change("deleted", func(dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "a.go"))) })
	change("new", func(dir string) { write(t, filepath.Join(dir, "b.go"), "package a\n") })
	change("new below a new directory", func(dir string) { write(t, filepath.Join(dir, "n", "b.go"), "package a\n") })
	change("executable", func(dir string) { require.NoError(t, os.Chmod(filepath.Join(dir, "a.go"), 0o755)) })
	change("another lock file", func(dir string) { write(t, filepath.Join(dir, "sub", "slipway.lock"), "") })
	change("new, and hidden by the user's settings", func(dir string) {
		write(t, filepath.Join(dir, "b.go"), "package a\n")
		write(t, filepath.Join(dir, "c.go"), "package a\n")
		git(t, dir, "config", "status.showUntrackedFiles", "no")
		excludes := filepath.Join(t.TempDir(), "excludes")
		write(t, excludes, "b.go\n")
		git(t, dir, "config", "core.excludesFile", excludes)
		write(t, filepath.Join(dir, ".git", "info", "exclude"), "c.go\n")
	})
	change("new, and excluded in this clone only", func(dir string) {
		write(t, filepath.Join(dir, "c.go"), "package a\n")
		write(t, filepath.Join(dir, ".git", "info", "exclude"), "c.go\n")
	})

	t.Run("what slipway writes is no change", func(t *testing.T) {
		write(t, filepath.Join(dir, "slipway.lock"), "{}\n")
		write(t, filepath.Join(dir, "dist", "run.json"), "{}\n")
		write(t, filepath.Join(dir, "ignored.log"), "")
		s := source(t, dir, "dist")
		assert.False(t, s.Dirty)
		assert.Equal(t, []string{".gitignore", "a.go", "slipway.lock"}, fileNames(s))
		assert.True(t, source(t, dir).Dirty, "dist counts where it is not the output directory")
		commit(t, dir)
		write(t, filepath.Join(dir, "slipway.lock"), "{ }\n")
		assert.False(t, source(t, dir, "dist").Dirty, "also when it is tracked")
	})
	t.Run("SOURCE_DATE_EPOCH", func(t *testing.T) {
		t.Setenv("SOURCE_DATE_EPOCH", "1000000000")
		s := source(t, dir)
		assert.Equal(t, time.Unix(1000000000, 0).UTC(), s.Time)
		assert.NotEmpty(t, s.Commit)
		assert.Equal(t, time.Unix(1000000000, 0).UTC(), source(t, writeTree(t, map[string]string{"a": ""})).Time)
		for _, bad := range []string{"yesterday", "-1", "1.5", " 1"} {
			t.Setenv("SOURCE_DATE_EPOCH", bad)
			requireFault(t, openFails(t, dir), fault.Usage, "SOURCE_DATE_EPOCH", bad, "seconds since 1970")
		}
	})
}

func TestSourceIsCancelled(t *testing.T) {
	dir := writeTree(t, map[string]string{"a": "1"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e, err := host.Open(ctx, dir, host.Options{CacheDir: cacheDir})
	assert.Nil(t, e)
	assert.Equal(t, fault.Interrupted, fault.Of(err), "%v", err)
}
