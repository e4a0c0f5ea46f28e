package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
)

// The same input gives the same layout, byte for byte, wherever and whenever.
func TestAssembleIsDeterministic(t *testing.T) {
	dirs := []string{t.TempDir(), filepath.Join(t.TempDir(), "elsewhere", "deep")}
	indexes := make([]*Index, len(dirs))
	var group sync.WaitGroup
	for i, dir := range dirs {
		spec := testSpec(t, dir)
		if i == 1 {
			slices.Reverse(spec.Images)
		}
		group.Go(func() {
			var err error
			if indexes[i], err = Assemble(t.Context(), dir, spec); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	require.Equal(t, indexes[0], indexes[1])
	require.Equal(t, tree(t, dirs[0]), tree(t, dirs[1]))
}

// What layers are to TestLayerGolden, manifests, configurations and the index are to this one.
func TestAssembleGolden(t *testing.T) {
	dir := t.TempDir()
	layer, err := WriteLayer(dir, "application", []Entry{{Path: "app", Mode: 0o755, Data: []byte("x")}}, LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	spec := Spec{Created: commitTime, Annotations: map[string]string{"b": "<&>", "a": "ü\u2028"}}
	for _, p := range []string{"linux/arm64", "linux/amd64/v3", "linux/arm/v7"} {
		spec.Images = append(spec.Images, ImageSpec{
			Platform: p, Layers: []*Layer{layer}, Annotations: map[string]string{"k": "v"},
			Config: Config{
				User: "nonroot", Entrypoint: []string{"/app"}, Cmd: []string{"-x"}, Env: []string{"A=1", "B=2"}, WorkingDir: "/w",
				ExposedPorts: []string{"80", "8080/udp"}, Volumes: []string{"/v"}, StopSignal: "SIGINT", Labels: map[string]string{"l": "m"},
			},
		})
	}
	index, err := Assemble(t.Context(), dir, spec)
	require.NoError(t, err)
	require.Equal(t, "sha256:57491e4e2718d957b32c062c295d430ae3181345d08de8c75482fc006cb8a844", index.Digest)
}

func TestAssembleContent(t *testing.T) {
	dir, result := testLayout(t, "linux/arm64/v8", "linux/amd64/v3", "linux/arm/v7", "linux/amd64")
	require.Equal(t, `{"imageLayoutVersion":"1.0.0"}`, readFile(t, dir, "oci-layout"))
	top, err := ocilayout.ImageIndexFromPath(dir)
	require.NoError(t, err)
	validate(t, dir)
	manifest, err := top.IndexManifest()
	require.NoError(t, err)
	require.Len(t, manifest.Manifests, 1)
	require.Equal(t, types.OCIImageIndex, manifest.Manifests[0].MediaType)
	require.Equal(t, result.Digest, manifest.Manifests[0].Digest.String())
	require.Equal(t, result.Size, manifest.Manifests[0].Size)
	require.Equal(t, map[string]string{"org.opencontainers.image.ref.name": "image"}, manifest.Manifests[0].Annotations)

	index, err := top.ImageIndex(manifest.Manifests[0].Digest)
	require.NoError(t, err)
	manifest, err = index.IndexManifest()
	require.NoError(t, err)
	require.Equal(t, types.OCIImageIndex, manifest.MediaType)
	require.Equal(t, map[string]string{"org.opencontainers.image.revision": "0123456789abcdef"}, manifest.Annotations)
	var platforms []v1.Platform
	for i, d := range manifest.Manifests {
		platforms = append(platforms, *d.Platform)
		require.Equal(t, types.OCIManifestSchema1, d.MediaType)
		img, err := index.Image(d.Digest)
		require.NoError(t, err)
		checkImage(t, img, d, result.Images[i])
	}
	require.Equal(t, []v1.Platform{
		{OS: "linux", Architecture: "amd64"},
		{OS: "linux", Architecture: "amd64", Variant: "v3"},
		{OS: "linux", Architecture: "arm", Variant: "v7"},
		{OS: "linux", Architecture: "arm64"},
	}, platforms)
	// No file that nothing points at: 4 manifests, 4 configurations, 4 + 2 layers, the index.
	require.Len(t, tree(t, blobDir(dir)), 4+4+4+2+1)
}

func checkImage(t *testing.T, img v1.Image, d v1.Descriptor, result Image) {
	t.Helper()
	require.Equal(t, platformName(*d.Platform), result.Platform)
	require.Equal(t, d.Digest.String(), result.Manifest)
	manifest, err := img.Manifest()
	require.NoError(t, err)
	require.Equal(t, types.OCIConfigJSON, manifest.Config.MediaType)
	require.Equal(t, manifest.Config.Digest.String(), result.Config)
	require.Equal(t, map[string]string{"org.opencontainers.image.created": "2024-05-06T05:08:09Z"}, manifest.Annotations)
	size := d.Size + manifest.Config.Size
	for i, l := range manifest.Layers {
		size += l.Size
		require.Equal(t, types.OCILayer, l.MediaType)
		require.Equal(t, l.Digest.String(), result.Layers[i].Digest)
	}
	require.Equal(t, size, result.Size())

	config, err := img.ConfigFile()
	require.NoError(t, err)
	require.Equal(t, d.Platform.Variant, config.Variant)
	require.Equal(t, time.Date(2024, 5, 6, 5, 8, 9, 0, time.UTC), config.Created.Time)
	require.Equal(t, v1.Config{
		User: "65532:65532", Entrypoint: []string{"/app/server"}, Cmd: []string{"serve"}, Env: []string{"PATH=/app", "TZ=UTC"},
		WorkingDir: "/home/nonroot", ExposedPorts: map[string]struct{}{"8080/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/data": {}},
		StopSignal: "SIGTERM", Labels: map[string]string{"org.opencontainers.image.version": "v1.2.3", "a<b": "c&d"},
	}, config.Config)
	require.Len(t, config.History, 3)
	for i, kind := range []string{"certificates", "accounts", "application"} {
		require.Equal(t, v1.History{Created: config.Created, CreatedBy: "slipway: " + kind}, config.History[i])
		require.Equal(t, kind, result.Layers[i].Kind)
		require.Equal(t, config.RootFS.DiffIDs[i].String(), result.Layers[i].DiffID)
	}
}

func readFile(t *testing.T, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	require.NoError(t, err)
	return string(data)
}

// One platform gives an index as well, and no time is the epoch.
func TestAssembleOnePlatform(t *testing.T) {
	dir := t.TempDir()
	index, err := Assemble(t.Context(), dir, Spec{Images: []ImageSpec{{Platform: "linux/amd64"}}, RefName: "v1"})
	require.NoError(t, err)
	require.Len(t, index.Images, 1)
	l, err := openLayout(dir)
	require.NoError(t, err)
	require.Equal(t, types.OCIImageIndex, l.top.desc.MediaType)
	require.Equal(t, "v1", l.top.desc.Annotations["org.opencontainers.image.ref.name"])
	config := readFile(t, blobDir(dir), strings.TrimPrefix(index.Images[0].Config, "sha256:"))
	require.Equal(t, `{"architecture":"amd64","created":"1970-01-01T00:00:00Z","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"config":{}}`, config)
	require.Contains(t, string(l.images[0].raw), `"layers":[]`)
}

// A base image is carried over byte for byte; its configuration gives what running needs and nothing of
// the machine that built it.
func TestAssembleOnBase(t *testing.T) {
	base := newBaseImage(t, "linux", "amd64", "")
	baseManifest, err := base.Manifest()
	require.NoError(t, err)
	require.Equal(t, types.DockerLayer, baseManifest.Layers[0].MediaType)
	dir := t.TempDir()
	layer, err := WriteLayer(t.TempDir(), "application", []Entry{{Path: "app", Data: []byte("x")}}, LayerOptions{ModTime: commitTime}) // elsewhere
	require.NoError(t, err)
	result, err := Assemble(t.Context(), dir, Spec{Created: commitTime, Images: []ImageSpec{{
		Platform: "linux/amd64", Base: base, Layers: []*Layer{layer},
		Config: Config{Entrypoint: []string{"/app"}, Env: []string{"LANG=de", "NEW=1"}, Labels: map[string]string{"own": "1"}},
	}}})
	require.NoError(t, err)
	l, err := openLayout(dir)
	require.NoError(t, err)
	validate(t, dir)

	got := l.images[0].manifest
	require.Len(t, got.Layers, 3)
	for i, want := range baseManifest.Layers {
		require.Equal(t, want.Digest, got.Layers[i].Digest)
		require.Equal(t, types.OCILayer, got.Layers[i].MediaType)
		info := result.Images[0].Layers[i]
		require.Equal(t, "base", info.Kind)
		require.Greater(t, info.UncompressedSize, int64(2000))
	}
	var config v1.ConfigFile
	raw := readFile(t, blobDir(dir), got.Config.Digest.Hex)
	require.NoError(t, json.Unmarshal([]byte(raw), &config))
	require.Equal(t, v1.Config{
		Entrypoint: []string{"/app"}, // and not the Cmd of the base
		Env:        []string{"PATH=/usr/bin", "LANG=de", "NEW=1"},
		WorkingDir: "/base", User: "base",
		Volumes: map[string]struct{}{"/base-data": {}},
		Labels:  map[string]string{"vendor": "base", "own": "1"},
	}, config.Config)
	for _, secret := range []string{"build-host", "parent", "someone", "something"} {
		require.NotContains(t, raw, secret)
	}
	require.Len(t, config.History, 4)
	require.Equal(t, "CMD [\"/bin/sh\"]", config.History[1].CreatedBy)
	require.True(t, config.History[1].EmptyLayer)
	require.Equal(t, "slipway: application", config.History[3].CreatedBy)

	// A base without its own history gets one, or the layers cannot be told apart.
	bare, err := base.ConfigFile()
	require.NoError(t, err)
	bare = bare.DeepCopy()
	bare.History = bare.History[:1]
	base, err = mutate.ConfigFile(base, bare)
	require.NoError(t, err)
	result, err = Assemble(t.Context(), dir, Spec{Images: []ImageSpec{{Platform: "linux/amd64", Base: base, Config: Config{Cmd: []string{"x"}}}}})
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal([]byte(readFile(t, blobDir(dir), strings.TrimPrefix(result.Images[0].Config, "sha256:"))), &config))
	require.Len(t, config.History, 2)
	require.Equal(t, "base image", config.History[0].CreatedBy)
	require.Equal(t, []string{"x"}, config.Config.Cmd)
}

func TestAssembleErrors(t *testing.T) {
	base := newBaseImage(t, "linux", "amd64", "")
	foreign, err := mutate.AppendLayers(base, static.NewLayer([]byte("x"), types.DockerForeignLayer))
	require.NoError(t, err)
	config, err := base.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.RootFS.DiffIDs[0] = config.RootFS.DiffIDs[1]
	one := func(platform string, base v1.Image, c Config) Spec {
		return Spec{Images: []ImageSpec{{Platform: platform, Base: base, Config: c}}}
	}
	for _, test := range []struct {
		spec Spec
		want string
	}{
		{Spec{}, "an image needs at least one platform"},
		{one("linux", nil, Config{}), `"linux" is not a platform`},
		{Spec{Images: []ImageSpec{{Platform: "linux/arm64"}, {Platform: "linux/arm64/v8"}}}, "platform linux/arm64 was given twice"},
		{one("linux/arm64", base, Config{}), "image for linux/arm64: the base image is for linux/amd64"},
		{one("linux/amd64", foreign, Config{}), "cannot be carried over"},
		{one("linux/amd64", otherConfig{base, config}, Config{}), "layer 1 of the base image is not the one that its configuration lists"},
		{one("linux/amd64", nil, Config{Env: []string{"novalue"}}), `variable "novalue" is not KEY=value`},
		{one("linux/amd64", nil, Config{ExposedPorts: []string{"http"}}), `"http" is not a port`},
		{one("linux/amd64", nil, Config{ExposedPorts: []string{"0"}}), `"0" is not a port`},
		{one("linux/amd64", nil, Config{ExposedPorts: []string{"80/icmp"}}), `"80/icmp" is not a port`},
		{one("linux/amd64", nil, Config{Volumes: []string{"data"}}), `volume "data" is not an absolute path`},
		{one("linux/amd64", nil, Config{WorkingDir: "w"}), `working directory "w" is not an absolute path`},
	} {
		dir := t.TempDir()
		_, err := Assemble(t.Context(), dir, test.spec)
		require.ErrorContains(t, err, test.want)
		require.NoFileExists(t, filepath.Join(dir, "index.json"), "a layout without index.json is none")
	}

	// A layer whose file is not what it was.
	dir := t.TempDir()
	layer, err := WriteLayer(dir, "application", []Entry{{Path: "app", Data: []byte("x")}}, LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(layer.path, []byte("short"), 0o644))
	spec := Spec{Images: []ImageSpec{{Platform: "linux/amd64", Layers: []*Layer{layer}}}}
	for _, to := range []string{dir, t.TempDir()} {
		_, err = Assemble(t.Context(), to, spec)
		_, ok := errors.AsType[*DigestError](err)
		require.True(t, ok, "%v", err)
	}
}

// otherConfig is an image that gives another configuration than its own.
type otherConfig struct {
	v1.Image
	config *v1.ConfigFile
}

func (o otherConfig) ConfigFile() (*v1.ConfigFile, error) { return o.config, nil }

// validate checks that everything in a layout is what its digests say, diff IDs included.
func validate(t *testing.T, dir string) {
	t.Helper()
	l, err := openLayout(dir)
	require.NoError(t, err)
	require.NoError(t, l.verify(t.Context()))
	for _, img := range l.images {
		var config v1.ConfigFile
		require.NoError(t, json.Unmarshal([]byte(readBlob(t, dir, img.manifest.Config.Digest.String())), &config))
		require.Len(t, img.manifest.Layers, len(config.RootFS.DiffIDs))
		withLayer := 0
		for _, h := range config.History {
			if !h.EmptyLayer {
				withLayer++
			}
		}
		require.Equal(t, len(img.manifest.Layers), withLayer)
		for i, layer := range img.manifest.Layers {
			facts, err := unpackBlob(dir, layer.Digest)
			require.NoError(t, err)
			require.Equal(t, config.RootFS.DiffIDs[i], facts.DiffID)
		}
	}
}

// The tools that people use read what we write.
func TestToolsReadLayout(t *testing.T) {
	base := newBaseImage(t, "linux", "amd64", "")
	for _, test := range []struct {
		name      string
		platforms []string
	}{
		{"one platform", []string{"linux/amd64"}},
		{"three platforms", []string{"linux/amd64", "linux/arm64", "linux/arm/v7"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			spec := testSpec(t, dir, test.platforms...)
			for i := range spec.Images {
				if spec.Images[i].Platform == "linux/amd64" {
					spec.Images[i].Base = base
				}
			}
			result, err := Assemble(t.Context(), dir, spec)
			require.NoError(t, err)
			t.Run("skopeo", func(t *testing.T) { skopeoReads(t, dir, result) })
			t.Run("umoci", func(t *testing.T) { umociReads(t, dir, len(test.platforms)) })
		})
	}
}

func skopeoReads(t *testing.T, dir string, result *Index) {
	skopeo := tool(t, "skopeo")
	require.Equal(t, readBlob(t, dir, result.Digest), strings.TrimSpace(run(t, skopeo, "inspect", "--raw", "oci:"+dir)))
	for _, img := range result.Images {
		os, rest, _ := strings.Cut(img.Platform, "/")
		arch, variant, _ := strings.Cut(rest, "/")
		override := []string{"--override-os", os, "--override-arch", arch, "--override-variant", variant}
		if arch == runtime.GOARCH {
			override = nil
		}
		var inspected struct {
			Architecture, Os string
			Created          time.Time
			Labels           map[string]string
			Layers           []string
			Env              []string
		}
		require.NoError(t, json.Unmarshal([]byte(run(t, skopeo, append(override, "inspect", "oci:"+dir)...)), &inspected))
		require.Equal(t, arch, inspected.Architecture)
		require.Equal(t, "v1.2.3", inspected.Labels["org.opencontainers.image.version"])
		var layers []string
		for _, l := range img.Layers {
			layers = append(layers, l.Digest)
		}
		require.Equal(t, layers, inspected.Layers)
	}
	// A copy of everything has the same digests.
	target := filepath.Join(t.TempDir(), "copy")
	run(t, skopeo, "--insecure-policy", "copy", "--all", "oci:"+dir+":image", "oci:"+target+":other")
	l, err := openLayout(target)
	require.NoError(t, err)
	require.Equal(t, result.Digest, l.top.desc.Digest.String())
	require.NoError(t, l.verify(t.Context()))
}

func readBlob(t *testing.T, dir, digest string) string {
	t.Helper()
	return readFile(t, blobDir(dir), strings.TrimPrefix(digest, "sha256:"))
}

func umociReads(t *testing.T, dir string, platforms int) {
	umoci := tool(t, "umoci")
	require.Equal(t, "image\n", run(t, umoci, "list", "--layout", dir))
	if platforms > 1 {
		return // umoci has no way to choose one
	}
	var stat struct {
		History []struct {
			Layer *struct{ Digest string } `json:"layer"`
		} `json:"history"`
	}
	require.NoError(t, json.Unmarshal([]byte(run(t, umoci, "stat", "--image", dir+":image", "--json")), &stat))
	require.Len(t, stat.History, 6)
	bundle := filepath.Join(t.TempDir(), "bundle")
	run(t, umoci, "unpack", "--rootless", "--image", dir+":image", bundle)
	require.Equal(t, string(content(200_000, 100)), readFile(t, bundle, "rootfs", "app", "server"))
	info, err := os.Stat(filepath.Join(bundle, "rootfs", "tmp"))
	require.NoError(t, err)
	require.Equal(t, os.ModeDir|os.ModeSticky|0o777, info.Mode())
	require.Contains(t, readFile(t, bundle, "config.json"), `"/app/server"`)
}
