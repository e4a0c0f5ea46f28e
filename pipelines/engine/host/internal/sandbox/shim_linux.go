package sandbox

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// The names under which the program is started anew. Nobody types them by accident.
const (
	shimName = "slipway-sandbox-helper"
	initName = "slipway-sandbox-init"
	// outerName is for the helper's parent where there must be one, see outerMain.
	outerName = "slipway-sandbox-outer"
)

// File descriptors of the helper, beside the standard ones.
const (
	fdControl = 3 // socket to the caller
	fdOrder   = 4 // pipe with the order
	fdOutput  = 5 // pipe for the container's output
)

func init() {
	if len(os.Args) == 0 {
		return
	}
	switch os.Args[0] {
	case shimName:
		resetSignals()
		shimMain()
	case initName:
		containerMain()
	case outerName:
		resetSignals()
		outerMain()
	default:
		return
	}
	// Not os.Exit, which would first run what is registered for the end of the program.
	syscall.Exit(1)
}

// order is what the caller tells the helper to start.
type order struct {
	Kind string
	// Userns says that the helper and the container are in a user namespace of their own, in which the
	// image's user is the caller.
	Userns bool
	// Probe says that nothing is to be executed in the end.
	Probe bool
	// Dir is the private directory, Root the root file system in it, and Work a directory of this attempt.
	Dir, Root, Work string
	// Shared is a directory of the caller's that goes with it: Root, where that serves several starts.
	Shared string
	// Tmp is the path of /tmp in the image, without symbolic links.
	Tmp string
	// Volumes are the image's volumes, each a file system in memory of its own.
	Volumes []volume
	// Emulator is what executes the program in the processor's place, if that is for another.
	Emulator string
	// Path is the file to execute: in the image, or on this machine if there is no isolation.
	Path string
	Args []string
	Env  []string
	// Cwd is the working directory, likewise.
	Cwd    string
	User   user
	Limits limits
	// Capabilities as in engine.Container. FileCapabilities are those that the layers give to files, by their
	// paths in the image, as the kernel stores them; only if some are allowed. Unset says why they are not set.
	Capabilities     []string
	FileCapabilities map[string][]byte
	Unset            string
	// files are those in Root, if it can be written. They stay with the caller.
	files files
	// Program is the file of runc or crun.
	Program string
	// Caller is the user id of the caller, Outside are its namespaces.
	Caller  int
	Outside map[string]string
}

// request is what the caller sends to the helper. Every message is one packet.
type request struct {
	ID     uint64
	Op     string // "dial", "cancel", "listening", "signal" or "close"
	Port   int    `json:",omitempty"`
	Signal int    `json:",omitempty"`
	// Remove tells "close" to remove the private directory, too.
	Remove bool `json:",omitempty"`
}

// reply is what the helper sends: the answer to a request, or an event. The answer to "dial" carries the
// connected socket.
type reply struct {
	ID uint64 `json:",omitempty"`
	// Event is "started", "setup" (this kind of isolation does not work), "failed" (the container cannot
	// be started, with any isolation) or "exited".
	Event string       `json:",omitempty"`
	Error *remoteError `json:",omitempty"`
	Ports []int        `json:",omitempty"`
	Exit  *engine.Exit `json:",omitempty"`
	Holds []string     `json:",omitempty"`
	// Missing as in engine.Isolation.
	Missing []string `json:",omitempty"`
}

// remoteError is an error of another process.
type remoteError struct {
	Text  string
	Errno syscall.Errno
}

func toRemote(err error) *remoteError {
	r := &remoteError{Text: err.Error()}
	errors.As(err, &r.Errno)
	return r
}

func (e *remoteError) Error() string { return e.Text }

func (e *remoteError) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// setupError says that a kind of isolation does not work here, so that another may be tried.
type setupError struct{ err error }

func (e *setupError) Error() string { return e.err.Error() }
func (e *setupError) Unwrap() error { return e.err }

// A shim is the helper.
type shim struct {
	order order
	conn  *net.UnixConn
	send  sync.Mutex

	mu      sync.Mutex
	ended   bool // the container's first process was waited for
	pid     int
	peak    int64 // the largest resident size seen, without what came before the entrypoint
	dialing map[uint64]context.CancelFunc
	left    []string    // when the first process was last signalled, see engine.Exit.Leftover
	endedBy unix.Signal // the signal that ended an emulator, see endEmulator

	// before is the resident size of what the first process was before it executed the entrypoint.
	// The kernel's own record of the largest size includes it.
	before int64
	// exited is closed when the container's first process was waited for.
	exited chan struct{}
}

