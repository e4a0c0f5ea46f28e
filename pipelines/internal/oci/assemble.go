package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// Spec says what Assemble puts together.
type Spec struct {
	// Images are the images of the index, one for each platform, in any order.
	Images []ImageSpec
	// Annotations are those of the index.
	Annotations map[string]string
	// Created is the time that the images give as theirs: the commit's. The zero time stands for
	// 1970-01-01T00:00:00Z. It is cut to seconds.
	Created time.Time
	// Docker gives everything the media types of the Docker registry, which know no annotations, in place of
	// those of OCI. Configurations and layers are the same bytes.
	Docker bool
	// RefName is the name of the index within the layout, which some tools need (umoci: "umoci unpack
	// --image DIR:NAME"). Empty means "image". It is in no digest.
	RefName string
}

// ImageSpec is the image of one platform.
type ImageSpec struct {
	// Platform is os/arch or os/arch/variant, such as linux/amd64, linux/arm/v7, linux/amd64/v3.
	Platform string
	// Base is the image below, as Base.Image returns it; nil means none.
	Base v1.Image
	// Layers are put on top of the base, the first one lowest.
	Layers []*Layer
	Config Config
	// Annotations are those of the image's manifest.
	Annotations map[string]string
}

// Config says how an image runs. What is left empty is taken from the base image, which also gives
// variables and labels of its own; its labels org.opencontainers.image.* are left out, as they speak of the
// base image.
type Config struct {
	// User is a name, a number, or either with a group: "65532:65532".
	User string
	// Entrypoint is the program with its fixed arguments. With it, the base image's Cmd does not apply.
	Entrypoint []string
	// Cmd holds the arguments that a user may replace.
	Cmd []string
	// Env are variables, "KEY=value".
	Env []string
	// WorkingDir is an absolute path.
	WorkingDir string
	// ExposedPorts are ports such as "8080" or "53/udp".
	ExposedPorts []string
	// Volumes are absolute paths.
	Volumes []string
	// StopSignal is the signal that asks the program to end: "SIGTERM".
	StopSignal string
	// Healthcheck is what Docker asks; OCI has no such thing, and Kubernetes none in images.
	Healthcheck *v1.HealthConfig
	Labels      map[string]string
}

// mediaTypes are the names of an image's parts.
type mediaTypes struct{ index, manifest, config types.MediaType }

func (s *Spec) mediaTypes() mediaTypes {
	if s.Docker {
		return mediaTypes{types.DockerManifestList, types.DockerManifestSchema2, types.DockerConfigJSON}
	}
	return mediaTypes{types.OCIImageIndex, types.OCIManifestSchema1, types.OCIConfigJSON}
}

// Index is what Assemble has written: one image index, whatever the number of platforms, so that adding one
// changes nothing for those who use the image.
type Index struct {
	// Digest and Size are the index's own.
	Digest string  `json:"digest"`
	Size   int64   `json:"size"`
	Images []Image `json:"images"`
}

// Image is one image of an Index.
type Image struct {
	Platform string `json:"platform"`
	// Manifest is the digest of the manifest, Config that of the configuration.
	Manifest     string      `json:"manifest"`
	ManifestSize int64       `json:"manifestSize"`
	Config       string      `json:"config"`
	ConfigSize   int64       `json:"configSize"`
	Layers       []LayerInfo `json:"layers"`
	// Run is what the configuration says about running.
	Run v1.Config `json:"-"`
}

// Size is the number of bytes that a registry holds and a pull transfers for the image.
func (i Image) Size() int64 {
	size := i.ManifestSize + i.ConfigSize
	for _, l := range i.Layers {
		size += l.Size
	}
	return size
}

const defaultRefName = "image"

