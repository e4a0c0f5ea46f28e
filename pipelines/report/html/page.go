package html

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/internal/deps"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// page is what the report of a run shows, in this order.
type page struct {
	*pipelines.Record
	Name     string
	Result   cell // of the run
	Source   pipelines.SourceID
	Failures []failedStage
	// OnlyIn are the failures of tests that pass under other releases.
	OnlyIn     []failure
	MoreOnlyIn int
	Stages     []stageRow
	Matrix     []matrixRow // by Go release
	Once       []cell      // checks that run under one release only
	Columns    []string    // of Targets
	Targets    []matrixRow // by platform
	Chain      chain
	Timeline   timeline
	Layers     []platformLayers
	Programs   []program
	Tests      *tests
	Vuln       *pipelines.VulnResult
	Changes    *comparison
	Settings   []setting
	Again      string // command that does all of it again
}

// cell is a verdict with a mark, which says the same without colour, and a few words.
type cell struct {
	Verdict pipelines.Verdict
	Mark    string
	Class   string
	Name    string
	Detail  string
}

func newCell(v pipelines.Verdict, detail string) cell {
	c := cell{Verdict: v, Detail: detail, Class: "none", Mark: "–"}
	switch v {
	case pipelines.Passed:
		c.Mark, c.Class = "✓", "passed"
	case pipelines.Failed:
		c.Mark, c.Class = "✗", "failed"
	case pipelines.NotRun:
		c.Mark, c.Class = "○", "notrun"
	case "":
		c.Verdict = "not done"
	}
	return c
}

// Under are the releases of a failure that others do not have.
func (f failure) Under() string { return strings.TrimPrefix(f.Where, "only ") }

type failedStage struct {
	Name     string
	Failures []failure
	More     int
}

type failure struct {
	ID string
	pipelines.Failure
	Output  string
	Long    bool // longer than its place on the page
	Excerpt *excerpt
	Repeat  string
}

type stageRow struct {
	cell
	Elapsed pipelines.Milliseconds
	Reused  string
}

type matrixRow struct {
	Name  string
	Cells []cell
}

type platformLayers struct {
	Platform     string
	Size         int64
	Uncompressed int64
	Grown        string
	Layers       []bar
}

// bar is a row of a picture of sizes.
type bar struct {
	Name, Value, More string
	Parts             []part
}

// part is a piece of a bar, with its place in percent.
type part struct{ Class, Left, Width string }

// parts puts pieces behind each other. Classes have a colour each.
func parts(largest int64, pieces ...int64) []part {
	var all []part
	left := int64(0)
	for i, n := range pieces {
		all = append(all, part{string(rune('a' + i)), share(left, largest), share(n, largest)})
		left += n
	}
	return all
}

type program struct {
	Name, Platform string
	Full, Stripped int64
	Packages       []bar
	Others         int
	OtherBytes     int64
}

type setting struct{ Key, Value string }

// Bounds of a page. All is in run.json and junit.xml.
const (
	maxFailures = 100     // of a stage
	maxLines    = 400     // of a failure's output, from its beginning and its end
	maxOutput   = 1 << 14 // bytes of it, likewise
	maxHeavy    = 12
	maxOnlyIn   = 5
)

func newPage(r Run, o Options) *page {
	record := r.Record
	p := &page{Record: record, Name: "run", Result: newCell(record.Verdict, "")}
	if record.Plan != nil {
		p.Name, p.Source = cmp.Or(record.Plan.Name, p.Name), record.Plan.Source
	}
	p.failures(o)
	p.stages()
	p.matrix()
	p.Chain = newChain(record, load[pipelines.VerifyResult](r, "verification.json"))
	p.Timeline = newTimeline(record)
	p.sizes(r)
	p.Tests = newTests(r)
	p.Vuln = load[pipelines.VulnResult](r, "vuln.json")
	p.settings()
	p.again(o)
	if o.Previous != nil {
		p.Changes = newComparison(*o.Previous, r)
	}
	return p
}

