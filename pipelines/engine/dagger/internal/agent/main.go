//go:build linux

// Command agent starts an image's program inside the image's own container and tells slipway about it.
//
// A Dagger service shows neither exit code, signals, output nor open ports. The agent does, over one TCP
// port: each connection sends one line "TOKEN COMMAND [ARGUMENT ...]" and gets one line back, then what the
// command is about. It is compiled by the toolchain of the pipeline, Go 1.20 at the oldest, from this one file.
//
//	agent ORDER PROGRAM [ARGUMENT ...]
//	agent whoami
//
// ORDER is JSON. The second form says as whom a container runs its programs, and with which privileges at most.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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
	prSetDumpable       = 4
	prCapBSetDrop       = 24
	prSetChildSubreaper = 36
	prSetNoNewPrivs     = 38
	prCapAmbient        = 47
	clearAllAmbient     = 4
	lastCapability      = 63
)

const (
	// maxOutput is how much of the program's last output is kept, in bytes.
	maxOutput = 64 << 10
	// maxWritten is how many files the end of the program names.
	maxWritten = 20
	// endIn bounds how long what the program leaves behind may take to end.
	endIn = time.Second
	// restIn bounds how long a program that always has something to do is waited for before it is signalled.
	restIn = time.Second
)

// order is what the agent is to do.
type order struct {
	Port  string `json:"port"`
	Token string `json:"token"`
	// Root is where the image's files are.
	Root string `json:"root"`
	// Capabilities are those that files may give to the program, a bit for each number. Without any, no file
	// gives privileges at all.
	Capabilities uint64 `json:"capabilities"`
	// InMemory are directories that shall be file systems in memory.
	InMemory []string `json:"in_memory"`
	// As is whom the program runs as, nil for the agent's own user.
	As *identity `json:"as,omitempty"`
}

// identity is whom a process runs as.
type identity struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups"`
}

type state struct {
	order order

	mu     sync.Mutex
	output []byte
	hangup map[string]func() // ends connections that were dialed, by their names

	process *os.Process
	facts   facts
	ended   chan struct{} // closed when exit is set
	exit    exit
	failed  string // why the program could not be started
}

// facts are how the program is confined, read back from the kernel.
type facts struct {
	UID        int  `json:"uid"`
	NoNewPrivs bool `json:"no_new_privs"`
	ReadOnly   bool `json:"read_only"`
	// Sets are the program's sets of capabilities, by their names in proc_pid_status(5).
	Sets map[string]string `json:"sets"`
	// FileCapabilities tells that the program's file has some.
	FileCapabilities bool `json:"file_capabilities"`
	// OnDisk are those directories that are no file systems in memory although they shall be.
	OnDisk []string `json:"on_disk,omitempty"`
}

type exit struct {
	Code      int      `json:"code"`
	Signal    string   `json:"signal,omitempty"`
	MaxMemory int64    `json:"max_memory"`
	Leftover  []string `json:"leftover,omitempty"`
	Written   []string `json:"written,omitempty"`
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "whoami" {
		whoami()
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: agent ORDER PROGRAM [ARGUMENT ...]")
		os.Exit(2)
	}
	// The program has the same user, and must not take the agent over by ptrace.
	prctl(prSetDumpable, 0)
	s := &state{ended: make(chan struct{}), hangup: map[string]func(){}}
	err := json.Unmarshal([]byte(os.Args[1]), &s.order)
	var l net.Listener
	if err == nil {
		l, err = net.Listen("tcp", ":"+s.order.Port)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	s.start(os.Args[2:])
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			os.Exit(1)
		}
		go s.serve(c)
	}
}

