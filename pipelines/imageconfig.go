package pipelines

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// Health is a health check as Docker does it: the entrypoint is run with Args, and exit code 0 is good. OCI and
// Kubernetes know no such thing.
type Health struct {
	// Args are the arguments.
	Args []string `yaml:"args"`
	// Interval is the time between two checks, Timeout that for one, StartPeriod that in which a failure does
	// not count. Zero leaves it to Docker.
	Interval    time.Duration `yaml:"interval"`
	Timeout     time.Duration `yaml:"timeout"`
	StartPeriod time.Duration `yaml:"start-period"`
	// Retries is how many failures in a row are needed.
	Retries int `yaml:"retries"`
}

// ImageFile is a file or directory of the source that goes into the image.
type ImageFile struct {
	// From is the path in the source, slash-separated; of a directory, everything below it is taken. Empty
	// makes an empty directory.
	From string `yaml:"from"`
	// To is the absolute path in the image.
	To string `yaml:"to"`
	// Owner is UID or UID:GID. Default: 0:0.
	Owner string `yaml:"owner"`
	// Mode is the permissions of files, in octal, or of the empty directory. Default: 0755 for a directory and
	// for what is executable in the source, else 0644.
	Mode string `yaml:"mode"`
}

// shortBases are short names of base images. Their tags move; the lock file says where they were.
var shortBases = map[string]string{
	"distroless": "gcr.io/distroless/static-debian12:nonroot",
	"alpine":     "alpine:3",
	"debian":     "debian:stable-slim",
	"ubi":        "registry.access.redhat.com/ubi9/ubi-micro:latest",
}

// imageDefaults fills in the defaults of the image, and says what is wrong with its configuration.
func (c *Config) imageDefaults() error {
	c.Base = cmp.Or(shortBases[c.Base], c.Base, oci.Scratch)
	if err := oci.CheckBase(c.Base); err != nil {
		return fault.Usagef("Write it as scratch, distroless, alpine, debian, ubi, oci:DIR, or a reference such as gcr.io/distroless/static-debian12:nonroot.", "base: %v", err)
	}
	if len(c.Bases) == 0 {
		c.Bases = []string{oci.Scratch, "distroless", "alpine", "debian", "ubi"}
	}
	for _, base := range c.Bases {
		if err := oci.CheckBase(cmp.Or(shortBases[base], base)); err != nil {
			return fault.Usagef("", "bases: %v", err)
		}
	}
	for _, from := range sortedKeys(c.Mirrors) {
		if err := oci.CheckMirror(from, c.Mirrors[from]); err != nil {
			return fault.Usagef("Write it as docker.io: mirror.example/hub.", "mirrors: %s: %v", from, err)
		}
	}
	c.User = cmp.Or(c.User, "65532:65532")
	scratch := c.Base == oci.Scratch
	for _, b := range []**bool{&c.Certificates, &c.Accounts, &c.Tmp} {
		if *b == nil {
			*b = &scratch
		}
	}
	if len(c.Timezones) == 0 {
		c.Timezones = []string{"none"}
		if scratch {
			c.Timezones = []string{"all"}
		}
	}
	c.Format, c.Compression = cmp.Or(c.Format, "oci"), cmp.Or(c.Compression, string(oci.Gzip))
	switch {
	case c.Format != "oci" && c.Format != "docker":
		return fault.Usagef("It is oci or docker.", "format: there is no format %q", c.Format)
	case c.Compression != string(oci.Gzip) && c.Compression != string(oci.Zstd):
		return fault.Usagef("It is gzip or zstd.", "compression: there is no compression %q", c.Compression)
	case c.Format == "docker" && c.Compression == string(oci.Zstd):
		return fault.Usagef("Leave one of them out.", "the docker format knows no layers that are compressed by zstd")
	}
	for _, port := range c.Ports {
		if _, err := tcpPort(port); err != nil {
			return fault.Usagef("Write it as 8080 or 53/udp.", "ports: %q is not a port", port)
		}
	}
	for _, volume := range c.Volumes {
		if err := absolute("volumes", volume); err != nil {
			return err
		}
	}
	if c.WorkingDir != "" {
		if err := absolute("working-dir", c.WorkingDir); err != nil {
			return err
		}
	}
	if c.StopSignal != "" && signalNumber(c.StopSignal) == 0 {
		return fault.Usagef("It is one of "+strings.Join(sortedKeys(stopSignals), ", ")+".", "stop-signal: %q is no signal that asks a program to end", c.StopSignal)
	}
	if h := c.Health; h != nil {
		for key, d := range map[string]time.Duration{"interval": h.Interval, "timeout": h.Timeout, "start-period": h.StartPeriod} {
			if d < 0 {
				return negative("health."+key, d)
			}
		}
	}
	if _, err := engine.CapabilityMask(c.Capabilities); err != nil {
		return err
	}
	for i, f := range c.Files {
		if err := f.check(fmt.Sprintf("files[%d]", i)); err != nil {
			return err
		}
	}
	return nil
}

