package oci

import (
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// newBaseImage makes an image as other builders make them: Docker media types, a history with entries
// without layers, facts of the machine that built it.
func newBaseImage(t *testing.T, os, arch, variant string) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 2)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Variant = os, arch, variant
	config.Container, config.Author = "build-host-container", "someone"
	config.Config = v1.Config{
		Env:        []string{"PATH=/usr/bin", "LANG=C"},
		Cmd:        []string{"/bin/sh"},
		WorkingDir: "/base",
		User:       "base",
		Hostname:   "build-host",
		Image:      "sha256:parent",
		Labels:     map[string]string{"vendor": "base", "org.opencontainers.image.version": "9"},
		OnBuild:    []string{"RUN something"},
		Volumes:    map[string]struct{}{"/base-data": {}},
	}
	config.History = []v1.History{
		{CreatedBy: "ADD rootfs.tar /"}, {CreatedBy: "CMD [\"/bin/sh\"]", EmptyLayer: true}, {CreatedBy: "RUN true"},
	}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	return img
}

// newBaseIndex makes an index of base images, with an attestation as buildkit adds it.
func newBaseIndex(t *testing.T) (v1.ImageIndex, map[string]v1.Image) {
	t.Helper()
	images := map[string]v1.Image{}
	index := mutate.IndexMediaType(empty.Index, types.DockerManifestList)
	for _, p := range []v1.Platform{
		{OS: "linux", Architecture: "amd64"},
		{OS: "linux", Architecture: "arm64", Variant: "v8"},
		{OS: "linux", Architecture: "arm", Variant: "v7"},
	} {
		img := newBaseImage(t, p.OS, p.Architecture, p.Variant)
		images[platformName(p)] = img
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	attestation, err := random.Image(10, 1)
	require.NoError(t, err)
	index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: attestation, Descriptor: v1.Descriptor{
		Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
	}})
	return index, images
}

func publish(t *testing.T, ref string, what remote.Taggable) string {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	require.NoError(t, err)
	require.NoError(t, remote.Push(parsed, what))
	digest, err := what.(interface{ Digest() (v1.Hash, error) }).Digest()
	require.NoError(t, err)
	return digest.String()
}

func requireSameImage(t *testing.T, want, got v1.Image) {
	t.Helper()
	wantDigest, err := want.Digest()
	require.NoError(t, err)
	gotDigest, err := got.Digest()
	require.NoError(t, err)
	require.Equal(t, wantDigest, gotDigest)
	wantLayers, err := want.Layers()
	require.NoError(t, err)
	gotLayers, err := got.Layers()
	require.NoError(t, err)
	require.Len(t, gotLayers, len(wantLayers))
	for i := range wantLayers {
		a, err := wantLayers[i].Compressed()
		require.NoError(t, err)
		b, err := gotLayers[i].Compressed()
		require.NoError(t, err)
		wantBytes, err := io.ReadAll(a)
		require.NoError(t, err)
		gotBytes, err := io.ReadAll(b)
		require.NoError(t, err)
		require.NoError(t, b.Close())
		require.Equal(t, wantBytes, gotBytes)
		wantID, err := wantLayers[i].DiffID()
		require.NoError(t, err)
		gotID, err := gotLayers[i].DiffID()
		require.NoError(t, err)
		require.Equal(t, wantID, gotID)
		found, err := got.LayerByDiffID(gotID)
		require.NoError(t, err)
		require.Same(t, gotLayers[i], found)
		u, err := gotLayers[i].Uncompressed()
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, u)
		require.NoError(t, err)
		require.NoError(t, u.Close())
	}
}

func TestBaseScratch(t *testing.T) {
	base, err := ResolveBase(t.Context(), "scratch", BaseOptions{})
	require.NoError(t, err)
	require.Empty(t, base.Digest)
	require.Empty(t, platformsIn(t, base))
	img, err := base.Image(t.Context(), "linux/riscv64")
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	require.Empty(t, layers)
	_, err = ResolveBase(t.Context(), "scratch", BaseOptions{Pin: "sha256:x"})
	_, ok := errors.AsType[*PinError](err)
	require.True(t, ok)
}

