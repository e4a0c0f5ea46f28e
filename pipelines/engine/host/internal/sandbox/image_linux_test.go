package sandbox

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// best is the kind that is used for what does not depend on the kind.
func best(t *testing.T) string {
	for _, l := range levels() {
		if l.Kind == kindNamespaces && l.Reason != "" {
			t.Skip(l.Reason)
		}
	}
	return kindNamespaces
}

// TestImage tests what the image's configuration makes of the process.
func TestImage(t *testing.T) {
	kind := best(t)
	users := []entry{
		file("etc/passwd", 0o644, "# comment\nroot:x:0:0:root:/root:/bin/sh\nweb:x:1001:1002:Web:/home/web:/sbin/nologin\nbad:x:y:z::/:\n"),
		file("etc/group", 0o644, "root:x:0:\nweb:x:1002:\nextra:x:2000:root,web\nother:x:2001:nobody\n"),
	}
	for _, test := range []struct {
		name   string
		config v1.Config
		more   []entry
		args   []string
		check  func(t *testing.T, r Report, p *process)
	}{
		{name: "a listed user", config: v1.Config{User: "web"}, more: users, check: func(t *testing.T, r Report, p *process) {
			require.Equal(t, []int{1001, 1002}, []int{r.UID, r.GID})
			require.Contains(t, r.Env, "HOME=/home/web")
			if p.isolation.Missing == nil {
				require.Equal(t, []int{2000}, r.Groups)
			} else {
				require.Contains(t, strings.Join(p.isolation.Missing, "\n"), "supplementary groups [2000]")
			}
		}},
		{name: "a listed number with a group", config: v1.Config{User: "1001:other"}, more: users, check: func(t *testing.T, r Report, _ *process) {
			require.Equal(t, []int{1001, 2001}, []int{r.UID, r.GID})
		}},
		{name: "a number alone", config: v1.Config{User: "4711"}, check: func(t *testing.T, r Report, _ *process) {
			require.Equal(t, []int{4711, 0}, []int{r.UID, r.GID})
		}},
		{name: "root without privileges", config: v1.Config{User: "root"}, more: append(users, dir("etc", 0o700).owned(99, 99)),
			args: []string{"read=/etc/hosts", "write=/dev/stdout", "write=/tmp/x"},
			check: func(t *testing.T, r Report, _ *process) {
				require.Equal(t, []int{0, 0}, []int{r.UID, r.GID})
				require.Equal(t, "0000000000000000", r.Caps["CapEff"])
				require.Contains(t, r.Env, "HOME=/root")
				require.Equal(t, unix.EACCES.Error(), r.Reads["/etc/hosts"])
				require.Equal(t, map[string]string{"/dev/stdout": "ok", "/tmp/x": "ok"}, r.Writes)
			}},
		{name: "PATH and links", config: v1.Config{
			Entrypoint: []string{"run"}, Env: []string{"PATH=/none::/links:/usr/bin", "HOME=/data"}, WorkingDir: "/links/dir/deep",
		}, more: []entry{link("links", "/usr/lib/links"), link("usr/lib/links/run", "../../../app"), link("usr/lib/links/dir", "/data")},
			check: func(t *testing.T, r Report, _ *process) {
				require.Equal(t, "run", r.Args[0])
				require.Equal(t, "/app", r.Exe)
				require.Equal(t, "/data/deep", r.Cwd)
				require.Contains(t, r.Env, "HOME=/data")
			}},
		{name: "a relative entrypoint and a command", config: v1.Config{Entrypoint: []string{"./app"}, Cmd: []string{"exit", "9"}, WorkingDir: "/d/.."},
			check: func(t *testing.T, r Report, _ *process) { require.Equal(t, []string{"./app", "report"}, r.Args) }},
		// Whether or not files can have owners here, the user may not read what it could not in production.
		{name: "files of others", args: []string{"read=/root-only", "read=/for-all", "read=/mine", "read=/group", "read=/not-mine", "stat=/closed/x", "read=/etc/hosts"},
			more: []entry{
				file("root-only", 0o600, "x"), file("for-all", 0o604, "x"), file("mine", 0o400, "x").owned(65532, 0),
				file("group", 0o640, "x").owned(0, 65532), file("not-mine", 0o077, "x").owned(65532, 65532),
				dir("closed", 0o700), file("closed/x", 0o644, "x"), file("etc/hosts", 0o600, "the image's"),
			},
			check: func(t *testing.T, r Report, _ *process) {
				denied := unix.EACCES.Error()
				require.Equal(t, map[string]string{
					"/root-only": denied, "/for-all": `"x"`, "/mine": `"x"`, "/group": `"x"`, "/not-mine": denied,
					"/etc/hosts": `"127.0.0.1\tlocalh"`,
				}, r.Reads)
				require.Equal(t, denied, r.Files["/closed/x"])
			}},
		{name: "/tmp is a link", args: []string{"write=/tmp/x", "write=/var/tmp/x"}, more: []entry{link("tmp", "/var/tmp")},
			check: func(t *testing.T, r Report, p *process) {
				require.Equal(t, map[string]string{"/tmp/x": "ok", "/var/tmp/x": "ok"}, r.Writes)
				require.Contains(t, p.isolation.Holds, "tmpfs")
			}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := appImage(t, test.config, test.more...).write(t)
			c.Isolation = kind
			r, p := getReport(t, c, test.args...)
			test.check(t, r, p)
		})
	}
	t.Run("the image's command", func(t *testing.T) {
		c := appImage(t, v1.Config{Cmd: []string{"exit", "9"}}).write(t)
		c.Isolation = kind
		p := run(t, c)
		exit, err := p.Wait(bounded(t))
		require.NoError(t, err)
		require.Equal(t, 9, exit.Code, "%s", p.Output())
	})
	t.Run("no limits", func(t *testing.T) {
		c := appImage(t, v1.Config{}).write(t)
		c.Isolation, c.Memory, c.Processes = kind, 0, 0
		_, p := getReport(t, c)
		require.Contains(t, p.Isolation().Missing, "memory: no limit was asked for")
		require.Contains(t, p.Isolation().Missing, "processes: no limit was asked for")
	})
}

