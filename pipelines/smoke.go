package pipelines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
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
	// Ready is the time from the start to the first good answer.
	Ready Milliseconds `json:"ready_ms,omitempty"`
	// MaxMemory is the largest resident size in bytes.
	MaxMemory int64 `json:"max_memory,omitempty"`
	// Output are the last lines that the image printed, of a failed run.
	Output string `json:"output,omitempty"`
}

// errSmoke is a bad answer of the image, as opposed to a fault of the environment.
type errSmoke string

func (e errSmoke) Error() string { return string(e) }

func badAnswer(format string, a ...any) error { return errSmoke(fmt.Sprintf(format, a...)) }

// checkProbes finds what is wrong with the smoke configuration before anything runs.
func (c Config) checkProbes() error {
	for i, probe := range c.Smoke.Probes {
		key := fmt.Sprintf("smoke.probes[%d]", i)
		if _, err := regexp.Compile("(?m)" + probe.Output); err != nil {
			return fault.Usagef("It is a regular expression as described at https://pkg.go.dev/regexp/syntax.", "%s.output: %v", key, err)
		}
		if probe.HTTP == "" {
			if probe.Status != 0 || probe.Port != 0 {
				return fault.Usagef("Add http with the path to ask for, such as /healthz.", "%s: status and port belong to an http probe", key)
			}
			continue
		}
		if !strings.HasPrefix(probe.HTTP, "/") {
			return fault.Usagef("Give the path, such as /healthz.", "%s.http: %q does not begin with a slash", key, probe.HTTP)
		}
		if probe.Args != nil || probe.ExitCode != 0 {
			return fault.Usagef("Make two probes of it.", "%s: args and exit-code belong to a one-shot probe, http to a service", key)
		}
		if probe.Port < 0 || probe.Port > 65535 {
			return fault.Usagef("Ports are 1 to 65535.", "%s.port: %d is not a port", key, probe.Port)
		}
	}
	for _, port := range c.Ports {
		if _, err := tcpPort(port); err != nil {
			return fault.Usagef("Write it as 8080 or 53/udp.", "ports: %q is not a port", port)
		}
	}
	return nil
}

// tcpPort returns the number of a port as configured, 0 if it is not TCP.
func tcpPort(s string) (int, error) {
	number, protocol, ok := strings.Cut(s, "/")
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 || n > 65535 || ok && protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	if ok && protocol != "tcp" {
		return 0, nil
	}
	return n, nil
}

