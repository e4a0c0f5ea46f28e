// Package report writes what a run came to for people.
//
// What stages say may come from the programs that they tested. Nothing in this package lets a control
// character of theirs reach a terminal.
package report

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines"
)

// Stages writes one line for every stage: verdict, duration and outcome.
func Stages(w io.Writer, r *pipelines.Record) error {
	var t Table
	for _, s := range r.Stages {
		if s.Name != "plan" {
			t.Row(mark(s.Verdict), s.Name, Elapsed(time.Duration(s.Elapsed)), s.Outcome())
		}
	}
	_, err := t.WriteTo(w)
	return err
}

func mark(v pipelines.Verdict) string {
	switch v {
	case pipelines.Passed:
		return "ok"
	case pipelines.Failed:
		return "FAIL"
	}
	return string(v)
}

// Artefacts adds a row for each binary, image and place of publication, with sizes and digests.
func Artefacts(t *Table, r *pipelines.Record) {
	for _, b := range r.Binaries {
		t.Row("binary", b.Name+" "+b.Platform, Bytes(b.Size), "sha256:"+b.SHA256)
	}
	if i := r.Image; i != nil && i.Verdict == pipelines.Passed {
		for _, m := range i.Platforms {
			t.Row("image", m.Platform, Bytes(m.Size), m.Manifest)
		}
		t.Row("index", "all platforms", "", i.Digest)
	}
	for _, x := range r.Published {
		reference, _, _ := strings.Cut(x.Reference, "@")
		t.Row("pushed", reference, Bytes(x.SentBytes), x.Digest)
		for _, tag := range x.Tags {
			t.Row("tag", tag.Name, tag.State, later(tag))
		}
	}
}

// maxFailures is how many failures of a stage are written; all are in the record.
const maxFailures = 20

// Failures writes what failed, where, and how to repeat it. repeat gives the command line that runs a stage
// again, narrowed to one failure by settings such as go-versions; nil gives none.
func Failures(w io.Writer, r *pipelines.Record, repeat func(stage string, narrow map[string]string) string) error {
	p := &printer{w: w}
	for _, s := range r.Stages {
		if s.Verdict == pipelines.Failed {
			p.stage(s, repeat)
		}
	}
	return p.err
}

// printer remembers the first error of a writer.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, a ...any) {
	_, err := fmt.Fprintf(p.w, format, a...)
	p.err = errors.Join(p.err, err)
}

func (p *printer) stage(s *pipelines.StageRecord, repeat func(string, map[string]string) string) {
	p.printf("\nFAILED %s\n", s.Name)
	repeats := []string{}
	for i, f := range s.Failures {
		if i == maxFailures {
			p.printf("\n  and %d more: see run.json and junit.xml\n", len(s.Failures)-i)
			break
		}
		what := f.What
		if f.Where != "" {
			what += " (" + f.Where + ")"
		}
		p.printf("\n  %s\n", Clean(what))
		for line := range strings.Lines(strings.TrimRight(f.Message, "\n")) {
			p.printf("      %s\n", Clean(strings.TrimRight(line, "\n")))
		}
		if f.Next != "" {
			p.printf("    %s\n", f.Next)
		}
		if repeat == nil {
			continue
		}
		if r := repeat(s.Name, f.Repeat); !slices.Contains(repeats, r) {
			repeats = append(repeats, r)
		}
	}
	if len(repeats) > 3 {
		repeats = []string{repeat(s.Name, nil)}
	}
	if len(repeats) > 0 {
		p.printf("\n  to repeat:\n")
	}
	for _, r := range repeats {
		p.printf("    %s\n", r)
	}
}
