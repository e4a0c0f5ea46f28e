package binary

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Content is what the operating system loads of a program.
type Content struct {
	// Format is "elf", "pe" or "macho".
	Format string `json:"format"`
	// Header is what the file header says, written out: class, byte order, machine and the like. Where
	// tables lie in the file is no part of it.
	Header string `json:"header"`
	// Entry is the address of the first instruction. For Mach-O it is 0 when there is no LC_MAIN.
	Entry uint64 `json:"entry"`
	// BuildID is the Go build ID as "go tool buildid" prints it, empty when absent.
	BuildID string `json:"buildID,omitempty"`
	// GNUBuildID is the GNU build ID of an ELF file in hex, empty when absent.
	GNUBuildID string `json:"gnuBuildID,omitempty"`
	// Dynamic tells that an ELF file needs a dynamic loader: it has a PT_INTERP segment or names
	// libraries. It is false for PE and Mach-O, where every program uses libraries of the system.
	Dynamic bool `json:"dynamic"`
	// Libraries are the shared libraries that the program names, in the order of the file.
	Libraries []string `json:"libraries,omitempty"`
	// Segments are the program headers of an ELF file, PT_NULL left out, and the segments of a Mach-O
	// file but for __DWARF and __LINKEDIT.
	Segments []Segment `json:"segments,omitempty"`
	// Sections are in the order of the section table.
	Sections []Section `json:"sections"`
	// Hash is the SHA-256, in hex, of the text that describes all of the above: see Read.
	Hash string `json:"hash"`
}

// Section is a section of a program.
type Section struct {
	// Name is ".text"; for Mach-O "__TEXT,__text".
	Name string `json:"name"`
	// Address is where it lies in memory (before relocation, if any).
	Address uint64 `json:"address"`
	// Size is its size in memory in bytes.
	Size uint64 `json:"size"`
	// Access is "r" and of "wxt" what holds: writable, executable, thread-local. Loaded sections only.
	Access string `json:"access,omitempty"`
	// Loaded tells that the section is in memory when the program runs. For PE it is false for sections
	// that the format calls discardable, other than .reloc: debug information and symbols.
	Loaded bool `json:"loaded"`
	// SHA256 is the digest, in hex, of the content of a loaded section that has bytes in the file.
	SHA256 string `json:"sha256,omitempty"`
}

// Segment is a part of a program that the kernel loads or looks at.
type Segment struct {
	// Name is "LOAD", "INTERP" and so on; for Mach-O "__TEXT".
	Name string `json:"name"`
	// Access is of "rwx" what holds, and other flags in hex ("rx+0x100000") where there are any.
	Access  string `json:"access"`
	Address uint64 `json:"address"`
	// FileSize is the number of bytes that come from the file. Zeros at the end of a LOAD segment that
	// no section owns are not counted: it makes no difference to memory whether they come from the file,
	// and GNU strip cuts them. For GNU_RELRO, which only protects memory, it is 0.
	FileSize uint64 `json:"fileSize"`
	// MemorySize is the size in memory in bytes. For a LOAD segment all of which comes from the file it
	// equals FileSize.
	MemorySize uint64 `json:"memorySize"`
	Align      uint64 `json:"align"`
	// SHA256 is the digest, in hex, of what no section tells about: of a LOAD segment the bytes between
	// its sections, of another one its bytes if they are in no LOAD segment. Empty when there are none,
	// or only zeros.
	SHA256 string `json:"sha256,omitempty"`
}

// Read reads what the operating system loads of the program r of size bytes: ELF, PE or thin Mach-O.
// Errors are ErrFormat, ErrMalformed and those of r.
//
// [Content.Hash] is the SHA-256 of a text with one line each for
//
//   - the format, with the version of this text;
//   - the file header (for ELF: the 16 bytes of e_ident, e_type, e_machine, e_version and e_flags), the
//     entry address, and the Go build ID;
//   - each segment in the order of the file: name, access, address, file size, memory size, alignment and
//     digest, as described at [Segment];
//   - each loaded section, ordered by address: name, access, address, size and digest. Only letters w, x
//     and t of the flags count: no kernel or dynamic loader reads section headers, and GNU strip corrects
//     types and flags that Go's linker has set (.gnu.version, .rela.plt).
//
// For ELF that covers every byte of every loaded segment, whether a section owns it or not, but for these:
//
//   - The ELF header and the program headers. The first segment usually maps them, yet each strip has to
//     change where the section headers are (e_shoff, e_shnum, e_shstrndx), and may move segments within
//     the file (p_offset). Their fields that mean something at run time are in the text above; what is
//     missing there is e_ehsize, p_paddr, and where in the file the tables and segments are.
//   - Section headers, and sections that are not loaded, that lie within a loaded segment without being
//     part of any loaded section. They count as zeros. Strip makes them zeros, so in a stripped file
//     nothing is left out.
//
// What the kernel maps beyond a segment's end to fill the last page is no part of the segment and is not
// counted.
//
// For PE and Mach-O the loaded sections and the entry count, which is good for telling where two files
// differ. Their headers, and what lies between sections, are not covered.
func Read(r io.ReaderAt, size int64) (*Content, error) {
	f, err := newFile(r, size)
	if err != nil {
		return nil, err
	}
	magic, err := f.bytes(0, min(4, f.size), "the file")
	if err != nil {
		return nil, err
	}
	var c *Content
	switch {
	case isELF(magic):
		c, err = readELF(f)
	case isPE(magic):
		c, err = readPE(f)
	case isMachO(magic):
		c, err = readMachO(f)
	default:
		err = ErrFormat
	}
	if err != nil {
		return nil, err
	}
	c.Hash = c.hash()
	return c, nil
}

func (c *Content) hash() string {
	h := sha256.New()
	fmt.Fprintf(h, "%s content 1\nheader %+q\nentry %#x\nbuild ID %+q\n", c.Format, c.Header, c.Entry, c.BuildID)
	for _, s := range c.Segments {
		fmt.Fprintf(h, "segment %+q %s %#x %#x %#x %#x %s\n",
			s.Name, s.Access, s.Address, s.FileSize, s.MemorySize, s.Align, s.SHA256)
	}
	for _, s := range c.loaded() {
		io.WriteString(h, s.line())
	}
	return hex.EncodeToString(h.Sum(nil))
}

// line describes the section in the text of which Content.Hash is the digest.
func (s Section) line() string {
	return fmt.Sprintf("section %#x %#x %+q %s %s\n", s.Address, s.Size, s.Name, s.Access, s.SHA256)
}

// loaded returns the loaded sections ordered by address, in the same order however the file orders them.
func (c *Content) loaded() []Section {
	loaded := slices.DeleteFunc(slices.Clone(c.Sections), func(s Section) bool { return !s.Loaded })
	slices.SortStableFunc(loaded, func(a, b Section) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), strings.Compare(a.line(), b.line()))
	})
	return loaded
}

// access returns "rwx" with only those letters that hold.
func access(letters string, holds ...bool) string {
	var s strings.Builder
	for i, ok := range holds {
		if ok {
			s.WriteByte(letters[i])
		}
	}
	return s.String()
}
