//go:build unix

package host_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// family is a program, and a test, that starts a child which ignores signals. Both hold a connection to
// ADDRESS as long as they live, over which they send who they are.
const family = `package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		c := report("child")
		os.NewFile(3, "").Close()
		io.Copy(io.Discard, c)
		return
	}
	start(os.Args[1:]...)
}

func start(how ...string) {
	child := exec.Command(os.Args[0], "child")
	child.Env = append(os.Environ(), "CHILD=1")
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	for _, h := range how {
		switch h {
		case "silent":
			child.Stdout, child.Stderr = nil, nil
		case "session":
			child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		}
	}
	reported, w, err := os.Pipe()
	if err != nil {
		log.Fatal(err)
	}
	child.ExtraFiles = []*os.File{w}
	if err := child.Start(); err != nil {
		log.Fatal(err)
	}
	w.Close()
	io.Copy(io.Discard, reported)
	for _, h := range how {
		if h == "leave" {
			fmt.Println("left")
			return
		}
		if h == "fail" {
			os.Exit(3)
		}
	}
	io.Copy(io.Discard, report("parent"))
}

func report(who string) net.Conn {
	c, err := net.Dial("tcp", os.Getenv("ADDRESS"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintf(c, "%s %d\n", who, os.Getpid())
	return c
}
`

const familyTest = `package main

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv("CHILD") != "" {
		os.Args = []string{os.Args[0], "child"}
		main()
		return
	}
	os.Exit(m.Run())
}

func TestHangs(t *testing.T) { start() }
`

// relatives are the processes of a family that live.
type relatives struct {
	t    *testing.T
	l    net.Listener
	pids map[string]int
	conn map[string]net.Conn
}

func newRelatives(t *testing.T) *relatives {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r := &relatives{t: t, l: l, pids: map[string]int{}, conn: map[string]net.Conn{}}
	t.Cleanup(func() {
		_ = l.Close()
		for _, c := range r.conn {
			_ = c.Close()
		}
	})
	return r
}

// arrive waits for a member of the family.
func (r *relatives) arrive() {
	require.NoError(r.t, r.l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)))
	c, err := r.l.Accept()
	require.NoError(r.t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(r.t, err)
	who, pid, _ := strings.Cut(strings.TrimSpace(line), " ")
	r.conn[who] = c
	r.pids[who], err = strconv.Atoi(pid)
	require.NoError(r.t, err)
}

// gone waits for the end of a member, which closes its connection.
func (r *relatives) gone(who string) {
	require.NoError(r.t, r.conn[who].SetDeadline(time.Now().Add(time.Minute)))
	_, err := r.conn[who].Read(make([]byte, 1))
	require.Error(r.t, err)
	require.NotErrorIs(r.t, err, os.ErrDeadlineExceeded, "%s lives", who)
	// Closing its connection is among the last things that it does. Nobody may wait for it: a dead process
	// that is remembered is none.
	for syscall.Kill(r.pids[who], 0) == nil {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.pids[who]))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		runtime.Gosched()
	}
}

func (r *relatives) env() []string { return []string{"ADDRESS=" + r.l.Addr().String()} }

func TestCancelEndsEverything(t *testing.T) {
	e := open(t, writeTree(t, map[string]string{"go.mod": "module example.com/family\n\ngo 1.20\n", "main.go": family, "main_test.go": familyTest}))
	for name, args := range map[string][]string{"go test": {"go", "test", "-count=1", "."}, "go run": {"go", "run", "."}, "child without output": {"go", "run", ".", "silent"}} {
		t.Run(name, func(t *testing.T) {
			r := newRelatives(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := e.Run(ctx, engine.Command{Name: name, Args: args, Env: r.env(), Writes: true})
				ended <- err
			}()
			r.arrive()
			r.arrive()
			require.Len(t, r.pids, 2)
			cancel()
			err := <-ended
			assert.Equal(t, fault.Interrupted, fault.Of(err), "%v", err)
			assert.ErrorContains(t, err, name)
			r.gone("parent")
			r.gone("child")
		})
	}
	// The tree is free for the next command.
	run(t, e, engine.Command{Args: []string{"go", "version"}, Writes: true})
}

func TestTimeoutEndsEverything(t *testing.T) {
	e := open(t, program(t, family))
	r := newRelatives(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	// The deadline comes when both live, however long that takes.
	deadline := &deadlineContext{Context: ctx}
	ended := make(chan error, 1)
	go func() {
		_, err := e.Run(deadline, engine.Command{Name: "slow", Args: []string{"go", "run", "."}, Env: r.env()})
		ended <- err
	}()
	r.arrive()
	r.arrive()
	cancel(context.DeadlineExceeded)
	err := <-ended
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Equal(t, fault.Environment, fault.Of(err))
	r.gone("parent")
	r.gone("child")
}

// deadlineContext says that its deadline passed when it is cancelled.
type deadlineContext struct{ context.Context }

func (c *deadlineContext) Err() error {
	if c.Context.Err() != nil {
		return context.DeadlineExceeded
	}
	return nil
}

func TestDaemonDoesNotHangTheRun(t *testing.T) {
	e := open(t, program(t, family))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, how := range []string{"leave", "fail"} {
		t.Run(how, func(t *testing.T) {
			r := newRelatives(t)
			result, err := e.Run(ctx, engine.Command{Args: []string{"go", "run", ".", how}, Env: r.env()})
			require.NoError(t, err)
			if how == "leave" {
				assert.Zero(t, result.ExitCode)
				assert.Equal(t, "left\n", string(result.Stdout))
			} else {
				assert.Equal(t, 1, result.ExitCode)
			}
			r.arrive()
			r.gone("child") // it is of the command's group
		})
	}
	t.Run("in a session of its own", func(t *testing.T) {
		r := newRelatives(t)
		result, err := e.Run(ctx, engine.Command{Args: []string{"go", "run", ".", "leave", "session"}, Env: r.env()})
		require.NoError(t, err)
		assert.Equal(t, "left\n", string(result.Stdout))
		r.arrive()
		// Nobody can tell it from a service that the machine needs. It ends when it loses its connection.
		require.NoError(t, r.conn["child"].(*net.TCPConn).CloseWrite())
		r.gone("child")
	})
}

func TestExitCodeOfSignal(t *testing.T) {
	e := open(t, program(t, "package main\n\nimport (\n\t\"os\"\n\t\"syscall\"\n)\n\nfunc main() { syscall.Kill(os.Getppid(), syscall.SIGKILL); select {} }\n"))
	r, err := e.Run(t.Context(), engine.Command{Args: []string{"go", "run", "."}})
	require.NoError(t, err)
	assert.Equal(t, 128+9, r.ExitCode)
}

func TestModesDoNotDependOnUmask(t *testing.T) {
	dir := program(t, "package main\n\nfunc main() {}\n")
	writeTree(t, map[string]string{"sub/deep/file": "x"}, dir)
	require.NoError(t, os.Chmod(filepath.Join(dir, "sub", "deep", "file"), 0o755))
	defer syscall.Umask(syscall.Umask(0o077))
	e := open(t, dir)
	r := run(t, e, engine.Command{Args: []string{"go", "version"}, Writes: true})
	for name, want := range map[string]string{".": "drwxr-xr-x", "main.go": "-rw-r--r--", "sub": "drwxr-xr-x", "sub/deep": "drwxr-xr-x", "sub/deep/file": "-rwxr-xr-x"} {
		i, err := os.Stat(filepath.Join(r.Dir, name))
		require.NoError(t, err)
		assert.Equal(t, want, i.Mode().String(), name)
	}
}
