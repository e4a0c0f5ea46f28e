package binary

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// The tests build one small program with several Go releases. It has no imports, so that only the
// runtime has to be compiled for each of them.
const (
	goSource = `package main

var when = "never"

func main() { println("hello", when) }
`
	cgoSource = `package main

// #include <stdlib.h>
// static __thread int seven = 7;
// static int plus(int x) { return abs(x) + seven; }
import "C"

func main() { println("hello", C.plus(1)) }
`
)

// program says how to build the test program.
type program struct {
	release  string // "1.22.12"
	platform string // "linux/amd64"
	mode     string // build mode, "cgo", "static-cgo" or ""
	dir      string // name of the source directory, if it matters
	args     string // further arguments, separated by "|"
}

func (p program) String() string { return strings.TrimRight(p.release+" "+p.platform+" "+p.mode, " ") }

var builds struct {
	sync.Mutex
	dir   string
	files map[program]string
	err   map[string]error // by release
}

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "binary-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		builds.dir, builds.files, builds.err = dir, map[program]string{}, map[string]error{}
		return m.Run()
	}()
	os.Exit(code)
}

func goCommand(p program, args ...string) *exec.Cmd {
	system, arch, _ := strings.Cut(p.platform, "/")
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN=go"+p.release, "GOFLAGS=", "GOWORK=off", "GOOS="+system, "GOARCH="+arch)
	if strings.HasSuffix(p.mode, "cgo") {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=1")
	} else {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
	}
	return cmd
}

// build returns the path of the program, which it builds once. It skips the test when the toolchain or
// a C compiler cannot be had.
func build(t testing.TB, p program) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if file := builds.files[p]; file != "" {
		return file
	}
	host := program{release: p.release}
	if _, ok := builds.err[p.release]; !ok {
		cmd := goCommand(host, "version")
		cmd.Env = append(cmd.Env, "GOOS=", "GOARCH=")
		out, err := cmd.CombinedOutput()
		if err == nil && !bytes.Contains(out, []byte("go"+p.release+" ")) {
			err = errors.New("another release answered")
		}
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		builds.err[p.release] = err
	}
	if err := builds.err[p.release]; err != nil {
		t.Skipf("Go %s cannot be had here: %v", p.release, err)
	}
	source := goSource
	if strings.HasSuffix(p.mode, "cgo") {
		source = cgoSource
		if runtime.GOOS+"/"+runtime.GOARCH != p.platform {
			t.Skip("no C compiler for another platform")
		}
		if _, err := exec.LookPath("gcc"); err != nil {
			t.Skip("no C compiler (gcc) for a cgo program")
		}
	}
	file := filepath.Join(builds.dir, fmt.Sprintf("program%d", len(builds.files)))
	dir := filepath.Join(builds.dir, p.dir+p.mode, "src")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/hello\n\ngo 1.20\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o644))
	args := []string{"build", "-o", file}
	switch p.mode {
	case "static-cgo":
		args = append(args, "-ldflags=-linkmode=external -extldflags=-static")
	case "", "cgo":
	default:
		args = append(args, "-buildmode="+p.mode)
	}
	if p.args != "" {
		args = append(args, strings.Split(p.args, "|")...)
	}
	cmd := goCommand(p, append(args, ".")...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("cannot find -lc")) {
		t.Skip("no static C library (libc.a)")
	}
	require.NoError(t, err, "%s: %s", p, out)
	builds.files[p] = file
	return file
}

// elfPrograms and otherPrograms are the programs that the tests look at: every release, processor and kind of
// link is there, but not every combination, each of which costs seconds.
var (
	elfPrograms = []program{
		{release: "1.20.14", platform: "linux/amd64"},
		{release: "1.20.14", platform: "linux/amd64", mode: "pie"},
		{release: "1.21.13", platform: "linux/amd64"},
		{release: "1.21.13", platform: "linux/386"},
		{release: "1.20.14", platform: "linux/arm"},
		{release: "1.21.13", platform: "linux/amd64", mode: "cgo"},
		{release: "1.22.12", platform: "linux/amd64"},
		{release: "1.22.12", platform: "linux/amd64", mode: "static-cgo"},
		{release: "1.22.12", platform: "linux/arm64"},
		{release: "1.22.12", platform: "linux/s390x"},
		{release: "1.27.4", platform: "linux/amd64"},
		{release: "1.27.4", platform: "linux/amd64", mode: "pie"},
	}
	otherPrograms = []program{
		{release: "1.21.13", platform: "windows/amd64"},
		{release: "1.27.4", platform: "darwin/arm64"},
	}
)
