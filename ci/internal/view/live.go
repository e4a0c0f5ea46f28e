package view

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/charmbracelet/x/ansi"
	"golang.org/x/term"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// Live is the view for terminals. What has ended is printed for good; below it, after an empty row, a
// live area shows the tasks that run. The caller must write nothing else to the terminal before Close,
// other than through notes.
//
// What is drawn is computed with charmbracelet/x/ansi; the frames are written by hand. The tests of this
// package were run with the renderer of bubbletea (v2.0.10) in their place: it leaves copies of running
// tasks and empty rows in the scroll-back when it prints above a live area as high as the screen and when
// the terminal is resized, and keys that are typed stay within the area. Three rules keep this simple, and
// the terminal usable even if the program is killed:
//
//   - Nothing is read, no mode of the terminal is changed beyond a frame, no signal is caught. The size
//     is asked of the operating system for each frame.
//   - A frame is one write that starts and ends in the empty row above the live area, and erases what it
//     finds below. So nobody must know how many rows the last frame has become: a terminal that wraps
//     its lines anew when it is resized takes the cursor along. (What it pushes into the scroll-back
//     then, nobody can erase.) And keys that the user types are echoed where they spoil nothing.
//   - Lines of the live area are cut, and wrapping is off while they are drawn: one line is one row,
//     also where the size has just changed, and where terminal and library disagree on the width of a
//     character.
//
// A console that knows no escape codes (old Windows) gets [Plain].
func Live(w *os.File, colour bool) View {
	restore, ok := escapes(w)
	if !ok {
		return Plain(w)
	}
	l := newLive(w, colour, time.Now, func() (int, int) {
		width, height, err := term.GetSize(int(w.Fd()))
		if err != nil || width <= 0 || height <= 0 {
			return 80, 24 // serial lines do not know
		}
		return width, height
	})
	l.wait.Go(func() {
		defer restore()
		l.loop()
	})
	return l
}

type live struct {
	w      io.Writer
	colour bool
	now    func() time.Time
	size   func() (width, height int)
	wake   chan struct{} // something is to be printed
	stop   chan struct{} // the last frame is to be drawn
	wait   sync.WaitGroup

	mu      sync.Mutex
	tasks   tasks
	printed []string // lines to print for good with the next frame
	closed  bool

	// Of the last frame: whether it had a live area, and the size of the terminal.
	shown         bool
	width, height int
}

func newLive(w io.Writer, colour bool, now func() time.Time, size func() (int, int)) *live {
	return &live{w: w, colour: colour, now: now, size: size, wake: make(chan struct{}, 1), stop: make(chan struct{})}
}

// tick is the time between two frames.
const tick = 100 * time.Millisecond

// The colours of marks and names. They only underline what those say.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	bold   = "1"
	faint  = "2"
)

var mark = map[pipelines.Verdict]struct{ sign, colour string }{
	pipelines.Passed:  {"✓", green},
	pipelines.Failed:  {"✗", red},
	pipelines.Skipped: {"–", yellow},
	pipelines.NotRun:  {"○", yellow},
}

var spinner = []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}

// Event never waits for the terminal: one that was stopped with Ctrl-S must not stop the pipeline.
func (l *live) Event(e pipelines.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	name := l.tasks.event(e, l.now())
	switch e.Kind {
	case pipelines.EventDone:
		m, ok := mark[e.Verdict]
		if !ok {
			m.sign, m.colour = "?", yellow
		}
		l.printed = append(l.printed, l.line(m.sign, m.colour, name, elapsed(e), outcome(e)))
	case pipelines.EventNote:
		l.printed = append(l.printed, l.paint(yellow, "note:")+" "+note(name, e.Detail))
	case pipelines.EventProgress:
		return // the next frame is soon enough
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

func (l *live) Close() {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = true
	now := l.now()
	for _, t := range l.tasks.running {
		l.printed = append(l.printed, l.line("?", yellow, t.name, report.Elapsed(now.Sub(t.start)), unfinished))
	}
	l.tasks.running = nil
	l.mu.Unlock()
	close(l.stop)
	l.wait.Wait()
}

// loop draws until the view is closed.
func (l *live) loop() {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-l.stop:
			l.draw()
			return
		case <-l.wake:
		case <-ticker.C:
		}
		l.draw()
	}
}