func TestBaseFromRegistry(t *testing.T) {
	index, images := newBaseIndex(t)
	var requests atomic.Int64
	host := newProxy(t, newRegistry(t), func(http.ResponseWriter, *http.Request) bool { requests.Add(1); return false })
	digest := publish(t, host+"/base/os:1", index)
	o := BaseOptions{CacheDir: t.TempDir(), Auth: nobody, RetryDelay: fast}

	base, err := ResolveBase(t.Context(), host+"/base/os:1", o)
	require.NoError(t, err)
	require.Equal(t, digest, base.Digest)
	require.Equal(t, []string{"linux/amd64", "linux/arm/v7", "linux/arm64"}, platformsIn(t, base))
	for platform, want := range images {
		got, err := base.Image(t.Context(), platform)
		require.NoError(t, err)
		requireSameImage(t, want, got)
	}

	// With a pin and a warm cache, nothing is asked: not even where the tag has gone.
	before := requests.Load()
	o.Pin = digest
	base, err = ResolveBase(t.Context(), host+"/base/os:1", o)
	require.NoError(t, err)
	img, err := base.Image(t.Context(), "linux/arm64/v8")
	require.NoError(t, err)
	requireSameImage(t, images["linux/arm64"], img)
	require.Equal(t, before, requests.Load())

	// A reference that is a digest is its own pin.
	base, err = ResolveBase(t.Context(), host+"/base/os@"+digest, BaseOptions{CacheDir: o.CacheDir, Auth: nobody})
	require.NoError(t, err)
	require.Equal(t, digest, base.Digest)
	require.Equal(t, before, requests.Load())

	// A single image is a base as well.
	single := publish(t, host+"/base/single:1", images["linux/amd64"])
	base, err = ResolveBase(t.Context(), host+"/base/single:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody})
	require.NoError(t, err)
	require.Equal(t, single, base.Digest)
	img, err = base.Image(t.Context(), "linux/amd64/v2")
	require.NoError(t, err)
	requireSameImage(t, images["linux/amd64"], img)
	_, err = base.Image(t.Context(), "linux/arm64")
	missing, ok := errors.AsType[*PlatformError](err)
	require.True(t, ok)
	require.Equal(t, []string{"linux/amd64"}, missing.Have)
}

func TestBaseErrors(t *testing.T) {
	index, images := newBaseIndex(t)
	host := newRegistry(t)
	digest := publish(t, host+"/os:1", index)
	o := BaseOptions{CacheDir: t.TempDir(), Auth: nobody, RetryDelay: fast}

	base, err := ResolveBase(t.Context(), host+"/os:1", o)
	require.NoError(t, err)
	_, err = base.Image(t.Context(), "linux/s390x")
	platform, ok := errors.AsType[*PlatformError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, &PlatformError{Ref: host + "/os:1", Platform: "linux/s390x", Have: []string{"linux/amd64", "linux/arm/v7", "linux/arm64"}}, platform)
	require.EqualError(t, err, "base image "+host+"/os:1 has no image for linux/s390x; it has linux/amd64, linux/arm/v7, linux/arm64")

	// The tag does not exist.
	_, err = ResolveBase(t.Context(), host+"/os:2", o)
	fetch, ok := errors.AsType[*FetchError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, host, fetch.Host)
	require.ErrorContains(t, err, "base image "+host+"/os:2 cannot be fetched from "+host+": ")
	require.ErrorContains(t, err, "MANIFEST_UNKNOWN")

	// The pinned digest is not there any more.
	gone := "sha256:" + strings.Repeat("0", 64)
	o.Pin = gone
	_, err = ResolveBase(t.Context(), host+"/os:1", o)
	pin, ok := errors.AsType[*PinError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, gone, pin.Pin)
	require.ErrorContains(t, err, "is pinned to "+gone+", which is not there any more")

	// A pin that contradicts the reference.
	_, err = ResolveBase(t.Context(), host+"/os@"+digest, o)
	require.EqualError(t, err, "base image "+host+"/os@"+digest+" is pinned to "+gone+", but is "+digest+" now")

	// Nobody listens.
	o.Pin = ""
	_, err = ResolveBase(t.Context(), "127.0.0.1:1/os:1", o)
	require.ErrorContains(t, err, "base image 127.0.0.1:1/os:1 cannot be fetched from 127.0.0.1:1: ")
	_, ok = errors.AsType[*FetchError](err)
	require.True(t, ok)

	// Names that are none, and no cache.
	_, err = ResolveBase(t.Context(), "UPPER CASE", o)
	require.ErrorContains(t, err, `base image "UPPER CASE"`)
	_, err = ResolveBase(t.Context(), host+"/os:1", BaseOptions{})
	require.ErrorContains(t, err, "cache of base images")

	// The registry wants credentials: a fetch error with a refusal in it.
	locked := newProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "no", http.StatusUnauthorized)
		return true
	})
	_, err = ResolveBase(t.Context(), locked+"/os:1", o)
	refused, ok := errors.AsType[*RefusedError](err)
	require.True(t, ok, "%v", err)
	require.True(t, refused.Anonymous)
	_, ok = errors.AsType[*FetchError](err)
	require.True(t, ok)

	// What is fetched is not an image.
	config, err := images["linux/amd64"].RawConfigFile()
	require.NoError(t, err)
	lying := newProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/manifests/") {
			return false
		}
		w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
		w.Header().Set("Docker-Content-Digest", hashOf(config).String())
		w.Write(config)
		return true
	})
	_, err = ResolveBase(t.Context(), lying+"/os:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody})
	require.ErrorContains(t, err, "is neither an image nor an image index")
	// And not what its digest says.
	_, err = ResolveBase(t.Context(), lying+"/os:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody, Pin: digest})
	mismatch, ok := errors.AsType[*DigestError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, digest, mismatch.Want)
}

func TestBaseFromLayout(t *testing.T) {
	index, images := newBaseIndex(t)
	dir := t.TempDir()
	path, err := ocilayout.Write(dir, empty.Index)
	require.NoError(t, err)
	require.NoError(t, path.AppendIndex(index))
	want, err := index.Digest()
	require.NoError(t, err)

	base, err := ResolveBase(t.Context(), "oci:"+dir, BaseOptions{Pin: want.String()})
	require.NoError(t, err)
	require.Equal(t, want.String(), base.Digest)
	img, err := base.Image(t.Context(), "linux/arm/v7")
	require.NoError(t, err)
	requireSameImage(t, images["linux/arm/v7"], img)
	_, err = base.Image(t.Context(), "linux/mips")
	_, ok := errors.AsType[*PlatformError](err)
	require.True(t, ok)

	_, err = ResolveBase(t.Context(), "oci:"+dir, BaseOptions{Pin: "sha256:" + strings.Repeat("1", 64)})
	pin, ok := errors.AsType[*PinError](err)
	require.True(t, ok, "%v", err)
	require.Equal(t, want.String(), pin.Got)

	// One of two things cannot be chosen.
	require.NoError(t, path.AppendImage(images["linux/amd64"]))
	_, err = ResolveBase(t.Context(), "oci:"+dir, BaseOptions{})
	require.ErrorContains(t, err, "holds 2 images; it must hold one image or one index")

	for _, notLayout := range []string{t.TempDir(), filepath.Join(dir, "nowhere")} {
		_, err = ResolveBase(t.Context(), "oci:"+notLayout, BaseOptions{})
		require.ErrorContains(t, err, "is not an OCI layout")
		_, ok = errors.AsType[*FetchError](err)
		require.True(t, ok)
	}

	// A damaged layer of a layout is an error: there is nowhere to fetch it again.
	single := t.TempDir()
	path, err = ocilayout.Write(single, empty.Index)
	require.NoError(t, err)
	require.NoError(t, path.AppendImage(images["linux/amd64"]))
	base, err = ResolveBase(t.Context(), "oci:"+single, BaseOptions{CacheDir: t.TempDir()})
	require.NoError(t, err)
	img, err = base.Image(t.Context(), "linux/amd64")
	require.NoError(t, err)
	layers, err := img.Layers()
	require.NoError(t, err)
	damageBlob(t, single, layers[1])
	_, err = Assemble(t.Context(), t.TempDir(), Spec{Images: []ImageSpec{{Platform: "linux/amd64", Base: img}}})
	_, ok = errors.AsType[*DigestError](err)
	require.True(t, ok, "%v", err)
	require.ErrorContains(t, err, "layer of image oci:"+single)
}

// damageBlob changes one byte of a blob and keeps its size.
func damageBlob(t *testing.T, dir string, layer v1.Layer) {
	t.Helper()
	digest, err := layer.Digest()
	require.NoError(t, err)
	file, err := blobPath(dir, digest)
	require.NoError(t, err)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.Chmod(file, 0o644))
	require.NoError(t, os.WriteFile(file, data, 0o644))
}

