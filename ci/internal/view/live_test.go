package view

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

// stage is a Live whose frames are drawn by the test.
type stage struct {
	*live
	*screen
	clock *clock
}

func newStage(t *testing.T, width, height int, colour bool) *stage {
	s := &stage{screen: newScreen(t, width, height), clock: newClock()}
	s.live = newLive(s, colour, s.clock.now, func() (int, int) { return s.screen.width, s.screen.height })
	return s
}

// Write draws a frame and checks what must hold after each.
func (s *stage) Write(frame []byte) (int, error) {
	s.screen.write(string(frame))
	require.False(s.t, s.hidden, "the cursor is hidden")
	require.False(s.t, s.noWrap, "wrapping is off")
	require.Zero(s.t, s.x, "the cursor is in a line")
	return len(frame), nil
}

func (s *stage) send(events ...pipelines.Event) {
	for _, e := range events {
		s.Event(e)
	}
	s.draw()
}

// end closes the view and types what a shell would.
func (s *stage) end() {
	s.Close()
	s.draw()
	s.screen.write("$ ")
}

// tell tells the story of the golden files, a frame each interval, and takes a picture at each step.
func tell(s *stage, interval time.Duration) string {
	var b strings.Builder
	for i, step := range story {
		s.send(step.events...)
		for passed := time.Duration(0); passed < step.after; passed += interval {
			s.clock.forward(interval)
			s.draw()
		}
		fmt.Fprintf(&b, "== step %d\n%s", i+1, s)
	}
	s.end()
	fmt.Fprintf(&b, "== end\n%s", s)
	return b.String()
}

func TestLive(t *testing.T) {
	for _, size := range []struct{ width, height int }{{60, 8}, {100, 30}} {
		t.Run(fmt.Sprintf("%dx%d", size.width, size.height), func(t *testing.T) {
			s := newStage(t, size.width, size.height, false)
			got := tell(s, tick)
			golden(t, fmt.Sprintf("live-%dx%d.golden", size.width, size.height), got)
			require.Zero(t, s.colours)

			coloured := newStage(t, size.width, size.height, true)
			require.Equal(t, got, tell(coloured, tick), "colour changes more than colours")
			require.NotZero(t, coloured.colours)
		})
	}
}

// TestLiveSizes tells the story on screens of every small size and expects the same lines as on a wide
// one, wrapped.
func TestLiveSizes(t *testing.T) {
	wide := newStage(t, 500, 50, false)
	tell(wide, second/2)
	unwrap := func(s *stage) string {
		return strings.NewReplacer(" ", "", "\n", "").Replace(s.String())
	}
	for width := 2; width < 40; width += 3 {
		for height := 1; height < 10; height++ {
			s := newStage(t, width, height, true)
			tell(s, second/2)
			require.Equal(t, unwrap(wide), unwrap(s), "%dx%d", width, height)
		}
	}
}

func TestLiveResize(t *testing.T) {
	s := newStage(t, 60, 10, false)
	s.screen.write("$ slipway\r\n")
	s.send(start("a"), start("b"), start("c"), progress("b", strings.Repeat("long ", 30)))
	s.resize(30, 3)
	s.send()
	require.Equal(t, []string{"", "⠋ a                      0.0s", "… and 2 more"}, s.lines()[len(s.lines())-3:])
	s.resize(80, 12)
	s.send(done("a", pipelines.Passed, second, "fine"))
	s.resize(20, 5)
	s.send(done("b", pipelines.Passed, second, "ok"), done("c", pipelines.Failed, second, "no"))
	s.resize(60, 10)
	s.end()
	for _, line := range []string{"$ slipway", "✓ a", "✓ b", "✗ c"} {
		require.Equal(t, 1, strings.Count(s.String(), line), "%s in\n%s", line, s)
	}
	require.NotContains(t, s.String(), "more")
	require.NotContains(t, s.String(), "long")
}

// TestLiveLeftovers draws shorter lines over longer ones, and over the rows that a terminal leaves below
// when it wraps anew before the program knows of its new size.
func TestLiveLeftovers(t *testing.T) {
	s := newStage(t, 60, 10, false)
	s.send(start("a"), progress("a", "a long detail"), start("b"))
	s.screen.write("\r\n\r\n\r\nleft\r\nleft\x1b[4A\r")
	s.send(progress("a", "short"))
	require.Equal(t, []string{
		"", "⠋ a                      0.0s  short", "⠋ b                      0.0s",
	}, s.lines())
}

// TestLiveEcho types while the view runs: what the terminal echoes stays if it ends in a newline, as in
// any program, and leaves nothing of the live area behind.
func TestLiveEcho(t *testing.T) {
	for _, height := range []int{3, 4, 10} {
		s := newStage(t, 60, height, false)
		s.send(start("a"), start("b"))
		want := s.String()
		s.screen.write("typed^C")
		s.send()
		require.Equal(t, want, s.String())
		for range 5 {
			s.screen.write("\r\n")
			s.send()
		}
		s.screen.write("typed\r\n")
		s.send(done("a", pipelines.Passed, second, ""), done("b", pipelines.Passed, second, ""))
		s.end()
		require.Equal(t, []string{
			"", "", "", "", "", "typed",
			"✓ a                      1.0s", "✓ b                      1.0s", "$",
		}, s.lines())
	}
}

// TestLiveSuspended stops the program as Ctrl-Z does: what others wrote meanwhile must survive.
func TestLiveSuspended(t *testing.T) {
	s := newStage(t, 60, 12, false)
	s.send(start("a"), start("b"))
	s.screen.write("^Z\x1b[K\r\n[1]+  Stopped\x1b[K\r\n$ fg\x1b[K\r\n")
	s.send(done("a", pipelines.Passed, second, ""), done("b", pipelines.Passed, second, ""))
	s.end()
	require.Equal(t, []string{
		"^Z", "[1]+  Stopped", "$ fg",
		"✓ a                      1.0s", "✓ b                      1.0s", "$",
	}, s.lines())
}

// TestLiveUnfinished closes the view over running tasks, as an interrupt does.
func TestLiveUnfinished(t *testing.T) {
	s := newStage(t, 60, 12, false)
	s.send(start("a"), progress("b", "started by its progress"))
	s.clock.forward(second)
	s.Event(notice("b", "not drawn yet"))
	s.end()
	s.Close()
	s.Event(start("too late"))
	s.draw()
	require.Equal(t, []string{
		"note: b: not drawn yet",
		"? a                      1.0s  did not finish",
		"? b                      1.0s  did not finish", "$",
	}, s.lines())
}

// TestLiveSilent expects no output of a view that has nothing to show: the line may be the caller's.
func TestLiveSilent(t *testing.T) {
	s := newStage(t, 60, 12, false)
	s.send()
	s.send(start("a"))
	s.send(done("a", pipelines.Passed, second, ""))
	s.screen.write("written by the caller\r\n")
	s.send()
	s.end()
	require.Equal(t, []string{"✓ a                      1.0s", "written by the caller", "$"}, s.lines())
}
