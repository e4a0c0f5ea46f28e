package host_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// vandal does to the tree that it runs in what its argument says.
const vandal = `package main

import (
	"log"
	"os"
	"path/filepath"
)

func main() {
	must := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	switch outside := os.Getenv("OUTSIDE"); os.Args[1] {
	case "nothing":
	case "write":
		must(os.WriteFile("file.txt", []byte("changed, and longer"), 0o644))
		must(os.WriteFile("sub/same-size.txt", []byte("two"), 0o644))
	case "create":
		must(os.WriteFile("new.txt", nil, 0o644))
		must(os.MkdirAll("new/deep/empty", 0o755))
		must(os.WriteFile("sub/new.txt", nil, 0o644))
		must(os.Mkdir("locked", 0o755))
		must(os.WriteFile("locked/file", nil, 0o444))
		must(os.Chmod("locked", 0o555))
	case "delete":
		must(os.Remove("file.txt"))
		must(os.RemoveAll("sub"))
	case "delete all":
		must(os.RemoveAll("sub"))
		files, err := filepath.Glob("*")
		must(err)
		for _, f := range files {
			must(os.Remove(f))
		}
	case "modes":
		must(os.Chmod("file.txt", 0))
		must(os.Chmod("script.sh", 0o644))
		must(os.Chmod("sub/same-size.txt", 0o777))
		must(os.Chmod("sub/deep", 0o555))
		must(os.Chmod("sub", 0))
	case "read-only":
		must(os.WriteFile("sub/new.txt", nil, 0o644))
		must(os.WriteFile("sub/same-size.txt", []byte("changed"), 0o644))
		must(os.Chmod("sub", 0o555))
		must(os.Chmod(".", 0o555))
	case "kinds":
		must(os.Remove("file.txt"))
		must(os.MkdirAll("file.txt/file.txt", 0o755))
		must(os.RemoveAll("sub"))
		must(os.WriteFile("sub", nil, 0o644))
		must(os.Remove("link"))
		must(os.Mkdir("link", 0o755))
		must(os.WriteFile("link/file", nil, 0o644))
	case "links":
		must(os.RemoveAll("sub"))
		must(os.Symlink(outside, "sub"))
		must(os.Remove("file.txt"))
		must(os.Symlink(filepath.Join(outside, "same-size.txt"), "file.txt"))
		must(os.Remove("link"))
		must(os.Symlink("script.sh", "link"))
	case "move":
		must(os.Rename("sub", "moved"))
		must(os.Rename("script.sh", "file.txt"))
	default:
		log.Fatal("what?")
	}
}
`

func TestTreeIsAsItWas(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes and links there")
	}
	dir := program(t, vandal)
	writeTree(t, map[string]string{"file.txt": "text", "script.sh": "script", "sub/same-size.txt": "one", "sub/deep/file": "deep", "sub/deep/er/file": "deeper"}, dir)
	require.NoError(t, os.Chmod(filepath.Join(dir, "script.sh"), 0o755))
	require.NoError(t, os.Symlink("file.txt", filepath.Join(dir, "link")))
	past := time.Now().Add(-time.Hour)
	for _, name := range []string{"file.txt", "sub/same-size.txt"} {
		require.NoError(t, os.Chtimes(filepath.Join(dir, name), past, past))
	}
	if _, err := exec.LookPath("git"); err == nil {
		git(t, dir, "init", "-q")
		commit(t, dir)
	}
	outside := writeTree(t, map[string]string{"same-size.txt": "not yours", "deep/file": "not yours", "other": "not yours"})
	users, others := snapshot(t, dir), snapshot(t, outside)

	e := open(t, dir)
	command := func(args ...string) *engine.Result {
		return run(t, e, engine.Command{Name: "test", Args: append([]string{"go"}, args...), Env: []string{"OUTSIDE=" + outside}, Writes: true})
	}
	withoutDirTimes := func(all map[string]entry) map[string]entry {
		for name, x := range all {
			if x.mode.IsDir() || x.mode&fs.ModeSymlink != 0 {
				x.time = 0
				all[name] = x
			}
		}
		return all
	}
	r := command("run", ".", "nothing")
	before := withoutDirTimes(snapshot(t, r.Dir))
	require.Contains(t, before, "sub/deep/er/file")
	for _, what := range []string{"write", "create", "delete", "delete all", "modes", "read-only", "kinds", "links", "move"} {
		t.Run(what, func(t *testing.T) {
			command("run", ".", what)
			command("version") // any command finds the tree as it was
			assertSame(t, before, withoutDirTimes(snapshot(t, r.Dir)))
			assertSame(t, others, snapshot(t, outside)) // what a link led to
		})
	}
	assertSame(t, users, snapshot(t, dir)) // with .git
}

