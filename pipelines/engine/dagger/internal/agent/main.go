//go:build linux

// Command agent starts an image's program inside the image's own container and tells slipway about it.
//
// A Dagger service shows neither exit code, signals, output nor open ports. The agent does, over one TCP
// port: each connection sends one line "TOKEN COMMAND [ARGUMENT]" and gets one line back, then what the
// command is about. It is compiled by the toolchain of the pipeline, Go 1.20 at the oldest, from this one file.
//
//	agent PORT TOKEN PROGRAM [ARGUMENT ...]
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// From linux/prctl.h.
const (
	prCapBSetDrop   = 24
	prSetNoNewPrivs = 38
	prCapAmbient    = 47
	clearAllAmbient = 4
	lastCapability  = 63
)

// maxOutput is how much of the program's last output is kept, in bytes.
const maxOutput = 64 << 10

type state struct {
	port, token string

	mu     sync.Mutex
	output []byte

	process *os.Process
	facts   facts
	ended   chan struct{} // closed when exit is set
	exit    exit
	failed  string // why the program could not be started
}

// facts are how the program is confined, read back from the kernel.
type facts struct {
	UID          int  `json:"uid"`
	NoNewPrivs   bool `json:"no_new_privs"`
	Capabilities bool `json:"capabilities"` // none effective, none to be had
	ReadOnly     bool `json:"read_only"`
}

type exit struct {
	Code      int    `json:"code"`
	Signal    string `json:"signal,omitempty"`
	MaxMemory int64  `json:"max_memory"`
}

func main() {
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: agent PORT TOKEN PROGRAM [ARGUMENT ...]")
		os.Exit(2)
	}
	s := &state{port: os.Args[1], token: os.Args[2], ended: make(chan struct{})}
	l, err := net.Listen("tcp", ":"+s.port)
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	s.start(os.Args[3:])
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		go s.serve(c)
	}
}

// Write implements io.Writer for the program's output, which also goes where the engine keeps it.
func (s *state) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.output = append(s.output, p...)
	if n := len(s.output) - maxOutput; n > 0 {
		s.output = append([]byte(nil), s.output[n:]...)
	}
	_, _ = os.Stdout.Write(p)
	return len(p), nil
}

func (s *state) start(args []string) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = s, s
	cmd.WaitDelay = time.Second // a child that stays behind may hold the output open
	started := make(chan error)
	go func() {
		// Privileges are those of a thread: the program is started by this one, which never serves again.
		runtime.LockOSThread()
		for i := uintptr(0); i <= lastCapability; i++ {
			_, _, _ = syscall.RawSyscall6(syscall.SYS_PRCTL, prCapBSetDrop, i, 0, 0, 0, 0)
		}
		_, _, _ = syscall.RawSyscall6(syscall.SYS_PRCTL, prCapAmbient, clearAllAmbient, 0, 0, 0, 0)
		_, _, _ = syscall.RawSyscall6(syscall.SYS_PRCTL, prSetNoNewPrivs, 1, 0, 0, 0, 0)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		s.process = cmd.Process
		s.facts = confinement(cmd.Process.Pid)
		started <- nil
		_ = cmd.Wait()
		status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
		s.exit.Code = status.ExitStatus()
		if status.Signaled() {
			s.exit.Code, s.exit.Signal = 128+int(status.Signal()), signalName(status.Signal())
		}
		if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			s.exit.MaxMemory = usage.Maxrss << 10 // in KiB, getrusage(2)
		}
		close(s.ended)
	}()
	if err := <-started; err != nil {
		s.failed = err.Error()
	}
}

func signalName(sig syscall.Signal) string {
	names := map[syscall.Signal]string{syscall.SIGHUP: "SIGHUP", syscall.SIGINT: "SIGINT", syscall.SIGQUIT: "SIGQUIT", syscall.SIGILL: "SIGILL", syscall.SIGABRT: "SIGABRT",
		syscall.SIGBUS: "SIGBUS", syscall.SIGFPE: "SIGFPE", syscall.SIGKILL: "SIGKILL", syscall.SIGSEGV: "SIGSEGV", syscall.SIGPIPE: "SIGPIPE", syscall.SIGTERM: "SIGTERM"}
	if name, ok := names[sig]; ok {
		return name
	}
	return fmt.Sprintf("signal %d", int(sig))
}