func shimMain() {
	// The main thread must live, because the death of the thread that started a process counts as the
	// death of its parent. An init function runs on it, and this one never returns.
	runtime.LockOSThread()
	// If the caller dies, its end of the socket is closed, which makes the helper clean up and exit. The
	// signal is for the case that another process has inherited that end.
	dying := make(chan os.Signal, 1)
	signal.Notify(dying, unix.SIGTERM)
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0)
	closeOnExec()
	runtime.GOMAXPROCS(2) // fewer threads, which count as the user's processes

	s := &shim{dialing: map[uint64]context.CancelFunc{}, exited: make(chan struct{})}
	control := os.NewFile(fdControl, "control")
	conn, err := net.FileConn(control)
	if err != nil {
		fmt.Fprintln(os.Stderr, "control socket:", err)
		return
	}
	control.Close()
	s.conn = conn.(*net.UnixConn)
	pipe := os.NewFile(fdOrder, "order")
	if err := json.NewDecoder(pipe).Decode(&s.order); err != nil {
		fmt.Fprintln(os.Stderr, "order:", err)
		return
	}
	pipe.Close()

	go func() {
		<-dying
		s.end(true)
	}()
	if err := s.start(); err != nil {
		event := "failed"
		if _, ok := errors.AsType[*setupError](err); ok {
			event = "setup"
		}
		s.reply(reply{Event: event, Error: toRemote(err)})
		s.end(false)
	}
	go s.serve()
	select {} // the main thread stays
}

// start starts the container and tells the caller.
func (s *shim) start() error {
	o := &s.order
	// Only the container is to hold the output, so that its end is seen.
	output := os.NewFile(fdOutput, "output")
	defer output.Close()
	var running *container
	var err error
	if o.Kind == kindProcess {
		// Whatever the process leaves behind becomes a child of the helper.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return &setupError{err}
		}
		running, err = startProcess(o, output)
	} else {
		if err := shareNothing(); err != nil {
			return &setupError{err}
		}
		if o.Kind == kindNamespaces {
			running, err = startNamespaces(o, output)
		} else {
			running, err = startRuntime(o, output)
		}
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.pid = running.pid
	s.mu.Unlock()
	s.before = running.before
	seen := observe(running.pid, o)
	if !o.Probe {
		if err := running.execute(); err != nil {
			return err
		}
	}
	// The process is not waited for before this, so it is still there, be it as a zombie.
	seen.limits(running.pid, o)
	s.reply(reply{Event: "started", Holds: seen.holds, Missing: seen.missing})
	go s.wait()
	return nil
}

// A container has a first process that waits for leave to execute the entrypoint.
type container struct {
	pid int
	// before is the largest resident size of that process so far.
	before  int64
	execute func() error
}

// startProcess executes the entrypoint without isolation.
func startProcess(o *order, output *os.File) (*container, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(o.Path, o.Args, &syscall.ProcAttr{
		Dir:   o.Cwd,
		Env:   o.Env,
		Files: []uintptr{null.Fd(), output.Fd(), output.Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return nil, fmt.Errorf("cannot execute %s: %w", o.Args[0], err)
	}
	// It was executed at once, and had the helper's memory until then.
	return &container{pid: pid, before: residentPeak(os.Getpid()), execute: func() error { return nil }}, nil
}

// wait waits for the container's first process and tells the caller.
func (s *shim) wait() {
	// The process stays a zombie until the lock is held, so that nobody signals a reused id.
	for {
		if err := unix.Waitid(unix.P_PID, s.pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
			break
		}
	}
	// Its children have been handed on by now.
	var left []string
	if s.order.Kind == kindProcess {
		left = s.leftover(descendants())
	}
	s.mu.Lock()
	s.ended = true
	if s.order.Kind != kindProcess {
		left = s.left
	}
	var status unix.WaitStatus
	var usage unix.Rusage
	var err error
	for {
		if _, err = unix.Wait4(s.pid, &status, 0, &usage); err != unix.EINTR {
			break
		}
	}
	peak, endedBy := s.peak, s.endedBy
	s.mu.Unlock()
	close(s.exited)
	if err != nil {
		s.reply(reply{Event: "exited", Error: toRemote(fmt.Errorf("waiting for the process: %w", err))})
		return
	}
	exit := engine.Exit{Code: status.ExitStatus(), MaxMemory: peak, Leftover: left}
	if status.Signaled() {
		by := cmp.Or(endedBy, status.Signal())
		exit.Code = 128 + int(by)
		exit.Signal = unix.SignalName(by)
	}
	// The record is exact if it exceeds what the process was before, with some room for what that grew.
	if m := int64(usage.Maxrss) << 10; m > s.before+1<<20 {
		exit.MaxMemory = m
	}
	s.reply(reply{Event: "exited", Exit: &exit})
}

// measure notes how large the process has been so far.
func (s *shim) measure() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.peak = max(s.peak, residentPeak(s.pid))
	}
}

