package binary

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
)

const (
	// maxSections is far beyond what linkers write for programs (about 50). Object files can have more.
	maxSections = 4096
	// maxSegments likewise; usual are about 15.
	maxSegments = 128
	// maxOutside is the limit in bytes of a segment's content (an interpreter's name, notes) that lies in
	// no loaded segment.
	maxOutside = 1 << 20
)

// elfFile is the headers of an ELF file, checked. The layout of ELF is that of the System V ABI,
// chapter 4 and 5, https://gabi.xinuos.com.
type elfFile struct {
	*file
	order byteOrder
	is64  bool
	// raw is the ELF header, 64 or 52 bytes.
	raw        []byte
	typ        elf.Type
	machine    elf.Machine
	entry      uint64
	headerSize uint64
	segments   []elfSegment
	sections   []elfSection // with the null section that comes first
	nameIndex  int          // of the section that holds section names, 0 when there is none
	programs   span         // the program header table
	table      span         // the section header table
}

type elfSegment struct {
	typ   elf.ProgType
	flags elf.ProgFlag
	off   uint64
	vaddr uint64
	// filesz and memsz are sizes in bytes. The kernel fills what memsz has more with zeros.
	filesz, memsz uint64
	align         uint64
}

// content is where the segment lies in the file.
func (p elfSegment) content() span { return span{p.off, p.off + p.filesz} }

type elfSection struct {
	name      string
	typ       elf.SectionType
	flags     elf.SectionFlag
	addr      uint64
	off, size uint64
	link      uint32
	info      uint32
	align     uint64
	entsize   uint64
}

// loaded tells whether the section says of itself that it is in memory when the program runs.
func (s elfSection) loaded() bool { return s.flags&elf.SHF_ALLOC != 0 && s.typ != elf.SHT_NULL }

// content is where the section lies in the file, empty for sections such as .bss.
func (s elfSection) content() span {
	if s.typ == elf.SHT_NOBITS || s.typ == elf.SHT_NULL || s.size == 0 {
		return span{}
	}
	return span{s.off, s.off + s.size}
}

// either returns one of two sizes.
func (f *elfFile) either(size64, size32 uint64) uint64 {
	if f.is64 {
		return size64
	}
	return size32
}

func (f *elfFile) programSize() uint64 { return f.either(56, 32) }
func (f *elfFile) sectionSize() uint64 { return f.either(64, 40) }

func isELF(magic []byte) bool { return len(magic) >= 4 && string(magic[:4]) == elf.ELFMAG }

// parseELF reads and checks the headers of an ELF file, and nothing else.
func parseELF(base *file) (*elfFile, error) {
	f := &elfFile{file: base}
	ident, err := f.bytes(0, elf.EI_NIDENT, "the ELF header")
	if err != nil {
		return nil, err
	}
	switch elf.Class(ident[elf.EI_CLASS]) {
	case elf.ELFCLASS32:
	case elf.ELFCLASS64:
		f.is64 = true
	default:
		return nil, malformed("unknown ELF class %d", ident[elf.EI_CLASS])
	}
	switch elf.Data(ident[elf.EI_DATA]) {
	case elf.ELFDATA2LSB:
		f.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		f.order = binary.BigEndian
	default:
		return nil, malformed("unknown ELF byte order %d", ident[elf.EI_DATA])
	}
	f.headerSize = f.either(64, 52)
	if f.raw, err = f.bytes(0, f.headerSize, "the ELF header"); err != nil {
		return nil, err
	}
	h := fields{f.raw[elf.EI_NIDENT:], f.order, f.is64}
	f.typ = elf.Type(h.u16())
	f.machine = elf.Machine(h.u16())
	h.u32() // version
	f.entry = h.addr()
	phoff, shoff := h.addr(), h.addr()
	h.u32() // flags
	h.u16() // size of this header
	phentsize, phnum := h.u16(), h.u16()
	shentsize, shnum, shstrndx := h.u16(), h.u16(), h.u16()

	if err := f.parseSegments(phoff, uint64(phentsize), uint64(phnum)); err != nil {
		return nil, err
	}
	if err := f.parseSections(shoff, uint64(shentsize), uint64(shnum), int(shstrndx)); err != nil {
		return nil, err
	}
	return f, f.checkOverlaps()
}

