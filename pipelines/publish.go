package pipelines

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
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
	// Detail is all this in words.
	Detail string `json:"detail"`
}

// released matches the tags of releases, which are never moved.
var released = regexp.MustCompile(`^v?\d+\.\d+\.\d+([-+._].*)?$`)

// Publish pushes the image to every place of the configuration, after everything before it has passed,
// fetches all of it again and compares, and only then moves tags.
func (p *Pipeline) Publish(ctx context.Context) (*PublishResult, error) {
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
	s := p.stage("publish")
	result := &PublishResult{Verdict: Passed}
	for _, to := range p.Config.To {
		err := s.task(ctx, "publish "+shownTarget(to), func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			pushed, err := oci.Push(ctx, p.path(imageDir), to, oci.PushOptions{
				Auth:     oci.Auth{Username: p.opts.Credentials.Username, Password: p.opts.Credentials.Password},
				MayMove:  func(tag, _, _ string) bool { return !released.MatchString(tag) },
				Progress: func(done, total int64) { progress(humanBytes(done) + " of " + humanBytes(total)) },
				Names:    []string{p.Plan.Name + ":latest"},
				Attach:   attest.artifacts,
			})
			if exists, ok := errors.AsType[*oci.TagExistsError](err); ok {
				result.Verdict = Failed
				s.fail(Failure{What: exists.Tag, Where: "registry", Message: fmt.Sprintf("The tag names a release that exists with other content.\nIt is %s, this image is %s.", exists.Have, exists.Want),
					Next: "Releases do not change: publish under a new version."})
				return Failed, "the tag exists with other content", nil
			}
			if err != nil {
				return "", "", pushError(to, err)
			}
			x := PublishedTo{
				Reference: shownTarget(pushed.Reference), Digest: pushed.Digest, Sent: pushed.Sent.Objects, SentBytes: pushed.Sent.Bytes, Present: pushed.Present.Objects, ReadBack: pushed.ReadBack.Objects,
				Attached: pushed.Attached + pushed.AttachedBefore,
			}
			x.Detail = fmt.Sprintf("%d sent (%s), %d were there, %d read back", x.Sent, humanBytes(x.SentBytes), x.Present, x.ReadBack)
			if x.Attached > 0 {
				x.Detail += ", " + plural(x.Attached, "document", "documents") + " beside it"
			}
			result.To = append(result.To, x)
			return Passed, x.Detail, nil
		})
		if err != nil {
			return nil, err
		}
	}
	p.Record.Published = result.To
	var details []string
	for _, x := range result.To {
		details = append(details, x.Reference)
	}
	s.end(result.Verdict, shorten(details, 3))
	return result, nil
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
	var path *fs.PathError
	switch {
	case errors.As(err, &refused):
		e.Next = "Log in (docker login, or --username with --password=env:NAME), and check that the user may push there."
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
