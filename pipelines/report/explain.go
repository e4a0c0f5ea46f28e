package report

import (
	"cmp"
	"fmt"
	"io"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
)

// Explain writes how two runs differ, and why.
func Explain(w io.Writer, e *pipelines.Explanation) error {
	p := &printer{w: w}
	var t Table
	changes(&t, "input", e.Inputs)
	changes(&t, "verdict", e.Verdicts)
	var defects []string
	for _, o := range e.Outputs {
		t.Row("output", o.Name, short(o.A), short(o.B))
		if o.Defect {
			defects = append(defects, o.Name)
		}
	}
	p.table(&t)
	if len(e.Inputs) > 0 {
		p.printf("\nfirst input that differs: %s\n", Clean(e.Inputs[0].Name))
	}
	for _, o := range e.Outputs {
		p.printf("  %s\n", Clean(strings.Join(o.Chain, " -> ")))
	}
	for _, d := range defects {
		p.printf("\nDEFECT: %s changed, and nothing that may change it did. The same inputs must give the same bytes.\n", Clean(d))
	}
	for _, n := range e.Notes {
		p.printf("note: %s\n", n)
	}
	p.printf("\n%s, %s, %s\n", differ(len(e.Inputs), "input"), differ(len(e.Outputs), "output"), fmt.Sprintf("%d the same", e.Same))
	return p.err
}

func (p *printer) table(t *Table) {
	if _, err := t.WriteTo(p.w); p.err == nil {
		p.err = err
	}
}

// changes adds a row for each change.
func changes(t *Table, kind string, all []pipelines.Change) {
	for _, c := range all {
		t.Row(kind, c.Name, short(c.A), short(c.B))
	}
}

// maxShown is how much of a value is shown.
const maxShown = 60

// short is a value for a table; all of it is in JSON.
func short(s string) string {
	if digest, ok := strings.CutPrefix(s, "sha256:"); ok && len(digest) == 64 {
		return "sha256:" + digest[:12]
	}
	if len(s) > maxShown {
		return strings.ToValidUTF8(s[:maxShown], "") + "..."
	}
	return cmp.Or(s, "none")
}

func differ(n int, what string) string {
	if n == 1 {
		return "1 " + what + " differs"
	}
	return fmt.Sprintf("%d %ss differ", n, what)
}

// Reproduced writes what a reproduction came to; the last line is the outcome.
func Reproduced(w io.Writer, r *pipelines.Reproduced) error {
	p := &printer{w: w}
	for _, list := range []struct {
		title string
		names []string
	}{{"recorded, and here too:", r.Same}, {"recorded, and not here:", r.Missing}, {"here, and not recorded:", r.Other}} {
		for i, name := range list.names {
			if i == 0 {
				p.printf("\n%s\n", list.title)
			}
			if i == maxFailures {
				p.printf("  and %d more\n", len(list.names)-i)
				break
			}
			p.printf("  %s\n", Clean(name))
		}
	}
	if len(r.Differs) > 0 {
		p.printf("\nwhat differs from the recorded run:\n")
		var t Table
		for _, c := range r.Differs {
			t.Row("", c.Name, short(c.A), "->", short(c.B))
		}
		p.table(&t)
	}
	p.printf("\nreproduce: %s (%d of %d)\n", r.Outcome, len(r.Same), r.Recorded)
	return p.err
}
