// Package chart draws bar charts as SVG files that need nothing beside themselves. They bring their own
// background, so that they can be read on any page, light or dark, whatever the reader's system prefers.
package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Bars is a horizontal bar chart: one row for each thing, with a bar of one or more segments.
type Bars struct {
	Title, Subtitle string
	// Columns are the heads of further columns of text to the right of the bars.
	Columns []string
	Rows    []Row
}

// Row is a label above a bar.
type Row struct {
	Label string
	// Segments are stacked. Lengths are comparable over all rows.
	Segments []Segment
	// Value is the text behind the bar.
	Value string
	// Cells are one for each of Columns.
	Cells []string
	// Note stands in place of the bar and its value.
	Note string
}

// Segment is a part of a bar. Segments of one name have one colour.
type Segment struct {
	Name string
	Size float64
}

// size is what counts for the length: nothing is shorter than nothing, or endless.
func (s Segment) size() float64 {
	if s.Size > 0 && s.Size <= math.MaxFloat32 {
		return s.Size
	}
	return 0
}

// palette was searched for by computer: each colour has a contrast of 3:1 or more to both backgrounds, and any two
// are at least 23 apart (CIE76) for people without and with each kind of colour blindness (Machado 2009). There
// are no more than six such colours, so from the seventh name on they come again.
var palette = []string{"#0072b2", "#cc7a00", "#a366ff", "#bf2626", "#849963", "#8c5b79"}

// Lengths are pixels.
const (
	margin    = 20
	narrowest = 480 // Of what is drawn inside the margins. Phones show it at 0.7 of its size.
	widest    = 600 // Longer titles and labels are cut.
	bar       = 14
	gap       = 18 // before each column
	shortest  = 160
)

const style = `
.bars{font-family:system-ui,sans-serif;font-size:14px;font-variant-numeric:tabular-nums}
.bars text{fill:#1f2328}
.bars .back{fill:#fff;stroke:#d1d9e0}
.bars .line{stroke:#d1d9e0}
.bars .title{font-size:17px;font-weight:600}
.bars .dim{fill:#59636e}
.bars .end{text-anchor:end}
@media (prefers-color-scheme:dark){
.bars text{fill:#f0f6fc}
.bars .back{fill:#0d1117;stroke:#3d444d}
.bars .line{stroke:#3d444d}
.bars .dim{fill:#9198a1}
}
`

