package pipelines

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
	"github.com/slipway-ci/slipway/pipelines/internal/statement"
	"github.com/slipway-ci/slipway/pipelines/sign"
)

// Types of documents that are not signed, in a registry.
const (
	statementType = "application/vnd.in-toto+json"
	spdxType      = "application/spdx+json"
)

const provenanceName = "provenance.json"

// AttestResult names the documents about the image, relative to the output directory.
type AttestResult struct {
	Verdict Verdict `json:"verdict"`
	// SBOMs has a file for each platform, Provenance is the in-toto statement.
	SBOMs      map[string]string `json:"sboms"`
	Provenance string            `json:"provenance"`
	// Signed are the Sigstore bundles, empty without a key: the signature of the image, and the other documents.
	Signed []string `json:"signed,omitempty"`
	// Signer is the public key's fingerprint, empty without a key.
	Signer string `json:"signer,omitempty"`

	// artifacts are what publish puts beside the image.
	artifacts []oci.Artifact
}

// documents are what is said about an image, before anything is signed.
type documents struct {
	sboms      map[Platform][]byte
	provenance []byte // an in-toto statement
}

// Attest writes what others need to check the image: an SBOM for every platform, of what was really linked, and
// provenance. With a signing key it signs the image and both kinds of documents.
func (p *Pipeline) Attest(ctx context.Context) (*AttestResult, error) {
	if p.attest != nil {
		return p.attest, nil
	}
	image, err := p.Image(ctx)
	if err != nil || image.Verdict != Passed {
		return &AttestResult{Verdict: Skipped}, err
	}
	s := p.stage("attest")
	result := &AttestResult{Verdict: Passed, SBOMs: map[string]string{}, Provenance: provenanceName}
	var docs documents
	err = s.task(ctx, "documents", func(context.Context, func(string)) (Verdict, string, error) {
		docs, err = p.writeDocuments(result)
		return Passed, "", err
	})
	if err == nil && p.opts.Signer != nil {
		err = s.task(ctx, "sign", func(ctx context.Context, _ func(string)) (Verdict, string, error) {
			return Passed, "", p.signDocuments(ctx, docs, result)
		})
	}
	if err != nil {
		return nil, err
	}
	detail := plural(len(result.SBOMs), "SBOM", "SBOMs") + " and provenance, not signed"
	if p.opts.Signer != nil {
		detail = strings.TrimSuffix(detail, ", not signed") + ", signed with the image"
	}
	s.end(Passed, detail)
	p.attest, p.Record.Attest = result, result
	return result, nil
}

// writeDocuments makes the documents, writes them as they are, and makes them artifacts of the image.
func (p *Pipeline) writeDocuments(result *AttestResult) (d documents, err error) {
	d.sboms = map[Platform][]byte{}
	for _, platform := range p.Plan.Platforms {
		doc, err := p.sbom(platform)
		if err != nil {
			return d, err
		}
		name := sbomName(platform)
		if err := p.writeFile(name, doc); err != nil {
			return d, err
		}
		d.sboms[platform], result.SBOMs[platform.String()] = doc, name
		if m := p.platformImage(platform); m != nil {
			result.artifacts = append(result.artifacts, oci.Artifact{Subject: m.Manifest, Type: spdxType, Content: doc})
		}
	}
	if d.provenance, err = p.provenance(); err != nil {
		return d, err
	}
	result.artifacts = append(result.artifacts, oci.Artifact{Subject: p.image.Digest, Type: statementType, Content: d.provenance})
	var readable bytes.Buffer
	if err := json.Indent(&readable, d.provenance, "", "  "); err != nil {
		return d, err
	}
	return d, p.writeFile(provenanceName, append(readable.Bytes(), '\n'))
}

// platformImage is the image of a platform, nil for one that has none.
func (p *Pipeline) platformImage(platform Platform) *PlatformImage {
	for i := range p.image.Platforms {
		if p.image.Platforms[i].Platform == platform.String() {
			return &p.image.Platforms[i]
		}
	}
	return nil
}

// signDocuments signs the image and all documents. Signed ones take the place of the others beside the image.
func (p *Pipeline) signDocuments(ctx context.Context, d documents, result *AttestResult) error {
	result.artifacts = nil
	if key, ok := p.opts.Signer.(*sign.Key); ok {
		result.Signer = key.Public().String()
	}
	add := func(name string, text []byte, subjects ...string) error {
		bundle, err := sign.Bundle(ctx, p.opts.Signer, text)
		if err != nil {
			return fault.Environmentf(err, "", "signing %s", name)
		}
		if err := p.writeFile(name, bundle); err != nil {
			return err
		}
		result.Signed = append(result.Signed, name)
		annotations, err := sign.Annotations(bundle)
		if err != nil {
			return err
		}
		for _, subject := range subjects {
			result.artifacts = append(result.artifacts, oci.Artifact{Subject: subject, Type: sign.ArtifactType, Annotations: annotations, Content: bundle})
		}
		return nil
	}
	index := statement.Resource{Digest: statement.Digest(p.image.Digest)}
	text, err := statement.Write(statement.Signature, struct{}{}, index)
	if err == nil {
		err = add("image.sigstore.json", text, p.image.Digest)
	}
	if err == nil {
		err = add("provenance.sigstore.json", d.provenance, p.image.Digest)
	}
	if err != nil {
		return err
	}
	for _, platform := range p.imagePlatforms() {
		m := p.platformImage(platform)
		// Tools ask for the SBOM of what a tag points at, which is the index, or of the image that they pulled.
		text, err := statement.Write(statement.SPDX, json.RawMessage(d.sboms[platform]), statement.Resource{Name: "image " + platform.String(), Digest: statement.Digest(m.Manifest)}, index)
		if err == nil {
			err = add(strings.TrimSuffix(sbomName(platform), ".spdx.json")+".sigstore.json", text, m.Manifest, p.image.Digest)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
