package pipelines

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

// SmokeResult is what the smoke runs of all platforms said.
type SmokeResult struct {
	Verdict Verdict    `json:"verdict"`
	Runs    []SmokeRun `json:"runs"`
}

// SmokeRun is the smoke run of the image of one platform.
type SmokeRun struct {
	Platform string  `json:"platform"`
	Verdict  Verdict `json:"verdict"`
	// Detail says what was seen, or why nothing was.
	Detail string `json:"detail"`
	// Isolation tells how the image was confined.
	Isolation *engine.Isolation `json:"isolation,omitempty"`
	// Probes are what the probes said, of the last repetition.
	Probes []ProbeRun `json:"probes,omitempty"`
	// Starts are the times from the start to the first good answer of a service, or to the end of a program
	// that ends by itself, one for each repetition. Ready is their median.
	Starts []Microseconds `json:"starts_us,omitempty"`
	Ready  Milliseconds   `json:"ready_ms,omitempty"`
	// Service tells that it stayed, rather than to end by itself.
	Service bool `json:"service,omitempty"`
	// Ports are the TCP ports on which it listened when it was ready.
	Ports []int `json:"ports,omitempty"`
	// ExitCode is that of a service that was asked to stop, and Stopped the time that it took
	// from the moment when slipway learned that the signal was sent.
	ExitCode *int         `json:"exit_code,omitempty"`
	Stopped  Milliseconds `json:"stopped_ms,omitempty"`
	// MaxMemory is the largest resident size in bytes, the median of all repetitions.
	MaxMemory int64 `json:"max_memory,omitempty"`
	// Leftover are names of processes that the first one left behind, Written files that were changed outside
	// of file systems in memory; as far as the isolation lets them be seen.
	Leftover []string `json:"leftover,omitempty"`
	Written  []string `json:"written,omitempty"`
	// Output are the last lines that the image printed, of a failed run.
	Output string `json:"output,omitempty"`

	asked string // the last probe, or what was wanted of the image otherwise
}

// ProbeRun is what one probe said.
type ProbeRun struct {
	Probe  string `json:"probe"`
	Detail string `json:"detail"`
	// Elapsed is the time until the right answer.
	Elapsed Milliseconds `json:"elapsed_ms"`
}

// errSmoke is a bad answer of the image, as opposed to a fault of the environment.
type errSmoke string

func (e errSmoke) Error() string { return string(e) }

func badAnswer(format string, a ...any) error { return errSmoke(fmt.Sprintf(format, a...)) }

// An Isolator is an engine that can tell, before there is an image, whether it could isolate one in this way. The
// error is that of Start.
type Isolator interface{ CheckIsolation(kind string) error }

// foreseeSmoke says before anything is built for a smoke run that this machine cannot isolate an image, where that is
// known. It looks once.
func (p *Pipeline) foreseeSmoke() error {
	x, ok := p.engine.(Isolator)
	if !ok || !p.smokeAhead || p.foreseen || p.Config.Smoke.Isolation == "off" || !slices.Contains(p.imagePlatforms(), NativePlatform()) {
		return nil
	}
	p.foreseen = true
	return x.CheckIsolation(p.Config.Smoke.engineIsolation())
}

// engineIsolation is the isolation as engines take it.
func (s Smoke) engineIsolation() string {
	if s.Isolation == "auto" {
		return ""
	}
	return s.Isolation
}

// Smoke starts the image of every platform that this machine can execute as production would, asks the
// probes, and stops it.
func (p *Pipeline) Smoke(ctx context.Context) (*SmokeResult, error) {
	p.smokeAhead = true
	image, err := p.Image(ctx)
	if err != nil || image.Verdict != Passed {
		return &SmokeResult{Verdict: Skipped}, err
	}
	return stored(p, "smoke", func() (*SmokeResult, error) { return p.runSmoke(ctx, image) })
}

