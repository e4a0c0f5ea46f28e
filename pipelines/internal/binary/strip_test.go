package binary

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func strip(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	require.NoError(t, Strip(&out, bytes.NewReader(data), int64(len(data))))
	return out.Bytes()
}

func read(t testing.TB, data []byte) *Content {
	t.Helper()
	c, err := Read(bytes.NewReader(data), int64(len(data)))
	require.NoError(t, err)
	return c
}

func load(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	return data
}

// changed is a file in which one byte is another.
type changed struct {
	io.ReaderAt
	at int64
}

func (c changed) ReadAt(b []byte, off int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(b, off)
	if i := c.at - off; i >= 0 && i < int64(n) {
		b[i] ^= 0x20
	}
	return n, err
}

// requireStripped checks with package elf, which shares no code with Strip, that after is before without
// what is not loaded.
func requireStripped(t *testing.T, before, after []byte) {
	t.Helper()
	old, err := elf.NewFile(bytes.NewReader(before))
	require.NoError(t, err)
	stripped, err := elf.NewFile(bytes.NewReader(after))
	require.NoError(t, err)
	require.Equal(t, old.FileHeader, stripped.FileHeader)
	require.Len(t, stripped.Progs, len(old.Progs))
	for i := range old.Progs {
		require.Equal(t, old.Progs[i].ProgHeader, stripped.Progs[i].ProgHeader)
	}
	name := func(f *elf.File, i uint32) string {
		s := f.Sections[i]
		if s.Flags&elf.SHF_ALLOC == 0 {
			return "" // removed, or going to be
		}
		return s.Name
	}
	stay := []*elf.Section{stripped.Sections[0]}
	for _, s := range old.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 && s.Name != ".shstrtab" {
			continue
		}
		if len(stay) >= len(stripped.Sections) {
			t.Fatalf("section %s is gone", s.Name)
		}
		new := stripped.Sections[len(stay)]
		stay = append(stay, new)
		if s.Name == ".shstrtab" {
			require.Equal(t, s.Name, new.Name)
			continue
		}
		require.Equal(t, name(old, s.Link), name(stripped, new.Link), "link of %s", s.Name)
		want, have := s.SectionHeader, new.SectionHeader
		if s.Type == elf.SHT_REL || s.Type == elf.SHT_RELA {
			require.Equal(t, name(old, s.Info), name(stripped, new.Info), "info of %s", s.Name)
			want.Info = have.Info
		}
		want.Link = have.Link
		require.Equal(t, want, have)
		if s.Type != elf.SHT_NOBITS {
			a, err := s.Data()
			require.NoError(t, err)
			b, err := new.Data()
			require.NoError(t, err)
			require.True(t, bytes.Equal(a, b), "content of %s", s.Name)
		}
	}
	require.Len(t, stripped.Sections, len(stay))
	// .dynsym names sections by number and cannot be changed.
	symbols, err := old.DynamicSymbols()
	if err == nil {
		for _, s := range symbols {
			if s.Section > 0 && s.Section < elf.SHN_LORESERVE {
				require.Equal(t, old.Sections[s.Section].Name, stripped.Sections[s.Section].Name, "symbol %s", s.Name)
			}
		}
	}
}

func TestStripGoPrograms(t *testing.T) {
	for _, p := range elfPrograms {
		t.Run(p.String(), func(t *testing.T) {
			file := build(t, p)
			before := load(t, file)
			after := strip(t, before)
			require.Less(t, len(after), len(before)*4/5)
			requireStripped(t, before, after)
			require.True(t, bytes.Equal(after, strip(t, after)), "stripping again changed something")

			a, b := read(t, before), read(t, after)
			require.Empty(t, Compare(a, b))
			require.Equal(t, a.Hash, b.Hash)
			require.Equal(t, p.mode != "" && p.mode != "static-cgo", b.Dynamic)
			require.Equal(t, a.Libraries, b.Libraries)
			if p.mode == "cgo" {
				require.Contains(t, b.Libraries, "libc.so.6")
			}
			id, err := goCommand(p, "tool", "buildid", file).Output()
			require.NoError(t, err)
			require.Equal(t, strings.TrimSpace(string(id)), b.BuildID)
			require.NotEmpty(t, b.BuildID)

			info, err := buildinfo.Read(bytes.NewReader(before))
			require.NoError(t, err)
			info2, err := buildinfo.Read(bytes.NewReader(after))
			require.NoError(t, err)
			require.Equal(t, info.String(), info2.String())
			require.Equal(t, "go"+p.release, info2.GoVersion)

			requireDigests(t, before, a)

			stripped := filepath.Join(t.TempDir(), "hello")
			require.NoError(t, os.WriteFile(stripped, after, 0o755))
			out, err := goCommand(p, "version", "-m", stripped).CombinedOutput()
			require.NoError(t, err)
			require.Contains(t, string(out), "go"+p.release)
			require.Contains(t, string(out), "example.com/hello")
			if p.platform == runtime.GOOS+"/"+runtime.GOARCH {
				out, err := exec.Command(stripped).CombinedOutput()
				require.NoError(t, err, "%s", out)
				require.Contains(t, string(out), "hello")
			}
			t.Run("readelf", func(t *testing.T) { requireReadelf(t, file, stripped) })
			t.Run("GNU strip", func(t *testing.T) {
				requireSameAsGNU(t, file, b)
				requireSameAsGNU(t, stripped, b)
			})
		})
	}
}

