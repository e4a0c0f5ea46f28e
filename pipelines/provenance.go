package pipelines

import (
	"github.com/slipway-ci/slipway/pipelines/internal/statement"
)

// buildType says how externalParameters are to be read.
const buildType = "https://github.com/slipway-ci/slipway/blob/main/docs/verification.md#build-type-v1"

// builderID names what vouches for the provenance: a slipway that someone ran. Who that was, a signature says.
const builderID = "https://github.com/slipway-ci/slipway"

// The predicate of https://slsa.dev/spec/v1.0/provenance, as far as it is written here. There is no time in it
// and no number of the run, so that the same build gives the same bytes.
type provenance struct {
	BuildDefinition struct {
		BuildType            string               `json:"buildType"`
		ExternalParameters   map[string]any       `json:"externalParameters"`
		InternalParameters   map[string]any       `json:"internalParameters"`
		ResolvedDependencies []statement.Resource `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version"`
		} `json:"builder"`
		Byproducts []statement.Resource `json:"byproducts,omitempty"`
	} `json:"runDetails"`
}

// provenance is the in-toto statement about the image and the binaries in it.
func (p *Pipeline) provenance() ([]byte, error) {
	subject := []statement.Resource{{Name: "image", Digest: statement.Digest(p.image.Digest)}}
	for _, m := range p.image.Platforms {
		subject = append(subject, statement.Resource{Name: "image " + m.Platform, Digest: statement.Digest(m.Manifest)})
	}
	for _, b := range p.build.Binaries {
		subject = append(subject, statement.Resource{Name: b.Path, Digest: statement.Digest("sha256:" + b.SHA256)})
	}

	var v provenance
	d := &v.BuildDefinition
	d.BuildType = buildType
	d.ExternalParameters = p.buildParameters()
	d.InternalParameters = map[string]any{"engine": p.engine.Name(), "compressor": p.image.Compressor}
	source := statement.Resource{Name: "source", Digest: statement.Digest(p.Plan.Source.Digest)}
	if c := p.Plan.Source.Commit; c != "" && !p.Plan.Source.Dirty {
		source.Digest["gitCommit"] = c
	}
	d.ResolvedDependencies = append(d.ResolvedDependencies, source)
	for _, x := range p.Plan.Releases {
		if t := x.Toolchain; t.Release == p.Plan.BuildRelease {
			d.ResolvedDependencies = append(d.ResolvedDependencies, statement.Resource{Name: "go" + t.Release + " " + t.Platform, URI: "pkg:golang/toolchain@go" + t.Release, Digest: statement.Digest(t.Checksum)})
		}
	}
	if p.image.BaseDigest != "" {
		d.ResolvedDependencies = append(d.ResolvedDependencies, statement.Resource{Name: "base", URI: p.image.Base, Digest: statement.Digest(p.image.BaseDigest)})
	}

	v.RunDetails.Builder.ID = builderID
	v.RunDetails.Builder.Version = map[string]string{"slipway": p.Record.Slipway.Version}
	// What the linker wrote, and what the kernel loads of it: the chain from the compiler to the subjects.
	for i, b := range p.build.Binaries {
		e := p.verify.Binaries[i]
		x := statement.Resource{Name: b.Full, Digest: statement.Digest("sha256:" + b.FullSHA256), Annotations: map[string]any{"stripped": b.Path, "stripped_by": b.StrippedBy}}
		if e.Loaded != "" {
			x.Annotations["loaded_sha256"] = e.Loaded
		}
		if e.Rebuild != "" {
			x.Annotations["rebuild_sha256"] = e.Rebuild
		}
		v.RunDetails.Byproducts = append(v.RunDetails.Byproducts, x)
	}
	return statement.Write(statement.Provenance, v, subject...)
}

// buildParameters are the keys of the configuration that decide over bytes. How the run was tested and where it
// went is not part of what was built.
func (p *Pipeline) buildParameters() map[string]any {
	parameters := map[string]any{"platforms": p.Plan.platformNames(), "release": p.Plan.BuildRelease}
	all := p.Config.asMap()
	for _, key := range append([]string{"cgo", "commands", "ldflags", "modules", "tags"}, imageKeys...) {
		if v, ok := all[key]; ok {
			parameters[key] = v
		}
	}
	return parameters
}
