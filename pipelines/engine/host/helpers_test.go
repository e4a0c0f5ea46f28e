package host_test

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// cacheDir is the cache directory of all tests that need none of their own: what the files of a toolchain
// hash to is then found out once.
var cacheDir string

// usersModCache is the module cache of whoever runs the tests. Nothing is written there but what fetching a
// toolchain does.
var usersModCache string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if dir := os.Getenv("HOST_TEST_OPEN"); dir != "" {
		return openAndClose(dir, os.Getenv("HOST_TEST_CACHE"))
	}
	var err error
	if cacheDir, err = os.MkdirTemp("", "slipway-host-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(cacheDir)
	// Neither the settings of whoever runs the tests nor those of a git hook that does count.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "GIT_") || name == "SOURCE_DATE_EPOCH" || name == "SLIPWAY_CACHE" {
			os.Unsetenv(name)
		}
	}
	os.Setenv("GIT_CONFIG_GLOBAL", filepath.Join(cacheDir, "gitconfig"))
	os.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	out, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	usersModCache = strings.TrimSpace(string(out))
	return m.Run()
}

// openAndClose is the main function of the processes that tests kill.
func openAndClose(dir, cache string) int {
	e, err := host.Open(context.Background(), dir, host.Options{CacheDir: cache})
	if err == nil {
		err = e.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return int(fault.Of(err))
	}
	return 0
}

// writeTree writes files below a new directory, or below dir if it is given.
func writeTree(t *testing.T, files map[string]string, dir ...string) string {
	t.Helper()
	if len(dir) == 0 {
		dir = []string{t.TempDir()}
	}
	for name, text := range files {
		write(t, filepath.Join(dir[0], filepath.FromSlash(name)), text)
	}
	return dir[0]
}

func write(t *testing.T, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, []byte(text), 0o644))
}

// program is a source tree with a main package.
func program(t *testing.T, main string) string {
	t.Helper()
	return writeTree(t, map[string]string{"go.mod": "module example.com/program\n\ngo 1.20\n", "main.go": main})
}

func open(t *testing.T, dir string) *host.Engine {
	t.Helper()
	return openWith(t, dir, host.Options{})
}

func openWith(t *testing.T, dir string, o host.Options) *host.Engine {
	t.Helper()
	if o.CacheDir == "" {
		o.CacheDir = cacheDir
	}
	e, err := host.Open(t.Context(), dir, o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, e.Close()) })
	return e
}

func openFails(t *testing.T, dir string) error {
	t.Helper()
	e, err := host.Open(t.Context(), dir, host.Options{CacheDir: cacheDir})
	if err == nil {
		_ = e.Close()
	}
	require.Error(t, err)
	return err
}

// names are the files of a source that was opened for nothing else.
func names(t *testing.T, dir string) []string {
	t.Helper()
	e, err := host.Open(t.Context(), dir, host.Options{CacheDir: cacheDir})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	return fileNames(e.Source())
}

func fileNames(s engine.Source) []string {
	names := []string{}
	for _, f := range s.Files {
		names = append(names, f.Name)
	}
	return names
}

// source is what an engine says of a tree.
func source(t *testing.T, dir string, exclude ...string) engine.Source {
	t.Helper()
	e, err := host.Open(t.Context(), dir, host.Options{CacheDir: cacheDir, Exclude: exclude})
	require.NoError(t, err)
	require.NoError(t, e.Close())
	return e.Source()
}

// run runs a command that must end with exit code 0.
func run(t *testing.T, e *host.Engine, c engine.Command) *engine.Result {
	t.Helper()
	r, err := e.Run(t.Context(), c)
	require.NoError(t, err)
	require.Zero(t, r.ExitCode, "%s\n%s", r.Stdout, r.Stderr)
	return r
}

// needToolchain makes a release ready that is not the installed one, or skips the test.
func needToolchain(t *testing.T, e *host.Engine, release string) engine.Toolchain {
	t.Helper()
	tc, err := e.Toolchain(t.Context(), release, nil)
	if err != nil && strings.Contains(err.Error(), "cannot be fetched") {
		t.Skipf("the Go module proxy is out of reach, and go%s is not in the module cache: %v", release, err)
	}
	require.NoError(t, err)
	return tc
}

// git runs git in dir, with a fixed author and time.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := tryGit(dir, args...)
	require.NoError(t, err, "git %q: %s", args, out)
	return out
}

func tryGit(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@example.com",
		"GIT_AUTHOR_DATE=2024-02-03T04:05:06Z", "GIT_COMMITTER_DATE=2024-02-03T04:05:07Z")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// needGit skips a test on a machine without git.
func needGit(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("there is no git on the PATH")
	}
}

// repository is a git repository with one commit of files.
func repository(t *testing.T, files map[string]string) string {
	t.Helper()
	needGit(t)
	dir := writeTree(t, files)
	git(t, dir, "init", "-q")
	commit(t, dir)
	return dir
}

func commit(t *testing.T, dir string) {
	t.Helper()
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", "x")
}

// entry is all that there is to know about a file.
type entry struct {
	mode fs.FileMode
	time int64
	text string
}

// snapshot reads a whole tree.
func snapshot(t *testing.T, dir string) map[string]entry {
	t.Helper()
	all := map[string]entry{}
	require.NoError(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		x := entry{mode: i.Mode(), time: i.ModTime().UnixNano()}
		switch {
		case i.Mode().IsRegular():
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			x.text = string(b)
		case i.Mode()&fs.ModeSymlink != 0:
			if x.text, err = os.Readlink(name); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(dir, name)
		all[filepath.ToSlash(rel)] = x
		return err
	}))
	return all
}

// texts are the regular files of a file system with their contents; links have "-> target".
func texts(t *testing.T, fsys fs.FS) map[string]string {
	t.Helper()
	all := map[string]string{}
	require.NoError(t, fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			link, err := fs.ReadLink(fsys, name)
			all[name] = "-> " + link
			return err
		}
		b, err := fs.ReadFile(fsys, name)
		all[name] = string(b)
		return err
	}))
	return all
}

// requireFault checks whose fault an error is, and that its message has every one of the given parts.
func requireFault(t *testing.T, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	require.Error(t, err)
	assert.Equal(t, kind, fault.Of(err), "%v", err)
	for _, part := range parts {
		assert.ErrorContains(t, err, part)
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// goOnly leaves nothing on the PATH but the go command.
func goOnly(t *testing.T) {
	t.Helper()
	program, err := exec.LookPath("go")
	require.NoError(t, err)
	program, err = filepath.EvalSymlinks(program)
	require.NoError(t, err)
	dir := t.TempDir()
	if err := os.Symlink(program, filepath.Join(dir, filepath.Base(program))); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	t.Setenv("PATH", dir)
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}
