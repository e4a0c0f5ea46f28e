package deps

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// build links a small program: a package whose path needs escapes in the names of symbols, type arguments
// from another package, methods, variables with and without a value.
func build(t *testing.T, platform string, cgo bool, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"go.mod": "module example.com/hello\n\ngo 1.21\n",
		"main.go": `package main

import dotted "example.com/hello/dotted.v2"

type local struct{ a, b int }

func (l *local) Sum() int { return l.a + l.b }

func main() { println(dotted.Apply(&local{1, 2}), dotted.Table[3], dotted.Zeros[4]) }
`,
		"dotted.v2/dotted.go": `package dotted

var (
	Table = [512]uint64{1: 2, 3: 4, 500: 501}
	Zeros [4096]int
)

//go:noinline
func Apply[T interface{ Sum() int }](x T) int { return x.Sum() * len(Table) }
`,
	}
	if cgo {
		files["c.go"] = "package main\n\n// static __attribute__((noinline)) int plus(int x) { static int n; return n += x; }\nimport \"C\"\n\nfunc init() { println(C.plus(1)) }\n"
	}
	for name, text := range files {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	file := filepath.Join(dir, "hello")
	cmd := exec.Command("go", append(append([]string{"build", "-o", file}, args...), ".")...)
	cmd.Dir = dir
	goos, goarch, _ := strings.Cut(platform, "/")
	enabled := "0"
	if cgo {
		enabled = "1"
	}
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED="+enabled, "GOWORK=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return file
}

func weigh(t *testing.T, file string) (*Weight, error) {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	i, err := f.Stat()
	require.NoError(t, err)
	w, err := Weigh(f, i.Size())
	if err == nil {
		requireSum(t, w, i.Size())
	}
	return w, err
}

// requireSum makes sure that every byte of the file is in one place.
func requireSum(t testing.TB, w *Weight, size int64) {
	t.Helper()
	sum := w.DebugBytes + w.OtherBytes
	for i, p := range w.Packages {
		require.Equal(t, p.Bytes, p.TextBytes+p.DataBytes)
		require.NotZero(t, p.Bytes)
		require.True(t, i == 0 || w.Packages[i-1].Bytes >= p.Bytes)
		sum += p.Bytes
	}
	require.Equal(t, uint64(size), sum)
	require.Equal(t, uint64(size), w.FileBytes)
}

func (w *Weight) of(name string) PackageWeight {
	for _, p := range w.Packages {
		if p.Package == name {
			return p
		}
	}
	return PackageWeight{}
}

// nm adds up what "go tool nm -size" says of the symbols that begin with prefix: of code, and of others for
// which keep does not say that they take nothing of the file.
func nm(t *testing.T, file, prefix string, keep func(addr uint64) bool) (text, data uint64) {
	t.Helper()
	out, err := exec.Command("go", "tool", "nm", "-size", file).Output()
	require.NoError(t, err)
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[3], prefix) || endMarkers[f[3]] || markers[f[3]] {
			continue
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		require.NoError(t, err)
		size, err := strconv.ParseUint(f[1], 10, 64)
		require.NoError(t, err)
		if f[2] == "T" || f[2] == "t" {
			text += size
		} else if keep(addr) {
			data += size
		}
	}
	return text, data
}

func TestLikeNM(t *testing.T) {
	for _, platform := range []string{"linux/amd64", "linux/386", "windows/amd64", "darwin/arm64"} {
		t.Run(platform, func(t *testing.T) {
			file := build(t, platform, false)
			w, err := weigh(t, file)
			require.NoError(t, err)
			keep := func(uint64) bool { return false }
			if strings.HasPrefix(platform, "linux/") {
				f, err := elf.Open(file)
				require.NoError(t, err)
				defer f.Close()
				keep = func(addr uint64) bool {
					for _, s := range f.Sections {
						if s.Flags&elf.SHF_ALLOC != 0 && s.Type != elf.SHT_NOBITS && s.Addr <= addr && addr < s.Addr+s.Size {
							return true
						}
					}
					return false
				}
			}
			for name, prefix := range map[string]string{
				"main":                        "main.",
				"example.com/hello/dotted.v2": "example.com/hello/dotted%2ev2.",
				"internal/strconv":            "internal/strconv.",
				"runtime/debug":               "runtime/debug.",
				"internal/cpu":                "internal/cpu.",
			} {
				text, data := nm(t, file, prefix, keep)
				got := w.of(name)
				require.Equal(t, text, got.TextBytes, name)
				if strings.HasPrefix(platform, "linux/") {
					require.Equal(t, data, got.DataBytes, name)
				}
			}
			dotted := w.of("example.com/hello/dotted.v2")
			require.NotZero(t, dotted.TextBytes)
			require.GreaterOrEqual(t, dotted.DataBytes, uint64(512*8))
			require.Less(t, dotted.DataBytes, uint64(512*8+1024), "variables without a value take nothing")
			require.Zero(t, w.of(C))
			require.NotZero(t, w.of(Assembly))
			require.Greater(t, w.of(Tables).Bytes, w.FileBytes/5)
			require.Greater(t, w.DebugBytes, w.FileBytes/5)
			require.Less(t, w.OtherBytes, w.FileBytes/20)

			if platform == "linux/amd64" {
				again, err := weigh(t, file)
				require.NoError(t, err)
				require.Equal(t, w, again)
			}
		})
	}
}

