// Package html writes reports of runs as HTML pages of one file: no script, nothing from elsewhere, readable on any
// screen, on paper and by screen readers.
//
// Names and output of tests come from the programs under test. The templates escape all of it, and no control
// character reaches a page.
package html

import (
	"bytes"
	"embed"
	"encoding/json"
	"html/template"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// Run is a run record, and what lies beside it.
type Run struct {
	Record *pipelines.Record
	// Files is the directory of the record. What is not there, or cannot be read, is left out of the page.
	Files fs.FS
}

// Options are what a page can have beside what the run has left.
type Options struct {
	// Source is the source of the run, for excerpts. Nil leaves them out.
	Source fs.FS
	// Repeat gives the command line that runs a stage again, narrowed by settings such as go-versions. Nil leaves
	// such lines out.
	Repeat func(stage string, narrow map[string]string) string
	// Previous is an earlier run to compare with.
	Previous *Run
}

// Write writes the report of a run.
func Write(w io.Writer, r Run, o Options) error { return execute(w, "run", newPage(r, o)) }

// WriteComparison writes what differs between two runs.
func WriteComparison(w io.Writer, before, after Run) error {
	return execute(w, "comparison", newComparison(before, after))
}

//go:embed page.tmpl style.css
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"style": func() template.CSS {
		b, _ := files.ReadFile("style.css") // It is in the program.
		return template.CSS(b)
	},
	"bytes":   report.Bytes,
	"elapsed": func(m pipelines.Milliseconds) string { return report.Elapsed(time.Duration(m)) },
	"when":    when,
	"join":    strings.Join,
}).ParseFS(files, "page.tmpl"))

func execute(w io.Writer, name string, data any) error {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		return err
	}
	// Whatever a template forgot to clean: no markup of ours has such characters.
	_, err := io.WriteString(w, report.CleanRunes(b.String()))
	return err
}

// when is a time of a record for people.
func when(rfc3339 string) string {
	t, err := time.Parse(time.RFC3339, rfc3339)
	if err != nil {
		return rfc3339
	}
	return t.UTC().Format("2006-01-02 15:04 MST")
}

// load reads a file beside the record. It is nil where there is none that can be read.
func load[T any](r Run, name string) *T {
	if r.Files == nil {
		return nil
	}
	b, err := fs.ReadFile(r.Files, name)
	result := new(T)
	if err != nil || json.Unmarshal(b, result) != nil {
		return nil
	}
	return result
}