func whoami() {
	me := struct {
		identity
		Home     string `json:"home"`
		Bounding string `json:"bounding"`
	}{identity{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}, os.Getenv("HOME"), confinement(os.Getpid()).Sets["CapBnd"]}
	groups, _ := os.Getgroups()
	for _, g := range groups {
		me.Groups = append(me.Groups, uint32(g))
	}
	_ = json.NewEncoder(os.Stdout).Encode(me)
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
	if as := s.order.As; as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: as.UID, Gid: as.GID, Groups: as.Groups}}
	}
	r, w, err := os.Pipe()
	if err != nil {
		s.failed = err.Error()
		return
	}
	cmd.Stdout, cmd.Stderr = w, w
	before := s.list()
	started := make(chan error)
	go func() {
		// Privileges are those of a thread: the program is started by this one, which never serves again.
		runtime.LockOSThread()
		for i := uintptr(0); i <= lastCapability; i++ {
			if s.order.Capabilities&(1<<i) == 0 {
				prctl(prCapBSetDrop, i)
			}
		}
		prctl(prCapAmbient, clearAllAmbient)
		if s.order.Capabilities == 0 {
			prctl(prSetNoNewPrivs, 1)
		}
		// What the program leaves behind becomes the agent's.
		prctl(prSetChildSubreaper, 1)
		err := cmd.Start()
		w.Close()
		if err != nil {
			started <- err
			return
		}
		s.process = cmd.Process
		s.facts = confinement(cmd.Process.Pid)
		n, err := syscall.Getxattr(cmd.Path, "security.capability", nil)
		s.facts.FileCapabilities = err == nil && n > 0
		for _, dir := range s.order.InMemory {
			if real, err := filepath.EvalSymlinks(dir); err != nil || mounts()[real].kind != "tmpfs" {
				s.facts.OnDisk = append(s.facts.OnDisk, dir)
			}
		}
		started <- nil
		copied := make(chan struct{})
		go func() {
			_, _ = io.Copy(s, r)
			close(copied)
		}()
		s.exit = s.wait()
		select {
		case <-copied:
		case <-time.After(endIn): // something that could not be killed holds the output open
		}
		s.exit.Written = written(before, s.list())
		close(s.ended)
	}()
	if err := <-started; err != nil {
		s.failed = err.Error()
	}
}

// rest waits until the program waits for something with all its threads, or has ended. One that is about to end by
// itself does so before it is signalled, and not at the same time, where chance would tell how.
func (s *state) rest() {
	for end := time.Now().Add(restIn); time.Now().Before(end); time.Sleep(time.Millisecond) {
		select {
		case <-s.ended:
			return
		default:
		}
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.process.Pid))
		busy := false
		for _, name := range threads {
			text, _ := os.ReadFile(name)
			// The name of the program, in parentheses, may hold any character.
			i := strings.LastIndex(string(text), ")")
			busy = busy || i >= 0 && i+2 < len(text) && text[i+2] != 'S'
		}
		if !busy {
			return
		}
	}
}

func prctl(option, argument uintptr) {
	_, _, _ = syscall.RawSyscall6(syscall.SYS_PRCTL, option, argument, 0, 0, 0, 0)
}

// wait waits for the end of the program, and ends what it leaves behind.
func (s *state) wait() exit {
	var status syscall.WaitStatus
	var usage syscall.Rusage
	for {
		// Any child: the orphans of the program are the agent's, and nobody else takes note of their end.
		pid, err := syscall.Wait4(-1, &status, 0, &usage)
		if pid == s.process.Pid || err != nil && err != syscall.EINTR {
			break
		}
	}
	x := exit{Code: status.ExitStatus(), MaxMemory: int64(usage.Maxrss) << 10} // in KiB, getrusage(2)
	if status.Signaled() {
		x.Code, x.Signal = 128+int(status.Signal()), signalName(status.Signal())
	}
	seen := map[string]bool{}
	left := descendants()
	for _, p := range left {
		if !seen[p.name] {
			seen[p.name] = true
			x.Leftover = append(x.Leftover, p.name)
		}
	}
	sort.Strings(x.Leftover)
	// One that is killed may have made another before.
	for end := time.Now().Add(endIn); len(left) > 0 && time.Now().Before(end); left = descendants() {
		for _, p := range left {
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return x
}

// file is the state of a file. Every write and every other change gives it another one, as nothing can set the
// time of a change.
type file struct {
	mode              uint32
	inode             uint64
	size              int64
	modified, changed syscall.Timespec
}

// list is what the image's root file system holds. It takes one lstat for each file, and no content is read: the 26000
// files of a golang image took a quarter of a second, and one second when they were new to the kernel. It is done
// twice, before the program is started and when it has ended.
// What is mounted is left out: file systems in memory, and what Dagger puts there, the agent included.
func (s *state) list() map[string]file {
	mounted := mounts()
	files := map[string]file{}
	_ = filepath.WalkDir(s.order.Root, func(name string, d fs.DirEntry, err error) error {
		rel := "/" + strings.TrimPrefix(strings.TrimPrefix(name, s.order.Root), "/")
		_, other := mounted[name]
		switch {
		case err != nil || rel == "/":
			return nil // what is closed to the agent is closed to the program, which has no more rights
		case other:
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			files[rel] = file{} // what is made in it tells on its own
			return nil
		}
		if info, err := d.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				files[rel] = file{uint32(st.Mode), uint64(st.Ino), int64(st.Size), st.Mtim, st.Ctim}
			}
		}
		return nil
	})
	return files
}

