// Package tail cuts what a command printed down to its end, where the reason of a failure stands.
package tail

import "strings"

// Lines returns the last n lines of text, trimmed.
func Lines[T string | []byte](text T, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
