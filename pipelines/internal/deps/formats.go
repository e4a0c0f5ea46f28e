package deps

import (
	"debug/elf"
	"debug/macho"
	"debug/pe"
	"encoding/binary"
	"strings"
)

// fields reads the fields of a header one after the other. The caller has made sure that they are there.
type fields struct {
	b     []byte
	order binary.ByteOrder
	// is64 makes an address 8 bytes, else it is 4.
	is64 bool
}

func (p *fields) u8() byte {
	v := p.b[0]
	p.b = p.b[1:]
	return v
}

func (p *fields) u16() uint16 {
	v := p.order.Uint16(p.b)
	p.b = p.b[2:]
	return v
}

func (p *fields) u32() uint32 {
	v := p.order.Uint32(p.b)
	p.b = p.b[4:]
	return v
}

func (p *fields) addr() uint64 {
	if !p.is64 {
		return uint64(p.u32())
	}
	v := p.order.Uint64(p.b)
	p.b = p.b[8:]
	return v
}

// text reads n bytes that hold a text, which zeros fill up.
func (p *fields) text(n int) string {
	b := p.b[:n]
	p.b = p.b[n:]
	return string(untilZero(b))
}

// readELF reads the layout of the System V ABI, https://gabi.xinuos.com.
func (f *file) readELF() error {
	ident, err := f.bytes(0, elf.EI_NIDENT, "the ELF header")
	if err != nil {
		return err
	}
	h := fields{is64: elf.Class(ident[elf.EI_CLASS]) == elf.ELFCLASS64, order: binary.LittleEndian}
	if elf.Data(ident[elf.EI_DATA]) == elf.ELFDATA2MSB {
		h.order = binary.BigEndian
	}
	headerSize, sectionSize, symbolSize := uint64(52), uint64(40), uint64(16)
	if h.is64 {
		headerSize, sectionSize, symbolSize = 64, 64, 24
	}
	if h.b, err = f.bytes(elf.EI_NIDENT, headerSize-elf.EI_NIDENT, "the ELF header"); err != nil {
		return err
	}
	h.u16() // type
	h.u16() // machine
	h.u32() // version
	h.addr()
	h.addr()
	shoff := h.addr()
	h.u32() // flags
	h.u16()
	h.u16()
	h.u16()
	shentsize, shnum := uint64(h.u16()), uint64(h.u16())
	if shnum == 0 {
		return ErrNoSymbols
	}
	if shnum > maxSections || shentsize != sectionSize {
		return malformed("%d sections of %d bytes", shnum, shentsize)
	}
	if h.b, err = f.bytes(shoff, shnum*shentsize, "the section header table"); err != nil {
		return err
	}
	type content struct {
		typ       elf.SectionType
		off, size uint64
		link      uint32
	}
	var contents []content
	for range shnum {
		h.u32() // name
		typ := elf.SectionType(h.u32())
		flags := elf.SectionFlag(h.addr())
		addr, off, size := h.addr(), h.addr(), h.addr()
		link := h.u32()
		h.u32() // info
		h.addr()
		h.addr()
		if typ == elf.SHT_NOBITS || typ == elf.SHT_NULL {
			off, size = 0, 0
		}
		if err := f.addSection(addr, off, size, flags&elf.SHF_ALLOC != 0, flags&elf.SHF_EXECINSTR != 0); err != nil {
			return err
		}
		contents = append(contents, content{typ, off, size, link})
	}
	for _, c := range contents {
		if c.typ != elf.SHT_SYMTAB {
			continue
		}
		if uint64(c.link) >= shnum {
			return malformed("the symbol table has no names")
		}
		names := contents[c.link]
		return f.table(c.off, c.size/symbolSize, symbolSize, names.off, names.size, func(b []byte) {
			s := fields{b, h.order, h.is64}
			name := s.u32()
			var value, size uint64
			if !s.is64 {
				value, size = s.addr(), s.addr()
			}
			typ := elf.ST_TYPE(s.u8())
			s.u8() // visibility
			section := s.u16()
			if s.is64 {
				value, size = s.addr(), s.addr()
			}
			if typ == elf.STT_NOTYPE || typ == elf.STT_OBJECT || typ == elf.STT_FUNC {
				f.addSymbol(f.name(name), int(section), value, size, true)
			}
		})
	}
	return ErrNoSymbols
}

