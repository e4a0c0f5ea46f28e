package oci

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipway-ci/slipway/pipelines/internal/uncompress"
)

// Scratch is the reference of the base that holds nothing.
const Scratch = "scratch"

// BaseOptions say how a base image is found.
type BaseOptions struct {
	// Pin is the digest that the reference had when it was locked, "sha256:...". With it, a moved tag
	// makes no difference, and nothing is asked of the registry that the cache already has.
	Pin string
	// CacheDir keeps what was pulled. Any number of runs may share it at the same time. It is needed for
	// bases that come from a registry.
	CacheDir string
	// Mirrors maps registries, or repositories and everything below them, to where the same content is in
	// reach: {"docker.io": "mirror.example/hub"}. The longest that fits counts. What a mirror serves is verified
	// like everything else.
	Mirrors map[string]string
	// Progress, if not nil, is called with the bytes of layers that have come and of all that were asked for
	// so far, from several goroutines.
	Progress func(done, total int64)
	// Auth is for the registry.
	Auth Auth
	// RetryDelay is the first wait before a failed request is repeated; zero means half a second.
	RetryDelay time.Duration
}

// A FetchError says that a base image could not be fetched.
type FetchError struct {
	// Ref is the reference as it was given; Host is the registry, or the directory of a layout.
	Ref, Host string
	Err       error
}

func (e *FetchError) Error() string {
	return fmt.Sprintf("base image %s cannot be fetched from %s: %v", e.Ref, e.Host, e.Err)
}

func (e *FetchError) Unwrap() error { return e.Err }

// A PlatformError says that a base image is not made for a platform.
type PlatformError struct {
	Ref, Platform string
	// Have lists the platforms it is made for.
	Have []string
}

func (e *PlatformError) Error() string {
	return fmt.Sprintf("base image %s has no image for %s; it has %s", e.Ref, e.Platform, cmp.Or(strings.Join(e.Have, ", "), "no platform at all"))
}

// A PinError says that the digest that was locked for a base image cannot be had from it any more.
type PinError struct {
	Ref, Pin string
	// Got is the digest that is there now, if that is known.
	Got string
	Err error
}