// An image that could not run here may run when the machine has changed.
func (r *SmokeResult) final() bool {
	return r.Verdict == Passed && !slices.ContainsFunc(r.Runs, func(x SmokeRun) bool { return x.Verdict != Passed })
}
func (r *SmokeResult) more() any { return nil }
func (r *SmokeResult) restore(p *Pipeline, _ json.RawMessage) error {
	p.Record.Smoke = r
	return nil
}

func (p *Pipeline) runSmoke(ctx context.Context, image *ImageResult) (*SmokeResult, error) {
	s := p.stage("smoke")
	if p.Config.Smoke.Isolation == "off" {
		s.end(Skipped, "switched off")
		return &SmokeResult{Verdict: Skipped}, nil
	}
	result := &SmokeResult{Verdict: NotRun}
	// One after the other: what one image does must not change what another is seen to do.
	for _, m := range image.Platforms {
		err := s.task(ctx, "smoke "+m.Platform, func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			run, err := p.try(ctx, p.Config, p.path(imageDir), m, progress)
			if err != nil {
				return "", "", err
			}
			if run.Verdict == Failed {
				f := Failure{What: "the image", Where: m.Platform, Probe: run.asked, Message: strings.TrimSpace(run.Detail + "\n" + run.Output), Repeat: map[string]string{"platforms": m.Platform}}
				if len(p.Config.Smoke.Probes) == 0 {
					f.Next = "If it needs arguments or something to talk to, say in smoke.probes how to try it, such as {args: [--version]}: " + DocsURL + "smoke.md"
				}
				s.fail(f)
			}
			result.Runs = append(result.Runs, *run)
			return run.Verdict, run.Detail, nil
		})
		if err != nil {
			return nil, err
		}
	}
	var ran, notRun []string
	for _, r := range result.Runs {
		switch {
		case r.Verdict == Failed:
			result.Verdict = Failed
		case r.Verdict == Passed && result.Verdict == NotRun:
			result.Verdict = Passed
		}
		if r.Verdict == NotRun {
			notRun = append(notRun, r.Platform)
		} else {
			ran = append(ran, r.Platform+": "+r.Detail)
		}
	}
	if len(notRun) > 0 {
		ran = append(ran, "not run here: "+strings.Join(notRun, ", "))
	}
	detail := strings.Join(ran, "; ")
	s.end(result.Verdict, detail)
	p.Record.Smoke = result
	return result, nil
}

// try makes the smoke run of one image, as c has it.
func (p *Pipeline) try(ctx context.Context, c Config, layout string, m PlatformImage, progress func(string)) (*SmokeRun, error) {
	t := &trial{p: p, config: c, layout: layout, image: m, progress: progress, run: SmokeRun{Platform: m.Platform, Verdict: Passed}}
	err := t.all(ctx)
	var foreign *engine.ForeignError
	var bad errSmoke
	switch {
	case errors.As(err, &foreign):
		t.run.Verdict, t.run.Detail = NotRun, foreign.Error()
	case errors.As(err, &bad):
		t.run.Verdict, t.run.Detail, t.run.Output = Failed, bad.Error(), tail.Lines(t.output, 20)
	case err != nil:
		return nil, err
	}
	return &t.run, nil
}

// trial tries the image of one platform.
type trial struct {
	p        *Pipeline
	config   Config
	layout   string
	image    PlatformImage
	progress func(string)
	run      SmokeRun
	memory   []int64 // of each repetition
	output   []byte
}

func (t *trial) container(args []string) engine.Container {
	c := t.config.Smoke
	memory, _ := parseBytes("", c.Memory) // was checked
	isolation := c.engineIsolation()
	var env []string
	for _, k := range sortedKeys(c.Env) {
		env = append(env, k+"="+c.Env[k])
	}
	return engine.Container{
		Layout: t.layout, Manifest: t.image.Manifest, Args: args, Env: env, Memory: memory, Processes: c.Processes, Isolation: isolation,
		Capabilities: t.config.Capabilities,
	}
}

