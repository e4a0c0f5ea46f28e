package pipelines

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// humanBytes is a size for people, in decimal units as registries show them.
func humanBytes(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	f := float64(n)
	i := 0
	for f >= 999.5 && i < len(units)-1 {
		f /= 1000
		i++
	}
	if i == 0 || f >= 99.95 {
		return fmt.Sprintf("%.0f %s", f, units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

// excerpt returns text, trimmed, or its first and last n lines where it is longer than that: compilers say
// what is wrong first, and in the end what came of it.
func excerpt(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	if cut := len(lines) - 2*n; cut > 1 {
		lines = slices.Concat(lines[:n], []string{fmt.Sprintf("[%d lines cut]", cut)}, lines[len(lines)-n:])
	}
	return strings.Join(lines, "\n")
}

// withoutPath is an error without the paths of this machine that the system's errors have, for what is kept.
func withoutPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
