package host_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
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

// printEnv prints its environment as JSON.
const printEnv = `package main

import (
	"encoding/json"
	"os"
)

func main() { json.NewEncoder(os.Stdout).Encode(os.Environ()) }
`

// ambient is the environment of a laptop on which everything is different.
func ambient(t *testing.T) {
	t.Helper()
	home := writeTree(t, map[string]string{
		"goenv":          "GOFLAGS=-tags=fromgoenv\nGOPRIVATE=private.example\nGOAMD64=v3\n",
		".netrc":         "machine proxy.example login me password hunter2\n",
		"work/go.work":   "go 1.20\n",
		"bin/gcc-of-you": "",
	})
	for name, value := range map[string]string{
		"GOFLAGS": "-tags=ambient -ldflags=-w", "GOENV": filepath.Join(home, "goenv"), "GOWORK": filepath.Join(home, "work", "go.work"),
		"CGO_ENABLED": "1", "CGO_CFLAGS": "-DAMBIENT", "CC": "gcc-of-you", "GOTOOLCHAIN": "go1.99.0", "GOOS": "plan9", "GOARCH": "386", "GOAMD64": "v3",
		"GOEXPERIMENT": "fieldtrack", "GODEBUG": "http2debug=2", "GOCACHEPROG": "false", "GOFIPS140": "off", "GO111MODULE": "off", "GOPATH": filepath.Join(home, "gopath"),
		"GOBIN": filepath.Join(home, "gobin"), "GOROOT_FINAL": "/final", "GOPROXY": "https://me:hunter2@proxy.example/,https://other.example", "GONOSUMDB": "nosum.example",
		"GONOSUMCHECK": "1", "GOINSECURE": "insecure.example", "GOAUTH": "netrc", "GOVCS": "*:off", "NETRC": filepath.Join(home, ".netrc"),
		"AWS_SECRET_ACCESS_KEY": "hunter2", "GITHUB_TOKEN": "hunter2", "SSH_AUTH_SOCK": "/hunter2.sock", "HTTPS_PROXY": "http://me:hunter2@proxy.example:3128",
		"http_proxy": "http://me:hunter2@proxy.example:3128", "NO_PROXY": "inner.example", "SSL_CERT_FILE": "/certs.pem", "LD_PRELOAD": "", "LC_ALL": "de_DE.UTF-8", "TZ": "Asia/Tokyo",
		"USER": "hunter2", "EDITOR": "vi", "DOCKER_HOST": "tcp://hunter2",
	} {
		t.Setenv(name, value)
	}
	// Where the caches are does not depend on the home directory then.
	t.Setenv("HOME", home)
}

// pinCaches keeps the places of the caches when HOME changes.
func pinCaches(t *testing.T) {
	t.Helper()
	for _, name := range []string{"GOMODCACHE", "GOCACHE", "GOSUMDB"} {
		t.Setenv(name, goEnv(t, name))
	}
}

func environment(t *testing.T, stdout []byte) map[string]string {
	t.Helper()
	var list []string
	require.NoError(t, json.Unmarshal(stdout, &list), "%s", stdout)
	env := map[string]string{}
	for _, v := range list {
		name, value, _ := strings.Cut(v, "=")
		_, twice := env[name]
		assert.False(t, twice, "%s stands there twice", name)
		env[name] = value
	}
	return env
}

