// Package vulnjson reads what `govulncheck -format=json` prints: a stream of messages, protocol v1.
package vulnjson

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/mod/module"
)

// Level says how near a vulnerability comes to the program.
type Level string

// The levels, the nearest first.
const (
	// Called: the program can call a symbol that is vulnerable.
	Called Level = "called"
	// Imported: a package that is vulnerable is part of the program, which calls nothing vulnerable in it.
	Imported Level = "imported"
	// Required: a module has the vulnerability in a package that is no part of the program.
	Required Level = "required"
)

func (l Level) rank() int { return slices.Index([]Level{Called, Imported, Required}, l) }

// Nearer tells whether l comes nearer to the program than other.
func (l Level) Nearer(other Level) bool { return l.rank() < other.rank() }

// Report is what one run said.
type Report struct {
	// Scanner is its name and version.
	Scanner string
	// Modified is the time of the last change of the database; zero if it did not tell.
	Modified time.Time
	// Vulnerabilities are sorted by ID and module.
	Vulnerabilities []Vulnerability
}

// Vulnerability is one entry of the database and one module that has it.
type Vulnerability struct {
	ID      string   `json:"id"`
	Aliases []string `json:"aliases,omitempty"`
	Summary string   `json:"summary"`
	// Module is the module's path, "stdlib" for the standard library. Found is the version in use, Fixed the
	// one that is without the vulnerability, empty if there is none yet.
	Module string `json:"module"`
	Found  string `json:"found"`
	Fixed  string `json:"fixed,omitempty"`
	Level  Level  `json:"level"`
	// Symbols are the vulnerable symbols that can be called.
	Symbols []string `json:"symbols,omitempty"`
	// Trace is one of the shortest ways from the program to one of them, a call a line.
	Trace []string `json:"trace,omitempty"`
	// File and Line are the place of the last call in the program's own module that this way leads through.
	// File is relative to the module.
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
}

// Bounds of what is kept. Entries come from whoever runs the database.
const (
	maxText    = 400 // runes of a summary or a name
	maxTrace   = 40  // calls
	maxSymbols = 100
	maxAliases = 20
)

type message struct {
	Config  *config
	OSV     *osv
	Finding *finding
}

type config struct {
	Protocol       string `json:"protocol_version"`
	ScannerName    string `json:"scanner_name"`
	ScannerVersion string `json:"scanner_version"`
	// A pointer, as it is left out where the database did not answer.
	Modified *time.Time `json:"db_last_modified"`
}

type osv struct {
	ID      string
	Summary string
	Details string
	Aliases []string
}

type finding struct {
	OSV   string
	Fixed string `json:"fixed_version"`
	Trace []frame
}

// frame is one function on the way. The vulnerable one comes first. Position is where it calls the one
// before it; of the first, where it is declared.
type frame struct {
	Module, Version, Package, Function, Receiver string
	Position                                     *struct {
		Filename string
		Line     int
	}
}

// Parse reads a whole run. What is not whole is an error, for nothing follows from what it does not say.
func Parse(r io.Reader) (*Report, error) {
	d := json.NewDecoder(r)
	var c *config
	entries := map[string]osv{}
	var findings []finding
	for {
		var m message
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("what govulncheck printed is not whole: %w", err)
		}
		switch {
		case m.Config != nil && c != nil:
			return nil, errors.New("govulncheck printed two reports")
		case m.Config != nil:
			c = m.Config
		case m.OSV != nil:
			entries[m.OSV.ID] = osv{Summary: cmp.Or(m.OSV.Summary, m.OSV.Details), Aliases: m.OSV.Aliases}
		case m.Finding != nil:
			if m.Finding.OSV == "" || len(m.Finding.Trace) == 0 || m.Finding.Trace[0].Module == "" {
				return nil, errors.New("govulncheck printed a finding that names no entry or no module")
			}
			findings = append(findings, *m.Finding)
		}
	}
	if c == nil {
		return nil, errors.New("govulncheck printed no report")
	}
	if !strings.HasPrefix(c.Protocol, "v1.") {
		return nil, fmt.Errorf("govulncheck speaks protocol %q, known is v1", text(c.Protocol))
	}
	report := &Report{Scanner: text(strings.TrimSpace(c.ScannerName + " " + c.ScannerVersion))}
	if c.Modified != nil {
		report.Modified = *c.Modified
	}
	report.Vulnerabilities = group(entries, findings)
	return report, nil
}

