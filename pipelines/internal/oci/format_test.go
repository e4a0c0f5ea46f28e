package oci

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
)

// What Docker's registry format says differs in media types and annotations alone.
func TestAssembleDocker(t *testing.T) {
	dir := t.TempDir()
	spec := testSpec(t, dir)
	base := newBaseImage(t, "linux", "amd64", "")
	for i := range spec.Images {
		if spec.Images[i].Platform == "linux/amd64" {
			spec.Images[i].Base = base
		}
	}
	asOCI, err := Assemble(t.Context(), dir, spec)
	require.NoError(t, err)
	spec.Docker = true
	index, err := Assemble(t.Context(), dir, spec)
	require.NoError(t, err)
	validate(t, dir)
	l, err := openLayout(dir)
	require.NoError(t, err)
	require.Equal(t, types.DockerManifestList, l.top.desc.MediaType)
	require.NotContains(t, string(l.top.raw), "annotations")
	for i, img := range l.images {
		require.Equal(t, types.DockerManifestSchema2, img.manifest.MediaType)
		require.Equal(t, types.DockerConfigJSON, img.manifest.Config.MediaType)
		require.Empty(t, img.manifest.Annotations)
		for _, layer := range img.manifest.Layers {
			require.Equal(t, types.DockerLayer, layer.MediaType)
		}
		require.Equal(t, asOCI.Images[i].Config, index.Images[i].Config)
		require.Equal(t, asOCI.Images[i].Layers, index.Images[i].Layers)
	}

	host := newRegistry(t)
	pushed, err := Push(t.Context(), dir, host+"/team/app:docker", PushOptions{Auth: nobody})
	require.NoError(t, err)
	require.Equal(t, index.Digest, pushed.Digest)
	ref, err := name.ParseReference(host + "/team/app:docker")
	require.NoError(t, err)
	there, err := remote.Get(ref)
	require.NoError(t, err)
	require.Equal(t, types.DockerManifestList, there.MediaType)
	t.Run("skopeo", func(t *testing.T) {
		var inspected struct{ Architecture string }
		text := run(t, tool(t, "skopeo"), "--override-arch", "arm64", "inspect", "--tls-verify=false", "docker://"+host+"/team/app:docker")
		require.NoError(t, json.Unmarshal([]byte(text), &inspected))
		require.Equal(t, "arm64", inspected.Architecture)
	})
}

func TestZstdLayers(t *testing.T) {
	binary := writeTestFile(t, "app", content(300_000, 7))
	entries := []Entry{{Path: "app", Mode: 0o755, File: binary}}
	dir := t.TempDir()
	gz, err := WriteLayer(dir, "application", entries, LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	zst, err := WriteLayer(dir, "application", entries, LayerOptions{ModTime: commitTime, Compression: Zstd})
	require.NoError(t, err)
	require.Equal(t, gz.Info.DiffID, zst.Info.DiffID)
	// Guards the compressor, as TestLayerGolden does for gzip.
	require.Equal(t, "sha256:c8f55caab91728a98c005341c0868fe8feaff16294f24d3fea3cc4f4b6b86402", zst.Info.Digest, "the compressor has changed")
	require.Equal(t, "klauspost/compress "+compressorVersion+" zstd level default", Compressor(Zstd))

	spec := Spec{Created: commitTime, Images: []ImageSpec{{Platform: "linux/amd64", Layers: []*Layer{gz, zst}, Config: Config{Entrypoint: []string{"/app"}}}}}
	index, err := Assemble(t.Context(), dir, spec)
	require.NoError(t, err)
	validate(t, dir)
	var manifest v1.Manifest
	require.NoError(t, json.Unmarshal([]byte(readBlob(t, dir, index.Images[0].Manifest)), &manifest))
	require.Equal(t, types.OCILayer, manifest.Layers[0].MediaType)
	require.Equal(t, types.OCILayerZStd, manifest.Layers[1].MediaType)
	t.Run("skopeo", func(t *testing.T) { skopeoCopies(t, dir) })

	spec.Docker = true
	_, err = Assemble(t.Context(), dir, spec)
	require.ErrorContains(t, err, "the Docker format knows no layers that are compressed by zstd")
	_, err = WriteLayer(dir, "application", entries, LayerOptions{Compression: "lz4"})
	require.ErrorContains(t, err, `unknown compression "lz4"`)
}

// skopeoCopies has skopeo unpack every layer, as it does for a target that is compressed otherwise.
func skopeoCopies(t *testing.T, dir string) {
	t.Helper()
	run(t, tool(t, "skopeo"), "--insecure-policy", "copy", "--dest-decompress", "oci:"+dir, "dir:"+t.TempDir())
}

func TestMirrors(t *testing.T) {
	host := newRegistry(t)
	digest := publish(t, host+"/hub/library/alpine:3", newBaseImage(t, "linux", "amd64", ""))
	publish(t, host+"/team/distro/static:1", newBaseImage(t, "linux", "amd64", ""))
	o := BaseOptions{CacheDir: t.TempDir(), Auth: nobody, Mirrors: map[string]string{
		"docker.io": host + "/hub", "registry.example": host + "/wrong", "registry.example/distro": host + "/team/distro",
	}}
	for _, ref := range []string{"alpine:3", "docker.io/library/alpine:3", "alpine@" + digest} {
		base, err := ResolveBase(t.Context(), ref, o)
		require.NoError(t, err)
		require.Equal(t, ref, base.Ref)
		require.Equal(t, digest, base.Digest)
		requirePulls(t, base)
	}
	base, err := ResolveBase(t.Context(), "registry.example/distro/static:1", o)
	require.NoError(t, err)
	requirePulls(t, base)
	_, err = ResolveBase(t.Context(), "registry.example/distroless/static:1", o)
	require.ErrorContains(t, err, host)
	require.ErrorContains(t, err, "wrong/distroless/static")

	require.NoError(t, CheckMirror("docker.io", "mirror.example:5000/hub"))
	for _, wrong := range [][2]string{{"", "mirror.example"}, {"docker.io", "https://mirror.example"}, {"docker.io", "mirror.example/"}, {"docker.io", "mirror.example/Team"}} {
		require.Error(t, CheckMirror(wrong[0], wrong[1]))
	}
}

func requirePulls(t *testing.T, base *Base) {
	t.Helper()
	img, err := base.Image(t.Context(), "linux/amd64")
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	rc, err := layers[0].Compressed()
	require.NoError(t, err)
	_, err = copyBuffer(&strings.Builder{}, rc)
	require.NoError(t, err)
	require.NoError(t, rc.Close())
}

func TestPullProgress(t *testing.T) {
	index, _ := newBaseIndex(t)
	host := newRegistry(t)
	publish(t, host+"/base/os:1", index)
	var done, total int64
	o := BaseOptions{CacheDir: t.TempDir(), Auth: nobody, Progress: func(d, all int64) { done, total = d, all }}
	base, err := ResolveBase(t.Context(), host+"/base/os:1", o)
	require.NoError(t, err)
	require.Zero(t, total, "layers are fetched when they are needed")
	requirePulls(t, base)
	require.Positive(t, total)
	require.Equal(t, total, done)
}
