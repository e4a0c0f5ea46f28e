package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write golden files")

func one(size float64) []Segment { return []Segment{{Size: size}} }

// known are charts with a golden file each.
var known = map[string]Bars{
	"layers": {
		Title: "registry.example/team/shop:v1", Subtitle: "Layers of the image, compressed. 5.2 MB together, linux/amd64.",
		Rows: []Row{
			{Label: "CA certificates", Segments: []Segment{{"shared by every image", 128e3}}, Value: "128 kB"},
			{Label: "time zones", Segments: []Segment{{"shared by every image", 405e3}}, Value: "405 kB"},
			{Label: "accounts and /tmp", Segments: []Segment{{"shared by every image", 412}}, Value: "412 B"},
			{Label: "/usr/bin/shop", Segments: []Segment{{"the standard library", 2.1e6}, {"dependencies", 1.9e6}, {"its own packages", 0.66e6}}, Value: "4.7 MB"},
		},
	},
	"packages": {
		Title: "Heaviest packages of shop", Subtitle: "What each takes of the program's file of 21.4 MB.",
		Rows: []Row{
			{Label: "k8s.example/client-go/applyconfigurations/admissionregistration/v1alpha1", Segments: one(6.1e6), Value: "6.1 MB"},
			{Label: "runtime", Segments: one(2.2e6), Value: "2.2 MB"},
			{Label: "example.com/cloud/sdk-go-v2/service/internal/endpoint-discovery-and-presigned-url-helpers/v14/types", Segments: one(1.9e6), Value: "1.9 MB"},
			{Label: "net/http", Segments: one(1.4e6), Value: "1.4 MB"},
			{Label: "crypto/tls", Segments: one(0.8e6), Value: "804 kB"},
			{Label: "example.com/shop/cmd/shop", Segments: one(12e3), Value: "12 kB"},
		},
	},
	"bases": {
		Title: "The same program on six bases", Subtitle: "Compressed size of the image for linux/amd64, and what else is in it.",
		Columns: []string{"files", "setuid", "shell", "libc", "cold start"},
		Rows: []Row{
			{Label: "scratch", Segments: []Segment{{"program", 4.1e6}, {"base", 0}}, Value: "4.1 MB", Cells: []string{"12", "0", "no", "none", "3 ms"}},
			{Label: "registry.example/distroless/static", Segments: []Segment{{"program", 4.1e6}, {"base", 0.8e6}}, Value: "4.9 MB", Cells: []string{"1 304", "0", "no", "none", "3 ms"}},
			{Label: "registry.example/alpine:3.24", Segments: []Segment{{"program", 4.1e6}, {"base", 3.7e6}}, Value: "7.8 MB", Cells: []string{"1 512", "1", "busybox", "musl 1.2.6", "3 ms"}},
			{Label: "registry.example/debian:stable-slim", Segments: []Segment{{"program", 4.1e6}, {"base", 28.2e6}}, Value: "32.3 MB", Cells: []string{"6 843", "9", "dash, bash", "glibc 2.41", "4 ms"}},
			{Label: "registry.example/golang:1.27", Segments: []Segment{{"program", 4.1e6}, {"base", 302e6}}, Value: "306 MB", Cells: []string{"31 220", "11", "dash, bash", "glibc 2.41", "4 ms"}},
			{Label: "registry.example/team/hardened", Note: "not reachable"},
		},
	},
	"hostile": hostile(`</title></style><script>alert(1)</script>&amp;]]>"'` + "\x00\x1b[2J\xff\n\u202etfel 日本語 👩\u200d🚀 \ufffe"),
	"empty":   {},
}

func hostile(s string) Bars {
	segments := []Segment{{s, math.Inf(1)}, {"a" + s, math.NaN()}, {"b" + s, -1}, {"c" + s, 1e-300}, {"d" + s, math.MaxFloat64}}
	for i := range 300 {
		segments = append(segments, Segment{Name: fmt.Sprint(i%9, s), Size: 1e-9})
	}
	return Bars{
		Title: s, Subtitle: strings.Repeat(s, 9), Columns: []string{s, strings.Repeat("W", 99)},
		Rows: []Row{
			{Label: s, Segments: segments, Value: strings.Repeat(s, 9), Cells: []string{s, s, "of no column"}},
			{Label: strings.Repeat(s, 9), Note: strings.Repeat(s, 9), Cells: []string{s}},
			{Segments: append(segments, Segment{"", 1}, Segment{"", 1}), Value: s},
			{},
		},
	}
}

