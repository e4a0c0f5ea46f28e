package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The parts of an OCI runtime configuration that are needed here.
type (
	runtimeSpec struct {
		Version  string         `json:"ociVersion"`
		Process  runtimeProcess `json:"process"`
		Root     runtimeRoot    `json:"root"`
		Hostname string         `json:"hostname"`
		Mounts   []runtimeMount `json:"mounts"`
		Linux    runtimeLinux   `json:"linux"`
	}
	runtimeProcess struct {
		Terminal     bool                `json:"terminal"`
		User         runtimeUser         `json:"user"`
		Args         []string            `json:"args"`
		Env          []string            `json:"env"`
		Cwd          string              `json:"cwd"`
		Capabilities map[string][]string `json:"capabilities"`
		Rlimits      []runtimeRlimit     `json:"rlimits,omitempty"`
		NoNewPrivs   bool                `json:"noNewPrivileges"`
	}
	runtimeUser struct {
		UID    int   `json:"uid"`
		GID    int   `json:"gid"`
		Umask  int   `json:"umask"`
		Groups []int `json:"additionalGids,omitempty"`
	}
	runtimeRlimit struct {
		Type string `json:"type"`
		Hard uint64 `json:"hard"`
		Soft uint64 `json:"soft"`
	}
	runtimeRoot struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly"`
	}
	runtimeMount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options,omitempty"`
	}
	runtimeLinux struct {
		Namespaces    []runtimeNamespace `json:"namespaces"`
		MaskedPaths   []string           `json:"maskedPaths"`
		ReadonlyPaths []string           `json:"readonlyPaths"`
		CgroupsPath   string             `json:"cgroupsPath,omitempty"`
		Resources     *runtimeResources  `json:"resources,omitempty"`
		Seccomp       *runtimeFilter     `json:"seccomp,omitempty"`
	}
	runtimeNamespace struct {
		Type string `json:"type"`
	}
	runtimeResources struct {
		Memory *runtimeMemory `json:"memory,omitempty"`
		Pids   *runtimePids   `json:"pids,omitempty"`
	}
	runtimeMemory struct {
		Limit int64 `json:"limit"`
	}
	runtimePids struct {
		Limit int64 `json:"limit"`
	}
	runtimeFilter struct {
		DefaultAction string            `json:"defaultAction"`
		Architectures []string          `json:"architectures"`
		Syscalls      []runtimeSyscalls `json:"syscalls"`
	}
	runtimeSyscalls struct {
		Names  []string     `json:"names"`
		Action string       `json:"action"`
		Errno  uint         `json:"errnoRet"`
		Args   []runtimeArg `json:"args,omitempty"`
	}
	runtimeArg struct {
		Index uint   `json:"index"`
		Mask  uint64 `json:"value"`
		Value uint64 `json:"valueTwo"`
		Op    string `json:"op"`
	}
)

// runtimeConfig is the configuration of the container for runc or crun. It asks for no network namespace:
// the container gets the one that runc is started in, which is the helper's.
func runtimeConfig(o *order) runtimeSpec {
	options := func(o string) []string { return strings.Split(o, ",") }
	s := runtimeSpec{
		Version: "1.0.2",
		Process: runtimeProcess{
			User:       runtimeUser{UID: o.User.UID, GID: o.User.GID, Umask: 0o022, Groups: o.User.Groups},
			Args:       o.Args,
			Env:        o.Env,
			Cwd:        o.Cwd,
			NoNewPrivs: len(o.Capabilities) == 0,
			Capabilities: map[string][]string{
				"bounding": {}, "effective": {}, "inheritable": {}, "permitted": {}, "ambient": {},
			},
		},
		Root:     runtimeRoot{Path: o.Root, Readonly: true},
		Hostname: hostname,
		Mounts: []runtimeMount{
			{"/proc", "proc", "proc", options("nosuid,nodev,noexec")},
			{"/dev", "tmpfs", "tmpfs", options("nosuid,noexec,ro," + tmpfsDev)},
			{"/dev/shm", "tmpfs", "tmpfs", options("nosuid,nodev,noexec," + tmpfsTmp)},
			{"/tmp", "tmpfs", "tmpfs", options("nosuid,nodev," + tmpfsTmp)},
		},
		Linux: runtimeLinux{
			Namespaces:    []runtimeNamespace{{"pid"}, {"mount"}, {"ipc"}, {"uts"}},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			Seccomp:       runtimeSeccomp(),
		},
	}
	for _, v := range o.Volumes {
		s.Mounts = append(s.Mounts, runtimeMount{v.Path, "tmpfs", "tmpfs", options("nosuid,nodev," + v.options(false))})
	}
	for _, name := range o.Capabilities {
		s.Process.Capabilities["bounding"] = append(s.Process.Capabilities["bounding"], strings.ToUpper(name))
	}
	for _, r := range o.Limits.rlimits(false) {
		s.Process.Rlimits = append(s.Process.Rlimits, runtimeRlimit{r.Name, r.Value, r.Value})
	}
	if o.Limits.Cgroup != "" {
		s.Linux.CgroupsPath = o.Limits.Cgroup
		s.Linux.Resources = &runtimeResources{}
		if o.Limits.Memory > 0 {
			s.Linux.Resources.Memory = &runtimeMemory{o.Limits.Memory}
		}
		if o.Limits.Processes > 0 {
			s.Linux.Resources.Pids = &runtimePids{int64(o.Limits.Processes)}
		}
	}
	return s
}

