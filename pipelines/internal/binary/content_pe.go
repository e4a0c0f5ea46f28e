package binary

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// peFile is the headers of a PE file. The layout is that of the PE Format specification,
// https://learn.microsoft.com/windows/win32/debug/pe-format.
type peFile struct {
	*file
	header    string
	entry     uint64
	imports   uint32 // address of the import directory relative to base, 0 when there is none
	imageBase uint64
	sections  []peSection
	headers   span // all headers, which come first in the file
}

type peSection struct {
	name       string
	addr, size uint32 // in memory; addr is relative to the image base
	content    span
	flags      uint32
}

const (
	peMemDiscardable = 0x02000000
	peMemExecute     = 0x20000000
	peMemRead        = 0x40000000
	peMemWrite       = 0x80000000

	peSectionSize = 40
	peImportSize  = 20
	peSymbolSize  = 18
)

func isPE(magic []byte) bool { return len(magic) >= 2 && string(magic[:2]) == "MZ" }

func parsePE(base *file) (*peFile, error) {
	f := &peFile{file: base}
	dos, err := f.bytes(0, 64, "the DOS header")
	if err != nil {
		return nil, err
	}
	at := uint64(binary.LittleEndian.Uint32(dos[60:]))
	coff, err := f.bytes(at, 24, "the PE header")
	if err != nil {
		return nil, err
	}
	if string(coff[:4]) != "PE\x00\x00" {
		return nil, ErrFormat // a program for DOS
	}
	h := fields{b: coff[4:], order: binary.LittleEndian}
	machine, sections := h.u16(), uint64(h.u16())
	h.u32() // time stamp
	symbols, symbolCount := uint64(h.u32()), uint64(h.u32())
	optionalSize := uint64(h.u16())
	if sections > maxSections {
		return nil, malformed("%d sections", sections)
	}
	opt, err := f.bytes(at+24, optionalSize, "the optional header")
	if err != nil {
		return nil, err
	}
	if err := f.parseOptional(machine, opt); err != nil {
		return nil, err
	}
	at += 24 + optionalSize
	table, err := f.bytes(at, sections*peSectionSize, "the section table")
	if err != nil {
		return nil, err
	}
	f.headers = span{0, at + uint64(len(table))}
	var total uint64
	for h := (fields{b: table, order: binary.LittleEndian}); len(h.b) > 0; {
		var s peSection
		s.name = h.text(8)
		s.size, s.addr = h.u32(), h.u32()
		size, off := uint64(h.u32()), uint64(h.u32())
		h.u32() // relocations and line numbers, of object files
		h.u32()
		h.u32()
		s.flags = h.u32()
		// A name of more than eight bytes is in the string table, which follows the symbols.
		if n, err := strconv.ParseUint(strings.TrimPrefix(s.name, "/"), 10, 32); err == nil && s.name[0] == '/' {
			s.name, err = f.text(symbols+symbolCount*peSymbolSize+n, f.size, "the name of a section")
			if err != nil {
				return nil, err
			}
		}
		if size > 0 {
			if !f.holds(off, size) {
				return nil, malformed("section %s reaches beyond the end of the file", s.name)
			}
			s.content = span{off, off + size}
		}
		// Sections that overlap could make a small file as much work as a huge one.
		if total += size; total > f.size {
			return nil, malformed("the sections overlap")
		}
		f.sections = append(f.sections, s)
	}
	return f, nil
}

func (f *peFile) parseOptional(machine uint16, opt []byte) error {
	const pe32, pe32plus = 0x10b, 0x20b
	le := binary.LittleEndian
	if len(opt) < 2 {
		return malformed("it has no optional header")
	}
	magic := le.Uint16(opt)
	// directories is where the data directories begin; their number is in the 4 bytes before.
	directories := 96
	if magic == pe32plus {
		directories = 112
	}
	if magic != pe32 && magic != pe32plus || len(opt) < directories {
		return malformed("its optional header is unknown")
	}
	if magic == pe32plus {
		f.imageBase = le.Uint64(opt[24:])
	} else {
		f.imageBase = uint64(le.Uint32(opt[28:]))
	}
	f.entry = f.imageBase + uint64(le.Uint32(opt[16:]))
	f.header = fmt.Sprintf("magic %#x, machine %#x, image base %#x, subsystem %d, flags %#x", magic, machine,
		f.imageBase, le.Uint16(opt[68:]), le.Uint16(opt[70:]))
	const imports = 1
	if le.Uint32(opt[directories-4:]) > imports && len(opt) >= directories+8*(imports+1) {
		f.imports = le.Uint32(opt[directories+8*imports:])
	}
	return nil
}

// loaded tells whether the section is there for the running program. The loader maps the others, too,
// but nothing needs them, and linking with -s -w leaves them out.
func (s peSection) loaded() bool { return s.flags&peMemDiscardable == 0 || s.name == ".reloc" }

func readPE(base *file) (*Content, error) {
	f, err := parsePE(base)
	if err != nil {
		return nil, err
	}
	c := &Content{Format: "pe", Header: f.header, Entry: f.entry}
	buf := make([]byte, copyBuffer)
	for _, s := range f.sections {
		out := Section{Name: s.name, Address: f.imageBase + uint64(s.addr), Size: uint64(s.size), Loaded: s.loaded()}
		if s.loaded() {
			out.Access = access("rwx", s.flags&peMemRead != 0, s.flags&peMemWrite != 0, s.flags&peMemExecute != 0)
			if s.content.len() > 0 {
				if out.SHA256, err = f.sum(s.content, buf); err != nil {
					return nil, err
				}
			}
		}
		c.Sections = append(c.Sections, out)
	}
	if c.BuildID, _, err = f.embeddedBuildID(span{0, f.size}); err != nil {
		return nil, err
	}
	c.Libraries, err = f.libraries()
	return c, err
}

// libraries reads the import directory.
func (f *peFile) libraries() ([]string, error) {
	if f.imports == 0 {
		return nil, nil
	}
	off, end, ok := f.offset(f.imports)
	if !ok {
		return nil, malformed("the import directory is in no section")
	}
	var out []string
	for ; ; off += peImportSize {
		if len(out) > maxLibraries {
			return nil, malformed("more than %d libraries", maxLibraries)
		}
		if off+peImportSize > end {
			return nil, malformed("the import directory does not end")
		}
		b, err := f.bytes(off, peImportSize, "the import directory")
		if err != nil {
			return nil, err
		}
		name := binary.LittleEndian.Uint32(b[12:])
		if name == 0 {
			return out, nil
		}
		at, limit, ok := f.offset(name)
		if !ok {
			return nil, malformed("the name of a library is in no section")
		}
		text, err := f.text(at, limit, "the name of a library")
		if err != nil {
			return nil, err
		}
		out = append(out, text)
	}
}

// offset returns where in the file the byte at a relative address is, and the end of its section.
func (f *peFile) offset(addr uint32) (off, end uint64, ok bool) {
	for _, s := range f.sections {
		if addr >= s.addr && uint64(addr-s.addr) < s.content.len() {
			return s.content.start + uint64(addr-s.addr), s.content.end, true
		}
	}
	return 0, 0, false
}