// find is the stage of that name, nil if it did not run.
func find(r *pipelines.Record, name string) *pipelines.StageRecord {
	i := slices.IndexFunc(r.Stages, func(s *pipelines.StageRecord) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return r.Stages[i]
}

func (p *page) failures(o Options) {
	for _, s := range p.Record.Stages {
		if s.Verdict != pipelines.Failed {
			continue
		}
		stage := failedStage{Name: s.Name, More: max(0, len(s.Failures)-maxFailures)}
		for i, f := range s.Failures[:len(s.Failures)-stage.More] {
			x := failure{ID: s.Name + "-" + strconv.Itoa(i+1), Failure: f, Excerpt: locate(f, p.Plan, o.Source)}
			x.Output = shorten(report.CleanText(f.Message))
			x.Long = len(x.Output) > 1000 || strings.Count(x.Output, "\n") >= 15
			if o.Repeat != nil {
				x.Repeat = o.Repeat(s.Name, f.Repeat)
			}
			stage.Failures = append(stage.Failures, x)
			if s.Name == "test" && strings.HasPrefix(f.Where, "only ") {
				if len(p.OnlyIn) < maxOnlyIn {
					p.OnlyIn = append(p.OnlyIn, x)
				} else {
					p.MoreOnlyIn++
				}
			}
		}
		p.Failures = append(p.Failures, stage)
	}
}

// shorten leaves out the middle of a long text.
func shorten(text string) string {
	text = strings.Trim(text, "\n")
	lines := strings.Split(text, "\n")
	if len(lines) <= maxLines && len(text) <= maxOutput {
		return text
	}
	head := bounded(lines[:min(len(lines), maxLines/2)], func(lines []string) (string, []string) { return lines[0], lines[1:] })
	rest := lines[len(head):]
	tail := bounded(rest[max(0, len(rest)-maxLines/2):], func(lines []string) (string, []string) {
		return lines[len(lines)-1], lines[:len(lines)-1]
	})
	slices.Reverse(tail)
	cut := len(rest) - len(tail)
	if len(head)+len(tail) == 0 { // one line that is longer than all that is shown
		return strings.ToValidUTF8(text[:min(len(text), maxOutput)], "") + "…"
	}
	return strings.Join(slices.Concat(head, []string{fmt.Sprintf("[%d lines left out: all are in run.json]", cut)}, tail), "\n")
}

// bounded takes lines as long as they fit into half of what is shown.
func bounded(lines []string, next func([]string) (string, []string)) []string {
	var taken []string
	for n := 0; len(lines) > 0; {
		var line string
		line, lines = next(lines)
		if n += len(line) + 1; n > maxOutput/2 {
			break
		}
		taken = append(taken, line)
	}
	return taken
}

func (p *page) stages() {
	for _, s := range p.Record.Stages {
		row := stageRow{cell: newCell(s.Verdict, s.Detail), Elapsed: s.Elapsed, Reused: s.Reused}
		row.Name = s.Name
		p.Stages = append(p.Stages, row)
	}
}

// task is the cell of the tasks of a stage whose name is accepted: the worst verdict, and the time or the reason.
func (p *page) task(stage string, accept func(name string) bool) cell {
	s := find(p.Record, stage)
	if s == nil {
		return newCell("", "")
	}
	rank := func(v pipelines.Verdict) int {
		return slices.Index([]pipelines.Verdict{pipelines.Passed, pipelines.Skipped, pipelines.NotRun, pipelines.Failed}, v)
	}
	var worst *pipelines.TaskRecord
	elapsed := pipelines.Milliseconds(0)
	for i, t := range s.Tasks {
		if !accept(t.Name) {
			continue
		}
		elapsed += t.Elapsed
		if worst == nil || rank(t.Verdict) > rank(worst.Verdict) {
			worst = &s.Tasks[i]
		}
	}
	if worst == nil {
		return newCell("", "")
	}
	detail := worst.Detail
	if worst.Verdict == pipelines.Passed {
		detail = report.Elapsed(time.Duration(elapsed))
		if stage == "test" {
			detail = worst.Detail + ", " + detail
		}
		if s.Reused != "" {
			detail = "unchanged since " + when(s.Reused)
		}
	}
	return newCell(worst.Verdict, detail)
}

func (p *page) matrix() {
	exactly := func(name string) func(string) bool { return func(s string) bool { return s == name } }
	if p.Plan != nil && (find(p.Record, "vet") != nil || find(p.Record, "test") != nil) {
		for _, r := range p.Plan.Releases {
			p.Matrix = append(p.Matrix, matrixRow{r.Exact, []cell{p.task("vet", exactly("vet "+r.Exact)), p.task("test", exactly("test "+r.Exact))}})
		}
	}
	if s := find(p.Record, "vet"); s != nil {
		for _, t := range s.Tasks {
			if !strings.HasPrefix(t.Name, "vet ") {
				c := newCell(t.Verdict, t.Detail)
				c.Name = t.Name
				p.Once = append(p.Once, c)
			}
		}
	}
	for _, stage := range []string{"vuln", "build", "verify", "image", "smoke"} {
		if find(p.Record, stage) != nil {
			p.Columns = append(p.Columns, stage)
		}
	}
	if len(p.Columns) == 0 {
		return
	}
	for _, platform := range p.Record.Platforms {
		row := matrixRow{Name: platform}
		for _, stage := range p.Columns {
			c := p.task(stage, func(name string) bool { return strings.HasSuffix(name, " "+platform) })
			switch {
			case (stage == "image" || stage == "smoke") && !strings.HasPrefix(platform, "linux/"):
				c = newCell("", "")
				c.Verdict, c.Detail = "none", "images are for Linux"
			case stage == "image":
				c = p.imageCell(platform)
			}
			row.Cells = append(row.Cells, c)
		}
		p.Targets = append(p.Targets, row)
	}
}

// imageCell is a cell of its own as one task makes the images of all platforms.
func (p *page) imageCell(platform string) cell {
	s := find(p.Record, "image")
	if p.Image != nil {
		for _, m := range p.Image.Platforms {
			if m.Platform == platform {
				return newCell(s.Verdict, report.Bytes(m.Size))
			}
		}
	}
	return newCell(s.Verdict, s.Detail)
}

func (p *page) sizes(r Run) {
	grown := map[string]string{}
	if p.Record.Sizes != nil {
		for _, s := range p.Record.Sizes.Platforms {
			if s.Previous >= 0 {
				grown[s.Platform] = change(s.Previous, s.Size)
			}
		}
	}
	if p.Image != nil {
		for _, m := range p.Image.Platforms {
			x := platformLayers{Platform: m.Platform, Size: m.Size, Grown: grown[m.Platform]}
			largest := int64(1)
			for _, l := range m.Layers {
				largest = max(largest, l.Size)
			}
			for _, l := range m.Layers {
				x.Uncompressed += l.Uncompressed
				x.Layers = append(x.Layers, bar{l.Kind, report.Bytes(l.Size), report.Bytes(l.Uncompressed), parts(largest, l.Size)})
			}
			p.Layers = append(p.Layers, x)
		}
	}
	for _, b := range p.shownBinaries() {
		x := program{Name: b.Name, Platform: b.Platform, Full: b.FullSize, Stripped: b.Size}
		if w := p.weight(r, b); w != nil {
			for i, heavy := range w.Packages {
				if i >= maxHeavy {
					x.Others++
					x.OtherBytes += int64(heavy.Bytes)
					continue
				}
				largest := int64(w.Packages[0].Bytes)
				x.Packages = append(x.Packages, bar{heavy.Package, report.Bytes(int64(heavy.Bytes)), "", parts(largest, int64(heavy.TextBytes), int64(heavy.DataBytes))})
			}
		}
		p.Programs = append(p.Programs, x)
	}
}

// shownBinaries are those of one platform: programs are made of the same packages on all of them.
func (p *page) shownBinaries() []pipelines.Binary {
	var shown []pipelines.Binary
	for _, b := range p.Binaries {
		if len(shown) > 0 && b.Platform == p.Host && shown[0].Platform != p.Host {
			shown = nil
		}
		if len(shown) == 0 || shown[0].Platform == b.Platform {
			shown = append(shown, b)
		}
	}
	return shown
}

// weight is what the packages take in a program: as the run has found out, or as its file says.
func (p *page) weight(r Run, b pipelines.Binary) *pipelines.Weight {
	if p.Record.Sizes != nil {
		for _, s := range p.Record.Sizes.Platforms {
			for _, x := range s.Programs {
				if x.Name == b.Name && x.Platform == b.Platform && x.Weight != nil {
					return x.Weight
				}
			}
		}
	}
	if r.Files == nil {
		return nil
	}
	f, err := r.Files.Open(b.Full)
	if err != nil {
		return nil
	}
	defer f.Close()
	i, err := f.Stat()
	at, ok := f.(io.ReaderAt)
	if err != nil || !ok || i.Size() != b.FullSize {
		return nil
	}
	w, err := deps.Weigh(at, i.Size())
	if err != nil {
		return nil
	}
	return w
}

func share(n, largest int64) string {
	if largest <= 0 || n <= 0 {
		return "0%"
	}
	return fmt.Sprintf("%.2f%%", max(0.5, 100*float64(n)/float64(largest))) // What there is can be seen.
}

// change is how a size has changed, in words.
func change(was, is int64) string {
	switch d := is - was; {
	case d > 0:
		return "+" + report.Bytes(d)
	case d < 0:
		return "−" + report.Bytes(-d)
	}
	return "the same"
}

// again says how to do all of it again. A record has no command line: this one runs the same stages.
func (p *page) again(o Options) {
	command := "all"
	for _, name := range []string{"vet", "test", "image"} {
		if n := len(p.Record.Stages); n > 0 && find(p.Record, name) == nil {
			command = p.Record.Stages[n-1].Name
		}
	}
	if command == "plan" {
		command = "all"
	}
	p.Again = "slipway " + command
	if o.Repeat != nil {
		p.Again = o.Repeat(command, nil)
	}
}

// settings are those in force, without what is empty.
func (p *page) settings() {
	for _, key := range slices.Sorted(maps.Keys(p.Config)) {
		if s := plain(p.Config[key]); s != "" {
			p.Settings = append(p.Settings, setting{key, s})
		}
	}
}

// plain shows a setting as one would write it, empty for one that says nothing.
func plain(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case []any:
		var all []string
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return asJSON(v)
			}
			all = append(all, s)
		}
		return strings.Join(all, ", ")
	case map[string]any:
		if len(v) == 0 {
			return ""
		}
	}
	return asJSON(v)
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}
