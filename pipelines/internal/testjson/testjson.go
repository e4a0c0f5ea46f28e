// Package testjson reads what `go test -json` prints: the events of cmd/test2json, of Go 1.20 and newer.
package testjson

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// The results of tests and packages.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip"
)

// Report is what one `go test` said.
type Report struct {
	// Packages are sorted by path.
	Packages []Package
	// Stray is output that was no event.
	Stray []byte
}

// Package is what the tests of one package said.
type Package struct {
	Path   string `json:"path"`
	Result string `json:"result"`
	// Seconds is the time that its tests took.
	Seconds float64 `json:"seconds"`
	// Cached tells that go test knew the result from an earlier run.
	Cached bool   `json:"cached,omitempty"`
	Tests  []Test `json:"tests,omitempty"`
	// Output is what belongs to no test, of a failed package only: build errors, panics.
	Output string `json:"output,omitempty"`
}

// Test is what one test said.
type Test struct {
	Name    string  `json:"name"`
	Result  string  `json:"result"`
	Seconds float64 `json:"seconds"`
	// Output is that of a test that failed, for the first time if it ran more than once, or the reason of one
	// that was skipped.
	Output string `json:"output,omitempty"`
	// Runs and FailedRuns count how often it passed or failed, and how often it failed, with -count only. Failed is one
	// that failed once.
	Runs       int `json:"runs,omitempty"`
	FailedRuns int `json:"failed_runs,omitempty"`
}

// Flaky tells whether the test both passed and failed.
func (t Test) Flaky() bool { return t.FailedRuns > 0 && t.FailedRuns < t.Runs }

// SaysWhy tells whether a failed test says itself why it failed. One that does not has failed because its
// subtests did. A panic in a subtest is told by its parent.
func (p Package) SaysWhy(t Test) bool {
	if !slices.ContainsFunc(p.Tests, func(sub Test) bool { return sub.Result == Fail && strings.HasPrefix(sub.Name, t.Name+"/") }) {
		return true
	}
	for line := range strings.Lines(t.Output) {
		if !strings.HasPrefix(strings.TrimSpace(line), "--- FAIL: ") {
			return true
		}
	}
	return false
}

// event is one line, as described by `go doc test2json`.
type event struct {
	Action      string
	Package     string
	ImportPath  string // of build events, since Go 1.24
	Test        string
	Elapsed     float64
	Output      string
	FailedBuild string
}

// maxOutput bounds what is kept of the output of one test or package, in bytes. The end says why it failed.
const maxOutput = 64 << 10

// maxLine bounds one line in bytes; what is longer is no event of test2json, which cuts lines itself.
const maxLine = 1 << 20

type unit struct {
	result  string
	seconds float64
	output  []byte
	// Of a test, which may run more than once: whether it runs, whether it waits for others, how often it ended
	// and failed, and what it printed when it failed first, once it runs again.
	running, waiting bool
	runs, failedRuns int
	failure          []byte
}

func (u *unit) print(s string) {
	u.output = append(u.output, s...)
	if len(u.output) > 2*maxOutput {
		u.output = append([]byte("[earlier output cut]\n"), u.output[len(u.output)-maxOutput:]...)
	}
}

type pkg struct {
	unit
	tests       map[string]*unit
	order       []string
	cached      bool
	failedBuild string
}

// notBuilt matches what Go before 1.24 prints in place of events for a package that cannot be built.
var notBuilt = regexp.MustCompile(`^FAIL\t(\S+) \[(?:build|setup) failed\]$`)

// Reader reads the events of one `go test`, and tells meanwhile how far it is. The zero value is ready for use.
type Reader struct {
	mu       sync.Mutex
	packages map[string]*pkg
	builds   map[string]*unit
	stray    []byte
	started  []string // packages whose tests run, in the order in which they began
	progress Progress
}

