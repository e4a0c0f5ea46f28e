package html

import (
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// excerpt is some lines of a source file around one.
type excerpt struct {
	File  string
	Line  int
	Lines []sourceLine
}

type sourceLine struct {
	Number int
	Text   string
	Here   bool
}

// Lines around the one that is meant, and the longest file and line that are looked at.
const (
	before, after = 3, 2
	maxFile       = 4 << 20
	maxLine       = 400
)

// position matches what compilers, tests and panics print.
var position = regexp.MustCompile(`(?m)(?:^|[\s(])([^\s:()]+\.go):(\d+)\b`)

// locate finds where to look for what failed: what the failure says itself, else the first position in its message
// that is a file of the source. Without a source it trusts a position that has no directory, as tests print it.
func locate(f pipelines.Failure, plan *pipelines.Plan, source fs.FS) *excerpt {
	if f.File != "" {
		return cut(source, f.File, f.Line, f.Message)
	}
	var modules []pipelines.Module
	if plan != nil {
		modules = plan.Modules
	}
	dir := packageDir(f.Repeat["packages"], modules)
	for _, m := range position.FindAllStringSubmatch(f.Message, 100) {
		line, err := strconv.Atoi(m[2])
		if err != nil {
			continue
		}
		name := strings.TrimPrefix(m[1], "./")
		candidates := []string{name}
		for _, module := range modules {
			if rest, ok := strings.CutPrefix(name, module.Path+"/"); ok { // as -trimpath has it
				candidates = append(candidates, path.Join(module.Dir, rest))
			}
			candidates = append(candidates, path.Join(module.Dir, name))
		}
		if dir != "" {
			candidates = append([]string{path.Join(dir, name)}, candidates...)
		}
		if source == nil && dir != "" && !strings.Contains(name, "/") {
			return &excerpt{File: candidates[0], Line: line}
		}
		for _, c := range candidates {
			if e := cut(source, c, line, f.Message); e != nil && e.Lines != nil {
				return e
			}
		}
	}
	return nil
}

// packageDir is the directory of a package in the source, empty if that is not known.
func packageDir(pkg string, modules []pipelines.Module) string {
	dir, longest := "", -1
	for _, m := range modules {
		if rest, ok := strings.CutPrefix(pkg+"/", m.Path+"/"); ok && len(m.Path) > longest {
			dir, longest = path.Join(m.Dir, rest), len(m.Path)
		}
	}
	return dir
}

// cut takes the lines around a line out of a file. There are none if the file is not there. It marks that line and
// others of the same file that the message names.
func cut(source fs.FS, name string, line int, message string) *excerpt {
	e := &excerpt{File: name, Line: line}
	if source == nil || line < 1 || !fs.ValidPath(name) {
		return e
	}
	if i, err := fs.Stat(source, name); err != nil || !i.Mode().IsRegular() || i.Size() > maxFile {
		return e
	}
	text, err := fs.ReadFile(source, name)
	if err != nil {
		return e
	}
	marked := map[int]bool{line: true}
	for _, m := range position.FindAllStringSubmatch(message, 100) {
		if n, err := strconv.Atoi(m[2]); err == nil && path.Base(m[1]) == path.Base(name) {
			marked[n] = true
		}
	}
	n := 0
	for s := range strings.Lines(string(text)) {
		if n++; n > line+after {
			break
		}
		if n >= line-before {
			if s = strings.TrimRight(report.CleanText(s), "\n"); len(s) > maxLine {
				s = strings.ToValidUTF8(s[:maxLine], "") + "…"
			}
			e.Lines = append(e.Lines, sourceLine{n, s, marked[n]})
		}
	}
	if n < line {
		e.Lines = nil // It is another file than the one that was tested.
	}
	return e
}