func TestGolden(t *testing.T) {
	for name, b := range known {
		t.Run(name, func(t *testing.T) {
			got := b.SVG()
			require.Equal(t, got, b.SVG())
			golden := filepath.Join("testdata", name+".svg")
			if *update {
				require.NoError(t, os.WriteFile(golden, got, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))
			requireSound(t, got)
		})
	}
}

// requireSound reads a picture: it is XML of one element svg, runs and fetches nothing, and nothing leaves its frame.
func requireSound(t testing.TB, svg []byte) (texts []string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	allowed := map[string]bool{"svg": true, "title": true, "desc": true, "style": true, "rect": true, "path": true, "text": true}
	var stack []string
	var frame float64
	for roots := 0; ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			require.Equal(t, 1, roots)
			require.Empty(t, stack)
			return texts
		}
		require.NoError(t, err)
		switch e := token.(type) {
		case xml.StartElement:
			require.True(t, allowed[e.Name.Local], e.Name.Local)
			attr := map[string]string{}
			for _, a := range e.Attr {
				require.False(t, strings.HasPrefix(a.Name.Local, "on") || a.Name.Local == "href" || a.Name.Local == "style")
				attr[a.Name.Local] = a.Value
			}
			number := func(name string) float64 {
				f, err := strconv.ParseFloat(attr[name], 64)
				require.NoError(t, err, "%s of %s", name, e.Name.Local)
				require.GreaterOrEqual(t, f, 0.0)
				return f
			}
			switch e.Name.Local {
			case "svg":
				roots++
				require.Equal(t, "img", attr["role"])
				frame = number("width")
			case "rect":
				require.LessOrEqual(t, number("x")+number("width"), frame)
			case "text":
				require.Less(t, number("x"), frame)
			}
			stack = append(stack, e.Name.Local)
		case xml.EndElement:
			stack = stack[:len(stack)-1]
		case xml.CharData:
			if len(stack) > 0 && stack[len(stack)-1] == "text" {
				texts = append(texts, string(e))
			}
		}
	}
}

func TestCut(t *testing.T) {
	require.Equal(t, "short", cut("short", 100))
	require.Equal(t, "exampl…/types", cut("example.com/a/long/path/from/types", 120))
	require.Equal(t, "…", cut("example.com", 1))
	for _, s := range []string{"iiiiiiiiiiiiiiiiiiWWWWWWWWWWWWWWWWWWWW", strings.Repeat("日本語", 20), strings.Repeat("\xff", 50)} {
		for w := 20; w < width(s); w++ {
			c := cut(s, w)
			require.Contains(t, c, ellipsis)
			require.LessOrEqual(t, width(c), w)
		}
	}

	// What was cut is whole in a title.
	long := "example.com/" + strings.Repeat("long/", 50) + "end"
	svg := Bars{Title: "t", Rows: []Row{{Label: long, Segments: one(1)}}}.SVG()
	require.Contains(t, string(svg), "<title>"+long+"</title>example.com/long")
}

func TestLegend(t *testing.T) {
	chart := func(names ...string) string {
		var row Row
		for i, name := range names {
			row.Segments = append(row.Segments, Segment{name, float64(i + 1)})
		}
		return strings.Join(requireSound(t, Bars{Rows: []Row{row}}.SVG()), "|")
	}
	require.Empty(t, chart("same", "same"))
	require.Equal(t, "one|two", chart("one", "two", "one"))
	require.Equal(t, "one", chart("one", ""))
}

// What is a share of something has a length of that share.
func TestLengths(t *testing.T) {
	length := func(largest float64, sizes ...float64) float64 {
		var d drawing
		var segments []Segment
		for _, s := range sizes {
			segments = append(segments, Segment{Size: s})
		}
		end := d.bar(segments, []string{""}, 0, 200, largest)
		return end - margin
	}
	require.Equal(t, 200.0, length(8, 8))
	require.Equal(t, 50.0, length(8, 1, 1))
	require.Equal(t, 2.0, length(8e9, 1))
	require.Equal(t, 102.0, length(8e9, 1, 1, 4e9, 1), "small ones take nothing from a large one")
	require.Equal(t, 0.0, length(0))
	require.Equal(t, 0.0, length(8, 0, math.NaN(), math.Inf(1), -8))
}

// Colours are told from both backgrounds, and text is easy to read, as WCAG 2 demands.
func TestContrast(t *testing.T) {
	luminance := func(colour string) float64 {
		var sum float64
		for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
			v, err := strconv.ParseUint(colour[1+2*i:3+2*i], 16, 8)
			require.NoError(t, err)
			c := float64(v) / 255
			if c <= 0.04045 {
				c /= 12.92
			} else {
				c = math.Pow((c+0.055)/1.055, 2.4)
			}
			sum += weight * c
		}
		return sum
	}
	contrast := func(a, b string) float64 {
		x, y := luminance(a), luminance(b)
		return (max(x, y) + 0.05) / (min(x, y) + 0.05)
	}
	for _, c := range palette {
		require.GreaterOrEqual(t, contrast(c, "#ffffff"), 3.0, c)
		require.GreaterOrEqual(t, contrast(c, "#0d1117"), 3.0, c)
	}
	for back, texts := range map[string][]string{"#ffffff": {"#1f2328", "#59636e"}, "#0d1117": {"#f0f6fc", "#9198a1"}} {
		for _, c := range texts {
			require.GreaterOrEqual(t, contrast(c, back), 4.5, c)
			require.Contains(t, style, c)
		}
	}
}

func FuzzSVG(f *testing.F) {
	f.Add("a", 1.0)
	f.Add("</svg>", math.Inf(-1))
	f.Fuzz(func(t *testing.T, s string, size float64) {
		b := hostile(s)
		b.Rows[0].Segments[0].Size = size
		requireSound(t, b.SVG())
	})
}
