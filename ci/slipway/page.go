package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/report/html"
)

// Names of the pages that are written for people.
const (
	pageName       = "report.html"
	comparisonName = "comparison.html"
)

// writePage adds the page for people to what a run writes. A run is whole without it, so what keeps it from being
// written is a note.
func writePage(in *input, p *pipelines.Pipeline, source fs.FS, stderr io.Writer) {
	p.Conclude()
	previous, err := openPrevious(in)
	// As it will be read again, so that it gives the same page then.
	r := &pipelines.Record{}
	var text []byte
	if err == nil {
		text, err = json.Marshal(p.Record)
	}
	if err == nil {
		err = json.Unmarshal(text, r)
	}
	var page []byte
	if err == nil {
		page, err = runPage(html.Run{Record: r, Files: p.Written()}, source, previous)
	}
	if err == nil {
		err = p.WriteFile(pageName, page)
	}
	if err != nil {
		note := fmt.Sprintf("%s is not written: %v", pageName, err)
		p.Record.Notes = append(p.Record.Notes, note)
		fmt.Fprintln(stderr, "note: "+note)
	}
}

// runPage is the report of a run.
func runPage(r html.Run, source fs.FS, previous *html.Run) (page []byte, err error) {
	// Records hold what tests have printed and files say. None of it may end a run that is otherwise done.
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%v", v)
		}
	}()
	var b bytes.Buffer
	err = html.Write(&b, r, html.Options{Source: source, Repeat: repeatRecorded(r.Record), Previous: previous})
	return b.Bytes(), err
}

// openPrevious reads the earlier run to compare with, nil if none was named.
func openPrevious(in *input) (*html.Run, error) {
	if in.config.Previous == "" {
		return nil, nil
	}
	return openRun(in.config.Previous)
}

// openRun reads a record and finds what lies beside it.
func openRun(name string) (*html.Run, error) {
	r, err := readRecord(name)
	if err != nil {
		return nil, err
	}
	run := &html.Run{Record: r}
	if dir := recordDir(name); dir != "" {
		run.Files = os.DirFS(dir)
	}
	return run, nil
}

// recordDir is where a record lies, empty for standard input.
func recordDir(name string) string {
	if name == "-" {
		return ""
	}
	if layout, ok := strings.CutPrefix(name, "oci:"); ok {
		return filepath.Dir(filepath.Clean(layout))
	}
	return filepath.Dir(name)
}

// repeatRecorded gives command lines that run stages again with the flags that the recorded run had. It does not take
// them from this run's command line, so that a page is the same whenever it is written.
func repeatRecorded(r *pipelines.Record) func(stage string, narrow map[string]string) string {
	in := &input{}
	for _, key := range slices.Sorted(maps.Keys(r.Origins)) {
		if r.Origins[key] != "flag" {
			continue
		}
		flag, value := key, r.Config[key]
		if name, ok := strings.CutPrefix(key, "smoke."); ok {
			smoke, _ := r.Config["smoke"].(map[string]any)
			flag, value = map[string]string{"isolation": "smoke", "repeat": "repeat"}[name], smoke[name]
		}
		if text, ok := flagText(value); ok && flag != "" {
			in.given = append(in.given, flag+"="+text)
		}
	}
	return (&printer{in: in}).repeat
}

// flagText is a value of the configuration as a flag takes it.
func flagText(v any) (string, bool) {
	switch v := v.(type) {
	case string, bool, int, float64:
		return fmt.Sprint(v), true
	case []any:
		var all []string
		for _, x := range v {
			all = append(all, fmt.Sprint(x))
		}
		return strings.Join(all, ","), true
	case map[string]any:
		var all []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			all = append(all, k+"="+fmt.Sprint(v[k]))
		}
		return strings.Join(all, ","), true
	}
	return "", false // such as a switch that was left open
}

// forReport takes from the command line what report needs. The configuration is that of the record.
func (in *input) forReport(f *flagSet, previous string) (*input, error) {
	const usage = "Write slipway report RECORD, or slipway report BEFORE AFTER; a record is the run.json of a run, - for standard input, or oci:DIR for the image of a run."
	in.records = f.Args()
	if n := len(in.records); n < 1 || n > 2 {
		return nil, fault.Usagef(usage, "report: %d arguments", n)
	}
	for _, name := range in.records {
		if name == "" {
			return nil, fault.Usagef("Is a variable empty?", "report: the name of a record is empty")
		}
	}
	if f.Changed("output-file") && f.outputFile == "" {
		return nil, fault.Usagef("Is a variable empty?", "--output-file names nothing")
	}
	in.outputFile, in.config.Previous = f.outputFile, previous
	var err error
	if in.source, err = filepath.Abs(f.source); err != nil {
		return nil, err
	}
	in.output, err = filepath.Abs(cmp.Or(recordDir(in.records[0]), filepath.Join(in.source, "dist")))
	return in, err
}

// writeReport writes the page of a record again, or that of two records.
func writeReport(ctx context.Context, in *input, stdout io.Writer) error {
	var runs []*html.Run
	for _, name := range in.records {
		r, err := openRun(name)
		if err != nil {
			return err
		}
		runs = append(runs, r)
	}
	last := in.records[len(runs)-1]
	name := pageName
	var page []byte
	var err error
	if len(runs) == 2 {
		name = comparisonName
		var b bytes.Buffer
		err = html.WriteComparison(&b, *runs[0], *runs[1])
		page = b.Bytes()
	} else {
		var previous *html.Run
		if previous, err = openPrevious(in); err != nil {
			return err
		}
		source, closeSource := recordedFiles(ctx, in, runs[0].Record)
		defer closeSource()
		page, err = runPage(*runs[0], source, previous)
	}
	if err != nil {
		return err
	}
	file := in.outputFile
	if file == "" && recordDir(last) == "" {
		file = "-"
	}
	if file == "-" {
		_, err = stdout.Write(page)
		return err
	}
	file = cmp.Or(file, filepath.Join(recordDir(last), name))
	if err := os.WriteFile(file, page, 0o644); err != nil {
		return fault.Environmentf(reason(err), "Choose another place with --output-file, or - for standard output.", "%s cannot be written", filepath.ToSlash(file))
	}
	_, err = fmt.Fprintf(stdout, "written  %s\n", filepath.ToSlash(file))
	return err
}

// recordedFiles is the source for excerpts, nil where nothing failed and where the source at hand is another one.
func recordedFiles(ctx context.Context, in *input, r *pipelines.Record) (fs.FS, func()) {
	nothing := func() {}
	x, err := pipelines.Reproduce(r)
	if err != nil {
		return nil, nothing
	}
	e, closeEngine, err := openEngine(ctx, in)
	if err != nil {
		return nil, nothing
	}
	if advice, err := x.Source(e.Source()); err != nil || !advice.Same {
		_ = closeEngine()
		return nil, nothing
	}
	return e.Source().FS, func() { _ = closeEngine() }
}