// Assemble writes an OCI layout into dir: the images of all platforms, and one index over them, sorted by
// platform. The layers of the base images are carried over byte for byte; only their media types are the
// OCI ones, as everything's is. Layers that WriteLayer wrote into dir are used where they lie.
//
// index.json is written last, so that a layout that has one is complete.
func Assemble(ctx context.Context, dir string, spec Spec) (*Index, error) {
	if len(spec.Images) == 0 {
		return nil, errors.New("an image needs at least one platform")
	}
	created := spec.Created
	if created.IsZero() {
		created = time.Unix(0, 0)
	}
	created = created.UTC().Truncate(time.Second)
	if err := os.MkdirAll(blobDir(dir), 0o755); err != nil {
		return nil, err
	}

	built := make([]builtImage, len(spec.Images))
	seen := map[string]bool{}
	for i, img := range spec.Images {
		platform, err := parsePlatform(img.Platform)
		if err != nil {
			return nil, err
		}
		if name := platformName(platform); seen[name] {
			return nil, fmt.Errorf("platform %s was given twice", name)
		} else {
			seen[name] = true
		}
		built[i].platform = platform
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i := range spec.Images {
		group.Go(func() error {
			if err := built[i].build(ctx, dir, &spec.Images[i], &spec, created); err != nil {
				return fmt.Errorf("image for %s: %w", platformName(built[i].platform), err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}

	slices.SortFunc(built, func(a, b builtImage) int {
		return strings.Compare(platformName(a.platform), platformName(b.platform))
	})
	manifest := v1.IndexManifest{SchemaVersion: 2, MediaType: spec.mediaTypes().index}
	if !spec.Docker {
		manifest.Annotations = spec.Annotations
	}
	result := &Index{}
	for _, b := range built {
		manifest.Manifests = append(manifest.Manifests, b.desc)
		result.Images = append(result.Images, b.result)
	}
	raw, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	digest, err := writeBlob(dir, raw)
	if err != nil {
		return nil, err
	}
	result.Digest, result.Size = digest.String(), int64(len(raw))
	name := spec.RefName
	if name == "" {
		name = defaultRefName
	}
	return result, writeLayoutFiles(dir, v1.Descriptor{
		MediaType:   manifest.MediaType,
		Size:        int64(len(raw)),
		Digest:      digest,
		Annotations: map[string]string{"org.opencontainers.image.ref.name": name},
	})
}

// writeLayoutFiles writes the two files that make a directory with blobs a layout of one thing.
func writeLayoutFiles(dir string, descs ...v1.Descriptor) error {
	if err := writeFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	raw, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: descs})
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "index.json"), raw)
}

// builtImage is an image whose parts lie in the layout.
type builtImage struct {
	platform v1.Platform
	desc     v1.Descriptor
	result   Image
}

func (b *builtImage) build(ctx context.Context, dir string, spec *ImageSpec, of *Spec, created time.Time) error {
	// Empty lists and no nulls, for tools that insist on them.
	config := &v1.ConfigFile{RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}}}
	mediaTypes := of.mediaTypes()
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: mediaTypes.manifest, Layers: []v1.Descriptor{}}
	if !of.Docker {
		manifest.Annotations = spec.Annotations
	}
	b.result.Platform = platformName(b.platform)

	if spec.Base != nil {
		base, err := spec.Base.ConfigFile()
		if err != nil {
			return err
		}
		if err := b.addBase(ctx, dir, spec.Base, base, config, &manifest, created); err != nil {
			return err
		}
	}
	config.OS, config.Architecture, config.Variant = b.platform.OS, b.platform.Architecture, b.platform.Variant
	config.Created = v1.Time{Time: created}

	for _, l := range spec.Layers {
		desc := l.descriptor()
		path, err := blobPath(dir, desc.Digest)
		if err != nil {
			return err
		}
		// A layer that was written elsewhere is copied.
		if l.path != path {
			if err := copyBlob(ctx, dir, desc, "layer "+strconv.Quote(l.Info.Kind), l.Compressed, nil); err != nil {
				return err
			}
		} else if info, err := os.Stat(path); err != nil {
			return err
		} else if info.Size() != desc.Size {
			return &DigestError{What: "layer " + strconv.Quote(l.Info.Kind), Want: desc.Digest.String(), Err: errors.New("its size has changed")}
		}
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.diffID)
		config.History = append(config.History, v1.History{Created: v1.Time{Time: created}, CreatedBy: "slipway: " + l.Info.Kind})
		b.result.Layers = append(b.result.Layers, l.Info)
	}
	if err := spec.Config.apply(&config.Config); err != nil {
		return err
	}

	b.result.Run = config.Config
	for i := range manifest.Layers {
		var err error
		if manifest.Layers[i].MediaType, err = layerType(manifest.Layers[i].MediaType, of.Docker); err != nil {
			return err
		}
	}

	rawConfig, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifest.Config = v1.Descriptor{MediaType: mediaTypes.config, Size: int64(len(rawConfig))}
	if manifest.Config.Digest, err = writeBlob(dir, rawConfig); err != nil {
		return err
	}
	rawManifest, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	platform := b.platform
	platform.OSVersion, platform.OSFeatures = config.OSVersion, config.OSFeatures
	b.desc = v1.Descriptor{MediaType: mediaTypes.manifest, Size: int64(len(rawManifest)), Platform: &platform}
	if b.desc.Digest, err = writeBlob(dir, rawManifest); err != nil {
		return err
	}
	b.result.Manifest, b.result.ManifestSize = b.desc.Digest.String(), b.desc.Size
	b.result.Config, b.result.ConfigSize = manifest.Config.Digest.String(), manifest.Config.Size
	return nil
}