// readPE reads the layout of https://learn.microsoft.com/windows/win32/debug/pe-format.
func (f *file) readPE() error {
	dos, err := f.bytes(0, 64, "the DOS header")
	if err != nil {
		return err
	}
	at := uint64(binary.LittleEndian.Uint32(dos[60:]))
	h := fields{order: binary.LittleEndian}
	if h.b, err = f.bytes(at, 24, "the PE header"); err != nil {
		return err
	}
	if h.text(4) != "PE" {
		return ErrFormat // a program for DOS
	}
	h.u16() // machine
	sections := uint64(h.u16())
	h.u32() // time
	symbols, count := uint64(h.u32()), uint64(h.u32())
	optional := uint64(h.u16())
	const sectionSize, symbolSize = 40, 18
	if sections > maxSections {
		return malformed("%d sections", sections)
	}
	if h.b, err = f.bytes(at+24+optional, sections*sectionSize, "the section table"); err != nil {
		return err
	}
	var inSection bool // the symbol table, where Go's linker writes it
	for range sections {
		name := h.text(8)
		memory, addr := uint64(h.u32()), uint64(h.u32())
		size, off := uint64(h.u32()), uint64(h.u32())
		h.u32()
		h.u32()
		h.u32()
		flags := h.u32()
		if size == 0 {
			off = 0
		}
		inSection = inSection || off <= symbols && symbols < off+size
		loaded := flags&pe.IMAGE_SCN_MEM_DISCARDABLE == 0 || name == ".reloc"
		if loaded {
			size = min(size, memory) // the rest fills up to the next section
		}
		if err := f.addSection(addr, off, size, loaded, flags&pe.IMAGE_SCN_MEM_EXECUTE != 0); err != nil {
			return err
		}
	}
	if symbols == 0 || count == 0 {
		return ErrNoSymbols
	}
	// The table of strings follows, its size first, of which the offsets count from the start.
	names := symbols + count*symbolSize
	b, err := f.bytes(names, 4, "the table of strings")
	if err != nil {
		return err
	}
	nameSize := uint64(binary.LittleEndian.Uint32(b))
	if !inSection {
		f.debug += count*symbolSize + nameSize
	}
	var auxiliary byte // records that follow
	return f.table(symbols, count, symbolSize, names, nameSize, func(b []byte) {
		if auxiliary > 0 {
			auxiliary--
			return
		}
		s := fields{b: b, order: h.order}
		name := untilZero(s.b[:8])
		if zeros := s.u32(); zeros == 0 {
			name = f.name(s.u32())
		} else {
			s.u32()
		}
		value, section := uint64(s.u32()), int(int16(s.u16()))-1
		s.u16() // type
		const static = 3
		class := s.u8()
		auxiliary = s.u8()
		if class == static && auxiliary > 0 {
			return // a section
		}
		if section >= 0 && section < len(f.sections) {
			f.addSymbol(name, section, f.sections[section].addr+value, 0, false)
		}
	})
}

// machoOrder returns the byte order of a Mach-O file, nil if it is none, or one that holds several programs.
func machoOrder(magic []byte) binary.ByteOrder {
	if len(magic) >= 4 {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			if m := order.Uint32(magic); m == macho.Magic32 || m == macho.Magic64 {
				return order
			}
		}
	}
	return nil
}

// readMachO reads the layout of <mach-o/loader.h> and <mach-o/nlist.h>.
func (f *file) readMachO() error {
	raw, err := f.bytes(0, 28, "the Mach-O header")
	if err != nil {
		return err
	}
	h := fields{b: raw, order: machoOrder(raw)}
	start := uint64(28)
	if h.u32() == macho.Magic64 {
		start = 32
		h.is64 = true
	}
	h.u32() // processor
	h.u32()
	h.u32() // type
	commands, size := h.u32(), uint64(h.u32())
	if size > maxCommands {
		return malformed("load commands of %d bytes", size)
	}
	b, err := f.bytes(start, size, "the load commands")
	if err != nil {
		return err
	}
	var table []byte
	for i := range commands {
		c := fields{b, h.order, h.is64}
		if len(b) < 8 {
			return malformed("load command %d is missing", i)
		}
		command, size := macho.LoadCmd(c.u32()), uint64(c.u32())
		if size < 8 || size > uint64(len(b)) {
			return malformed("load command %d has a size of %d", i, size)
		}
		c.b, b = c.b[:size-8], b[size:]
		switch command {
		case macho.LoadCmdSegment, macho.LoadCmdSegment64:
			c.is64 = command == macho.LoadCmdSegment64
			if err := f.machoSegment(c); err != nil {
				return err
			}
		case macho.LoadCmdSymtab:
			if len(c.b) < 16 {
				return malformed("load command %d is too short", i)
			}
			table = c.b
		}
	}
	if table == nil {
		return ErrNoSymbols
	}
	t := fields{table, h.order, false}
	off, n, names, nameSize := uint64(t.u32()), uint64(t.u32()), uint64(t.u32()), uint64(t.u32())
	symbolSize := uint64(12)
	if h.is64 {
		symbolSize = 16
	}
	return f.table(off, n, symbolSize, names, nameSize, func(b []byte) {
		s := fields{b, h.order, h.is64}
		name := f.name(s.u32())
		typ, section := s.u8(), int(s.u8())-1
		s.u16() // description
		const debugging, kind, inSection = 0xe0, 0x0e, 0x0e
		if typ&debugging == 0 && typ&kind == inSection {
			// Names in C have an underscore before them, and those in Go with some releases.
			f.addSymbol([]byte(strings.TrimPrefix(string(name), "_")), section, s.addr(), 0, false)
		}
	})
}

// machoSegment reads the segment that a load command describes.
func (f *file) machoSegment(h fields) error {
	header, sectionSize := 48, 68
	if h.is64 {
		header, sectionSize = 64, 80
	}
	if len(h.b) < header {
		return malformed("a segment is too short")
	}
	name := h.text(16)
	h.addr()
	h.addr()
	off, size := h.addr(), h.addr()
	h.u32() // protection
	h.u32()
	n := uint64(h.u32())
	h.u32() // flags
	if uint64(len(h.b)) < n*uint64(sectionSize) {
		return malformed("segment %q has no room for %d sections", name, n)
	}
	if name == "__LINKEDIT" { // symbols and the code signature, in no section
		if off > f.size || size > f.size-off {
			return malformed("segment %s reaches beyond the end of the file", name)
		}
		f.debug += size
	}
	for range n {
		h.text(32) // names
		addr, size := h.addr(), h.addr()
		off := uint64(h.u32())
		h.u32()
		h.u32()
		h.u32()
		flags := h.u32()
		h.u32()
		h.u32()
		if h.is64 {
			h.u32()
		}
		const typ, zeroFill, largeZeroFill, threadLocalZeroFill = 0xff, 0x1, 0xc, 0x12
		if t := flags & typ; t == zeroFill || t == largeZeroFill || t == threadLocalZeroFill {
			off, size = 0, 0
		}
		const instructions = 0x80000400 // some or nothing else
		if err := f.addSection(addr, off, size, name != "__DWARF", flags&instructions != 0); err != nil {
			return err
		}
	}
	return nil
}
