package binary

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
)

// Cause is a guess at why two builds of one source differ.
type Cause string

// All causes that FirstDifference can tell.
const (
	CausePath    Cause = "build path"
	CauseBuildID Cause = "build ID"
	CauseTime    Cause = "embedded time"
	CauseUnknown Cause = "unknown"
)

// Place is where two files begin to differ, and what the likely cause is.
type Place struct {
	// Offset is that of the first byte that differs, or the length of the shorter file.
	Offset int64 `json:"offset"`
	// Section has this byte in the first file: a section or one of "file header", "program headers" and
	// "section headers". It is empty when none has.
	Section string `json:"section,omitempty"`
	// Cause is a guess. A build ID is the cause only where nothing else differs: it is a digest of what
	// the program was made from, so it usually differs first and explains nothing.
	Cause Cause `json:"cause"`
	// CauseSection is where the cause was seen, and A and B are the two texts there. They are set for
	// a path and a time.
	CauseSection string `json:"causeSection,omitempty"`
	A            string `json:"a,omitempty"`
	B            string `json:"b,omitempty"`
}

// String says where the files differ and why, in a few words.
func (p *Place) String() string {
	s := fmt.Sprintf("first difference at byte %d", p.Offset)
	if p.Section != "" {
		s += " in " + p.Section
	}
	if p.Cause == CauseUnknown {
		return s
	}
	s += ", likely cause: " + string(p.Cause)
	if p.A != "" {
		s += fmt.Sprintf(" (%s in one, %s in the other, in %s)", p.A, p.B, p.CauseSection)
	}
	return s
}

// FirstDifference finds where two builds of a program part, and looks for a cause. It returns nil for
// equal files. Files that are not ELF, PE or Mach-O, or malformed, count as files without sections.
//
// The cause is searched section by section, as one text that is longer moves all that follows. Texts that
// are compressed, as debug information often is, or pieced together while the program runs are not seen.
// Errors are those of a and b.
func FirstDifference(a io.ReaderAt, sizeA int64, b io.ReaderAt, sizeB int64) (*Place, error) {
	fa, err := newFile(a, sizeA)
	if err != nil {
		return nil, err
	}
	fb, err := newFile(b, sizeB)
	if err != nil {
		return nil, err
	}
	d := &differ{fa, fb, make([]byte, copyBuffer), make([]byte, copyBuffer)}
	first, differs, err := d.first(pair{a: span{0, fa.size}, b: span{0, fb.size}}, 0)
	if err != nil || !differs {
		return nil, err
	}
	p := &Place{Offset: int64(first), Cause: CauseUnknown}
	ma, err := mapFile(fa)
	if err != nil {
		return nil, err
	}
	mb, err := mapFile(fb)
	if err != nil {
		return nil, err
	}
	for _, r := range ma.regions {
		if r.start <= first && first < r.end {
			p.Section = r.name
			break
		}
	}
	return p, p.explain(d, ma, mb)
}

// region is a named range of a file.
type region struct {
	name string
	span
}

// fileMap tells what lies where in a file.
type fileMap struct {
	regions []region // in the order of the file
	// ids are where build IDs and other digests of the program are.
	ids []span
}

// mapFile returns an empty map for files that it does not understand.
func mapFile(f *file) (fileMap, error) {
	m, err := mapSections(f)
	if errors.Is(err, ErrFormat) || errors.Is(err, ErrMalformed) {
		return fileMap{}, nil
	}
	return m, err
}

func mapSections(f *file) (m fileMap, err error) {
	magic, err := f.bytes(0, min(4, f.size), "the file")
	if err != nil {
		return m, err
	}
	add := func(name string, s span) {
		if s.len() > 0 {
			m.regions = append(m.regions, region{name, s})
		}
	}
	switch {
	case isELF(magic):
		e, err := parseELF(f)
		if err != nil {
			return m, err
		}
		add("file header", span{0, e.headerSize})
		add("program headers", e.programs)
		for _, s := range e.sections {
			add(s.name, s.content())
		}
		add("section headers", e.table)
		if m.ids, err = e.readNotes(&Content{}); err != nil {
			return m, err
		}
	case isPE(magic):
		e, err := parsePE(f)
		if err != nil {
			return m, err
		}
		add("file header", e.headers)
		for _, s := range e.sections {
			add(s.name, s.content)
		}
		_, id, err := e.embeddedBuildID(span{0, f.size})
		if err != nil {
			return m, err
		}
		m.ids = append(m.ids, id)
	case isMachO(magic):
		e, err := parseMachO(f)
		if err != nil {
			return m, err
		}
		add("file header", e.headers)
		for _, s := range e.sections {
			add(s.name, s.content)
		}
		for _, s := range e.segments {
			if s.name == "__LINKEDIT" {
				add(s.name, s.content)
			}
		}
		_, id, err := e.buildID()
		if err != nil {
			return m, err
		}
		m.ids = append(e.ids, id)
	default:
		return m, ErrFormat
	}
	m.ids = merge(m.ids)
	slices.SortStableFunc(m.regions, func(a, b region) int { return cmp.Compare(a.start, b.start) })
	// Ranges over one another, which no linker writes, would only be compared again and again.
	var end uint64
	m.regions = slices.DeleteFunc(m.regions, func(r region) bool {
		if r.start < end {
			return true
		}
		end = r.end
		return false
	})
	return m, nil
}

