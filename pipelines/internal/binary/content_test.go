package binary

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestAnyByte changes one byte of each loaded section, and of what lies between sections.
func TestAnyByte(t *testing.T) {
	for _, p := range elfPrograms {
		t.Run(p.String(), func(t *testing.T) {
			for _, data := range [][]byte{load(t, build(t, p)), strip(t, load(t, build(t, p)))} {
				c := read(t, data)
				base, err := newFile(bytes.NewReader(data), int64(len(data)))
				require.NoError(t, err)
				f, err := parseELF(base)
				require.NoError(t, err)
				for _, s := range f.sections {
					if !s.loaded() || s.content().len() == 0 {
						continue
					}
					at := s.off + s.size/2
					other, err := Read(changed{bytes.NewReader(data), int64(at)}, int64(len(data)))
					require.NoError(t, err)
					require.NotEqual(t, c.Hash, other.Hash)
					require.Contains(t, Compare(c, other), Difference{Kind: KindContent, Section: s.name})
				}
			}
			// All of a stripped file's loaded segments count, wherever a byte lies.
			data := strip(t, load(t, build(t, p)))
			c := read(t, data)
			base, err := newFile(bytes.NewReader(data), int64(len(data)))
			require.NoError(t, err)
			f, err := parseELF(base)
			require.NoError(t, err)
			end := f.image().end
			covered := []span{{0, f.headerSize}, f.programs}
			for _, s := range f.sections {
				if s.loaded() {
					covered = append(covered, s.content())
				}
			}
			for _, p := range f.segments {
				if p.typ != elf.PT_LOAD {
					continue
				}
				for _, gap := range subtract(keptOf([]span{{0, end}}, p.content()), merge(covered)) {
					for _, at := range []uint64{gap.start, gap.end - 1} {
						other, err := Read(changed{bytes.NewReader(data), int64(at)}, int64(len(data)))
						require.NoError(t, err)
						require.NotEqual(t, c.Hash, other.Hash, "byte %#x", at)
						d := Compare(c, other)
						require.Len(t, d, 1)
						require.Equal(t, KindSegment, d[0].Kind)
					}
				}
			}
		})
	}
}

// TestEveryByteOfTiny changes every byte of small stripped files in turn, and expects that all changes are
// noticed but those in the few places that Read documents.
func TestEveryByteOfTiny(t *testing.T) {
	for _, before := range tinyELFs() {
		data := strip(t, before)
		c := read(t, data)
		base, err := newFile(bytes.NewReader(data), int64(len(data)))
		require.NoError(t, err)
		f, err := parseELF(base)
		require.NoError(t, err)
		var unnoticed []uint64
		for at := range f.image().end {
			other, err := Read(changed{bytes.NewReader(data), int64(at)}, int64(len(data)))
			if err == nil && other.Hash == c.Hash {
				unnoticed = append(unnoticed, at)
			}
			if err == nil {
				require.Equal(t, other.Hash == c.Hash, len(Compare(c, other)) == 0)
			}
		}
		// e_ehsize and p_paddr mean nothing to anyone, nor does the offset of an empty segment.
		var free []uint64
		field := func(at, size uint64) {
			for i := range size {
				free = append(free, at+i)
			}
		}
		field(f.headerSize-12, 2)
		word := f.either(8, 4)
		for i, p := range f.segments {
			at := f.programs.start + uint64(i)*f.programSize()
			if p.filesz == 0 {
				field(at+word, word)
			}
			field(at+3*word, word)
		}
		require.Equal(t, free, unnoticed)
	}
}

func TestReadOthers(t *testing.T) {
	for _, p := range otherPrograms {
		t.Run(p.String(), func(t *testing.T) {
			file := build(t, p)
			data := load(t, file)
			c := read(t, data)
			id, err := goCommand(p, "tool", "buildid", file).Output()
			require.NoError(t, err)
			require.Equal(t, strings.TrimSpace(string(id)), c.BuildID)
			require.NotEmpty(t, c.BuildID)
			require.NotZero(t, c.Entry)
			require.False(t, c.Dynamic)
			code := ".text"
			if c.Format == "macho" {
				code = "__TEXT,__text"
				require.Contains(t, c.Libraries, "/usr/lib/libSystem.B.dylib")
			} else {
				require.Contains(t, c.Libraries, "kernel32.dll")
			}
			i := slices.IndexFunc(c.Sections, func(s Section) bool { return s.Name == code })
			require.GreaterOrEqual(t, i, 0)
			require.Equal(t, "rx", c.Sections[i].Access)
			require.Len(t, c.Sections[i].SHA256, 64)
			debug := slices.IndexFunc(c.Sections, func(s Section) bool { return strings.HasSuffix(s.Name, "debug_info") })
			require.GreaterOrEqual(t, debug, 0, "no debug information: %v", c.Sections)
			require.False(t, c.Sections[debug].Loaded)

			base, err := newFile(bytes.NewReader(data), int64(len(data)))
			require.NoError(t, err)
			m, err := mapFile(base)
			require.NoError(t, err)
			for _, r := range m.regions {
				loaded := slices.ContainsFunc(c.Sections, func(s Section) bool { return s.Name == r.name && s.Loaded })
				other, err := Read(changed{bytes.NewReader(data), int64(r.start + r.len()/2)}, int64(len(data)))
				if r.name == "file header" {
					continue
				}
				require.NoError(t, err)
				require.Equal(t, loaded, other.Hash != c.Hash, r.name)
				if loaded {
					require.Equal(t, []Difference{{Kind: KindContent, Section: r.name}}, Compare(c, other))
				}
			}
		})
	}
}