func TestTreesOfReleasesAreApart(t *testing.T) {
	dir := program(t, "package main\n\nfunc main() {}\n")
	e := open(t, dir)
	plain := run(t, e, engine.Command{Args: []string{"go", "version"}})
	writes := run(t, e, engine.Command{Args: []string{"go", "version"}, Writes: true})
	for _, d := range []string{plain.Dir, writes.Dir} {
		assert.NotEqual(t, dir, d)
		assert.FileExists(t, filepath.Join(d, "main.go"))
	}
	assert.NotEqual(t, plain.Dir, writes.Dir)
}

// assertSame compares two snapshots and shows what differs only.
func assertSame(t *testing.T, want, got map[string]entry) {
	t.Helper()
	for name, w := range want {
		g, ok := got[name]
		if assert.True(t, ok, "%s is missing", name) {
			assert.Equal(t, w, g, name)
		}
	}
	for name := range got {
		assert.Contains(t, want, name)
	}
}

func treeOf(t *testing.T, dir string, o host.Options) map[string]entry {
	t.Helper()
	e, err := host.Open(t.Context(), dir, o)
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	r := run(t, e, engine.Command{Args: []string{"go", "version"}})
	return snapshot(t, r.Dir)
}

func TestUnchangedFilesKeepTheirTimes(t *testing.T) {
	dir := program(t, "package main\n\nfunc main() {}\n")
	writeTree(t, map[string]string{"sub/data.txt": "one", "sub/gone.txt": "x"}, dir)
	o := host.Options{CacheDir: t.TempDir()}
	before := treeOf(t, dir, o)
	assertSame(t, before, treeOf(t, dir, o))

	// Times of the source are no content: a fresh clone has others.
	now := time.Now()
	require.NoError(t, os.Chtimes(filepath.Join(dir, "main.go"), now, now))
	assert.Equal(t, before["main.go"], treeOf(t, dir, o)["main.go"])

	write(t, filepath.Join(dir, "sub", "data.txt"), "changed")
	require.NoError(t, os.Remove(filepath.Join(dir, "sub", "gone.txt")))
	write(t, filepath.Join(dir, "sub", "new.txt"), "new")
	after := treeOf(t, dir, o)
	assert.Equal(t, before["main.go"], after["main.go"])
	assert.Equal(t, before["go.mod"], after["go.mod"])
	assert.Equal(t, "changed", after["sub/data.txt"].text)
	assert.NotEqual(t, before["sub/data.txt"].time, after["sub/data.txt"].time)
	assert.NotContains(t, after, "sub/gone.txt")
	assert.Contains(t, after, "sub/new.txt")
}

