package oci

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// prepare notes what the tags point at, and returns an error if one may not be moved.
func (p *push) prepare(ctx context.Context) error {
	for i := range p.tags {
		if err := p.lookFirst(ctx, i); err != nil {
			return err
		}
	}
	p.unchanged = slices.ContainsFunc(p.states, func(t Tag) bool { return t.State == "unchanged" }) && !p.moves()
	return nil
}

// moves tells whether any tag is to be moved.
func (p *push) moves() bool { return slices.ContainsFunc(p.states, Tag.moves) }

func (t Tag) moves() bool { return t.State == "created" || t.State == "moved" }

// lookFirst is lookAt before anything was sent. Some registries forbid the question where the repository does
// not exist yet. They are asked again before the tag is moved, and then it does.
func (p *push) lookFirst(ctx context.Context, i int) error {
	err := p.lookAt(ctx, i)
	p.looked[i] = err == nil
	_, exists := errors.AsType[*TagExistsError](err)
	_, refused := errors.AsType[*RefusedError](err)
	switch {
	case refused && statusOf(err) == http.StatusForbidden:
		p.states[i] = Tag{Name: p.tags[i].TagStr(), State: "created"}
		return nil
	case err == nil, exists, refused:
		return err
	}
	return p.failed("looking at tag "+p.tags[i].TagStr(), 0, err)
}

// lookAt notes what a tag points at and what is to become of it.
func (p *push) lookAt(ctx context.Context, i int) error {
	tag, want := p.tags[i], p.l.top.desc.Digest
	have, found, err := p.head(ctx, tag)
	if err != nil {
		return err
	}
	state := Tag{Name: tag.TagStr(), State: "created"}
	if found {
		state.Before, state.State = have.String(), "moved"
	}
	switch behind := p.o.Behind[tag.TagStr()]; {
	case found && have == want:
		state.State = "unchanged"
	case behind != nil:
		existing, err := p.list(ctx)
		if err != nil {
			return err
		}
		if state.Behind = behind(existing); state.Behind != "" {
			state.State = "kept"
		}
	}
	p.states[i] = state
	if state.State == "moved" && (p.o.MayMove == nil || !p.o.MayMove(state.Name, state.Before, want.String())) {
		return &TagExistsError{Tag: tag.Name(), Have: state.Before, Want: want.String()}
	}
	return nil
}

// list returns all tags of the repository.
func (s *session) list(ctx context.Context) (tags []string, err error) {
	err = s.try(ctx, func() (err error) {
		tags, err = s.puller.List(ctx, s.repo)
		return err
	})
	if statusOf(err) == http.StatusNotFound {
		return nil, nil // there is no repository yet
	}
	return tags, err
}

// moveTags points the tags at what was published; see Publication.Finish.
func (p *push) moveTags(ctx context.Context) error {
	changes := p.moves()
	for i := range p.tags {
		if i == p.fixed {
			if err := p.settle(ctx); err != nil {
				return err
			}
		}
		if err := p.moveTag(ctx, i); err != nil {
			return err
		}
	}
	switch {
	case p.fixed == len(p.tags):
		return p.settle(ctx)
	case changes:
		return p.checkTags(ctx, len(p.tags))
	}
	return nil
}

// settle looks once more at the tags that may never be moved, if any of them is new: after as long as somebody
// else who saw none of them needs for creating them.
func (p *push) settle(ctx context.Context) error {
	if !slices.ContainsFunc(p.states[:p.fixed], Tag.moves) {
		return nil
	}
	if err := pause(ctx, p.delay); err != nil {
		return p.failed("waiting", p.fixed, err)
	}
	return p.checkTags(ctx, p.fixed)
}

// checkTags compares the first so many tags, which were moved.
func (p *push) checkTags(ctx context.Context, moved int) error {
	for i, tag := range p.tags[:moved] {
		if p.states[i].State == "kept" {
			continue
		}
		have, _, err := p.head(ctx, tag)
		if want := p.l.top.desc.Digest; err == nil && have != want {
			err = p.race(i, have.String())
		}
		if err != nil {
			return p.failed("looking at tag "+tag.TagStr()+" again", moved, err)
		}
	}
	return nil
}

func (p *push) race(i int, have string) error {
	return &RaceError{Tag: p.tags[i].Name(), Have: have, Want: p.l.top.desc.Digest.String()}
}

func (p *push) moveTag(ctx context.Context, i int) error {
	tag, was := p.tags[i], p.states[i]
	var putErr error
	if was.moves() {
		err := p.lookAt(ctx, i)
		if now := p.states[i]; err == nil && now.State == "moved" && p.looked[i] && now.Before != was.Before {
			err = p.race(i, now.Before)
		}
		if err != nil {
			return p.failed("looking at tag "+tag.TagStr(), i, err)
		}
		if p.states[i].moves() {
			putErr = p.try(ctx, func() error { return p.pusher.Put(ctx, tag, taggable{p.l.top}) })
		}
	}
	if p.states[i].State == "kept" {
		return nil
	}
	// Also after a failure: the registry may have done it before it went away.
	got, err := p.tagged(ctx, tag)
	switch want := p.l.top.desc.Digest; {
	case err == nil && got == want:
		return nil
	case putErr != nil && err != nil:
		e := p.failed("moving tag "+tag.TagStr(), i, putErr)
		e.NotMoved = slices.DeleteFunc(e.NotMoved, func(t string) bool { return t == tag.TagStr() })
		e.Unknown = tag.TagStr()
		return e
	case putErr != nil:
		return p.failed("moving tag "+tag.TagStr(), i, putErr)
	case err != nil:
		return p.failed("reading back tag "+tag.TagStr(), i+1, err)
	case got == (v1.Hash{}):
		return p.failed("reading back tag "+tag.TagStr(), i+1, &DigestError{What: "tag " + tag.Name(), Want: want.String(), Err: errors.New("there is no such tag")})
	}
	// If the registry says so to every question, it is not the registry that is wrong.
	if have, found, err := p.head(ctx, tag); err == nil && found && have == got && got.String() != was.Before {
		return p.failed("reading back tag "+tag.TagStr(), i+1, p.race(i, got.String()))
	}
	return p.failed("reading back tag "+tag.TagStr(), i+1, &DigestError{What: "tag " + tag.Name(), Want: p.l.top.desc.Digest.String(), Got: got.String()})
}

// tagged fetches what a tag points at and returns the digest of that content, whatever the registry says
// that the digest is; without such a tag it is empty. The tag may take a moment to arrive everywhere in a
// large registry.
func (p *push) tagged(ctx context.Context, tag name.Tag) (got v1.Hash, err error) {
	for attempt := range 3 {
		got = v1.Hash{}
		err = p.try(ctx, func() error {
			d, err := p.puller.Get(ctx, tag)
			if err == nil {
				got = hashOf(d.Manifest)
			}
			return err
		})
		if statusOf(err) == http.StatusNotFound {
			err = nil
		}
		if err != nil || got == p.l.top.desc.Digest || attempt == 2 {
			break
		}
		select {
		case <-ctx.Done():
			return got, ctx.Err()
		case <-time.After(p.delay):
		}
	}
	return got, err
}
