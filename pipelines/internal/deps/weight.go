package deps

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Errors that Weigh wraps.
var (
	// ErrFormat means that a file is none of ELF, PE and thin Mach-O.
	ErrFormat = errors.New("not an ELF, PE or thin Mach-O file")
	// ErrNoSymbols means that a file has no symbol table: it was stripped, or linked with -s.
	ErrNoSymbols = errors.New("no symbol table")
	// ErrMalformed means that a file's headers contradict themselves or reach beyond the end of the file, or
	// that there is more of something than in any program.
	ErrMalformed = errors.New("malformed program file")
)

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, a...))
}

// Names of what is in a program without being in a Go package.
const (
	// Tables are what the linker makes for the runtime: types, interface tables, function tables, texts of
	// constants.
	Tables = "(runtime types and tables)"
	// Assembly are functions and data of assembly files, in whose names there is no package.
	Assembly = "(assembly)"
	// C is what was compiled from another language: C through cgo, and the C library of static programs.
	C = "(C)"
)

// Weight says what takes how much of a program's file. All bytes of Packages, DebugBytes and OtherBytes add up
// to FileBytes.
type Weight struct {
	// Format is elf, pe or macho.
	Format    string `json:"format"`
	FileBytes uint64 `json:"file_bytes"`
	// Packages are sorted by size, the heaviest first.
	Packages []PackageWeight `json:"packages"`
	// DebugBytes are debug information and the symbol table, which strip removes.
	DebugBytes uint64 `json:"debug_bytes"`
	// OtherBytes are all the rest: headers, tables for the dynamic loader, and what no symbol names.
	OtherBytes uint64 `json:"other_bytes"`
}

// PackageWeight is what one package takes of a program's file. Variables that are zero when the program starts
// take nothing.
type PackageWeight struct {
	// Package is an import path, "main", or one of Tables, Assembly and C.
	Package string `json:"package"`
	// Bytes is TextBytes (code) and DataBytes (constants and variables) together.
	Bytes     uint64 `json:"bytes"`
	TextBytes uint64 `json:"text_bytes"`
	DataBytes uint64 `json:"data_bytes"`
}

// Weigh reads the symbol table of the program r of size bytes, which must not be stripped: ELF, PE or thin
// Mach-O. Errors are ErrFormat, ErrNoSymbols, ErrMalformed and those of r.
//
// Each byte counts once, for the innermost symbol that covers it. ELF tells the size of symbols; in PE and
// Mach-O one reaches to the next, as "go tool nm -size" has it, so padding counts for the symbol before. What
// has no package in its name is told apart by where it lies: beyond Go's code it is C, and so is what is named
// like cgo's own functions. Other C code that Go's linker places among Go's (which it only does for programs
// without C of their own) counts as assembly.
//
// The bytes that this function reads are foreign. It does without debug/elf, debug/pe and debug/macho because
// these copy the names of all symbols, and names that overlap make that more than any memory. Here names stay
// in the file's table of strings; that, the symbols and the packages are limited to 128 MiB each at most.
func Weigh(r io.ReaderAt, size int64) (*Weight, error) {
	if size < 0 {
		return nil, malformed("its size is negative")
	}
	f := &file{r: r, size: uint64(size), packages: map[string]int32{}}
	magic, err := f.bytes(0, min(4, f.size), "the file")
	if err != nil {
		return nil, err
	}
	w := &Weight{FileBytes: f.size}
	switch {
	case string(magic) == "\x7fELF":
		w.Format, err = "elf", f.readELF()
	case len(magic) >= 2 && string(magic[:2]) == "MZ":
		w.Format, err = "pe", f.readPE()
	case machoOrder(magic) != nil:
		w.Format, err = "macho", f.readMachO()
	default:
		err = ErrFormat
	}
	if err != nil {
		return nil, err
	}
	total := f.debug
	for _, s := range f.sections {
		total += s.size // each is at most the size of the file, and there are few: this cannot overflow
	}
	if total > f.size {
		return nil, malformed("the sections overlap")
	}
	w.DebugBytes, w.OtherBytes = f.debug, f.size-f.debug
	w.Packages = f.weigh()
	for _, p := range w.Packages {
		w.OtherBytes -= p.Bytes
	}
	return w, nil
}

