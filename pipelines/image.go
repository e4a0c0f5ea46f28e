package pipelines

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
	"github.com/slipway-ci/slipway/pipelines/internal/uncompress"
)

// imageDir is the OCI layout in the output directory.
const imageDir = "image"

// binDir is where commands lie in an image: on the search path of every base image.
const binDir = "usr/local/bin"

// ImageResult is the image that was assembled.
type ImageResult struct {
	Verdict Verdict `json:"verdict"`
	// Layout is the OCI layout, relative to the output directory.
	Layout string `json:"layout"`
	// Digest is the digest of the image index.
	Digest string `json:"digest"`
	// Base and BaseDigest are the base image, empty for scratch.
	Base       string `json:"base,omitempty"`
	BaseDigest string `json:"base_digest,omitempty"`
	// Compressor is what compressed the layers: another one gives other digests for the same diff IDs.
	Compressor string          `json:"compressor"`
	Platforms  []PlatformImage `json:"platforms"`
}

// PlatformImage is the image of one platform.
type PlatformImage struct {
	Platform string `json:"platform"`
	// Manifest and Config are digests.
	Manifest string `json:"manifest"`
	Config   string `json:"config"`
	// Size is what a pull transfers, in bytes.
	Size   int64   `json:"size"`
	Layers []Layer `json:"layers"`

	run v1.Config
}

// Layer is one layer of an image.
type Layer struct {
	// Kind says what it holds: base, certificates, timezones, accounts, tmp, files or commands.
	Kind string `json:"kind"`
	// Digest is that of the compressed layer; DiffID that of the uncompressed one, which depends on no
	// compressor.
	Digest string `json:"digest"`
	DiffID string `json:"diff_id"`
	// Size and Uncompressed are in bytes.
	Size         int64 `json:"size"`
	Uncompressed int64 `json:"uncompressed"`
}

// Image puts the verified binaries of all Linux platforms into one image index, in an OCI layout. It then
// reads the layers again: the binaries in them are the verified ones.
func (p *Pipeline) Image(ctx context.Context) (*ImageResult, error) {
	if p.image != nil {
		return p.image, nil
	}
	if err := p.checkImage(); err != nil {
		return nil, err
	}
	verify, err := p.Verify(ctx)
	if err != nil || verify.Verdict != Passed {
		return &ImageResult{Verdict: Skipped}, err
	}
	return stored(p, "image", func() (*ImageResult, error) { return p.runImage(ctx) })
}

func (r *ImageResult) final() bool { return r.Verdict == Passed }

// more is what the images' configurations say about running.
func (r *ImageResult) more() any {
	var all []v1.Config
	for _, m := range r.Platforms {
		all = append(all, m.run)
	}
	return all
}

func (r *ImageResult) restore(p *Pipeline, more json.RawMessage) error {
	var all []v1.Config
	if err := json.Unmarshal(more, &all); err != nil {
		return err
	}
	if len(all) != len(r.Platforms) {
		return errors.New("not an image")
	}
	for i := range all {
		r.Platforms[i].run = all[i]
	}
	p.image, p.Record.Image = r, r
	return nil
}

func (p *Pipeline) runImage(ctx context.Context) (*ImageResult, error) {
	s := p.stage("image")
	if n := len(p.Plan.Commands); n > 1 && len(p.Config.Commands) == 0 {
		if entrypoint, err := p.entrypoint(); err == nil {
			p.note("image", "it holds all %d commands and starts %s; --commands=%s leaves the others out", n, entrypoint, entrypoint)
		}
	}
	result := &ImageResult{Verdict: Passed, Layout: imageDir, Compressor: oci.Compressor(oci.Compression(p.Config.Compression))}
	err := s.task(ctx, "image", func(ctx context.Context, progress func(string)) (Verdict, string, error) {
		if err := p.assemble(ctx, p.Config, p.imagePlatforms(), p.path(imageDir), result, progress); err != nil {
			return "", "", err
		}
		err := p.parallel(ctx, len(result.Platforms), func(_ context.Context, i int) error { return p.checkLayer(result.Platforms[i]) })
		if err != nil {
			result.Verdict = Failed
			s.fail(Failure{What: "image", Message: err.Error()})
			return Failed, err.Error(), nil
		}
		large, err := p.exceeded(result)
		if err != nil {
			return "", "", err
		}
		if s.fail(large...); len(large) > 0 {
			result.Verdict = Failed
			return Failed, "larger than allowed", nil
		}
		return Passed, result.size(), nil
	})
	if err != nil {
		return nil, err
	}
	s.end(result.Verdict, result.summary())
	p.image, p.Record.Image = result, result
	return result, nil
}

func (r *ImageResult) summary() string { return r.size() + ", " + r.Digest }

func (r *ImageResult) size() string {
	if len(r.Platforms) == 1 {
		return humanBytes(r.Platforms[0].Size)
	}
	return fmt.Sprintf("%d platforms", len(r.Platforms))
}