func TestBaseCacheHealsItself(t *testing.T) {
	_, images := newBaseIndex(t)
	var layerRequests atomic.Int64
	host := newProxy(t, newRegistry(t), func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			layerRequests.Add(1)
		}
		return false
	})
	digest := publish(t, host+"/os:1", images["linux/amd64"])
	cacheDir := t.TempDir()
	assemble := func() *Index {
		base, err := ResolveBase(t.Context(), host+"/os:1", BaseOptions{CacheDir: cacheDir, Auth: nobody, Pin: digest})
		require.NoError(t, err)
		img, err := base.Image(t.Context(), "linux/amd64")
		require.NoError(t, err)
		index, err := Assemble(t.Context(), t.TempDir(), Spec{Images: []ImageSpec{{Platform: "linux/amd64", Base: img}}})
		require.NoError(t, err)
		return index
	}
	want := assemble()
	require.EqualValues(t, 3, layerRequests.Load())
	require.Equal(t, want, assemble())
	require.EqualValues(t, 3, layerRequests.Load(), "the cache is used")

	layers, err := images["linux/amd64"].Layers()
	require.NoError(t, err)
	damageBlob(t, cacheDir, layers[0])
	require.Equal(t, want, assemble())
	require.EqualValues(t, 4, layerRequests.Load(), "only what was damaged is fetched again")

	// Whatever else is damaged: cut short, or not what it should be at all.
	for name := range tree(t, cacheDir) {
		require.NoError(t, os.WriteFile(filepath.Join(cacheDir, name), []byte("{"), 0o644))
	}
	require.Equal(t, want, assemble())
	require.Equal(t, want, assemble())
	require.EqualValues(t, 7, layerRequests.Load())
	require.NotContains(t, strings.Join(slices.Collect(maps.Keys(tree(t, cacheDir))), " "), "tmp", "no temporary files are left")
}