func TestReadTiny(t *testing.T) {
	pe, macho := read(t, tinyPE()), read(t, tinyMachO())
	require.Equal(t, "the/build/id", pe.BuildID)
	require.Equal(t, []string{"kernel32.dll"}, pe.Libraries)
	require.Equal(t, uint64(0x140001010), pe.Entry)
	require.Equal(t, ".debug_info", pe.Sections[2].Name)
	require.Equal(t, "the/build/id", macho.BuildID)
	require.Equal(t, []string{"/usr/lib/libSystem.B.dylib"}, macho.Libraries)
	require.Equal(t, uint64(0x100000410), macho.Entry)

	for _, data := range [][]byte{nil, []byte("MZ"), []byte("text"), {0xca, 0xfe, 0xba, 0xbe, 0, 0, 0, 2}} {
		_, err := Read(bytes.NewReader(data), int64(len(data)))
		require.Error(t, err)
	}
	for _, data := range [][]byte{tinyPE()[:0x704+4], tinyMachO()} {
		for n := range len(data) {
			_, err := Read(bytes.NewReader(data), int64(n))
			require.Error(t, err, "%d of %d bytes", n, len(data))
		}
	}
}

// TestJSON makes sure that what Compare needs survives the run record, and that the hash of a given file
// stays what it is: records of earlier runs have it.
func TestJSON(t *testing.T) {
	want := []string{"0577cac83f6ba0b3", "30839dc485328558", "77f0ae95e9bdcd66", "2b88f7512028e544",
		"3a7e5c56cb7b185b", "cca52e7d0283004b"}
	for i, data := range append(tinyELFs(), tinyPE(), tinyMachO()) {
		c := read(t, data)
		text, err := json.Marshal(c)
		require.NoError(t, err)
		var again Content
		require.NoError(t, json.Unmarshal(text, &again))
		require.Equal(t, c, &again)
		require.Equal(t, c.Hash, again.hash())
		require.Equal(t, want[i], c.Hash[:16])
	}
}

func FuzzRead(f *testing.F) {
	for _, data := range append(tinyELFs(), tinyPE(), tinyMachO()) {
		f.Add(data, []byte(nil), uint32(700))
		f.Add(data, make([]byte, 24), uint32(100))
	}
	f.Fuzz(func(t *testing.T, data, patches []byte, at uint32) {
		data = patch(data, patches)
		requireInvariants(t, data)
		c, err := Read(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		if int(at) >= len(data) {
			return
		}
		// Compare and the hash must agree about any two files.
		other, err := Read(changed{bytes.NewReader(data), int64(at)}, int64(len(data)))
		if err == nil {
			require.Equal(t, c.Hash == other.Hash, len(Compare(c, other)) == 0)
		}
		if _, err := FirstDifference(bytes.NewReader(data), int64(len(data)), changed{bytes.NewReader(data), int64(at)}, int64(len(data))); err != nil {
			require.ErrorIs(t, err, ErrMalformed)
		}
	})
}

// zeros is a file of zeros without end.
type zeros struct{}

func (zeros) ReadAt(b []byte, off int64) (int, error) { clear(b); return len(b), nil }

// BenchmarkRead hashes a program of the size of real ones.
func BenchmarkRead(b *testing.B) {
	data := load(b, build(b, program{release: "1.27.4", platform: "linux/amd64"}))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Read(bytes.NewReader(data), int64(len(data))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSum(b *testing.B) {
	f := &file{zeros{}, 64 << 20}
	buf := make([]byte, copyBuffer)
	b.SetBytes(64 << 20)
	for b.Loop() {
		if _, err := f.sum(span{0, f.size}, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStrip(b *testing.B) {
	data := load(b, build(b, program{release: "1.27.4", platform: "linux/amd64"}))
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := Strip(io.Discard, bytes.NewReader(data), int64(len(data))); err != nil {
			b.Fatal(err)
		}
	}
}
