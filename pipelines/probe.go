package pipelines

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// Smoke says how the finished image is tried.
type Smoke struct {
	// Repeat is how often everything is done; times and memory are then medians. Default: 1.
	Repeat int `yaml:"repeat"`
	// Isolation is "auto" (the best that the machine has), a kind that the engine names, or "off".
	Isolation string `yaml:"isolation"`
	// Probes are done in order. Without any, the image is started; it must end with exit code 0 or a
	// usage text, or stay, accept a connection where it listens, and stop when asked to.
	Probes []Probe `yaml:"probes"`
	// Env are further environment variables for the smoke run.
	Env map[string]string `yaml:"env"`
	// Deadline bounds the time until a service gives the right answer, for each probe, and until a one-shot
	// probe ends. Default: 10s.
	Deadline time.Duration `yaml:"deadline"`
	// Stop bounds the time from the stop signal to the end. Default: 10s.
	Stop time.Duration `yaml:"stop"`
	// ExitCode is the exit code that a service must end with when it was asked to stop. Default: any.
	ExitCode *int `yaml:"exit-code"`
	// Memory is the memory limit, such as "256MiB". Default: 512MiB.
	Memory string `yaml:"memory"`
	// Processes is the limit of processes and threads. Default: 256.
	Processes int `yaml:"processes"`
}

// Probe is one question to the image: with HTTP, TCP, Metrics or Log to the running service, else the
// entrypoint is run once with Args. One-shot probes come first, then the image is started once for all others.
type Probe struct {
	// Args are the arguments of a one-shot run.
	Args []string `yaml:"args"`
	// ExitCode is the exit code that a one-shot run must have.
	ExitCode int `yaml:"exit-code"`
	// Output is a regular expression that the output of a one-shot run or the HTTP body must match.
	Output string `yaml:"output"`
	// HTTP is the path to ask for, such as /healthz.
	HTTP string `yaml:"http"`
	// Port is the port that HTTP and Metrics ask. Default: the only one of Ports, else the only one that listens.
	Port int `yaml:"port"`
	// Status is the HTTP status wanted. Default: 200.
	Status int `yaml:"status"`
	// Headers are regular expressions for headers of the answer.
	Headers map[string]string `yaml:"headers"`
	// TCP is a port that must accept a connection.
	TCP int `yaml:"tcp"`
	// Metrics is the path of metrics in the text format of Prometheus, such as /metrics. All of them must parse.
	Metrics string `yaml:"metrics"`
	// Families are names of metrics that must be among them.
	Families []string `yaml:"families"`
	// Log is a regular expression that a line of the output must match.
	Log string `yaml:"log"`
	// Deadline is that of this probe. Default: smoke.deadline.
	Deadline time.Duration `yaml:"deadline"`
}

// once tells that the probe runs the entrypoint to its end.
func (p Probe) once() bool { return p.HTTP == "" && p.TCP == 0 && p.Metrics == "" && p.Log == "" }

// String is what people call the probe.
func (p Probe) String() string {
	switch {
	case p.HTTP != "":
		return "GET " + p.HTTP
	case p.Metrics != "":
		return "GET " + p.Metrics
	case p.TCP != 0:
		return "port " + strconv.Itoa(p.TCP)
	case p.Log != "":
		return "log " + strconv.Quote(p.Log)
	case len(p.Args) == 0:
		return "the entrypoint without arguments"
	}
	return strconv.Quote(strings.Join(p.Args, " "))
}

// defaults fills in the defaults, and finds what is wrong before anything runs.
func (s *Smoke) defaults() error {
	s.Isolation = cmp.Or(s.Isolation, "auto")
	s.Deadline = cmp.Or(s.Deadline, 10*time.Second)
	s.Stop = cmp.Or(s.Stop, 10*time.Second)
	s.Memory = cmp.Or(s.Memory, "512MiB")
	s.Processes = cmp.Or(s.Processes, 256)
	s.Repeat = cmp.Or(s.Repeat, 1)
	for key, d := range map[string]time.Duration{"smoke.deadline": s.Deadline, "smoke.stop": s.Stop} {
		if d < 0 {
			return negative(key, d)
		}
	}
	for key, n := range map[string]int{"smoke.processes": s.Processes, "smoke.repeat": s.Repeat} {
		if n < 0 {
			return fault.Usagef("Leave it out for the default.", "%s: %d is negative", key, n)
		}
	}
	if _, err := parseBytes("smoke.memory", s.Memory); err != nil {
		return err
	}
	s.Probes = slices.Clone(s.Probes)
	for i := range s.Probes {
		if err := s.Probes[i].defaults(fmt.Sprintf("smoke.probes[%d]", i), s.Deadline); err != nil {
			return err
		}
	}
	return nil
}

