package report

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain text, ünïcode 日本":           "plain text, ünïcode 日本",
		" a\r\n\n\tb\u2028c\u0085 ":        "a b c",
		"\x1b[1;31mred\x1b[m":              "red",
		"\x1b[38:2:1:2:3mcolon\x1b[>4;2m":  "colon",
		"\x1b]0;title\x07a\x1b]8;;u\x1b\\": "a",
		"\x1b(B\x1b7\x1b=a\x1bc":           "a",
		"\x1b]0;no end":                    "�]0;no end",
		"\x1bP+q\x1b\\":                    "�P+q",
		"\x1b[31":                          "�[31",
		"\x1b\x1b[m[2J":                    "�[2J", // what is left must not join to a new sequence
		"\x1b\u200b[2J":                    "�[2J",
		"\u009b2J\x9b2J":                   "�2J�2J",
		"a\bb\x00c\x7f":                    "a�b�c�",
		"\u202etxt\u202c\u200b\ufeff":      "txt",
		"":                                 "",
	} {
		require.Equal(t, want, Clean(in), "%q", in)
	}
}

func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"\ta  b\r\n\x1b[1;31mred\x1b[m\n": "\ta  b\nred\n",
		"a\x00b\rc\u009b2J":               "a\uFFFDb\uFFFDc\uFFFD2J",
		"\x1b[31":                         "\uFFFD[31",
		"\u202etxt\u202c\u200b\ufeff\xff": "txt\uFFFD",
	} {
		require.Equal(t, want, CleanText(in), "%q", in)
	}
}

func FuzzClean(f *testing.F) {
	f.Add(nasty)
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range Clean(s) {
			if r != ' ' && !unicode.IsGraphic(r) && (unicode.IsControl(r) || unicode.IsSpace(r) || unicode.Is(unicode.Cf, r)) {
				t.Fatalf("%q keeps %U", s, r)
			}
		}
	})
}

func TestBytes(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 1234567: "1.2 MB", 999_949: "999.9 kB", 999_950: "1.0 MB",
		5_000_000_000: "5.0 GB", -1: "-1 B", -999_950: "-1.0 MB", math.MaxInt64: "9.2 EB", math.MinInt64: "-9.2 EB",
	} {
		require.Equal(t, want, Bytes(in), in)
	}
}

func TestElapsed(t *testing.T) {
	for in, want := range map[time.Duration]string{
		0: "0.0s", -time.Second: "0.0s", 1234 * time.Millisecond: "1.2s", 59949 * time.Millisecond: "59.9s",
		59950 * time.Millisecond: "1m00s", 123 * time.Second: "2m03s", 119600 * time.Millisecond: "2m00s",
		time.Hour - time.Second/5: "1h00m", 3725 * time.Second: "1h02m", 100 * time.Hour: "100h00m",
	} {
		require.Equal(t, want, Elapsed(in), in)
	}
}

func TestTable(t *testing.T) {
	table := Table{Right: []int{1}}
	table.Row("platform", "size", "digest")
	table.Row("linux/amd64", "3.4 MB", "sha256:aa")
	table.Row("日本", "12 B")
	table.Row()
	table.Row("", "\x1b[31m1 B\x1b[m", "", "more\nlines")
	var b bytes.Buffer
	n, err := table.WriteTo(&b)
	require.NoError(t, err)
	require.EqualValues(t, b.Len(), n)
	require.Equal(t, strings.Join([]string{
		"platform       size  digest",
		"linux/amd64  3.4 MB  sha256:aa",
		"日本           12 B",
		"",
		"                1 B             more lines",
		"",
	}, "\n"), b.String())
}

// nasty is what a tested program may print to harm the display.
const nasty = "\x1b[2J\x1b[31mred\x1b[0m\nnext\r\tline \x1b]0;title\x07\x1b]52;c;open \x9b31m \u009b6n \u202etfel\u202c \b\x7f\x00 \x1b(B\x1b[c 日本語 👩\u200d🚀 end"
