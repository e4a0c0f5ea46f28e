package view

import (
	"strconv"
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"
	"github.com/stretchr/testify/require"
)

// screen is a terminal that knows what Live is allowed to write and fails the test on anything else.
type screen struct {
	t             *testing.T
	width, height int
	history       []string   // rows that have left the screen at the top
	rows          [][]string // cells; the second cell of a wide character is empty
	x, y          int        // x == width: the row is full, the next character wraps
	hidden        bool
	noWrap        bool
	colours       int // how often a colour was set
}

func newScreen(t *testing.T, width, height int) *screen {
	s := &screen{t: t, width: width, height: height}
	for range height {
		s.rows = append(s.rows, s.blank())
	}
	return s
}

func (s *screen) blank() []string {
	return strings.Split(strings.Repeat(" ", s.width), "")
}

func (s *screen) write(text string) {
	s.t.Helper()
	for text != "" {
		// A sequence or a character as people see one.
		part, width, n, _ := ansi.DecodeSequence(text, ansi.NormalState, nil)
		text = text[n:]
		switch {
		case part == "\r":
			s.x = 0
		case part == "\n":
			s.down()
		case part == hideCursor, part == showCursor:
			s.hidden = part == hideCursor
		case part == wrapOff, part == wrapOn:
			s.noWrap = part == wrapOff
		case part == eraseRight, part == eraseBelow:
			require.Less(s.t, s.x, s.width, "erasing in a full row is undefined")
			if part == eraseBelow && s.x == 0 && s.y == 0 && s.height > 1 { // what tmux does
				s.history = append(s.history, s.lines()[len(s.history):]...)
			}
			copy(s.rows[s.y][s.x:], s.blank())
			for y := s.y + 1; part == eraseBelow && y < s.height; y++ {
				s.rows[y] = s.blank()
			}
		case strings.HasPrefix(part, "\x1b[") && strings.HasSuffix(part, "A"):
			up := 1
			if part != "\x1b[A" {
				var err error
				up, err = strconv.Atoi(part[2 : len(part)-1])
				require.NoError(s.t, err)
			}
			require.LessOrEqual(s.t, up, s.y, "the cursor is moved above the screen")
			s.y -= up
		case strings.HasPrefix(part, "\x1b[") && strings.HasSuffix(part, "m"):
			s.colours++
		default:
			require.Positive(s.t, width, "unexpected %q", part)
			s.put(part, width)
		}
	}
}

func (s *screen) put(character string, width int) {
	if s.x+width > s.width {
		require.False(s.t, s.noWrap, "a line of the live area reaches the edge")
		s.x = 0
		s.down()
	}
	s.rows[s.y][s.x] = character
	if width == 2 {
		s.rows[s.y][s.x+1] = ""
	}
	s.x += width
}

func (s *screen) down() {
	if s.y++; s.y == s.height {
		s.y--
		s.history = append(s.history, strings.Join(s.rows[0], ""))
		s.rows = append(s.rows[1:], s.blank())
	}
}

// resize does what terminals do that do not wrap anew: cut rows, and scroll if the cursor would be lost.
func (s *screen) resize(width, height int) {
	for s.y >= height {
		s.history = append(s.history, strings.Join(s.rows[0], ""))
		s.rows = s.rows[1:]
		s.y--
	}
	old := s.rows
	s.width, s.height, s.rows = width, height, nil
	for y := range height {
		s.rows = append(s.rows, s.blank())
		if y < len(old) {
			copy(s.rows[y], old[y])
		}
	}
	s.x = min(s.x, width-1)
}

// lines are history and screen, without the empty rows at the end.
func (s *screen) lines() []string {
	lines := append([]string(nil), s.history...)
	for _, row := range s.rows {
		lines = append(lines, strings.Join(row, ""))
	}
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	return lines
}

// String is what a person could scroll through.
func (s *screen) String() string {
	return strings.Join(s.lines(), "\n") + "\n"
}
