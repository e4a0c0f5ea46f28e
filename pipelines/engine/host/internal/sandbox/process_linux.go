package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// maxOutput is how much output is kept.
const maxOutput = 64 << 10

// killTimeout bounds how long the helper may take to clean up before it is killed itself.
const killTimeout = 10 * time.Second

var errClosed = errors.New("the process was closed")

// process is a started image, seen through its helper.
type process struct {
	kind string
	// dir is the private directory. It is empty as long as it belongs to another.
	dir       string
	cgroup    string
	conn      *net.UnixConn
	output    *output
	isolation engine.Isolation
	// root is the root file system if the container can write it, and files are what it was made of.
	root  string
	files files

	// started is closed when the container was started or startErr is set.
	started  chan struct{}
	startErr error
	// exited is closed when the first process has ended, after exit or exitErr is set.
	exited  chan struct{}
	exit    engine.Exit
	exitErr error
	// helperDone is closed when the helper has ended, after helperErr is set.
	helperDone chan struct{}
	helperErr  error
	killHelper func()
	release    func() // gives back the root file system
	// done is closed when everything that the helper sent was received.
	done chan struct{}

	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]chan answer

	closing  sync.Once
	closed   atomic.Bool
	closeErr error
}

// answer is a reply with the connection that came with it.
type answer struct {
	reply
	conn net.Conn
}

// startHelper starts the helper, or its parent, by its name and hands it the order.
func startHelper(o *order, name string, attr *syscall.SysProcAttr) (_ *process, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	files = append(files, ours, theirs)
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	orderR, orderW, err := os.Pipe()
	if err != nil {
		conn.Close()
		return nil, err
	}
	files = append(files, orderR, orderW)
	outR, outW, err := os.Pipe()
	if err != nil {
		conn.Close()
		return nil, err
	}
	files = append(files, outW)

	p := &process{
		kind:       o.Kind,
		cgroup:     o.Limits.Cgroup,
		root:       o.Root,
		files:      o.files,
		conn:       conn.(*net.UnixConn),
		output:     newOutput(outR),
		started:    make(chan struct{}),
		exited:     make(chan struct{}),
		helperDone: make(chan struct{}),
		done:       make(chan struct{}),
		pending:    map[uint64]chan answer{},
	}
	var stderr tail
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{name},
		Env:         []string{},
		Dir:         "/",
		Stderr:      &stderr,
		ExtraFiles:  []*os.File{fdControl - 3: theirs, fdOrder - 3: orderR, fdOutput - 3: outW},
		SysProcAttr: attr,
		WaitDelay:   killTimeout,
	}
	startErr := make(chan error, 1)
	go func() {
		// When this thread dies, the helper takes that for the death of the caller.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		startErr <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		if said := strings.TrimSpace(string(stderr.bytes())); said != "" {
			err = errors.Join(err, errors.New(said))
		}
		p.helperErr = err
		close(p.helperDone)
	}()
	if err := <-startErr; err != nil {
		p.conn.Close()
		p.output.close()
		return nil, err
	}
	p.killHelper = func() {
		select {
		case <-p.helperDone:
		default:
			_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // with its parent, if it has one
		}
	}
	go p.receive()
	theirs.Close() // or its end would not be seen
	outW.Close()
	orderR.Close()
	if err := json.NewEncoder(orderW).Encode(o); err != nil && !errors.Is(err, unix.EPIPE) {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// receive takes what the helper sends until its end is closed.
func (p *process) receive() {
	defer close(p.done)
	started, exited := false, false
	start := func(err error) {
		p.startErr = err
		started = true
		close(p.started)
	}
	exit := func(e engine.Exit, err error) {
		p.output.drain()
		p.exit, p.exitErr = e, err
		exited = true
		close(p.exited)
	}
	b, oob := make([]byte, 512<<10), make([]byte, unix.CmsgSpace(4))
	for {
		n, oobn, _, _, err := p.conn.ReadMsgUnix(b, oob)
		if err != nil || n == 0 {
			break
		}
		a := answer{conn: receivedConn(oob[:oobn])}
		if err := json.Unmarshal(b[:n], &a.reply); err != nil {
			p.killHelper()
			break
		}
		switch a.Event {
		case "started":
			p.isolation = engine.Isolation{Kind: p.kind, Holds: a.Holds, Missing: a.Missing}
			start(nil)
		case "setup":
			start(&setupError{a.Error})
		case "failed":
			start(a.Error)
		case "exited":
			if a.Error != nil {
				exit(engine.Exit{}, a.Error)
			} else {
				if p.files != nil {
					a.Exit.Written = p.files.written(list(p.root))
					if p.closed.Load() {
						a.Exit.Written = nil // the helper may be removing them
					}
				}
				exit(*a.Exit, nil)
			}
		default:
			p.mu.Lock()
			ch := p.pending[a.ID]
			delete(p.pending, a.ID)
			p.mu.Unlock()
			if ch != nil {
				ch <- a
			} else if a.conn != nil {
				a.conn.Close()
			}
		}
	}
	<-p.helperDone
	err := errClosed
	if p.helperErr != nil {
		err = fmt.Errorf("the sandbox's helper has ended: %w", p.helperErr)
	}
	if !started {
		start(&setupError{err})
	}
	if !exited {
		exit(engine.Exit{}, err)
	}
}

// receivedConn returns the connection in a control message, or nil.
func receivedConn(oob []byte) net.Conn {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var conn net.Conn
	for _, m := range messages {
		fds, _ := unix.ParseUnixRights(&m)
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "connection")
			if c, err := net.FileConn(f); err == nil {
				conn = c
			}
			f.Close()
		}
	}
	return conn
}

