package report

import (
	"fmt"
	"io"

	"github.com/slipway-ci/slipway/pipelines"
)

// Image writes what was found out about a published image.
func Image(w io.Writer, r *pipelines.ImageReport) error {
	var checks, programs Table
	for _, c := range r.Checks {
		checks.Row(string(c.Verdict), c.Check, c.Platform, c.Detail)
	}
	for _, b := range r.Binaries {
		programs.Row("program", b.Path, b.Platform, b.Go, Bytes(b.Size), "sha256:"+b.SHA256)
	}
	if _, err := fmt.Fprintf(w, "%s\n%s\n\n", Clean(r.Reference), r.Digest); err != nil {
		return err
	}
	_, err := checks.WriteTo(w)
	if err == nil && len(r.Binaries) > 0 {
		fmt.Fprintln(w)
		_, err = programs.WriteTo(w)
	}
	return err
}
