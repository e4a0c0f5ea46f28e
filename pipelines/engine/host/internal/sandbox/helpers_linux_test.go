package sandbox

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// Variables by which the tests start themselves again as another user.
const (
	envApp  = "SLIPWAY_SANDBOX_TEST_APP"  // the file of the program in the images
	envKind = "SLIPWAY_SANDBOX_TEST_KIND" // the one kind of isolation to test
)

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
		build := exec.Command("go", "build", "-o", name, "./testdata/app")
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

// bounded is a context that bounds a wait that should end by itself.
func bounded(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// entry is an entry of a layer; its type follows from what is set.
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

// tarOf makes an archive.
func tarOf(t testing.TB, entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.body))
		e.ModTime = cmpTime(e.ModTime)
		require.NoError(t, w.WriteHeader(&e.Header))
		_, err := io.WriteString(w, e.body)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func cmpTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(1700000000, 0)
	}
	return t
}

// imageSpec says what an image is made of.
type imageSpec struct {
	layers   [][]byte
	config   v1.Config
	platform v1.Platform
}

// appImage is an image with nothing but the program and what is added.
func appImage(t *testing.T, config v1.Config, more ...entry) imageSpec {
	config.User = cmp.Or(config.User, "65532:65532")
	if config.Entrypoint == nil {
		config.Entrypoint = []string{"/app"}
	}
	return imageSpec{config: config, layers: [][]byte{tarOf(t, append([]entry{file("app", 0o755, string(app))}, more...)...)}}
}

// write writes the image as an OCI layout.
func (s imageSpec) write2(t testing.TB) engine.Container { return s.write(t) }
func (s imageSpec) write(t testing.TB) engine.Container {
	var img v1.Image = empty.Image
	for _, l := range s.layers {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(l)), nil
		}, tarball.WithCompressionLevel(gzip.BestSpeed))
		require.NoError(t, err)
		img, err = mutate.AppendLayers(img, layer)
		require.NoError(t, err)
	}
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

// Report is what the program in the image sees.
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
	p, err := tryRun(t, c)
	require.NoError(t, err)
	return p
}

func tryRun(t *testing.T, c engine.Container) (*process, error) {
	// Every process of the container has this in its environment, those of its helper aside.
	mark := "SLIPWAY_TEST_MARK=" + filepath.Base(t.TempDir()) + t.Name()
	c.Env = append(c.Env, mark)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
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

// checkNothingLeft checks that no process, mount, namespace, cgroup or file of a container is left.
func checkNothingLeft(t *testing.T, tmp, mark, cgroup string) {
	t.Helper()
	entries, err := os.ReadDir(tmp)
	require.NoError(t, err)
	require.Empty(t, entries, "files")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(mounts), tmp)
	require.Empty(t, processesWith(mark))
	// The helpers have no environment, but are our children, or were.
	require.Empty(t, helpers(), "helpers")
	if cgroup != "" {
		err := filepath.WalkDir("/sys/fs/cgroup", func(name string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == cgroup {
				err = fmt.Errorf("%s is left", name)
			}
			return err
		})
		require.NoError(t, err)
	}
}

// processesWith returns the processes that have a variable in their environment.
func processesWith(variable string) []string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && slices.Contains(strings.Split(string(b), "\x00"), variable) {
			cmdline, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
			found = append(found, f+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	return found
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

// report runs the program's own report and returns it.
func report(t *testing.T, c engine.Container, args ...string) (Report, *process) {
	c.Args = append([]string{"report"}, args...)
	p := run(t, c)
	exit, err := p.Wait(bounded(t))
	require.NoError(t, err)
	require.Equal(t, engine.Exit{MaxMemory: exit.MaxMemory}, exit, "%s", p.Output())
	var r Report
	require.NoError(t, json.Unmarshal(p.Output(), &r), "%s", p.Output())
	return r, p
}

// serving waits until the program says that it is ready.
func serving(t *testing.T, p *process) {
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
}
