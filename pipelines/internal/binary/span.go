package binary

import (
	"cmp"
	"slices"
)

// span is a range of file offsets, the end excluded. Lists of spans are sorted and do not overlap, where
// nothing else is said.
type span struct{ start, end uint64 }

func (s span) len() uint64 { return s.end - s.start }

func (s span) contains(t span) bool { return s.start <= t.start && t.end <= s.end }

func (s span) overlaps(t span) bool { return s.start < t.end && t.start < s.end }

// intersect returns what s and t have in common, empty if nothing.
func (s span) intersect(t span) span {
	start := max(s.start, t.start)
	return span{start, max(start, min(s.end, t.end))}
}

// merge returns the union of spans in any order.
func merge(spans []span) []span {
	spans = slices.DeleteFunc(slices.Clone(spans), func(s span) bool { return s.len() == 0 })
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && s.start <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}

// subtract returns what of a is not in b.
func subtract(a, b []span) []span {
	var out []span
	i := 0
	for _, s := range a {
		for i < len(b) && b[i].end <= s.start {
			i++
		}
		for j := i; j < len(b) && b[j].start < s.end; j++ {
			if b[j].start > s.start {
				out = append(out, span{s.start, b[j].start})
			}
			s.start = min(s.end, b[j].end)
		}
		if s.len() > 0 {
			out = append(out, s)
		}
	}
	return out
}