// call sends a request to the helper and waits for the answer.
func (p *process) call(ctx context.Context, r request) (answer, error) {
	if err := ctx.Err(); err != nil {
		return answer{}, err
	}
	ch := make(chan answer, 1)
	p.mu.Lock()
	p.nextID++
	r.ID = p.nextID
	p.pending[r.ID] = ch
	p.mu.Unlock()
	if err := p.send(r); err != nil {
		p.mu.Lock()
		delete(p.pending, r.ID)
		p.mu.Unlock()
		return answer{}, err
	}
	select {
	case a := <-ch:
		return a, nil
	case <-p.done:
		select {
		case a := <-ch: // the last thing that was received
			return a, nil
		default:
			return answer{}, errClosed
		}
	case <-ctx.Done():
	}
	p.mu.Lock()
	_, waiting := p.pending[r.ID]
	delete(p.pending, r.ID)
	p.mu.Unlock()
	if !waiting { // the answer is on its way through the channel
		if a := <-ch; a.conn != nil {
			a.conn.Close()
		}
	}
	_ = p.send(request{ID: r.ID, Op: "cancel"})
	return answer{}, ctx.Err()
}

func (p *process) send(r request) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := p.conn.Write(b); err != nil {
		return errClosed
	}
	return nil
}

func (p *process) Dial(ctx context.Context, port int) (net.Conn, error) {
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, Err: err}
	}
	if port < 1 || port > 65535 {
		return nil, fail(fmt.Errorf("%d is not a port", port))
	}
	a, err := p.call(ctx, request{Op: "dial", Port: port})
	switch {
	case err != nil:
		return nil, fail(err)
	case a.Error != nil && a.Error.Errno != 0:
		return nil, fail(os.NewSyscallError("connect", a.Error.Errno))
	case a.Error != nil:
		return nil, fail(a.Error)
	case a.conn == nil:
		return nil, fail(errors.New("the connection was not passed on"))
	}
	return a.conn, nil
}