func (e *PinError) Error() string {
	s := fmt.Sprintf("base image %s is pinned to %s, which is not there any more", e.Ref, e.Pin)
	if e.Got != "" {
		s = fmt.Sprintf("base image %s is pinned to %s, but is %s now", e.Ref, e.Pin, e.Got)
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *PinError) Unwrap() error { return e.Err }

// Base is a base image: nothing at all, one image, or an index with images for several platforms.
type Base struct {
	// Ref is the reference as it was given.
	Ref string
	// Digest is the digest of the image or index; empty for scratch. It is what to lock.
	Digest string

	host   string
	source source
	desc   v1.Descriptor
	raw    []byte
}

// ResolveBase finds a base image. ref is "scratch", "oci:DIR" for an OCI layout on disk that holds one
// image or index, or a reference into a registry: "alpine:3.20", "registry.example/base@sha256:...". As
// everywhere, no tag means latest, and loopback addresses are asked by plain HTTP. Layers are not fetched
// before they are needed.
//
// Apart from a *FetchError, the errors to tell apart are a *PinError and, of Image, a *PlatformError.
func ResolveBase(ctx context.Context, ref string, o BaseOptions) (*Base, error) {
	if ref == Scratch {
		if o.Pin != "" {
			return nil, &PinError{Ref: ref, Pin: o.Pin, Err: errors.New("it holds nothing that could be pinned")}
		}
		return &Base{Ref: ref}, nil
	}
	if dir, ok := strings.CutPrefix(ref, "oci:"); ok {
		return resolveLayout(ctx, ref, dir, o)
	}
	return resolveReference(ctx, ref, o)
}

func resolveLayout(ctx context.Context, ref, dir string, o BaseOptions) (*Base, error) {
	b := &Base{Ref: ref, host: dir}
	fail := func(err error) (*Base, error) { return nil, &FetchError{Ref: ref, Host: dir, Err: err} }
	desc, err := layoutDescriptor(dir)
	if err != nil {
		return fail(err)
	}
	if o.Pin != "" && desc.Digest.String() != o.Pin {
		return nil, &PinError{Ref: ref, Pin: o.Pin, Got: desc.Digest.String()}
	}
	source := &layoutSource{dir: dir}
	if o.CacheDir != "" {
		if source.cache, err = openCache(o.CacheDir); err != nil {
			return nil, fmt.Errorf("cache of base images: %w", err)
		}
	}
	if b.raw, err = source.document(ctx, desc, true); err != nil {
		return fail(err)
	}
	b.source = source
	return b, b.settle(desc.Digest)
}

func resolveReference(ctx context.Context, ref string, o BaseOptions) (*Base, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("base image %q: %w", ref, err)
	}
	pin := o.Pin
	if d, ok := parsed.(name.Digest); ok {
		if pin != "" && pin != d.DigestStr() {
			return nil, &PinError{Ref: ref, Pin: pin, Got: d.DigestStr()}
		}
		pin = d.DigestStr()
	}
	if parsed, err = mirrored(parsed, o.Mirrors); err != nil {
		return nil, fmt.Errorf("base image %q: %w", ref, err)
	}
	repo := parsed.Context()
	b := &Base{Ref: ref, host: repo.RegistryStr()}
	store, err := openCache(o.CacheDir)
	if err != nil {
		return nil, fmt.Errorf("cache of base images: %w", err)
	}
	// With everything in the cache, not even the credentials are looked for.
	var mu sync.Mutex
	var opened *session
	source := &registrySource{cache: store, progress: o.Progress, session: func(ctx context.Context) (*session, error) {
		mu.Lock()
		defer mu.Unlock()
		var err error
		if opened == nil {
			opened, err = newSession(ctx, repo, o.Auth, o.RetryDelay)
		}
		return opened, err
	}}
	b.source = source

	var digest v1.Hash
	if pin != "" {
		if digest, err = v1.NewHash(pin); err != nil {
			return nil, fmt.Errorf("base image %s: pin: %w", ref, err)
		}
	} else {
		s, err := source.session(ctx)
		if err != nil {
			return nil, &FetchError{Ref: ref, Host: b.host, Err: err}
		}
		if digest, b.raw, err = s.resolve(ctx, parsed); err != nil {
			return nil, &FetchError{Ref: ref, Host: b.host, Err: err}
		}
	}
	known := b.raw
	b.raw, err = store.document(digest, func() ([]byte, error) {
		if known != nil {
			return known, nil
		}
		s, err := source.session(ctx)
		if err != nil {
			return nil, err
		}
		return s.manifest(ctx, digest)
	})
	switch {
	case err == nil:
	case pin != "" && statusOf(err) == http.StatusNotFound:
		return nil, &PinError{Ref: ref, Pin: pin, Err: err}
	default:
		return nil, &FetchError{Ref: ref, Host: b.host, Err: err}
	}
	return b, b.settle(digest)
}

// mirrored is the reference of the same image where mirrors have it.
func mirrored(ref name.Reference, mirrors map[string]string) (name.Reference, error) {
	// What people call the registry that needs no name.
	repo := strings.Replace(ref.Context().Name(), name.DefaultRegistry+"/", "docker.io/", 1)
	best := ""
	for from := range mirrors {
		if (repo == from || strings.HasPrefix(repo, from+"/")) && len(from) > len(best) {
			best = from
		}
	}
	if best == "" {
		return ref, nil
	}
	there := mirrors[best] + strings.TrimPrefix(repo, best)
	if _, ok := ref.(name.Digest); ok {
		return name.NewDigest(there + "@" + ref.Identifier())
	}
	return name.NewTag(there + ":" + ref.Identifier())
}

// resolve returns what a tag points at: its digest, and its content if that came along. Asking for the
// digest alone comes first, as it does not count as a pull where pulls are counted.
func (s *session) resolve(ctx context.Context, ref name.Reference) (digest v1.Hash, content []byte, err error) {
	if tag, ok := ref.(name.Tag); ok {
		if digest, found, err := s.head(ctx, tag); err == nil && found {
			return digest, nil, nil
		}
	}
	err = s.try(ctx, func() error {
		var d *remote.Descriptor
		if d, err = s.puller.Get(ctx, ref); err == nil {
			digest, content = hashOf(d.Manifest), d.Manifest
		}
		return err
	})
	return digest, content, err
}