// executeTimeout is ample for executing a program. It only bounds a wait that should never end that way.
const executeTimeout = 30 * time.Second

// startRuntime has runc or crun create the container. Everything that they write is in o.Work, so that
// containers of the user are neither seen nor touched.
func startRuntime(o *order, output *os.File) (*container, error) {
	config, err := json.Marshal(runtimeConfig(o))
	if err != nil {
		return nil, &setupError{err}
	}
	if err := os.WriteFile(filepath.Join(o.Work, "config.json"), config, 0o600); err != nil {
		return nil, &setupError{err}
	}
	log := filepath.Join(o.Work, "log")
	global := []string{"--root", filepath.Join(o.Work, "state"), "--log", log, "--log-format", "json"}
	switch {
	case o.Kind == kindCrun:
		// crun refuses a machine with both versions of cgroups if version 2 has controllers. All that is
		// needed are those of version 1. This is the helper's own mount namespace.
		_ = unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH)
		if o.Limits.Cgroup == "" {
			global = append(global, "--cgroup-manager=disabled")
		}
	case o.Limits.Cgroup == "":
		global = append(global, "--rootless=true") // lets it go on without cgroups, nothing more
	}
	const id = "slipway"
	run := func(output *os.File, args ...string) error {
		_ = os.Truncate(log, 0)
		cmd := exec.Command(o.Program, append(global, args...)...)
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
		if output != nil {
			cmd.Stdout, cmd.Stderr = output, output
		}
		err := cmd.Run()
		if err == nil {
			return nil
		}
		if said := lastMessage(log); said != "" {
			return errors.New(said)
		}
		return err
	}
	pidFile := filepath.Join(o.Work, "pid")
	// The container inherits standard output and error, which os/exec passes on as they are.
	if err := run(output, "create", "--bundle", o.Work, "--pid-file", pidFile, id); err != nil {
		return nil, &setupError{err}
	}
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return nil, &setupError{err}
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, &setupError{err}
	}
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	waiting, err := os.Readlink(exe)
	if err != nil {
		return nil, &setupError{fmt.Errorf("the container's first process ended unexpectedly: %w", err)}
	}
	return &container{pid: pid, before: residentPeak(pid), execute: func() error {
		if err := run(nil, "start", id); err != nil {
			return err
		}
		// That only gave leave to execute the entrypoint.
		if !waitFor(executeTimeout, func() bool {
			now, err := os.Readlink(exe)
			return err != nil || now != waiting
		}) {
			return errors.New("the container's first process does not execute the entrypoint")
		}
		return nil
	}}, nil
}

// lastMessage returns the last error in a log of runc or crun.
func lastMessage(log string) string {
	text, _ := os.ReadFile(log)
	last := ""
	for line := range strings.Lines(string(text)) {
		var entry struct{ Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg != "" {
			last = entry.Msg
		}
	}
	return last
}
