package fault

import (
	"fmt"
	"slices"
	"strings"
)

// Nearest returns a sentence that names the known word nearest to word, or all known words if none is near.
func Nearest(word string, known []string) string {
	if len(known) == 0 {
		return "There is none."
	}
	best, distance := "", len(word)/2+1
	for _, k := range known {
		if d := Distance(strings.ToLower(word), strings.ToLower(k)); d < distance {
			best, distance = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("Did you mean %q?", best)
	}
	sorted := slices.Sorted(slices.Values(known))
	return "There are: " + strings.Join(sorted, ", ") + "."
}

// Distance is the number of single-byte edits that turn a into b.
func Distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