// written are the files that are new, changed or gone.
func written(before, now map[string]file) []string {
	var names []string
	for name, f := range now {
		if was, ok := before[name]; !ok || was != f {
			names = append(names, name)
		}
	}
	for name := range before {
		if _, ok := now[name]; !ok {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	if len(names) > maxWritten {
		names = names[:maxWritten]
	}
	return names
}

type mount struct {
	kind     string
	readOnly bool
}

// mounts are the mounted file systems by directory, of proc_pid_mountinfo(5). The last one covers the others.
func mounts() map[string]mount {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	all := map[string]mount{}
	text, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(text), "\n") {
		line, rest, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(line); len(fields) > 5 {
			kind, _, _ := strings.Cut(rest, " ")
			all[unescape.Replace(fields[4])] = mount{kind, strings.HasPrefix(fields[5]+",", "ro,")}
		}
	}
	return all
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
	f := facts{UID: -1, Sets: map[string]string{}}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
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
		case "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb":
			f.Sets[key] = fields[0]
		}
	}
	f.ReadOnly = mounts()["/"].readOnly
	return f
}

func (s *state) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(io.LimitReader(c, 1<<10))
	line, err := r.ReadString('\n')
	fields := strings.Fields(line)
	if err != nil || len(fields) < 2 || fields[0] != s.order.Token {
		return // such as the engine's own question whether anybody listens
	}
	fields = append(fields, "", "")
	argument, _ := strconv.Atoi(fields[2])
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
		s.rest()
		if err := s.process.Signal(syscall.Signal(argument)); errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
			text = "ended" // see process.Signal
		} else if err != nil {
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
		s.dial(c, argument, fields[3], answer)
	case "hangup":
		s.mu.Lock()
		if end := s.hangup[fields[2]]; end != nil {
			end()
		}
		s.mu.Unlock()
		answer("")
	}
}

// dial connects the caller with a port of the container's loopback interface. Dagger's tunnel does not tell when
// the caller closes the connection, so that there is a command for it, by the name that the caller gave.
func (s *state) dial(c net.Conn, port int, name string, answer func(interface{})) {
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
	s.mu.Lock()
	s.hangup[name] = func() { _, _ = inner.Close(), c.Close() }
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.hangup, name)
		s.mu.Unlock()
	}()
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
// started hold: the engine's own helpers share the container's network. The kernel does not show what a program
// holds that has got capabilities from its file. Its user tells it apart then, which no helper has.
func (s *state) listening() []int {
	held, user := sockets(), ""
	if as := s.order.As; as != nil && as.UID != 0 {
		user = strconv.Itoa(int(as.UID))
	}
	seen := map[int]bool{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		text, _ := os.ReadFile(name)
		for _, line := range strings.Split(string(text), "\n") {
			fields := strings.Fields(line)
			if len(fields) < 10 || fields[3] != "0A" || !held["socket:["+fields[9]+"]"] && fields[7] != user {
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

// sockets are the open sockets of the program and of what it has started.
func sockets() map[string]bool {
	held := map[string]bool{}
	for _, p := range descendants() {
		dir := fmt.Sprintf("/proc/%d/fd", p.pid)
		open, _ := os.ReadDir(dir)
		for _, f := range open {
			if link, err := os.Readlink(dir + "/" + f.Name()); err == nil && strings.HasPrefix(link, "socket:") {
				held[link] = true
			}
		}
	}
	return held
}

type process struct {
	pid  int
	name string
}

// descendants are the processes below the agent, without those that have ended and are their parent's to notice.
func descendants() []process {
	type stat struct {
		parent      int
		name, state string
	}
	all := map[int]stat{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// proc_pid_stat(5): the name is in brackets and may hold some itself, state and parent follow.
		text, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
		from, to := strings.IndexByte(string(text), '('), strings.LastIndexByte(string(text), ')')
		if from < 0 || to < from {
			continue
		}
		fields := strings.Fields(string(text[to+1:]))
		if len(fields) < 2 {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		all[pid] = stat{parent, string(text[from+1 : to]), fields[0]}
	}
	var below []process
	for pid, p := range all {
		above := p.parent
		// Bounded, as what was read at different times may not fit together.
		for n := 0; n < len(all) && above != os.Getpid(); n++ {
			above = all[above].parent
		}
		if above == os.Getpid() && p.state != "Z" && p.state != "X" {
			below = append(below, process{pid, p.name})
		}
	}
	return below
}
