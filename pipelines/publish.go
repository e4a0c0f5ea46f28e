package pipelines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// PublishResult is where the image went.
type PublishResult struct {
	Verdict Verdict       `json:"verdict"`
	To      []PublishedTo `json:"to"`
}

// PublishedTo is one place that the image was published to.
type PublishedTo struct {
	// Reference names the image there, with its digest where there are digests.
	Reference string `json:"reference"`
	// Digest is what was read back.
	Digest string `json:"digest"`
	// Sent and Present count the objects that travelled and those that were there before; ReadBack those
	// that were fetched again and compared.
	Sent      int   `json:"sent"`
	SentBytes int64 `json:"sent_bytes"`
	Present   int   `json:"present"`
	ReadBack  int   `json:"read_back"`
	// Attached counts the documents that lie beside the image now.
	Attached int `json:"attached"`
	// Tags are those that the image was to have there.
	Tags []PublishedTag `json:"tags,omitempty"`
	// Detail is all this in words.
	Detail string `json:"detail"`
}

// PublishedTag is what has become of a tag.
type PublishedTag struct {
	Name string `json:"name"`
	// Before is the digest that it had, empty if it did not exist.
	Before string `json:"before,omitempty"`
	// State is "created", "moved", "unchanged", "kept" (not moved, as there is a later version), or, in a dry
	// run, "refused".
	State string `json:"state"`
	// Behind is the tag of the later version.
	Behind string `json:"behind,omitempty"`
}

// Publish pushes the image to every place of the configuration, after everything before it has passed,
// fetches all of it again and compares, and only then moves tags. All places are asked first: if a tag of one may
// not be moved, nothing travels to any. No tag is moved before everything is at every place.
func (p *Pipeline) Publish(ctx context.Context) (*PublishResult, error) {
	chosen, err := p.publishTags()
	if err != nil {
		return nil, err
	}
	smoke, err := p.Smoke(ctx)
	if err != nil {
		return nil, err
	}
	if p.image == nil || p.image.Verdict != Passed || smoke.Verdict == Failed {
		return &PublishResult{Verdict: Skipped}, nil
	}
	attest, err := p.Attest(ctx)
	if err != nil {
		return nil, err
	}
	u := &publication{p: p, stage: p.stage("publish"), tags: chosen, attach: attest.artifacts, result: &PublishResult{Verdict: Passed}}
	if len(chosen.without) > 0 && p.Plan.Source.Dirty {
		p.note("publish", "not every tag of the policy: %s", strings.Join(chosen.without, "; "))
	}
	if p.Plan.Source.Dirty {
		p.note("publish", "the source differs from its commit in %s; the image's label says so", shorten(p.Plan.Source.Changed, 3))
	}
	if i := slices.IndexFunc(p.Config.To, oci.Untagged); i >= 0 && len(chosen.names) == 0 {
		p.note("publish", "no tag, so the digest alone names the image; write a tag behind %s, or see publish.tags", shownTarget(p.Config.To[i]))
	}
	if p.opts.DryRun {
		return u.result, u.dryRun(ctx)
	}
	for _, step := range []func(context.Context) error{u.prepare, u.send, u.finish} {
		if err := step(ctx); err != nil {
			return nil, err
		}
		if u.result.Verdict == Failed {
			break
		}
	}
	p.Record.Published = u.result.To
	var details []string
	for _, x := range u.result.To {
		details = append(details, x.Reference)
	}
	u.stage.end(u.result.Verdict, shorten(details, 3))
	return u.result, nil
}

// publication is the publish stage while it runs.
type publication struct {
	p      *Pipeline
	stage  *stage
	tags   chosenTags
	attach []oci.Artifact
	pushes []*oci.Publication // by Config.To
	result *PublishResult
}

func (u *publication) options(to string) oci.PushOptions {
	o := oci.PushOptions{
		Auth:    oci.Auth{Username: u.p.opts.Credentials.Username, Password: u.p.opts.Credentials.Password},
		MayMove: func(tag, _, _ string) bool { return !immutable(tag) },
		Names:   []string{u.p.Plan.Name + ":latest"},
		Attach:  u.attach,
	}
	if oci.Untagged(to) {
		o.Tags, o.Behind = u.tags.names, u.tags.behind
	}
	return o
}

// prepare asks every place.
func (u *publication) prepare(ctx context.Context) error {
	if !slices.ContainsFunc(u.p.Config.To, oci.Remote) {
		_, _, err := u.lookAtTags(ctx)
		return err
	}
	return u.stage.task(ctx, "look at tags", func(ctx context.Context, _ func(string)) (Verdict, string, error) { return u.lookAtTags(ctx) })
}

func (u *publication) lookAtTags(ctx context.Context) (Verdict, string, error) {
	for _, to := range u.p.Config.To {
		push, err := oci.Prepare(ctx, u.p.path(imageDir), to, u.options(to))
		if exists, ok := errors.AsType[*oci.TagExistsError](err); ok {
			u.refused(exists.Tag, exists.Have, exists.Want)
		} else if err != nil {
			return "", "", pushError(to, err)
		}
		u.pushes = append(u.pushes, push)
	}
	if u.result.Verdict == Failed {
		return Failed, "the tag exists with other content; nothing was sent", nil
	}
	return Passed, plural(len(u.pushes), "place", "places"), nil
}