// TestErrors tests images that cannot be started. All kinds of isolation say the same.
func TestErrors(t *testing.T) {
	dynamic, err := os.ReadFile("/bin/true")
	require.NoError(t, err)
	entry1 := func(arg ...string) v1.Config { return v1.Config{Entrypoint: arg} }
	foreign := "arm64"
	if runtime.GOARCH == foreign {
		foreign = "amd64"
	}
	for _, test := range []struct {
		name string
		spec imageSpec
		want string
	}{
		{"nothing to start", imageSpec{config: v1.Config{}}, "the image has neither an entrypoint nor a command, so there is nothing to start"},
		{"missing", imageSpec{config: entry1("/none")}, "the image's entrypoint /none is not in the image"},
		{"missing in PATH", imageSpec{config: entry1("none")}, "the image's entrypoint none is not in the image's PATH (/usr/local/sbin:"},
		{"a directory", appImage(t, entry1("/d"), dir("d", 0o755)), "the image's entrypoint /d is not a file"},
		{"not executable", appImage(t, entry1("/d"), file("d", 0o644, "x")), "the image's entrypoint /d is not executable (its mode is 0644)"},
		{"not executable for the user", appImage(t, entry1("/d"), file("d", 0o710, "x")),
			"the image's entrypoint /d is not executable for the user 65532:65532 (its mode is 0710, its owner 0:0)"},
		{"in a directory that is closed to the user", appImage(t, entry1("/a/b/d"), dir("a", 0o700).owned(5, 6), file("a/b/d", 0o755, string(app))),
			"the image's entrypoint /a/b/d is in /a, which is closed to the user 65532:65532 (its mode is 0700, its owner 5:6)"},
		{"a link to itself", appImage(t, entry1("/d"), link("d", "d")), "the image's entrypoint /d cannot be found: "},
		{"no program", appImage(t, entry1("/d"), file("d", 0o755, "x")), "the image's entrypoint /d is neither a program nor a script"},
		{"a broken program", appImage(t, entry1("/d"), file("d", 0o755, "\x7fELF")), "the image's entrypoint /d is no valid program"},
		{"a script without its shell", appImage(t, entry1("/d"), file("d", 0o755, "#! /bin/sh -e\n")), "the image's entrypoint /d needs /bin/sh, which is not in the image"},
		{"a dynamic program", appImage(t, entry1("/d"), file("d", 0o755, string(dynamic))), "which is not in the image; a Go program built with CGO_ENABLED=0 does not"},
		{"unknown user", appImage(t, v1.Config{User: "web"}), `the image's user "web" is not in its /etc/passwd`},
		{"unknown group", appImage(t, v1.Config{User: "1:web"}), `the image's group "web" is not in its /etc/group`},
		{"a working directory that is none", appImage(t, v1.Config{WorkingDir: "/app"}), "the image's working directory /app is not a directory in the image"},
		{"/proc is a link", appImage(t, v1.Config{}, link("proc", "/")), "/proc is not a directory in the image"},
		{"a foreign platform", func() imageSpec {
			s := appImage(t, v1.Config{})
			s.platform = v1.Platform{Architecture: foreign, Variant: "v9"}
			return s
		}(), "the image is for linux/" + foreign + "/v9, which this machine (linux/" + runtime.GOARCH + ") cannot execute"},
		{"a foreign program", appImage(t, entry1("/d"), file("d", 0o755, "\x7fELF\x02\x02\x01"+strings.Repeat("\x00", 11)+"\x00\x16")),
			"the image is for linux/s390x, which this machine (linux/" + runtime.GOARCH + ") cannot execute"},
		{"a foreign system", func() imageSpec {
			s := appImage(t, v1.Config{})
			s.platform = v1.Platform{OS: "windows"}
			return s
		}(), "the image is for windows/" + runtime.GOARCH},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "a dynamic program" && !strings.Contains(string(dynamic), "/ld-") {
				t.Skip("/bin/true is not a dynamic program here")
			}
			c := test.spec.write(t)
			_, err := tryRun(t, c)
			require.ErrorContains(t, err, test.want)
			_, unavailable := errors.AsType[*UnavailableError](err)
			require.False(t, unavailable)
			_, ok := errors.AsType[*engine.ForeignError](err)
			require.Equal(t, strings.HasPrefix(test.name, "a foreign"), ok)
		})
	}
	t.Run("unknown isolation", func(t *testing.T) {
		_, err := tryRun(t, engine.Container{Isolation: "service"})
		require.ErrorContains(t, err, `unknown isolation "service": it is one of runc, crun, namespaces and process`)
	})
}

