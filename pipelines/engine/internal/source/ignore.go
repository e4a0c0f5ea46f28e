package source

import (
	"path"
	"strings"
)

// ignores are the patterns of the .gitignore files of a tree, in the order in which they were read:
// parents before what lies below. The last one that matches decides (https://git-scm.com/docs/gitignore).
type ignores []ignore

// ignore is one pattern. It is matched byte for byte, as git does it.
type ignore struct {
	dir     string // of its .gitignore, with a slash at the end unless it is the root
	literal string // what comes before the first wildcard
	pattern string // the rest
	negated bool   // "!": what matches is not ignored after all
	dirOnly bool   // "name/": only directories match
	byName  bool   // no slash in it: it matches the last element of a name, at any depth
}

// add reads the .gitignore file of a directory.
func (all ignores) add(dir, text string) ignores {
	if dir == "." {
		dir = ""
	} else {
		dir += "/"
	}
	for line := range strings.SplitSeq(strings.TrimPrefix(text, "\uFEFF"), "\n") {
		line = trimSpaces(strings.TrimSuffix(line, "\r"))
		if line == "" || line[0] == '#' {
			continue
		}
		i := ignore{dir: dir}
		i.pattern, i.negated = strings.CutPrefix(line, "!")
		i.pattern, i.dirOnly = strings.CutSuffix(i.pattern, "/")
		i.byName = !strings.Contains(i.pattern, "/")
		i.pattern = strings.TrimPrefix(i.pattern, "/")
		if n := strings.IndexAny(i.pattern, `*?[\`); n >= 0 {
			i.literal, i.pattern = i.pattern[:n], i.pattern[n:]
		} else {
			i.literal, i.pattern = i.pattern, ""
		}
		all = append(all, i)
	}
	return all
}

// trimSpaces drops spaces at the end, but for those behind a backslash.
func trimSpaces(line string) string {
	end := 0
	for i := 0; i < len(line); i++ {
		if line[i] == '\\' {
			i++
		} else if line[i] == ' ' {
			continue
		}
		end = min(i+1, len(line))
	}
	return line[:end]
}

// match tells whether a file or directory is ignored whose parents are not.
func (all ignores) match(name string, isDir bool) bool {
	for n := len(all) - 1; n >= 0; n-- {
		i := all[n]
		rel, ok := strings.CutPrefix(name, i.dir)
		if !ok || i.dirOnly && !isDir {
			continue
		}
		if i.byName {
			rel = path.Base(rel)
		}
		// Git, too, compares the literal part on its own, so that a**/b matches ab.
		if rel, ok = strings.CutPrefix(rel, i.literal); ok && wildmatch(i.pattern, rel) {
			return !i.negated
		}
	}
	return false
}

// wildmatch matches as git's wildmatch.c does with WM_PATHNAME: "*" and "?" match no slash, "**" between
// slashes matches any number of directories.
func wildmatch(p, name string) bool {
	start := true // a slash or nothing stands before p
	for len(p) > 0 {
		c := p[0]
		if c == '*' {
			stars := len(p) - len(strings.TrimLeft(p, "*"))
			rest := p[stars:]
			if stars > 1 && start && (rest == "" || rest[0] == '/' || strings.HasPrefix(rest, `\/`)) {
				return matchDirs(rest, name)
			}
			for n := 0; ; n++ {
				if wildmatch(rest, name[n:]) {
					return true
				}
				if n == len(name) || name[n] == '/' {
					return false
				}
			}
		}
		if name == "" {
			return false
		}
		ok, size := matchByte(p, name[0])
		if !ok {
			return false
		}
		start = p[size-1] == '/'
		p, name = p[size:], name[1:]
	}
	return name == ""
}

// matchDirs matches what follows "**", which is nothing or begins with a slash.
func matchDirs(rest, name string) bool {
	if rest == "" || rest[0] == '/' && wildmatch(rest[1:], name) {
		return true
	}
	for n := range len(name) {
		if name[n] == '/' && wildmatch(rest, name[n:]) {
			return true
		}
	}
	return false
}

// matchByte matches one byte with the beginning of a pattern and returns the length of that beginning.
func matchByte(p string, b byte) (ok bool, size int) {
	switch p[0] {
	case '?':
		return b != '/', 1
	case '\\':
		if len(p) == 1 {
			return false, 1
		}
		return p[1] == b, 2
	case '[':
		return matchClass(p, b)
	}
	return p[0] == b, 1
}

// matchClass matches one byte with a class such as [a-z], [!0-9] or [[:space:]x]. One that does not end
// matches nothing.
func matchClass(p string, b byte) (ok bool, size int) {
	i := 1
	negated := i < len(p) && (p[i] == '!' || p[i] == '^')
	if negated {
		i++
	}
	matched := false
	previous := byte(0) // what a range may begin with
	for first := true; ; first = false {
		if i >= len(p) {
			return false, len(p)
		}
		c := p[i]
		switch {
		case c == ']' && !first:
			return matched != negated && b != '/', i + 1
		case c == '[' && strings.HasPrefix(p[i:], "[:"):
			name, _, closed := strings.Cut(p[i+2:], "]")
			if !closed {
				return false, len(p)
			}
			if class, ok := strings.CutSuffix(name, ":"); ok {
				in, known := inClass(class, b)
				if !known {
					return false, len(p)
				}
				matched = matched || in
				i, previous = i+2+len(name), 0
				break
			}
			matched, previous = matched || b == c, c
		case c == '-' && previous != 0 && i+1 < len(p) && p[i+1] != ']':
			i++
			if p[i] == '\\' {
				if i++; i == len(p) {
					return false, len(p)
				}
			}
			matched, previous = matched || previous <= b && b <= p[i], 0
		default:
			if c == '\\' {
				if i++; i == len(p) {
					return false, len(p)
				}
			}
			matched, previous = matched || b == p[i], p[i]
		}
		i++
	}
}

// inClass tells whether a byte is in a class of ASCII characters.
func inClass(class string, b byte) (in, known bool) {
	lower, upper, digit := 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9'
	graph := '!' <= b && b <= '~'
	switch class {
	case "alnum":
		return lower || upper || digit, true
	case "alpha":
		return lower || upper, true
	case "blank":
		return b == ' ' || b == '\t', true
	case "cntrl":
		return b < ' ' || b == 0x7f, true
	case "digit":
		return digit, true
	case "graph":
		return graph, true
	case "lower":
		return lower, true
	case "print":
		return graph || b == ' ', true
	case "punct":
		return graph && !lower && !upper && !digit, true
	case "space":
		return b == ' ' || b == '\t' || b == '\n' || b == '\r', true
	case "upper":
		return upper, true
	case "xdigit":
		return digit || 'a' <= b && b <= 'f' || 'A' <= b && b <= 'F', true
	}
	return false, false
}