// requireDigests checks the digests of sections, again with package elf.
func requireDigests(t *testing.T, data []byte, c *Content) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(data))
	require.NoError(t, err)
	require.Len(t, c.Sections, len(f.Sections)-1)
	for i, s := range f.Sections[1:] {
		want := ""
		if s.Flags&elf.SHF_ALLOC != 0 && s.Type != elf.SHT_NOBITS && s.Size > 0 {
			content, err := s.Data()
			require.NoError(t, err)
			want = fmt.Sprintf("%x", sha256.Sum256(content))
		}
		require.Equal(t, want, c.Sections[i].SHA256, s.Name)
	}
}

// requireReadelf checks that GNU readelf finds nothing wrong with a stripped file that it did not find
// wrong with the file before.
func requireReadelf(t *testing.T, before, after string) {
	if _, err := exec.LookPath("readelf"); err != nil {
		t.Skip("binutils (readelf) is not installed")
	}
	warnings := func(file string) []string {
		out, err := exec.Command("readelf", "-a", "-W", file).CombinedOutput()
		require.NoError(t, err, "%s", out)
		// Numbers of sections change.
		return regexp.MustCompile(`(?m)^.*(?:Warning|Error):.*$`).FindAllString(regexp.MustCompile(`\d+`).ReplaceAllString(string(out), "N"), -1)
	}
	require.Subset(t, append(warnings(before), ""), append(warnings(after), ""))
}

// requireSameAsGNU strips the file with GNU strip and compares what is loaded of the result with c.
func requireSameAsGNU(t *testing.T, file string, c *Content) {
	if _, err := exec.LookPath("strip"); err != nil {
		t.Skip("binutils (GNU strip) is not installed")
	}
	gnu := filepath.Join(t.TempDir(), "gnu")
	out, err := exec.Command("strip", "-o", gnu, file).CombinedOutput()
	if strings.Contains(string(out), "Unable to recognise the format") {
		t.Skip("this GNU strip does not know the processor")
	}
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
	other := read(t, load(t, gnu))
	require.Empty(t, Compare(c, other))
	require.Equal(t, c.Hash, other.Hash)
}

func TestStripTiny(t *testing.T) {
	for _, before := range tinyELFs() {
		after := strip(t, before)
		requireStripped(t, before, after)
		require.Equal(t, after, strip(t, after))
		a, b := read(t, before), read(t, after)
		require.Equal(t, a.Hash, b.Hash)
		require.Equal(t, "the/build/id", b.BuildID)
		require.Equal(t, "01020304", b.GNUBuildID)
		require.Equal(t, []string{"libc.so.6"}, b.Libraries)
		require.True(t, b.Dynamic)
		found, err := Contains(bytes.NewReader(after), []string{"debug", "symbol", ".strtab", ".text", "got!"})
		require.NoError(t, err)
		require.Equal(t, []string{".text", "got!"}, found)
	}
}

func TestStripNoNames(t *testing.T) {
	// A file whose sections have no names gets a .shstrtab; one without sections gets none.
	named := tinyELF(true, binary.LittleEndian)
	nameless := bytes.Clone(named)
	binary.LittleEndian.PutUint16(nameless[62:], 0)
	once := strip(t, nameless)
	require.Equal(t, once, strip(t, once))
	require.Equal(t, read(t, nameless).Hash, read(t, once).Hash)

	clear(nameless[40:48])
	clear(nameless[60:64])
	once = strip(t, nameless)
	require.Equal(t, once, strip(t, once))
	require.Equal(t, read(t, nameless).Hash, read(t, once).Hash)
	require.Empty(t, read(t, once).Sections)
}

func TestStripErrors(t *testing.T) {
	stripErr := func(data []byte) error {
		return Strip(io.Discard, bytes.NewReader(data), int64(len(data)))
	}
	for name, data := range map[string][]byte{
		"nothing": nil, "text": []byte("#!/bin/sh\n"), "archive": []byte("!<arch>\n"),
		"PE": tinyPE(), "Mach-O": tinyMachO(),
	} {
		require.ErrorIs(t, stripErr(data), ErrNotELF, name)
	}
	object := tinyELF(true, binary.LittleEndian)
	object[16] = byte(elf.ET_REL)
	require.ErrorIs(t, stripErr(object), ErrNotELF)

	// Whatever is cut off the end, a header is missing or reaches beyond the end.
	for _, data := range tinyELFs() {
		for n := 4; n < len(data); n++ {
			require.ErrorIs(t, stripErr(data[:n]), ErrMalformed, "%d of %d bytes", n, len(data))
			_, err := Read(bytes.NewReader(data), int64(n))
			require.ErrorIs(t, err, ErrMalformed, "%d of %d bytes", n, len(data))
		}
	}
	// The headers do not lie about the file here, but the size does.
	data := tinyELF(true, binary.LittleEndian)
	err := Strip(io.Discard, bytes.NewReader(data[:len(data)-1]), int64(len(data)))
	require.NoError(t, err, "the last byte is not needed")
	short := tinyELF(true, binary.LittleEndian)[:600]
	require.ErrorIs(t, Strip(io.Discard, bytes.NewReader(short), int64(len(data))), io.ErrUnexpectedEOF)

	after, full := len(strip(t, data)), errors.New("disk full")
	for room := range after {
		require.ErrorIs(t, Strip(&limited{room, full}, bytes.NewReader(data), int64(len(data))), full)
	}
	require.ErrorIs(t, Strip(io.Discard, bytes.NewReader(data), -1), ErrMalformed)
}