// SVG draws the chart. The same chart always gives the same bytes.
func (b Bars) SVG() []byte {
	var names []string // of segments, in the order of the legend
	largest, value, label := 0.0, 0, 0
	columns := make([]int, len(b.Columns))
	cells := 0
	for i, head := range b.Columns {
		columns[i] = width(head)
	}
	for _, r := range b.Rows {
		total := 0.0
		for _, s := range r.Segments {
			total += s.size()
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
		largest = max(largest, total)
		label = max(label, width(r.Label), width(r.Note))
		value = max(value, min(width(r.Value), shortest))
		for i := range columns {
			columns[i] = max(columns[i], width(r.cell(i)))
		}
	}
	for i := range columns {
		columns[i] = min(columns[i], shortest)
		cells += gap + columns[i]
	}
	// The label is as wide as bar and value together, and a chart with columns gives it no more than they need.
	left := max(shortest+8+value, min(label, narrowest-shortest))
	inner := max(narrowest, left+cells, min(widest, max(width(b.Title)*4/3, width(b.Subtitle), label+cells)))
	left = inner - cells
	length := float64(left - 8 - value)

	d := drawing{}
	y := margin
	if b.Title != "" {
		d.text(margin, y+14, inner*3/4, "title", b.Title)
		y += 28
	}
	if b.Subtitle != "" {
		d.text(margin, y+12, inner, "dim", b.Subtitle)
		y += 24
	}
	if len(names) > 1 {
		x := margin
		for i, name := range names {
			if name == "" {
				continue
			}
			w := min(width(name), inner-bar-6)
			if x > margin && x+bar+6+w > margin+inner {
				x = margin
				y += 22
			}
			d.rect(float64(x), y+2, bar-2, bar-2, palette[i%len(palette)], "")
			d.text(x+bar+6, y+13, w, "", name)
			x += bar + 6 + w + gap
		}
		y += 24
	}
	if len(columns) > 0 {
		x := margin + left
		for i, head := range b.Columns {
			x += gap + columns[i]
			d.text(x, y+12, columns[i], "dim end", head)
		}
		y += 14
	}
	for _, r := range b.Rows {
		y += 8
		if len(columns) > 0 {
			fmt.Fprintf(&d, `<path class="line" d="M%d %d.5h%d"/>`+"\n", margin, y, inner)
			y += 6
		}
		d.text(margin, y+13, left, "", r.Label)
		y += 20
		if r.Note != "" {
			d.text(margin, y+11, left, "dim", r.Note)
		} else {
			end := d.bar(r.Segments, names, y, length, largest)
			d.text(int(end)+8, y+12, value, "", r.Value)
		}
		x := margin + left
		for i := range columns {
			x += gap + columns[i]
			d.text(x, y+12, columns[i], "end", r.cell(i))
		}
		y += bar + 6
	}
	y += margin - 6

	var out bytes.Buffer
	w := inner + 2*margin
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" class="bars" role="img" width="%d" height="%d" viewBox="0 0 %d %d">`+"\n", w, y, w, y)
	fmt.Fprintf(&out, "<title>%s</title>\n<desc>%s</desc>\n<style>%s</style>\n", escape(b.Title), b.describe(), style)
	fmt.Fprintf(&out, `<rect class="back" x="0.5" y="0.5" width="%d" height="%d" rx="6" fill="#fff"/>`+"\n", w-1, y-1)
	d.WriteTo(&out)
	out.WriteString("</svg>\n")
	return out.Bytes()
}

// cell is empty where a row has fewer than the chart has columns.
func (r Row) cell(i int) string {
	if i < len(r.Cells) {
		return r.Cells[i]
	}
	return ""
}

// describe says in words what the chart shows, for people who do not see it: a line for each row, as XML.
func (b Bars) describe() string {
	lines := []string{escape(b.Subtitle)}
	for _, r := range b.Rows {
		s := r.Label + ": "
		if r.Note != "" {
			s += r.Note
		} else {
			s += r.Value
			var parts []string
			for _, p := range r.Segments {
				if p.Name != "" && len(r.Segments) > 1 {
					parts = append(parts, r.share(p))
				}
			}
			if len(parts) > 0 {
				s += " (" + strings.Join(parts, ", ") + ")"
			}
		}
		for i, head := range b.Columns {
			if c := r.cell(i); c != "" {
				s += ", " + head + " " + c
			}
		}
		lines = append(lines, escape(s))
	}
	return strings.TrimPrefix(strings.Join(lines, "\n"), "\n")
}

func (r Row) share(s Segment) string {
	total := 0.0
	for _, o := range r.Segments {
		total += o.size()
	}
	if total == 0 {
		return s.Name
	}
	return fmt.Sprintf("%s %.0f %%", s.Name, 100*s.size()/total)
}

type drawing struct{ bytes.Buffer }

// bar returns where the bar ends.
func (d *drawing) bar(segments []Segment, names []string, y int, length, largest float64) float64 {
	at, sum := 0.0, 0.0
	for _, s := range segments {
		if s.size() == 0 {
			continue
		}
		sum += s.size()
		// What there is can be seen, however small it is. The next one makes up for that.
		end := min(length, max(at+2, math.Round(sum/largest*length*10)/10))
		w := end - at
		if w > 3 {
			w-- // Neighbours are told apart by more than their colours.
		}
		name := s.Name
		if len(segments) > 1 {
			name = Row{Segments: segments}.share(s)
		}
		d.rect(margin+at, y, w, bar, palette[slices.Index(names, s.Name)%len(palette)], name)
		at = end
	}
	return margin + at
}

func (d *drawing) rect(x float64, y int, w float64, h int, colour, title string) {
	number := func(f float64) string { return strconv.FormatFloat(math.Round(f*10)/10, 'f', -1, 64) }
	fmt.Fprintf(d, `<rect x="%s" y="%d" width="%s" height="%d" rx="%s" fill="%s">`, number(x), y, number(w), h, number(min(2, w/4)), colour)
	if title != "" {
		fmt.Fprintf(d, "<title>%s</title>", escape(title))
	}
	d.WriteString("</rect>\n")
}

// text writes s where it fits into w, and else its beginning and end.
func (d *drawing) text(x, y, w int, class, s string) {
	if s == "" {
		return
	}
	fmt.Fprintf(d, `<text x="%d" y="%d"`, x, y)
	if class != "" {
		fmt.Fprintf(d, ` class="%s"`, class)
	}
	d.WriteString(">")
	if short := cut(s, w); short != s {
		fmt.Fprintf(d, "<title>%s</title>", escape(s))
		s = short
	}
	d.WriteString(escape(s) + "</text>\n")
}

const ellipsis = "…"

// cut shortens s in the middle: paths of packages differ at the end, and what they belong to is at the beginning.
func cut(s string, w int) string {
	if width(s) <= w {
		return s
	}
	r := []rune(s)
	w = w*100/14 - hundredths('…')
	i, j := 0, len(r)
	for i < j {
		next := r[i]
		if i > len(r)-j {
			next = r[j-1]
		}
		w -= hundredths(next)
		if w < 0 {
			break
		}
		if i > len(r)-j {
			j--
		} else {
			i++
		}
	}
	return string(r[:i]) + ellipsis + string(r[j:])
}

// width estimates how wide s is at 14 pixels. Nothing here knows the reader's typeface, so this goes by DejaVu Sans,
// which is wider than most.
func width(s string) int {
	w := 0
	for _, r := range s {
		w += hundredths(r)
	}
	return (w*14 + 99) / 100
}

// hundredths of the font size are enough for r.
func hundredths(r rune) int {
	switch {
	case strings.ContainsRune("ijlI .,:;'|/", r):
		return 34
	case strings.ContainsRune("frt!()[]-", r):
		return 42
	case strings.ContainsRune("cksvxyz", r):
		return 60
	case strings.ContainsRune("mwMW@%…", r), r > 0x10ff:
		return 105 // Ideographs and emoji are squares.
	case unicode.IsUpper(r), r > 0x7e:
		return 79
	}
	return 65
}

// escape makes s text of one line that XML can hold.
func escape(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case !unicode.IsPrint(r):
			return unicode.ReplacementChar
		}
		return r
	}, s)
	var b bytes.Buffer
	xml.EscapeText(&b, []byte(s)) // A buffer takes everything.
	return b.String()
}
