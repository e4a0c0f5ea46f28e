package sandbox

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// Variables by which the tests start themselves again in other circumstances.
const (
	envApp     = "SLIPWAY_SANDBOX_TEST_APP"     // the file of the program in the images
	envVariant = "SLIPWAY_SANDBOX_TEST_VARIANT" // one of the variants below
	envReady   = "SLIPWAY_SANDBOX_TEST_READY"   // the variant was set up
)

// Variants are circumstances in which the tests run once more, in a process of their own.
const (
	// An ordinary user.
	nonroot = "nonroot"
	// An ordinary user, in a container that hides parts of /proc.
	maskedProc = "masked-proc"
	// Root, as it is in most containers: it may not make namespaces other than those of users.
	noSysAdmin = "no-sys-admin"
	// Root, with all cgroups read-only.
	noCgroups = "no-cgroups"
	// Root of a user namespace that has no other user, as with unshare -r.
	oneID = "one-id"
	// Root without privileges, and user namespaces are switched off.
	nothing = "nothing"
)

// nobody is the ordinary user.
const nobody = 65534

// app is the program in the images.
var app []byte

func TestMain(m *testing.M) {
	code, err := testMain(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func testMain(m *testing.M) (_ int, err error) {
	if err := setUpVariant(); err != nil {
		return 0, fmt.Errorf("variant: %w", err)
	}
	name := os.Getenv(envApp)
	if name == "" {
		dir, err := os.MkdirTemp("", "sandbox-test-")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil {
			return 0, err
		}
		name = filepath.Join(dir, "app")
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", name, "./testdata/app")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%w\n%s", err, out)
		}
		if err := os.Setenv(envApp, name); err != nil {
			return 0, err
		}
	}
	if app, err = os.ReadFile(name); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// setUpVariant makes the circumstances that startVariant could not make, and starts the program anew if
// that is needed.
func setUpVariant() error {
	if os.Getenv(envReady) != "" {
		return nil
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	switch os.Getenv(envVariant) {
	case maskedProc:
		// The parts of a container engine's list that every machine has.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("/dev/null", "/proc/keys", "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := cmp.Or(syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			return err
		}
	case noCgroups:
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		for _, h := range hierarchies("self") {
			if err := unix.Mount("", h.mount, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
				return err
			}
		}
	case nothing:
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			return err
		}
		fallthrough
	case noSysAdmin:
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0); err != nil {
			return err
		}
	default:
		return nil
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), envReady+"=1"))
}

// runVariant runs the tests that match a pattern in other circumstances, and takes over their verdict.
func runVariant(t *testing.T, variant, pattern string) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv(envVariant) != "" {
		t.Skip("only root can make these circumstances")
	}
	dir, err := os.MkdirTemp("", "sandbox-variant-") // not t.TempDir, which is closed to other users
	require.NoError(t, err)
	defer func() { require.NoError(t, os.RemoveAll(dir)) }()
	attr := &syscall.SysProcAttr{}
	switch variant {
	case nonroot:
		attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		require.NoError(t, os.Chown(dir, nobody, nobody))
	case maskedProc:
		attr.Cloneflags = unix.CLONE_NEWNS
		require.NoError(t, os.Chown(dir, nobody, nobody))
	case noCgroups:
		attr.Cloneflags = unix.CLONE_NEWNS
	case nothing, oneID:
		attr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNS
		attr.UidMappings = []syscall.SysProcIDMap{{Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{Size: 1}}
	}
	cmd := exec.CommandContext(bounded(t), "/proc/self/exe", "-test.run="+pattern, "-test.v")
	cmd.Env = append(os.Environ(), envVariant+"="+variant, "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if !strings.Contains(string(out), "--- PASS: ") {
		require.Contains(t, string(out), "--- SKIP: ", "no test has run")
		t.Skipf("%s", out)
	}
	t.Logf("%s", out)
}

// bounded is a context that bounds a wait that should end by itself.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// entry is an entry of a layer.
type entry struct {
	tar.Header
	body string
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}}
}

func file(name string, mode int64, body string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, body: body}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644}}
}

// owned gives an entry an owner.
func (e entry) owned(uid, gid int) entry {
	e.Uid, e.Gid = uid, gid
	return e
}

// able gives a file capabilities, as the kernel stores them.
func (e entry) able(capabilities string) entry {
	e.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capabilities}
	return e
}

// bindService is cap_net_bind_service=ep.
const bindService = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// longAgo is when all files of images were changed.
var longAgo = time.Unix(1600000000, 0)

// tarOf makes an archive.
func tarOf(t *testing.T, entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size, e.ModTime = int64(len(e.body)), longAgo
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// imageSpec says what an image is made of.
type imageSpec struct {
	layers   []v1.Layer
	config   v1.Config
	platform v1.Platform
}

// plain is a layer that is not compressed.
func plain(archive []byte) v1.Layer { return static.NewLayer(archive, types.OCIUncompressedLayer) }

// appImage is an image with nothing but the program and what is added.
func appImage(t *testing.T, config v1.Config, more ...entry) imageSpec {
	config.User = cmp.Or(config.User, "65532:65532")
	if config.Entrypoint == nil {
		config.Entrypoint = []string{"/app"}
	}
	s := imageSpec{config: config, layers: []v1.Layer{plain(tarOf(t, file("app", 0o755, string(app))))}}
	if more != nil {
		s.layers = append(s.layers, plain(tarOf(t, more...)))
	}
	return s
}

// write writes the image as an OCI layout.
func (s imageSpec) write(t *testing.T) engine.Container {
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), s.layers...)
	require.NoError(t, err)
	cf, err := img.ConfigFile()
	require.NoError(t, err)
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture, cf.Variant = cmp.Or(s.platform.OS, "linux"), cmp.Or(s.platform.Architecture, runtime.GOARCH), s.platform.Variant
	cf.Config = s.config
	img, err = mutate.ConfigFile(img, cf)
	require.NoError(t, err)
	path, err := layout.Write(t.TempDir(), empty.Index)
	require.NoError(t, err)
	require.NoError(t, path.AppendImage(img))
	digest, err := img.Digest()
	require.NoError(t, err)
	return engine.Container{Layout: string(path), Manifest: digest.String(), Memory: 256 << 20, Processes: 64}
}