// addBase carries the base image over: its layers, their history, and what its configuration says about
// running. What it says about the machine that built it is left behind.
func (b *builtImage) addBase(ctx context.Context, dir string, img v1.Image, base, config *v1.ConfigFile, manifest *v1.Manifest, created time.Time) error {
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	if len(layers) > 0 && (base.OS != b.platform.OS || base.Architecture != b.platform.Architecture) {
		return fmt.Errorf("the base image is for %s/%s", base.OS, base.Architecture)
	}
	for i, l := range layers {
		desc, diffID, size, err := placeBaseLayer(ctx, dir, l)
		if err != nil {
			return err
		}
		if i >= len(base.RootFS.DiffIDs) || base.RootFS.DiffIDs[i] != diffID {
			return fmt.Errorf("layer %d of the base image is not the one that its configuration lists", i+1)
		}
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		b.result.Layers = append(b.result.Layers, LayerInfo{
			Kind: "base", Digest: desc.Digest.String(), DiffID: diffID.String(), Size: desc.Size, UncompressedSize: size,
		})
	}
	config.History = baseHistory(base.History, len(layers), created)
	config.OSVersion, config.OSFeatures = base.OSVersion, base.OSFeatures
	from := base.Config
	config.Config = v1.Config{
		User: from.User, Entrypoint: from.Entrypoint, Cmd: from.Cmd, Env: from.Env, WorkingDir: from.WorkingDir,
		ExposedPorts: from.ExposedPorts, Volumes: from.Volumes, StopSignal: from.StopSignal,
		Healthcheck: from.Healthcheck, Shell: from.Shell,
	}
	for key, value := range from.Labels {
		if !strings.HasPrefix(key, "org.opencontainers.image.") {
			setKey(&config.Config.Labels, key, value)
		}
	}
	return nil
}

// placeBaseLayer copies a layer of a base image into the layout and returns its descriptor, its diff ID, and
// its uncompressed size.
func placeBaseLayer(ctx context.Context, dir string, l v1.Layer) (desc v1.Descriptor, diffID v1.Hash, size int64, err error) {
	if desc.Digest, err = l.Digest(); err != nil {
		return
	}
	if desc.Size, err = l.Size(); err != nil {
		return
	}
	if desc.MediaType, err = l.MediaType(); err != nil {
		return
	}
	if diffID, err = l.DiffID(); err != nil {
		return
	}
	if base, ok := l.(*baseLayer); ok {
		if err = base.copyTo(ctx, dir); err == nil {
			size, err = base.uncompressedSize(dir)
		}
		return
	}
	// An image that a caller made by other means.
	if err = copyBlob(ctx, dir, desc, "layer of the base image", l.Compressed, nil); err != nil {
		return
	}
	facts, err := unpackBlob(dir, desc.Digest)
	if err == nil && facts.DiffID != diffID {
		err = &DigestError{What: "uncompressed layer of the base image", Want: diffID.String(), Got: facts.DiffID.String()}
	}
	return desc, diffID, facts.Size, err
}

