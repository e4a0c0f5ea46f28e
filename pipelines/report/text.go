package report

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// sequence matches the escape sequences that programs print: colours and cursor movements, titles and
// links, and the short ones. Only whole ones: an unfinished one must not swallow the text after it.
var sequence = regexp.MustCompile("\x1b\\[[0-?]*[ -/]*[@-~]" + // CSI
	"|\x1b\\][^\x07\x1b]*(?:\x07|\x1b\\\\)" + // OSC
	"|\x1b[ -/]+[0-~]|\x1b[0-OQ-WYZ\\\\`-~]")

// Clean makes foreign text fit for one line of a terminal or log. Escape sequences and invisible format
// characters (those that reorder text among them) go, white space becomes single spaces, and what is
// left of control characters and invalid UTF-8 becomes "�".
func Clean(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = sequence.ReplaceAllString(s, "")
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r): // first: newlines are control characters too
			return ' '
		case unicode.Is(unicode.Cf, r):
			return -1
		case unicode.IsControl(r):
			return '\uFFFD'
		}
		return r
	}, s)
	return strings.Join(strings.Fields(s), " ")
}

// CleanText is Clean for text of several lines: line feeds, tabs and indentation stay.
func CleanText(s string) string {
	s = sequence.ReplaceAllString(strings.ToValidUTF8(s, "\uFFFD"), "")
	return CleanRunes(strings.ReplaceAll(s, "\r\n", "\n"))
}

// CleanRunes drops the invisible format characters of s and replaces control characters but line feed and tab.
func CleanRunes(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case unicode.Is(unicode.Cf, r):
			return -1
		case unicode.IsControl(r):
			return '\uFFFD'
		}
		return r
	}, s)
}

// Bytes is a size as people say it: 1234567 is "1.2 MB".
func Bytes(n int64) string {
	const units = "kMGTPE"
	if n > -1000 && n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/1000, 0
	// What would be rounded to 1000.0 belongs to the next unit.
	for (value >= 999.95 || value <= -999.95) && unit < len(units)-1 {
		value /= 1000
		unit++
	}
	return fmt.Sprintf("%.1f %cB", value, units[unit])
}

// Elapsed is a duration as people say it: "1.2s", "2m03s", "1h02m".
func Elapsed(d time.Duration) string {
	d = max(d, 0)
	if d = d.Round(100 * time.Millisecond); d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	if d = d.Round(time.Second); d < time.Hour {
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	}
	d = d.Round(time.Minute)
	return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
}