func TestNothingAmbientReachesCommands(t *testing.T) {
	dir := program(t, printEnv)
	plain := open(t, dir)
	want := environment(t, run(t, plain, engine.Command{Args: []string{"go", "run", "."}}).Stdout)
	wantGo := run(t, plain, engine.Command{Args: []string{"go", "env", "-json"}}).Stdout
	require.NoError(t, plain.Close())

	pinCaches(t)
	users, err := os.UserHomeDir()
	require.NoError(t, err)
	ambient(t)
	e := open(t, dir)
	for name, c := range map[string]engine.Command{"reads": {}, "writes": {Writes: true}} {
		t.Run(name, func(t *testing.T) {
			c.Args = []string{"go", "run", "."}
			r := run(t, e, c)
			got := environment(t, r.Stdout)
			assert.NotContains(t, string(r.Stdout), "hunter2")
			assert.NotContains(t, string(r.Stdout), "mbient")
			assert.NotContains(t, string(r.Stdout), os.Getenv("HOME"))
			assert.NotEqual(t, users, got["HOME"])
			assert.Equal(t, "off", got["GOPROXY"])
			assert.Equal(t, "0", got["CGO_ENABLED"])
			assert.Equal(t, "UTC", got["TZ"])
			assert.Equal(t, want, got)
		})
	}
	t.Run("go env", func(t *testing.T) {
		got := run(t, e, engine.Command{Args: []string{"go", "env", "-json"}}).Stdout
		var a, b map[string]string
		require.NoError(t, json.Unmarshal(wantGo, &a))
		require.NoError(t, json.Unmarshal(got, &b))
		for _, all := range []map[string]string{a, b} {
			delete(all, "GOGCCFLAGS") // names a new temporary directory each time
		}
		assert.Equal(t, a, b)
		assert.NotContains(t, string(run(t, e, engine.Command{Args: []string{"go", "env", "-json"}, Relocate: true}).Stdout), "hunter2")
		for name, value := range map[string]string{"GOFLAGS": "", "GOWORK": "off", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOSUMDB": "off",
			"GO111MODULE": "on", "GOEXPERIMENT": "", "GOTELEMETRY": "off", "GOPRIVATE": "", "GOOS": runtime.GOOS, "GOARCH": runtime.GOARCH} {
			assert.Equal(t, value, b[name], name)
		}
	})
}

func TestNetworkCommandsSeeTheUsersAccess(t *testing.T) {
	pinCaches(t)
	ambient(t)
	e := open(t, program(t, printEnv))
	got := environment(t, run(t, e, engine.Command{Args: []string{"go", "run", "."}, Network: true}).Stdout)
	for _, name := range []string{"GOPROXY", "GONOSUMDB", "GOINSECURE", "GOVCS", "GOAUTH", "NETRC", "HTTPS_PROXY", "http_proxy", "NO_PROXY", "SSL_CERT_FILE", "SSH_AUTH_SOCK", "HOME", "GOSUMDB"} {
		assert.Equal(t, os.Getenv(name), got[name], name)
	}
	assert.Equal(t, "private.example", got["GOPRIVATE"], "from the user's `go env -w`")
	assert.Equal(t, "", got["GOFLAGS"])
	assert.Equal(t, "off", got["GOENV"])
	for _, name := range []string{"AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "DOCKER_HOST", "GOAMD64", "GOEXPERIMENT", "CC", "GOWORK"} {
		if name == "GOWORK" {
			assert.Equal(t, "off", got[name])
			continue
		}
		assert.NotContains(t, got, name)
	}
}

func TestCommandsOwnEnvironment(t *testing.T) {
	e := open(t, program(t, printEnv))
	out := t.TempDir()
	r := run(t, e, engine.Command{Args: []string{"go", "run", "."}, CGO: true, Env: []string{"A=@source@/x", "B=@out@/y", "TZ=Asia/Tokyo", "A=last one wins @source@"}, OutputDir: out})
	var list []string
	require.NoError(t, json.Unmarshal(r.Stdout, &list))
	assert.Contains(t, list, "A=last one wins "+r.Dir)
	assert.Contains(t, list, "B="+out+"/y")
	assert.Contains(t, list, "TZ=Asia/Tokyo")
	assert.Contains(t, list, "CGO_ENABLED=1")
}

// ends is a program that writes files and ends as its argument says.
const ends = `package main

import (
	"fmt"
	"os"
	"strings"
)

func main() {
	out := os.Args[2]
	os.WriteFile(out+"/result.txt", []byte("result"), 0o644)
	os.MkdirAll(out+"/dir/deep", 0o755)
	os.WriteFile(out+"/dir/deep/file", []byte("deep"), 0o644)
	os.WriteFile("changed.txt", []byte("changed"), 0o644)
	os.MkdirAll("sub/new", 0o755)
	os.WriteFile("sub/new/file", []byte("new"), 0o755)
	fmt.Println("on stdout")
	fmt.Fprintln(os.Stderr, "on stderr")
	switch os.Args[1] {
	case "fail":
		os.Exit(7)
	case "panic":
		panic(strings.Repeat("x", 10))
	}
}
`

