package binary

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// tinyELF makes a small ELF file that has every kind of thing that Strip has to think of: loaded and
// other sections in mixed order, links between them, .shstrtab and the section headers within a loaded
// segment, notes, a needed library, .bss, and bytes that no section owns.
func tinyELF(is64 bool, order byteOrder) []byte {
	f := &elfFile{is64: is64, order: order}
	f.headerSize = f.either(64, 52)
	header := func(put func(h *fields)) []byte {
		h := fields{order: order, is64: is64}
		put(&h)
		return h.b
	}
	note := func(name string, typ uint32, desc string) []byte {
		return append(header(func(h *fields) {
			h.put32(uint32(len(name)))
			h.put32(uint32(len(desc)))
			h.put32(typ)
		}), name+desc...)
	}
	const base = 0x10000
	type part struct {
		s    elfSection
		data []byte
	}
	parts := []part{
		{elfSection{name: ".text", typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC | elf.SHF_EXECINSTR}, bytes.Repeat([]byte{0xc3}, 32)},
		{elfSection{name: ".shstrtab", typ: elf.SHT_STRTAB}, nil},
		{elfSection{name: ".rela.plt", typ: elf.SHT_RELA, flags: elf.SHF_ALLOC, link: 4, info: 6}, make([]byte, 24)},
		{elfSection{name: ".dynsym", typ: elf.SHT_DYNSYM, flags: elf.SHF_ALLOC, link: 5, info: 1}, make([]byte, 24)},
		{elfSection{name: ".dynstr", typ: elf.SHT_STRTAB, flags: elf.SHF_ALLOC}, []byte("\x00libc.so.6\x00\x00")},
		{elfSection{name: ".got", typ: elf.SHT_PROGBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE}, []byte("got!")},
		{elfSection{name: ".dynamic", typ: elf.SHT_DYNAMIC, flags: elf.SHF_ALLOC, link: 5}, nil},
		{elfSection{name: ".note.go.buildid", typ: elf.SHT_NOTE, flags: elf.SHF_ALLOC}, note("Go\x00\x00", 4, "the/build/id")},
		{elfSection{name: ".note.gnu.build-id", typ: elf.SHT_NOTE, flags: elf.SHF_ALLOC}, note("GNU\x00", 3, "\x01\x02\x03\x04")},
		{elfSection{name: ".bss", typ: elf.SHT_NOBITS, flags: elf.SHF_ALLOC | elf.SHF_WRITE}, nil},
		{elfSection{name: ".debug_info", typ: elf.SHT_PROGBITS}, []byte("debug")},
		{elfSection{name: ".symtab", typ: elf.SHT_SYMTAB, link: 13, info: 1}, make([]byte, 24)},
		{elfSection{name: ".strtab", typ: elf.SHT_STRTAB}, []byte("\x00symbol\x00")},
	}
	names := []byte{0}
	nameAt := make([]uint32, len(parts))
	for i, p := range parts {
		nameAt[i] = uint32(len(names))
		names = append(append(names, p.s.name...), 0)
	}
	parts[1].data = names
	const segments = 4
	f.table.start = f.headerSize + segments*f.programSize() // right after the program headers, as Go does
	at := f.table.start + uint64(len(parts)+1)*f.sectionSize()
	at += 8 // bytes that no section owns
	gap := at - 4
	var loadEnd uint64
	for i := range parts {
		p := &parts[i]
		at = (at + 7) &^ 7
		p.s.off = at
		if p.s.loaded() {
			p.s.addr = base + at
		}
		switch p.s.name {
		case ".dynamic":
			p.data = header(func(h *fields) {
				for _, v := range []uint64{uint64(elf.DT_STRTAB), parts[4].s.addr, uint64(elf.DT_NEEDED), 1, 0, 0} {
					h.putAddr(v)
				}
			})
		case ".bss":
			loadEnd = at
			p.s.size = 16
			continue
		}
		p.s.size = uint64(len(p.data))
		at += p.s.size
	}

	out := make([]byte, at)
	copy(out, elf.ELFMAG)
	out[elf.EI_CLASS], out[elf.EI_DATA], out[elf.EI_VERSION] = byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), 1
	if is64 {
		out[elf.EI_CLASS] = byte(elf.ELFCLASS64)
	}
	if order == byteOrder(binary.BigEndian) {
		out[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	}
	u16 := func(h *fields, v uint64) { h.b = order.AppendUint16(h.b, uint16(v)) }
	copy(out[elf.EI_NIDENT:], header(func(h *fields) {
		u16(h, uint64(elf.ET_DYN))
		u16(h, uint64(elf.EM_X86_64))
		h.put32(1)
		h.putAddr(parts[0].s.addr)
		h.putAddr(f.headerSize)
		h.putAddr(f.table.start)
		h.put32(0)
		u16(h, f.headerSize)
		u16(h, f.programSize())
		u16(h, segments)
		u16(h, f.sectionSize())
		u16(h, uint64(len(parts)+1))
		u16(h, 2)
	}))
	out[gap] = 0x5a
	segment := func(typ elf.ProgType, off, filesz, memsz uint64) []byte {
		return header(func(h *fields) {
			const access = uint32(elf.PF_R | elf.PF_W | elf.PF_X)
			h.put32(uint32(typ))
			if is64 {
				h.put32(access)
			}
			h.putAddr(off)
			h.putAddr(base + off)
			h.putAddr(base + off)
			h.putAddr(filesz)
			h.putAddr(memsz)
			if !is64 {
				h.put32(access)
			}
			h.putAddr(8)
		})
	}
	copy(out[f.headerSize:], bytes.Join([][]byte{
		segment(elf.PT_LOAD, 0, loadEnd, loadEnd+16),
		segment(elf.PT_NOTE, parts[7].s.off, parts[7].s.size, parts[7].s.size),
		segment(elf.PT_DYNAMIC, parts[6].s.off, parts[6].s.size, parts[6].s.size),
		segment(elf.PT_GNU_STACK, 0, 0, 0),
	}, nil))
	table := f.table.start + f.sectionSize()
	for i, p := range parts {
		copy(out[p.s.off:], p.data)
		copy(out[table:], header(func(h *fields) {
			h.put32(nameAt[i])
			h.put32(uint32(p.s.typ))
			for _, v := range []uint64{uint64(p.s.flags), p.s.addr, p.s.off, p.s.size} {
				h.putAddr(v)
			}
			h.put32(p.s.link)
			h.put32(p.s.info)
			h.putAddr(8)
			h.putAddr(0)
		}))
		table += f.sectionSize()
	}
	return out
}

