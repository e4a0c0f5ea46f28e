//go:build linux

// Command escapes tries to leave the place where it runs; the argument says how. For each attempt it prints
// whether it was blocked, and it ends with 0 if all of them were.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

var failed bool

func main() {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "write":
		write()
	case "read":
		read()
	case "processes":
		processes()
	case "connect":
		connect()
	case "privilege":
		privilege()
	case "namespace": // what privilege starts in a user namespace of its own
		namespace()
	case "fork":
		fork()
	case "memory":
		memory()
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
		listen(":8080")
	case "daemon":
		daemon()
	case "outside": // what the others try to reach: started on the machine, without isolation
		outside(os.Args[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: escapes write|read|processes|connect|privilege|fork|memory|deaf|daemon")
		os.Exit(2)
	}
	if failed {
		os.Exit(1)
	}
}

// try says how an attempt went; err is what blocked it.
func try(attempt string, err error) {
	if err != nil {
		fmt.Printf("%s: blocked (%v)\n", attempt, err)
		return
	}
	fmt.Printf("%s: SUCCEEDED\n", attempt)
	failed = true
}

// write opens files for writing, and writes into new ones only.
func write() {
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	for _, dir := range []string{"/", "/etc", "/dev", "/proc", "/sys/fs/cgroup", filepath.Dir(self)} {
		name := filepath.Join(dir, "escaped")
		try("write "+name, os.WriteFile(name, []byte("escaped"), 0o644))
	}
	try("mkdir /escaped.d", os.Mkdir("/escaped.d", 0o755))
	for _, name := range []string{"/etc/passwd", "/etc/hosts", self, "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"} {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		try("open "+name, err)
	}
	try("rename "+self, os.Rename(self, self+".escaped"))
	try("chmod "+self, os.Chmod(self, 0o777))
}

// read reads what belongs to the machine. Files that hold nothing tell nothing.
func read() {
	content := func(name string) error {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if names, err := f.Readdirnames(1); len(names) > 0 {
			return err
		}
		if n, err := f.Read(make([]byte, 1)); n == 0 {
			return fmt.Errorf("empty: %v", err)
		}
		return nil
	}
	names := []string{"/etc/shadow", "/root", "/proc/1/root/etc/shadow", "/proc/1/root/root", "/proc/kcore", "/proc/keys", "/dev/mem", "/sys/kernel"}
	if secret := os.Getenv("ESCAPE_FILE"); secret != "" {
		names = append(names, secret, "/proc/1/root"+secret, "/proc/1/cwd/../../../../../.."+secret, "/proc/self/root/.."+secret)
	}
	if os.Getpid() != 1 {
		names = append(names, "/proc/1/root", "/proc/1/environ", "/proc/1/fd")
	}
	for _, name := range names {
		try("read "+name, content(name))
	}
	disks := []string{"vda", "sda", "nvme0n1"}
	for _, disk := range disks {
		try("read /dev/"+disk, content("/dev/"+disk))
	}
	// What was left open is a way out, too. The runtime has files of its own, and both ends of a pipe.
	open := map[string]int{}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if n, _ := strconv.Atoi(fd.Name()); err == nil && n > 2 {
			open[target]++
		}
	}
	for target, n := range open {
		if !strings.HasPrefix(target, "anon_inode:") && !strings.HasPrefix(target, "/proc/") && n == 1 {
			try("inherit "+target, nil)
		}
	}
}

func processes() {
	entries, err := os.ReadDir("/proc")
	self := strconv.Itoa(os.Getpid())
	if err == nil {
		err = errors.New("there are none")
	}
	for _, e := range entries {
		if _, nerr := strconv.Atoi(e.Name()); nerr == nil && e.Name() != self {
			err = nil
		}
	}
	try("see other processes", err)
	// Signal 0 only asks whether there is somebody to get one.
	try("signal all processes", syscall.Kill(-1, 0))
	if parent := os.Getppid(); parent != 0 {
		try("signal the parent", syscall.Kill(parent, 0))
	}
}

func connect() {
	for _, address := range strings.Fields(os.Getenv("ESCAPE_ADDRESS")) {
		for _, network := range []string{"tcp", "udp"} {
			try("connect "+network+" "+address, echo(network, address))
		}
	}
	sockets := []string{"/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket"}
	if outside := os.Getenv("ESCAPE_SOCKET"); outside != "" {
		sockets = append(sockets, outside)
	}
	for _, name := range sockets {
		c, err := net.Dial("unix", name)
		if err == nil {
			c.Close()
		}
		try("connect unix "+name, err)
	}
}

// echo sends a byte and gets it back.
func echo(network, address string) error {
	c, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

func privilege() {
	if os.Getuid() != 0 {
		try("setuid(0)", syscall.Setuid(0))
		try("setgid(0)", syscall.Setgid(0))
	}
	try("setgroups", syscall.Setgroups([]int{0, 1}))
	try("gain a capability", capset(1<<capSysAdmin))
	admin()
	try("unshare mounts", syscall.Unshare(syscall.CLONE_NEWNS))
	try("unshare the network", syscall.Unshare(syscall.CLONE_NEWNET))
	if os.Getppid() != 0 {
		try("ptrace", syscall.PtraceAttach(os.Getppid()))
	}
	try("mknod", syscall.Mknod("/tmp/escaped", syscall.S_IFBLK|0o600, 254<<8))
	try("open a raw socket", socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP))
	try("open a packet socket", socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0))
	_, _, errno := syscall.RawSyscall(syscall.SYS_REBOOT, 0, 0, 0) // without the magic numbers, nothing would happen
	if errno == syscall.EINVAL {
		errno = 0 // it looked at them, so it would have been allowed
	}
	try("reboot", orNil(errno))

	// A user namespace of its own makes a program root of nothing else. What it has over the rest is tried there.
	cmd := exec.Command("/proc/self/exe", "namespace")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | cloneNewCgroup,
		AmbientCaps: []uintptr{capSysAdmin},
	}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) || err == nil:
		failed = failed || err != nil
	default:
		try("make a user namespace", err)
	}
}

