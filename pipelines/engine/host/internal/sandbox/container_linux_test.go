package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// TestContainer tests what is in force and what works, from inside and from outside.
func TestContainer(t *testing.T) {
	image := appImage(t, v1.Config{}, file("able", 0o755, "").able(bindService)).write(t)
	with := func(kind string, args ...string) engine.Container {
		c := image
		c.Isolation, c.Args = kind, args
		return c
	}

	t.Run("inside", func(t *testing.T) {
		c := appImage(t, v1.Config{WorkingDir: "/wd", Env: []string{"A=image", "B=image"}}, dir("etc", 0o755)).write(t)
		c.Env = []string{"B=caller", "C=caller"}
		secret := filepath.Join(t.TempDir(), "secret")
		require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o644))
		outside, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer outside.Close()
		forEachKind(t, isolated, func(t *testing.T, kind string) {
			c.Isolation = kind
			r, p := getReport(t, c, "write=/etc/x", "write=/x", "write=/dev/x", "write=/proc/sys/kernel/core_pattern", "write=/wd/x",
				"write=/tmp/x", "write=/dev/shm/x", "write=/dev/null", "write=/dev/stdout", "fill=/tmp/big",
				"read="+secret, "read=/dev/zero", "read=/proc/keys", "read=/etc/hosts", "stat=/sys", "stat=/tmp", "stat=/wd",
				"stat=/proc/1/root/etc/passwd", "dial="+outside.Addr().String(), "dial=192.0.2.1:80", "dial=localhost:1")

			require.Equal(t, 65532, r.UID)
			require.Equal(t, 65532, r.GID)
			require.Equal(t, 1, r.PID)
			require.Equal(t, []string{"1"}, r.Pids)
			for set, value := range r.Caps {
				require.Equal(t, "0000000000000000", value, set)
			}
			require.Len(t, r.Caps, 5)
			require.Equal(t, "1", r.NNP)
			require.Equal(t, "SigBlk=0000000000000000 SigIgn=0000000000000000 ", r.Sig)
			require.Equal(t, "/wd", r.Cwd)
			require.Equal(t, "/app", r.Exe)
			require.Equal(t, "slipway", r.Host)
			require.Equal(t, []string{"/app", "report"}, r.Args[:2])
			require.Equal(t, []string{
				"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=image", "B=caller", "C=caller",
			}, r.Env[:4])
			require.Len(t, r.Env, 6) // the mark of the tests, and HOME
			require.Contains(t, r.Env, "HOME=/")
			require.Len(t, r.FDs, 3, "%v", r.FDs)
			require.Equal(t, "0 /dev/null", r.FDs[0])
			require.Equal(t, []string{"lo up|loopback|running"}, r.Links)
			for ns, id := range r.NS {
				outside, err := os.Readlink("/proc/self/ns/" + ns)
				require.NoError(t, err)
				if ns != "user" {
					require.NotEqual(t, outside, id, ns)
				}
			}

			readonly := unix.EROFS.Error()
			require.Equal(t, map[string]string{
				"/etc/x": readonly, "/x": readonly, "/dev/x": readonly, "/wd/x": readonly, "/tmp/x": "ok", "/dev/shm/x": "ok",
				"/dev/null": "ok", "/dev/stdout": "ok", "/tmp/big": "63 MiB, " + unix.ENOSPC.Error(),
				"/proc/sys/kernel/core_pattern": r.Writes["/proc/sys/kernel/core_pattern"],
			}, r.Writes)
			require.Contains(t, []string{readonly, unix.EACCES.Error()}, r.Writes["/proc/sys/kernel/core_pattern"])
			require.Equal(t, map[string]string{
				secret: unix.ENOENT.Error(), "/dev/zero": strconv.Quote(strings.Repeat("\x00", 16)), "/proc/keys": `""`,
				"/etc/hosts": strconv.Quote("127.0.0.1\tlocalh"),
			}, r.Reads)
			require.Equal(t, unix.ENOENT.Error(), r.Files["/sys"])
			require.Equal(t, unix.ENOENT.Error(), r.Files["/proc/1/root/etc/passwd"])
			require.Regexp(t, "^dtrwxrwxrwx ", r.Files["/tmp"])
			require.Regexp(t, "^dr.xr-xr-x ", r.Files["/wd"])
			require.Equal(t, map[string]string{
				outside.Addr().String(): unix.ECONNREFUSED.Error(), "192.0.2.1:80": unix.ENETUNREACH.Error(),
				"localhost:1": unix.ECONNREFUSED.Error(), // by name, and on loopback
			}, r.Dials)

			iso := p.Isolation()
			require.Equal(t, kind, iso.Kind)
			holds := slices.Clone(holdsNames)
			if v := os.Getenv(envVariant); v == noSysAdmin || v == oneID {
				holds = slices.DeleteFunc(holds, func(s string) bool { return s == "processes" })
			}
			require.ElementsMatch(t, holds, iso.Holds)
			require.Equal(t, expectedMissing(kind), words(iso.Missing), "%q", iso.Missing)
		})
	})

	t.Run("dial", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			addresses := []string{"serve", "127.0.0.1:0", "[::1]:0", ":0"}
			if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
				addresses[2] = "127.0.0.1:0" // no IPv6
			}
			p := serving(t, run(t, with(kind, addresses...)))
			ports, err := p.Listening(bounded(t))
			require.NoError(t, err)
			require.Len(t, ports, 3)
			require.True(t, slices.IsSorted(ports))
			for _, port := range ports {
				require.Equal(t, "hello from /x", get(t, p, port, "/x"))
				if kind != kindProcess {
					_, err := (&http.Client{}).Get(fmt.Sprintf("http://localhost:%d/x", port))
					require.Error(t, err, "the port is open on the host")
				}
			}
			// Many at a time, and connections that live on.
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					c, err := p.Dial(bounded(t), ports[0])
					if err == nil {
						defer c.Close()
						_, err = io.WriteString(c, "GET /y HTTP/1.0\r\n\r\n")
						if answer, rerr := io.ReadAll(c); err == nil && rerr == nil && !strings.HasSuffix(string(answer), "hello from /y") {
							err = fmt.Errorf("%q", answer)
						}
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()

			_, err = p.Dial(bounded(t), unusedPort(ports))
			require.ErrorIs(t, err, unix.ECONNREFUSED)
			require.IsType(t, &net.OpError{}, err)
			_, err = p.Dial(bounded(t), 65536)
			require.Error(t, err)
			cancelled, cancel := context.WithCancel(context.Background())
			cancel()
			_, err = p.Dial(cancelled, ports[0])
			require.ErrorIs(t, err, context.Canceled)
			require.Equal(t, "hello from /z", get(t, p, ports[0], "/z"), "after a cancelled call")

			require.NoError(t, p.Close())
			_, err = p.Dial(bounded(t), ports[0])
			require.Error(t, err)
			_, err = p.Listening(bounded(t))
			require.Error(t, err)
			_, err = p.Wait(bounded(t))
			require.ErrorIs(t, err, errClosed)
			require.ErrorIs(t, p.Signal(unix.SIGTERM), os.ErrProcessDone)
			require.Contains(t, string(p.Output()), "serving\n")
		})
	})

	t.Run("exit", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			p := run(t, with(kind, "exit", "3"))
			for range 2 {
				exit, err := p.Wait(bounded(t))
				require.NoError(t, err)
				require.Equal(t, 3, exit.Code)
				require.Empty(t, exit.Signal)
			}
			require.Equal(t, "bye\n", string(p.Output()))
			require.ErrorIs(t, p.Signal(unix.SIGTERM), os.ErrProcessDone)
		})
	})

	t.Run("stop", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			p := serving(t, run(t, with(kind, "stop")))
			cancelled, cancel := context.WithCancel(context.Background())
			cancel()
			_, err := p.Wait(cancelled)
			require.ErrorIs(t, err, context.Canceled)
			require.NoError(t, p.Signal(unix.SIGTERM))
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Equal(t, 7, exit.Code)
			require.Equal(t, "serving\nstopped\n", string(p.Output()))
		})
	})

	t.Run("signals", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			p := serving(t, run(t, with(kind, "ignore")))
			require.NoError(t, p.Signal(unix.SIGTERM))
			require.NoError(t, p.Signal(unix.SIGKILL))
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Equal(t, 137, exit.Code)
			require.Equal(t, "SIGKILL", exit.Signal)
			require.NoError(t, p.Close())

			// The first process of a pid namespace is not ended by a signal that it does not handle. The
			// Go runtime, which wants to die of this one, gives up on that and exits.
			p = serving(t, run(t, with(kind, "wait")))
			require.NoError(t, p.Signal(unix.SIGTERM))
			exit, err = p.Wait(bounded(t))
			require.NoError(t, err)
			if kind == kindProcess {
				require.Equal(t, 143, exit.Code)
				require.Equal(t, "SIGTERM", exit.Signal)
			} else {
				require.Equal(t, 2, exit.Code)
			}
		})
	})

	t.Run("memory", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			p := run(t, with(kind, "eat", "60"))
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Zero(t, exit.Code, "%s", p.Output())
			require.Greater(t, exit.MaxMemory, int64(60<<20))
			require.Less(t, exit.MaxMemory, int64(160<<20))
			require.NoError(t, p.Close())
			if kind == kindProcess {
				return
			}
			p = run(t, with(kind, "eat", "1024"))
			exit, err = p.Wait(bounded(t))
			require.NoError(t, err)
			require.NotContains(t, string(p.Output()), "ate 1024")
			if p.cgroup != "" {
				require.Equal(t, "SIGKILL", exit.Signal)
			} else {
				require.Equal(t, 2, exit.Code)
				require.Contains(t, string(p.Output()), "fatal error: ") // there are several texts
			}
		})
	})

	t.Run("processes", func(t *testing.T) {
		forEachKind(t, isolated, func(t *testing.T, kind string) {
			p := run(t, with(kind, "fork", "1000"))
			_, err := p.Wait(bounded(t))
			require.NoError(t, err)
			// Or the runtime could not start a thread and says so.
			require.NotContains(t, string(p.Output()), "forked 1000")
		})
	})

	// A program that may listen on port 80 although its user may not, by what its layer says.
	t.Run("capabilities", func(t *testing.T) {
		const port = "cap_net_bind_service"
		c := appImage(t, v1.Config{Entrypoint: []string{"/able"}}, file("able", 0o755, string(app)).able(bindService)).write(t)
		none := appImage(t, v1.Config{}).write(t)
		forEachKind(t, isolated, func(t *testing.T, kind string) {
			c.Isolation, c.Capabilities, c.Args = kind, []string{port}, []string{"serve", ":80"}
			p := serving(t, run(t, c))
			require.Equal(t, "hello from /x", get(t, p, 80, "/x"))
			missing := slices.Insert(expectedMissing(kind), min(1, len(expectedMissing(kind))), "no-new-privileges")
			if os.Getenv(envVariant) == noCgroups {
				slices.Sort(missing)
			}
			iso := p.Isolation()
			require.Equal(t, missing, words(iso.Missing), "%q", iso.Missing)
			require.Contains(t, iso.Missing, "no-new-privileges: the image's files may give "+port+", and setuid files their owner")
			require.Contains(t, iso.Holds, "capabilities")
			require.NotContains(t, iso.Holds, "no-new-privileges")
			require.NoError(t, p.Close())

			r, p := getReport(t, c)
			require.NoError(t, p.Close())
			require.Equal(t, 65532, r.UID)
			require.Equal(t, map[string]string{
				"CapInh": "0000000000000000", "CapPrm": "0000000000000400", "CapEff": "0000000000000400",
				"CapBnd": "0000000000000400", "CapAmb": "0000000000000000",
			}, r.Caps)

			// Another file has nothing of it, and the allowance alone opens no port.
			none.Isolation, none.Capabilities = kind, []string{port}
			r, p = getReport(t, none)
			require.NoError(t, p.Close())
			require.Equal(t, "0000000000000400", r.Caps["CapBnd"])
			for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
				require.Equal(t, "0000000000000000", r.Caps[set], set)
			}
			none.Args = []string{"serve", ":80"}
			p = run(t, none)
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Equal(t, 1, exit.Code)
			require.Contains(t, string(p.Output()), "listen tcp :80: bind: permission denied")
			require.NoError(t, p.Close())

			c.Capabilities = nil
			if slices.Contains(words(iso.Missing), "user") {
				return // the file's capabilities are left out in a user namespace
			}
			if p, err = tryRun(t, c); kind == kindNamespaces {
				require.ErrorIs(t, err, unix.EPERM)
				return
			}
			require.NoError(t, err) // runc and crun say it on the container's output
			exit, err = p.Wait(bounded(t))
			require.NoError(t, err)
			require.NotZero(t, exit.Code)
			require.Regexp(t, "(?i)operation not permitted", string(p.Output()))
		})
		none.Capabilities = []string{port, "cap_net_bind_servic"}
		_, err := tryRun(t, none)
		require.EqualError(t, err, `capabilities: there is no capability "cap_net_bind_servic"; capabilities(7) has their names`+"\n"+`  Did you mean "cap_net_bind_service"?`)
		require.Equal(t, fault.Usage, fault.Of(err))
	})

	// Where one can be made, cgroups can be mounted, and root of the image may change its own limits there.
	t.Run("user namespaces", func(t *testing.T) {
		image := appImage(t, v1.Config{User: "0:0", Cmd: []string{"userns"}}).write(t)
		forEachKind(t, isolated, func(t *testing.T, kind string) {
			image.Isolation = kind
			p := run(t, image)
			_, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Equal(t, "clone: operation not permitted\nunshare: operation not permitted\nclone3: function not implemented\n", string(p.Output()))
			require.NotContains(t, words(p.Isolation().Missing), "user namespaces")
		})
	})

	t.Run("daemon", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			// It outlives the first process only without isolation. Either way, Close ends it.
			p := run(t, with(kind, "daemon", ":0"))
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Zero(t, exit.Code, "%s", p.Output())
			if kind == kindProcess {
				require.Equal(t, []string{"exe"}, exit.Leftover)
			} else {
				require.Empty(t, exit.Leftover)
			}
			require.NoError(t, p.Close())

			p = serving(t, run(t, with(kind, "daemon", ":0", "stay")))
			ports, err := p.Listening(bounded(t))
			require.NoError(t, err)
			require.Len(t, ports, 1)
			require.Equal(t, "hello from /", get(t, p, ports[0], "/"))
			require.NoError(t, p.Signal(unix.SIGKILL))
			exit, err = p.Wait(bounded(t))
			require.NoError(t, err)
			require.Equal(t, []string{"exe"}, exit.Leftover)
			require.Empty(t, exit.Written)
		})
	})

	t.Run("written", func(t *testing.T) {
		c := appImage(t, v1.Config{WorkingDir: "/wd"}, file("old", 0o644, "x"), dir("wd/gone", 0o755), dir("tmp", 0o777)).write(t)
		forEachKind(t, every, func(t *testing.T, kind string) {
			c.Isolation = kind
			c.Args = []string{"report", "write=../old", "write=x", "write=../tmp/x", "remove=gone", "write=/tmp/slipway-written"}
			if kind == kindProcess {
				c.Args = c.Args[:len(c.Args)-1] // that would be the machine's
			}
			p := run(t, c)
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Zero(t, exit.Code, "%s", p.Output())
			if kind == kindProcess {
				require.Equal(t, []string{"/old", "/wd/gone", "/wd/x"}, exit.Written)
			} else {
				require.Empty(t, exit.Written)
			}
		})
	})

	t.Run("output", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			p := run(t, with(kind, "output", "50000"))
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Zero(t, exit.Code)
			out := string(p.Output())
			require.Len(t, out, 64<<10)
			require.True(t, strings.HasSuffix(out, "line 49998\nline 49999\n"), "%q", out[len(out)-100:])
		})
	})

	t.Run("cancel", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			// Wherever it hits, nothing is left; tryRun checks that.
			tmp := t.TempDir()
			t.Setenv("TMPDIR", tmp)
			c := with(kind, "serve", ":0")
			c.Env = []string{"SLIPWAY_TEST_MARK=" + tmp}
			for wait := time.Duration(0); wait < 64*time.Millisecond; wait = 2*wait + 1*time.Millisecond {
				ctx, cancel := context.WithTimeout(context.Background(), wait)
				p, err := Start(ctx, c)
				if err == nil {
					require.NoError(t, p.Close())
				} else {
					require.ErrorIs(t, err, context.DeadlineExceeded)
				}
				cancel()
				checkNothingLeft(t, tmp, c.Env[0], "")
			}
		})
	})

	// When the caller is killed, everything ends and nothing is left behind.
	t.Run("killed", func(t *testing.T) {
		forEachKind(t, every, func(t *testing.T, kind string) {
			tmp := t.TempDir()
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$")
			mark := "SLIPWAY_TEST_MARK=" + tmp
			cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "SLIPWAY_VICTIM="+kind+" "+image.Layout+" "+image.Manifest+" "+mark)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			var cgroup string
			_, err = fmt.Fscanf(out, "ready %q\n", &cgroup)
			require.NoError(t, err)
			require.NoError(t, cmd.Process.Kill())
			_ = cmd.Wait()
			require.True(t, waitFor(time.Minute, func() bool { return traces(tmp, mark, cgroup) == nil }), "%v", traces(tmp, mark, cgroup))
		})
	})

	// A program that imports this package may be started with open files; none reaches the container.
	t.Run("inherited files", func(t *testing.T) {
		f, err := os.Open(os.DevNull)
		require.NoError(t, err)
		defer f.Close()
		fd, err := unix.Dup(int(f.Fd())) // without close-on-exec
		require.NoError(t, err)
		defer unix.Close(fd)
		forEachKind(t, isolated, func(t *testing.T, kind string) {
			r, _ := getReport(t, with(kind))
			require.Len(t, r.FDs, 3, "%v", r.FDs)
		})
	})
}

