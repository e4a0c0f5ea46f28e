package binary

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

func firstDifference(t *testing.T, a, b []byte) *Place {
	t.Helper()
	p, err := FirstDifference(bytes.NewReader(a), int64(len(a)), bytes.NewReader(b), int64(len(b)))
	require.NoError(t, err)
	return p
}

func TestFirstDifference(t *testing.T) {
	for _, base := range append([]program{{release: "1.22.12", platform: "linux/amd64"}}, otherPrograms...) {
		t.Run(base.String(), func(t *testing.T) {
			p := func(dir, args string) []byte {
				base.dir, base.args = dir, args
				return load(t, build(t, base))
			}
			a := p("", "")
			require.Nil(t, firstDifference(t, a, a))

			place := firstDifference(t, a, p("elsewhere", ""))
			require.NotNil(t, place)
			require.Equal(t, CausePath, place.Cause, place.String())
			require.Contains(t, place.A, "main.go")
			require.Contains(t, place.B, "elsewhere/src/main.go")

			place = firstDifference(t, p("", "-ldflags=-X main.when=2026-01-02T03:04:05Z"), p("", "-ldflags=-X main.when=2026-01-02T03:04:06Z"))
			require.Equal(t, CauseTime, place.Cause, place.String())
			require.Equal(t, "2026-01-02T03:04:05", place.A)
			require.Equal(t, "2026-01-02T03:04:06", place.B)

			// A file that was cut off has no sections, but a place.
			place = firstDifference(t, a, a[:len(a)/2])
			require.Equal(t, int64(len(a)/2), place.Offset)
			require.Equal(t, CauseUnknown, place.Cause)

			if base.platform != "linux/amd64" {
				return // -trimpath compiles everything once more
			}
			require.Nil(t, firstDifference(t, p("", "-trimpath"), p("elsewhere", "-trimpath")))
			// The build ID is a difference like any other where the flags that set it are recorded.
			place = firstDifference(t, p("", "-ldflags=-buildid=abcd"), p("", "-ldflags=-buildid=abce"))
			require.Equal(t, CauseUnknown, place.Cause, place.String())
			place = firstDifference(t, p("", "-trimpath|-ldflags=-buildid=abcd"), p("", "-trimpath|-ldflags=-buildid=abce"))
			require.Equal(t, CauseBuildID, place.Cause, place.String())
		})
	}
}

func TestFirstDifferencePlace(t *testing.T) {
	for _, a := range append(tinyELFs(), tinyPE(), tinyMachO()) {
		f, err := newFile(bytes.NewReader(a), int64(len(a)))
		require.NoError(t, err)
		m, err := mapFile(f)
		require.NoError(t, err)
		for _, r := range m.regions {
			if strings.HasSuffix(r.name, "header") || strings.HasSuffix(r.name, "headers") || r.name == ".shstrtab" {
				continue
			}
			b := bytes.Clone(a)
			b[r.end-1] ^= 1
			p := firstDifference(t, a, b)
			require.Equal(t, int64(r.end-1), p.Offset)
			require.Equal(t, r.name, p.Section)
		}
	}
	p := firstDifference(t, []byte("some text"), []byte("some"))
	require.Equal(t, &Place{Offset: 4, Cause: CauseUnknown}, p)
	require.Equal(t, "first difference at byte 4", p.String())
}

func TestCompareWords(t *testing.T) {
	a := &Content{Format: "elf", Entry: 1, Sections: []Section{
		{Name: ".text", Loaded: true, Size: 4, SHA256: "x"},
		{Name: ".data", Loaded: true, Size: 4, Address: 8, Access: "rw"},
		{Name: ".old", Loaded: true, Address: 99},
		{Name: ".debug", Size: 4},
	}, Segments: []Segment{{Name: "LOAD"}}}
	b := &Content{Format: "elf", Entry: 2, BuildID: "id", Sections: []Section{
		{Name: ".text", Loaded: true, Size: 4, SHA256: "y"},
		{Name: ".data", Loaded: true, Size: 5, Address: 16, Access: "r"},
		{Name: ".new", Loaded: true, Address: 99},
	}, Segments: []Segment{{Name: "LOAD", SHA256: "z"}, {Name: "NOTE", Access: "r"}}}
	var words []string
	for _, d := range Compare(a, b) {
		words = append(words, d.String())
	}
	require.Equal(t, []string{
		"entry point was 0x1, is 0x2",
		"build ID was nothing, is id",
		"segment 0 LOAD differs between its sections",
		`segment 1 NOTE was nothing, is "NOTE" r at 0x0, 0 bytes of the file, 0 of memory, aligned to 0`,
		"section .text differs",
		"section .data: address was 0x8, is 0x10",
		"section .data: size was 4, is 5",
		"section .data: access was rw, is r",
		"section .old is missing",
		"section .new was added",
	}, words)
	require.Empty(t, Compare(a, a))
}

func TestContains(t *testing.T) {
	// A needle at every place around the end of a buffer, read in chunks of all kinds.
	for shift := range 40 {
		text := strings.Repeat("x", copyBuffer-20+shift) + "/build/path" + strings.Repeat("y", shift)
		for _, r := range []func() (name string, found []string, err error){
			func() (string, []string, error) {
				f, err := Contains(strings.NewReader(text), []string{"no", "/build/path", "xx/b"})
				return "whole", f, err
			},
			func() (string, []string, error) {
				f, err := Contains(iotest.DataErrReader(strings.NewReader(text)), []string{"no", "/build/path", "xx/b"})
				return "data with error", f, err
			},
			func() (string, []string, error) {
				f, err := Contains(iotest.HalfReader(strings.NewReader(text)), []string{"no", "/build/path", "xx/b"})
				return "half", f, err
			},
		} {
			name, found, err := r()
			require.NoError(t, err)
			require.Equal(t, []string{"/build/path", "xx/b"}, found, "%s %d", name, shift)
		}
	}
	long := strings.Repeat("ab", copyBuffer)
	found, err := Contains(strings.NewReader("x"+long+"y"), []string{long, long + "z"})
	require.NoError(t, err)
	require.Equal(t, []string{long}, found)

	found, err = Contains(strings.NewReader("text"), nil)
	require.NoError(t, err)
	require.Empty(t, found)
	_, err = Contains(strings.NewReader("text"), []string{"text", ""})
	require.Error(t, err)
	broken := errors.New("broken")
	_, err = Contains(iotest.ErrReader(broken), []string{"text"})
	require.ErrorIs(t, err, broken)
}

func TestContainsBuildPath(t *testing.T) {
	dir := builds.dir
	for args, want := range map[string][]string{"": {dir}, "-trimpath": nil} {
		data := strip(t, load(t, build(t, program{release: "1.22.12", platform: "linux/amd64", args: args})))
		found, err := Contains(bytes.NewReader(data), []string{dir})
		require.NoError(t, err)
		require.Equal(t, want, found)
	}
}