func TestOutputs(t *testing.T) {
	dir := program(t, ends)
	writeTree(t, map[string]string{"changed.txt": "as it was", "sub/old": "old"}, dir)
	e := open(t, dir)
	// Built first: go run has exit code 1 whatever the program's is.
	bin := t.TempDir()
	run(t, e, engine.Command{Args: []string{"go", "build", "-o", "@out@/ends.exe", "."}, OutputDir: bin, Outputs: []string{"ends.exe"}})
	for how, code := range map[string]int{"pass": 0, "fail": 1, "panic": 1} {
		t.Run(how, func(t *testing.T) {
			out := t.TempDir()
			r, err := e.Run(t.Context(), engine.Command{
				Args: []string{"go", "run", ".", how, "@out@"}, Writes: true, OutputDir: out,
				Outputs: []string{"result.txt", "dir", "never-written", "@source@/changed.txt", "@source@/sub", "@source@/never-written"},
			})
			require.NoError(t, err)
			assert.Equal(t, code, r.ExitCode)
			assert.Equal(t, "on stdout\n", string(r.Stdout))
			assert.Contains(t, string(r.Stderr), "on stderr\n")
			assert.Equal(t, map[string]string{"result.txt": "result", "dir/deep/file": "deep", "changed.txt": "changed", "sub/old": "old", "sub/new/file": "new"}, texts(t, os.DirFS(out)))
		})
	}
	b, err := os.ReadFile(filepath.Join(dir, "changed.txt"))
	require.NoError(t, err)
	assert.Equal(t, "as it was", string(b))
}

// An output directory is one of the calling process, also where its name is relative.
func TestOutputDirRelative(t *testing.T) {
	e := open(t, program(t, ends))
	t.Chdir(t.TempDir())
	require.NoError(t, os.Mkdir("out", 0o755))
	run(t, e, engine.Command{Args: []string{"go", "run", ".", "pass", "@out@"}, Writes: true, OutputDir: "out", Outputs: []string{"result.txt", "@source@/changed.txt"}})
	assert.FileExists(t, filepath.Join("out", "result.txt"))
	assert.FileExists(t, filepath.Join("out", "changed.txt"))
}

func TestStdoutStreams(t *testing.T) {
	e := open(t, program(t, ends))
	var b bytes.Buffer
	r := run(t, e, engine.Command{Args: []string{"go", "run", ".", "pass", t.TempDir()}, Writes: true, Stdout: &b})
	assert.Equal(t, "on stdout\n", b.String())
	assert.Empty(t, r.Stdout)
	assert.Positive(t, r.Duration)
}