// A file can change without its size or time doing so: within a tick of the clock, or where a checkout
// gives all files the same time.
func TestEditWithinTheSameTick(t *testing.T) {
	dir := writeTree(t, map[string]string{
		"go.mod":    "module example.com/tick\n\ngo 1.20\n",
		"data.txt":  "good",
		"x_test.go": "package tick\n\nimport (\n\t\"os\"\n\t\"testing\"\n)\n\nfunc TestData(t *testing.T) {\n\tb, _ := os.ReadFile(\"data.txt\")\n\tif string(b) != \"good\" {\n\t\tt.Errorf(\"%s\", b)\n\t}\n}\n",
	})
	past := time.Now().Add(-time.Hour).Truncate(time.Second)
	set := func(text string) {
		write(t, filepath.Join(dir, "data.txt"), text)
		require.NoError(t, os.Chtimes(filepath.Join(dir, "data.txt"), past, past))
	}
	test := func() *engine.Result {
		e, err := host.Open(t.Context(), dir, host.Options{CacheDir: cacheDir})
		require.NoError(t, err)
		defer func() { require.NoError(t, e.Close()) }()
		r, err := e.Run(t.Context(), engine.Command{Args: []string{"go", "test", "."}, Writes: true})
		require.NoError(t, err)
		return r
	}
	set("good")
	assert.Zero(t, test().ExitCode)
	again := test()
	assert.Zero(t, again.ExitCode)
	assert.Contains(t, string(again.Stdout), "(cached)", "go test knows a result again")
	set("evil")
	changed := test()
	assert.Equal(t, 1, changed.ExitCode)
	assert.Contains(t, string(changed.Stdout), "evil")
	set("good")
	assert.Zero(t, test().ExitCode)
}

