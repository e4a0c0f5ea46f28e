package pipelines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/layers"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
	"github.com/slipway-ci/slipway/pipelines/internal/programs"
	"github.com/slipway-ci/slipway/pipelines/internal/sbom"
	"github.com/slipway-ci/slipway/pipelines/sign"
)

// NoEvidence is the verdict of a check for which an image brings nothing along. It is neither good nor bad.
const NoEvidence Verdict = "no evidence"

// VerifyImageOptions say what a published image is verified with.
type VerifyImageOptions struct {
	// Key is the public key that signatures must be of. Without it they are looked for only.
	Key *sign.PublicKey
	// Cache is a directory for what was fetched.
	Cache string
	// Credentials are for the registry; without them the usual places are asked.
	Credentials Credentials
	// Rebuilt is the digest that a build of the source has, to compare with; empty if there was none.
	Rebuilt string
}

// ImageReport is what was found out about a published image.
type ImageReport struct {
	// Reference is the image as it was asked for, Digest what that points at.
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	// Verdict is failed if one of the checks is, else passed.
	Verdict  Verdict       `json:"verdict"`
	Checks   []ImageCheck  `json:"checks"`
	Binaries []ImageBinary `json:"binaries"`
}

// ImageCheck is one question about a published image.
type ImageCheck struct {
	// Check is what was looked at: content, signature, provenance, strip, sbom, labels, user or rebuild.
	Check string `json:"check"`
	// Platform is empty for what concerns the index.
	Platform string  `json:"platform,omitempty"`
	Verdict  Verdict `json:"verdict"`
	Detail   string  `json:"detail"`
}

// ImageBinary is a Go program in an image.
type ImageBinary struct {
	Platform string `json:"platform"`
	Path     string `json:"path"`
	Size     int64  `json:"size"`
	SHA256   string `json:"sha256"`
	Go       string `json:"go"`
	Module   string `json:"module"`
	Stripped bool   `json:"stripped"`
	Dynamic  bool   `json:"dynamic"`

	info *debug.BuildInfo
	last bool // it lies in the last layer, where slipway puts programs
}

// VerifyImage fetches an image from a registry, or from an OCI layout ("oci:DIR"), and checks all that can be
// checked: that every blob is what its digest says, signature, provenance and SBOM against the programs inside,
// labels and user. Images that slipway did not build bring less along, and the report says so.
//
// Evidence of a layout lies in the files of the directory around it, as a run of slipway writes them.
func VerifyImage(ctx context.Context, ref string, o VerifyImageOptions) (*ImageReport, error) {
	auth := oci.Auth{Username: o.Credentials.Username, Password: o.Credentials.Password}
	image, err := oci.ResolveBase(ctx, ref, oci.BaseOptions{CacheDir: filepath.Join(o.Cache, "images"), Auth: auth})
	if digest, ok := errors.AsType[*oci.DigestError](err); ok {
		r := &ImageReport{Reference: ref, Digest: digest.Want, Checks: []ImageCheck{}, Binaries: []ImageBinary{}}
		r.check("content", "", Failed, digest.Error())
		return r, nil
	}
	if err != nil {
		return nil, verifyImageError(ref, err)
	}
	if image.Digest == "" {
		return nil, fault.Usagef("Name an image in a registry, or oci:DIR.", "%s is no image that could be verified", ref)
	}
	r := &ImageReport{Reference: ref, Digest: image.Digest, Verdict: Passed, Checks: []ImageCheck{}, Binaries: []ImageBinary{}}
	images, err := image.Images(ctx)
	if digest, ok := errors.AsType[*oci.DigestError](err); ok {
		r.check("content", "", Failed, digest.Error())
		return r, nil
	}
	if err != nil {
		return nil, verifyImageError(ref, err)
	}
	if len(images) == 0 {
		r.check("content", "", Failed, "the index holds no image")
	}
	temp, err := os.MkdirTemp("", "slipway-verify-")
	if err != nil {
		return nil, fault.Environmentf(err, "Set TMPDIR to a directory that can be written and has space.", "directory for temporary files")
	}
	defer os.RemoveAll(temp)

	var configs []*v1.ConfigFile
	trees := make([]*programs.Tree, len(images))
	for i, x := range images {
		config, err := x.ConfigFile()
		if err != nil {
			return nil, verifyImageError(ref, err)
		}
		configs = append(configs, config)
		trees[i], err = programs.Read(ctx, x.Image, filepath.Join(temp, strconv.Itoa(i)))
		if digest, ok := errors.AsType[*oci.DigestError](err); ok {
			r.check("content", x.Platform, Failed, digest.Error())
			continue
		}
		if damaged, ok := errors.AsType[*layers.DamagedError](err); ok {
			r.check("content", x.Platform, Failed, damaged.Error())
			continue
		}
		if err != nil {
			return nil, verifyImageError(ref, err)
		}
		layers, err := x.Layers()
		if err != nil {
			return nil, err
		}
		r.check("content", x.Platform, Passed, plural(len(layers), "layer", "layers")+" with the bytes that manifest and configuration name")
		for _, p := range trees[i].Programs {
			r.Binaries = append(r.Binaries, ImageBinary{
				Platform: x.Platform, Path: p.Path, Size: p.Size, SHA256: p.SHA256, Go: p.Info.GoVersion, Module: p.Info.Main.Path, Stripped: p.Stripped, Dynamic: p.Dynamic, info: p.Info, last: p.Layer == len(layers)-1,
			})
		}
	}
	e, err := gatherEvidence(ctx, ref, image.Digest, images, auth, o.Key)
	if err != nil {
		return nil, verifyImageError(ref, err)
	}
	r.checkSignature(e, o.Key)
	r.checkProvenance(e, o.Key)
	r.checkPrograms(e, images, configs, trees)
	for i, x := range images {
		r.checkSBOM(e, x, o.Key)
		r.checkLabels(e, x.Platform, configs[i])
		r.checkUser(x.Platform, configs[i])
	}
	if o.Rebuilt != "" {
		if o.Rebuilt == r.Digest {
			r.check("rebuild", "", Passed, "the source gives the same digest")
		} else {
			r.check("rebuild", "", Failed, "the source gives "+o.Rebuilt)
		}
	}
	return r, nil
}

