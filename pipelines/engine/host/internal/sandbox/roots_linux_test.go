package sandbox

import (
	"os"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// An image that is started again is not unpacked again, and nothing of one start is seen in the next.
func TestRoots(t *testing.T) {
	image, other := appImage(t, v1.Config{}).write(t), appImage(t, v1.Config{Env: []string{"OTHER=1"}}).write(t)
	forEachKind(t, isolated, func(t *testing.T, kind string) {
		tmp := t.TempDir()
		t.Setenv("TMPDIR", tmp)
		var roots Roots
		start := func(c engine.Container, args ...string) string {
			t.Helper()
			c.Isolation, c.Args, c.Env = kind, args, []string{"ARGS=" + args[0]}
			p, err := roots.Start(bounded(t), c)
			require.NoError(t, err)
			exit, err := p.Wait(bounded(t))
			require.NoError(t, err)
			require.Zero(t, exit.Code, "%s", p.Output())
			require.NoError(t, p.Close())
			return string(p.Output())
		}
		kept := func() []string {
			names, err := filepath.Glob(filepath.Join(tmp, "slipway-roots-*", "*"))
			require.NoError(t, err)
			return names
		}
		start(image, "report", "write=/tmp/x")
		first := kept()
		require.Len(t, first, 1)
		// Whoever changes it sees that it is the same.
		require.NoError(t, os.Chmod(filepath.Join(first[0], "etc"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(first[0], "etc", "mark"), []byte("seen"), 0o644))
		require.Contains(t, start(image, "report", "read=/etc/mark", "read=/tmp/x"), "seen")
		require.Contains(t, start(image, "output", "1"), "line 0")
		require.Equal(t, first, kept())

		start(other, "report")
		require.Len(t, kept(), 1)
		require.NotEqual(t, first, kept())
		require.NoError(t, roots.Close())
		require.NoError(t, roots.Close(), "again")
		checkNothingLeft(t, tmp, "SLIPWAY_TEST_MARK="+tmp, "")
	})
}

// Volumes can be written to, by those who can write to the directory in the image.
func TestVolumes(t *testing.T) {
	spec := appImage(t, v1.Config{User: "65532:65532", Volumes: map[string]struct{}{"/data": {}, "/made": {}, "/tmp/below": {}, "/link": {}}},
		dir("data", 0o750).owned(65532, 65532), file("data/old", 0o644, "old"), dir("real", 0o777), link("link", "/real"))
	c := spec.write(t)
	forEachKind(t, isolated, func(t *testing.T, kind string) {
		c.Isolation = kind
		r, p := getReport(t, c, "write=/data/x", "read=/data/old", "write=/made/x", "write=/link/x", "write=/tmp/x")
		require.Equal(t, "ok", r.Writes["/data/x"])
		require.Contains(t, r.Reads["/data/old"], "no such file")
		require.Equal(t, "ok", r.Writes["/link/x"])
		require.NotEqual(t, "ok", r.Writes["/made/x"])
		require.Equal(t, "ok", r.Writes["/tmp/x"])
		require.Contains(t, p.Isolation().Holds, "tmpfs")
	})
	_, err := tryRun(t, appImage(t, v1.Config{Volumes: map[string]struct{}{"/file": {}}}, file("file", 0o644, "")).write(t))
	require.ErrorContains(t, err, "the image's volume /file is not a directory in the image")
}
