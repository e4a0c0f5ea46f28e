package binary

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Limits for what is read into memory in order to describe an ELF file.
const (
	maxNotes     = 64 << 10 // bytes of one note section or segment; usual are about 100
	maxDynamic   = 1 << 20  // bytes of the dynamic section
	maxLibraries = 1024
)

func readELF(base *file) (*Content, error) {
	f, err := parseELF(base)
	if err != nil {
		return nil, err
	}
	c := &Content{Format: "elf", Entry: f.entry}
	c.Header = fmt.Sprintf("ident %x, type %d, machine %d, version %d, flags %#x", f.raw[:elf.EI_NIDENT],
		f.typ, f.machine, f.order.Uint32(f.raw[20:]), f.order.Uint32(f.raw[f.either(48, 36):]))
	buf := make([]byte, copyBuffer)
	for i, s := range f.sections {
		if i == 0 || s.typ == elf.SHT_NULL {
			continue
		}
		out := Section{Name: s.name, Address: s.addr, Size: s.size, Loaded: s.loaded()}
		if s.loaded() {
			out.Access = access("rwxt", true, s.flags&elf.SHF_WRITE != 0, s.flags&elf.SHF_EXECINSTR != 0,
				s.flags&elf.SHF_TLS != 0)
			if s.content().len() > 0 {
				if out.SHA256, err = f.sum(s.content(), buf); err != nil {
					return nil, err
				}
			}
		}
		c.Sections = append(c.Sections, out)
	}
	if err := f.readSegments(c, buf); err != nil {
		return nil, err
	}
	if _, err := f.readNotes(c); err != nil {
		return nil, err
	}
	return c, f.readDynamic(c)
}

func (f *elfFile) readSegments(c *Content, buf []byte) error {
	keep := f.image().keep
	owned := []span{{0, f.headerSize}, f.programs}
	for _, s := range f.sections {
		if s.loaded() {
			owned = append(owned, s.content())
		}
	}
	owned = merge(owned)
	for i, p := range f.segments {
		if p.typ == elf.PT_NULL {
			continue
		}
		out := Segment{
			Name:       segmentName(p.typ),
			Access:     segmentAccess(p.flags),
			Address:    p.vaddr,
			FileSize:   p.filesz,
			MemorySize: p.memsz,
			Align:      p.align,
		}
		var err error
		switch {
		case p.typ == elf.PT_LOAD:
			rest := subtract(keptOf(keep, p.content()), owned)
			var end uint64
			if out.SHA256, end, err = f.sumRest(p.off, rest, buf); err != nil {
				return err
			}
			for _, s := range owned {
				if p.content().overlaps(s) {
					end = max(end, min(s.end, p.content().end)-p.off)
				}
			}
			if p.memsz == p.filesz {
				out.MemorySize = end
			}
			out.FileSize = end
		case p.typ == elf.PT_GNU_RELRO:
			out.FileSize = 0
		case p.protects() && !f.loadedElsewhere(p):
			if p.filesz > maxOutside {
				return malformed("segment %d has %d bytes that are not loaded", i, p.filesz)
			}
			if out.SHA256, err = f.sum(p.content(), buf); err != nil {
				return err
			}
		}
		c.Segments = append(c.Segments, out)
	}
	return nil
}

// segmentName names the usual types of program headers. It does not use package elf's names: these grow
// with each Go release, and the hash must not depend on the one that built slipway.
func segmentName(t elf.ProgType) string {
	switch t {
	case elf.PT_LOAD:
		return "LOAD"
	case elf.PT_DYNAMIC:
		return "DYNAMIC"
	case elf.PT_INTERP:
		return "INTERP"
	case elf.PT_NOTE:
		return "NOTE"
	case elf.PT_PHDR:
		return "PHDR"
	case elf.PT_TLS:
		return "TLS"
	case elf.PT_GNU_EH_FRAME:
		return "GNU_EH_FRAME"
	case elf.PT_GNU_STACK:
		return "GNU_STACK"
	case elf.PT_GNU_RELRO:
		return "GNU_RELRO"
	case elf.PT_GNU_PROPERTY:
		return "GNU_PROPERTY"
	}
	return fmt.Sprintf("%#x", uint32(t))
}

func segmentAccess(flags elf.ProgFlag) string {
	s := access("rwx", flags&elf.PF_R != 0, flags&elf.PF_W != 0, flags&elf.PF_X != 0)
	if other := flags &^ (elf.PF_R | elf.PF_W | elf.PF_X); other != 0 {
		s += fmt.Sprintf("+%#x", uint32(other))
	}
	return s
}

func keptOf(keep []span, s span) []span {
	var out []span
	for _, k := range keep {
		if k.overlaps(s) {
			out = append(out, k.intersect(s))
		}
	}
	return out
}

// loadedElsewhere tells whether a PT_LOAD segment has the bytes of p at the address that p says, as is
// usual for INTERP, NOTE, DYNAMIC and so on. They are then covered there.
func (f *elfFile) loadedElsewhere(p elfSegment) bool {
	for _, l := range f.segments {
		if l.typ == elf.PT_LOAD && l.filesz > 0 && l.content().contains(p.content()) {
			return p.vaddr-l.vaddr == p.off-l.off
		}
	}
	return false
}

// restBlock is the unit in which sumRest looks at bytes.
const restBlock = 4096