func (p *process) Listening(ctx context.Context) ([]int, error) {
	a, err := p.call(ctx, request{Op: "listening"})
	if err == nil && a.Error != nil {
		err = a.Error
	}
	return a.Ports, err
}

func (p *process) Wait(ctx context.Context) (engine.Exit, error) {
	select {
	case <-p.exited:
		return p.exit, p.exitErr
	default:
	}
	select {
	case <-p.exited:
		return p.exit, p.exitErr
	case <-ctx.Done():
		return engine.Exit{}, ctx.Err()
	}
}

func (p *process) Signal(s os.Signal) error {
	number, ok := s.(syscall.Signal)
	if !ok {
		return fmt.Errorf("%v is not a signal of this system", s)
	}
	a, err := p.call(context.Background(), request{Op: "signal", Signal: int(number)})
	if errors.Is(err, errClosed) || err == nil && a.Error != nil && a.Error.Errno == unix.ESRCH {
		return os.ErrProcessDone
	}
	if err == nil && a.Error != nil {
		err = a.Error
	}
	return err
}

func (p *process) Output() []byte { return p.output.bytes() }

func (p *process) Isolation() engine.Isolation { return p.isolation }

func (p *process) Close() error {
	p.closing.Do(func() { p.closeErr = p.close() })
	return p.closeErr
}

func (p *process) close() error {
	// The helper kills the container and exits; as the first process of its pid namespace it takes
	// everything with it. Should it fail to, it is killed.
	p.closed.Store(true)
	_ = p.send(request{Op: "close", Remove: p.dir != ""})
	timer := time.AfterFunc(killTimeout, p.killHelper)
	<-p.done
	timer.Stop()
	p.conn.Close()
	p.output.close()
	var errs []error
	if p.cgroup != "" {
		errs = append(errs, removeCgroup(p.cgroup))
	}
	if p.dir != "" {
		errs = append(errs, removeTree(p.dir))
	}
	if p.release != nil {
		p.release()
	}
	return errors.Join(errs...)
}

// tail keeps the last bytes that were written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if len(t.buf) > 2*maxOutput {
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-maxOutput:]...)
	}
	return len(b), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]byte(nil), t.buf[max(0, len(t.buf)-maxOutput):]...)
}

// output reads the container's output.
type output struct {
	tail
	pipe *os.File
	// end is closed when there is nothing more to read.
	end chan struct{}
	// drains are requests to read what is there, each answered by closing the channel.
	drains chan chan struct{}
}

func newOutput(pipe *os.File) *output {
	o := &output{pipe: pipe, end: make(chan struct{}), drains: make(chan chan struct{}, 1)}
	go o.read()
	return o
}

func (o *output) read() {
	defer close(o.end)
	b := make([]byte, 32<<10)
	for {
		n, err := o.pipe.Read(b)
		_, _ = o.Write(b[:n])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			// drain wants to know when all that was written before has been read. Processes that are
			// left may hold the pipe, so its end cannot be waited for.
			_ = o.pipe.SetReadDeadline(time.Time{})
			drained := <-o.drains
			if raw, err := o.pipe.SyscallConn(); err == nil {
				// No pipe holds more than this. A process that is left might write without end.
				for left := 1 << 20; left > 0; {
					err := raw.Read(func(fd uintptr) bool {
						n, err := unix.Read(int(fd), b)
						if err == unix.EINTR {
							return true
						}
						if n <= 0 {
							n, left = 0, 0
						}
						_, _ = o.Write(b[:n])
						left -= n
						return true
					})
					if err != nil {
						break
					}
				}
			}
			close(drained)
		case err != nil:
			return
		}
	}
}

// drain waits until everything that has been written was read.
func (o *output) drain() {
	drained := make(chan struct{})
	o.drains <- drained
	_ = o.pipe.SetReadDeadline(time.Unix(1, 0))
	select {
	case <-drained:
	case <-o.end:
	}
}

func (o *output) close() {
	o.pipe.Close()
	<-o.end
}
