package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// PushOptions say how Push publishes.
type PushOptions struct {
	// Tags are tags to move besides the one in the target.
	Tags []string
	// MayMove decides whether a tag that points at have may be moved to want; both are digests. have is empty
	// in the question whether the tag may ever be moved. Without it, no tag that exists is moved.
	MayMove func(tag, have, want string) bool
	// Behind is asked for those tags that only ever go forward, with all tags that the repository has. It
	// returns the tag of a later version, and then theirs is left as it is; empty lets it be moved.
	Behind map[string]func(existing []string) string
	// Auth is for the registry.
	Auth Auth
	// Jobs is how many blobs travel at the same time; zero means four.
	Jobs int
	// Progress, if set, is told how many of how many bytes are at the target. It is called from several
	// goroutines, one at a time.
	Progress func(done, total int64)
	// RetryDelay is the first wait before a failed request is repeated; zero means half a second.
	RetryDelay time.Duration
	// Platform is the one that goes into a tar file; empty means that of this machine if the layout has
	// it, else the first.
	Platform string
	// Attach are documents about the image that go to a registry with it, before tags are moved. Layouts and
	// tar files have no place for them.
	Attach []Artifact
	// Names are the names that an image has after it was loaded from a tar file, such as "app:v1.2.3".
	Names []string
}

// Pushed is what Push has done.
type Pushed struct {
	// Reference is where the image is, by digest where there are digests:
	// "registry.example/app@sha256:...", "oci:DIR", "tar:FILE".
	Reference string `json:"reference"`
	// Digest is that of the index; for a tar file, that of the one manifest in it.
	Digest string `json:"digest"`
	Tags   []Tag  `json:"tags,omitempty"`
	// Sent are the blobs and manifests that travelled; Present are those that were at the target before;
	// ReadBack are those that were fetched again and were what their digests say.
	Sent     Amount `json:"sent"`
	Present  Amount `json:"present"`
	ReadBack Amount `json:"readBack"`
	// Attached counts the artifacts that were sent, AttachedBefore those that were there.
	Attached       int `json:"attached,omitempty"`
	AttachedBefore int `json:"attachedBefore,omitempty"`
}

// Tag is what has become of a tag.
type Tag struct {
	Name string `json:"name"`
	// Before is the digest that it pointed at before, empty if it did not exist.
	Before string `json:"before,omitempty"`
	// State is "created", "moved", "unchanged", "kept" (not moved, as there is a later version) or, where
	// nothing is sent, "refused".
	State string `json:"state"`
	// Behind is the tag of the later version.
	Behind string `json:"behind,omitempty"`
}