// group makes one vulnerability of all findings of one entry and module.
func group(entries map[string]osv, findings []finding) []Vulnerability {
	type key struct{ id, module, version string }
	all := map[key]*Vulnerability{}
	for _, f := range findings {
		first := f.Trace[0]
		k := key{f.OSV, first.Module, first.Version}
		v := all[k]
		if v == nil {
			e := entries[f.OSV]
			v = &Vulnerability{ID: text(f.OSV), Summary: text(e.Summary), Module: text(first.Module), Found: text(first.Version), Level: Required}
			for _, a := range e.Aliases[:min(len(e.Aliases), maxAliases)] {
				v.Aliases = append(v.Aliases, text(a))
			}
			slices.Sort(v.Aliases)
			all[k] = v
		}
		v.Fixed = cmp.Or(v.Fixed, text(f.Fixed))
		v.add(f.Trace)
	}
	list := make([]Vulnerability, 0, len(all))
	for _, v := range all {
		slices.Sort(v.Symbols)
		v.Symbols = slices.Compact(v.Symbols)
		v.Symbols = v.Symbols[:min(len(v.Symbols), maxSymbols)]
		list = append(list, *v)
	}
	slices.SortFunc(list, func(a, b Vulnerability) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Module, b.Module), cmp.Compare(a.Found, b.Found))
	})
	return list
}

// add takes over what one finding says.
func (v *Vulnerability) add(trace []frame) {
	level := Required
	switch first := trace[0]; {
	case first.Function != "":
		level = Called
	case first.Package != "":
		level = Imported
	}
	if level.Nearer(v.Level) {
		v.Level = level
	}
	if level != Called {
		return
	}
	v.Symbols = append(v.Symbols, trace[0].name())
	lines, file, line := calls(trace)
	// Of several that are equally short the first in order: runs must say the same.
	if v.Trace == nil || cmp.Or(cmp.Compare(len(lines), len(v.Trace)), slices.Compare(lines, v.Trace)) < 0 {
		v.Trace, v.File, v.Line = lines, file, line
	}
}

// calls are the calls of a trace from the program on, and where the program's module calls out of itself.
func calls(trace []frame) (lines []string, file string, line int) {
	own := trace[len(trace)-1].Module
	inside := true
	for i := len(trace) - 1; i > 0; i-- {
		f, callee := trace[i], trace[i-1]
		s := f.name() + " calls " + callee.name()
		name, n := f.place()
		if name != "" {
			s += " (" + name + ":" + strconv.Itoa(n) + ")"
		}
		lines = append(lines, s)
		if inside = inside && f.Module == own; inside && name != "" {
			file, line = name, n
		}
	}
	if len(trace) == 1 {
		lines = []string{trace[0].name() + " is part of the program"}
	}
	if n := len(lines); n > maxTrace {
		lines = slices.Concat(lines[:maxTrace/2], []string{fmt.Sprintf("[%d calls cut]", n-maxTrace)}, lines[n-maxTrace/2:])
	}
	return lines, file, line
}

// name is the function as Go programs name it, such as http.Server.Serve.
func (f frame) name() string {
	pkg := path.Base(f.Package)
	if prefix, version, ok := module.SplitPathVersion(f.Package); ok && version == "/"+pkg {
		pkg = path.Base(prefix) // a major version is not a name
	}
	if r := strings.TrimLeft(f.Receiver, "*"); r != "" {
		pkg += "." + r
	}
	return text(pkg + "." + f.Function)
}

// place is the file of a frame, relative to its module, and the line. The directories of a file that is not
// relative are those of one machine, and left out.
func (f frame) place() (string, int) {
	if f.Position == nil || f.Position.Filename == "" || f.Position.Line < 1 {
		return "", 0
	}
	name := strings.ReplaceAll(f.Position.Filename, `\`, "/")
	if clean := path.Clean(name); path.IsAbs(name) || strings.HasPrefix(clean, "../") || len(name) > 1 && name[1] == ':' {
		name = path.Base(name)
	} else {
		name = clean
	}
	return text(name), f.Position.Line
}

// text is foreign text on one line, and not endless.
func text(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s[:min(len(s), maxText*utf8.UTFMax)], "\uFFFD")), " ")
	if r := []rune(s); len(r) > maxText {
		s = string(r[:maxText]) + "…"
	}
	return s
}

// Check reads the two files of a database in a directory that every answer depends on: govulncheck takes a
// directory without them, and one whose list of modules ends too early, for a database without entries.
// read returns the content of a file by its name in the database.
func Check(read func(name string) ([]byte, error)) error {
	b, err := read("index/db.json")
	if err != nil {
		return fmt.Errorf("index/db.json: %w", err)
	}
	var db struct{ Modified time.Time }
	if err := json.Unmarshal(b, &db); err != nil {
		return fmt.Errorf("index/db.json: %w", err)
	}
	if db.Modified.IsZero() {
		return errors.New("index/db.json tells no time of change")
	}
	if b, err = read("index/modules.json"); err != nil {
		return fmt.Errorf("index/modules.json: %w", err)
	}
	var modules []struct {
		Path  string
		Vulns []struct{ ID string }
	}
	if err := json.Unmarshal(b, &modules); err != nil {
		return fmt.Errorf("index/modules.json: %w", err)
	}
	if modules == nil {
		return errors.New("index/modules.json holds no list")
	}
	for _, m := range modules {
		if m.Path == "" || slices.ContainsFunc(m.Vulns, func(v struct{ ID string }) bool { return v.ID == "" }) {
			return errors.New("index/modules.json names a module or an entry by nothing")
		}
	}
	return nil
}
