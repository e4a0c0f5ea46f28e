package oci

import (
	"archive/zip"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// ZoneinfoVersion is the version of the time zone database that TimeZones returns.
const ZoneinfoVersion = "2026c"

// The time zone database as the Go project compiles it: lib/time/zoneinfo.zip of Go 1.27.4, whose
// lib/time/update.bash says CODE=2026c and DATA=2026c. It is a copy, so that it does not change with the
// Go release that builds slipway.
//
//go:embed zoneinfo.zip
var zoneinfo []byte

// TimeZones returns the named time zones ("Europe/Berlin") as files below /usr/share/zoneinfo, where Go's
// package time and C libraries look for them; without names it returns all of them.
func TimeZones(names ...string) ([]Entry, error) {
	archive, err := zip.NewReader(bytes.NewReader(zoneinfo), int64(len(zoneinfo)))
	if err != nil {
		return nil, fmt.Errorf("time zones: %w", err)
	}
	files := map[string]*zip.File{}
	for _, f := range archive.File {
		if !strings.HasSuffix(f.Name, "/") {
			files[f.Name] = f
		}
	}
	known := make([]string, 0, len(files))
	for name := range files {
		known = append(known, name)
	}
	slices.Sort(known)
	wanted := known
	if len(names) > 0 {
		wanted = slices.Compact(slices.Sorted(slices.Values(names)))
	}
	var entries []Entry
	var unknown []error
	for _, name := range wanted {
		f, ok := files[name]
		if !ok {
			unknown = append(unknown, fmt.Errorf("there is no time zone %q; the nearest names are %s", name, strings.Join(nearest(name, known, 3), ", ")))
			continue
		}
		r, err := f.Open()
		if err != nil {
			return nil, fmt.Errorf("time zone %s: %w", name, err)
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return nil, fmt.Errorf("time zone %s: %w", name, err)
		}
		entries = append(entries, Entry{Path: "usr/share/zoneinfo/" + name, Mode: 0o644, Data: data})
	}
	return entries, errors.Join(unknown...)
}

// nearest returns the n names that take the fewest edits to become name, whatever the case; a name of
// which it is the last part ("Berlin") takes none.
func nearest(name string, names []string, n int) []string {
	name = strings.ReplaceAll(strings.ToLower(name), " ", "_")
	distance := func(other string) int {
		other = strings.ToLower(other)
		d := fault.Distance(name, other)
		if _, last, ok := cutLast(other, "/"); ok {
			d = min(d, fault.Distance(name, last))
		}
		return d
	}
	type candidate struct {
		name     string
		distance int
	}
	candidates := make([]candidate, len(names))
	for i, other := range names {
		candidates[i] = candidate{other, distance(other)}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return a.distance - b.distance })
	var result []string
	for _, c := range candidates[:min(n, len(candidates))] {
		result = append(result, c.name)
	}
	return result
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
