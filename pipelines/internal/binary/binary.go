// Package binary says what the operating system loads of a linked program, strips everything else from
// it, and names what differs between two programs.
//
// Stripping changes a file, so the hashes of the file before and after must differ. What must not change
// is what the kernel loads. [Read] describes exactly that and gives it one hash, [Strip] keeps it byte for
// byte, and [Compare] names the section where two programs part.
//
// All bytes that this package reads are foreign. Every size and offset in them is checked against the
// size of the file before it is used, and nothing is held in memory but headers and a copying buffer.
package binary

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Errors that the functions of this package wrap.
var (
	// ErrNotELF means that a file is not a linked ELF program or shared library, so Strip cannot strip
	// it: PE and Mach-O programs, object files and archives. Link these with -s -w instead.
	ErrNotELF = errors.New("not a linked ELF file")
	// ErrFormat means that a file is none of ELF, PE and thin Mach-O.
	ErrFormat = errors.New("not an ELF, PE or thin Mach-O file")
	// ErrMalformed means that a file's headers contradict themselves, reach beyond the end of the file,
	// or have more entries than any linker of programs writes.
	ErrMalformed = errors.New("malformed program file")
)

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, a...))
}

const (
	// maxName is the limit of one section's, library's or segment's name in bytes.
	maxName = 1024
	// copyBuffer is the size of the buffer through which ranges of a file stream. Larger ones are no
	// faster with SHA-256, smaller ones cost system calls.
	copyBuffer = 128 << 10
)

// file is a program file of which nothing is trusted yet.
type file struct {
	r    io.ReaderAt
	size uint64
}

func newFile(r io.ReaderAt, size int64) (*file, error) {
	if size < 0 {
		return nil, malformed("its size is negative")
	}
	return &file{r: r, size: uint64(size)}, nil
}

// holds tells whether the n bytes from off lie in the file. It cannot overflow.
func (f *file) holds(off, n uint64) bool { return off <= f.size && n <= f.size-off }

// bytes reads n bytes at off. The caller limits n.
func (f *file) bytes(off, n uint64, what string) ([]byte, error) {
	if !f.holds(off, n) {
		return nil, malformed("%s reaches beyond the end of the file", what)
	}
	b := make([]byte, n)
	return b, f.fill(b, off)
}

// fill reads len(b) bytes at off, which the caller has checked.
func (f *file) fill(b []byte, off uint64) error {
	if len(b) == 0 {
		return nil
	}
	n, err := f.r.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF // the file is shorter than its size was said to be
	}
	return fmt.Errorf("read at offset %d: %w", off, err)
}

// text reads the text at off that a zero byte ends; it must end before limit, an offset.
func (f *file) text(off, limit uint64, what string) (string, error) {
	limit = min(limit, f.size)
	var text []byte
	for off < limit && len(text) < maxName {
		b, err := f.bytes(off, min(64, limit-off), what)
		if err != nil {
			return "", err
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(append(text, b[:i]...)), nil
		}
		text = append(text, b...)
		off += uint64(len(b))
	}
	return "", malformed("%s does not end", what)
}

// copy streams the span s to w.
func (f *file) copy(w io.Writer, s span, buf []byte) error {
	for off := s.start; off < s.end; {
		b := buf[:min(uint64(len(buf)), s.end-off)]
		if err := f.fill(b, off); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		off += uint64(len(b))
	}
	return nil
}

// sum returns the SHA-256 of the span s in hex.
func (f *file) sum(s span, buf []byte) (string, error) {
	h := sha256.New()
	if err := f.copy(h, s, buf); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Marks of the Go build ID in files that have no notes. See cmd/internal/buildid in the Go source.
var (
	buildIDStart = []byte("\xff Go build ID: \"")
	buildIDEnd   = []byte("\"\n \xff")
)

// buildIDSearch is how far the go command searches for the build ID.
const buildIDSearch = 32 << 10

// embeddedBuildID finds the Go build ID as "go tool buildid" does where there are no notes, in the first
// 32 KiB of s. It returns the ID and where its text lies.
func (f *file) embeddedBuildID(s span) (string, span, error) {
	b, err := f.bytes(s.start, min(s.len(), buildIDSearch), "the start of the code")
	if err != nil {
		return "", span{}, err
	}
	i := bytes.Index(b, buildIDStart)
	if i < 0 {
		return "", span{}, nil
	}
	// The quotation mark is part of what is unquoted.
	i += len(buildIDStart) - 1
	j := bytes.Index(b[i:], buildIDEnd)
	if j < 0 {
		return "", span{}, nil
	}
	id, err := strconv.Unquote(string(b[i : i+j+1]))
	if err != nil {
		return "", span{}, nil
	}
	return id, span{s.start + uint64(i), s.start + uint64(i+j+1)}, nil
}

// byteOrder is binary.LittleEndian or binary.BigEndian.
type byteOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

// fields reads the fields of a header one after the other, or writes them.
type fields struct {
	b     []byte
	order byteOrder
	// is64 makes an address 8 bytes, else it is 4.
	is64 bool
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
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

func (p *fields) put32(v uint32) { p.b = p.order.AppendUint32(p.b, v) }

func (p *fields) putAddr(v uint64) {
	if p.is64 {
		p.b = p.order.AppendUint64(p.b, v)
	} else {
		p.put32(uint32(v))
	}
}