// residentPeak returns the largest resident size of a process since it executed its program, or 0.
func residentPeak(pid int) int64 {
	kib, _ := strconv.ParseInt(strings.TrimSuffix(statusField(strconv.Itoa(pid), "VmHWM"), " kB"), 10, 64)
	return kib << 10
}

// statusField returns a field of /proc/<pid>/status.
func statusField(pid, name string) string {
	text, _ := os.ReadFile("/proc/" + pid + "/status")
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// serve answers requests until the caller closes the socket.
func (s *shim) serve() {
	b := make([]byte, 4096)
	for {
		n, err := s.conn.Read(b)
		if err != nil || n == 0 {
			s.end(true)
		}
		var r request
		if err := json.Unmarshal(b[:n], &r); err != nil {
			s.end(true)
		}
		switch r.Op {
		case "close":
			s.order.Shared = "" // the caller lives, and may start the image again
			s.end(r.Remove)
		case "dial":
			ctx, cancel := context.WithCancel(context.Background())
			s.mu.Lock()
			s.dialing[r.ID] = cancel
			s.mu.Unlock()
			go s.dial(ctx, r)
		case "cancel":
			s.mu.Lock()
			if cancel := s.dialing[r.ID]; cancel != nil {
				cancel()
			}
			s.mu.Unlock()
		case "listening":
			s.measure()
			go s.listening(r)
		case "signal":
			go s.signal(r)
		}
	}
}

// signal signals the first process, once it rests.
func (s *shim) signal(r request) {
	s.rest()
	s.measure()
	var left []string
	if s.order.Kind != kindProcess { // there, wait can tell
		left = s.leftover(inside())
	}
	s.mu.Lock()
	err := error(unix.ESRCH)
	if !s.ended {
		s.left = left
		emulated := s.order.Emulator != "" && s.order.Kind != kindProcess && s.has("SigCgt", syscall.Signal(r.Signal))
		err = unix.Kill(s.pid, syscall.Signal(r.Signal))
		if emulated {
			go s.endEmulator(syscall.Signal(r.Signal))
		}
	}
	s.mu.Unlock()
	s.answer(reply{ID: r.ID}, err)
}

// restTimeout bounds how long a process that always has something to do is waited for before it is signalled.
const restTimeout = time.Second

// rest waits until the first process waits for something with all its threads, or has ended. One that is about to
// end by itself does so before it is signalled, and not at the same time, where chance would tell how.
func (s *shim) rest() {
	waitFor(restTimeout, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.ended || resting(s.pid)
	})
}

// resting tells whether all threads of a process sleep, as proc_pid_stat(5) has it. One that nobody may look at does.
func resting(pid int) bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		text, _ := os.ReadFile(name)
		// The name of the program, in parentheses, may hold any character.
		if i := strings.LastIndex(string(text), ")"); i >= 0 && i+2 < len(text) && text[i+2] != 'S' {
			return false
		}
	}
	return true
}

// has tells whether a set of signals of the first process, in its status, holds one.
func (s *shim) has(set string, sig syscall.Signal) bool {
	mask, err := strconv.ParseUint(statusField(strconv.Itoa(s.pid), set), 16, 64)
	return err == nil && sig > 0 && mask>>(sig-1)&1 == 1
}

// endEmulator ends an emulator that waits for a signal to end it, in vain because the kernel protects the first
// process of a pid namespace. QEMU has no longer a handler then. Go programs, which it runs, end themselves if
// the signal does not.
func (s *shim) endEmulator(sig syscall.Signal) {
	waitFor(executeTimeout, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.ended || s.has("SigIgn", sig) {
			return true
		}
		if s.has("SigCgt", sig) {
			return false
		}
		s.endedBy = sig
		_ = unix.Kill(s.pid, unix.SIGKILL)
		return true
	})
}