// TestAuto tests the choice of the kind, and what becomes of kinds that do not work.
func TestAuto(t *testing.T) {
	image := appImage(t, v1.Config{Cmd: []string{"exit", "5"}}).write(t)
	start := func(t *testing.T, kind string) (*process, error) {
		c := image
		c.Isolation = kind
		return tryRun(t, c)
	}
	expect := func(t *testing.T, kind string) {
		t.Helper()
		p, err := start(t, "")
		require.NoError(t, err)
		exit, err := p.Wait(bounded(t))
		require.NoError(t, err)
		require.Equal(t, 5, exit.Code)
		require.Equal(t, kind, p.Isolation().Kind)
		require.NoError(t, p.Close())
	}
	root := os.Geteuid() == 0

	t.Run("inside", func(t *testing.T) { // named like those of TestContainer, for TestVariants
		for _, l := range levels() {
			t.Logf("%+v", l)
			if l.Reason == "" && l.Kind != kindProcess {
				require.Equal(t, expectedMissing(l.Kind), words(l.Missing))
			}
		}
		for _, l := range levels() {
			if l.Reason == "" {
				expect(t, l.Kind)
				return
			}
		}
	})
	t.Run("an odd directory for temporary files", func(t *testing.T) {
		for _, l := range levels() {
			if l.Reason == "" {
				dir := t.TempDir()
				require.NoError(t, os.Mkdir(filepath.Join(dir, "a b"), 0o755))
				require.NoError(t, os.Symlink("a b", filepath.Join(dir, "link")))
				t.Chdir(dir)
				t.Setenv("TMPDIR", "link")
				c := image
				c.Isolation = l.Kind
				p, err := Start(bounded(t), c)
				require.NoError(t, err)
				require.Equal(t, l.Kind, p.Isolation().Kind)
				require.NoError(t, p.Close())
				entries, err := os.ReadDir("link")
				require.NoError(t, err)
				require.Empty(t, entries)
			}
		}
	})
	t.Run("not installed", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		expect(t, kindNamespaces)
		_, err := start(t, kindRunc)
		unavailable, ok := errors.AsType[*UnavailableError](err)
		require.True(t, ok, "%v", err)
		reason := "not installed"
		if !root {
			reason = "slipway uses it only as root"
		}
		require.Equal(t, []Level{{Kind: kindRunc, Reason: reason}}, unavailable.Levels)
		require.EqualError(t, err, "this machine cannot isolate the image's process: runc: "+reason)
	})
	t.Run("not working", func(t *testing.T) {
		if !root {
			t.Skip("only root uses runc")
		}
		bin := t.TempDir()
		require.NoError(t, os.Symlink("/bin/false", filepath.Join(bin, "runc")))
		require.NoError(t, os.WriteFile(filepath.Join(bin, "crun"), []byte("#!/none\n"), 0o755))
		t.Setenv("PATH", bin)
		expect(t, kindNamespaces)
		_, err := start(t, kindRunc)
		unavailable, ok := errors.AsType[*UnavailableError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, []Level{{Kind: kindRunc, Reason: "exit status 1"}}, unavailable.Levels)
		require.Contains(t, Available(), unavailable.Levels[0])
	})
	t.Run("nosuid", func(t *testing.T) {
		if !root || os.Getenv(envVariant) != "" {
			t.Skip("only root can mount a file system")
		}
		able := appImage(t, v1.Config{Entrypoint: []string{"/able"}, Cmd: []string{"serve", ":80"}}, file("able", 0o755, string(app)).able(bindService)).write(t)
		able.Capabilities = []string{"cap_net_bind_service"}
		dir := t.TempDir()
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID, ""))
		defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
		t.Setenv("TMPDIR", dir)
		able.Isolation = best(t) // runc takes the option away when it makes the root read-only
		p, err := Start(bounded(t), able)
		require.NoError(t, err)
		require.Contains(t, strings.Join(p.Isolation().Missing, "\n"), "file capabilities: the directory for temporary files is on a file system that gives no privileges (nosuid)")
		exit, err := p.Wait(bounded(t))
		require.NoError(t, err)
		require.Equal(t, 1, exit.Code, "%s", p.Output())
		require.NoError(t, p.Close())
	})
	t.Run("noexec", func(t *testing.T) {
		if !root || os.Getenv(envVariant) != "" {
			t.Skip("only root can mount a file system")
		}
		dir := t.TempDir()
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC, ""))
		defer func() { require.NoError(t, unix.Unmount(dir, 0)) }()
		t.Setenv("TMPDIR", dir)
		_, err := Start(bounded(t), image)
		require.ErrorContains(t, err, dir+", is on a file system that executes nothing (noexec); set TMPDIR to another")
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, entries)
	})
}

