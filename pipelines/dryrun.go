package pipelines

import (
	"context"

	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// WouldPublish is what publish would do at one place.
type WouldPublish struct {
	// To is the place as configured, Reference the image there and Digest its own.
	To        string `json:"to"`
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
	// Missing would travel, with Bytes in all; Present counts what is there.
	Missing []PublishObject `json:"missing,omitempty"`
	Bytes   int64           `json:"bytes"`
	Present int             `json:"present"`
	// Tags are as they would become. If one is refused, nothing would travel to any place.
	Tags []PublishedTag `json:"tags,omitempty"`
}

// PublishObject is a blob, a manifest, or a document beside the image.
type PublishObject struct {
	// Kind is "blob", "manifest", "index" or "document".
	Kind   string `json:"kind"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// Type is the media type.
	Type string `json:"type"`
}

// dryRun asks every place what publish would do there. It writes to none.
func (u *publication) dryRun(ctx context.Context) error {
	objects, bytes := 0, int64(0)
	for _, to := range u.p.Config.To {
		err := u.stage.task(ctx, "would publish "+shownTarget(to), func(ctx context.Context, _ func(string)) (Verdict, string, error) {
			planned, err := oci.Plan(ctx, u.p.path(imageDir), to, u.options(to))
			if err != nil {
				return "", "", pushError(to, err)
			}
			x := WouldPublish{To: shownTarget(to), Reference: shownTarget(planned.Reference), Digest: planned.Digest, Present: planned.Present.Objects, Tags: publishedTags(planned.Tags)}
			for _, m := range planned.Missing {
				x.Missing = append(x.Missing, PublishObject(m))
				x.Bytes += m.Size
			}
			u.p.Record.DryRun = append(u.p.Record.DryRun, x)
			objects, bytes = objects+len(x.Missing), bytes+x.Bytes
			verdict := Passed
			for _, t := range x.Tags {
				if t.State == "refused" {
					verdict = Failed
					u.refused(x.To+", tag "+t.Name, t.Before, x.Digest)
				}
			}
			return verdict, plural(len(x.Missing), "object", "objects") + " (" + humanBytes(x.Bytes) + ") would travel", nil
		})
		if err != nil {
			return err
		}
	}
	u.stage.end(u.result.Verdict, "dry run, nothing was sent: "+plural(objects, "object", "objects")+" ("+humanBytes(bytes)+") would travel")
	return nil
}