func TestIndexOfTreeDamaged(t *testing.T) {
	files := map[string]string{"a.txt": "one", "sub/b.txt": "two", "c.txt": "three"}
	for name, damage := range map[string]func(t *testing.T, index string, text []byte){
		"missing":   func(t *testing.T, index string, _ []byte) { require.NoError(t, os.Remove(index)) },
		"empty":     func(t *testing.T, index string, _ []byte) { write(t, index, "") },
		"truncated": func(t *testing.T, index string, text []byte) { write(t, index, string(text[:len(text)/2])) },
		"garbage":   func(t *testing.T, index string, _ []byte) { write(t, index, "\x00\xff{") },
		"null":      func(t *testing.T, index string, _ []byte) { write(t, index, "null") },
		"not ours": func(t *testing.T, index string, _ []byte) {
			write(t, index, `{"a.txt":{"size":"big"},"sub/b.txt":{"sha256":"x"}}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := writeTree(t, files)
			o := host.Options{CacheDir: t.TempDir()}
			treeOf(t, dir, o)
			indexes, err := filepath.Glob(filepath.Join(o.CacheDir, "sources", "*", "trees", "*.json"))
			require.NoError(t, err)
			require.Len(t, indexes, 1)
			text, err := os.ReadFile(indexes[0])
			require.NoError(t, err)
			damage(t, indexes[0], text)
			// A sync that was killed leaves files of the wrong length, too few and too many.
			tree := strings.TrimSuffix(indexes[0], ".json")
			write(t, filepath.Join(tree, "a.txt"), "o")
			write(t, filepath.Join(tree, "too-many.txt"), "")
			require.NoError(t, os.RemoveAll(filepath.Join(tree, "sub")))
			got := treeOf(t, dir, o)
			assert.Equal(t, sortedKeys(map[string]bool{".": true, "a.txt": true, "c.txt": true, "sub": true, "sub/b.txt": true}), sortedKeys(got))
			for name, text := range files {
				assert.Equal(t, text, got[name].text)
			}
		})
	}
}

// opening is a process that opens an engine.
func opening(dir, cache string, shell ...string) *exec.Cmd {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(self)
	if len(shell) > 0 {
		cmd = exec.Command("sh", "-c", shell[0]+` && exec "$0"`, self)
	}
	cmd.Env = append(os.Environ(), "HOST_TEST_OPEN="+dir, "HOST_TEST_CACHE="+cache)
	return cmd
}

func TestKilledWhileCopying(t *testing.T) {
	files := map[string]string{}
	for i := range 400 {
		files[fmt.Sprintf("d%02d/f%d.txt", i%20, i)] = strings.Repeat(fmt.Sprintln(i), 2000)
	}
	dir := writeTree(t, files)
	cache := t.TempDir()
	for _, n := range []int{1, 150, 300} { // directories and files that are there when it is killed
		cmd := opening(dir, cache)
		require.NoError(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		copied := 0
		for alive := true; alive && copied < n; {
			select {
			case err := <-ended:
				alive = false
				ended <- err
			default:
				found, _ := filepath.Glob(filepath.Join(cache, "sources", "*", "trees", "*", "*", "*"))
				copied = len(found)
			}
		}
		_ = cmd.Process.Kill()
		t.Logf("killed after %d files: %v", copied, <-ended)
		e := openWith(t, dir, host.Options{CacheDir: cache})
		assert.Equal(t, files, texts(t, e.Source().FS))
		require.NoError(t, e.Close())
		if n < 300 {
			trees, err := filepath.Glob(filepath.Join(cache, "sources", "*", "trees"))
			require.NoError(t, err)
			for _, tree := range trees {
				require.NoError(t, os.RemoveAll(tree))
			}
		}
	}
}

// A limit on the size of files stands for a full disk.
func TestDiskFull(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no ulimit there")
	}
	dir := writeTree(t, map[string]string{"a.txt": "small", "big.txt": strings.Repeat("big\n", 100_000), "z.txt": "small"})
	cache := t.TempDir()
	cmd := opening(dir, cache, "ulimit -f 100")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	require.Error(t, err)
	assert.Equal(t, int(fault.Environment), cmd.ProcessState.ExitCode(), "%s", stderr.String())
	assert.Contains(t, stderr.String(), "cache directory")
	assert.Contains(t, stderr.String(), "SLIPWAY_CACHE")
	e := openWith(t, dir, host.Options{CacheDir: cache})
	assert.Len(t, texts(t, e.Source().FS), 3)
	assert.Equal(t, strings.Repeat("big\n", 100_000), texts(t, e.Source().FS)["big.txt"])
}

func TestCacheDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, "")
	e, err := host.Open(t.Context(), t.TempDir(), host.Options{CacheDir: filepath.Join(file, "cache")})
	assert.Nil(t, e)
	requireFault(t, err, fault.Environment, "cache directory", "SLIPWAY_CACHE")

	own := t.TempDir()
	t.Setenv("SLIPWAY_CACHE", own)
	for override, want := range map[string]string{"": own, filepath.Join(own, "x"): filepath.Join(own, "x")} {
		got, err := host.CacheDir(override)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	os.Unsetenv("SLIPWAY_CACHE")
	got, err := host.CacheDir("")
	require.NoError(t, err)
	user, err := os.UserCacheDir()
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(user, "slipway"), got)
}

// Copies of sources that nobody has used for a month are removed, but not those in use.
func TestOldCopiesAreRemoved(t *testing.T) {
	o := host.Options{CacheDir: t.TempDir()}
	dirs := map[string]string{"old": writeTree(t, map[string]string{"a": "1"}), "used": writeTree(t, map[string]string{"a": "2"}), "new": writeTree(t, map[string]string{"a": "3"})}
	used := openWith(t, dirs["used"], o)
	treeOf(t, dirs["old"], o)
	locks, err := filepath.Glob(filepath.Join(o.CacheDir, "sources", "*.lock"))
	require.NoError(t, err)
	require.Len(t, locks, 2)
	long := time.Now().Add(-31 * 24 * time.Hour)
	for _, l := range locks {
		require.NoError(t, os.Chtimes(l, long, long))
	}
	treeOf(t, dirs["new"], o)
	assert.Equal(t, map[string]string{"a": "2"}, texts(t, used.Source().FS))
	require.NoError(t, used.Close())
	left, err := filepath.Glob(filepath.Join(o.CacheDir, "sources", "*", "trees", "source", "a"))
	require.NoError(t, err)
	assert.Len(t, left, 2)
	treeOf(t, dirs["new"], o)
	left, err = filepath.Glob(filepath.Join(o.CacheDir, "sources", "*", "trees", "source", "a"))
	require.NoError(t, err)
	assert.Len(t, left, 2, "closing counts as use")
}