func (r *ImageReport) check(check, platform string, v Verdict, detail string) {
	r.Checks = append(r.Checks, ImageCheck{Check: check, Platform: platform, Verdict: v, Detail: detail})
	if v == Failed {
		r.Verdict = Failed
	}
}

func verifyImageError(ref string, err error) error {
	var fetch *oci.FetchError
	var pin *oci.PinError
	var path *os.PathError
	e := &fault.Error{Kind: fault.Environment, What: "image " + ref + " cannot be verified", Err: err, Next: "Check the reference, the network and the credentials (docker login, or --username with --password=env:NAME)."}
	switch {
	case fault.Of(err) == fault.Usage || errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &fetch):
		e.Err = fetch.Err
	case errors.As(err, &pin):
		e.Err = errors.New("it has no content with that digest")
	case errors.As(err, &path):
		e.Next = "Check that the directory exists and can be read."
	}
	return e
}

func (r *ImageReport) checkSignature(e *evidence, key *sign.PublicKey) {
	switch {
	case e.signed:
		r.check("signature", "", Passed, "by the key that was given")
	case key == nil && e.bundles > 0:
		r.check("signature", "", NoEvidence, "there are signatures; --key names the key to verify them with")
	case len(e.refused) > 0:
		r.check("signature", "", Failed, shorten(e.refused, 3))
	case key != nil:
		r.check("signature", "", Failed, "it has none")
	default:
		r.check("signature", "", NoEvidence, "it has none")
	}
}

// absent says that a document does not count or is not there.
func (r *ImageReport) absent(check, platform string, e *evidence, key *sign.PublicKey, unsigned bool) {
	switch {
	case unsigned:
		r.check(check, platform, Failed, "it has one without a signature by the key")
	case key == nil && e.bundles > 0:
		r.check(check, platform, NoEvidence, "there are signed documents; --key names the key to verify them with")
	default:
		r.check(check, platform, NoEvidence, "it has none")
	}
}

