package binary

import (
	"encoding/binary"
	"fmt"
)

// machoFile is the headers of a Mach-O file. The layout is that of <mach-o/loader.h>,
// https://github.com/apple-oss-distributions/xnu/blob/main/EXTERNAL_HEADERS/mach-o/loader.h.
type machoFile struct {
	*file
	header    string
	entry     uint64
	libraries []string
	segments  []machoSegment
	sections  []machoSection
	headers   span // the file header and all load commands
	// ids are the bytes that follow from the content of the program: LC_UUID and the code signature.
	ids []span
}

type machoSegment struct {
	name          string
	addr, memsize uint64
	content       span
	access        string
}

type machoSection struct {
	name       string // with its segment's
	segment    string
	addr, size uint64
	content    span
	access     string
}

// Load commands.
const (
	machoSegment32     = 0x1
	machoSegment64     = 0x19
	machoUUID          = 0x1b
	machoCodeSignature = 0x1d
	machoMain          = 0x80000028
	machoLoadDylib     = 0xc
	machoLoadWeak      = 0x80000018
	machoReexport      = 0x8000001f
	machoLazyLoad      = 0x20
	machoUpward        = 0x80000023
)

// maxCommands is the limit in bytes of all load commands; usual are 2 to 4 KiB.
const maxCommands = 1 << 20

// machoOrder returns the byte order and whether the file has 64-bit addresses. A nil order means that the
// file is not Mach-O, or one that holds several programs.
func machoOrder(magic []byte) (byteOrder, bool) {
	if len(magic) >= 4 {
		for _, order := range []byteOrder{binary.LittleEndian, binary.BigEndian} {
			switch order.Uint32(magic) {
			case 0xfeedface:
				return order, false
			case 0xfeedfacf:
				return order, true
			}
		}
	}
	return nil, false
}

func isMachO(magic []byte) bool {
	order, _ := machoOrder(magic)
	return order != nil
}

func parseMachO(base *file) (*machoFile, error) {
	f := &machoFile{file: base}
	raw, err := f.bytes(0, 28, "the Mach-O header")
	if err != nil {
		return nil, err
	}
	order, is64 := machoOrder(raw)
	if order == nil {
		return nil, ErrFormat
	}
	h := fields{raw[4:], order, is64}
	cpu, subtype, typ := h.u32(), h.u32(), h.u32()
	commands, size, flags := uint64(h.u32()), uint64(h.u32()), h.u32()
	f.header = fmt.Sprintf("64-bit %t, %v, CPU %#x, subtype %#x, type %d, flags %#x", is64, order, cpu, subtype, typ, flags)
	start := uint64(28)
	if is64 {
		start = 32
	}
	if size > maxCommands {
		return nil, malformed("load commands of %d bytes", size)
	}
	b, err := f.bytes(start, size, "the load commands")
	if err != nil {
		return nil, err
	}
	f.headers = span{0, start + size}

	// LC_MAIN counts from the start of __TEXT, which is that of the file.
	var entry uint64
	var hasMain bool
	for i := range commands {
		if len(b) < 8 {
			return nil, malformed("load command %d is missing", i)
		}
		h := fields{b, order, is64}
		command, size := h.u32(), uint64(h.u32())
		if size < 8 || size > uint64(len(b)) {
			return nil, malformed("load command %d has a size of %d", i, size)
		}
		h.b = b[8:size]
		at := f.headers.end - uint64(len(b)) // of the command
		b = b[size:]
		need := func(n int) error {
			if len(h.b) < n {
				return malformed("load command %d is too short", i)
			}
			return nil
		}
		switch command {
		case machoSegment32, machoSegment64:
			h.is64 = command == machoSegment64
			if err := f.parseSegment(h); err != nil {
				return nil, err
			}
		case machoMain:
			if err := need(8); err != nil {
				return nil, err
			}
			entry, hasMain = order.Uint64(h.b), true
		case machoUUID:
			f.ids = append(f.ids, span{at + 8, at + size})
		case machoCodeSignature:
			if err := need(8); err != nil {
				return nil, err
			}
			off, n := uint64(h.u32()), uint64(h.u32())
			if !f.holds(off, n) {
				return nil, malformed("the code signature reaches beyond the end of the file")
			}
			f.ids = append(f.ids, span{off, off + n})
		case machoLoadDylib, machoLoadWeak, machoReexport, machoLazyLoad, machoUpward:
			if err := need(4); err != nil {
				return nil, err
			}
			name := uint64(h.u32())
			if name > size || len(f.libraries) >= maxLibraries {
				return nil, malformed("load command %d has no name", i)
			}
			text, err := f.text(at+name, at+size, "the name of a library")
			if err != nil {
				return nil, err
			}
			f.libraries = append(f.libraries, text)
		}
	}
	for _, s := range f.segments {
		if hasMain && s.name == "__TEXT" {
			f.entry = s.addr + entry
		}
	}
	return f, f.checkTotal()
}