// Progress is how far a `go test` is.
type Progress struct {
	// How many tests have ended, and how.
	Passed, Failed, Skipped int
	// Package is the one that has run for the longest time, empty when none does.
	Package string
	// Running are its tests that run, without those that wait for others.
	Running []string
}

// Progress may be called while Read reads.
func (r *Reader) Progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.progress
	if len(r.started) == 0 {
		return now
	}
	now.Package = r.started[0]
	p := r.packages[now.Package]
	parents := map[string]bool{}
	for _, name := range p.order {
		if u := p.tests[name]; u.running && !u.waiting {
			now.Running = append(now.Running, name)
			for i := range name {
				if name[i] == '/' {
					parents[name[:i]] = true
				}
			}
		}
	}
	now.Running = slices.DeleteFunc(now.Running, func(name string) bool { return parents[name] })
	return now
}

// Read reads events until from ends. A Reader reads once.
func (r *Reader) Read(from io.Reader) Report {
	r.packages, r.builds = map[string]*pkg{}, map[string]*unit{}
	lines := bufio.NewReaderSize(from, 64<<10)
	for {
		line, err := readLine(lines)
		if len(line) > 0 {
			r.line(line)
		}
		if err != nil {
			return r.report()
		}
	}
}

func (r *Reader) line(line []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var e event
	if json.Unmarshal(line, &e) != nil || e.Action == "" {
		if m := notBuilt.FindSubmatch(line); m != nil {
			p := r.pkg(strings.ToValidUTF8(string(m[1]), "\uFFFD"))
			p.result = Fail
			p.print(string(line) + "\n")
		} else if len(r.stray) < maxOutput {
			r.stray = append(append(r.stray, line...), '\n')
		}
		return
	}
	if e.Package == "" {
		if e.Action == "build-output" {
			if r.builds[e.ImportPath] == nil {
				r.builds[e.ImportPath] = &unit{}
			}
			r.builds[e.ImportPath].print(e.Output)
		}
		return
	}
	r.pkg(e.Package).add(e)
	ended := e.Action == Pass || e.Action == Fail || e.Action == Skip
	switch {
	case e.Test != "" && ended:
		switch e.Action {
		case Pass:
			r.progress.Passed++
		case Fail:
			r.progress.Failed++
		case Skip:
			r.progress.Skipped++
		}
	case e.Test == "" && e.Action == "start":
		r.started = append(r.started, e.Package)
	case e.Test == "" && ended:
		r.started = slices.DeleteFunc(r.started, func(path string) bool { return path == e.Package })
	}
}

func (r *Reader) pkg(path string) *pkg {
	p := r.packages[path]
	if p == nil {
		p = &pkg{tests: map[string]*unit{}}
		r.packages[path] = p
	}
	return p
}

func (r *Reader) report() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	report := Report{Stray: r.stray}
	for path, p := range r.packages {
		if b := r.builds[p.failedBuild]; b != nil {
			p.output = append(b.output, p.output...)
		}
		report.Packages = append(report.Packages, p.finish(path))
	}
	slices.SortFunc(report.Packages, func(a, b Package) int { return cmp.Compare(a.Path, b.Path) })
	return report
}

// readLine reads one line without its end, dropping what is beyond maxLine.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line) < maxLine {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimRight(line, "\r\n"), err
		}
	}
}

func (p *pkg) add(e event) {
	u := &p.unit
	if e.Test != "" {
		if u = p.tests[e.Test]; u == nil {
			u = &unit{}
			p.tests[e.Test] = u
			p.order = append(p.order, e.Test)
		}
	}
	switch e.Action {
	case "run":
		if u.failedRuns > 0 && u.failure == nil {
			u.failure = u.output
		}
		u.running, u.waiting, u.output = true, false, nil
	case "pause", "cont":
		u.waiting = e.Action == "pause"
	case Pass, Fail, Skip:
		u.running = false
		if e.Action != Skip {
			u.runs++
		}
		u.seconds = max(u.seconds, e.Elapsed)
		if u.result != Fail { // one that failed once stays so
			u.result = e.Action
		}
		if e.Action == Fail {
			u.failedRuns++
		}
		if e.Test == "" {
			p.failedBuild = e.FailedBuild
		}
	case "output":
		if e.Test == "" && strings.HasPrefix(e.Output, "ok  \t"+e.Package+"\t(cached)") {
			p.cached = true
		}
		u.print(e.Output)
	}
}

