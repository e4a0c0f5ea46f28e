package report

import (
	"fmt"
	"io"

	"github.com/slipway-ci/slipway/pipelines"
)

// DryRun writes for each place what publish would send there and which tags it would move.
func DryRun(w io.Writer, places []pipelines.WouldPublish) error {
	for _, x := range places {
		if _, err := fmt.Fprintf(w, "\n%s: %d objects (%s) would travel, %d are there\n", Clean(x.To), len(x.Missing), Bytes(x.Bytes), x.Present); err != nil {
			return err
		}
		t := Table{Right: []int{2}}
		for _, m := range x.Missing {
			t.Row(m.Kind, m.Digest, Bytes(m.Size), m.Type)
		}
		if _, err := t.WriteTo(w); err != nil {
			return err
		}
		var tags Table
		for _, tag := range x.Tags {
			what := tag.Before
			switch tag.State {
			case "created":
				what = x.Digest
			case "moved":
				what += " -> " + x.Digest
			case "kept":
				what += ", " + later(tag)
			}
			tags.Row("tag", tag.Name, tag.State, what)
		}
		if _, err := tags.WriteTo(w); err != nil {
			return err
		}
	}
	return nil
}

func later(tag pipelines.PublishedTag) string {
	if tag.Behind == "" {
		return ""
	}
	return tag.Behind + " is later"
}
