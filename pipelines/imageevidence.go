package pipelines

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/internal/oci"
	"github.com/slipway-ci/slipway/pipelines/internal/sbom"
	"github.com/slipway-ci/slipway/pipelines/internal/statement"
	"github.com/slipway-ci/slipway/pipelines/sign"
)

// evidence is what lies beside an image.
type evidence struct {
	bundles int      // signed documents of any key
	signed  bool     // the image is, by the key
	refused []string // why signed documents do not count

	provenance       *statement.Statement
	provenanceSigned bool
	unsigned         bool              // there is one that does not count, as a key was given
	builder, commit  string            // what the provenance says
	ours             bool              // slipway wrote the provenance
	chain            map[string]string // SHA256 of a stripped program to the full program
	names            map[string]bool   // of the programs that the provenance names
	sboms            map[string]*sbomEvidence
	unsignedSBOMs    map[string]bool // those that do not count
}

type sbomEvidence struct {
	signed bool
	doc    *sbom.Document
	err    error
}

// built tells whether a program should be one of those that slipway has built: it lies where slipway puts them, or
// has the name of one of them. Others are of the base image.
func (e *evidence) built(b ImageBinary) bool {
	return path.Dir(b.Path) == "/"+binDir && (b.last || e.names[path.Base(b.Path)])
}

// gatherEvidence reads the documents beside an image. With a key, only documents that it has signed count.
func gatherEvidence(ctx context.Context, ref, digest string, images []oci.PlatformImage, auth oci.Auth, key *sign.PublicKey) (*evidence, error) {
	e := &evidence{chain: map[string]string{}, sboms: map[string]*sbomEvidence{}, unsignedSBOMs: map[string]bool{}}
	var all []oci.Artifact
	if dir, ok := strings.CutPrefix(ref, "oci:"); ok {
		var err error
		if all, err = filesBeside(dir, images); err != nil {
			return nil, err
		}
	} else {
		digests := []string{digest}
		for _, x := range images {
			if x.Manifest != digest {
				digests = append(digests, x.Manifest)
			}
		}
		for _, d := range digests {
			found, err := oci.Artifacts(ctx, ref, d, auth, sign.ArtifactType, statementType, spdxType)
			if err != nil {
				return nil, err
			}
			all = append(all, found...)
		}
	}
	for _, a := range all {
		e.add(a, digest, images, key)
	}
	return e, nil
}

// filesBeside reads the documents that a run of slipway has written beside its layout.
func filesBeside(layout string, images []oci.PlatformImage) ([]oci.Artifact, error) {
	layout, err := filepath.Abs(layout)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(layout)
	var all []oci.Artifact
	read := func(name, subject, typ string) error {
		i, err := os.Stat(filepath.Join(dir, name))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil && i.Size() > oci.MaxArtifact {
			err = fmt.Errorf("%s has %d bytes, more than anyone needs", name, i.Size())
		}
		var content []byte
		if err == nil {
			content, err = os.ReadFile(filepath.Join(dir, name))
		}
		if err == nil {
			all = append(all, oci.Artifact{Subject: subject, Type: typ, Content: content})
		}
		return err
	}
	entries, err := os.ReadDir(dir)
	for _, x := range entries {
		if strings.HasSuffix(x.Name(), ".sigstore.json") {
			err = errors.Join(err, read(x.Name(), "", sign.ArtifactType))
		}
	}
	err = errors.Join(err, read(provenanceName, "", statementType))
	for _, x := range images {
		if platform, parseErr := ParsePlatform(x.Platform); parseErr == nil {
			err = errors.Join(err, read(sbomName(platform), x.Manifest, spdxType))
		}
	}
	return all, err
}

// add sorts one document in.
func (e *evidence) add(a oci.Artifact, digest string, images []oci.PlatformImage, key *sign.PublicKey) {
	var text []byte
	signed := false
	switch a.Type {
	case sign.ArtifactType:
		e.bundles++
		if key == nil {
			return
		}
		var err error
		if text, err = key.Open(a.Content); err != nil {
			e.refused = append(e.refused, err.Error())
			return
		}
		signed = true
	case statementType:
		text = a.Content
	case spdxType:
		if key == nil {
			e.addSBOM(a.Subject, a.Content, false)
		} else {
			e.unsignedSBOMs[a.Subject] = true
		}
		return
	default:
		return
	}
	s, err := statement.Parse(text)
	if err != nil {
		if signed {
			e.refused = append(e.refused, err.Error())
		}
		return
	}
	switch s.PredicateType {
	case statement.Signature:
		if signed && s.About(digest) {
			e.signed = true
		} else if signed {
			e.refused = append(e.refused, "a signature of another image")
		}
	case statement.Provenance:
		if key != nil && !signed {
			e.unsigned = true
		} else if e.provenance == nil || !e.provenance.About(digest) {
			e.addProvenance(s, signed)
		}
	case statement.SPDX:
		for _, x := range images {
			switch {
			case !s.About(x.Manifest):
			case key != nil && !signed:
				e.unsignedSBOMs[x.Manifest] = true
			default:
				e.addSBOM(x.Manifest, s.Predicate, signed)
			}
		}
	}
}

func (e *evidence) addSBOM(manifest string, text []byte, signed bool) {
	if old := e.sboms[manifest]; old != nil && old.err == nil {
		return // the same document lies beside index and image
	}
	doc, err := sbom.Read(text)
	e.sboms[manifest] = &sbomEvidence{signed: signed, doc: doc, err: err}
}

// addProvenance reads what is known of a predicate; slipway's has the chain from the full programs.
func (e *evidence) addProvenance(s *statement.Statement, signed bool) {
	e.provenance, e.provenanceSigned = s, signed
	e.builder, e.commit, e.ours = "", "", false
	var v provenance
	if json.Unmarshal(s.Predicate, &v) != nil {
		return // of another version of the predicate
	}
	e.builder = v.RunDetails.Builder.ID
	e.ours = v.BuildDefinition.BuildType == buildType
	for _, d := range v.BuildDefinition.ResolvedDependencies {
		if c := d.Digest["gitCommit"]; c != "" && e.commit == "" {
			e.commit = c
		}
	}
	e.chain, e.names = map[string]string{}, map[string]bool{}
	for _, subject := range s.Subject {
		e.names[path.Base(subject.Name)] = true
	}
	for _, b := range v.RunDetails.Byproducts {
		stripped, _ := b.Annotations["stripped"].(string)
		for _, subject := range s.Subject {
			if subject.Name == stripped && stripped != "" {
				e.chain[subject.Digest["sha256"]] = b.Digest["sha256"]
			}
		}
	}
}
