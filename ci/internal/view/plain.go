package view

import (
	"io"
	"sync"
	"time"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// stillRunning is how long a task runs before Plain says so, and says so again.
const stillRunning = 30 * time.Second

// Plain is the view for logs: one line for each task that ends, for each note, and every 30 seconds for
// each task that still runs. It writes no escape codes, and no times of day, which CI systems add: see [Stamped].
func Plain(w io.Writer) View {
	p := newPlain(w, time.Now)
	p.wait.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-ticker.C:
				p.tick()
			}
		}
	})
	return p
}

type plain struct {
	w    io.Writer
	now  func() time.Time
	stop chan struct{}
	wait sync.WaitGroup

	mu     sync.Mutex
	tasks  tasks
	closed bool
}

func newPlain(w io.Writer, now func() time.Time) *plain {
	return &plain{w: w, now: now, stop: make(chan struct{})}
}

// word starts the line of a task that ended. It is what people search logs for.
var word = map[pipelines.Verdict]string{
	pipelines.Passed:  "ok",
	pipelines.Failed:  "FAIL",
	pipelines.Skipped: "skip",
	pipelines.NotRun:  "norun",
}

func (p *plain) Event(e pipelines.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	name := p.tasks.event(e, p.now())
	switch e.Kind {
	case pipelines.EventDone:
		w, ok := word[e.Verdict]
		if !ok {
			w = report.Clean(string(e.Verdict))
		}
		p.line(w, name, elapsed(e), report.Clean(e.Detail))
	case pipelines.EventNote:
		p.write("note: " + note(name, e.Detail))
	}
}

// tick says which tasks still run and have not been spoken of for a while.
func (p *plain) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	for _, t := range p.tasks.running {
		if now.Before(t.due) {
			continue
		}
		t.due = now.Add(stillRunning)
		p.line("run", t.name, report.Elapsed(now.Sub(t.start)), t.detail)
	}
}

func (p *plain) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	now := p.now()
	for _, t := range p.tasks.running {
		p.line("stop", t.name, report.Elapsed(now.Sub(t.start)), unfinished)
	}
	p.tasks.running = nil
	p.mu.Unlock()
	close(p.stop)
	p.wait.Wait()
}

func (p *plain) line(word, name, elapsed, detail string) {
	p.write(report.Pad(word, 5) + " " + p.tasks.columns(name, elapsed, detail))
}

// write writes a line at once, so that the lines of other writers to the same log stay whole.
func (p *plain) write(line string) {
	_, _ = io.WriteString(p.w, line+"\n")
}

// Stamped is a writer for Plain, whose lines begin with the time in UTC.
func Stamped(w io.Writer) io.Writer { return stamped{w, time.Now} }

type stamped struct {
	w   io.Writer
	now func() time.Time
}

// Write expects a whole line, as Plain writes it.
func (s stamped) Write(line []byte) (int, error) {
	_, err := s.w.Write(append([]byte(s.now().UTC().Format(time.RFC3339)+" "), line...))
	return len(line), err
}
