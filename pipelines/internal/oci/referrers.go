package oci

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// MaxArtifact limits the content of one artifact, in bytes. SBOMs of large programs have a few.
const MaxArtifact = 32 << 20

// Limits of what is read of the artifacts of one image: their number, and the bytes of all contents.
const (
	maxArtifacts    = 1000
	maxAllArtifacts = 256 << 20
)

// An Artifact is a document about an image or index that lies beside it in the repository and is found by the
// digest of what it is about: a referrer of
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers, with the
// tag of that specification where a registry has no such list.
type Artifact struct {
	// Subject is the digest of what it is about.
	Subject string
	// Type is what tools look for: the artifact type, and the media type of the content.
	Type        string
	Annotations map[string]string
	Content     []byte
}

// emptyConfig is the configuration of an image that is none:
// https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidance-for-an-empty-descriptor
var emptyConfig = []byte("{}")

const emptyConfigType types.MediaType = "application/vnd.oci.empty.v1+json"

// artifactManifest is a manifest as far as artifacts have one. The order of its fields is the one of the bytes.
type artifactManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     types.MediaType   `json:"mediaType"`
	ArtifactType  string            `json:"artifactType,omitempty"`
	Config        v1.Descriptor     `json:"config"`
	Layers        []v1.Descriptor   `json:"layers"`
	Subject       *v1.Descriptor    `json:"subject,omitempty"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

func (a *Artifact) document(subject v1.Descriptor) (document, error) {
	m := artifactManifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: a.Type,
		Config:      v1.Descriptor{MediaType: emptyConfigType, Size: int64(len(emptyConfig)), Digest: hashOf(emptyConfig), Data: emptyConfig},
		Layers:      []v1.Descriptor{{MediaType: types.MediaType(a.Type), Size: int64(len(a.Content)), Digest: hashOf(a.Content)}},
		Subject:     &v1.Descriptor{MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest},
		Annotations: a.Annotations,
	}
	raw, err := json.Marshal(m)
	return document{raw: raw, desc: v1.Descriptor{MediaType: m.MediaType, Size: int64(len(raw)), Digest: hashOf(raw)}}, err
}

// attach sends the artifacts that are not there yet, and fetches them again.
func (p *push) attach(ctx context.Context) error {
	there, err := p.attached(ctx)
	if err != nil {
		return err
	}
	for i := range p.o.Attach {
		a := &p.o.Attach[i]
		if there(a) {
			p.result.AttachedBefore++
			continue
		}
		doc, err := p.l.artifact(a)
		if err != nil {
			return err
		}
		if err := p.attachOne(ctx, a, doc); err != nil {
			return p.failed("sending artifact "+a.Type, 0, err)
		}
		p.result.Attached++
	}
	return nil
}

// attached asks which artifacts are there.
func (p *push) attached(ctx context.Context) (there func(*Artifact) bool, err error) {
	found, types := map[string][]Artifact{}, []string{}
	for _, a := range p.o.Attach {
		types = append(types, a.Type)
	}
	for _, a := range p.o.Attach {
		if _, ok := found[a.Subject]; ok {
			continue
		}
		if found[a.Subject], err = p.artifacts(ctx, a.Subject, types); err != nil {
			return nil, p.failed("looking for artifacts of "+a.Subject, 0, err)
		}
	}
	return func(a *Artifact) bool {
		return slices.ContainsFunc(found[a.Subject], func(x Artifact) bool { return x.Type == a.Type && bytes.Equal(x.Content, a.Content) })
	}, nil
}

// artifact is the manifest of an artifact about something in the layout.
func (l *layout) artifact(a *Artifact) (document, error) {
	i := slices.IndexFunc(l.documents(), func(d document) bool { return d.desc.Digest.String() == a.Subject })
	if i < 0 {
		return document{}, fmt.Errorf("artifact %s is about %s, which is not in the image", a.Type, a.Subject)
	}
	return a.document(l.documents()[i].desc)
}

// artifactObject is an artifact as what travels for it.
func (l *layout) artifactObject(a *Artifact) (Object, error) {
	doc, err := l.artifact(a)
	return Object{"document", doc.desc.Digest.String(), doc.desc.Size + int64(len(a.Content)), a.Type}, err
}

func (p *push) attachOne(ctx context.Context, a *Artifact, doc document) error {
	for _, blob := range []struct {
		content []byte
		typ     types.MediaType
	}{{emptyConfig, emptyConfigType}, {a.Content, types.MediaType(a.Type)}} {
		if err := p.try(ctx, func() error { return p.pusher.Upload(ctx, p.repo, static.NewLayer(blob.content, blob.typ)) }); err != nil {
			return err
		}
	}
	ref := p.repo.Digest(doc.desc.Digest.String())
	if err := p.try(ctx, func() error { return p.pusher.Put(ctx, ref, taggable{doc}) }); err != nil {
		return err
	}
	if _, err := p.manifest(ctx, doc.desc.Digest); err != nil {
		return err
	}
	return p.blob(ctx, v1.Descriptor{Digest: hashOf(a.Content), Size: int64(len(a.Content))}, io.Discard, nil)
}

// Artifacts fetches the artifacts of some types about an image or index in a registry. ref is a reference to the
// repository, with or without a tag; digest is what they are about. What is too large to be one is left out.
func Artifacts(ctx context.Context, ref, digest string, auth Auth, types ...string) ([]Artifact, error) {
	parsed, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	s, err := newSession(ctx, parsed.Context(), auth, 0)
	if err != nil {
		return nil, err
	}
	return s.artifacts(ctx, digest, types)
}

func (s *session) artifacts(ctx context.Context, digest string, types []string) ([]Artifact, error) {
	var list *v1.IndexManifest
	err := s.try(ctx, func() error {
		index, err := remote.Referrers(s.repo.Digest(digest), append(s.options, remote.WithContext(ctx))...)
		if err == nil {
			list, err = index.IndexManifest()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	// The list tells types as well, where the registry makes it: others need not be asked for.
	wanted := slices.DeleteFunc(slices.Clone(list.Manifests), func(d v1.Descriptor) bool { return d.ArtifactType != "" && !slices.Contains(types, d.ArtifactType) })
	if len(wanted) > maxArtifacts {
		return nil, fmt.Errorf("%s has %d artifacts, more than the %d that are read", digest, len(wanted), maxArtifacts)
	}
	var all []Artifact
	left := int64(maxAllArtifacts)
	for _, d := range wanted {
		a, err := s.artifact(ctx, d.Digest, digest, types, &left)
		if err != nil {
			return nil, err
		}
		if a != nil {
			all = append(all, *a)
		}
	}
	slices.SortFunc(all, func(a, b Artifact) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), bytes.Compare(a.Content, b.Content))
	})
	return all, nil
}

// artifact fetches one artifact; nil if it is not one document of these types about the digest.
func (s *session) artifact(ctx context.Context, h v1.Hash, about string, types []string, left *int64) (*Artifact, error) {
	raw, err := s.manifest(ctx, h)
	if err != nil {
		return nil, err
	}
	var m artifactManifest
	if err := json.Unmarshal(raw, &m); err != nil || m.Subject == nil || m.Subject.Digest.String() != about || len(m.Layers) != 1 {
		return nil, nil
	}
	layer := m.Layers[0]
	typ := cmp.Or(m.ArtifactType, string(m.Config.MediaType))
	if !slices.Contains(types, typ) || layer.Size > MaxArtifact {
		return nil, nil
	}
	if *left -= layer.Size; *left < 0 {
		return nil, fmt.Errorf("the artifacts of %s have more than %d bytes", about, maxAllArtifacts)
	}
	var content bytes.Buffer
	reset := func() error { content.Reset(); return nil }
	if err := s.blob(ctx, layer, &content, reset); err != nil {
		return nil, err
	}
	return &Artifact{Subject: about, Type: typ, Annotations: m.Annotations, Content: content.Bytes()}, nil
}
