package binary

import (
	"cmp"
	"fmt"
)

// Kind says in which respect two programs differ.
type Kind string

// All kinds of a Difference.
const (
	KindContent    Kind = "content"     // bytes of a section
	KindAddress    Kind = "address"     // of a section
	KindSize       Kind = "size"        // of a section in memory
	KindAccess     Kind = "access"      // a section's flags: writable, executable, thread-local
	KindMissing    Kind = "missing"     // a section that only the first program has
	KindAdded      Kind = "added"       // a section that only the second program has
	KindEntryPoint Kind = "entry point" // the address of the first instruction
	KindBuildID    Kind = "build ID"    // the Go build ID
	KindSegment    Kind = "segment"     // a segment's header, or bytes of it that no section owns
	KindHeader     Kind = "header"      // the file header: format, machine and the like
)

// Difference is one respect in which two programs differ.
type Difference struct {
	Kind Kind `json:"kind"`
	// Section is the section's name where Kind is about sections, or the segment's number and name
	// ("2 LOAD").
	Section string `json:"section,omitempty"`
	// A and B are what the two programs have, for people. Both are empty for content.
	A string `json:"a,omitempty"`
	B string `json:"b,omitempty"`
}

// String says what differs in a few words, such as "section .rodata differs".
func (d Difference) String() string {
	switch d.Kind {
	case KindContent:
		return fmt.Sprintf("section %s differs", d.Section)
	case KindMissing:
		return fmt.Sprintf("section %s is missing", d.Section)
	case KindAdded:
		return fmt.Sprintf("section %s was added", d.Section)
	case KindAddress, KindSize, KindAccess:
		return fmt.Sprintf("section %s: %s was %s, is %s", d.Section, d.Kind, d.A, d.B)
	case KindSegment:
		if d.A == "" && d.B == "" {
			return fmt.Sprintf("segment %s differs between its sections", d.Section)
		}
		return fmt.Sprintf("segment %s was %s, is %s", d.Section, orNothing(d.A), orNothing(d.B))
	}
	return fmt.Sprintf("%s was %s, is %s", d.Kind, orNothing(d.A), orNothing(d.B))
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// Compare names what differs between what is loaded of two programs. It returns nothing exactly if their
// hashes are equal; sections that are not loaded do not count.
func Compare(a, b *Content) []Difference {
	var out []Difference
	add := func(k Kind, section string, a, b any) {
		if sa, sb := fmt.Sprint(a), fmt.Sprint(b); sa != sb {
			out = append(out, Difference{k, section, sa, sb})
		}
	}
	add(KindHeader, "", a.Format+": "+a.Header, b.Format+": "+b.Header)
	add(KindEntryPoint, "", hexadecimal(a.Entry), hexadecimal(b.Entry))
	add(KindBuildID, "", a.BuildID, b.BuildID)
	for i := range max(len(a.Segments), len(b.Segments)) {
		sa, sb := a.segment(i), b.segment(i)
		name := fmt.Sprintf("%d %s", i, cmp.Or(sa, sb).Name)
		if da, db := sa.describe(), sb.describe(); da != db {
			add(KindSegment, name, da, db)
		} else if sa.SHA256 != sb.SHA256 {
			out = append(out, Difference{Kind: KindSegment, Section: name})
		}
	}

	// Programs can have several sections of one name. They are compared in the order of addresses.
	counterpart := func(of *Content) func(name string) (Section, bool) {
		byName := map[string][]Section{}
		for _, s := range of.loaded() {
			byName[s.Name] = append(byName[s.Name], s)
		}
		return func(name string) (Section, bool) {
			if len(byName[name]) == 0 {
				return Section{}, false
			}
			s := byName[name][0]
			byName[name] = byName[name][1:]
			return s, true
		}
	}
	inA, inB := counterpart(a), counterpart(b)
	for _, s := range a.loaded() {
		t, ok := inB(s.Name)
		if !ok {
			out = append(out, Difference{Kind: KindMissing, Section: s.Name})
			continue
		}
		add(KindAddress, s.Name, hexadecimal(s.Address), hexadecimal(t.Address))
		add(KindSize, s.Name, s.Size, t.Size)
		add(KindAccess, s.Name, s.Access, t.Access)
		if s.SHA256 != t.SHA256 {
			out = append(out, Difference{Kind: KindContent, Section: s.Name})
		}
	}
	for _, s := range b.loaded() {
		if _, ok := inA(s.Name); !ok {
			out = append(out, Difference{Kind: KindAdded, Section: s.Name})
		}
	}
	return out
}

// segment returns segment i, nil if there is none.
func (c *Content) segment(i int) *Segment {
	if i < len(c.Segments) {
		return &c.Segments[i]
	}
	return nil
}

func (s *Segment) describe() string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%+q %s at %#x, %d bytes of the file, %d of memory, aligned to %d",
		s.Name, s.Access, s.Address, s.FileSize, s.MemorySize, s.Align)
}

func hexadecimal(v uint64) string { return fmt.Sprintf("%#x", v) }
