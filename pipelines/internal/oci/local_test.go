package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/stretchr/testify/require"
)

func TestPushToDirectory(t *testing.T) {
	source, index := testLayout(t)
	parent := t.TempDir()
	dir := filepath.Join(parent, "new", "image")
	var done, total int64
	pushed, err := Push(t.Context(), source, "oci:"+dir, PushOptions{Progress: func(d, n int64) { done, total = d, n }})
	require.NoError(t, err)
	require.Equal(t, &Pushed{Reference: "oci:" + dir, Digest: index.Digest, Sent: totals(t, source), ReadBack: totals(t, source)}, pushed)
	require.Equal(t, total, done)
	require.Equal(t, totals(t, source).Bytes, done)
	require.Equal(t, tree(t, source), tree(t, dir))

	// It replaces another layout, an empty directory, and what a link points at.
	other, otherIndex := testLayout(t, "linux/amd64")
	pushed, err = Push(t.Context(), other, "oci:"+dir, PushOptions{})
	require.NoError(t, err)
	require.Equal(t, otherIndex.Digest, pushed.Digest)
	require.Equal(t, tree(t, other), tree(t, dir))
	_, err = Push(t.Context(), source, "oci:"+t.TempDir(), PushOptions{})
	require.NoError(t, err)
	link := filepath.Join(parent, "link")
	if os.Symlink(dir, link) == nil {
		_, err = Push(t.Context(), source, "oci:"+link, PushOptions{})
		require.NoError(t, err)
		require.Equal(t, tree(t, source), tree(t, dir))
		info, err := os.Lstat(link)
		require.NoError(t, err)
		require.NotZero(t, info.Mode()&os.ModeSymlink)
	}
	// Onto itself.
	_, err = Push(t.Context(), dir, "oci:"+dir, PushOptions{})
	require.NoError(t, err)
	require.Equal(t, tree(t, source), tree(t, dir))
	for _, d := range []string{parent, filepath.Dir(dir)} {
		files, err := os.ReadDir(d)
		require.NoError(t, err)
		for _, f := range files {
			require.NotContains(t, f.Name(), ".tmp-", "nothing is left beside")
		}
	}
	t.Run("skopeo", func(t *testing.T) {
		raw := run(t, tool(t, "skopeo"), "inspect", "--raw", "oci:"+dir+":image")
		require.Equal(t, index.Digest, hashOf([]byte(raw)).String())
	})
}

// What is not a layout of one image is never destroyed.
func TestPushSparesOtherDirectories(t *testing.T) {
	source, _ := testLayout(t, "linux/amd64")
	file := func(path string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
	}
	for want, prepare := range map[string]func(dir string){
		"is not an OCI layout": func(dir string) { file(filepath.Join(dir, "thesis.tex")) },
		"no file oci-layout":   func(dir string) { file(filepath.Join(dir, "index.json")) },
		"it holds notes":       func(dir string) { copyLayout(t, source, dir); file(filepath.Join(dir, "notes")) },
		"of version 1":         func(dir string) { copyLayout(t, source, dir); file(filepath.Join(dir, "oci-layout")) },
		"invalid character":    func(dir string) { copyLayout(t, source, dir); file(filepath.Join(dir, "index.json")) },
		"cannot become an OCI": func(dir string) { require.NoError(t, os.Remove(dir)); file(dir) },
		"holds 2 images":       func(dir string) { twoImages(t, dir) },
	} {
		parent := t.TempDir()
		dir := filepath.Join(parent, "target")
		require.NoError(t, os.Mkdir(dir, 0o755))
		prepare(dir)
		before := tree(t, dir)
		_, err := Push(t.Context(), source, "oci:"+dir, PushOptions{})
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, dir)
		require.Equal(t, before, tree(t, dir))
		files, err := os.ReadDir(parent)
		require.NoError(t, err)
		require.Len(t, files, 1)
	}
	_, err := Push(t.Context(), source, "oci:", PushOptions{})
	require.ErrorContains(t, err, "has no directory")
}

func copyLayout(t *testing.T, from, to string) {
	t.Helper()
	_, err := Push(t.Context(), from, "oci:"+to, PushOptions{})
	require.NoError(t, err)
}

func twoImages(t *testing.T, dir string) {
	t.Helper()
	path, err := ocilayout.Write(dir, empty.Index)
	require.NoError(t, err)
	require.NoError(t, path.AppendImage(newBaseImage(t, "linux", "amd64", "")))
	require.NoError(t, path.AppendImage(newBaseImage(t, "linux", "arm64", "")))
}