func TestBaseCacheInParallel(t *testing.T) {
	index, images := newBaseIndex(t)
	host := newRegistry(t)
	publish(t, host+"/os:1", index)
	cacheDir := t.TempDir()
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			base, err := ResolveBase(t.Context(), host+"/os:1", BaseOptions{CacheDir: cacheDir, Auth: nobody})
			if err != nil {
				t.Error(err)
				return
			}
			var spec Spec
			for platform := range images {
				img, err := base.Image(t.Context(), platform)
				if err != nil {
					t.Error(err)
					return
				}
				spec.Images = append(spec.Images, ImageSpec{Platform: platform, Base: img})
			}
			if _, err := Assemble(t.Context(), t.TempDir(), spec); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}

// A registry that is overloaded for a moment, and a download that breaks off.
func TestBaseSurvivesWeakRegistry(t *testing.T) {
	index, images := newBaseIndex(t)
	backend := newRegistry(t)
	publish(t, backend+"/os:1", index)
	var mu sync.Mutex
	seen := map[string]int{}
	host := newProxy(t, backend, func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		n := seen[r.Method+r.URL.Path]
		seen[r.Method+r.URL.Path]++
		mu.Unlock()
		switch {
		case n < 2 && strings.Contains(r.URL.Path, "/manifests/"):
			http.Error(w, "slow down", http.StatusTooManyRequests)
			return true
		case n == 0 && strings.Contains(r.URL.Path, "/blobs/"):
			w.Header().Set("Content-Length", "100000")
			w.Write([]byte("half of it"))
			http.NewResponseController(w).Flush()
			dropConnection(w)
			return true
		case n == 1 && strings.Contains(r.URL.Path, "/blobs/"):
			http.Error(w, "restarting", http.StatusBadGateway)
			return true
		}
		return false
	})
	base, err := ResolveBase(t.Context(), host+"/os:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody, RetryDelay: fast})
	require.NoError(t, err)
	img, err := base.Image(t.Context(), "linux/amd64")
	require.NoError(t, err)
	requireSameImage(t, images["linux/amd64"], img)
}

func TestBaseIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	host := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cancel()
		http.Error(w, "slow down", http.StatusTooManyRequests)
	}))
	// The waiting between attempts would take longer than the test may.
	_, err := ResolveBase(ctx, host+"/os:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody, RetryDelay: 1e15})
	require.ErrorIs(t, err, context.Canceled)
}