func (p *Probe) defaults(key string, deadline time.Duration) error {
	patterns := map[string]string{".output": p.Output, ".log": p.Log}
	for name, pattern := range p.Headers {
		patterns[".headers."+name] = pattern
	}
	for name, pattern := range patterns {
		if _, err := regexp.Compile("(?m)" + pattern); err != nil {
			return fault.Usagef("It is a regular expression as described at https://pkg.go.dev/regexp/syntax.", "%s%s: %v", key, name, err)
		}
	}
	kinds := 0
	for _, is := range []bool{p.HTTP != "", p.TCP != 0, p.Metrics != "", p.Log != ""} {
		if is {
			kinds++
		}
	}
	web := p.HTTP != "" || p.Metrics != ""
	switch {
	case kinds > 1:
		return fault.Usagef("Make several probes of it.", "%s: it has more than one of http, tcp, metrics and log", key)
	case kinds == 1 && (p.Args != nil || p.ExitCode != 0):
		return fault.Usagef("Make two probes of it.", "%s: args and exit-code belong to a one-shot probe, the rest to a service", key)
	case p.HTTP == "" && (p.Status != 0 || len(p.Headers) > 0), !web && p.Port != 0:
		return fault.Usagef("Add http with the path to ask for, such as /healthz.", "%s: status, headers and port belong to an http probe", key)
	case p.Metrics == "" && len(p.Families) > 0:
		return fault.Usagef("Add metrics with the path to ask for, such as /metrics.", "%s: families belong to a metrics probe", key)
	case kinds == 1 && p.HTTP == "" && p.Output != "":
		return fault.Usagef("Make two probes of it.", "%s: output belongs to a one-shot or an http probe", key)
	case p.Deadline < 0:
		return negative(key+".deadline", p.Deadline)
	}
	for name, at := range map[string]string{"http": p.HTTP, "metrics": p.Metrics} {
		if at != "" && !strings.HasPrefix(at, "/") {
			return fault.Usagef("Give the path, such as /healthz.", "%s.%s: %q does not begin with a slash", key, name, at)
		}
	}
	for name, port := range map[string]int{"port": p.Port, "tcp": p.TCP} {
		if port < 0 || port > 65535 {
			return fault.Usagef("Ports are 1 to 65535.", "%s.%s: %d is not a port", key, name, port)
		}
	}
	p.Deadline = cmp.Or(p.Deadline, deadline)
	if p.HTTP != "" {
		p.Status = cmp.Or(p.Status, http.StatusOK)
	}
	return nil
}

// nothingListens is what a probe says when it found no port to ask.
const nothingListens = "nothing listens"

// ask asks a probe until the answer is right or its deadline has passed, as an orchestrator does. It returns
// the answer in a few words.
func (t *trial) ask(ctx context.Context, w *watched, probe Probe) (answer string, err error) {
	port := probe.Port // the one that was asked last
	last := nothingListens
	ok, ended := w.until(ctx, probe.Deadline, func(ctx context.Context) bool {
		var err error
		switch {
		case probe.TCP != 0:
			answer, err = connect(ctx, w, probe.TCP)
		case probe.Log != "":
			answer, err = matchLog(w.Output(), probe.Log)
		default:
			if probe.Port == 0 {
				var found int
				if found, err = t.onlyPort(ctx, w); err == nil { // each time anew: another may have come
					port = found
				}
			}
			if err == nil {
				answer, err = get(ctx, w, port, probe)
			}
		}
		// What the deadline cut off says less than the answer before it.
		if err != nil && (last == nothingListens || ctx.Err() == nil) {
			last = err.Error()
		}
		return err == nil
	})
	switch {
	case ok:
		return answer, nil
	case ctx.Err() != nil:
		return "", ctx.Err()
	case ended && w.err != nil:
		return "", w.err
	case ended && probe.Log != "":
		return "", badAnswer("the image ended with %s and printed no line that matches %q", describe(w.exit), probe.Log)
	case ended && probe.TCP != 0:
		return "", badAnswer("the image ended with %s before it listened on port %d", describe(w.exit), probe.TCP)
	case ended:
		return "", badAnswer("the image ended with %s before %s was answered", describe(w.exit), probe)
	case probe.Log != "":
		return "", badAnswer("within %s, %s", probe.Deadline, last)
	case probe.TCP != 0:
		return "", badAnswer("%s accepted no connection within %s: %s", probe, probe.Deadline, last)
	case probe.Metrics != "":
		return "", badAnswer("%s gave no good metrics within %s: %s", probe.on(port), probe.Deadline, last)
	}
	return "", badAnswer("%s was not answered with %d within %s: %s", probe.on(port), probe.Status, probe.Deadline, last)
}