func (f *elfFile) parseSegments(off, entsize, n uint64) error {
	if n == 0 {
		return nil
	}
	if n > maxSegments {
		return malformed("%d program headers", n)
	}
	if entsize != f.programSize() {
		return malformed("program headers of %d bytes", entsize)
	}
	// Strip changes the ELF header and nothing else that is loaded.
	if off < f.headerSize {
		return malformed("the program headers lie over the ELF header")
	}
	b, err := f.bytes(off, n*entsize, "the program header table")
	if err != nil {
		return err
	}
	f.programs = span{off, off + n*entsize}
	for i := range int(n) {
		h := fields{b[uint64(i)*entsize:], f.order, f.is64}
		var p elfSegment
		p.typ = elf.ProgType(h.u32())
		if f.is64 {
			p.flags = elf.ProgFlag(h.u32())
		}
		p.off, p.vaddr = h.addr(), h.addr()
		h.addr() // physical address: no operating system that loads programs reads it
		p.filesz, p.memsz = h.addr(), h.addr()
		if !f.is64 {
			p.flags = elf.ProgFlag(h.u32())
		}
		p.align = h.addr()
		if p.typ == elf.PT_NULL {
			p = elfSegment{} // the rest of an unused entry has no meaning
		}
		switch {
		case p.filesz == 0:
			p.off = 0 // points at nothing, and some linkers write nonsense
		case !f.holds(p.off, p.filesz):
			return malformed("segment %d reaches beyond the end of the file", i)
		case p.typ == elf.PT_LOAD && p.filesz > p.memsz:
			return malformed("segment %d has more bytes in the file than in memory", i)
		case p.protects() && p.content().overlaps(span{0, f.headerSize}):
			return malformed("segment %d lies over the ELF header", i)
		}
		f.segments = append(f.segments, p)
	}
	return nil
}

// protects tells whether the kernel or the dynamic loader reads the segment's bytes for themselves.
// PT_LOAD is not meant here, and PT_GNU_RELRO only says which addresses become read-only.
func (p elfSegment) protects() bool {
	return p.filesz > 0 && p.typ != elf.PT_LOAD && p.typ != elf.PT_GNU_RELRO
}

func (f *elfFile) parseSections(off, entsize, n uint64, nameIndex int) error {
	if n == 0 {
		// With an offset this could mean "more than fit into the field", of which maxSections is short.
		if off != 0 {
			return malformed("the number of sections is missing")
		}
		return nil
	}
	if n > maxSections {
		return malformed("%d sections", n)
	}
	if entsize != f.sectionSize() {
		return malformed("section headers of %d bytes", entsize)
	}
	if off < f.headerSize {
		return malformed("the section headers lie over the ELF header")
	}
	if nameIndex >= int(n) {
		return malformed("the section of names is number %d of %d", nameIndex, n)
	}
	b, err := f.bytes(off, n*entsize, "the section header table")
	if err != nil {
		return err
	}
	f.table = span{off, off + n*entsize}
	f.nameIndex = nameIndex
	names := make([]uint32, n)
	for i := range int(n) {
		h := fields{b[uint64(i)*entsize:], f.order, f.is64}
		var s elfSection
		names[i] = h.u32()
		s.typ = elf.SectionType(h.u32())
		s.flags = elf.SectionFlag(h.addr())
		s.addr, s.off, s.size = h.addr(), h.addr(), h.addr()
		s.link, s.info = h.u32(), h.u32()
		s.align, s.entsize = h.addr(), h.addr()
		if i == 0 && s.typ != elf.SHT_NULL {
			return malformed("section 0 has a content")
		}
		if s.content().end < s.content().start || !f.holds(s.content().start, s.content().len()) {
			return malformed("section %d reaches beyond the end of the file", i)
		}
		f.sections = append(f.sections, s)
	}
	if nameIndex == 0 {
		return nil
	}
	table := f.sections[nameIndex].content()
	for i := range f.sections[1:] {
		at := table.start + uint64(names[i+1])
		if at >= table.end {
			return malformed("the name of section %d is missing", i+1)
		}
		if f.sections[i+1].name, err = f.text(at, table.end, fmt.Sprintf("the name of section %d", i+1)); err != nil {
			return err
		}
	}
	return nil
}

