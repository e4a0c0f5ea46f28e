package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/ci/internal/view"
	"github.com/slipway-ci/slipway/pipelines"
)

// printer prints what a run came to.
type printer struct {
	w       io.Writer
	in      *input
	p       *pipelines.Pipeline
	command string
	err     error
}

func (o *printer) printf(format string, a ...any) {
	if o.err == nil {
		_, o.err = fmt.Fprintf(o.w, format, a...)
	}
}

func (o *printer) table(t *view.Table) {
	if o.err == nil {
		_, o.err = t.WriteTo(o.w)
	}
}

// plan prints what would be done.
func (o *printer) plan(wroteLock bool) error {
	plan := o.p.Plan
	var t view.Table
	for _, m := range plan.Modules {
		t.Row("module", m.Path, "go "+m.Go, m.Dir)
	}
	for _, r := range plan.Releases {
		builds := ""
		if r.Exact == plan.BuildRelease {
			builds = "builds"
		}
		t.Row("release", r.Exact, r.Requested, builds)
	}
	for _, x := range plan.Excluded {
		t.Row("excluded", cmp.Or(x.Exact, x.Requested), x.Requested, x.Reason)
	}
	for _, c := range plan.Commands {
		t.Row("command", c.Name, c.Package)
	}
	for _, platform := range plan.Platforms {
		t.Row("platform", platform.String())
	}
	t.Row("source", plan.Source.Digest, commit(plan.Source))
	o.table(&t)
	for _, n := range plan.Notes {
		o.printf("note: %s\n", n)
	}
	o.lock(wroteLock)
	return o.err
}

func commit(s pipelines.SourceID) string {
	if s.Commit == "" {
		return ""
	}
	if s.Dirty {
		return "commit " + s.Commit[:12] + ", changed"
	}
	return "commit " + s.Commit[:12]
}

func (o *printer) lock(wrote bool) {
	if wrote {
		o.printf("%s written: commit it, so that every machine uses the same\n", pipelines.LockFile)
	}
}

// summary prints the stages and what came out. What failed comes last, with the command that repeats it.
func (o *printer) summary(wroteLock, kept bool) error {
	r := o.p.Record
	o.printf("\n")
	var stages view.Table
	for _, s := range r.Stages {
		if s.Name != "plan" {
			stages.Row(mark(s.Verdict), s.Name, view.Elapsed(time.Duration(s.Elapsed)), s.Detail)
		}
	}
	o.table(&stages)
	o.printf("\n")
	var t view.Table
	o.artefacts(&t)
	output := o.in.output
	if cwd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(cwd, output); err == nil && len(rel) < len(output) {
			output = rel
		}
	}
	t.Row("written", filepath.ToSlash(output)+"/")
	if kept {
		t.Row("kept", filepath.ToSlash(output)+".passed/", "the last run that passed")
	}
	o.table(&t)
	o.lock(wroteLock)
	if r.Verdict == pipelines.Passed {
		o.printf("\nslipway %s: passed in %s\n", o.command, view.Elapsed(time.Duration(r.Elapsed)))
		return o.err
	}
	for _, s := range r.Stages {
		o.failures(s)
	}
	return o.err
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

// artefacts lists binaries, image and where it went, with sizes and digests.
func (o *printer) artefacts(t *view.Table) {
	r := o.p.Record
	for _, b := range r.Binaries {
		t.Row("binary", b.Name+" "+b.Platform, view.Bytes(b.Size), "sha256:"+b.SHA256)
	}
	if i := r.Image; i != nil && i.Verdict == pipelines.Passed {
		for _, m := range i.Platforms {
			t.Row("image", m.Platform, view.Bytes(m.Size), m.Manifest)
		}
		t.Row("index", "all platforms", "", i.Digest)
	}
	for _, x := range r.Published {
		reference, _, _ := strings.Cut(x.Reference, "@")
		t.Row("pushed", reference, view.Bytes(x.SentBytes), x.Digest)
	}
}

// maxFailures is how many failures of a stage the terminal shows; all are in the reports.
const maxFailures = 20

func (o *printer) failures(s *pipelines.StageRecord) {
	if s.Verdict != pipelines.Failed {
		return
	}
	o.printf("\nFAILED %s\n", s.Name)
	repeats := []string{}
	for i, f := range s.Failures {
		if i == maxFailures {
			o.printf("\n  and %d more: see run.json and junit.xml\n", len(s.Failures)-i)
			break
		}
		what := f.What
		if f.Where != "" {
			what += " (" + f.Where + ")"
		}
		o.printf("\n  %s\n", view.Clean(what))
		for line := range strings.Lines(strings.TrimRight(f.Message, "\n")) {
			o.printf("      %s\n", view.Clean(strings.TrimRight(line, "\n")))
		}
		if f.Next != "" {
			o.printf("    %s\n", f.Next)
		}
		if r := o.repeat(s.Name, f.Repeat); !slices.Contains(repeats, r) {
			repeats = append(repeats, r)
		}
	}
	if len(repeats) > 3 {
		repeats = []string{o.repeat(s.Name, nil)}
	}
	if len(repeats) > 0 {
		o.printf("\n  to repeat:\n")
	}
	for _, r := range repeats {
		o.printf("    %s\n", r)
	}
}

// repeat is the command line that runs a stage again as it ran, narrowed to one failure.
func (o *printer) repeat(stage string, narrow map[string]string) string {
	words := []string{"slipway", stage}
	for _, given := range o.in.given {
		name, _, _ := strings.Cut(given, "=")
		if _, ok := narrow[name]; !ok && name != "json" && (name != "to" || stage == "publish") {
			words = append(words, quote("--"+given))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(narrow)) {
		words = append(words, quote("--"+name+"="+narrow[name]))
	}
	return strings.Join(words, " ")
}

// quote makes a word safe for a POSIX shell.
func quote(s string) string {
	if strings.IndexFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_=./,:@+%", r))
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