// Amount counts objects and bytes.
type Amount struct {
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// ErrTagExists is in the chain of a *TagExistsError.
var ErrTagExists = errors.New("the tag exists with other content")

// A TagExistsError says that a tag points at other content and may not be moved. Nothing that the tag names
// was changed.
type TagExistsError struct {
	// Tag is the whole reference; Have is the digest that it points at, Want the one to publish.
	Tag, Have, Want string
}

func (e *TagExistsError) Error() string {
	return fmt.Sprintf("tag %s exists with other content and may not be moved: it is %s, to be published is %s", e.Tag, e.Have, e.Want)
}

func (e *TagExistsError) Unwrap() error { return ErrTagExists }

// A RaceError says that another run has moved a tag while ours was under way.
type RaceError struct {
	// Tag is the whole reference; Have is the digest that it points at now, Want the one to publish.
	Tag, Have, Want string
}

func (e *RaceError) Error() string {
	return fmt.Sprintf("another run has moved tag %s meanwhile: it is %s now, to be published is %s", e.Tag, e.Have, e.Want)
}

// A PushError says that a registry failed while something was published.
type PushError struct {
	// Registry is the registry, Step what was being done.
	Registry, Step string
	// NotMoved are the tags that are as they were; Moved are those that had been moved before the failure;
	// Unknown is the tag that was being moved when the registry went away, if any.
	NotMoved, Moved []string
	Unknown         string
	Err             error
}

func (e *PushError) Error() string {
	s := fmt.Sprintf("publishing to %s: %s: %v", e.Registry, e.Step, e.Err)
	if len(e.NotMoved) > 0 {
		s += "; " + tagList(e.NotMoved) + " not moved"
	}
	if len(e.Moved) > 0 {
		s += "; " + tagList(e.Moved) + " moved before"
	}
	if e.Unknown != "" {
		s += "; whether tag " + e.Unknown + " was moved is not known"
	}
	return s
}

func tagList(tags []string) string {
	if len(tags) == 1 {
		return "tag " + tags[0] + " was"
	}
	return "tags " + strings.Join(tags, ", ") + " were"
}

func (e *PushError) Unwrap() error { return e.Err }

// Push publishes the layout in layoutDir. The target is one of
//
//	registry.example/app:v1   a registry; the tag is optional, more come from the options
//	oci:DIR                   an OCI layout on disk
//	tar:FILE                  an archive that "docker load" takes, of one platform
//	embedded                  a registry of our own that ends with the call, to try it all out
//
// The errors are those of Prepare, Publication.Send and Publication.Finish, which it calls.
func Push(ctx context.Context, layoutDir, target string, o PushOptions) (*Pushed, error) {
	x, err := Prepare(ctx, layoutDir, target, o)
	if err != nil {
		return nil, err
	}
	return x.complete(ctx)
}

func (x *Publication) complete(ctx context.Context) (*Pushed, error) {
	if _, err := x.Send(ctx, nil); err != nil {
		return nil, err
	}
	return x.Finish(ctx)
}

// A Publication is a layout on its way to one target. Those that want to publish to several, and to all or
// none, take each step with all of them.
type Publication struct {
	push  *push                                      // to a registry
	local func(ctx context.Context) (*Pushed, error) // to anything else
}

// Prepare looks at the target and changes nothing: a tag that points at other content and may not be moved is
// an error before anything travels.
//
// The errors to tell apart are *TagExistsError, *RefusedError (credentials), *DigestError (what was fetched
// is not what was sent, or the layout is damaged) and *PushError (anything else about a registry); the last
// wraps the others, and *RaceError, once anything may have been sent.
func Prepare(ctx context.Context, layoutDir, target string, o PushOptions) (*Publication, error) {
	l, err := openLayout(layoutDir)
	if err != nil {
		return nil, err
	}
	if dir, ok := strings.CutPrefix(target, "oci:"); ok {
		_, err := replaceable(dir)
		return &Publication{local: func(ctx context.Context) (*Pushed, error) { return pushLayout(ctx, l, dir, o) }}, err
	}
	if file, ok := strings.CutPrefix(target, "tar:"); ok {
		return &Publication{local: func(ctx context.Context) (*Pushed, error) { return pushTar(ctx, l, file, o) }}, nil
	}
	if target == "embedded" {
		return &Publication{local: func(ctx context.Context) (*Pushed, error) { return pushEmbedded(ctx, l, o) }}, nil
	}
	p, err := newPush(ctx, l, target, o)
	if err != nil {
		return nil, err
	}
	return &Publication{push: p}, p.prepare(ctx)
}

// Remote tells whether the target is a registry. To any other, Send sends nothing and Finish does all.
func (x *Publication) Remote() bool { return x.push != nil }

// Send brings everything to a registry but the tags. Every blob in the layout is verified, those that the
// registry does not have travel, and the manifests after them. Then everything is fetched again by digest
// and compared; where all tags point at the content already, only that is done. Then come the artifacts,
// which are fetched again too. It tells what is at the registry now.
// progress, if not nil, takes the place of PushOptions.Progress.
func (x *Publication) Send(ctx context.Context, progress func(done, total int64)) (*Pushed, error) {
	if x.push == nil {
		return nil, nil
	}
	if progress != nil {
		x.push.o.Progress = progress
	}
	return &x.push.result, x.push.deliver(ctx)
}

// Finish moves the tags and compares their digests.
//
// Registries have no way to move a tag only if nobody else has, so this is what is done about others who
// publish to the same tags at the same time. Each tag is looked at again right before it is moved; if it is
// not what it was at first, that is a *RaceError. Tags that may not be moved come first; when they are new,
// they are looked at once more after a while, before any other tag is moved. At the end all are looked at
// again. Whoever moves a tag last therefore sees all that there is, and says so if it is not all of one run.
func (x *Publication) Finish(ctx context.Context) (*Pushed, error) {
	if x.push == nil {
		return x.local(ctx)
	}
	if err := x.push.moveTags(ctx); err != nil {
		return nil, err
	}
	x.push.result.Tags = x.push.states
	return &x.push.result, nil
}

// parseTarget splits a target into a repository and tags. Without any tag there are none: that "latest" is
// moved is never a default.
func parseTarget(target string, more []string) (name.Repository, []name.Tag, error) {
	if strings.Contains(target, "@") {
		return name.Repository{}, nil, fmt.Errorf("target %q has a digest; the digest of what is published is its own", target)
	}
	names := slices.Clone(more)
	repoName := target
	if i := strings.LastIndex(target, ":"); i >= 0 && !strings.Contains(target[i:], "/") {
		repoName = target[:i]
		names = append([]string{target[i+1:]}, names...)
	}
	repo, err := name.NewRepository(repoName)
	if err != nil {
		return repo, nil, fmt.Errorf("target %q: %w", target, err)
	}
	var tags []name.Tag
	for _, n := range names {
		tag, err := name.NewTag(repoName+":"+n, name.WithDefaultTag(""))
		if err != nil {
			return repo, nil, fmt.Errorf("target %q: tag %q: %w", target, n, err)
		}
		if !slices.ContainsFunc(tags, func(t name.Tag) bool { return t.TagStr() == n }) {
			tags = append(tags, tag)
		}
	}
	return repo, tags, nil
}

// push is one publication to a registry.
type push struct {
	*session
	l         *layout
	o         PushOptions
	tags      []name.Tag
	states    []Tag
	looked    []bool // the registry said at first what the tag points at
	fixed     int    // how many tags, the first ones, may never be moved
	unchanged bool   // there is at least one tag, and all of them are where they should be

	mu     sync.Mutex
	result Pushed
	done   int64
}

func newPush(ctx context.Context, l *layout, target string, o PushOptions) (*push, error) {
	repo, tags, err := parseTarget(target, o.Tags)
	if err != nil {
		return nil, err
	}
	s, err := newSession(ctx, repo, o.Auth, o.RetryDelay)
	if err != nil {
		return nil, err
	}
	if o.Jobs <= 0 {
		o.Jobs = 4
	}
	want := l.top.desc.Digest.String()
	fixed := func(t name.Tag) bool { return o.MayMove == nil || !o.MayMove(t.TagStr(), "", want) }
	slices.SortStableFunc(tags, func(a, b name.Tag) int {
		switch {
		case fixed(a) == fixed(b):
			return 0
		case fixed(a):
			return -1
		}
		return 1
	})
	p := &push{session: s, l: l, o: o, tags: tags, states: make([]Tag, len(tags)), looked: make([]bool, len(tags))}
	for p.fixed < len(tags) && fixed(tags[p.fixed]) {
		p.fixed++
	}
	p.result.Digest, p.result.Reference = want, repo.Digest(want).Name()
	return p, nil
}

// deliver sends what is missing, and fetches everything again.
func (p *push) deliver(ctx context.Context) error {
	if p.unchanged {
		p.result.Present = Amount{len(p.l.blobs) + len(p.l.documents()), p.l.size()}
		p.progress(p.l.size())
	} else {
		if err := p.l.verify(ctx); err != nil {
			return err
		}
		if err := p.send(ctx); err != nil {
			return err
		}
	}
	if err := p.readBack(ctx); err != nil {
		return err
	}
	return p.attach(ctx)
}

// failed makes an error that says what has become of the tags; the first so many were moved.
func (p *push) failed(step string, moved int, err error) *PushError {
	e := &PushError{Registry: p.repo.RegistryStr(), Step: step, Err: err}
	for i, state := range p.states {
		switch {
		case state.State == "unchanged", state.State == "kept":
		case i < moved:
			e.Moved = append(e.Moved, p.tags[i].TagStr())
		default:
			e.NotMoved = append(e.NotMoved, p.tags[i].TagStr())
		}
	}
	return e
}

// send uploads the blobs that the registry does not have, then the manifests, then the index.
func (p *push) send(ctx context.Context) error {
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(p.o.Jobs)
	for _, blob := range p.l.blobs {
		group.Go(func() error {
			up := &upload{p: p, desc: blob}
			err := p.try(groupCtx, func() error {
				p.progress(-up.reset())
				return p.pusher.Upload(groupCtx, p.repo, up)
			})
			if err != nil {
				return p.failed("sending blob "+blob.Digest.String(), 0, err)
			}
			p.count(blob.Size, up.opened)
			p.progress(blob.Size - up.reset())
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for _, doc := range p.l.documents() {
		ref := p.repo.Digest(doc.desc.Digest.String())
		present := false
		err := p.try(ctx, func() error {
			if d, err := p.puller.Head(ctx, ref); err == nil && d.Digest == doc.desc.Digest {
				present = true
				return nil
			}
			return p.pusher.Put(ctx, ref, taggable{doc})
		})
		if err != nil {
			return p.failed("sending manifest "+doc.desc.Digest.String(), 0, err)
		}
		p.count(doc.desc.Size, !present)
		p.progress(doc.desc.Size)
	}
	return nil
}

func (p *push) count(size int64, sent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	to := &p.result.Present
	if sent {
		to = &p.result.Sent
	}
	to.Objects++
	to.Bytes += size
}

func (p *push) progress(n int64) {
	if p.o.Progress == nil || n == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	p.o.Progress(p.done, p.l.size())
}

// readBack fetches everything by digest. Blobs are not kept, only compared.
func (p *push) readBack(ctx context.Context) error {
	for _, doc := range p.l.documents() {
		if _, err := p.manifest(ctx, doc.desc.Digest); err != nil {
			return p.failed("reading back manifest "+doc.desc.Digest.String(), 0, err)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(p.o.Jobs)
	for _, blob := range p.l.blobs {
		group.Go(func() error {
			if err := p.blob(groupCtx, blob, io.Discard, nil); err != nil {
				return p.failed("reading back blob "+blob.Digest.String(), 0, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	p.result.ReadBack = Amount{len(p.l.blobs) + len(p.l.documents()), p.l.size()}
	return nil
}

// taggable gives a manifest to the pusher as it is on disk.
type taggable struct{ document }

func (t taggable) RawManifest() ([]byte, error)        { return t.raw, nil }
func (t taggable) MediaType() (types.MediaType, error) { return t.desc.MediaType, nil }

var _ remote.Taggable = taggable{}

// upload is a blob of a layout on its way to a registry. It implements v1.Layer as far as the pusher needs
// it: blobs travel compressed, as they are.
type upload struct {
	p    *push
	desc v1.Descriptor

	mu     sync.Mutex
	opened bool // the registry wanted the content
	read   int64
}

func (u *upload) Digest() (v1.Hash, error)            { return u.desc.Digest, nil }
func (u *upload) Size() (int64, error)                { return u.desc.Size, nil }
func (u *upload) MediaType() (types.MediaType, error) { return u.desc.MediaType, nil }
func (u *upload) DiffID() (v1.Hash, error) {
	return v1.Hash{}, errors.New("a blob on its way has no diff ID")
}
func (u *upload) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("a blob travels compressed")
}

func (u *upload) Compressed() (io.ReadCloser, error) {
	u.mu.Lock()
	u.opened = true
	u.mu.Unlock()
	rc, err := u.p.l.open(u.desc)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{io.TeeReader(rc, counter(u.progress)), rc}, nil
}

func (u *upload) progress(n int64) {
	u.mu.Lock()
	// A connection that broke is read again from the start.
	n = min(n, u.desc.Size-u.read)
	u.read += n
	u.mu.Unlock()
	u.p.progress(n)
}

// reset returns how many bytes were counted since the last call.
func (u *upload) reset() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := u.read
	u.read = 0
	return n
}
