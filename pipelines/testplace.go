package pipelines

import (
	"cmp"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

var (
	// printed matches a place in a Go file at the beginning of a line, as panics, race reports and compilers print it.
	printed = regexp.MustCompile(`(?m)^\s*([^\s:]+\.go):(\d+)\b`)
	// logged matches what the testing package puts before what a test says.
	logged = regexp.MustCompile(`(?m)^\s+([^\s:/]+\.go):(\d+):`)
)

// place finds where in the source a failed test says that it failed. Of a panic and of a compiler that is the first
// place that exists. What a test only logs looks like what it fails for, but it fails after it has logged: there the
// last one counts. The testing package prints base names, compilers and panics a path from the module's directory
// on, or one that begins with the module's path.
func (p *Pipeline) place(f *Failure) {
	pkg := f.Repeat["packages"]
	var module Module
	for _, m := range p.Plan.Modules {
		if (pkg == m.Path || strings.HasPrefix(pkg, m.Path+"/")) && len(m.Path) > len(module.Path) {
			module = m
		}
	}
	if module.Path == "" {
		return
	}
	dir := strings.TrimPrefix(strings.TrimPrefix(pkg, module.Path), "/")
	said := logged.FindAllStringSubmatch(f.Message, -1)
	slices.Reverse(said)
	if _, stack, ok := strings.Cut("\n"+f.Message, "\npanic: "); ok || len(said) == 0 {
		said = printed.FindAllStringSubmatch(cmp.Or(stack, f.Message), -1)
	}
	for _, m := range said {
		name := strings.TrimPrefix(m[1], module.Path+"/")
		if !strings.Contains(name, "/") && name == m[1] {
			name = path.Join(dir, name)
		}
		name = path.Join(module.Dir, name)
		if !fs.ValidPath(name) {
			continue
		}
		if i, err := fs.Stat(p.engine.Source().FS, name); err == nil && i.Mode().IsRegular() {
			f.File, f.Line = name, number(m[2])
			return
		}
	}
}