// checkOverlaps makes sure that every loaded byte has one owner, and that addresses and offsets tell the
// same. Without that, two files could agree in all sections and yet load differently.
func (f *elfFile) checkOverlaps() error {
	var loads, memory []span
	for i, p := range f.segments {
		if p.typ != elf.PT_LOAD || p.memsz == 0 {
			continue
		}
		if p.vaddr+p.memsz < p.vaddr {
			return malformed("segment %d has no place in memory", i)
		}
		memory = append(memory, span{p.vaddr, p.vaddr + p.memsz})
		if p.filesz > 0 {
			loads = append(loads, p.content())
		}
	}
	if overlapping(loads) || overlapping(memory) {
		return malformed("two segments overlap")
	}
	var sections []span
	for i, s := range f.sections {
		c := s.content()
		if !s.loaded() || c.len() == 0 {
			continue
		}
		sections = append(sections, c)
		if c.overlaps(span{0, f.headerSize}) || c.overlaps(f.programs) {
			return malformed("section %d (%s) lies over the file's headers", i, s.name)
		}
		for _, p := range f.segments {
			if p.typ != elf.PT_LOAD || !p.content().overlaps(c) {
				continue
			}
			if !p.content().contains(c) {
				return malformed("section %d (%s) is loaded in part", i, s.name)
			}
			if s.addr-p.vaddr != s.off-p.off {
				return malformed("section %d (%s) is loaded at another address than it says", i, s.name)
			}
		}
	}
	if overlapping(sections) {
		return malformed("two loaded sections have the same bytes")
	}
	return nil
}

func overlapping(spans []span) bool {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	for i := 1; i < len(spans); i++ {
		if spans[i-1].overlaps(spans[i]) {
			return true
		}
	}
	return false
}

// image is what of an ELF file stays when it is stripped.
type image struct {
	// keep are the bytes that stay. What lies between them becomes zero.
	keep []span
	// end is the length of what stays, and where a stripped file has its section names and headers.
	end uint64
}

// image tells what of the file stays when it is stripped. Read uses it as well, so that the hash of a
// program is the hash of what is left after stripping it.
//
// The bytes of all loaded segments stay, except those that only a section header table or a section that
// is not loaded owns: Go's linker (1.20 and 1.21 above all) puts its section headers and .shstrtab in the
// middle of loaded segments, where no code ever looks at them. GNU strip makes them zero as well.
func (f *elfFile) image() image {
	own := []span{{0, f.headerSize}, f.programs}
	drop := []span{f.table}
	var loads []span
	m := image{end: f.headerSize}
	for _, s := range f.sections {
		if s.loaded() {
			own = append(own, s.content())
		} else {
			drop = append(drop, s.content())
		}
	}
	for _, p := range f.segments {
		if p.typ == elf.PT_LOAD {
			loads = append(loads, p.content())
		}
		if p.protects() {
			own = append(own, p.content())
		}
		m.end = max(m.end, p.content().end)
	}
	own = merge(own)
	m.keep = merge(append(subtract(merge(loads), subtract(merge(drop), own)), own...))
	m.end = max(m.end, m.keep[len(m.keep)-1].end)
	return m
}