func TestPushToTar(t *testing.T) {
	source, index := testLayout(t, "linux/s390x", "linux/"+runtime.GOARCH, "linux/ppc64le")
	native := index.Images[0]
	for _, img := range index.Images {
		if img.Platform == "linux/"+runtime.GOARCH {
			native = img
		}
	}
	file := filepath.Join(t.TempDir(), "out", "image.tar")
	o := PushOptions{Names: []string{"app:v1", "registry.example/team/app:v1.2"}}
	pushed, err := Push(t.Context(), source, "tar:"+file, o)
	require.NoError(t, err)
	require.Equal(t, "tar:"+file, pushed.Reference)
	require.Equal(t, native.Manifest, pushed.Digest, "the platform of this machine")
	require.Equal(t, Amount{2 + len(native.Layers), native.Size()}, pushed.Sent)
	require.Equal(t, pushed.Sent, pushed.ReadBack)

	// Deterministic, and it replaces what was there.
	first := readFile(t, file)
	require.NoError(t, os.WriteFile(file, []byte("old"), 0o644))
	_, err = Push(t.Context(), source, "tar:"+file, o)
	require.NoError(t, err)
	require.Equal(t, hashOf([]byte(first)), hashOf([]byte(readFile(t, file))))

	t.Run("skopeo docker-archive", func(t *testing.T) {
		skopeo := tool(t, "skopeo")
		for _, name := range []string{"app:v1", "registry.example/team/app:v1.2"} {
			var inspected struct {
				Architecture string
				Labels       map[string]string
			}
			require.NoError(t, json.Unmarshal([]byte(run(t, skopeo, "inspect", "docker-archive:"+file+":"+name)), &inspected))
			require.Equal(t, runtime.GOARCH, inspected.Architecture)
			require.Equal(t, "v1.2.3", inspected.Labels["org.opencontainers.image.version"])
		}
		// Loading checks every layer against the diff IDs of the configuration, whose digest is the image ID
		// that docker shows.
		dir := filepath.Join(t.TempDir(), "copy")
		run(t, skopeo, "--insecure-policy", "copy", "docker-archive:"+file+":app:v1", "dir:"+dir)
		require.Equal(t, readBlob(t, source, native.Config), readFile(t, dir, strings.TrimPrefix(native.Config, "sha256:")))
	})
	t.Run("skopeo oci-archive", func(t *testing.T) {
		raw := run(t, tool(t, "skopeo"), "inspect", "--raw", "oci-archive:"+file+":app:v1")
		require.Equal(t, native.Manifest, hashOf([]byte(raw)).String(), "the digest is the one that the image has everywhere")
	})

	// A platform that is asked for, one that there is not, and the first where the native one is missing.
	pushed, err = Push(t.Context(), source, "tar:"+file, PushOptions{Platform: "linux/s390x"})
	require.NoError(t, err)
	require.NotEqual(t, native.Manifest, pushed.Digest)
	_, err = Push(t.Context(), source, "tar:"+file, PushOptions{Platform: "linux/mips"})
	require.ErrorContains(t, err, "has no image for linux/mips; it has [linux/")
	foreign, foreignIndex := testLayout(t, "linux/s390x", "linux/ppc64le")
	pushed, err = Push(t.Context(), foreign, "tar:"+file, PushOptions{})
	require.NoError(t, err)
	require.Equal(t, foreignIndex.Images[0].Manifest, pushed.Digest)
	t.Run("skopeo without a name", func(t *testing.T) {
		run(t, tool(t, "skopeo"), "inspect", "docker-archive:"+file)
	})

	// A failure leaves the old file.
	before := readFile(t, file)
	blob := filepath.Join(blobDir(foreign), strings.TrimPrefix(foreignIndex.Images[0].Config, "sha256:"))
	require.NoError(t, os.WriteFile(blob, []byte("x"), 0o644))
	_, err = Push(t.Context(), foreign, "tar:"+file, PushOptions{})
	require.Error(t, err)
	require.Equal(t, before, readFile(t, file))
	files, err := os.ReadDir(filepath.Dir(file))
	require.NoError(t, err)
	require.Len(t, files, 1)
	_, err = Push(t.Context(), source, "tar:", PushOptions{})
	require.ErrorContains(t, err, "has no file")
}
