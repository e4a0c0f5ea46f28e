package binary

import (
	"bytes"
	"errors"
	"io"
	"slices"
)

// Contains reads r to its end and returns those of needles that it contains, in their order.
//
// It looks at bytes as they are. Debug information is usually compressed, so a path in it is not found:
// search a stripped file, or link with -compressdwarf=false. An empty needle is an error, because its
// absence would prove nothing.
func Contains(r io.Reader, needles []string) (found []string, err error) {
	var longest int
	for _, n := range needles {
		if n == "" {
			return nil, errors.New("binary: search for an empty text")
		}
		longest = max(longest, len(n))
	}
	if longest == 0 {
		return nil, nil
	}
	seen := make([]bool, len(needles))
	// What is kept of one read for the next is as long as may be the start of a needle.
	keep := longest - 1
	buf := make([]byte, keep+max(copyBuffer, longest))
	have := 0
	for slices.Contains(seen, false) && err == nil {
		var n int
		n, err = io.ReadFull(r, buf[have:])
		have += n
		for i, needle := range needles {
			seen[i] = seen[i] || bytes.Contains(buf[:have], []byte(needle))
		}
		if tail := min(keep, have); err == nil {
			copy(buf, buf[have-tail:have])
			have = tail
		}
	}
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	for i, needle := range needles {
		if seen[i] {
			found = append(found, needle)
		}
	}
	return found, nil
}