func TestCgo(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil || runtime.GOOS != "linux" {
		t.Skip("no C compiler (gcc) for a program in ELF")
	}
	w, err := weigh(t, build(t, "linux/"+runtime.GOARCH, true, "-ldflags=-linkmode=external"))
	require.NoError(t, err)
	require.NotZero(t, w.of(C).TextBytes)
	require.Less(t, w.of(C).TextBytes, uint64(64<<10))
	for _, p := range w.Packages {
		require.NotContains(t, []string{"plus", "n", "completed"}, p.Package)
	}
}

func TestStripped(t *testing.T) {
	_, err := weigh(t, build(t, "linux/amd64", false, "-ldflags=-s -w"))
	require.ErrorIs(t, err, ErrNoSymbols)
	_, err = weigh(t, build(t, "windows/amd64", false, "-ldflags=-s -w"))
	require.ErrorIs(t, err, ErrNoSymbols)
}

func TestClassify(t *testing.T) {
	for name, want := range map[string]string{
		"main.main":                                        "main",
		"main.(*T[example.com/x/y.Z]).Method":              "main",
		"example.com/a/b.F[go.shape.struct { x.y/z int }]": "example.com/a/b",
		"gopkg.in/yaml%2ev3.(*Decoder).Decode":             "gopkg.in/yaml.v3",
		"example.com/a%2eb%2ec.init.0":                     "example.com/a.b.c",
		"go.uber.org/zap.New":                              "go.uber.org/zap",
		"fmt..dict.Print[int]":                             "fmt",
		"unicode.map.init.2":                               "unicode",
		"vendor/golang.org/x/net/idna..stmp_1":             "vendor/golang.org/x/net/idna",
		"type:*":                                           Tables,
		"type:.eq.main.T":                                  Tables,
		"go:string.*":                                      Tables,
		"go:itab.*os.File,io.Writer":                       Tables,
		"runtime.pclntab":                                  Tables,
		"runtime.gcbits.01":                                Tables,
		"runtime.mallocgc":                                 "runtime",
		"$f64.3ff0000000000000":                            Tables,
		".pdata":                                           Tables,
		"cmpbody":                                          Assembly,
		"__x86.get_pc_thunk.ax":                            Assembly,
		"_cgo_sys_thread_start":                            C,
		"DW.ref.__gcc_personality_v0":                      C,
		"completed.0":                                      C,
		"example.com/broken%z.F":                           "example.com/broken%z",
		"example.com/broken%ff.F":                          "example.com/broken\uFFFD",
	} {
		got, _ := classify(name)
		require.Equal(t, want, got, name)
	}
}

// tinyELF, tinyPE and tinyMachO are programs with code of 16 bytes at 0x1000, half of it of main.f, and an
// empty name.
func tinyELF() []byte {
	le := binary.LittleEndian
	names := "\x00main.f\x00"
	var b []byte
	b = append(b, "\x7fELF\x02\x01\x01"...)
	b = append(b, make([]byte, 9)...)
	b = le.AppendUint16(b, 2)
	b = le.AppendUint16(b, 62)
	b = le.AppendUint32(b, 1)
	for _, v := range []uint64{0x1000, 0, 64 + 16 + 48 + 8} {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 0, 64, 4, 0} {
		b = le.AppendUint16(b, v)
	}
	b = append(b, make([]byte, 16)...) // code
	for i, size := range []uint64{8, 0} {
		b = le.AppendUint32(b, uint32(1-i))
		b = append(b, 2, 0, 1, 0)
		b = le.AppendUint64(b, 0x1000)
		b = le.AppendUint64(b, size)
	}
	b = append(b, names...)
	section := func(typ, link uint32, flags, addr, off, size uint64) {
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, typ)
		for _, v := range []uint64{flags, addr, off, size} {
			b = le.AppendUint64(b, v)
		}
		b = le.AppendUint32(b, link)
		b = append(b, make([]byte, 20)...)
	}
	section(0, 0, 0, 0, 0, 0)
	section(1, 0, 6, 0x1000, 64, 16)
	section(2, 3, 0, 0, 80, 48)
	section(3, 0, 0, 0, 128, 8)
	return b
}