// id returns the build ID to which the byte at off belongs.
func (m fileMap) id(off uint64) (span, bool) {
	for _, s := range m.ids {
		if s.start <= off && off < s.end {
			return s, true
		}
	}
	return span{}, false
}

// pair are two ranges that ought to be equal.
type pair struct {
	name string
	a, b span
}

const (
	// maxPlaces is how many differences of one section are looked at.
	maxPlaces = 256
	// around is how much text before and after a difference is looked at, in bytes.
	around = 256
)

// explain looks for the cause.
func (p *Place) explain(d *differ, ma, mb fileMap) error {
	// onlyIDs means that everything else is equal, and at the same place.
	onlyIDs := d.a.size == d.b.size
	rest := slices.Clone(mb.regions)
	var inA []span
	for _, r := range ma.regions {
		inA = append(inA, r.span)
		i := slices.IndexFunc(rest, func(s region) bool { return s.name == r.name })
		if i < 0 {
			onlyIDs = false
			continue
		}
		pair := pair{r.name, r.span, rest[i].span}
		rest = slices.Delete(rest, i, i+1)
		onlyIDs = onlyIDs && pair.a == pair.b
		places := 0
		for at := uint64(0); places < maxPlaces; places++ {
			off, differs, err := d.first(pair, at)
			if err != nil {
				return err
			}
			if !differs || off >= min(pair.a.len(), pair.b.len()) {
				break
			}
			if id, ok := ma.id(pair.a.start + off); ok {
				at = id.end - pair.a.start
				continue
			}
			onlyIDs = false
			found, err := p.look(d, pair, off)
			if found || err != nil {
				return err
			}
			// What is near has been looked at.
			at = off + around
		}
		onlyIDs = onlyIDs && places < maxPlaces
	}
	if !onlyIDs {
		return nil
	}
	// What no section has must be equal as well, before the build ID can be called the only difference.
	for _, s := range subtract([]span{{0, d.a.size}}, merge(inA)) {
		if _, differs, err := d.first(pair{a: s, b: s}, 0); differs || err != nil {
			return err
		}
	}
	p.Cause = CauseBuildID
	return nil
}

var (
	// A path of at least two elements that does not continue a word: "github.com/a/b" is none.
	absolutePath = regexp.MustCompile(`(?:[A-Za-z]:)?(?:[/\\][\w.@+~ -]+){2,}`)
	wordBefore   = regexp.MustCompile(`[\w.@+~-]$`)
	clockTime    = regexp.MustCompile(`\d{4}-\d\d-\d\d[T _]\d\d[:.]?\d\d(?:[:.]?\d\d)?|` + // ISO 8601
		`(?:[A-Z][a-z]{2},? )?(?:[A-Z][a-z]{2} [ \d]\d|\d\d [A-Z][a-z]{2} \d{4}) \d\d:\d\d:\d\d|` + // date, RFC 1123
		`\b[12]\d{9}\b`) // seconds since 1970
)

// look looks at the texts around the byte of pair that differs, off from the start.
func (p *Place) look(d *differ, pair pair, off uint64) (bool, error) {
	start := off - min(off, around)
	ta, err := d.a.bytes(pair.a.start+start, min(off+around, pair.a.len())-start, pair.name)
	if err != nil {
		return false, err
	}
	tb, err := d.b.bytes(pair.b.start+start, min(off+around, pair.b.len())-start, pair.name)
	if err != nil {
		return false, err
	}
	at := int(off - start)
	for _, c := range []struct {
		cause   Cause
		pattern *regexp.Regexp
	}{{CauseTime, clockTime}, {CausePath, absolutePath}} {
		// Both files must have such a text there, else it is likely to be a coincidence.
		a, okA := textAt(ta, at, c.pattern)
		b, okB := textAt(tb, at, c.pattern)
		if okA && okB {
			p.Cause, p.CauseSection, p.A, p.B = c.cause, pair.name, a, b
			return true, nil
		}
	}
	return false, nil
}

// textAt returns the text that matches pattern and has the byte at, or ends right before it.
func textAt(b []byte, at int, pattern *regexp.Regexp) (string, bool) {
	for _, m := range pattern.FindAllIndex(b, -1) {
		if m[0] <= at && at <= m[1] && !(pattern == absolutePath && wordBefore.Match(b[:m[0]])) {
			return string(b[m[0]:m[1]]), true
		}
	}
	return "", false
}

// differ compares two files.
type differ struct {
	a, b       *file
	bufA, bufB []byte
}

// first returns the first place at or after from where two ranges differ, counted from their start.
// The end of the shorter is such a place.
func (d *differ) first(p pair, from uint64) (off uint64, differs bool, err error) {
	n := min(p.a.len(), p.b.len())
	for off = from; off < n; {
		a, b := d.bufA[:min(copyBuffer, n-off)], d.bufB[:min(copyBuffer, n-off)]
		if err := d.a.fill(a, p.a.start+off); err != nil {
			return 0, false, err
		}
		if err := d.b.fill(b, p.b.start+off); err != nil {
			return 0, false, err
		}
		if !bytes.Equal(a, b) {
			for i := range a {
				if a[i] != b[i] {
					return off + uint64(i), true, nil
				}
			}
		}
		off += uint64(len(a))
	}
	return n, p.a.len() != p.b.len(), nil
}