// checkImage finds what is wrong with the configuration of the image before anything is built.
func (p *Pipeline) checkImage() error {
	if err := p.checkCommands(); err != nil {
		return err
	}
	if len(p.imagePlatforms()) == 0 {
		return fault.Usagef("Add one such as linux/amd64 to --platforms, or stop after `slipway verify`.", "images are for Linux, and none of the platforms is")
	}
	if _, err := p.entrypoint(); err != nil {
		return err
	}
	_, err := p.commonParts(p.Config)
	return err
}

func (p *Pipeline) imagePlatforms() []Platform {
	return slices.DeleteFunc(slices.Clone(p.Plan.Platforms), func(x Platform) bool { return x.OS != "linux" })
}

// entrypoint is the command that the image starts.
func (p *Pipeline) entrypoint() (string, error) {
	var names []string
	for _, c := range p.Plan.Commands {
		names = append(names, c.Name)
	}
	switch wanted := cmp.Or(p.Config.Entrypoint, p.Plan.Name); {
	case slices.Contains(names, wanted):
		return wanted, nil
	case p.Config.Entrypoint != "":
		return "", fault.Usagef(fault.Nearest(wanted, names), "entrypoint: there is no command %q", wanted)
	case len(names) == 1:
		return names[0], nil
	}
	return "", fault.Usagef("Name one with --entrypoint="+names[0]+", or build fewer with --commands.", "the image has %d commands (%s): which one does it start?", len(names), shorten(names, 5))
}