func tinyPE() []byte {
	le := binary.LittleEndian
	b := make([]byte, 64)
	copy(b, "MZ")
	le.PutUint32(b[60:], 64)
	b = append(b, "PE\x00\x00"...)
	b = le.AppendUint16(b, 0x8664)
	b = le.AppendUint16(b, 1)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint32(b, 64+24+40+16)
	b = le.AppendUint32(b, 2)
	b = le.AppendUint32(b, 0)
	b = append(b, ".text\x00\x00\x00"...)
	for _, v := range []uint32{16, 0x1000, 16, 64 + 24 + 40, 0, 0, 0, 0x60000020} {
		b = le.AppendUint32(b, v)
	}
	b = append(b, make([]byte, 16)...)
	b = append(b, "main.f\x00\x00\x00\x00\x00\x00\x01\x00\x20\x00\x02\x00"...)
	b = append(b, "\x00\x00\x00\x00\x04\x00\x00\x00\x08\x00\x00\x00\x01\x00\x20\x00\x02\x00"...)
	return append(b, "\x0e\x00\x00\x00asmbody.x\x00"...)
}

func tinyMachO() []byte {
	le := binary.LittleEndian
	var b []byte
	const code = 32 + 72 + 80 + 24
	for _, v := range []uint32{0xfeedfacf, 0x0100000c, 0, 2, 2, 72 + 80 + 24, 0, 0, 0x19, 72 + 80} {
		b = le.AppendUint32(b, v)
	}
	b = append(b, "__TEXT\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	for _, v := range []uint64{0x1000, 16, code, 16} {
		b = le.AppendUint64(b, v)
	}
	for _, v := range []uint32{5, 5, 1, 0} {
		b = le.AppendUint32(b, v)
	}
	b = append(b, "__text\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00__TEXT\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	b = le.AppendUint64(b, 0x1000)
	b = le.AppendUint64(b, 16)
	for _, v := range []uint32{code, 0, 0, 0, 0x80000400, 0, 0, 0, 2, 24, code + 16, 2, code + 16 + 32, 8} {
		b = le.AppendUint32(b, v)
	}
	b = append(b, make([]byte, 16)...)
	b = append(b, "\x01\x00\x00\x00\x0f\x01\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00"...)
	b = append(b, "\x00\x00\x00\x00\x0f\x01\x00\x00\x08\x10\x00\x00\x00\x00\x00\x00"...)
	return append(b, "\x00main.f\x00"...)
}

func TestTiny(t *testing.T) {
	for _, data := range [][]byte{tinyELF(), tinyPE(), tinyMachO()} {
		w, err := Weigh(bytes.NewReader(data), int64(len(data)))
		require.NoError(t, err)
		requireSum(t, w, int64(len(data)))
		require.NotZero(t, w.of("main").TextBytes, w.Format)
		for n := range len(data) {
			w, err := Weigh(bytes.NewReader(data[:n]), int64(n))
			if err == nil {
				requireSum(t, w, int64(n))
			}
			_, err = Weigh(bytes.NewReader(data[:n]), int64(len(data)))
			require.Error(t, err, "%s of %d bytes", w, n)
		}
	}
	for _, text := range []string{"", "MZ", "#!/bin/sh\n", "\xca\xfe\xba\xbe"} {
		_, err := Weigh(strings.NewReader(text), int64(len(text)))
		require.Error(t, err)
	}
	_, err := Weigh(strings.NewReader(""), -1)
	require.ErrorIs(t, err, ErrMalformed)
}

// zeros is a file of zeros without end after what it begins with.
type zeros []byte

func (z zeros) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(z)) {
		copy(b, z[off:])
	}
	return len(b), nil
}

// TestLimits reads files that say they have more of something than memory.
func TestLimits(t *testing.T) {
	for _, change := range []func(b []byte){
		func(b []byte) { binary.LittleEndian.PutUint16(b[60:], 65535) },               // sections
		func(b []byte) { binary.LittleEndian.PutUint64(b[136+2*64+32:], 1<<40) },      // symbols
		func(b []byte) { binary.LittleEndian.PutUint64(b[136+3*64+32:], 1<<40) },      // strings
		func(b []byte) { binary.LittleEndian.PutUint64(b[136+1*64+32:], (1<<45)+16) }, // section with the rest
	} {
		data := tinyELF()
		change(data)
		_, err := Weigh(zeros(data), 1<<45)
		require.ErrorIs(t, err, ErrMalformed)
	}
}

func FuzzWeigh(f *testing.F) {
	f.Add(tinyELF())
	f.Add(tinyPE())
	f.Add(tinyMachO())
	f.Fuzz(func(t *testing.T, data []byte) {
		w, err := Weigh(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		requireSum(t, w, int64(len(data)))
		again, err := Weigh(io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))), int64(len(data)))
		require.NoError(t, err)
		require.Equal(t, w, again)
	})
}
