package report

import (
	"io"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// Table is rows of text that are written with aligned columns. The zero value is an empty table.
type Table struct {
	// Right lists the columns, from 0, that are aligned to the right, as numbers are.
	Right []int

	rows   [][]string
	widths []int
}

// Row adds a row. Rows may differ in length.
func (t *Table) Row(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = Clean(cell)
		if i == len(t.widths) {
			t.widths = append(t.widths, 0)
		}
		t.widths[i] = max(t.widths[i], ansi.StringWidth(row[i]))
	}
	t.rows = append(t.rows, row)
}

// WriteTo writes the rows, with two spaces between columns and none at the end of a line.
func (t *Table) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	for _, row := range t.rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			if slices.Contains(t.Right, i) {
				cells[i] = PadLeft(cell, t.widths[i])
			} else {
				cells[i] = Pad(cell, t.widths[i])
			}
		}
		b.WriteString(strings.TrimRight(strings.Join(cells, "  "), " ") + "\n")
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// Pad adds spaces to s until it takes width columns.
func Pad(s string, width int) string {
	return s + strings.Repeat(" ", max(0, width-ansi.StringWidth(s)))
}

// PadLeft is Pad with the spaces before s.
func PadLeft(s string, width int) string {
	return strings.Repeat(" ", max(0, width-ansi.StringWidth(s))) + s
}
