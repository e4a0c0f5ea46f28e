package report

import (
	"fmt"
	"io"

	"github.com/slipway-ci/slipway/pipelines"
)

// Deps writes the dependency report.
func Deps(w io.Writer, r *pipelines.DepsResult) error {
	for _, b := range r.Binaries {
		if _, err := fmt.Fprintf(w, "\n%s %s: %d modules\n", Clean(b.Name), b.Platform, b.Linked); err != nil {
			return err
		}
		t := Table{Right: []int{1}}
		for _, d := range b.Duplicates {
			for _, v := range d.Versions {
				t.Row("  twice", "", v.Path+" "+v.Version)
			}
		}
		if b.Weight != nil {
			heavy(&t, b.Weight)
			t.Row("  strip", Bytes(int64(b.Weight.DebugBytes)), "(debug information, which strip removes)")
		}
		if _, err := t.WriteTo(w); err != nil {
			return err
		}
	}
	for _, m := range r.Modules {
		if len(m.Unlinked) == 0 {
			continue
		}
		if _, err := fmt.Fprintf(w, "\n%s requires, and no program holds:\n", Clean(m.Path)); err != nil {
			return err
		}
		var t Table
		for _, x := range m.Unlinked {
			t.Row("  "+x.Path, x.Version, x.Meaning)
		}
		if _, err := t.WriteTo(w); err != nil {
			return err
		}
	}
	return nil
}
