package binary

import (
	"debug/elf"
	"fmt"
	"io"
	"math"
	"slices"
)

// Strip writes the ELF program src of size bytes to dst without its symbol table, debug information and
// every other section that is not loaded when the program runs, .shstrtab excepted.
//
// All loaded sections keep their bytes, addresses and file offsets; so do the program headers, build IDs
// and .go.buildinfo. Section headers and a new .shstrtab follow the last loaded byte. The sections that
// stay keep their order. The result depends on nothing but src, and stripping it again gives the same
// bytes.
//
// src streams to dst; memory in use does not depend on size. Errors are ErrNotELF, ErrMalformed and those
// of src and dst. What dst holds after an error is not a program.
func Strip(dst io.Writer, src io.ReaderAt, size int64) error {
	base, err := newFile(src, size)
	if err != nil {
		return err
	}
	if magic, err := base.bytes(0, min(4, base.size), "the file"); err != nil {
		return err
	} else if !isELF(magic) {
		return ErrNotELF
	}
	f, err := parseELF(base)
	if err != nil {
		return err
	}
	// Object files need their symbols to be linked.
	if f.typ != elf.ET_EXEC && f.typ != elf.ET_DYN {
		return fmt.Errorf("%w: it is of type %v", ErrNotELF, f.typ)
	}
	m := f.image()
	t, err := f.strippedTable(m.end)
	if err != nil {
		return err
	}

	w := &padder{w: dst, buf: make([]byte, copyBuffer)}
	if err := w.write(f.strippedHeader(t), 0); err != nil {
		return err
	}
	for _, s := range subtract(m.keep, []span{{0, f.headerSize}}) {
		if err := w.pad(s.start); err != nil {
			return err
		}
		if err := f.copy(dst, s, w.buf); err != nil {
			return err
		}
		w.off = s.end
	}
	if err := w.write(t.names, m.end); err != nil {
		return err
	}
	return w.write(t.headers, t.off)
}

// table is the end of a stripped file.
type table struct {
	// names is the content of .shstrtab.
	names []byte
	// headers is the section header table, which lies at off. It is empty, and off 0, for a file that
	// never had one.
	headers []byte
	off     uint64
	// sections is the number of headers, nameIndex that of .shstrtab.
	sections, nameIndex int
}

// strippedTable returns the section headers of the stripped file and their names, which will lie at
// offset at.
func (f *elfFile) strippedTable(at uint64) (table, error) {
	if len(f.sections) == 0 {
		return table{off: at}, nil
	}
	shstrtab := elfSection{name: ".shstrtab", typ: elf.SHT_STRTAB, off: at, align: 1}
	sections := []elfSection{{}}
	// number maps old section numbers to new ones; those of sections that go become 0, "no section".
	number := make([]uint32, len(f.sections))
	nameIndex := 0
	for i, s := range f.sections {
		switch {
		case s.loaded() && s.typ == elf.SHT_GROUP:
			return table{}, malformed("section %d (%s) is a loaded group of sections", i, s.name)
		case s.loaded():
		case i == f.nameIndex && i > 0:
			// It keeps its place among the sections, so that fewer numbers change: symbols in a
			// .dynsym name their section by number, and a .dynsym cannot change for it is loaded.
			// (The dynamic loader asks only whether that number is 0, and linkers put what is not
			// loaded last.)
			s, nameIndex = shstrtab, len(sections)
		default:
			continue
		}
		number[i] = uint32(len(sections))
		sections = append(sections, s)
	}
	if nameIndex == 0 {
		nameIndex = len(sections)
		sections = append(sections, shstrtab)
	}

	names, nameAt := []byte{0}, map[string]uint32{"": 0}
	for i := range sections {
		s := &sections[i]
		if _, ok := nameAt[s.name]; !ok {
			nameAt[s.name] = uint32(len(names))
			names = append(append(names, s.name...), 0)
		}
		if i == nameIndex {
			continue
		}
		refers := []*uint32{&s.link}
		if s.typ == elf.SHT_REL || s.typ == elf.SHT_RELA || s.flags&elf.SHF_INFO_LINK != 0 {
			refers = append(refers, &s.info) // in other sections a number of symbols or the like
		}
		for _, n := range refers {
			if uint64(*n) >= uint64(len(number)) {
				return table{}, malformed("section %s refers to section %d of %d", s.name, *n, len(number))
			}
			*n = number[*n]
		}
	}
	sections[nameIndex].size = uint64(len(names))

	const align = 8
	t := table{names: names, sections: len(sections), nameIndex: nameIndex}
	t.off = (at + uint64(len(names)) + align - 1) &^ (align - 1)
	h := fields{order: f.order, is64: f.is64}
	for _, s := range sections {
		h.put32(nameAt[s.name])
		h.put32(uint32(s.typ))
		h.putAddr(uint64(s.flags))
		h.putAddr(s.addr)
		h.putAddr(s.off)
		h.putAddr(s.size)
		h.put32(s.link)
		h.put32(s.info)
		h.putAddr(s.align)
		h.putAddr(s.entsize)
	}
	t.headers = h.b
	if !f.is64 && t.off+uint64(len(t.headers)) > math.MaxUint32 {
		return table{}, malformed("too large for a 32-bit file")
	}
	return t, nil
}

// strippedHeader returns the ELF header with the three fields changed that say where the sections are.
func (f *elfFile) strippedHeader(t table) []byte {
	raw := slices.Clone(f.raw)
	off := t.off
	if t.sections == 0 {
		off = 0
	}
	if f.is64 {
		f.order.PutUint64(raw[40:], off)
	} else {
		f.order.PutUint32(raw[32:], uint32(off))
	}
	last := raw[len(raw)-4:] // e_shnum, e_shstrndx
	f.order.PutUint16(last, uint16(t.sections))
	f.order.PutUint16(last[2:], uint16(t.nameIndex))
	return raw
}

// padder writes pieces of a file at rising offsets, with zeros between them.
type padder struct {
	w   io.Writer
	off uint64
	buf []byte
}

func (p *padder) write(b []byte, at uint64) error {
	if err := p.pad(at); err != nil {
		return err
	}
	_, err := p.w.Write(b)
	p.off += uint64(len(b))
	return err
}

func (p *padder) pad(to uint64) error {
	clear(p.buf[:min(uint64(len(p.buf)), to-p.off)])
	for p.off < to {
		n, err := p.w.Write(p.buf[:min(uint64(len(p.buf)), to-p.off)])
		if err != nil {
			return err
		}
		p.off += uint64(n)
	}
	return nil
}