// settle looks at the content of b to tell what it is: the media type in it is optional, and what a
// registry says in its place cannot be verified.
func (b *Base) settle(digest v1.Hash) error {
	b.Digest = digest.String()
	b.desc = v1.Descriptor{Digest: digest, Size: int64(len(b.raw))}
	var shape struct {
		MediaType types.MediaType `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
		Layers    json.RawMessage `json:"layers"`
		Config    json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(b.raw, &shape); err != nil {
		return &FetchError{Ref: b.Ref, Host: b.host, Err: fmt.Errorf("%s is not a manifest: %w", digest, err)}
	}
	switch {
	case shape.Manifests != nil && shape.Layers == nil:
		b.desc.MediaType = cmp.Or(shape.MediaType, types.OCIImageIndex)
	case shape.Manifests == nil && shape.Layers != nil && shape.Config != nil:
		b.desc.MediaType = cmp.Or(shape.MediaType, types.OCIManifestSchema1)
	default:
		return &FetchError{Ref: b.Ref, Host: b.host, Err: fmt.Errorf("%s is neither an image nor an image index (media type %q)", digest, shape.MediaType)}
	}
	if !b.desc.MediaType.IsIndex() && !b.desc.MediaType.IsImage() {
		return &FetchError{Ref: b.Ref, Host: b.host, Err: fmt.Errorf("%s has the unknown media type %s", digest, b.desc.MediaType)}
	}
	return nil
}

// Image returns the base image for a platform such as "linux/arm/v7". An image for an older variant of the
// processor will do where there is none for the variant itself. Its layers are fetched when they are read,
// within ctx.
func (b *Base) Image(ctx context.Context, platform string) (v1.Image, error) {
	want, err := parsePlatform(platform)
	if err != nil {
		return nil, err
	}
	if b.source == nil {
		return empty.Image, nil
	}
	desc, raw := b.desc, b.raw
	fail := func(err error) (v1.Image, error) { return nil, &FetchError{Ref: b.Ref, Host: b.host, Err: err} }
	if desc.MediaType.IsIndex() {
		var index v1.IndexManifest
		if err := json.Unmarshal(raw, &index); err != nil {
			return fail(fmt.Errorf("index %s: %w", desc.Digest, err))
		}
		found, ok := choose(index.Manifests, want)
		if !ok {
			return nil, &PlatformError{Ref: b.Ref, Platform: platformName(want), Have: platformsOf(index.Manifests)}
		}
		desc = found
		if raw, err = b.source.document(ctx, desc, true); err != nil {
			return fail(err)
		}
	}
	img, err := b.open(ctx, desc, raw)
	if err != nil {
		return nil, err
	}
	if !b.desc.MediaType.IsIndex() {
		// An image alone says in its configuration what it is for.
		have := img.descriptor()
		if _, ok := choose([]v1.Descriptor{have}, want); !ok {
			return nil, &PlatformError{Ref: b.Ref, Platform: platformName(want), Have: platformsOf([]v1.Descriptor{have})}
		}
	}
	return img, nil
}

// PlatformImage is one image of an index, or an image alone.
type PlatformImage struct {
	Platform string
	// Manifest is the digest of the image's manifest.
	Manifest string
	v1.Image
}

// Images are all images that b holds, sorted by platform. What an index holds for the platform "unknown", as some
// builders keep documents there, is left out.
func (b *Base) Images(ctx context.Context) ([]PlatformImage, error) {
	if b.source == nil {
		return nil, nil
	}
	if !b.desc.MediaType.IsIndex() {
		img, err := b.open(ctx, b.desc, b.raw)
		if err != nil {
			return nil, err
		}
		return []PlatformImage{{Platform: platformName(*img.descriptor().Platform), Manifest: b.Digest, Image: img}}, nil
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(b.raw, &index); err != nil {
		return nil, &FetchError{Ref: b.Ref, Host: b.host, Err: fmt.Errorf("index %s: %w", b.Digest, err)}
	}
	var all []PlatformImage
	for _, d := range index.Manifests {
		switch {
		case d.Platform != nil && d.Platform.OS == "unknown": // documents that BuildKit keeps there; runtimes leave them out
			continue
		case d.MediaType.IsIndex(): // which some runtimes go into
			return nil, &FetchError{Ref: b.Ref, Host: b.host, Err: fmt.Errorf("index %s holds an index, which is not supported", b.Digest)}
		case !d.MediaType.IsImage():
			continue
		}
		raw, err := b.source.document(ctx, d, true)
		if err != nil {
			return nil, &FetchError{Ref: b.Ref, Host: b.host, Err: err}
		}
		img, err := b.open(ctx, d, raw)
		if err != nil {
			return nil, err
		}
		platform := d.Platform
		if platform == nil {
			platform = img.descriptor().Platform // as runtimes do
		}
		all = append(all, PlatformImage{Platform: platformName(*platform), Manifest: d.Digest.String(), Image: img})
	}
	slices.SortStableFunc(all, func(x, y PlatformImage) int { return cmp.Compare(x.Platform, y.Platform) })
	return all, nil
}

// open reads manifest and configuration of one image.
func (b *Base) open(ctx context.Context, desc v1.Descriptor, raw []byte) (*baseImage, error) {
	fail := func(err error) (*baseImage, error) { return nil, &FetchError{Ref: b.Ref, Host: b.host, Err: err} }
	img := &baseImage{raw: raw, mediaType: desc.MediaType}
	var err error
	if img.manifest, err = partial.Manifest(img); err != nil {
		return fail(fmt.Errorf("manifest %s: %w", desc.Digest, err))
	}
	if img.rawConfig, err = b.source.document(ctx, img.manifest.Config, false); err != nil {
		return fail(err)
	}
	if img.config, err = partial.ConfigFile(img); err != nil {
		return fail(fmt.Errorf("configuration %s: %w", img.manifest.Config.Digest, err))
	}
	if len(img.manifest.Layers) != len(img.config.RootFS.DiffIDs) {
		return fail(fmt.Errorf("manifest %s has %d layers, its configuration %d", desc.Digest, len(img.manifest.Layers), len(img.config.RootFS.DiffIDs)))
	}
	for i, d := range img.manifest.Layers {
		if !d.MediaType.IsDistributable() {
			return fail(fmt.Errorf("layer %s of manifest %s is not distributed by registries (media type %s)", d.Digest, desc.Digest, d.MediaType))
		}
		img.layers = append(img.layers, &baseLayer{ctx: ctx, base: b, desc: d, diffID: img.config.RootFS.DiffIDs[i]})
	}
	return img, nil
}

// baseImage implements v1.Image.
type baseImage struct {
	raw, rawConfig []byte
	mediaType      types.MediaType
	manifest       *v1.Manifest
	config         *v1.ConfigFile
	layers         []v1.Layer
}

var _ v1.Image = (*baseImage)(nil)

// descriptor says what an image alone is for, as its configuration has it.
func (i *baseImage) descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: i.mediaType, Platform: &v1.Platform{OS: i.config.OS, Architecture: i.config.Architecture, Variant: i.config.Variant}}
}

func (i *baseImage) Layers() ([]v1.Layer, error)         { return i.layers, nil }
func (i *baseImage) MediaType() (types.MediaType, error) { return i.mediaType, nil }
func (i *baseImage) Size() (int64, error)                { return int64(len(i.raw)), nil }
func (i *baseImage) ConfigName() (v1.Hash, error)        { return i.manifest.Config.Digest, nil }
func (i *baseImage) ConfigFile() (*v1.ConfigFile, error) { return i.config.DeepCopy(), nil }
func (i *baseImage) RawConfigFile() ([]byte, error)      { return i.rawConfig, nil }
func (i *baseImage) Digest() (v1.Hash, error)            { return hashOf(i.raw), nil }
func (i *baseImage) Manifest() (*v1.Manifest, error)     { return i.manifest.DeepCopy(), nil }
func (i *baseImage) RawManifest() ([]byte, error)        { return i.raw, nil }
func (i *baseImage) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	for _, l := range i.layers {
		if d, err := l.Digest(); err == nil && d == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("the image has no layer %s", h)
}

func (i *baseImage) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	for _, l := range i.layers {
		if d, err := l.DiffID(); err == nil && d == h {
			return l, nil
		}
	}
	return nil, fmt.Errorf("the image has no layer %s", h)
}

// baseLayer implements v1.Layer.
type baseLayer struct {
	ctx    context.Context // v1.Layer has no place for one
	base   *Base
	desc   v1.Descriptor
	diffID v1.Hash
}

func (l *baseLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *baseLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *baseLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *baseLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }

func (l *baseLayer) open() (*os.File, error) {
	path, err := l.base.source.layer(l.ctx, l.desc)
	if err != nil {
		return nil, &FetchError{Ref: l.base.Ref, Host: l.base.host, Err: err}
	}
	return os.Open(path)
}

func (l *baseLayer) what() string { return "layer of image " + l.base.Ref }

// Compressed implements v1.Layer. The end of the stream is an error if the stream was not the layer; a
// damaged file is then gone from the cache, and the next call fetches it again.
func (l *baseLayer) Compressed() (io.ReadCloser, error) {
	f, err := l.open()
	if err != nil {
		return nil, err
	}
	return &watchedReader{verifier: newVerifier(f, l.desc, l.what()), damaged: func() { l.base.source.damaged(l.desc) }}, nil
}

// Uncompressed implements v1.Layer.
func (l *baseLayer) Uncompressed() (io.ReadCloser, error) {
	rc, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	return uncompress.Layer(rc)
}

// watchedReader tells when its content turns out to be damaged.
type watchedReader struct {
	*verifier
	damaged func()
}

func (w *watchedReader) Read(p []byte) (int, error) {
	n, err := w.verifier.Read(p)
	if _, ok := errors.AsType[*DigestError](err); ok {
		w.damaged()
	}
	return n, err
}

// copyTo puts the layer into a layout. A damaged entry of the cache is fetched again.
func (l *baseLayer) copyTo(ctx context.Context, layout string) error {
	open := func() (io.ReadCloser, error) { return l.open() }
	err := copyBlob(ctx, layout, l.desc, l.what(), open, nil)
	if _, ok := errors.AsType[*DigestError](err); ok && l.base.source.damaged(l.desc) {
		err = copyBlob(ctx, layout, l.desc, l.what(), open, nil)
	}
	return err
}

// uncompressedSize returns the size of the layer's tar stream and makes sure that it is the one that the
// image's configuration promises. The layer lies in a layout already.
func (l *baseLayer) uncompressedSize(layout string) (int64, error) {
	facts, err := l.base.source.unpacked(l.desc, func() (unpackedLayer, error) { return unpackBlob(layout, l.desc.Digest) })
	if err != nil {
		return 0, fmt.Errorf("layer %s of base image %s: %w", l.desc.Digest, l.base.Ref, err)
	}
	if facts.DiffID != l.diffID {
		return 0, &DigestError{What: fmt.Sprintf("uncompressed layer %s of base image %s", l.desc.Digest, l.base.Ref), Want: l.diffID.String(), Got: facts.DiffID.String()}
	}
	return facts.Size, nil
}

func unpackBlob(layout string, h v1.Hash) (unpackedLayer, error) {
	path, err := blobPath(layout, h)
	if err != nil {
		return unpackedLayer{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return unpackedLayer{}, err
	}
	diffID, size, err := unpacked(f)
	return unpackedLayer{diffID, size}, err
}

// layoutDescriptor returns the one thing that a layout holds.
func layoutDescriptor(dir string) (v1.Descriptor, error) {
	if err := checkLayout(dir); err != nil {
		return v1.Descriptor{}, err
	}
	content, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return v1.Descriptor{}, err
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(content, &index); err != nil {
		return v1.Descriptor{}, fmt.Errorf("index.json of %s: %w", dir, err)
	}
	if n := len(index.Manifests); n != 1 {
		return v1.Descriptor{}, fmt.Errorf("layout %s holds %d images; it must hold one image or one index", dir, n)
	}
	return index.Manifests[0], nil
}

// checkLayout tells whether dir says that it is an OCI layout.
func checkLayout(dir string) error {
	content, err := os.ReadFile(filepath.Join(dir, "oci-layout"))
	if isNotExist(err) {
		return fmt.Errorf("%s is not an OCI layout: it has no file oci-layout", dir)
	}
	if err != nil {
		return err
	}
	var layout struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(content, &layout); err != nil || !strings.HasPrefix(layout.Version, "1.") {
		return fmt.Errorf("%s is not an OCI layout of version 1: its file oci-layout says %q", dir, content)
	}
	return nil
}