// reply sends a message to the caller, with files if there are any.
func (s *shim) reply(r reply, fds ...int) {
	b, err := json.Marshal(r)
	if err != nil {
		panic(err) // the type has nothing that cannot be encoded
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	s.send.Lock()
	defer s.send.Unlock()
	if _, _, err := s.conn.WriteMsgUnix(b, oob, nil); errors.Is(err, unix.EMSGSIZE) {
		b, _ = json.Marshal(reply{ID: r.ID, Event: r.Event, Error: &remoteError{"the answer is too long", unix.EMSGSIZE}})
		_, _, _ = s.conn.WriteMsgUnix(b, nil, nil)
	}
}

func (s *shim) answer(r reply, err error) {
	if err != nil {
		r.Error = toRemote(err)
	}
	s.reply(r)
}

// dial connects to a port of the loopback interface, and sends the connection to the caller.
func (s *shim) dial(ctx context.Context, r request) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(r.Port)))
	if err != nil {
		var err6 error
		if conn, err6 = d.DialContext(ctx, "tcp6", net.JoinHostPort("::1", strconv.Itoa(r.Port))); err6 == nil {
			err = nil
		}
	}
	s.mu.Lock()
	s.dialing[r.ID]()
	delete(s.dialing, r.ID)
	s.mu.Unlock()
	s.measure()
	if err != nil {
		s.answer(reply{ID: r.ID}, err)
		return
	}
	defer conn.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { s.reply(reply{ID: r.ID}, int(fd)) })
	}
	if err != nil {
		s.answer(reply{ID: r.ID}, err)
	}
}

// listening sends the ports that accept connections.
func (s *shim) listening(r request) {
	var sockets map[string]bool
	if s.order.Kind == kindProcess {
		sockets = map[string]bool{}
		s.mu.Lock()
		pids := []int{s.pid}
		s.mu.Unlock()
		for _, pid := range append(pids, descendants()...) {
			fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
			for _, fd := range fds {
				if target, err := os.Readlink(fd); err == nil {
					sockets[target] = true
				}
			}
		}
	}
	ports, err := listeningPorts(sockets)
	s.answer(reply{ID: r.ID, Ports: ports}, err)
}

// listeningPorts returns the ports on which this network namespace listens: on all its sockets, or on
// those among the given ones ("socket:[inode]").
func listeningPorts(sockets map[string]bool) ([]int, error) {
	var ports []int
	for _, name := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
			col := strings.Fields(lines.Text())
			if len(col) < 10 || col[3] != "0A" || sockets != nil && !sockets["socket:["+col[9]+"]"] {
				continue
			}
			_, hex, _ := strings.Cut(col[1], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				ports = append(ports, int(port))
			}
		}
		err = lines.Err()
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports), nil
}

// descendants returns the processes that descend from this one.
func descendants() []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if parent, err := strconv.Atoi(statusField(e.Name(), "PPid")); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	all := slices.Clone(children[os.Getpid()])
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i]]...)
	}
	return all
}

// end kills what is left of the container and exits. It also removes what is on disk, because the caller
// may be gone, or go while it closes the container.
func (s *shim) end(remove bool) {
	s.mu.Lock() // and never unlocked: nothing may start or be answered any more
	pid, ended := s.pid, s.ended
	if pid > 0 && !ended {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	if s.order.Kind == kindProcess {
		for {
			for _, pid := range descendants() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
			if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
				break // no child is left
			}
		}
	} else if pid > 0 && !ended {
		// The end of a pid namespace's first process comes after that of all others in it.
		_, _ = unix.Wait4(pid, nil, 0, nil)
	}
	if remove && s.order.Dir != "" {
		if s.order.Limits.Cgroup != "" {
			_ = removeCgroup(s.order.Limits.Cgroup)
		}
		_ = removeTree(s.order.Dir)
		if s.order.Shared != "" {
			_ = removeTree(s.order.Shared)
		}
	}
	syscall.Exit(0)
}

// shareNothing finishes the helper's namespaces, which the caller has made: nothing mounted here is seen
// elsewhere, /proc shows the helper's own pid namespace, and the loopback interface is up.
func shareNothing() error {
	// What the machine unmounts disappears here, too; otherwise a running container would keep it busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w (a container whose own /proc is partly hidden may not do that)", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("loopback interface: %w", err)
	}
	return nil
}

// closeOnExec keeps files that the program was started with from reaching the container.
func closeOnExec() {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// waitFor runs f until it returns true or the time is up.
func waitFor(limit time.Duration, f func() bool) bool {
	deadline := time.Now().Add(limit)
	for wait := time.Millisecond; !f(); wait = min(2*wait, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(wait)
	}
	return true
}