// layerType is the media type of the same bytes in OCI's or Docker's words.
func layerType(t types.MediaType, docker bool) (types.MediaType, error) {
	for _, same := range [][2]types.MediaType{{types.OCILayer, types.DockerLayer}, {types.OCIUncompressedLayer, types.DockerUncompressedLayer}} {
		if t == same[0] || t == same[1] {
			if docker {
				return same[1], nil
			}
			return same[0], nil
		}
	}
	switch {
	case t == types.OCILayerZStd && docker:
		return t, errors.New("the Docker format knows no layers that are compressed by zstd")
	case t == types.OCILayerZStd:
		return t, nil
	}
	return t, fmt.Errorf("the base image has a layer of media type %s, which cannot be carried over", t)
}

// baseHistory returns the history of a base image, made consistent: as many entries with a layer as there
// are layers, or the tools that show them side by side fail.
func baseHistory(history []v1.History, layers int, created time.Time) []v1.History {
	n := 0
	result := slices.Clone(history)
	for i := range result {
		if !result[i].EmptyLayer {
			n++
		}
		if result[i].Created.IsZero() {
			result[i].Created = v1.Time{Time: created}
		}
	}
	if n == layers {
		return result
	}
	result = nil
	for range layers {
		result = append(result, v1.History{Created: v1.Time{Time: created}, CreatedBy: "base image"})
	}
	return result
}

// apply lays c over what the base image gave.
func (c *Config) apply(to *v1.Config) error {
	setString(&to.User, c.User)
	setString(&to.WorkingDir, c.WorkingDir)
	setString(&to.StopSignal, c.StopSignal)
	if c.Healthcheck != nil {
		to.Healthcheck = c.Healthcheck
	}
	if len(c.Entrypoint) > 0 {
		to.Entrypoint, to.Cmd = slices.Clone(c.Entrypoint), nil
	}
	if len(c.Cmd) > 0 {
		to.Cmd = slices.Clone(c.Cmd)
	}
	env := slices.Clone(to.Env)
	for _, variable := range c.Env {
		key, _, ok := strings.Cut(variable, "=")
		if !ok || key == "" {
			return fmt.Errorf("variable %q is not KEY=value", variable)
		}
		if i := slices.IndexFunc(env, func(have string) bool { return strings.HasPrefix(have, key+"=") }); i >= 0 {
			env[i] = variable
		} else {
			env = append(env, variable)
		}
	}
	to.Env = env
	to.ExposedPorts, to.Volumes = maps.Clone(to.ExposedPorts), maps.Clone(to.Volumes)
	for _, port := range c.ExposedPorts {
		number, protocol, ok := strings.Cut(port, "/")
		if !ok {
			protocol = "tcp"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || !slices.Contains([]string{"tcp", "udp", "sctp"}, protocol) {
			return fmt.Errorf("%q is not a port such as 8080 or 53/udp", port)
		}
		setKey(&to.ExposedPorts, strconv.FormatUint(n, 10)+"/"+protocol, struct{}{})
	}
	for _, volume := range c.Volumes {
		if !strings.HasPrefix(volume, "/") {
			return fmt.Errorf("volume %q is not an absolute path", volume)
		}
		setKey(&to.Volumes, volume, struct{}{})
	}
	if to.WorkingDir != "" && !strings.HasPrefix(to.WorkingDir, "/") {
		return fmt.Errorf("working directory %q is not an absolute path", to.WorkingDir)
	}
	for key, value := range c.Labels {
		setKey(&to.Labels, key, value)
	}
	return nil
}

func setString(to *string, value string) {
	if value != "" {
		*to = value
	}
}

func setKey[V any](m *map[string]V, key string, value V) {
	if *m == nil {
		*m = map[string]V{}
	}
	(*m)[key] = value
}
