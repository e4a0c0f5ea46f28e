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

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
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

func (o *printer) table(t *report.Table) {
	_, err := t.WriteTo(o.w)
	o.try(err)
}

// try remembers the first error.
func (o *printer) try(err error) {
	if o.err == nil {
		o.err = err
	}
}

// plan prints what would be done, and what the lock file has changed.
func (o *printer) plan(wroteLock bool, changes []pipelines.LockChange) error {
	plan := o.p.Plan
	var t report.Table
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
	if o.command == "lock" {
		var moved report.Table
		for _, c := range changes {
			moved.Row("moved", c.Kind, c.Name, cmp.Or(c.Before, "nothing"), "->", cmp.Or(c.After, "nothing"))
		}
		o.table(&moved)
	}
	o.lock(wroteLock)
	return o.err
}

// file prints a file that the run has written.
func (o *printer) file(name string) error {
	text, err := os.ReadFile(filepath.Join(o.in.output, name))
	if err == nil {
		_, err = o.w.Write(text)
	}
	return err
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
		o.printf("%s written: commit it, so that every machine uses the same releases\n", pipelines.LockFile)
	}
}

// summary prints the stages and what came out. What failed comes last, with the command that repeats it.
func (o *printer) summary(wroteLock, kept bool) error {
	r := o.p.Record
	o.printf("\n")
	o.try(report.Stages(o.w, r))
	o.printf("\n")
	var t report.Table
	report.Artefacts(&t, r)
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
	if r.Deps != nil {
		o.try(report.Deps(o.w, r.Deps))
		o.printf("\n")
	}
	if r.Compare != nil && len(r.Compare.Bases) > 0 {
		o.try(report.Compare(o.w, r.Compare))
		o.printf("\n")
	}
	if r.Sizes != nil {
		o.try(report.Sizes(o.w, r.Sizes))
		o.printf("\n")
	}
	o.try(report.DryRun(o.w, r.DryRun))
	o.lock(wroteLock)
	if slices.ContainsFunc(r.Stages, func(s *pipelines.StageRecord) bool {
		return s.Name == o.command && s.Verdict == pipelines.NotRun
	}) && r.Verdict == pipelines.Passed {
		// Nothing failed, but what was asked for has no answer either.
		o.printf("\nslipway %s: not run, in %s\n", o.command, report.Elapsed(time.Duration(r.Elapsed)))
		return o.err
	}
	if r.Verdict == pipelines.Passed {
		o.printf("\nslipway %s: passed in %s\n", o.command, report.Elapsed(time.Duration(r.Elapsed)))
		return o.err
	}
	o.try(report.Failures(o.w, r, o.repeat))
	o.printf("\n  to reproduce it, here or on another machine:\n    %s\n", o.reproduce(r, output))
	return o.err
}

// reproduce is the command line that reproduces the run.
func (o *printer) reproduce(r *pipelines.Record, output string) string {
	words := []string{"slipway", "reproduce", quote(filepath.ToSlash(filepath.Join(output, "run.json")))}
	for _, given := range o.in.given {
		if strings.HasPrefix(given, "source=") {
			words = append(words, quote("--"+given))
		}
	}
	// What is published, and where to, is said anew.
	if slices.ContainsFunc(r.Stages, func(s *pipelines.StageRecord) bool { return s.Name == "publish" && s.Verdict == pipelines.Failed }) {
		if to, ok := flagText(r.Config["to"]); ok {
			words = append(words, quote("--to="+to))
		}
	}
	return strings.Join(words, " ")
}

// repeat is the command line that runs a stage again as it ran, narrowed to one failure.
func (o *printer) repeat(stage string, narrow map[string]string) string {
	words := []string{"slipway", stage}
	for _, given := range o.in.given {
		name, _, _ := strings.Cut(given, "=")
		unused := slices.ContainsFunc(flagGroups, func(g flagGroup) bool { return slices.Contains(g.flags, name) && slices.Contains(g.unused, stage) })
		if _, ok := narrow[name]; !ok && !unused && name != "json" && name != "timestamps" && (name != "to" && name != "dry-run" || stage == "publish") {
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