// Smoke starts the image of every platform that this machine can execute as production would, asks the
// probes, and stops it.
func (p *Pipeline) Smoke(ctx context.Context) (*SmokeResult, error) {
	image, err := p.Image(ctx)
	if err != nil || image.Verdict != Passed {
		return &SmokeResult{Verdict: Skipped}, err
	}
	s := p.stage("smoke")
	if p.Config.Smoke.Isolation == "off" {
		s.end(Skipped, "switched off")
		return &SmokeResult{Verdict: Skipped}, nil
	}
	result := &SmokeResult{Verdict: NotRun}
	// One after the other: what one image does must not change what another is seen to do.
	for _, m := range image.Platforms {
		err := s.task(ctx, "smoke "+m.Platform, func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			t := &trial{p: p, manifest: m.Manifest, progress: progress, run: SmokeRun{Platform: m.Platform, Verdict: Passed}}
			err := t.all(ctx)
			var foreign *engine.ForeignError
			var bad errSmoke
			switch {
			case errors.As(err, &foreign):
				t.run.Verdict, t.run.Detail = NotRun, foreign.Error()
			case errors.As(err, &bad):
				t.run.Verdict, t.run.Detail, t.run.Output = Failed, bad.Error(), tail.Lines(t.output, 20)
				s.fail(Failure{What: "the image", Where: m.Platform, Message: strings.TrimSpace(t.run.Detail + "\n" + t.run.Output), Repeat: map[string]string{"platforms": m.Platform}})
			case err != nil:
				return "", "", err
			}
			result.Runs = append(result.Runs, t.run)
			return t.run.Verdict, t.run.Detail, nil
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

// trial tries the image of one platform.
type trial struct {
	p        *Pipeline
	manifest string
	progress func(string)
	run      SmokeRun
	output   []byte
}

func (t *trial) container(args []string) engine.Container {
	c := t.p.Config.Smoke
	memory, _ := parseBytes(c.Memory) // was checked
	isolation := c.Isolation
	if isolation == "auto" {
		isolation = ""
	}
	var env []string
	for _, k := range sortedKeys(c.Env) {
		env = append(env, k+"="+c.Env[k])
	}
	return engine.Container{Layout: t.p.path(imageDir), Manifest: t.manifest, Args: args, Env: env, Memory: memory, Processes: c.Processes, Isolation: isolation}
}

func (t *trial) all(ctx context.Context) error {
	var said []string
	var service []Probe
	for _, probe := range t.p.Config.Smoke.Probes {
		if probe.HTTP != "" {
			service = append(service, probe)
			continue
		}
		t.progress(strings.Join(probe.Args, " "))
		if err := t.once(ctx, probe); err != nil {
			return err
		}
		said = append(said, fmt.Sprintf("%q ended with %d", strings.Join(probe.Args, " "), probe.ExitCode))
	}
	if len(service) > 0 || len(said) == 0 {
		text, err := t.serve(ctx, service)
		if err != nil {
			return err
		}
		said = append(said, text)
	}
	t.run.Detail = strings.Join(said, "; ")
	if t.run.Isolation != nil {
		t.run.Detail += " (" + t.run.Isolation.Kind + ")"
	}
	return nil
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
			t.p.note("smoke", "cleaning up after the smoke run: %v", err)
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
	deadline, cancel := context.WithTimeout(ctx, t.p.Config.Smoke.Deadline)
	defer cancel()
	exit, err := process.Wait(deadline)
	if err != nil {
		if ctx.Err() == nil && deadline.Err() != nil {
			return badAnswer("%s did not end within %s", command(probe.Args), t.p.Config.Smoke.Deadline)
		}
		return err
	}
	t.run.MaxMemory = max(t.run.MaxMemory, exit.MaxMemory)
	if exit.Code != probe.ExitCode {
		return badAnswer("%s ended with %s, not %d", command(probe.Args), describe(exit), probe.ExitCode)
	}
	if out := process.Output(); !regexp.MustCompile("(?m)" + probe.Output).Match(out) {
		return badAnswer("the output of %s does not match %q", command(probe.Args), probe.Output)
	}
	return nil
}

func command(args []string) string {
	if len(args) == 0 {
		return "the entrypoint without arguments"
	}
	return strconv.Quote(strings.Join(args, " "))
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

	said := ""
	if len(probes) == 0 {
		said, err = t.look(ctx, w, begin)
	}
	for _, probe := range probes {
		t.progress("GET " + probe.HTTP)
		if err = t.ask(ctx, w, probe); err != nil {
			break
		}
		if t.run.Ready == 0 {
			t.run.Ready = Milliseconds(time.Since(begin))
		}
		said = "GET " + probe.HTTP + " answered " + strconv.Itoa(cmp.Or(probe.Status, 200))
	}
	if err == nil && !w.hasEnded() {
		t.progress("stopping")
		err = t.stop(ctx, w)
	}
	if err == nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	if w.hasEnded() {
		t.run.MaxMemory = max(t.run.MaxMemory, w.exit.MaxMemory)
	}
	if t.run.Ready > 0 {
		said += fmt.Sprintf(" after %d ms", time.Duration(t.run.Ready).Milliseconds())
	}
	return said, err
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
// the deadline has passed. It reports which of them was.
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
			return false, true
		case <-ctx.Done():
			return false, false
		case <-time.After(pause):
			pause = min(2*pause, 50*time.Millisecond)
		}
	}
}

// look is the probe for images of which nothing was said: they may end well, or stay and listen.
func (t *trial) look(ctx context.Context, w *watched, begin time.Time) (string, error) {
	var expected []int
	for _, p := range t.p.Config.Ports {
		if n, _ := tcpPort(p); n > 0 { // was checked
			expected = append(expected, n)
		}
	}
	port := 0
	ok, ended := w.until(ctx, t.p.Config.Smoke.Deadline, func(ctx context.Context) bool {
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
		t.run.Ready = Milliseconds(time.Since(begin))
		return fmt.Sprintf("accepts connections on port %d", port), nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case ended && w.err != nil:
		return "", w.err
	case ended && len(expected) > 0:
		return "", badAnswer("the image ended with %s before it listened on port %d", describe(w.exit), expected[0])
	case ended && w.exit.Code == 0:
		return "ended with exit code 0", nil
	case ended && w.exit.Signal == "" && usageText.Match(w.Output()):
		return fmt.Sprintf("printed its usage and ended with exit code %d", w.exit.Code), nil
	case ended:
		return "", badAnswer("the image ended with %s", describe(w.exit))
	case len(expected) > 0:
		return "", badAnswer("the image did not listen on port %d within %s", expected[0], t.p.Config.Smoke.Deadline)
	}
	return fmt.Sprintf("stayed for %s and listens nowhere", t.p.Config.Smoke.Deadline), nil
}

// maxBody is how much of an answer is read, in bytes.
const maxBody = 1 << 20

// ask asks an HTTP probe until the answer is right or the deadline has passed, as an orchestrator does.
func (t *trial) ask(ctx context.Context, w *watched, probe Probe) error {
	port := probe.Port
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return w.Dial(ctx, port) },
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	wanted := cmp.Or(probe.Status, http.StatusOK)
	pattern := regexp.MustCompile("(?m)" + probe.Output)
	last := "nothing listens"
	ok, ended := w.until(ctx, t.p.Config.Smoke.Deadline, func(ctx context.Context) bool {
		if port == 0 {
			var err error
			if port, err = t.onlyPort(ctx, w); err != nil {
				last = err.Error()
				return false
			}
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://localhost:%d%s", port, probe.HTTP), nil)
		if err != nil {
			last = err.Error()
			return false
		}
		answer, err := client.Do(req)
		if err != nil {
			if last == "nothing listens" || !errors.Is(err, context.DeadlineExceeded) {
				last = strings.TrimPrefix(err.Error(), fmt.Sprintf("Get %q: ", req.URL))
			}
			return false
		}
		defer answer.Body.Close()
		body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
		switch {
		case err != nil:
			last = err.Error()
		case answer.StatusCode != wanted:
			last = "it answered " + answer.Status
			if to := answer.Header.Get("Location"); to != "" {
				last += ", a redirect to " + to
			}
		case !pattern.Match(body):
			last = fmt.Sprintf("the body does not match %q", probe.Output)
		default:
			return true
		}
		return false
	})
	switch {
	case ok:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case ended && w.err != nil:
		return w.err
	case ended:
		return badAnswer("the image ended with %s before GET %s was answered", describe(w.exit), probe.HTTP)
	}
	return badAnswer("GET %s on port %d was not answered with %d within %s: %s", probe.HTTP, port, wanted, t.p.Config.Smoke.Deadline, last)
}

// onlyPort is the port to ask when the probe names none.
func (t *trial) onlyPort(ctx context.Context, w *watched) (int, error) {
	var ports []int
	for _, p := range t.p.Config.Ports {
		if n, _ := tcpPort(p); n > 0 {
			ports = append(ports, n)
		}
	}
	if len(ports) == 0 {
		var err error
		if ports, err = w.Listening(ctx); err != nil {
			return 0, err
		}
	}
	switch len(ports) {
	case 0:
		return 0, errors.New("nothing listens")
	case 1:
		return ports[0], nil
	}
	slices.Sort(ports)
	return 0, fmt.Errorf("it listens on ports %v: name one with `port`", ports)
}

// stop asks the image to end as an orchestrator does.
func (t *trial) stop(ctx context.Context, w *watched) error {
	if err := w.Signal(os.Signal(syscall.SIGTERM)); err != nil && !w.hasEnded() {
		return err
	}
	limit := time.NewTimer(t.p.Config.Smoke.Stop)
	defer limit.Stop()
	select {
	case <-w.ended:
		return w.err
	case <-ctx.Done():
		return ctx.Err()
	case <-limit.C:
		return badAnswer("the image did not end within %s after SIGTERM", t.p.Config.Smoke.Stop)
	}
}