// sumRest returns a digest of what a loaded segment has in the spans rest, which belong to no section.
// All other bytes count as zeros. The digest is that of all blocks of 4096 bytes, counted from the
// segment's start, that are not zero, each with its number before it (8 bytes, big endian); it is empty
// when there are none. So it makes no difference whether a gap is one or many, or ends early.
//
// It also returns the end of the last byte that is not zero, counted from the segment's start.
func (f *elfFile) sumRest(start uint64, rest []span, buf []byte) (string, uint64, error) {
	h := sha256.New()
	var end uint64
	var any bool
	var number uint64 // of the block
	block := buf[:restBlock]
	clear(block)
	flush := func() {
		n := len(bytes.TrimRight(block, "\x00"))
		if n > 0 {
			h.Write(binary.BigEndian.AppendUint64(nil, number))
			h.Write(block)
			end, any = number*restBlock+uint64(n), true
			clear(block)
		}
	}
	for _, s := range rest {
		for off := s.start; off < s.end; {
			if n := (off - start) / restBlock; n != number {
				flush()
				number = n
			}
			at := (off - start) % restBlock
			n := min(restBlock-at, s.end-off)
			if err := f.fill(block[at:at+n], off); err != nil {
				return "", 0, err
			}
			off += n
		}
	}
	flush()
	if !any {
		return "", 0, nil
	}
	return hex.EncodeToString(h.Sum(nil)), end, nil
}

// notes returns where the file has notes that are loaded.
func (f *elfFile) notes() []span {
	var out []span
	for _, p := range f.segments {
		if p.typ == elf.PT_NOTE && p.filesz > 0 {
			out = append(out, p.content())
		}
	}
	for _, s := range f.sections {
		if s.typ == elf.SHT_NOTE && s.loaded() {
			out = append(out, s.content())
		}
	}
	return merge(out)
}

// readNotes finds the build IDs and returns where they are. Their notes are described in
// cmd/internal/buildid/note.go of the Go source and in the GNU linker's manual (--build-id).
func (f *elfFile) readNotes(c *Content) ([]span, error) {
	const (
		gnuBuildID = 3
		goBuildID  = 4
	)
	var at []span
	for _, s := range f.notes() {
		note, err := f.bytes(s.start, min(s.len(), maxNotes), "a note")
		if err != nil {
			return nil, err
		}
		for rest := note; len(rest) >= 12; {
			h := fields{rest, f.order, f.is64}
			nameSize, size, typ := h.u32(), h.u32(), h.u32()
			// Go and GNU build IDs are aligned to 4 bytes. Notes that are aligned to 8 have sizes
			// with which it makes no difference, or come in segments of their own.
			name, after, ok := cutAligned(h.b, nameSize)
			if !ok {
				break
			}
			start := s.start + uint64(len(note)-len(after))
			id, after, ok := cutAligned(after, size)
			if !ok {
				break
			}
			rest = after
			switch {
			case string(name) == "Go\x00\x00" && typ == goBuildID:
				c.BuildID = cmp.Or(c.BuildID, string(id))
			case string(name) == "GNU\x00" && typ == gnuBuildID:
				c.GNUBuildID = cmp.Or(c.GNUBuildID, hex.EncodeToString(id))
			default:
				continue
			}
			at = append(at, span{start, start + uint64(len(id))})
		}
	}
	return at, nil
}

// cutAligned cuts n bytes off b, and those that follow up to a multiple of 4.
func cutAligned(b []byte, n uint32) (head, rest []byte, ok bool) {
	if uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[min((uint64(n)+3)&^3, uint64(len(b))):], true
}

// readDynamic reads which libraries the program needs.
func (f *elfFile) readDynamic(c *Content) error {
	var names []uint64
	var table uint64
	for _, p := range f.segments {
		switch p.typ {
		case elf.PT_INTERP:
			c.Dynamic = true
		case elf.PT_DYNAMIC:
			b, err := f.bytes(p.off, min(p.filesz, maxDynamic), "the dynamic section")
			if err != nil {
				return err
			}
			for h := (fields{b, f.order, f.is64}); uint64(len(h.b)) >= f.either(16, 8); {
				tag, value := elf.DynTag(h.addr()), h.addr()
				switch tag {
				case elf.DT_NEEDED:
					names = append(names, value)
				case elf.DT_STRTAB:
					table = value
				}
				if tag == elf.DT_NULL {
					break
				}
				if len(names) > maxLibraries {
					return malformed("more than %d libraries", maxLibraries)
				}
			}
		}
	}
	for _, n := range names {
		c.Dynamic = true
		off, limit, ok := f.offset(table + n)
		if !ok {
			return malformed("the name of a library is not loaded")
		}
		name, err := f.text(off, limit, "the name of a library")
		if err != nil {
			return err
		}
		c.Libraries = append(c.Libraries, name)
	}
	return nil
}

// offset returns where in the file the byte at an address is, and the end of the segment that has it.
func (f *elfFile) offset(addr uint64) (off, end uint64, ok bool) {
	for _, p := range f.segments {
		if p.typ == elf.PT_LOAD && addr >= p.vaddr && addr-p.vaddr < p.filesz {
			return p.off + addr - p.vaddr, p.content().end, true
		}
	}
	return 0, 0, false
}