// tinyELFs are tinyELF in both classes and byte orders.
func tinyELFs() [][]byte {
	return [][]byte{
		tinyELF(true, binary.LittleEndian),
		tinyELF(false, binary.LittleEndian),
		tinyELF(true, binary.BigEndian),
		tinyELF(false, binary.BigEndian),
	}
}

// tinyPE makes a small PE file with code, imports and debug information.
func tinyPE() []byte {
	le := binary.LittleEndian
	out := make([]byte, 0x800)
	copy(out, "MZ")
	le.PutUint32(out[60:], 64)
	copy(out[64:], "PE\x00\x00")
	le.PutUint16(out[68:], 0x8664)
	le.PutUint16(out[70:], 3)     // sections
	le.PutUint32(out[76:], 0x700) // symbol table, which is empty; the string table follows
	copy(out[0x704:], ".debug_info\x00")
	le.PutUint16(out[84:], 240) // optional header
	opt := out[88:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[16:], 0x1010)
	le.PutUint64(opt[24:], 0x140000000)
	le.PutUint32(opt[108:], 16)
	le.PutUint32(opt[120:], 0x2000) // import directory
	section := func(i int, name string, addr, off, flags uint32) {
		s := out[88+240+40*i:]
		copy(s[:8], name)
		le.PutUint32(s[8:], 0x100)
		le.PutUint32(s[12:], addr)
		le.PutUint32(s[16:], 0x100)
		le.PutUint32(s[20:], off)
		le.PutUint32(s[36:], flags)
	}
	section(0, ".text", 0x1000, 0x400, peMemRead|peMemExecute)
	section(1, ".idata", 0x2000, 0x500, peMemRead|peMemWrite)
	section(2, "/4", 0x3000, 0x600, peMemRead|peMemDiscardable)
	copy(out[0x400:], "\xff Go build ID: \"the/build/id\"\n \xff")
	le.PutUint32(out[0x500+12:], 0x2080)
	copy(out[0x580:], "kernel32.dll\x00")
	return out
}

// tinyMachO makes a small Mach-O file with code, a library, debug information and a __LINKEDIT segment.
func tinyMachO() []byte {
	le := binary.LittleEndian
	var commands []byte
	n := 0
	command := func(typ uint32, body ...[]byte) {
		b := bytes.Join(body, nil)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		commands = le.AppendUint32(commands, typ)
		commands = le.AppendUint32(commands, uint32(8+len(b)))
		commands = append(commands, b...)
		n++
	}
	text := func(s string) []byte { return append([]byte(s), make([]byte, 16-len(s))...) }
	u32s := func(v ...uint32) (b []byte) {
		for _, v := range v {
			b = le.AppendUint32(b, v)
		}
		return b
	}
	u64s := func(v ...uint64) (b []byte) {
		for _, v := range v {
			b = le.AppendUint64(b, v)
		}
		return b
	}
	const base = 0x100000000
	segment := func(name, section string, off uint64) {
		command(machoSegment64, text(name), u64s(base+off, 0x100, off, 0x100), u32s(7, 5, 1, 0),
			text(section), text(name), u64s(base+off, 0x100), u32s(uint32(off), 4, 0, 0, 0, 0, 0, 0))
	}
	segment("__TEXT", "__text", 0x400)
	segment("__DWARF", "__debug_info", 0x500)
	command(machoSegment64, text("__LINKEDIT"), u64s(base+0x600, 0x100, 0x600, 0x100), u32s(1, 1, 0, 0))
	command(machoMain, u64s(0x10, 0))
	command(machoLoadDylib, u32s(24, 0, 0, 0), []byte("/usr/lib/libSystem.B.dylib\x00"))
	command(machoUUID, make([]byte, 16))
	command(machoCodeSignature, u32s(0x680, 0x80))
	out := make([]byte, 0x700)
	copy(out, u32s(0xfeedfacf, 0x100000c, 0, 2, uint32(n), uint32(len(commands)), 0x85, 0))
	copy(out[32:], commands)
	copy(out[0x400:], "\xff Go build ID: \"the/build/id\"\n \xff")
	return out
}