func (p *pkg) finish(path string) Package {
	result := Package{Path: path, Result: p.result, Seconds: p.seconds, Cached: p.cached}
	if result.Result == "" {
		result.Result = Fail // go test itself was killed
	}
	for _, name := range p.order {
		u := p.tests[name]
		t := Test{Name: name, Result: u.result, Seconds: u.seconds}
		if result.Result == Pass && t.Result == "" {
			continue // a benchmark or an example without an end of its own
		}
		unfinished := u.running && result.Result == Fail
		if unfinished {
			u.runs, u.failedRuns = u.runs+1, u.failedRuns+1
			if t.Result == Pass || t.Result == Skip {
				t.Result = "" // it passed before, but did not end now
			}
		}
		if u.runs > 1 {
			t.Runs, t.FailedRuns = u.runs, u.failedRuns
		}
		switch {
		case t.Result == Fail && u.failure != nil:
			t.Output = clean(u.failure)
		case t.Result != Pass:
			t.Output = clean(u.output)
		}
		if t.Result == "" { // a panic, os.Exit, a timeout
			t.Result = Fail
			subtest := func(n string) bool { return strings.HasPrefix(n, name+"/") && p.tests[n].running }
			if t.Output == "" && !slices.ContainsFunc(p.order, subtest) {
				t.Output = "It had not ended when the tests of its package did."
			}
		}
		result.Tests = append(result.Tests, t)
	}
	if result.Result == Fail {
		result.Output = clean(p.output)
	}
	return result
}

// clean drops the lines that only say what the result says anyway.
func clean(output []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(output)) {
		if strings.HasPrefix(line, "=== ") || strings.HasPrefix(strings.TrimSpace(line), "--- SKIP") {
			continue
		}
		b.WriteString(line)
	}
	return strings.ToValidUTF8(strings.TrimRight(b.String(), "\n"), "\uFFFD")
}

// AddBuildErrors gives the build errors on standard error, where Go before 1.24 prints them, to the
// packages that they kept from being tested.
func (r *Report) AddBuildErrors(stderr []byte) {
	var paths []string // in the order in which they come
	sections := map[string]string{}
	path := ""
	for line := range strings.Lines(string(stderr)) {
		if header, ok := strings.CutPrefix(line, "# "); ok {
			// "# example.com/a_test [example.com/a.test]"
			path, _, _ = strings.Cut(strings.TrimSpace(header), " ")
			paths = append(paths, path)
			continue
		}
		if path != "" {
			sections[path] += line
		}
	}
	own := func(p Package) string {
		text := ""
		for _, suffix := range []string{"", "_test", ".test"} {
			text += sections[p.Path+suffix]
		}
		return text
	}
	// What lies in no tested package lies in one that those import.
	imported := ""
	for _, path := range slices.Compact(paths) {
		if !slices.ContainsFunc(r.Packages, func(p Package) bool { return path == p.Path || path == p.Path+"_test" || path == p.Path+".test" }) {
			imported += sections[path]
		}
	}
	for i, p := range r.Packages {
		if p.Result != Fail || len(p.Tests) > 0 || len(paths) == 0 || !notBuilt.MatchString(p.Output) {
			continue
		}
		text := cmp.Or(own(p), imported, "A package that it imports cannot be built.\n")
		r.Packages[i].Output = strings.ToValidUTF8(strings.TrimSpace(text+p.Output), "\uFFFD")
	}
}
