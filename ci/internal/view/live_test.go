package view

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

// liveTest is a Live whose frames are drawn by the test.
type liveTest struct {
	*live
	*screen
	clock *clock
}

func newLiveTest(t *testing.T, width, height int, colour bool) *liveTest {
	s := &liveTest{screen: newScreen(t, width, height), clock: newClock()}
	s.live = newLive(s, colour, s.clock.now, func() (int, int) { return s.screen.width, s.screen.height })
	return s
}

// Write draws a frame and checks what must hold after each.
func (s *liveTest) Write(frame []byte) (int, error) {
	s.screen.write(string(frame))
	require.False(s.t, s.hidden, "the cursor is hidden")
	require.False(s.t, s.noWrap, "wrapping is off")
	require.Zero(s.t, s.x, "the cursor is in a line")
	return len(frame), nil
}

func (s *liveTest) send(events ...pipelines.Event) {
	for _, e := range events {
		s.Event(e)
	}
	s.draw()
}

// end closes the view and types what a shell would.
func (s *liveTest) end() {
	s.Close()
	s.draw()
	s.screen.write("$ ")
}

// staged gives tasks the stage that their names begin with.
func staged(events []pipelines.Event) []pipelines.Event {
	events = slices.Clone(events)
	for i, e := range events {
		if e.Stage == "" {
			events[i].Stage, _, _ = strings.Cut(e.Task, " ")
		}
	}
	return events
}

// tell tells the story of the golden files, a frame each interval, and takes a picture at each step.
func tell(s *liveTest, interval time.Duration) string {
	var b strings.Builder
	for i, step := range story {
		s.send(staged(step.events)...)
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
			s := newLiveTest(t, size.width, size.height, false)
			got := tell(s, tick)
			golden(t, fmt.Sprintf("live-%dx%d.golden", size.width, size.height), got)
			require.Zero(t, s.colours)

			coloured := newLiveTest(t, size.width, size.height, true)
			require.Equal(t, got, tell(coloured, tick), "colour changes more than colours")
			require.NotZero(t, coloured.colours)
		})
	}
}

// TestLiveSizes tells the story on screens of every small size and expects the same lines as on a wide
// one, wrapped.
func TestLiveSizes(t *testing.T) {
	wide := newLiveTest(t, 500, 50, false)
	tell(wide, second/2)
	unwrap := func(s *liveTest) string {
		return strings.NewReplacer(" ", "", "\n", "").Replace(s.String())
	}
	for width := 2; width < 40; width += 3 {
		for height := 1; height < 10; height++ {
			s := newLiveTest(t, width, height, true)
			tell(s, second/2)
			require.Equal(t, unwrap(wide), unwrap(s), "%dx%d", width, height)
		}
	}
}

// TestLiveStages shows tasks by stage, with what has ended of it, where there is room.
func TestLiveStages(t *testing.T) {
	s := newLiveTest(t, 60, 8, false)
	s.send(staged([]pipelines.Event{start("test 1"), start("vet 1"), start("test 2"), start("test 3"), progress("vet 1", "x"), start("plan")})...)
	s.clock.forward(second)
	s.send(staged([]pipelines.Event{done("test 2", pipelines.Failed, second, ""), done("test 3", pipelines.Passed, second, "")})...)
	require.Equal(t, []string{
		"✗ test 2                     1.0s  failed",
		"✓ test 3                     1.0s",
		"",
		"  test                       1.0s  1 failed, 1 passed",
		"⠋ test 1                     1.0s",
		"⠋ vet 1                      1.0s  x",
		"⠋ plan                       1.0s",
	}, s.lines())
	s.resize(60, 4)
	s.send()
	require.Equal(t, []string{"⠋ test 1                     1.0s", "⠋ vet 1                      1.0s  x", "⠋ plan                       1.0s"}, s.lines()[len(s.lines())-3:])
}

func TestLiveResize(t *testing.T) {
	s := newLiveTest(t, 60, 10, false)
	s.screen.write("$ slipway\r\n")
	s.send(start("a"), start("b"), start("c"), progress("b", strings.Repeat("long ", 30)))
	s.resize(36, 3)
	s.send()
	require.Equal(t, []string{"", "⠋ a                          0.0s", "… and 2 more"}, s.lines()[len(s.lines())-3:])
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
	s := newLiveTest(t, 60, 10, false)
	s.send(start("a"), progress("a", "a long detail"), start("b"))
	s.screen.write("\r\n\r\n\r\nleft\r\nleft\x1b[4A\r")
	s.send(progress("a", "short"))
	require.Equal(t, []string{
		"", "⠋ a                          0.0s  short", "⠋ b                          0.0s",
	}, s.lines())
}

// TestLiveEcho types while the view runs: what the terminal echoes stays if it ends in a newline, as in
// any program, and leaves nothing of the live area behind.
func TestLiveEcho(t *testing.T) {
	for _, height := range []int{3, 4, 10} {
		s := newLiveTest(t, 60, height, false)
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
			"✓ a                          1.0s", "✓ b                          1.0s", "$",
		}, s.lines())
	}
}

// TestLiveSuspended stops the program as Ctrl-Z does: what others wrote meanwhile must survive.
func TestLiveSuspended(t *testing.T) {
	s := newLiveTest(t, 60, 12, false)
	s.send(start("a"), start("b"))
	s.screen.write("^Z\x1b[K\r\n[1]+  Stopped\x1b[K\r\n$ fg\x1b[K\r\n")
	s.send(done("a", pipelines.Passed, second, ""), done("b", pipelines.Passed, second, ""))
	s.end()
	require.Equal(t, []string{
		"^Z", "[1]+  Stopped", "$ fg",
		"✓ a                          1.0s", "✓ b                          1.0s", "$",
	}, s.lines())
}

// TestLiveUnfinished closes the view over running tasks, as an interrupt does.
func TestLiveUnfinished(t *testing.T) {
	s := newLiveTest(t, 60, 12, false)
	s.send(start("a"), progress("b", "started by its progress"))
	s.clock.forward(second)
	s.Event(notice("b", "not drawn yet"))
	s.end()
	s.Close()
	s.Event(start("too late"))
	s.draw()
	require.Equal(t, []string{
		"note: b: not drawn yet",
		"? a                          1.0s  did not finish",
		"? b                          1.0s  did not finish", "$",
	}, s.lines())
}

// TestLiveSilent expects no output of a view that has nothing to show: the line may be the caller's.
func TestLiveSilent(t *testing.T) {
	s := newLiveTest(t, 60, 12, false)
	s.send()
	s.send(start("a"))
	s.send(done("a", pipelines.Passed, second, ""))
	s.screen.write("written by the caller\r\n")
	s.send()
	s.end()
	require.Equal(t, []string{"✓ a                          1.0s", "written by the caller", "$"}, s.lines())
}