const (
	// The limits are far beyond what linkers write for programs.
	maxSections = 4096
	maxCommands = 1 << 20 // bytes of Mach-O load commands
	maxSymbols  = 2 << 20
	maxStrings  = 128 << 20
	maxPackages = 100_000
	// maxName is how much of a symbol's name is looked at. Only arguments of generic types are that long,
	// and they come after the package.
	maxName = 1024
)

// file is a program file of which nothing is trusted yet, and what was found in it.
type file struct {
	r    io.ReaderAt
	size uint64
	// sections has an entry for each section, in the order of the file.
	sections []section
	// debug is the size of what is not loaded.
	debug   uint64
	strings []byte
	symbols []symbol
	// packages numbers the packages, names are their names by number.
	packages map[string]int32
	names    []string
	// text and etext are where Go's code begins and ends, both 0 when unknown.
	text, etext uint64
	// cgo tells that there is C code.
	cgo bool
}

// section is a section that is loaded and has bytes in the file; size is 0 for all others.
type section struct {
	addr, size uint64
	code       bool
}

// symbol is a symbol of which a section has bytes.
type symbol struct {
	section int32
	pkg     int32
	// off and end are relative to the section. Without sized, end is where the next symbol begins.
	off, end uint64
	sized    bool
	// weak symbols mark a place that may have an owner of its own.
	weak bool
}

// bytes reads n bytes at off. The caller limits n.
func (f *file) bytes(off, n uint64, what string) ([]byte, error) {
	if off > f.size || n > f.size-off {
		return nil, malformed("%s reaches beyond the end of the file", what)
	}
	b := make([]byte, n)
	if n == 0 {
		return b, nil
	}
	if m, err := f.r.ReadAt(b, int64(off)); m < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF // the file is shorter than its size was said to be
		}
		return nil, fmt.Errorf("read at offset %d: %w", off, err)
	}
	return b, nil
}

// addSection adds the section that has size bytes of the file at off.
func (f *file) addSection(addr, off, size uint64, loaded, code bool) error {
	if len(f.sections) >= maxSections {
		return malformed("more than %d sections", maxSections)
	}
	if off > f.size || size > f.size-off {
		return malformed("section %d reaches beyond the end of the file", len(f.sections))
	}
	s := section{addr: addr, code: code}
	if loaded {
		s.size = size
	} else {
		f.debug += size
	}
	f.sections = append(f.sections, s)
	return nil
}

// table reads the strings and then the symbols, n of them with size bytes each, for which it calls each.
func (f *file) table(off, n, size uint64, strings, stringSize uint64, each func(b []byte)) error {
	if n == 0 {
		return ErrNoSymbols
	}
	if n > maxSymbols || stringSize > maxStrings {
		return malformed("%d symbols with names of %d bytes", n, stringSize)
	}
	var err error
	if f.strings, err = f.bytes(strings, stringSize, "the table of strings"); err != nil {
		return err
	}
	for n > 0 && err == nil {
		var b []byte
		chunk := min(n, 4096)
		if b, err = f.bytes(off, chunk*size, "the symbol table"); err == nil {
			for i := range chunk {
				each(b[i*size : (i+1)*size])
			}
			off, n = off+chunk*size, n-chunk
		}
	}
	if len(f.names) > maxPackages {
		return malformed("more than %d packages", maxPackages)
	}
	return err
}

// name returns the start of a name in the table of strings.
func (f *file) name(off uint32) []byte {
	if uint64(off) >= uint64(len(f.strings)) {
		return nil
	}
	b := f.strings[off:]
	return untilZero(b[:min(len(b), maxName)])
}

func untilZero(b []byte) []byte {
	for i, c := range b {
		if c == 0 {
			return b[:i]
		}
	}
	return b
}