// limited is a writer that fails after room bytes.
type limited struct {
	room int
	err  error
}

func (w *limited) Write(b []byte) (int, error) {
	if len(b) > w.room {
		return w.room, w.err
	}
	w.room -= len(b)
	return len(b), nil
}

// TestMalformed sets each field of each header to values that cannot be right. None may panic, and those
// that concern what is loaded must be noticed.
func TestMalformed(t *testing.T) {
	for _, good := range append(tinyELFs(), tinyPE(), tinyMachO()) {
		for at := range min(len(good)-8, 1200) {
			for _, v := range [][]byte{{0}, {0xff, 0xff}, {0, 0, 0, 0x80}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}} {
				data := bytes.Clone(good)
				copy(data[at:], v)
				requireInvariants(t, data)
			}
		}
	}
}

// requireInvariants checks what must hold for any bytes at all.
func requireInvariants(t *testing.T, data []byte) {
	t.Helper()
	c, errRead := Read(bytes.NewReader(data), int64(len(data)))
	if errRead != nil && !errors.Is(errRead, ErrMalformed) && !errors.Is(errRead, ErrFormat) {
		t.Fatalf("another error: %v", errRead)
	}
	var once bytes.Buffer
	if err := Strip(&once, bytes.NewReader(data), int64(len(data))); err != nil {
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrNotELF) {
			t.Fatalf("another error: %v", err)
		}
		return
	}
	var twice bytes.Buffer
	require.NoError(t, Strip(&twice, bytes.NewReader(once.Bytes()), int64(once.Len())))
	require.True(t, bytes.Equal(once.Bytes(), twice.Bytes()), "stripping again changed something")
	if errRead == nil {
		stripped := read(t, once.Bytes())
		require.Empty(t, Compare(c, stripped))
		require.Equal(t, c.Hash, stripped.Hash)
		require.Equal(t, c.BuildID, stripped.BuildID)
		require.Equal(t, c.GNUBuildID, stripped.GNUBuildID)
	}
}

// sparse is tinyELF with a segment of a given size after it, all zeros.
type sparse struct {
	head []byte
	size int64
}

func (s sparse) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(s.head)) {
		copy(b, s.head[off:])
	}
	return int(min(int64(len(b)), s.size-off)), nil
}

func TestMemory(t *testing.T) {
	// A loaded segment of 256 MiB in the place of PT_GNU_STACK.
	const size = 256 << 20
	head := tinyELF(true, binary.LittleEndian)
	le := binary.LittleEndian
	p := head[64+3*56:]
	le.PutUint32(p, uint32(elf.PT_LOAD))
	le.PutUint64(p[8:], uint64(len(head)))
	le.PutUint64(p[16:], 0x20000000)
	le.PutUint64(p[32:], size)
	le.PutUint64(p[40:], size)
	file := sparse{head, int64(len(head)) + size}

	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	require.NoError(t, Strip(io.Discard, file, file.size))
	_, err := Read(file, file.size)
	require.NoError(t, err)
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
}

// patch sets fields of data: each 12 bytes of patches are an offset (2 bytes), a width (2 bytes, of which
// the lowest two bits count) and a value. Random bytes rarely leave headers that make sense; few fields
// changed in a good file do.
func patch(data, patches []byte) []byte {
	data = bytes.Clone(data)
	for ; len(patches) >= 12 && len(data) > 8; patches = patches[12:] {
		at := int(binary.LittleEndian.Uint16(patches)) % (len(data) - 8)
		width := 1 << (patches[2] & 3)
		copy(data[at:at+width], patches[4:])
	}
	return data
}

func FuzzStrip(f *testing.F) {
	for _, data := range tinyELFs() {
		f.Add(data, []byte(nil))
		var out bytes.Buffer
		require.NoError(f, Strip(&out, bytes.NewReader(data), int64(len(data))))
		f.Add(out.Bytes(), make([]byte, 12))
		for _, at := range []uint16{40, 60, 72, 96, 128, 360, 400, 424} {
			p := binary.LittleEndian.AppendUint16(nil, at)
			f.Add(data, append(p, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0))
		}
	}
	f.Fuzz(func(t *testing.T, data, patches []byte) { requireInvariants(t, patch(data, patches)) })
}