// TestNothing tests a machine that isolates nothing.
func TestNothing(t *testing.T) {
	var reason string
	switch os.Getenv(envVariant) {
	case nothing:
		reason = "no space left on device (user.max_user_namespaces is 0)"
	case maskedProc:
		reason = "in a user namespace: mount /proc: operation not permitted (a container whose own /proc is partly hidden may not do that)"
	default:
		t.Skip("part of TestVariants")
	}
	c := appImage(t, v1.Config{Cmd: []string{"exit", "5"}}).write(t)
	_, err := tryRun(t, c)
	unavailable, ok := errors.AsType[*UnavailableError](err)
	require.True(t, ok, "%v", err)
	require.ErrorContains(t, err, reason)
	require.Equal(t, kindRunc, unavailable.Levels[0].Kind)
	require.Equal(t, kindNamespaces, unavailable.Levels[len(unavailable.Levels)-1].Kind)
	for _, l := range Available() {
		t.Logf("%+v", l)
		require.Equal(t, l.Kind == kindProcess, l.Reason == "")
	}

	c.Isolation = kindProcess
	p := run(t, c)
	exit, err := p.Wait(bounded(t))
	require.NoError(t, err)
	require.Equal(t, 5, exit.Code)
	require.Equal(t, engine.Isolation{Kind: kindProcess, Missing: p.Isolation().Missing}, p.Isolation())
	require.Equal(t, holdsNames, words(p.Isolation().Missing))
}