// all repeats everything as often as is wanted.
func (t *trial) all(ctx context.Context) error {
	n := t.config.Smoke.Repeat
	var text string
	for i := range n {
		t.run.Probes, t.memory = nil, append(t.memory, 0)
		var err error
		if text, err = t.round(ctx); err != nil {
			var bad errSmoke
			if n > 1 && errors.As(err, &bad) {
				err = badAnswer("at the %d. of %d times, %v", i+1, n, bad)
			}
			return err
		}
	}
	t.run.MaxMemory = median(t.memory)
	t.run.Ready = Milliseconds(median(t.run.Starts))
	t.run.Detail = text
	if t.run.Service && t.run.Ready > 0 {
		t.run.Detail += fmt.Sprintf(" after %d ms", time.Duration(t.run.Ready).Milliseconds())
	}
	if n > 1 {
		t.run.Detail += fmt.Sprintf(", median of %d", n)
	}
	if t.run.Isolation != nil {
		t.run.Detail += " (" + t.run.Isolation.Kind + ")"
	}
	for what, names := range map[string][]string{"left processes behind": t.run.Leftover, "changed files outside of file systems in memory": t.run.Written} {
		if len(names) > 0 {
			t.p.note("smoke", "the image for %s %s: %s", t.image.Platform, what, shorten(names, 5))
		}
	}
	return nil
}

func median[T cmp.Ordered](all []T) T {
	if len(all) == 0 {
		var none T
		return none
	}
	sorted := slices.Sorted(slices.Values(all))
	return sorted[(len(sorted)-1)/2]
}

// round asks all probes once.
func (t *trial) round(ctx context.Context) (string, error) {
	var said []string
	var service []Probe
	for _, probe := range t.config.Smoke.Probes {
		if !probe.once() {
			service = append(service, probe)
			continue
		}
		t.run.asked = probe.String()
		t.progress(t.run.asked)
		begin := time.Now()
		if err := t.once(ctx, probe); err != nil {
			return "", err
		}
		if len(said) == 0 {
			t.run.Starts = append(t.run.Starts, Microseconds(time.Since(begin).Truncate(time.Microsecond)))
		}
		t.said(probe.String(), fmt.Sprintf("ended with %d", probe.ExitCode), begin)
		said = append(said, fmt.Sprintf("%s ended with %d", probe, probe.ExitCode))
	}
	if len(service) > 0 || len(said) == 0 {
		if len(said) > 0 {
			t.run.Starts = t.run.Starts[:len(t.run.Starts)-1] // that of the service says more
		}
		text, err := t.serve(ctx, service)
		if err != nil {
			return "", err
		}
		said = append(said, text)
	}
	return strings.Join(said, "; "), nil
}

func (t *trial) said(probe, detail string, begin time.Time) {
	t.run.Probes = append(t.run.Probes, ProbeRun{Probe: probe, Detail: detail, Elapsed: Milliseconds(time.Since(begin))})
}

// ended takes note of what is known when a process has ended.
func (t *trial) ended(exit engine.Exit) {
	last := len(t.memory) - 1
	t.memory[last] = max(t.memory[last], exit.MaxMemory)
	t.run.Leftover = merge(t.run.Leftover, exit.Leftover)
	t.run.Written = merge(t.run.Written, exit.Written)
}