// Report is what the program in the image sees, as it writes it.
type Report struct {
	UID, GID int
	Groups   []int
	PID      int
	Caps     map[string]string
	NNP      string
	Cwd      string
	Exe      string
	Host     string
	Env      []string
	Args     []string
	Pids     []string
	FDs      []string
	Files    map[string]string
	Writes   map[string]string
	Reads    map[string]string
	Dials    map[string]string
	Links    []string
	NS       map[string]string
	Mounts   []string
	Sig      string
}

// run starts a container and closes it at the end of the test, which must leave no trace.
func run(t *testing.T, c engine.Container) *process {
	t.Helper()
	p, err := tryRun(t, c)
	require.NoError(t, err)
	return p
}

func tryRun(t *testing.T, c engine.Container) (*process, error) {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	// The container's processes can be told by this.
	mark := "SLIPWAY_TEST_MARK=" + tmp
	c.Env = append(slices.Clone(c.Env), mark)
	p, err := Start(bounded(t), c)
	if err != nil {
		require.Nil(t, p)
		checkNothingLeft(t, tmp, mark, "")
		return nil, err
	}
	t.Cleanup(func() {
		require.NoError(t, p.Close())
		require.NoError(t, p.Close(), "again")
		checkNothingLeft(t, tmp, mark, p.(*process).cgroup)
	})
	return p.(*process), nil
}

// checkNothingLeft checks that no process, mount, cgroup or file of a container is left. The container's
// network and other namespaces have gone with its processes and the helper.
func checkNothingLeft(t *testing.T, tmp, mark, cgroup string) {
	t.Helper()
	require.NoError(t, traces(tmp, mark, cgroup))
	require.Empty(t, helpers(), "helpers")
}

// traces returns an error that says what is left of a container.
func traces(tmp, mark, cgroup string) error {
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%v is left in %s", entries, tmp)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), tmp) {
		return fmt.Errorf("mounts in %s are left:\n%s", tmp, mounts)
	}
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && slices.Contains(strings.Split(string(b), "\x00"), mark) {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			return fmt.Errorf("the process of %s (%q) is left", f, cmdline)
		}
	}
	// Those of this process, if not of one in particular.
	prefix := cmp.Or(cgroup, fmt.Sprintf("slipway-%d-", os.Getpid()))
	return filepath.WalkDir("/sys/fs/cgroup", func(name string, d os.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), prefix) {
			return fmt.Errorf("%s is left", name)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // another's
		}
		return err
	})
}

// helpers returns the descendants of this process that go by the private names of this package.
func helpers() []string {
	var found []string
	for _, pid := range descendants() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.HasPrefix(b, []byte("slipway-sandbox")) {
			found = append(found, fmt.Sprint(pid))
		}
	}
	return found
}

// getReport runs the program's own report. Before it, there may be what it wrote to /dev/stdout.
func getReport(t *testing.T, c engine.Container, args ...string) (Report, *process) {
	t.Helper()
	c.Args = append([]string{"report"}, args...)
	p := run(t, c)
	exit, err := p.Wait(bounded(t))
	require.NoError(t, err)
	require.Zero(t, exit.Code, "%v\n%s", exit, p.Output())
	var r Report
	require.NoError(t, json.Unmarshal(bytes.TrimPrefix(p.Output(), []byte("x")), &r), "%s", p.Output())
	return r, p
}

// serving waits until the program says that it is ready.
func serving(t *testing.T, p *process) *process {
	t.Helper()
	ctx := bounded(t)
	for !strings.Contains(string(p.Output()), "serving\n") {
		select {
		case <-p.exited:
			require.FailNow(t, "the program has ended", "%v %v\n%s", p.exit, p.exitErr, p.Output())
		case <-ctx.Done():
			require.FailNow(t, "the program does not start", "%s", p.Output())
		case <-time.After(time.Millisecond):
		}
	}
	return p
}

// levels are the kinds of isolation and whether they work here.
var levels = sync.OnceValue(Available)

// forEachKind runs a test with all kinds of isolation that work here.
func forEachKind(t *testing.T, kinds []string, f func(t *testing.T, kind string)) {
	for _, l := range levels() {
		if !slices.Contains(kinds, l.Kind) {
			continue
		}
		t.Run(l.Kind, func(t *testing.T) {
			if l.Reason != "" {
				t.Skip(l.Reason)
			}
			f(t, l.Kind)
		})
	}
}

var (
	isolated = []string{kindRunc, kindCrun, kindNamespaces}
	every    = append(slices.Clone(isolated), kindProcess)
)
