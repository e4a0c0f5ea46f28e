// Package kube writes a Kubernetes manifest that fits an image, from what the image says of itself and what
// its smoke run saw.
package kube

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Workload is what is known of an image.
type Workload struct {
	// Name of the program. What Kubernetes does not allow in names is replaced.
	Name string
	// Image is a reference with digest, or a placeholder for one.
	Image string
	// UID and GID are the numeric user of the image: -1 when the image names it and the number is unknown.
	UID, GID int64
	// Ports are sorted.
	Ports []Port
	// Capabilities of the program's file, such as cap_net_bind_service.
	Capabilities []string
	// Service tells that the program stays and listens. One that ends by itself becomes a Job.
	Service bool
	// Probe is an HTTP probe that was answered. Without one, the first TCP port is connected to.
	Probe *HTTPProbe
	// Ready is the measured time to the first good answer, 0 if unknown.
	Ready time.Duration
	// Memory is the largest resident size that was seen, in bytes, 0 if unknown.
	Memory int64
	// Stop is the limit for a graceful stop, 0 if none was set.
	Stop time.Duration
	// Writable are directories that the program may write to. The rest of its file system is read-only.
	Writable []string
}

// Port is a port that the program listens on.
type Port struct {
	Number   int
	Protocol string // TCP, UDP or SCTP
}

// Name is what the manifest calls the port. Names of ports have at most 15 characters and one letter.
func (p Port) Name() string { return fmt.Sprintf("%s-%d", strings.ToLower(p.Protocol), p.Number) }

// HTTPProbe is a GET request that the program answers when it is well.
type HTTPProbe struct {
	Path string
	Port int
}

const mib = 1 << 20

//go:embed manifest.yaml.tmpl
var text string

var manifest = template.Must(template.New("").Funcs(template.FuncMap{"yaml": scalar, "ascii": ascii}).Parse(text))

// values are what the template needs beside the workload: everything that is computed.
type values struct {
	Workload
	Label        string
	Capabilities []string // as Kubernetes spells them
	Low          int      // lowest port that needs a privilege nothing else gives, or 0
	TCP          int      // first TCP port, or 0
	Started      string   // the time to ready, for people
	Attempts     int64    // of the startup probe, one per second
	Grace        int64    // seconds
	Seen         string   // the memory, for people
	Limit        int64    // of memory, MiB
	GoLimit      int64    // of what Go manages, MiB
	Volumes      []volume
}

type volume struct{ Name, Dir string }

// Manifest returns a Deployment, and a Service if the program has ports, or a Job, as YAML.
func Manifest(w Workload) ([]byte, error) {
	if w.Image == "" || !plain(w.Image) || strings.Contains(w.Image, " ") {
		return nil, fmt.Errorf("%q is not a reference of an image", w.Image)
	}
	for _, id := range []int64{w.UID, w.GID} {
		if id < -1 || id > 1<<31-1 {
			return nil, fmt.Errorf("%d is not the number of a user or group", id)
		}
	}
	v := values{Workload: w, Label: label(w.Name), Grace: max(0, seconds(w.Stop))}
	for _, c := range w.Capabilities {
		name := strings.ToUpper(strings.TrimPrefix(strings.ToLower(c), "cap_"))
		if !capability.MatchString(name) {
			return nil, fmt.Errorf("%q is not a capability", c)
		}
		v.Capabilities = append(v.Capabilities, name)
	}
	slices.Sort(v.Capabilities)
	v.Capabilities = slices.Compact(v.Capabilities)

	// Kubernetes refuses a port that is given twice.
	v.Ports = slices.Clone(w.Ports)
	slices.SortFunc(v.Ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Protocol, b.Protocol))
	})
	v.Ports = slices.Compact(v.Ports)
	for _, p := range v.Ports {
		if p.Number < 1 || p.Number > 65535 || !slices.Contains([]string{"TCP", "UDP", "SCTP"}, p.Protocol) {
			return nil, fmt.Errorf("%d/%s is not a port", p.Number, p.Protocol)
		}
		if p.Number < 1024 && v.Low == 0 && !slices.Contains(v.Capabilities, "NET_BIND_SERVICE") {
			v.Low = p.Number
		}
		if p.Protocol == "TCP" && v.TCP == 0 {
			v.TCP = p.Number
		}
	}

	if p := w.Probe; p != nil && (!strings.HasPrefix(p.Path, "/") || !plain(p.Path) || p.Port < 1 || p.Port > 65535) {
		return nil, fmt.Errorf("%q on port %d is not an HTTP probe", p.Path, p.Port)
	}
	v.Attempts = 30
	if w.Ready > 0 {
		v.Started = fmt.Sprintf("%d ms", (w.Ready+time.Millisecond-1)/time.Millisecond)
		v.Attempts = max(5, seconds(10*w.Ready))
	}
	if w.Memory > 0 {
		const step = 16 * mib
		v.Seen = fmt.Sprintf("%.1f MiB", float64(w.Memory)/mib)
		v.Limit = max(32, (2*w.Memory+step-1)/step*step/mib)
		v.GoLimit = v.Limit * 9 / 10
	}

	var names []string
	for _, dir := range w.Writable {
		if !path.IsAbs(dir) || path.Clean(dir) == "/" || !plain(dir) || strings.Contains(dir, ":") {
			return nil, fmt.Errorf("%q is not a directory that can be mounted", dir)
		}
		dir = path.Clean(dir)
		if slices.ContainsFunc(v.Volumes, func(o volume) bool { return o.Dir == dir }) {
			continue
		}
		name := label(dir)
		for n := 2; slices.Contains(names, name); n++ {
			name = fmt.Sprintf("%.50s-%d", label(dir), n)
		}
		names = append(names, name)
		v.Volumes = append(v.Volumes, volume{name, dir})
	}

	var b bytes.Buffer
	err := manifest.Execute(&b, v)
	return b.Bytes(), err
}

var capability = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }

var forbidden = regexp.MustCompile(`[^a-z0-9]+`)

// label turns any name into one that is valid for every object. Services are stricter than the rest: their
// names begin with a letter.
func label(name string) string {
	s := strings.Trim(forbidden.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if s == "" {
		return "app"
	}
	if s[0] <= '9' {
		s = "app-" + s
	}
	return strings.TrimRight(s[:min(len(s), 63)], "-")
}

// plain tells that s is text of one line, which YAML can hold and people can read.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// scalar quotes where YAML would read s as anything but this string.
func scalar(s string) (string, error) {
	b, err := yaml.Marshal(s)
	return strings.TrimSuffix(string(b), "\n"), err
}

// ascii quotes a string from outside for a comment, which it cannot leave.
func ascii(s string) string { return fmt.Sprintf("%+q", s) }
