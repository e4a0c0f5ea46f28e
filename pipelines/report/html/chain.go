package html

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// chain is what connects the source with what was published. Each link says how it follows from the one before.
type chain struct {
	Source    []link
	Platforms []platformChain
	Published []link
	// End says where the chain ends before a registry.
	End string
}

type platformChain struct {
	Platform string
	Links    []link
}

type link struct {
	How    string // it comes from the link before
	Name   string
	Digest string
	More   string
	Loaded string // digest of what a kernel loads of a program
	Broken bool
}

func newChain(r *pipelines.Record, verified *pipelines.VerifyResult) chain {
	var c chain
	if r.Plan == nil {
		return c
	}
	source := r.Plan.Source
	more := fmt.Sprintf("%d files", source.Files)
	if source.Commit != "" {
		more += ", commit " + source.Commit
	}
	if source.Dirty {
		more += ", with changes that are not in it"
	}
	c.Source = append(c.Source, link{Name: "Source", Digest: source.Digest, More: more})
	for _, platform := range r.Platforms {
		p := platformChain{Platform: platform}
		for _, b := range r.Binaries {
			if b.Platform == platform {
				p.Links = append(p.Links, binaryLinks(r, b, verified)...)
			}
		}
		if r.Image != nil && r.Image.Verdict == pipelines.Passed {
			for _, m := range r.Image.Platforms {
				if m.Platform == platform {
					p.Links = append(p.Links, imageLinks(r.Image, m)...)
				}
			}
		}
		if len(p.Links) > 0 {
			c.Platforms = append(c.Platforms, p)
		}
	}
	c.publish(r)
	return c
}

func binaryLinks(r *pipelines.Record, b pipelines.Binary, verified *pipelines.VerifyResult) []link {
	var e *pipelines.Evidence
	if verified != nil {
		i := slices.IndexFunc(verified.Binaries, func(e pipelines.Evidence) bool { return e.Name == b.Name && e.Platform == b.Platform })
		if i >= 0 {
			e = &verified.Binaries[i]
		}
	}
	full := link{How: "compiled and linked by Go " + cmp.Or(strings.TrimPrefix(b.BuildInfo.Go, "go"), r.Plan.BuildRelease), Name: b.Name + ", as linked", Digest: "sha256:" + b.FullSHA256, More: report.Bytes(b.FullSize) + ", " + b.Full}
	switch {
	case e == nil:
	case e.Rebuild == "":
		full.How += "; not built a second time"
	case e.Rebuild == b.FullSHA256:
		full.How += "; built again in another directory with an empty cache: the same file"
	default:
		full.How, full.Broken = full.How+"; built again, it was another file: sha256:"+e.Rebuild, true
	}
	if b.StrippedBy == "linker" {
		full.Name = b.Name + ", stripped by the linker"
		return []link{full}
	}
	stripped := link{How: "stripped", Name: b.Name + ", stripped", Digest: "sha256:" + b.SHA256, More: report.Bytes(b.Size) + ", " + b.Path}
	if e != nil {
		stripped.How += ": " + e.Claim
		if e.Loaded != "" {
			stripped.Loaded = "sha256:" + e.Loaded
		}
	}
	return []link{full, stripped}
}

func imageLinks(i *pipelines.ImageResult, m pipelines.PlatformImage) []link {
	var links []link
	if n := len(m.Layers); n > 0 {
		l := m.Layers[n-1] // Programs are in the last one.
		links = append(links,
			link{How: "packed, and read back out of the layer", Name: "Layer, unpacked (diff_id)", Digest: l.DiffID, More: report.Bytes(l.Uncompressed)},
			link{How: "compressed by " + i.Compressor, Name: "Layer", Digest: l.Digest, More: report.Bytes(l.Size)})
	}
	return append(links, link{How: fmt.Sprintf("named with the other layers, %d in all", len(m.Layers)), Name: "Manifest", Digest: m.Manifest, More: report.Bytes(m.Size) + " to pull"})
}

func (c *chain) publish(r *pipelines.Record) {
	if r.Image == nil || r.Image.Verdict != pipelines.Passed {
		c.End = "No image was made."
		for _, s := range r.Stages {
			if s.Verdict == pipelines.Failed {
				c.End = "The chain ends here: " + s.Name + " failed."
				break
			}
		}
		return
	}
	how := "names the manifest"
	if len(r.Image.Platforms) > 1 {
		how = fmt.Sprintf("names the manifests of %d platforms", len(r.Image.Platforms))
	}
	index := link{How: how, Name: "Image index", Digest: r.Image.Digest, More: "OCI layout in " + r.Image.Layout + "/"}
	if a := r.Attest; a != nil {
		index.More += fmt.Sprintf("; described by %s and %d SBOM", a.Provenance, len(a.SBOMs))
		if len(a.SBOMs) != 1 {
			index.More += "s"
		}
		if a.Signer != "" {
			index.More += ", signed with the key " + a.Signer
		} else {
			index.More += ", not signed"
		}
	}
	c.Published = append(c.Published, index)
	for _, x := range r.Published {
		reference, _, _ := strings.Cut(x.Reference, "@")
		l := link{How: x.Detail, Name: "Published as " + reference, Digest: x.Digest, Broken: x.Digest != "" && x.Digest != r.Image.Digest}
		for _, t := range x.Tags {
			l.More += "; tag " + t.Name + " " + t.State
		}
		l.More = strings.TrimPrefix(l.More, "; ")
		c.Published = append(c.Published, l)
	}
	for _, x := range r.DryRun {
		c.Published = append(c.Published, link{How: fmt.Sprintf("dry run: %d objects (%s) would travel, %d are there", len(x.Missing), report.Bytes(x.Bytes), x.Present), Name: "Would be published as " + x.Reference, Digest: x.Digest})
	}
	if len(r.Published)+len(r.DryRun) == 0 {
		c.End = "It was not published."
	}
}
