package pipelines

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// nameAnalyzers adds to findings of go vet which of its analyzers complains. Only the JSON of `go vet -json` tells,
// which says nothing of source that does not compile: so it is asked a second time, and only where there is
// something to ask about.
func (v *vetting) nameAnalyzers(ctx context.Context, c engine.Command, found []Finding) error {
	c.Args = append([]string{"go", "vet", "-json"}, c.Args[2:]...)
	r, err := v.p.run(ctx, c)
	if err != nil {
		return err
	}
	// Older releases print it on standard error.
	names := parseAnalyzers(append(append(r.Stdout, '\n'), r.Stderr...))
	for i, f := range found {
		found[i].Analyzer = names[diagnostic(f.File, f.Line, f.Column, f.Message)]
	}
	return nil
}

// parseAnalyzers reads what `go vet -json` prints, as described by `go doc golang.org/x/tools/go/analysis/unitchecker`:
// package, analyzer, diagnostics; between them are lines with the names of packages.
func parseAnalyzers(text []byte) map[string]string {
	names := map[string]string{}
	d := json.NewDecoder(bytes.NewReader(comment.ReplaceAll(text, nil)))
	for {
		var packages map[string]map[string]json.RawMessage
		if d.Decode(&packages) != nil {
			return names // the end, or something else; then the findings stay as they are
		}
		for _, analyzers := range packages {
			for name, raw := range analyzers {
				var diagnostics []struct{ Posn, Message string }
				_ = json.Unmarshal(raw, &diagnostics) // an analyzer that could not do its work has no list
				for _, d := range diagnostics {
					if m := posn.FindStringSubmatch(d.Posn); m != nil {
						names[diagnostic(m[1], number(m[2]), number(m[3]), d.Message)] = name
					}
				}
			}
		}
	}
}

var (
	comment = regexp.MustCompile(`(?m)^#.*$`)
	posn    = regexp.MustCompile(`^(.*):(\d+):(\d+)$`)
)

// diagnostic identifies a finding in both of vet's forms, which name directories differently.
func diagnostic(file string, line, column int, message string) string {
	message, _, _ = strings.Cut(message, "\n")
	return fmt.Sprintf("%s:%d:%d: %s", path.Base(filepath.ToSlash(file)), line, column, message)
}