// on is the probe with the port that it was asked on, if there was one.
func (p Probe) on(port int) string {
	if port == 0 {
		return p.String()
	}
	return fmt.Sprintf("%s on port %d", p, port)
}

func connect(ctx context.Context, w *watched, port int) (string, error) {
	conn, err := w.Dial(ctx, port)
	if err != nil {
		return "", err
	}
	return "accepts connections", conn.Close()
}

func matchLog(output []byte, pattern string) (string, error) {
	if line := regexp.MustCompile("(?m)" + pattern).Find(output); line != nil {
		return "was printed", nil
	}
	return "", fmt.Errorf("no line of the output matched %q", pattern)
}

// maxBody is how much of an answer is read, in bytes.
const maxBody = 16 << 20

// get asks for a path over HTTP, and says in its error what is wrong with the answer.
func get(ctx context.Context, w *watched, port int, probe Probe) (string, error) {
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return w.Dial(ctx, port) },
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://localhost:%d%s", port, cmp.Or(probe.HTTP, probe.Metrics)), nil)
	if err != nil {
		return "", err
	}
	answer, err := client.Do(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return "", errors.New("no answer came")
	}
	if err != nil {
		return "", errors.New(strings.TrimPrefix(err.Error(), fmt.Sprintf("Get %q: ", req.URL)))
	}
	defer answer.Body.Close()
	if wanted := cmp.Or(probe.Status, http.StatusOK); answer.StatusCode != wanted {
		text := "it answered " + answer.Status
		if to := answer.Header.Get("Location"); to != "" {
			text += ", a redirect to " + to
		}
		return "", errors.New(text)
	}
	for _, name := range sortedKeys(probe.Headers) {
		if got := answer.Header.Values(name); !slices.ContainsFunc(got, regexp.MustCompile(probe.Headers[name]).MatchString) {
			return "", fmt.Errorf("the header %s is %q and does not match %q", name, got, probe.Headers[name])
		}
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxBody))
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "", errors.New("the answer did not end")
	case err != nil:
		return "", err
	case probe.Metrics != "":
		return checkMetrics(body, probe.Families)
	case !regexp.MustCompile("(?m)" + probe.Output).Match(body):
		return "", fmt.Errorf("the body does not match %q", probe.Output)
	}
	return "answered " + strconv.Itoa(answer.StatusCode), nil
}

// checkMetrics parses metrics in the text format of Prometheus, version 0.0.4, and looks for families in them.
func checkMetrics(text []byte, families []string) (string, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	found, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return "", fmt.Errorf("the metrics do not parse: %w", err)
	}
	for _, name := range families {
		if found[name] == nil {
			return "", fmt.Errorf("there is no metric %q. %s", name, fault.Nearest(name, sortedKeys(found)))
		}
	}
	return "has " + plural(len(found), "metric", "metrics"), nil
}

// onlyPort is the port to ask when the probe names none.
func (t *trial) onlyPort(ctx context.Context, w *watched) (int, error) {
	ports := t.config.tcpPorts()
	if len(ports) == 0 {
		var err error
		if ports, err = w.Listening(ctx); err != nil {
			return 0, err
		}
	}
	if len(ports) == 0 {
		return 0, errors.New(nothingListens)
	}
	if err := only(ports); err != nil {
		return 0, err
	}
	return ports[0], nil
}

// only is an error if a probe without a port could mean one of several.
func only(ports []int) error {
	if len(ports) < 2 {
		return nil
	}
	return fmt.Errorf("it listens on ports %v: name one with `port`", slices.Sorted(slices.Values(ports)))
}

// needsPort tells whether a probe asks the only port that there is.
func (p Probe) needsPort() bool { return p.Port == 0 && (p.HTTP != "" || p.Metrics != "") }