func (l *live) draw() {
	width, height := l.size()
	l.mu.Lock()
	frame := l.frame(l.now(), width, height)
	l.mu.Unlock()
	if frame != "" {
		_, _ = io.WriteString(l.w, frame)
	}
}

// The codes that a frame is made of, with CSI n A, which moves the cursor up n rows. Every terminal of
// the last decades knows them.
const (
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	wrapOff    = "\x1b[?7l"
	wrapOn     = "\x1b[?7h"
	eraseRight = "\x1b[K"
	eraseBelow = "\x1b[J"
	newline    = "\r\n"
	// eraseArea erases the cursor's row and all below it. eraseBelow alone would do, but in the top left
	// corner tmux takes it for clearing the screen and moves what was there into the scroll-back.
	eraseArea = eraseRight + "\n" + eraseBelow + "\x1b[A"
)

// frame is what brings the terminal up to date: what is to be printed for good and the new live area.
func (l *live) frame(now time.Time, width, height int) string {
	area := l.area(now, width, height)
	if len(area) == 0 && len(l.printed) == 0 && !l.shown {
		return ""
	}
	var b strings.Builder
	b.WriteString(hideCursor)
	if l.shown {
		b.WriteString("\r")
		// Otherwise each row is overwritten in place, which does not flicker. After a resize it must not
		// be: rows would keep the terminal's notion that they continue each other.
		if len(l.printed) > 0 || len(area) == 0 || width != l.width || height != l.height {
			b.WriteString(eraseArea)
		}
	}
	// These lines wrap where they are longer than a row: nothing is cut that stays.
	for _, line := range l.printed {
		b.WriteString(line + newline)
	}
	if len(area) > 0 {
		b.WriteString(wrapOff + eraseRight)
		for _, line := range area {
			b.WriteString(newline + line + eraseRight)
		}
		fmt.Fprintf(&b, "%s%s\r\x1b[%dA", eraseBelow, wrapOn, len(area))
	}
	b.WriteString(showCursor)
	l.printed, l.shown, l.width, l.height = nil, len(area) > 0, width, height
	return b.String()
}

// area are the lines of the live area. They and the empty row above fit into the terminal.
func (l *live) area(now time.Time, width, height int) []string {
	rows := max(height-1, 0)
	groups := l.tasks.groups()
	headings := 0
	for _, g := range groups {
		if g.heading() {
			headings++
		}
	}
	// What runs is worth more than where it belongs.
	headed := len(l.tasks.running)+headings <= rows
	fit := len(l.tasks.running)
	if fit > rows {
		fit = max(rows-1, 0)
	}
	var lines []string
	sign := spinner[int(now.UnixMilli()/tick.Milliseconds())%len(spinner)]
	for _, g := range groups {
		if headed && g.heading() {
			lines = append(lines, l.line(" ", "", l.paint(bold, g.stage.name), report.Elapsed(now.Sub(g.stage.start)), g.stage.outcome()))
		}
		for _, t := range g.running {
			if fit--; fit >= 0 {
				lines = append(lines, l.line(sign, cyan, t.name, report.Elapsed(now.Sub(t.start)), t.detail))
			}
		}
	}
	if more := len(l.tasks.running) - len(lines); more > 0 && rows > 0 {
		lines = append(lines, fmt.Sprintf("… and %d more", more))
	}
	for i, line := range lines {
		// The last column stays free: erasing the rest of a full row would erase its last character.
		lines[i] = ansi.Truncate(line, max(width-1, 0), "…")
	}
	return lines
}

// line is the line of a task.
func (l *live) line(sign, colour, name, elapsed, detail string) string {
	return l.paint(colour, sign) + " " + l.tasks.columns(name, l.paint(faint, elapsed), detail)
}

func (l *live) paint(colour, s string) string {
	if !l.colour || colour == "" || s == "" {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[m"
}

// outcome says how a task ended. The signs of tasks that did nothing need a word, a failure at least one.
func outcome(e pipelines.Event) string {
	detail := report.Clean(e.Detail)
	switch {
	case e.Verdict == pipelines.Passed || e.Verdict == pipelines.Failed && detail != "",
		strings.HasPrefix(detail, string(e.Verdict)):
		return detail
	case detail == "":
		return report.Clean(string(e.Verdict))
	default:
		return report.Clean(string(e.Verdict)) + ": " + detail
	}
}
