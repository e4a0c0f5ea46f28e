package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

var soakMoments = flag.Int("soak", 8, "at how many moments runs are killed")

// soak is a tree, a cache and a registry that runs are killed over.
type soak struct {
	t             *testing.T
	src, registry string
	env           []string
}

func newSoak(t *testing.T) *soak {
	if testing.Short() {
		t.Skip("it takes a while")
	}
	dir := t.TempDir()
	s := &soak{t: t, src: filepath.Join(dir, "src")}
	require.NoError(t, os.CopyFS(s.src, os.DirFS("../../testdata/tiny")))
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	s.registry = strings.TrimPrefix(server.URL, "http://")
	s.env = append(goEnv(t), "HOME="+t.TempDir(), "PATH="+os.Getenv("PATH"), "SLIPWAY_CACHE="+filepath.Join(dir, "cache"), "TMPDIR="+t.TempDir())
	return s
}

// command runs slipway in a process group of its own, as a shell does.
func (s *soak) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "slipway", append(args, "--rebuild=false", "--go-versions=1.22")...)
	cmd.Dir, cmd.Env = s.src, s.env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// record runs slipway to its end and returns the run record.
func (s *soak) record(args ...string) pipelines.Record {
	s.t.Helper()
	out, err := s.command(context.Background(), args...).CombinedOutput()
	require.NoError(s.t, err, "%s", out)
	r, err := pipelines.ReadRecord(filepath.Join(s.src, "dist", "run.json"))
	require.NoError(s.t, err)
	return *r
}

// whole checks that dist/ is a whole one: what its record names is there and is what its digest says.
func (s *soak) whole() {
	s.t.Helper()
	dist := filepath.Join(s.src, "dist")
	if _, err := os.Stat(dist); errors.Is(err, fs.ErrNotExist) {
		return
	}
	r, err := pipelines.ReadRecord(filepath.Join(dist, "run.json"))
	require.NoError(s.t, err)
	for _, b := range r.Binaries {
		require.FileExists(s.t, filepath.Join(dist, filepath.FromSlash(b.Path)))
	}
	if r.Image == nil {
		return
	}
	index, err := layout.ImageIndexFromPath(filepath.Join(dist, r.Image.Layout))
	require.NoError(s.t, err)
	digest, err := v1.NewHash(r.Image.Digest)
	require.NoError(s.t, err)
	inner, err := index.ImageIndex(digest)
	require.NoError(s.t, err)
	require.NoError(s.t, validate.Index(inner))
}

// published checks that a tag is either not there or on an image that is whole, and returns its digest.
func (s *soak) published(ref string) string {
	s.t.Helper()
	tag, err := name.NewTag(ref)
	require.NoError(s.t, err)
	if _, err := remote.Head(tag); err != nil {
		return ""
	}
	index, err := remote.Index(tag)
	require.NoError(s.t, err)
	require.NoError(s.t, validate.Index(index))
	digest, err := index.Digest()
	require.NoError(s.t, err)
	return digest.String()
}

// A run that is killed, at whatever moment, leaves nothing half-written, and the next run gives the same.
func TestKilledAtAnyMoment(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string
	}{
		{"all", []string{"all"}},
		{"publish", []string{"publish"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSoak(t)
			publishes := c.name == "publish"
			args := func(i int, fresh bool) []string {
				a := c.args
				if publishes {
					a = append(a[:len(a):len(a)], fmt.Sprintf("--to=%s/team/app:0.%d", s.registry, i))
				}
				if fresh {
					a = append(a[:len(a):len(a)], "--fresh")
				}
				return a
			}
			s.record(args(1000, true)...) // toolchains and modules are there from now on
			start := time.Now()
			want := s.record(args(1001, true)...)
			length := time.Since(start)
			moments := *soakMoments
			ended, reused := 0, 0
			for i := range moments {
				ctx, cancel := context.WithTimeout(context.Background(), length*time.Duration(i+1)/time.Duration(moments))
				out, err := s.command(ctx, args(i, true)...).CombinedOutput()
				cancel()
				if err == nil {
					ended++
				} else {
					require.Error(t, ctx.Err(), "it failed by itself: %s", out)
				}
				s.whole()
				ref := fmt.Sprintf("%s/team/app:0.%d", s.registry, i)
				if got := s.published(ref); got != "" {
					require.Equal(t, want.Image.Digest, got)
				}
				// This one may use what killed runs have left in the store of results.
				r := s.record(args(i, false)...)
				require.Equal(t, want.Image.Digest, r.Image.Digest)
				require.Equal(t, sums(want), sums(r))
				s.whole()
				if publishes {
					require.Equal(t, want.Image.Digest, s.published(ref))
				}
				if r.Stages[0].Reused != "" {
					reused++
				}
				for _, left := range []string{"dist.new", "dist.old"} {
					require.NoDirExists(t, filepath.Join(s.src, left))
				}
			}
			t.Logf("%d moments over %s: %d runs had ended before, %d of the runs that followed reused results", moments, length, ended, reused)
			temp, err := filepath.Glob(filepath.Join(s.src, ".slipway.lock.*"))
			require.NoError(t, err)
			require.Empty(t, temp)
			_, dir, _ := strings.Cut(s.env[len(s.env)-1], "=")
			temp, err = filepath.Glob(filepath.Join(dir, "*"))
			require.NoError(t, err)
			require.Empty(t, temp, "temporary files")
		})
	}
}

func sums(r pipelines.Record) map[string]string {
	all := map[string]string{}
	for _, b := range r.Binaries {
		all[b.Path] = b.SHA256
	}
	return all
}

// Runs over one directory at the same time wait for each other or share, and give the same.
func TestRunsAtTheSameTime(t *testing.T) {
	s := newSoak(t)
	want := s.record("all", "--fresh")
	var group sync.WaitGroup
	outputs := make([]string, 3)
	errs := make([]error, len(outputs))
	for i := range outputs {
		group.Go(func() {
			args := []string{"all"}
			if i == 0 {
				args = append(args, "--fresh")
			}
			out, err := s.command(context.Background(), args...).CombinedOutput()
			outputs[i], errs[i] = string(out), err
		})
	}
	group.Wait()
	for i := range outputs {
		require.NoError(t, errs[i], outputs[i])
		require.Contains(t, outputs[i], want.Image.Digest)
	}
	s.whole()
}

// A clock that jumps makes results at most older than they are.
func TestClockJumps(t *testing.T) {
	s := newSoak(t)
	want := s.record("all")
	for _, when := range []time.Time{time.Now().AddDate(20, 0, 0), time.Unix(1, 0)} {
		for _, dir := range []string{filepath.Join(filepath.Dir(s.src), "cache"), s.src} {
			require.NoError(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
				if err != nil || d.Type()&fs.ModeSymlink != 0 {
					return err
				}
				return os.Chtimes(name, when, when)
			}))
		}
		for _, fresh := range []string{"--fresh=false", "--fresh"} {
			r := s.record("all", fresh)
			require.Equal(t, want.Image.Digest, r.Image.Digest)
			require.Equal(t, sums(want), sums(r))
		}
	}
}