func (r *ImageReport) checkProvenance(e *evidence, key *sign.PublicKey) {
	switch by := cmp.Or(e.builder, "an unnamed builder"); {
	case e.provenance == nil:
		r.absent("provenance", "", e, key, e.unsigned)
	case !e.provenance.About(r.Digest):
		r.check("provenance", "", Failed, "it is about another image")
	case e.provenanceSigned:
		r.check("provenance", "", Passed, "signed, about this digest, by "+by)
	default:
		r.check("provenance", "", Passed, "about this digest; unsigned, it claims to be by "+by)
	}
}

// checkPrograms compares the programs in the image with what the provenance says was built.
func (r *ImageReport) checkPrograms(e *evidence, images []oci.PlatformImage, configs []*v1.ConfigFile, trees []*programs.Tree) {
	switch {
	case e.provenance == nil || !e.provenance.About(r.Digest):
		r.check("strip", "", NoEvidence, "needs provenance of this image")
		return
	case !e.ours:
		r.check("strip", "", NoEvidence, "the provenance is not slipway's")
		return
	}
	for _, b := range r.Binaries {
		if !e.built(b) {
			continue // of the base image
		}
		if !e.provenance.About("sha256:" + b.SHA256) {
			r.check("strip", b.Platform, Failed, fmt.Sprintf("%s has SHA256 %s, which is not what was built", b.Path, b.SHA256))
			continue
		}
		r.check("strip", b.Platform, Passed, fmt.Sprintf("%s is the program that was built (full program %s)", path.Base(b.Path), cmp.Or(e.chain[b.SHA256], "not kept")))
	}
	// What is not recognised as a program must not take the place of one.
	for i, x := range images {
		if trees[i] == nil {
			continue // damaged, which was said
		}
		var start string
		if c := configs[i].Config.Entrypoint; len(c) > 0 {
			start = c[0]
		}
		if p := trees[i].Find(start); p == nil || !e.provenance.About("sha256:"+p.SHA256) {
			r.check("strip", x.Platform, Failed, fmt.Sprintf("it starts %q, which is no program that the provenance names", start))
		}
	}
}

func (r *ImageReport) checkSBOM(e *evidence, x oci.PlatformImage, key *sign.PublicKey) {
	doc, ok := e.sboms[x.Manifest]
	if !ok {
		r.absent("sbom", x.Platform, e, key, e.unsignedSBOMs[x.Manifest])
		return
	}
	if doc.err != nil {
		r.check("sbom", x.Platform, Failed, doc.err.Error())
		return
	}
	var infos []*debug.BuildInfo
	for _, b := range r.Binaries {
		// Other tools name what is in the base image too.
		if b.Platform == x.Platform && (!e.ours || e.built(b)) {
			infos = append(infos, b.info)
		}
	}
	if len(infos) == 0 {
		r.check("sbom", x.Platform, NoEvidence, "there is no Go program to compare it with")
		return
	}
	if problems := sbom.Compare(doc.doc, infos...); len(problems) > 0 {
		r.check("sbom", x.Platform, Failed, shorten(problems, 3))
		return
	}
	how := "unsigned"
	if doc.signed {
		how = "signed"
	}
	r.check("sbom", x.Platform, Passed, fmt.Sprintf("%s, names the modules of %s", how, plural(len(infos), "program", "programs")))
}

// checkLabels compares the labels with the provenance; alone they are words.
func (r *ImageReport) checkLabels(e *evidence, platform string, config *v1.ConfigFile) {
	revision := config.Config.Labels["org.opencontainers.image.revision"]
	switch {
	case revision == "":
		r.check("labels", platform, NoEvidence, "no label names the commit")
	case e.commit == "":
		r.check("labels", platform, NoEvidence, "commit "+revision+", which nothing else confirms")
	case revision != e.commit:
		r.check("labels", platform, Failed, "commit "+revision+", but the provenance says "+e.commit)
	default:
		r.check("labels", platform, Passed, "commit "+revision)
	}
}

func (r *ImageReport) checkUser(platform string, config *v1.ConfigFile) {
	user, _, _ := strings.Cut(config.Config.User, ":")
	switch uid, err := strconv.Atoi(user); {
	case user == "" || user == "root" || err == nil && uid == 0:
		r.check("user", platform, Failed, "it runs as root")
	case err != nil:
		r.check("user", platform, NoEvidence, "it runs as "+user+"; who that is says the image's /etc/passwd")
	default:
		r.check("user", platform, Passed, "it runs as "+user)
	}
}