// assemble writes the image that c describes into a layout.
func (p *Pipeline) assemble(ctx context.Context, c Config, platforms []Platform, layout string, result *ImageResult, progress func(string)) error {
	base, err := p.base(ctx, c, progress)
	if err != nil {
		return err
	}
	if base.Digest != "" {
		result.Base, result.BaseDigest = shownBase(c.Base), base.Digest
	}
	entrypoint, err := p.entrypoint()
	if err != nil {
		return err
	}
	progress("layers")
	labels := p.labels(result)
	spec := oci.Spec{Created: p.sourceTime(), RefName: p.Plan.Name, Annotations: labels, Docker: c.Format == "docker"}
	lower := make([]v1.Image, len(platforms))
	for i, platform := range platforms {
		if lower[i], err = base.Image(ctx, platform.String()); err != nil {
			return baseError(err)
		}
	}
	parts, err := p.commonParts(c)
	if err != nil {
		return err
	}
	n := len(parts)
	for _, platform := range platforms {
		parts = append(parts, part{"commands", p.commandEntries(platform, entrypoint)})
	}
	layers := make([]*oci.Layer, len(parts))
	err = p.parallel(ctx, len(parts), func(_ context.Context, i int) (err error) {
		o := oci.LayerOptions{ModTime: p.layerTime(parts[i]), Compression: oci.Compression(c.Compression), CacheDir: filepath.Join(p.opts.Cache, "layers")}
		if layers[i], err = oci.WriteLayer(layout, parts[i].kind, parts[i].entries, o); err != nil {
			return p.dist.error(err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, platform := range platforms {
		spec.Images = append(spec.Images, oci.ImageSpec{
			Platform: platform.String(), Base: lower[i], Layers: append(slices.Clone(layers[:n]), layers[n+i]), Annotations: labels, Config: imageConfig(c, entrypoint, labels),
		})
	}
	progress("assembling")
	index, err := oci.Assemble(ctx, layout, spec)
	if err != nil {
		return baseError(err)
	}
	result.Digest = index.Digest
	for _, i := range index.Images {
		m := PlatformImage{Platform: i.Platform, Manifest: i.Manifest, Config: i.Config, Size: i.Size(), run: i.Run}
		for _, l := range i.Layers {
			m.Layers = append(m.Layers, Layer{Kind: l.Kind, Digest: l.Digest, DiffID: l.DiffID, Size: l.Size, Uncompressed: l.UncompressedSize})
		}
		result.Platforms = append(result.Platforms, m)
	}
	return nil
}

func imageConfig(c Config, entrypoint string, labels map[string]string) oci.Config {
	command := []string{"/" + path.Join(binDir, entrypoint)}
	o := oci.Config{
		User: c.User, Entrypoint: command, Cmd: c.Args, ExposedPorts: c.Ports, Volumes: c.Volumes, StopSignal: c.StopSignal, WorkingDir: c.WorkingDir,
		Healthcheck: c.dockerHealth(command), Labels: labels,
	}
	if c.Base == oci.Scratch {
		o.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	for _, k := range sortedKeys(c.Env) {
		o.Env = append(o.Env, k+"="+c.Env[k])
	}
	return o
}

// base finds the base image and pins it in the lock file. What lies on disk is not pinned: it is itself
// part of what the user controls.
func (p *Pipeline) base(ctx context.Context, c Config, progress func(string)) (*oci.Base, error) {
	ref := c.Base
	local := ref == oci.Scratch || strings.HasPrefix(ref, "oci:")
	o := oci.BaseOptions{CacheDir: filepath.Join(p.opts.Cache, "images"), Mirrors: c.Mirrors, Progress: func(done, total int64) {
		progress(fmt.Sprintf("pulling %s: %s of %s", shownBase(ref), humanBytes(done), humanBytes(total)))
	}}
	if !local {
		o.Pin = p.Lock.base(ref)
	}
	base, err := oci.ResolveBase(ctx, ref, o)
	if err != nil {
		return nil, baseError(err)
	}
	// A comparison with others pins nothing.
	if !local && ref == p.Config.Base {
		p.Lock.setBase(ref, base.Digest)
	}
	return base, nil
}

// LockBase resolves the base image and pins it in the lock file.
func (p *Pipeline) LockBase(ctx context.Context) error {
	_, err := p.base(ctx, p.Config, func(string) {})
	return err
}

func baseError(err error) error {
	e := &fault.Error{Kind: fault.Environment, Err: err}
	var platform *oci.PlatformError
	var pin *oci.PinError
	var fetch *oci.FetchError
	switch {
	case errors.As(err, &platform):
		e.Kind, e.Next = fault.Usage, "Choose another base image, or leave the platform out."
	case errors.As(err, &pin):
		e.Next = "If the change is known and wanted, `slipway lock --update` pins what is there now."
	case errors.As(err, &fetch) && strings.HasPrefix(fetch.Ref, "oci:"):
		e.Kind, e.Next = fault.Usage, "Name the directory of an OCI layout with one image or index, as `slipway publish --to=oci:DIR` or `skopeo copy` make it."
	case errors.As(err, &fetch):
		e.Next = "Check the reference, the network and the credentials (docker login); --base=scratch and --base=oci:DIR need no registry."
	default:
		return err
	}
	return e
}

// shownBase is the base image as records and labels name it: the place of a layout on disk is of this
// machine only.
func shownBase(ref string) string {
	if dir, ok := strings.CutPrefix(ref, "oci:"); ok {
		return "oci:" + filepath.Base(dir)
	}
	return ref
}

// labels are the standard ones of the OCI image specification, as far as source, commit and lock file
// decide them, and those of the configuration. Nothing comes from a clone (its remotes, branches and tags):
// the same commit must give the same image everywhere.
func (p *Pipeline) labels(result *ImageResult) map[string]string {
	const prefix = "org.opencontainers.image."
	labels := map[string]string{
		prefix + "title":   p.Plan.Name,
		prefix + "created": p.sourceTime().Format("2006-01-02T15:04:05Z"),
		"dev.go.version":   p.Plan.BuildRelease,
		"dev.go.module":    p.Plan.Modules[0].Path,
	}
	if source := p.Plan.Source; source.Commit != "" {
		labels[prefix+"revision"] = source.Commit
		if source.Dirty {
			labels[prefix+"revision"] += "-dirty"
		}
	}
	// The addresses of the two hosts that keep a module at its path.
	if parts := strings.Split(p.Plan.Modules[0].Path, "/"); len(parts) >= 3 && (parts[0] == "github.com" || parts[0] == "gitlab.com") {
		labels[prefix+"source"] = "https://" + strings.Join(parts[:3], "/")
	}
	if result.BaseDigest != "" {
		labels[prefix+"base.digest"] = result.BaseDigest
		if !strings.HasPrefix(result.Base, "oci:") {
			labels[prefix+"base.name"] = result.Base
		}
	}
	for k, v := range p.Config.Labels {
		labels[k] = v
	}
	return labels
}

// checkLayer reads the commands of an image back from their layer and compares them with the binaries.
func (p *Pipeline) checkLayer(m PlatformImage) error {
	layer := m.Layers[len(m.Layers)-1]
	f, err := os.Open(p.path(imageDir, "blobs", "sha256", strings.TrimPrefix(layer.Digest, "sha256:")))
	if err != nil {
		return err
	}
	z, err := uncompress.Layer(f)
	if err != nil {
		return err
	}
	defer z.Close()
	found := map[string]string{}
	t := tar.NewReader(z)
	for {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		h := sha256.New()
		if _, err := io.Copy(h, t); err != nil {
			return err
		}
		found[path.Base(header.Name)] = hex.EncodeToString(h.Sum(nil))
	}
	for _, b := range p.build.Binaries {
		if b.Platform == m.Platform && found[b.Name] != b.SHA256 {
			return fmt.Errorf("%s: %s in the layer has SHA256 %s, but %s was verified", m.Platform, b.Name, cmp.Or(found[b.Name], "none"), b.SHA256)
		}
	}
	return nil
}
