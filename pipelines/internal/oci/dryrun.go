package oci

import (
	"context"
	"errors"
	"net/http"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// Planned is what Push would do.
type Planned struct {
	// Reference and Digest are as in Pushed; a local target has no digest in its reference.
	Reference string
	Digest    string
	// Missing would travel, in that order; Present is there.
	Missing []Object
	Present Amount
	// Tags are as they would become. One that may not be moved is "refused", and then nothing would travel.
	Tags []Tag
}

// Object is a blob, a manifest or a document beside an image.
type Object struct {
	// Kind is "blob", "manifest", "index" or "document".
	Kind   string `json:"kind"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// Type is the media type; of a document, what it is.
	Type string `json:"type"`
}

// Plan asks a target what Push would send there and which tags it would move. It changes nothing: a
// registry is only asked by GET and HEAD.
func Plan(ctx context.Context, layoutDir, target string, o PushOptions) (*Planned, error) {
	l, err := openLayout(layoutDir)
	if err != nil {
		return nil, err
	}
	if err := l.verify(ctx); err != nil {
		return nil, err
	}
	kind, path, _ := strings.Cut(target, ":")
	switch {
	case kind == "oci":
		_, err := replaceable(path)
		return &Planned{Reference: target, Digest: l.top.desc.Digest.String(), Missing: l.objects()}, err
	case kind == "tar":
		img, err := l.choose(o.Platform)
		if err != nil {
			return nil, err
		}
		one := &layout{top: img.document, images: []imageDocument{*img}, blobs: append([]v1.Descriptor{img.manifest.Config}, img.manifest.Layers...)}
		return &Planned{Reference: target, Digest: img.desc.Digest.String(), Missing: one.objects()}, nil
	case target == "embedded":
		planned := &Planned{Reference: target, Digest: l.top.desc.Digest.String(), Missing: l.objects()}
		for i := range o.Attach {
			object, err := l.artifactObject(&o.Attach[i])
			if err != nil {
				return nil, err
			}
			planned.Missing = append(planned.Missing, object)
		}
		return planned, nil
	}
	p, err := newPush(ctx, l, target, o)
	if err != nil {
		return nil, err
	}
	return p.plan(ctx)
}

// objects are all that is in the layout, in the order in which it travels.
func (l *layout) objects() []Object {
	var all []Object
	for _, b := range l.blobs {
		all = append(all, Object{"blob", b.Digest.String(), b.Size, string(b.MediaType)})
	}
	for _, d := range l.documents() {
		kind := "manifest"
		if d.desc.MediaType.IsIndex() {
			kind = "index"
		}
		all = append(all, Object{kind, d.desc.Digest.String(), d.desc.Size, string(d.desc.MediaType)})
	}
	return all
}

func (p *push) plan(ctx context.Context) (*Planned, error) {
	planned := &Planned{Reference: p.result.Reference, Digest: p.result.Digest}
	for i := range p.tags {
		err := p.lookFirst(ctx, i)
		if _, exists := errors.AsType[*TagExistsError](err); exists {
			p.states[i].State = "refused"
		} else if err != nil {
			return nil, err
		}
	}
	planned.Tags = p.states
	for _, x := range p.l.objects() {
		there, err := p.has(ctx, x)
		if err != nil {
			return nil, p.failed("looking for "+x.Kind+" "+x.Digest, 0, err)
		}
		if there {
			planned.Present.Objects++
			planned.Present.Bytes += x.Size
		} else {
			planned.Missing = append(planned.Missing, x)
		}
	}
	found, err := p.attached(ctx)
	if statusOf(err) == http.StatusForbidden {
		found = func(*Artifact) bool { return false } // as with has
	} else if err != nil {
		return nil, err
	}
	for i := range p.o.Attach {
		if found(&p.o.Attach[i]) {
			continue
		}
		object, err := p.l.artifactObject(&p.o.Attach[i])
		if err != nil {
			return nil, err
		}
		planned.Missing = append(planned.Missing, object)
	}
	return planned, nil
}

// has asks the registry for one object. Where it forbids the question, there may be no repository yet.
func (p *push) has(ctx context.Context, x Object) (there bool, err error) {
	ref := p.repo.Digest(x.Digest)
	err = p.try(ctx, func() error {
		if x.Kind != "blob" {
			_, err := p.puller.Head(ctx, ref)
			there = err == nil
			return err
		}
		layer, err := p.puller.Layer(ctx, ref)
		if err == nil {
			there, err = partial.Exists(layer)
		}
		return err
	})
	if status := statusOf(err); status == http.StatusNotFound || status == http.StatusForbidden {
		return false, nil
	}
	return there, err
}