// TestVictim is the process that is killed in TestContainer.
func TestVictim(t *testing.T) {
	f := strings.Fields(os.Getenv("SLIPWAY_VICTIM"))
	if len(f) != 4 {
		t.Skip("part of TestContainer")
	}
	var roots Roots // what it keeps goes with this process
	p, err := roots.Start(context.Background(), engine.Container{
		Isolation: f[0], Layout: f[1], Manifest: f[2], Env: f[3:], Args: []string{"daemon", ":0", "stay"}, Memory: 256 << 20, Processes: 64,
		Capabilities: []string{"cap_net_bind_service"}, // so that a helper in a user namespace has a parent
	})
	require.NoError(t, err)
	serving(t, p.(*process))
	fmt.Printf("ready %q\n", p.(*process).cgroup)
	select {}
}

// TestVariants runs TestContainer in other circumstances.
func TestVariants(t *testing.T) {
	t.Run(nonroot, func(t *testing.T) {
		runVariant(t, nonroot, "^(TestContainer|TestImage|TestUnpack|TestLayer|TestErrors|TestAuto)")
	})
	t.Run(noSysAdmin, func(t *testing.T) {
		runVariant(t, noSysAdmin, "^(TestContainer|TestAuto)$/^(inside|dial|stop|memory|capabilities)$")
	})
	t.Run(noCgroups, func(t *testing.T) { runVariant(t, noCgroups, "^(TestContainer|TestAuto)$/^(inside|memory|processes)$") })
	t.Run(oneID, func(t *testing.T) { runVariant(t, oneID, "^(TestContainer|TestAuto)$/^(inside|dial|capabilities)$") })
	t.Run("emulator", func(t *testing.T) { runVariant(t, oneID, "^TestEmulator$") })
	t.Run(nothing, func(t *testing.T) { runVariant(t, nothing, "^TestNothing$") })
	t.Run(maskedProc, func(t *testing.T) { runVariant(t, maskedProc, "^TestNothing$") })
}

// expectedMissing returns what is not in force in the circumstances of the test, or only by other means.
func expectedMissing(kind string) []string {
	switch variant := os.Getenv(envVariant); {
	case variant == noCgroups:
		return []string{"memory", "processes"}
	case variant == noSysAdmin, variant == oneID, os.Geteuid() != 0:
		return []string{"user", "memory", "processes"}
	}
	return nil
}

// words returns what is missing, without the reasons.
func words(missing []string) []string {
	var w []string
	for _, m := range missing {
		word, reason, _ := strings.Cut(m, ": ")
		if reason == "" {
			word += " without a reason"
		}
		w = append(w, word)
	}
	return w
}

// get makes an HTTP request to the container.
func get(t *testing.T, p *process, port int, path string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return p.Dial(ctx, port)
		},
	}}
	r, err := client.Get("http://container" + path)
	require.NoError(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(b)
}

// unusedPort returns a port below those that the kernel hands out.
func unusedPort(used []int) int {
	for port := 2; ; port++ {
		if !slices.Contains(used, port) {
			return port
		}
	}
}