func (u *publication) refused(tag, have, want string) {
	u.result.Verdict = Failed
	u.stage.fail(Failure{What: tag, Where: "registry", Message: fmt.Sprintf("The tag names a release that exists with other content.\nIt is %s, this image is %s.", have, want),
		Next: "Releases do not change: publish under a new version."})
}

// send brings everything but the tags to registries.
func (u *publication) send(ctx context.Context) error {
	return u.p.parallel(ctx, len(u.pushes), func(ctx context.Context, i int) error {
		to := u.p.Config.To[i]
		if !u.pushes[i].Remote() {
			return nil
		}
		return u.stage.task(ctx, "publish "+shownTarget(to), func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			pushed, err := u.pushes[i].Send(ctx, func(done, total int64) { progress(humanBytes(done) + " of " + humanBytes(total)) })
			if err != nil {
				return "", "", pushError(to, err)
			}
			return Passed, publishedTo(pushed).Detail, nil
		})
	})
}

// finish moves the tags, and does what there is to do for places that are no registry.
func (u *publication) finish(ctx context.Context) error {
	for i, to := range u.p.Config.To {
		name := "publish "
		if u.pushes[i].Remote() {
			name = "move tags of "
		}
		err := u.stage.task(ctx, name+shownTarget(to), func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			pushed, err := u.pushes[i].Finish(ctx)
			if exists, ok := errors.AsType[*oci.TagExistsError](err); ok {
				u.refused(exists.Tag, exists.Have, exists.Want)
				return Failed, "another run has published this release meanwhile", nil
			}
			if err != nil {
				return "", "", u.already(pushError(to, err))
			}
			x := publishedTo(pushed)
			u.result.To = append(u.result.To, x)
			if u.pushes[i].Remote() {
				return Passed, tagsInWords(x.Tags), nil
			}
			return Passed, x.Detail, nil
		})
		if err != nil || u.result.Verdict == Failed {
			return err
		}
	}
	return nil
}

// already adds to an error where the image is published nevertheless.
func (u *publication) already(err error) error {
	var e *fault.Error
	if errors.As(err, &e) && len(u.result.To) > 0 {
		var places []string
		for _, x := range u.result.To {
			places = append(places, x.Reference)
		}
		e.Next += " Published already: " + strings.Join(places, ", ") + "."
	}
	return err
}

func publishedTo(pushed *oci.Pushed) PublishedTo {
	x := PublishedTo{
		Reference: shownTarget(pushed.Reference), Digest: pushed.Digest, Sent: pushed.Sent.Objects, SentBytes: pushed.Sent.Bytes, Present: pushed.Present.Objects, ReadBack: pushed.ReadBack.Objects,
		Attached: pushed.Attached + pushed.AttachedBefore, Tags: publishedTags(pushed.Tags),
	}
	x.Detail = fmt.Sprintf("%d sent (%s), %d were there, %d read back", x.Sent, humanBytes(x.SentBytes), x.Present, x.ReadBack)
	if x.Attached > 0 {
		x.Detail += ", " + plural(x.Attached, "document", "documents") + " beside it"
	}
	return x
}

func publishedTags(tags []oci.Tag) []PublishedTag {
	var all []PublishedTag
	for _, t := range tags {
		all = append(all, PublishedTag(t))
	}
	return all
}

func tagsInWords(tags []PublishedTag) string {
	var words []string
	for _, t := range tags {
		w := t.Name + " " + t.State
		if t.Behind != "" {
			w += " (" + t.Behind + " is later)"
		}
		words = append(words, w)
	}
	return strings.Join(words, ", ")
}

// shownTarget is a target as records name it, without the directories of this machine.
func shownTarget(to string) string {
	if kind, _, ok := strings.Cut(to, ":"); ok && (kind == "oci" || kind == "tar") {
		return kind + ":" + lastElement(to)
	}
	return to
}

func lastElement(path string) string { return path[strings.LastIndexAny(path, `/\:`)+1:] }

const nextTarget = "Write it as a reference such as registry.example/team/app:1.4.2, oci:DIR, tar:FILE or embedded."

func pushError(to string, err error) error {
	e := &fault.Error{Kind: fault.Environment, What: "publish to " + to, Next: "Check that the registry can be reached, and run the same command again.", Err: err}
	var refused *oci.RefusedError
	var push *oci.PushError
	var digest *oci.DigestError
	var race *oci.RaceError
	var path *fs.PathError
	switch {
	case errors.As(err, &refused):
		e.Next = "Log in (docker login, or --username with --password=env:NAME), and check that the user may push there."
	case errors.As(err, &race):
		e.What, e.Next = "", "Somebody publishes to the same tags. Wait for it to end, and run the same command again if yours is to be there."
	case errors.As(err, &push):
		e.What = "" // the error names the registry
	case errors.As(err, &digest):
	case errors.As(err, &path):
		e.Next = "Check that the directory can be written and that its disk has space."
	default:
		e.Kind, e.Next = fault.Usage, "Choose another place. "+nextTarget
	}
	return e
}