// TestEmulated tests the reading of binfmt_misc, from files as the kernel writes them.
func TestEmulated(t *testing.T) {
	const aarch64 = "7f454c460201010000000000000000000200b700"
	handler := func(state, flags string) string {
		return fmt.Sprintf("%s\ninterpreter /usr/bin/qemu-aarch64-static\nflags: %s\noffset 0\nmagic %s\nmask ffffffffffffff00fffffffffffffffffeffffff\n", state, flags, aarch64)
	}
	head, err := hex.DecodeString(strings.Replace(aarch64, "0200b7", "0300b7", 1) + "01000000")
	require.NoError(t, err)
	for _, test := range []struct {
		name, status, handler string
		head                  []byte
		inside, outside       bool
	}{
		{"fixed", "enabled\n", handler("enabled", "OCF"), head, true, true},
		{"by its name in the root", "enabled\n", handler("enabled", "OC"), head, false, true},
		{"disabled", "enabled\n", handler("disabled", "F"), head, false, false},
		{"all disabled", "disabled\n", handler("enabled", "F"), head, false, false},
		{"another machine", "enabled\n", handler("enabled", "F"), app[:64], false, false},
		{"too short", "enabled\n", handler("enabled", "F"), head[:10], false, false},
		{"by extension", "enabled\n", "enabled\ninterpreter /x\nflags: F\nextension .exe\n", head, false, false},
		{"damaged", "enabled\n", "enabled\ninterpreter /x\nflags: F\noffset 0\nmagic 7f\nmask f\n", head, false, false},
		{"not mounted", "", "", head, false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			if test.status != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, "status"), []byte(test.status), 0o644))
				require.NoError(t, os.WriteFile(filepath.Join(dir, "qemu-aarch64"), []byte(test.handler), 0o644))
			}
			name := map[bool]string{true: "qemu-aarch64"}
			require.Equal(t, name[test.inside], handlerOf(dir, test.head, true))
			require.Equal(t, name[test.outside], handlerOf(dir, test.head, false))
		})
	}
}

// TestEmulator runs a program of another machine with an emulator that the kernel knows: here, the program
// that is in the other images. It sees the name of the program as its command, which it does not know.
func TestEmulator(t *testing.T) {
	if os.Getenv(envVariant) != oneID {
		t.Skip("part of TestVariants")
	}
	const dir = "/proc/sys/fs/binfmt_misc"
	if err := unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""); err != nil {
		t.Skipf("handlers for a user namespace alone need Linux 6.7: %v", err)
	}
	foreign := "\x7fELF\x02\x02\x01" + strings.Repeat("\x00", 11) + "\x00\x16\x00\x00\x00\x01" + strings.Repeat("\x00", 100)
	spec := appImage(t, v1.Config{Entrypoint: []string{"/d"}}, file("d", 0o755, foreign))
	spec.platform = v1.Platform{Architecture: "s390x"}
	c := spec.write(t)
	c.Isolation = kindNamespaces
	for _, flags := range []string{"C", "F"} {
		handler := `:s390x:M::\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x16::` + os.Getenv(envApp) + ":" + flags
		require.NoError(t, os.WriteFile(filepath.Join(dir, "register"), []byte(handler), 0))
		p, err := tryRun(t, c)
		if flags == "F" {
			require.NoError(t, err)
			_, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Contains(t, string(p.Output()), `unknown command "/d"`)
			require.Contains(t, p.Isolation().Missing, "processor: s390x takes the place of the one that the image is for")
			require.NoError(t, p.Close())
			// The handler is still at work when it is out of sight, as the machine's are in a container.
			require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
			p, err = tryRun(t, c)
			require.NoError(t, unix.Unmount(dir, 0))
			require.NoError(t, err)
			require.Contains(t, strings.Join(p.Isolation().Missing, "\n"), "processor: an emulator of the machine takes")
			_, err = p.Wait(bounded(t))
			require.NoError(t, err)
			require.Contains(t, string(p.Output()), `unknown command "/d"`)
		} else {
			require.ErrorContains(t, err, "the image is for linux/s390x")
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, "s390x"), []byte("-1"), 0))
	}
}