func (f *machoFile) parseSegment(h fields) error {
	header, section := 48, 68
	if h.is64 {
		header, section = 64, 80
	}
	if len(h.b) < header {
		return malformed("a segment is too short")
	}
	if len(f.segments) >= maxSegments {
		return malformed("more than %d segments", maxSegments)
	}
	var s machoSegment
	s.name = h.text(16)
	s.addr, s.memsize = h.addr(), h.addr()
	off, size := h.addr(), h.addr()
	h.u32() // largest protection that the program may ask for
	protection := h.u32()
	sections := uint64(h.u32())
	h.u32() // flags
	s.access = access("rwx", protection&1 != 0, protection&2 != 0, protection&4 != 0)
	if size > 0 {
		if !f.holds(off, size) {
			return malformed("segment %s reaches beyond the end of the file", s.name)
		}
		s.content = span{off, off + size}
	}
	f.segments = append(f.segments, s)
	if uint64(len(h.b)) < sections*uint64(section) {
		return malformed("segment %s has no room for %d sections", s.name, sections)
	}
	for range sections {
		t := machoSection{segment: s.name, access: s.access}
		t.name = h.text(16)
		h.text(16) // its segment, once more
		t.name = s.name + "," + t.name
		t.addr, t.size = h.addr(), h.addr()
		off := uint64(h.u32())
		h.u32() // alignment
		h.u32() // relocations, of object files
		h.u32()
		typ := h.u32() & 0xff
		h.u32()
		h.u32()
		if h.is64 {
			h.u32()
		}
		const zeroFill, largeZeroFill, threadLocalZeroFill = 0x1, 0xc, 0x12
		if typ != zeroFill && typ != largeZeroFill && typ != threadLocalZeroFill && t.size > 0 {
			if !f.holds(off, t.size) {
				return malformed("section %s reaches beyond the end of the file", t.name)
			}
			t.content = span{off, off + t.size}
		}
		if len(f.sections) >= maxSections {
			return malformed("more than %d sections", maxSections)
		}
		f.sections = append(f.sections, t)
	}
	return nil
}

// checkTotal makes sure that hashing all sections is no more work than hashing the file.
func (f *machoFile) checkTotal() error {
	var total uint64
	for _, s := range f.sections {
		// Each is at most the size of the file, and there are few: this cannot overflow.
		if total += s.content.len(); total > f.size {
			return malformed("the sections overlap")
		}
	}
	return nil
}

// loadedSegment tells whether the segment is part of the program. __LINKEDIT has symbols, relocations and
// the code signature, which differ as soon as any other byte does.
func loadedSegment(name string) bool { return name != "__DWARF" && name != "__LINKEDIT" }

func readMachO(base *file) (*Content, error) {
	f, err := parseMachO(base)
	if err != nil {
		return nil, err
	}
	c := &Content{Format: "macho", Header: f.header, Entry: f.entry, Libraries: f.libraries}
	for _, s := range f.segments {
		if loadedSegment(s.name) {
			c.Segments = append(c.Segments, Segment{Name: s.name, Access: s.access, Address: s.addr,
				FileSize: s.content.len(), MemorySize: s.memsize})
		}
	}
	buf := make([]byte, copyBuffer)
	for _, s := range f.sections {
		out := Section{Name: s.name, Address: s.addr, Size: s.size, Loaded: loadedSegment(s.segment)}
		if out.Loaded {
			out.Access = s.access
			if s.content.len() > 0 {
				if out.SHA256, err = f.sum(s.content, buf); err != nil {
					return nil, err
				}
			}
		}
		c.Sections = append(c.Sections, out)
	}
	c.BuildID, _, err = f.buildID()
	return c, err
}

// buildID finds the Go build ID at the start of the file or, as load commands can be long, of the code.
func (f *machoFile) buildID() (string, span, error) {
	id, at, err := f.embeddedBuildID(span{0, f.size})
	if id != "" || err != nil {
		return id, at, err
	}
	for _, s := range f.sections {
		if s.name == "__TEXT,__text" {
			return f.embeddedBuildID(s.content)
		}
	}
	return "", span{}, nil
}
