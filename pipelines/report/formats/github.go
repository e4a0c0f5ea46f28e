package formats

import (
	"cmp"
	"fmt"
	"html"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// maxAnnotations is how many errors GitHub shows of one step
// (https://docs.github.com/en/actions/reference/limits). All are in the run record.
const maxAnnotations = 10

// Annotations are failures as GitHub's workflow commands, one a line
// (https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands). Stages take turns, so that
// many failures of one do not keep those of another from being shown.
func (r *Run) Annotations() string {
	var lines []string
	for i := 0; i < maxAnnotations; i++ {
		for _, s := range r.Record.Stages {
			if s.Verdict != pipelines.Failed {
				continue
			}
			failures := s.Failures
			if len(failures) == 0 {
				failures = []pipelines.Failure{{What: "failed", Message: s.Detail}}
			}
			if i < len(failures) && len(lines) < maxAnnotations {
				lines = append(lines, r.annotation(s.Name, failures[i]))
			}
		}
	}
	return strings.Join(lines, "")
}

func (r *Run) annotation(stage string, f pipelines.Failure) string {
	where := ""
	if f.File != "" && fs.ValidPath(f.File) {
		where = "file=" + property(path.Join(r.Root, f.File)) + ","
		if f.Line > 0 {
			where += "line=" + strconv.Itoa(f.Line) + ","
		}
		// Findings of vet name their place by file, line and column.
		if column, ok := strings.CutPrefix(f.Where, fmt.Sprintf("%s:%d:", f.File, f.Line)); ok {
			where += "col=" + property(column) + ","
		}
	}
	title := stage + ": " + f.What
	if f.Where != "" && (f.File == "" || !strings.HasPrefix(f.Where, f.File)) {
		title += " (" + f.Where + ")"
	}
	message := strings.TrimRight(clean(f.Message)+"\n"+f.Next, "\n")
	return "::error " + where + "title=" + property(report.Clean(title)) + "::" + data(cmp.Or(message, "failed")) + "\n"
}

// data and property escape as https://github.com/actions/toolkit/blob/main/packages/core/src/command.ts does. What is
// left of control characters would reach whoever looks at the log.
func data(s string) string {
	s = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A").Replace(strings.ToValidUTF8(s, "\uFFFD"))
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

func property(s string) string { return strings.NewReplacer(":", "%3A", ",", "%2C").Replace(data(s)) }

// Bounds of the job summary. GitHub shows none of one that is larger than 1 MiB.
const (
	maxSummary  = 900 << 10
	maxFailures = 20 // of a stage
)

// Summary is the job summary in GitHub's Markdown, of the run of a command. repeat gives the command line that runs
// a stage again, narrowed to one failure.
func (r *Run) Summary(command string, repeat func(stage string, narrow map[string]string) string) string {
	var b strings.Builder
	rec := r.Record
	fmt.Fprintf(&b, "## %s slipway %s: %s in %s\n\n", sign(rec.Verdict), markdown(command), markdown(string(rec.Verdict)), report.Elapsed(time.Duration(rec.Elapsed)))
	b.WriteString("| | stage | time | outcome |\n|---|---|--:|---|\n")
	for _, s := range rec.Stages {
		if s.Name != "plan" {
			fmt.Fprintf(&b, "| %s %s | %s | %s | %s |\n", sign(s.Verdict), markdown(string(s.Verdict)), markdown(s.Name), report.Elapsed(time.Duration(s.Elapsed)), markdown(s.Outcome()))
		}
	}
	if len(rec.Binaries) > 0 || rec.Image != nil && len(rec.Image.Platforms) > 0 || len(rec.Published) > 0 {
		b.WriteString("\n| | | size | digest |\n|---|---|--:|---|\n")
	}
	row := func(cells ...string) {
		for i := range cells {
			cells[i] = markdown(cells[i])
		}
		b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
	}
	for _, x := range rec.Binaries {
		row("binary", x.Name+" "+x.Platform, report.Bytes(x.Size), "sha256:"+x.SHA256)
	}
	if i := rec.Image; i != nil && len(i.Platforms) > 0 {
		for _, m := range i.Platforms {
			row("image", m.Platform, report.Bytes(m.Size), m.Manifest)
		}
		row("index", "all platforms", "", i.Digest)
	}
	for _, x := range rec.Published {
		row("pushed", x.Reference, report.Bytes(x.SentBytes), x.Digest)
	}
	for _, s := range rec.Stages {
		if s.Verdict == pipelines.Failed {
			summarize(&b, s, repeat)
		}
	}
	for i, n := range rec.Notes {
		if i == 0 {
			b.WriteString("\n")
		}
		b.WriteString("* " + markdown(n) + "\n")
	}
	return b.String()
}

// summarize writes the failures of one stage.
func summarize(b *strings.Builder, s *pipelines.StageRecord, repeat func(string, map[string]string) string) {
	for i, f := range s.Failures {
		if i == maxFailures || b.Len() > maxSummary {
			fmt.Fprintf(b, "\n%d more failures of %s are in run.json.\n", len(s.Failures)-i, markdown(s.Name))
			return
		}
		what := s.Name + ": " + f.What
		if f.Where != "" {
			what += " (" + f.Where + ")"
		}
		// GitHub reads Markdown again after an empty line within HTML.
		fmt.Fprintf(b, "\n<details><summary>%s</summary>\n\n", html.EscapeString(report.Clean(what)))
		if f.File != "" && !strings.HasPrefix(f.Where, f.File) {
			fmt.Fprintf(b, "%s\n\n", markdown(fmt.Sprintf("%s:%d", f.File, f.Line)))
		}
		fenced(b, clean(f.Message))
		if f.Next != "" {
			fmt.Fprintf(b, "%s\n\n", markdown(f.Next))
		}
		b.WriteString("To repeat:\n\n")
		fenced(b, repeat(s.Name, f.Repeat))
		b.WriteString("</details>\n")
	}
}

// fenced writes a block of code, between more backquotes than are in it.
func fenced(b *strings.Builder, text string) {
	fence := "```"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	fmt.Fprintf(b, "%stext\n%s\n%s\n\n", fence, text, fence)
}

func sign(v pipelines.Verdict) string {
	switch v {
	case pipelines.Passed:
		return "✅"
	case pipelines.Failed:
		return "❌"
	}
	return "➖"
}

// markdown makes foreign text fit for one cell of a table: every character that Markdown, HTML or GitHub's links and
// mentions give a meaning loses it. CommonMark lets a backslash do that before any ASCII punctuation.
func markdown(s string) string {
	var b strings.Builder
	for _, r := range report.Clean(s) {
		if strings.ContainsRune("\\`*_{}[]()<>#+!|~:@$&^=.-", r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}
