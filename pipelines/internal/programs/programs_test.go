package programs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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
	for _, p := range found.Programs {
		names = append(names, p.Path)
		assert.Equal(t, "github.com/slipway-ci/slipway/testdata/tiny", p.Info.Main.Path)
		assert.False(t, p.Stripped)
		assert.Equal(t, found.Programs[0].SHA256, p.SHA256)
		assert.EqualValues(t, len(tiny), p.Size)
	}
	assert.Equal(t, []string{"/bin/same", "/d", "/opt/x/new"}, names)
	assert.Equal(t, []int{0, 0, 1}, []int{found.Programs[0].Layer, found.Programs[1].Layer, found.Programs[2].Layer})
	assert.Equal(t, found.Programs[1], *found.Find("/d"))
	assert.Greater(t, found.Find("/d").Bytes(), len(found.Find("/d").Info.String()))
}

// What a runtime would start is what is found, however layers lie upon each other.
func TestReadLikeARuntime(t *testing.T) {
	tiny := tinyProgram(t)
	evil := strings.Replace(tiny, "0.0.0-dev", "9.9.9-bad", 1)
	require.NotEqual(t, tiny, evil)
	link := func(name, target string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}
	}
	const app = "usr/local/bin/app"
	for name, layers := range map[string][][]byte{
		"a link in a directory's place":  {tarOf(t, file(app, tiny, 0o755), file("opt/x/app", evil, 0o755)), tarOf(t, link("usr/local/bin", "/opt/x"))},
		"below a link":                   {tarOf(t, file(app, tiny, 0o755), link("x", "usr/local/bin")), tarOf(t, file("x/app", evil, 0o755))},
		"below two links":                {tarOf(t, file(app, tiny, 0o755), link("y", "/usr/local"), link("x", "y/bin")), tarOf(t, file("x/app", evil, 0o755))},
		"opaque after the file":          {tarOf(t, file(app, tiny, 0o755)), tarOf(t, file(app, evil, 0o755), file("usr/local/bin/.wh..wh..opq", "", 0o644))},
		"whiteout after the file":        {tarOf(t, file(app, tiny, 0o755)), tarOf(t, file(app, evil, 0o755), file("usr/local/bin/.wh.app", "", 0o644))},
		"a hard link through a link":     {tarOf(t, link("x", "opt"), file("opt/evil", evil, 0o755), tar.Header{Name: app, Typeflag: tar.TypeLink, Linkname: "x/evil"})},
		"twice in a layer":               {tarOf(t, file(app, tiny, 0o755), file("./"+app, evil, 0o755))},
		"a link to the program":          {tarOf(t, file("opt/evil", evil, 0o755), link(app, "../../../opt/evil"))},
		"a directory in a link's place":  {tarOf(t, link("usr/local/bin", "/opt"), file("opt/app", tiny, 0o755)), tarOf(t, tar.Header{Name: "usr/local/bin/", Typeflag: tar.TypeDir, Mode: 0o755}, file(app, evil, 0o755))},
		"a file in a directory's place":  {tarOf(t, file(app+"/app", tiny, 0o755)), tarOf(t, file(app, evil, 0o755))},
		"a name that leaves and returns": {tarOf(t, file(app, tiny, 0o755)), tarOf(t, file("../../usr/local/bin/app", evil, 0o755))},
	} {
		t.Run(name, func(t *testing.T) {
			tree, err := Read(t.Context(), imageOf(t, layers...), t.TempDir())
			require.NoError(t, err)
			p := tree.Find("/" + app)
			require.NotNil(t, p)
			sum := sha256.Sum256([]byte(evil))
			assert.Equal(t, hex.EncodeToString(sum[:]), p.SHA256)
		})
	}
	tree, err := Read(t.Context(), imageOf(t, tarOf(t, file(app, tiny, 0o755), link("loop", "loop"))), t.TempDir())
	require.NoError(t, err)
	assert.Nil(t, tree.Find("/loop/app"))
	assert.Nil(t, tree.Find(""))
	_, err = Read(t.Context(), imageOf(t, tarOf(t, link("loop", "loop"), file("loop/app", tiny, 0o755))), t.TempDir())
	assert.ErrorContains(t, err, "a loop of symbolic links")
	_, err = Read(t.Context(), imageOf(t, tarOf(t, tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{"SLIPWAY.x": "y"}}, file(strings.Repeat("x/", 3000)+"app", tiny, 0o755))), t.TempDir())
	assert.ErrorContains(t, err, "layer 1: a path is longer than 4096 bytes")
}

func TestReadDamagedLayers(t *testing.T) {
	whole := tarOf(t, file("bin/a", "\x7fELF and more", 0o755))
	_, err := Read(t.Context(), imageOf(t, whole[:520]), t.TempDir())
	assert.ErrorContains(t, err, "layer 1 cannot be unpacked")
	_, err = Read(t.Context(), imageOf(t, bytes.Repeat([]byte("x"), 2000)), t.TempDir())
	assert.ErrorContains(t, err, "layer 1 cannot be unpacked")
	img := imageOf(t, whole)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0].Hex = "00"
	other, err := mutate.ConfigFile(img, config)
	require.NoError(t, err)
	_, err = Read(t.Context(), other, t.TempDir())
	assert.ErrorContains(t, err, "layer 1 unpacks to sha256:")
	config.RootFS.DiffIDs = nil
	other, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	_, err = Read(t.Context(), other, t.TempDir())
	assert.ErrorContains(t, err, "the image has 1 layers, but its configuration lists 0")
}

func FuzzRead(f *testing.F) {
	f.Add(tarOf(f, file("bin/a", "\x7fELF\x02\x01\x01", 0o755), file(".wh.b", "", 0), tar.Header{Name: "c", Typeflag: tar.TypeLink, Linkname: "bin/a"}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, layer []byte) {
		_, _ = Read(t.Context(), imageOf(t, layer), dir)
	})
}