func TestRunRefuses(t *testing.T) {
	e := open(t, program(t, ends))
	for want, c := range map[string]engine.Command{
		"go1.22.12 was not made ready": {Args: []string{"go", "version"}, Toolchain: "1.22.12"},
		"gofmt needs a toolchain":      {Args: []string{"gofmt"}},
	} {
		_, err := e.Run(t.Context(), c)
		assert.ErrorContains(t, err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := e.Run(ctx, engine.Command{Name: "go version", Args: []string{"go", "version"}})
	assert.Equal(t, fault.Interrupted, fault.Of(err))
	assert.ErrorContains(t, err, "go version")
}

func TestKeptOutputs(t *testing.T) {
	dir := program(t, "package main\n\nfunc main() { println(\"one\") }\n")
	o := host.Options{CacheDir: t.TempDir()}
	var log string
	build := func() string {
		e, err := host.Open(t.Context(), dir, o)
		require.NoError(t, err)
		defer func() { require.NoError(t, e.Close()) }()
		out := t.TempDir()
		r := run(t, e, engine.Command{Args: []string{"go", "build", "-x", "-trimpath", "-o", "@out@/x.exe", "."}, OutputDir: out, Outputs: []string{"x.exe"}, Keep: true})
		log = string(r.Stderr)
		b, err := os.ReadFile(filepath.Join(out, "x.exe"))
		require.NoError(t, err)
		i, err := os.Stat(filepath.Join(out, "x.exe"))
		require.NoError(t, err)
		assert.True(t, runtime.GOOS == "windows" || i.Mode().Perm() == 0o755, "%v", i.Mode())
		return string(b)
	}
	kept := func() string {
		found, err := filepath.Glob(filepath.Join(o.CacheDir, "sources", "*", "outputs", "*", "x.exe"))
		require.NoError(t, err)
		require.Len(t, found, 1)
		return found[0]
	}
	one := build()
	assert.Contains(t, log, "-buildmode=", "linked")
	assert.Equal(t, one, build())
	assert.NotContains(t, log, "-buildmode=", "not linked again")

	// The build ID is still there, and go build itself goes by that.
	damaged := []byte(one)
	i := bytes.LastIndex(damaged, []byte("one"))
	require.Positive(t, i)
	copy(damaged[i:], "two")
	require.NoError(t, os.WriteFile(kept(), damaged, 0o755))
	assert.Equal(t, one, build())

	write(t, filepath.Join(dir, "main.go"), "package main\n\nfunc main() { println(\"three\") }\n")
	assert.NotEqual(t, one, build())
}

func TestRelocate(t *testing.T) {
	dir := program(t, "package main\n\nfunc main() {}\n")
	e := open(t, dir)
	plain := run(t, e, engine.Command{Args: []string{"go", "env", "GOCACHE"}})
	// Asking for two commands at once must make one copy.
	results := make(chan *engine.Result, 2)
	for range 2 {
		go func() {
			r, err := e.Run(t.Context(), engine.Command{Args: []string{"go", "env", "GOCACHE"}, Relocate: true})
			assert.NoError(t, err)
			results <- r
		}()
	}
	a, b := <-results, <-results
	assert.Equal(t, a.Dir, b.Dir)
	cache := strings.TrimSpace(string(a.Stdout))
	assert.NotEqual(t, strings.TrimSpace(string(plain.Stdout)), cache)
	assert.NotEqual(t, plain.Dir, a.Dir)
	assert.FileExists(t, filepath.Join(a.Dir, "main.go"))
	entries, err := os.ReadDir(cache)
	require.NoError(t, err)
	assert.Empty(t, entries, "go env puts nothing into the build cache")

	// A package of the standard library that needs no other is compiled again.
	build := engine.Command{Args: []string{"go", "build", "-x", "internal/goarch"}}
	run(t, e, build)
	assert.NotContains(t, string(run(t, e, build).Stderr), "-p internal/goarch", "the user's cache has it now")
	build.Relocate = true
	r := run(t, e, build)
	assert.Equal(t, a.Dir, r.Dir)
	assert.Contains(t, string(r.Stderr), "-p internal/goarch")
	entries, err = os.ReadDir(cache)
	require.NoError(t, err)
	assert.NotEmpty(t, entries)
	assert.Equal(t, a.Dir, strings.TrimSpace(string(run(t, e, engine.Command{Args: []string{"go", "list", "-f", "{{.Dir}}"}, Relocate: true}).Stdout)))

	require.NoError(t, e.Close())
	assert.NoDirExists(t, a.Dir)
	assert.NoDirExists(t, cache)
	again := open(t, dir)
	other := run(t, again, engine.Command{Args: []string{"go", "env", "GOCACHE"}, Relocate: true})
	assert.NotEqual(t, a.Dir, other.Dir, "the place differs in every run")
}

// What a killed run left is removed by the next one.
func TestLeftoversOfKilledRun(t *testing.T) {
	dir := program(t, printEnv)
	o := host.Options{CacheDir: t.TempDir()}
	killed, err := host.Open(t.Context(), dir, o) // and never closed, as far as its files go
	require.NoError(t, err)
	env := environment(t, run(t, killed, engine.Command{Args: []string{"go", "run", "."}}).Stdout)
	relocated := run(t, killed, engine.Command{Args: []string{"go", "env", "GOCACHE"}, Relocate: true})
	left := []string{relocated.Dir, strings.TrimSpace(string(relocated.Stdout)), env["HOME"], env["TMPDIR"]}
	require.NoError(t, killed.Close())
	for _, d := range left {
		write(t, filepath.Join(d, "left"), "")
		require.NoError(t, os.Chmod(d, 0o700))
	}
	e := openWith(t, dir, o)
	for _, d := range left {
		assert.NoFileExists(t, filepath.Join(d, "left"))
	}
	for _, d := range left[:2] {
		assert.NoDirExists(t, d)
	}
	require.NoError(t, e.Close())
}

func TestOneEngineAtATime(t *testing.T) {
	dir := program(t, printEnv)
	first := open(t, dir)
	home := environment(t, run(t, first, engine.Command{Args: []string{"go", "run", "."}}).Stdout)["HOME"]

	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	second, err := host.Open(short, dir, host.Options{CacheDir: cacheDir})
	require.Error(t, err, "the first one still works on it")
	assert.Nil(t, second)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	requireFault(t, err, fault.Environment, dir+" is in use", "Another slipway works on it")
	assert.DirExists(t, home, "giving up must not take away what the first one uses")
	run(t, first, engine.Command{Args: []string{"go", "run", "."}, Writes: true})

	other := open(t, program(t, printEnv)) // another source does not wait
	require.NoError(t, other.Close())

	opened := make(chan error, 1)
	go func() {
		e, err := host.Open(t.Context(), dir, host.Options{CacheDir: cacheDir})
		if err == nil {
			_, err = e.Run(t.Context(), engine.Command{Args: []string{"go", "run", "."}, Writes: true})
			_ = e.Close()
		}
		opened <- err
	}()
	run(t, first, engine.Command{Args: []string{"go", "run", "."}, Writes: true})
	select {
	case err := <-opened:
		t.Fatalf("the second one did not wait (%v)", err)
	default:
	}
	require.NoError(t, first.Close())
	assert.NoError(t, <-opened)
}

func TestCloseRemovesTemporaryFiles(t *testing.T) {
	e := open(t, program(t, `package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
)

func main() {
	home, _ := os.UserHomeDir()
	for _, dir := range []string{home, os.TempDir()} {
		dir = filepath.Join(dir, "mod", "read-only")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			log.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o444); err != nil {
			log.Fatal(err)
		}
		if err := os.Chmod(dir, 0o555); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println(home)
	fmt.Println(os.TempDir())
}
`))
	r := run(t, e, engine.Command{Args: []string{"go", "run", "."}, Writes: true})
	dirs := strings.Split(strings.TrimSpace(string(r.Stdout)), "\n")
	require.Len(t, dirs, 2)
	for _, d := range dirs {
		assert.DirExists(t, d)
	}
	require.NoError(t, e.Close())
	for _, d := range dirs {
		assert.NoDirExists(t, d)
	}
	require.NoError(t, e.Close(), "closing twice does no harm")
}

// A question that has nothing to do with the source is not answered by what its go.mod says.
func TestOutsideOfTheSource(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		file, ok := strings.CutPrefix(r.URL.Path, "/golang.org/toolchain/@v/")
		version, info := strings.CutSuffix(file, ".info")
		switch {
		case ok && file == "list":
			fmt.Fprintf(w, "v0.0.1-go1.22.12.%[1]s\nv0.0.1-go1.99.1.%[1]s\n", runtime.GOOS+"-"+runtime.GOARCH)
		case ok && info:
			fmt.Fprintf(w, `{"Version":%q,"Time":"2024-02-03T04:05:06Z"}`, version)
		default:
			http.NotFound(w, r)
		}
	}))
	defer proxy.Close()
	t.Setenv("GOPROXY", proxy.URL)
	for name, files := range map[string]map[string]string{
		"newer Go":  {"go.mod": "module example.com/new\n\ngo 1.99.9\n"},
		"vendor":    {"go.mod": "module example.com/vendored\n\ngo 1.20\n", "vendor/modules.txt": ""},
		"broken":    {"go.mod": "what?\n"},
		"no go.mod": {"README": ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := open(t, writeTree(t, files))
			c := engine.Command{Args: []string{"go", "list", "-m", "-versions", "go"}, Network: true, Dir: engine.OutDir, OutputDir: t.TempDir()}
			versions := strings.Fields(string(run(t, e, c).Stdout))
			assert.Subset(t, versions, []string{"1.22.12", "1.99.1"}) // and the installed Go's own
			if name == "newer Go" {
				c.Dir = ""
				r, err := e.Run(t.Context(), c)
				require.NoError(t, err)
				assert.Contains(t, string(r.Stderr), "requires go >= 1.99.9", "this is why")
			}
		})
	}
}