// addSymbol adds a symbol of a section at an address. Its size is known where sized.
func (f *file) addSymbol(name []byte, number int, addr, size uint64, sized bool) {
	switch string(name) {
	case "runtime.text":
		f.text = addr
	case "runtime.etext":
		f.etext = addr
	case "x_cgo_init":
		f.cgo = true
	}
	if number < 0 || number >= len(f.sections) || len(name) == 0 {
		return
	}
	s := f.sections[number]
	if addr < s.addr || addr-s.addr >= s.size {
		return
	}
	what, marksEnd := classify(string(name))
	x := symbol{section: int32(number), off: addr - s.addr, weak: what == Tables, sized: sized}
	switch {
	case marksEnd:
		x.sized, x.end = true, x.off
	case sized && size > 0:
		x.end = x.off + min(size, s.size-x.off)
	case sized && what == Tables:
		x.sized = false // ELF has no sizes for the tables of the runtime, but they are one after the other
	case sized:
		return
	}
	var ok bool
	if x.pkg, ok = f.packages[what]; !ok {
		if len(f.names) > maxPackages {
			return // table says so
		}
		x.pkg = int32(len(f.names))
		f.packages[what] = x.pkg
		f.names = append(f.names, what)
	}
	f.symbols = append(f.symbols, x)
}

// weigh adds up the symbols.
func (f *file) weigh() []PackageWeight {
	all := f.symbols
	slices.SortFunc(all, func(a, b symbol) int {
		return cmp.Or(cmp.Compare(a.section, b.section), cmp.Compare(a.off, b.off))
	})
	for i, next := len(all)-1, len(all); i >= 0; i-- {
		// next is the first symbol further on.
		if i+1 < len(all) && (all[i+1].section != all[i].section || all[i+1].off != all[i].off) {
			next = i + 1
		}
		if all[i].sized {
			continue
		}
		if all[i].end = f.sections[all[i].section].size; next < len(all) && all[next].section == all[i].section {
			all[i].end = all[next].off
		}
	}
	// Of what begins at one place, the last owns it: what is not weak, then the smallest.
	slices.SortFunc(all, func(a, b symbol) int {
		if c := cmp.Or(cmp.Compare(a.section, b.section), cmp.Compare(a.off, b.off)); c != 0 {
			return c
		}
		if a.weak != b.weak {
			if a.weak {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(b.end, a.end), cmp.Compare(f.names[a.pkg], f.names[b.pkg]))
	})
	weights := map[string]*PackageWeight{}
	var open []symbol // which cover done, the innermost last
	var done uint64
	// give gives the bytes up to an offset to the innermost symbol that covers them.
	give := func(to uint64) {
		for len(open) > 0 && done < to {
			x := open[len(open)-1]
			if end := min(x.end, to); end > done {
				f.give(weights, x, end-done)
				done = end
			}
			if x.end <= done {
				open = open[:len(open)-1]
			}
		}
		done = max(done, to)
	}
	for i, x := range all {
		if i > 0 && all[i-1].section != x.section {
			give(f.sections[all[i-1].section].size)
			open, done = open[:0], 0
		}
		give(x.off)
		open = append(open, x)
	}
	if len(all) > 0 {
		give(f.sections[all[len(all)-1].section].size)
	}
	out := []PackageWeight{}
	for _, p := range weights {
		out = append(out, *p)
	}
	slices.SortFunc(out, func(a, b PackageWeight) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Package, b.Package))
	})
	return out
}

// give gives n bytes to a symbol's package.
func (f *file) give(weights map[string]*PackageWeight, x symbol, n uint64) {
	s := f.sections[x.section]
	name := f.names[x.pkg]
	switch outside := s.addr+x.off < f.text || s.addr+x.off >= f.etext; {
	case name == Tables:
	case s.code && outside && f.text < f.etext, !s.code && name == Assembly && f.cgo:
		name = C
	}
	p := weights[name]
	if p == nil {
		p = &PackageWeight{Package: name}
		weights[name] = p
	}
	p.Bytes += n
	if s.code {
		p.TextBytes += n
	} else {
		p.DataBytes += n
	}
}