// Layers of any compression are carried over; one that does not unpack to what the configuration promises is
// not.
func TestBaseLayersOfAllKinds(t *testing.T) {
	dir := t.TempDir()
	plain, err := WriteLayer(dir, "x", []Entry{{Path: "a", Data: content(10_000, 1)}}, LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	rc, err := plain.Uncompressed()
	require.NoError(t, err)
	tarball, err := io.ReadAll(rc)
	require.NoError(t, err)
	require.NoError(t, rc.Close())
	encoder, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	compressed := encoder.EncodeAll(tarball, nil)

	host := newRegistry(t)
	for mediaType, blob := range map[types.MediaType][]byte{
		types.OCILayerZStd:            compressed,
		types.OCIUncompressedLayer:    tarball,
		types.DockerUncompressedLayer: tarball,
	} {
		for _, lie := range []bool{false, true} {
			diffID := plain.diffID
			if lie {
				diffID = hashOf([]byte("something else"))
			}
			layer := fixedLayer{static.NewLayer(blob, mediaType), diffID}
			img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1), layer)
			require.NoError(t, err)
			config, err := img.ConfigFile()
			require.NoError(t, err)
			config = config.DeepCopy()
			config.OS, config.Architecture = "linux", "amd64"
			img, err = mutate.ConfigFile(img, config)
			require.NoError(t, err)
			digest := publish(t, host+"/os:1", img)

			base, err := ResolveBase(t.Context(), host+"/os:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody})
			require.NoError(t, err)
			require.Equal(t, digest, base.Digest)
			got, err := base.Image(t.Context(), "linux/amd64")
			require.NoError(t, err)
			index, err := Assemble(t.Context(), t.TempDir(), Spec{Images: []ImageSpec{{Platform: "linux/amd64", Base: got}}})
			if lie {
				mismatch, ok := errors.AsType[*DigestError](err)
				require.True(t, ok, "%v", err)
				require.Equal(t, diffID.String(), mismatch.Want)
				require.Equal(t, plain.Info.DiffID, mismatch.Got)
				continue
			}
			require.NoError(t, err)
			require.Equal(t, []LayerInfo{{
				Kind: "base", Digest: hashOf(blob).String(), DiffID: plain.Info.DiffID, Size: int64(len(blob)), UncompressedSize: int64(len(tarball)),
			}}, index.Images[0].Layers)
		}
	}
}

// fixedLayer is a layer that claims a diff ID.
type fixedLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (f fixedLayer) DiffID() (v1.Hash, error) { return f.diffID, nil }

func TestBaseWithForeignLayer(t *testing.T) {
	host := newRegistry(t)
	img, err := mutate.AppendLayers(newBaseImage(t, "linux", "amd64", ""), static.NewLayer([]byte("x"), types.DockerForeignLayer))
	require.NoError(t, err)
	publish(t, host+"/os:1", img)
	base, err := ResolveBase(t.Context(), host+"/os:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody})
	require.NoError(t, err)
	_, err = base.Image(t.Context(), "linux/amd64")
	require.ErrorContains(t, err, "is not distributed by registries")
}

// The image that a base gives is one that others can use.
func TestBaseImageIsAnImage(t *testing.T) {
	_, images := newBaseIndex(t)
	want := images["linux/amd64"]
	host := newRegistry(t)
	publish(t, host+"/os:1", want)
	base, err := ResolveBase(t.Context(), host+"/os:1", BaseOptions{CacheDir: t.TempDir(), Auth: nobody})
	require.NoError(t, err)
	require.Equal(t, []string{"linux/amd64"}, platformsIn(t, base))
	got, err := base.Image(t.Context(), "linux/amd64")
	require.NoError(t, err)
	copied := t.TempDir()
	path, err := ocilayout.Write(copied, empty.Index)
	require.NoError(t, err)
	require.NoError(t, path.AppendImage(got))
	validate(t, copied)
	wantManifest, err := want.Manifest()
	require.NoError(t, err)
	gotManifest, err := got.Manifest()
	require.NoError(t, err)
	require.Equal(t, wantManifest, gotManifest)
	_, err = got.LayerByDigest(wantManifest.Layers[1].Digest)
	require.NoError(t, err)
	_, err = got.LayerByDigest(hashOf(nil))
	require.Error(t, err)
	_, err = got.LayerByDiffID(hashOf(nil))
	require.Error(t, err)

	// A layout with an image and no index can be published as well.
	digest, err := want.Digest()
	require.NoError(t, err)
	for _, target := range []string{host + "/copy:1", "oci:" + filepath.Join(t.TempDir(), "x"), "tar:" + filepath.Join(t.TempDir(), "y"), "embedded"} {
		pushed, err := Push(t.Context(), copied, target, PushOptions{Auth: nobody})
		require.NoError(t, err)
		require.Equal(t, digest.String(), pushed.Digest)
	}
}

func TestCacheSweepsWhatWasLeft(t *testing.T) {
	dir := t.TempDir()
	_, err := openCache(dir)
	require.NoError(t, err)
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "new": time.Hour} {
		file := filepath.Join(dir, "tmp", name)
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Chtimes(file, time.Time{}, time.Now().Add(-age)))
	}
	_, err = openCache(dir)
	require.NoError(t, err)
	require.NoFileExists(t, filepath.Join(dir, "tmp", "old"))
	require.FileExists(t, filepath.Join(dir, "tmp", "new"))
}

func platformsIn(t *testing.T, base *Base) []string {
	images, err := base.Images(t.Context())
	require.NoError(t, err)
	var all []string
	for _, x := range images {
		all = append(all, x.Platform)
	}
	return all
}