// confinement reads how a process is confined, see proc_pid_status(5).
func confinement(pid int) facts {
	f := facts{UID: -1}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	none := 0
	for _, line := range strings.Split(string(text), "\n") {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "Uid":
			f.UID, _ = strconv.Atoi(fields[0])
		case "NoNewPrivs":
			f.NoNewPrivs = fields[0] == "1"
		case "CapPrm", "CapEff":
			if strings.Trim(fields[0], "0") == "" {
				none++
			}
		}
	}
	f.Capabilities = none == 2
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(mounts), "\n") {
		if fields := strings.Fields(line); len(fields) > 5 && fields[4] == "/" {
			f.ReadOnly = strings.HasPrefix(fields[5]+",", "ro,")
		}
	}
	return f
}

func (s *state) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(io.LimitReader(c, 1<<10))
	line, err := r.ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 2 || fields[0] != s.token {
		return // such as the engine's own question whether anybody listens
	}
	argument := 0
	if len(fields) > 2 {
		argument, _ = strconv.Atoi(fields[2])
	}
	answer := func(v interface{}) {
		b, err := json.Marshal(v)
		if err == nil {
			_, _ = c.Write(append(b, '\n'))
		}
	}
	switch fields[1] {
	case "started":
		answer(struct {
			Error string `json:"error,omitempty"`
			Facts facts  `json:"facts"`
		}{s.failed, s.facts})
	case "wait":
		<-s.ended
		answer(s.exit)
	case "signal":
		text := ""
		if err := s.process.Signal(syscall.Signal(argument)); err != nil && !errors.Is(err, os.ErrProcessDone) {
			text = err.Error()
		}
		answer(text)
	case "output":
		s.mu.Lock()
		output := append([]byte(nil), s.output...)
		s.mu.Unlock()
		answer(output)
	case "listening":
		answer(s.listening())
	case "dial":
		s.dial(c, argument, answer)
	}
}

// dial connects the caller with a port of the container's loopback interface.
func (s *state) dial(c net.Conn, port int, answer func(interface{})) {
	var inner net.Conn
	var err error
	for _, host := range []string{"127.0.0.1", "::1"} { // an image need not know the name localhost
		if inner, err = net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), 5*time.Second); err == nil {
			break
		}
	}
	if err != nil {
		answer(err.Error())
		return
	}
	defer inner.Close()
	answer("")
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(inner, c)
		_ = inner.(*net.TCPConn).CloseWrite()
		close(done)
	}()
	_, _ = io.Copy(c, inner)
	_ = c.(*net.TCPConn).CloseWrite()
	<-done
}

// listening lists the TCP ports in state LISTEN (0A), see proc_pid_net(5), that the program and what it has
// started hold: the engine's own helpers share the container's network.
func (s *state) listening() []int {
	sockets := s.sockets()
	seen := map[int]bool{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, _ := os.ReadFile(name)
		for _, line := range strings.Split(string(text), "\n") {
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != "0A" || !sockets["socket:["+fields[9]+"]"] {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				seen[int(port)] = true
			}
		}
	}
	ports := []int{}
	for p := range seen {
		ports = append(ports, p)
	}
	sort.Ints(ports)
	return ports
}

// sockets are the open sockets of all processes but the agent's own and those that have started it.
func (s *state) sockets() map[string]bool {
	above := map[int]bool{}
	for pid := os.Getpid(); pid > 0 && !above[pid]; pid = parent(pid) {
		above[pid] = true
	}
	found := map[string]bool{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || above[pid] {
			continue
		}
		dir := "/proc/" + e.Name() + "/fd"
		open, _ := os.ReadDir(dir)
		for _, f := range open {
			if link, err := os.Readlink(dir + "/" + f.Name()); err == nil && strings.HasPrefix(link, "socket:") {
				found[link] = true
			}
		}
	}
	return found
}

// parent reads the parent's number from proc_pid_stat(5), where it follows the name in brackets and the state.
func parent(pid int) int {
	text, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}
