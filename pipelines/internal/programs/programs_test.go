package programs

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// imageOf is an image of tar streams.
func imageOf(t testing.TB, layers ...[]byte) v1.Image {
	img := empty.Image
	for _, l := range layers {
		var err error
		img, err = mutate.AppendLayers(img, static.NewLayer(l, types.OCIUncompressedLayer))
		require.NoError(t, err)
	}
	return img
}

func tarOf(t testing.TB, headers ...tar.Header) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := []byte(h.Linkname)
		if h.Typeflag == tar.TypeReg {
			h.Linkname, h.Size = "", int64(len(content))
		} else {
			content = nil
		}
		require.NoError(t, w.WriteHeader(&h))
		_, err := w.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// file is a header whose content stands in Linkname.
func file(name, content string, mode int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Linkname: content}
}

func tinyProgram(t testing.TB) string {
	out := filepath.Join(t.TempDir(), "tiny")
	c := exec.Command("go", "build", "-o", out, ".")
	c.Dir = filepath.Join("..", "..", "..", "testdata", "tiny")
	c.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0", "GOWORK=off")
	text, err := c.CombinedOutput()
	require.NoError(t, err, "%s", text)
	b, err := os.ReadFile(out)
	require.NoError(t, err)
	return string(b)
}

func TestRead(t *testing.T) {
	tiny := tinyProgram(t)
	img := imageOf(t,
		tarOf(t, file("bin/a", tiny, 0o755), file("bin/data", tiny, 0o644), file("bin/script", "#!/bin/sh\n", 0o755), file("opt/x/b", tiny, 0o755), file("opt/y/c", tiny, 0o755), file("../../d", tiny, 0o755),
			tar.Header{Name: "bin/same", Typeflag: tar.TypeLink, Linkname: "bin/a"}, tar.Header{Name: "dev/null", Typeflag: tar.TypeChar}, file("bin/broken", "\x7fELF", 0o755)),
		tarOf(t, file("bin/.wh.a", "", 0o644), file("opt/x/.wh..wh..opq", "", 0o644), file("opt/.wh.y", "", 0o644), file("opt/x/new", tiny, 0o755)),
	)
	found, err := Read(t.Context(), img, t.TempDir())
	require.NoError(t, err)
	var names []string
	for _, p := range found {
		names = append(names, p.Path)
		assert.Equal(t, "github.com/slipway-ci/slipway/testdata/tiny", p.Info.Main.Path)
		assert.False(t, p.Stripped)
		assert.Equal(t, found[0].SHA256, p.SHA256)
		assert.EqualValues(t, len(tiny), p.Size)
	}
	assert.Equal(t, []string{"/bin/same", "/d", "/opt/x/new"}, names)
}

func TestReadDamagedLayers(t *testing.T) {
	whole := tarOf(t, file("bin/a", "\x7fELF and more", 0o755))
	_, err := Read(t.Context(), imageOf(t, whole[:520]), t.TempDir())
	assert.ErrorContains(t, err, "a layer cannot be unpacked")
	_, err = Read(t.Context(), imageOf(t, bytes.Repeat([]byte("x"), 2000)), t.TempDir())
	assert.ErrorContains(t, err, "a layer cannot be unpacked")
	img := imageOf(t, whole)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = "00"
	other, err := mutate.ConfigFile(img, config)
	require.NoError(t, err)
	_, err = Read(t.Context(), other, t.TempDir())
	assert.ErrorContains(t, err, "a layer unpacks to sha256:")
}

func FuzzRead(f *testing.F) {
	f.Add(tarOf(f, file("bin/a", "\x7fELF\x02\x01\x01", 0o755), file(".wh.b", "", 0), tar.Header{Name: "c", Typeflag: tar.TypeLink, Linkname: "bin/a"}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, layer []byte) {
		_, _ = Read(t.Context(), imageOf(t, layer), dir)
	})
}
