package view

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, strings.ReplaceAll(string(want), "\r\n", "\n"), got)
}

// clock is a clock that moves when told to.
type clock struct{ time.Time }

func newClock() *clock {
	return &clock{time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)}
}

func (c *clock) now() time.Time          { return c.Time }
func (c *clock) forward(d time.Duration) { c.Time = c.Add(d) }

func start(task string) pipelines.Event {
	return pipelines.Event{Kind: pipelines.EventStart, Task: task}
}

func progress(task, detail string) pipelines.Event {
	return pipelines.Event{Kind: pipelines.EventProgress, Task: task, Detail: detail}
}

func done(task string, v pipelines.Verdict, elapsed time.Duration, detail string) pipelines.Event {
	return pipelines.Event{Kind: pipelines.EventDone, Task: task, Verdict: v, Elapsed: elapsed, Detail: detail}
}

func notice(task, detail string) pipelines.Event {
	return pipelines.Event{Kind: pipelines.EventNote, Task: task, Detail: detail}
}

// nasty is what a tested program may print to harm the display.
const nasty = "\x1b[2J\x1b[31mred\x1b[0m\nnext\r\tline \x1b]0;title\x07\x1b]52;c;open \x9b31m \u009b6n \u202etfel\u202c \b\x7f\x00 \x1b(B\x1b[c 日本語 👩\u200d🚀 end"

// step is one step of the story that the golden files tell: events, after which time passes.
type step struct {
	events []pipelines.Event
	after  time.Duration
}

const second = time.Second

var story = []step{
	{[]pipelines.Event{start("vet 1.22.12"), start("test 1.20.14"), start("test 1.21.13"), start("test 1.22.12")}, second / 2},
	{[]pipelines.Event{
		done("vet 1.22.12", pipelines.Passed, 1234*time.Millisecond, ""),
		notice("", "go.mod asks for go 1.20,\nwhich gets no more security fixes"),
		progress("test 1.20.14", "TestOne"), progress("test 1.21.13", "TestTwo"),
	}, 31 * second},
	{[]pipelines.Event{
		progress("test 1.21.13", nasty), progress("test 1.20.14", ""),
		start("build linux/amd64"), start("build linux/arm64"), start("build linux/arm/v7"),
		start("build darwin/arm64"), start("build windows/amd64"),
	}, second},
	{[]pipelines.Event{
		done("build linux/amd64", pipelines.Passed, 9960*time.Millisecond, "5.1 MB, 3.4 MB stripped"),
		done("test 1.21.13", pipelines.Failed, 33*second, "1 failed: "+nasty),
		notice("build linux/arm64", "no cgo"),
	}, 30 * second},
	{[]pipelines.Event{
		done("build linux/arm64", pipelines.Failed, 61*second, ""),
		done("build linux/arm/v7", pipelines.Passed, time.Hour, "3.3 MB"),
		done("build darwin/arm64", pipelines.Passed, second/5, "3.2 MB"),
		done("build windows/amd64", pipelines.Passed, second, "3.5 MB"),
		done("test 1.22.12", pipelines.Passed, 4200*time.Millisecond, "42 passed, 3 skipped"),
		{Kind: pipelines.EventDone, Stage: "smoke", Verdict: pipelines.NotRun, Detail: "this machine runs no linux/arm64"},
		done("verify a-platform-with-a-name-far-too-long", pipelines.Skipped, 0, ""),
		done("publish", pipelines.Skipped, 0, "an earlier stage failed"),
	}, second},
}

func TestPlain(t *testing.T) {
	var b bytes.Buffer
	c := newClock()
	p := newPlain(&b, c.now)
	for _, s := range story {
		for _, e := range s.events {
			p.Event(e)
		}
		c.forward(s.after)
		p.tick()
		p.tick() // says nothing twice
	}
	p.Close()
	p.Close()
	p.Event(notice("", "too late"))
	golden(t, "plain.golden", b.String())
	require.NotContains(t, b.String(), "\x1b")
}

func TestStamped(t *testing.T) {
	var b bytes.Buffer
	p := newPlain(stamped{&b, func() time.Time { return newClock().In(time.FixedZone("", 3600)) }}, newClock().now)
	p.Event(done("a", pipelines.Passed, second, "fine"))
	p.Event(notice("a", "two\nlines"))
	p.Close()
	require.Equal(t, "2024-02-29T12:00:00Z ok    a                          1.0s  fine\n2024-02-29T12:00:00Z note: a: two lines\n", b.String())
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	v := JSON(&b)
	at := newClock()
	var want []pipelines.Event
	for _, s := range story {
		for _, e := range s.events {
			e.Time = at.Time
			e.Detail = strings.ToValidUTF8(e.Detail, "\uFFFD") // JSON has no other text
			want = append(want, e)
			v.Event(e)
		}
		at.forward(s.after)
	}
	v.Close()
	v.Event(notice("", "too late"))
	golden(t, "json.golden", b.String())

	var got []pipelines.Event
	for line := range strings.Lines(b.String()) {
		var e pipelines.Event
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		got = append(got, e)
	}
	require.Equal(t, want, got)
}

// TestConcurrent sends from many goroutines to each view and expects every end exactly once, on a line
// of its own.
func TestConcurrent(t *testing.T) {
	const senders, each = 8, 20
	storm := func(v View) {
		var wait sync.WaitGroup
		for s := range senders {
			wait.Go(func() {
				for i := range each {
					task := fmt.Sprintf("task %d.%02d", s, i)
					v.Event(start(task))
					for range 20 {
						v.Event(progress(task, nasty))
					}
					v.Event(done(task, pipelines.Passed, second, "fine"))
				}
			})
		}
		wait.Wait()
		v.Close()
	}
	check := func(t *testing.T, lines []string, format string) {
		count := map[string]int{}
		for _, line := range lines {
			count[line]++
		}
		for s := range senders {
			for i := range each {
				require.Equal(t, 1, count[fmt.Sprintf(format, s, i)], "task %d.%02d", s, i)
			}
		}
		require.Len(t, count, senders*each)
	}
	t.Run("plain", func(t *testing.T) {
		var b bytes.Buffer
		storm(Plain(&b))
		check(t, strings.Split(strings.TrimSpace(b.String()), "\n"), "ok    task %d.%02d                  1.0s  fine")
	})
	t.Run("json", func(t *testing.T) {
		var b bytes.Buffer
		storm(JSON(&b))
		var lines []string
		for line := range strings.Lines(b.String()) {
			if strings.Contains(line, `"done"`) {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		check(t, lines, `{"time":"0001-01-01T00:00:00Z","event":"done","stage":"","task":"task %d.%02d","verdict":"passed","detail":"fine","elapsed_ns":1000000000}`)
	})
	t.Run("live", func(t *testing.T) {
		var b bytes.Buffer
		l := newLive(&b, true, time.Now, func() (int, int) { return 70, 6 })
		l.wait.Go(l.loop)
		storm(l)
		s := newScreen(t, 70, 6)
		s.write(b.String())
		check(t, s.lines(), "✓ task %d.%02d                  1.0s  fine")
	})
}

func TestChooseWithoutTerminal(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer file.Close()
	v := Choose(file, false, func(string) string { return "" })
	require.IsType(t, &plain{}, v)
	v.Close()
	v = Choose(file, true, func(string) string { return "" })
	require.IsType(t, &jsonLines{}, v)
	v.Close()
}