// absolute says what is wrong with a path in the image.
func absolute(key, name string) error {
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
		return fault.Usagef("Write it as /data.", "%s: %q is not an absolute path in the image", key, name)
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

// tcpPorts are the TCP ports of the configuration, in its order.
func (c Config) tcpPorts() []int {
	var ports []int
	for _, p := range c.Ports {
		if n, _ := tcpPort(p); n > 0 { // was checked
			ports = append(ports, n)
		}
	}
	return ports
}

// dockerHealth is the health check as Docker writes it, where command starts the program.
func (c Config) dockerHealth(command []string) *v1.HealthConfig {
	h := c.Health
	if h == nil {
		return nil
	}
	return &v1.HealthConfig{
		Test: slices.Concat([]string{"CMD"}, command, h.Args), Interval: h.Interval, Timeout: h.Timeout, StartPeriod: h.StartPeriod, Retries: h.Retries,
	}
}

// fileCapabilities is the extended attribute security.capability that gives a file capabilities: version 2 of
// struct vfs_cap_data of linux/capability.h, with the effective bit, as setcap(8) writes it for "=ep".
func fileCapabilities(mask uint64) string {
	const revision2, effective = 0x02000000, 1
	var b bytes.Buffer
	words := []uint32{revision2 | effective, uint32(mask), 0, uint32(mask >> 32), 0} // permitted and inheritable, twice 32 bits
	_ = binary.Write(&b, binary.LittleEndian, words)                                 // to memory
	return b.String()
}

// mode returns the permissions of f, 0 if none are given.
func (f ImageFile) mode() (fs.FileMode, error) {
	if f.Mode == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(f.Mode, 8, 32)
	if err != nil || n == 0 || n > 0o7777 {
		return 0, fmt.Errorf("%q is not a mode", f.Mode)
	}
	mode := fs.FileMode(n & 0o777)
	for bit, flag := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if n&bit != 0 {
			mode |= flag
		}
	}
	return mode, nil
}

// owner returns user and group of f.
func (f ImageFile) owner() (uid, gid int, err error) {
	user, group, found := strings.Cut(cmp.Or(f.Owner, "0:0"), ":")
	if !found {
		group = user
	}
	uid, err = strconv.Atoi(user)
	if err == nil {
		gid, err = strconv.Atoi(group)
	}
	if err != nil || uid < 0 || gid < 0 {
		err = fmt.Errorf("%q is not an owner", f.Owner)
	}
	return uid, gid, err
}

func (f ImageFile) check(key string) error {
	if err := absolute(key+".to", f.To); err != nil {
		return err
	}
	if f.From != "" && !fs.ValidPath(f.From) {
		return fault.Usagef("Write it relative to the root of the source, as config/app.yaml.", "%s.from: %q is not a path in the source", key, f.From)
	}
	if _, err := f.mode(); err != nil {
		return fault.Usagef(`Write it as "0644".`, "%s.mode: %v", key, err)
	}
	if _, _, err := f.owner(); err != nil {
		return fault.Usagef("Write it as 65532:65532; an image need not know names.", "%s.owner: %v", key, err)
	}
	return nil
}

// stopSignals are the signals that ask a program to end, with their numbers on Linux.
var stopSignals = map[string]int{"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGUSR1": 10, "SIGUSR2": 12, "SIGTERM": 15, "SIGWINCH": 28}

// signalNumber is the number of a signal on Linux, 0 if it is none of stopSignals.
func signalNumber(name string) int {
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return n // as some images write it
	}
	return stopSignals["SIG"+strings.TrimPrefix(name, "SIG")]
}