// merge is the union of two sorted lists.
func merge(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

// start starts the image and returns it with what closes it and keeps its output.
func (t *trial) start(ctx context.Context, args []string) (engine.Process, func(), error) {
	process, err := t.p.engine.Start(ctx, t.container(args))
	if errors.Is(err, syscall.ENOSPC) {
		return nil, nil, fault.Environmentf(err, "Free some space there, or set TMPDIR to a directory with more.", "smoke run")
	}
	if image, ok := errors.AsType[*engine.ImageError](err); ok {
		return nil, nil, badAnswer("%v", image)
	}
	if err != nil {
		return nil, nil, err
	}
	isolation := process.Isolation()
	t.run.Isolation = &isolation
	return process, func() {
		t.output = process.Output()
		if err := process.Close(); err != nil {
			t.p.note("smoke", "cleaning up after the smoke run: %v", withoutPath(err))
		}
	}, nil
}

// once runs the entrypoint with the arguments of a probe, to its end.
func (t *trial) once(ctx context.Context, probe Probe) error {
	args := probe.Args
	if args == nil {
		args = []string{}
	}
	process, done, err := t.start(ctx, args)
	if err != nil {
		return err
	}
	defer done()
	deadline, cancel := context.WithTimeout(ctx, probe.Deadline)
	defer cancel()
	exit, err := process.Wait(deadline)
	if err != nil {
		if ctx.Err() == nil && deadline.Err() != nil {
			return badAnswer("%s did not end within %s", probe, probe.Deadline)
		}
		return err
	}
	t.ended(exit)
	if exit.Code != probe.ExitCode {
		return badAnswer("%s ended with %s, not %d", probe, describe(exit), probe.ExitCode)
	}
	if out := process.Output(); !regexp.MustCompile("(?m)" + probe.Output).Match(out) {
		return badAnswer("the output of %s does not match %q", probe, probe.Output)
	}
	return nil
}

func describe(exit engine.Exit) string {
	if exit.Signal != "" {
		return exit.Signal
	}
	return fmt.Sprintf("exit code %d", exit.Code)
}

var usageText = regexp.MustCompile(`(?i)\busage\b`)

// serve starts the image without arguments of its own, asks the probes and stops it.
func (t *trial) serve(ctx context.Context, probes []Probe) (string, error) {
	process, done, err := t.start(ctx, nil)
	if err != nil {
		return "", err
	}
	defer done()
	begin := time.Now() // the entrypoint has been executed
	w := &watched{Process: process, ended: make(chan struct{})}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(w.ended)
		w.exit, w.err = process.Wait(waiting)
	}()

	var said []string
	ready := func(text string) {
		if len(said) == 0 {
			t.run.Starts = append(t.run.Starts, Microseconds(time.Since(begin).Truncate(time.Microsecond)))
		}
		said = append(said, text)
	}
	t.run.asked = "start"
	stays := true
	if len(probes) == 0 {
		var text string
		if text, stays, err = t.look(ctx, w); err == nil {
			ready(text)
			t.said("start", text, begin)
		}
	}
	for _, probe := range probes {
		t.run.asked = probe.String()
		t.progress(t.run.asked)
		asked := time.Now()
		var answer string
		if answer, err = t.ask(ctx, w, probe); err != nil {
			break
		}
		ready(probe.String() + " " + answer)
		t.said(probe.String(), answer, asked)
	}
	if err == nil && stays && !w.hasEnded() {
		t.run.Service = true
		if ports, listenErr := w.Listening(ctx); listenErr == nil {
			t.run.Ports = ports
			// One may have listened before the others: which one was asked is no chance.
			if i := slices.IndexFunc(probes, Probe.needsPort); i >= 0 && len(t.config.tcpPorts()) == 0 {
				if several := only(ports); several != nil {
					t.run.asked = probes[i].String()
					err = badAnswer("%s: %v", probes[i], several)
				}
			}
		}
		if err == nil {
			t.run.asked = "stop"
			t.progress("stopping")
			err = t.stop(ctx, w)
		}
	} else if err == nil && stays {
		err = t.endedByItself(w)
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if w.hasEnded() && w.err == nil {
		t.ended(w.exit)
	}
	return strings.Join(said, ", "), err
}

// watched is a process whose end is waited for in the background.
type watched struct {
	engine.Process
	ended chan struct{} // closed when exit and err are set
	exit  engine.Exit
	err   error
}

func (w *watched) hasEnded() bool {
	select {
	case <-w.ended:
		return true
	default:
		return false
	}
}

// until calls try, at growing intervals of at most 50 ms, until it reports success, the process ends, or
// the deadline has passed. It reports whether it was a success, and whether the process has ended.
func (w *watched) until(ctx context.Context, limit time.Duration, try func(ctx context.Context) bool) (ok, ended bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	pause := time.Millisecond
	for {
		if try(ctx) {
			return true, false
		}
		select {
		case <-w.ended:
			// What it did just before its end counts, such as a line that it has printed.
			return try(ctx), true
		case <-ctx.Done():
			return false, false
		case <-time.After(pause):
			pause = min(2*pause, 50*time.Millisecond)
		}
	}
}

// look is the probe for images of which nothing was said: they may end well, or stay and listen. stays tells which of
// both.
func (t *trial) look(ctx context.Context, w *watched) (text string, stays bool, err error) {
	expected := t.config.tcpPorts()
	port := 0
	ok, ended := w.until(ctx, t.config.Smoke.Deadline, func(ctx context.Context) bool {
		candidates := expected
		if len(candidates) == 0 {
			candidates, _ = w.Listening(ctx)
		}
		for _, c := range candidates {
			if conn, err := w.Dial(ctx, c); err == nil {
				_ = conn.Close()
				port = c
				return true
			}
		}
		return false
	})
	switch {
	case ok:
		return fmt.Sprintf("accepts connections on port %d", port), true, nil
	case ctx.Err() != nil:
		return "", false, ctx.Err()
	case ended && w.err != nil:
		return "", false, w.err
	case ended && len(expected) > 0:
		return "", false, badAnswer("the image ended with %s before it listened on port %d", describe(w.exit), expected[0])
	case ended && w.exit.Code == 0:
		return "ended with exit code 0", false, nil
	case ended && w.exit.Signal == "" && usageText.Match(w.Output()):
		return fmt.Sprintf("printed its usage and ended with exit code %d", w.exit.Code), false, nil
	case ended:
		return "", false, badAnswer("the image ended with %s", describe(w.exit))
	case len(expected) > 0:
		return "", false, badAnswer("the image did not listen on port %d within %s", expected[0], t.config.Smoke.Deadline)
	}
	return fmt.Sprintf("stayed for %s and listens nowhere", t.config.Smoke.Deadline), true, nil
}

// endedByItself judges a service that did not wait to be stopped.
func (t *trial) endedByItself(w *watched) error {
	if w.err != nil {
		return w.err
	}
	wanted := 0
	if t.config.Smoke.ExitCode != nil {
		wanted = *t.config.Smoke.ExitCode
	}
	if w.exit.Code != wanted {
		return badAnswer("after its answers the image ended by itself with %s", describe(w.exit))
	}
	return nil
}

// stop asks the image to end as an orchestrator does.
func (t *trial) stop(ctx context.Context, w *watched) error {
	name := cmp.Or(t.image.run.StopSignal, "SIGTERM")
	number := cmp.Or(signalNumber(name), int(syscall.SIGTERM)) // a base image may write anything
	if err := w.Signal(os.Signal(syscall.Signal(number))); errors.Is(err, os.ErrProcessDone) {
		<-w.ended
		return t.endedByItself(w)
	} else if err != nil && !w.hasEnded() {
		return err
	}
	begin := time.Now()
	limit := time.NewTimer(t.config.Smoke.Stop)
	defer limit.Stop()
	select {
	case <-w.ended:
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		return badAnswer("the image did not end within %s after %s", t.config.Smoke.Stop, name)
	}
	if w.err != nil {
		return w.err
	}
	t.run.ExitCode, t.run.Stopped = &w.exit.Code, Milliseconds(time.Since(begin))
	if wanted := t.config.Smoke.ExitCode; wanted != nil && w.exit.Code != *wanted {
		return badAnswer("after %s the image ended with %s, not %d", name, describe(w.exit), *wanted)
	}
	return nil
}