// admin does what takes the rights of an administrator over the container.
func admin() {
	try("make / writable", syscall.Mount("", "/", "", syscall.MS_REMOUNT|syscall.MS_BIND, ""))
	try("mount proc", syscall.Mount("proc", "/tmp", "proc", 0, ""))
	try("mount sysfs", syscall.Mount("sysfs", "/tmp", "sysfs", 0, ""))
	try("unmount /proc/keys", syscall.Unmount("/proc/keys", syscall.MNT_DETACH))
	try("sethostname", syscall.Sethostname([]byte("escaped")))
	try("chroot", func() error {
		if err := syscall.Chroot("/proc/1/root/.."); err != nil {
			return err
		}
		_, err := os.Stat(os.Getenv("ESCAPE_FILE"))
		return err
	}())
}

// namespace is privilege in a user namespace of its own.
func namespace() {
	fmt.Println("in a user namespace:")
	admin()
	// Limits are files of cgroups, which belong to root, and so does perhaps this process.
	for _, kind := range []string{"cgroup2", "memory", "pids"} {
		fstype, options := "cgroup", kind
		if kind == "cgroup2" {
			fstype, options = kind, ""
		}
		if err := syscall.Mount("none", "/tmp", fstype, 0, options); err != nil {
			try("mount "+kind, err)
			continue
		}
		for _, name := range []string{"memory.max", "memory.limit_in_bytes", "pids.max", "cgroup.procs", "release_agent"} {
			f, err := os.OpenFile("/tmp/"+name, os.O_WRONLY, 0)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err == nil {
				f.Close()
			}
			try("open "+name+" of "+kind, err)
		}
		_ = syscall.Unmount("/tmp", 0)
	}
}

// What package syscall does not name.
const (
	capSysAdmin    = 21
	cloneNewCgroup = 0x02000000
)

// capset takes capabilities, as permitted and effective ones.
func capset(mask uint32) error {
	header := struct {
		version uint32
		pid     int32
	}{0x20080522, 0}
	data := [2]struct{ effective, permitted, inheritable uint32 }{{mask, mask, 0}}
	_, _, errno := syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	return orNil(errno)
}

func socket(domain, kind, protocol int) error {
	fd, err := syscall.Socket(domain, kind, protocol)
	if err == nil {
		syscall.Close(fd)
	}
	return err
}

func orNil(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// fork makes processes until it may not. They are copies that do nothing, and end with this one.
func fork() {
	const enough = 4000
	runtime.LockOSThread() // its end is theirs
	debug.SetGCPercent(-1) // the runtime cannot go on without the threads that it wants
	for n := 0; n < enough; n++ {
		pid, _, errno := syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			try("fork", fmt.Errorf("%w after %d", errno, n))
			return
		}
		if pid == 0 {
			syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_PDEATHSIG, uintptr(syscall.SIGKILL), 0)
			for {
				syscall.RawSyscall6(syscall.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
			}
		}
	}
	try(fmt.Sprintf("fork %d times", enough), nil)
}

// memory uses memory until it is killed.
func memory() {
	const enough = 1 << 30
	debug.SetGCPercent(-1)
	page := os.Getpagesize()
	for n := 0; n < enough; n += 1 << 20 {
		b := make([]byte, 1<<20)
		for i := 0; i < len(b); i += page {
			b[i] = 1
		}
		kept = append(kept, b)
	}
	try(fmt.Sprintf("use %d MiB", enough>>20), nil)
}

var kept [][]byte

func listen(address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	serve(l)
}

func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1)
			if n, _ := c.Read(b); n > 0 {
				_, _ = c.Write(b)
			}
		}()
	}
}

// daemon is a service that leaves a process behind which does not want to end.
func daemon() {
	if len(os.Args) > 2 {
		signal.Ignore(syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
		listen(":8081")
	}
	self, err := os.Executable()
	if err == nil {
		cmd := exec.Command(self, "daemon", "child")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	go listen(":8080")
	<-stop
}

// outside answers on a TCP and a UDP port, and on an abstract socket. It writes where to a file.
func outside(file string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	address := tcp.Addr().String()
	udp, err := net.ListenPacket("udp", address)
	fail(err)
	socket := "@escapes-" + strconv.Itoa(os.Getpid())
	unix, err := net.Listen("unix", socket)
	fail(err)
	go serve(tcp)
	go serve(unix)
	fail(os.WriteFile(file, []byte(address+" "+socket+"\n"), 0o644))
	b := make([]byte, 1)
	for {
		n, from, err := udp.ReadFrom(b)
		fail(err)
		_, _ = udp.WriteTo(b[:n], from)
	}
}
