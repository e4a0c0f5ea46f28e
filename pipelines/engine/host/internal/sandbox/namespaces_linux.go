package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// What every container gets, the same with all kinds of isolation.
const (
	hostname = "slipway"
	tmpfsTmp = "mode=1777,size=64m"
	tmpfsDev = "mode=755,size=64k"
)

// devices are those of the machine that a container has.
var devices = []string{"null", "zero", "full", "random", "urandom"}

// devLinks are symbolic links in /dev.
var devLinks = [][2]string{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
}

// Parts of /proc that tell about the machine or change it, as container engines hide them.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// initMessage is what the container's first process tells the helper: that it is ready, or what failed.
type initMessage struct {
	Error *remoteError
}

// startNamespaces starts the program anew as the first process of a container. It makes the container
// from inside and waits for leave to execute the entrypoint.
func startNamespaces(o *order, output *os.File) (*container, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, &setupError{err}
	}
	defer null.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &setupError{err}
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{initName}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{null.Fd(), output.Fd(), output.Fd(), uintptr(pair[1])},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			Setsid:     true,
		},
	})
	unix.Close(pair[1])
	if err != nil {
		unix.Close(pair[0])
		return nil, &setupError{fmt.Errorf("new namespaces: %w", err)}
	}
	sync := os.NewFile(uintptr(pair[0]), "sync")
	if err := json.NewEncoder(sync).Encode(o); err != nil {
		return nil, &setupError{err}
	}
	messages := json.NewDecoder(sync)
	var ready initMessage
	if err := messages.Decode(&ready); err != nil {
		return nil, &setupError{fmt.Errorf("the container's first process ended unexpectedly: %w", err)}
	}
	if ready.Error != nil {
		return nil, &setupError{ready.Error}
	}
	return &container{pid: pid, before: residentPeak(pid), execute: func() error {
		defer sync.Close()
		if _, err := sync.Write([]byte("\n")); err != nil {
			return err
		}
		// Executing the entrypoint closes the other end, and so would an unexpected death, which leaves the
		// name as it was.
		var failed initMessage
		switch err := messages.Decode(&failed); {
		case err == nil:
			return failed.Error
		case err != io.EOF:
			return err
		case statusField(strconv.Itoa(pid), "Name") == waitingName:
			return errors.New("the container's first process ended before it executed the entrypoint")
		}
		return nil
	}}, nil
}

// waitingName is the name of the container's first process before it executes the entrypoint.
const waitingName = "slipway-waiting"

func setThreadName(name string) {
	b := append([]byte(name), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b[0])), 0, 0, 0)
}

// containerMain is the first process of a container until it becomes the entrypoint.
func containerMain() {
	runtime.LockOSThread() // what follows is the state of this thread, which then executes the entrypoint
	debug.SetGCPercent(-1) // there is little garbage, and the fewer threads the better
	setThreadName(waitingName)
	closeOnExec()
	sync := os.NewFile(3, "sync")
	line := bufio.NewReader(sync)
	tell := func(m initMessage) {
		if json.NewEncoder(sync).Encode(m) != nil {
			syscall.Exit(1)
		}
	}
	var o order
	text, err := line.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err == nil {
		err = enter(&o)
	}
	if err != nil {
		tell(initMessage{Error: toRemote(err)})
		return
	}
	tell(initMessage{})
	if _, err := line.ReadByte(); err != nil {
		return // the helper is gone
	}
	// Not before, because they would apply to this program's own runtime.
	for _, r := range o.Limits.rlimits(o.Userns) {
		if err := unix.Setrlimit(r.Resource, &unix.Rlimit{Cur: r.Value, Max: r.Value}); err != nil {
			tell(initMessage{Error: toRemote(fmt.Errorf("%s: %w", r.Name, err))})
			return
		}
	}
	err = syscall.Exec(o.Path, o.Args, o.Env)
	tell(initMessage{Error: toRemote(fmt.Errorf("cannot execute %s: %w", o.Args[0], err))})
}

// enter makes the container around the calling process, and gives up every privilege.
func enter(o *order) error {
	var cgroups []*os.File
	for _, dir := range o.Limits.Dirs {
		// Version 1 lets a thread join alone, which is 10 ms faster; executing the entrypoint ends the others.
		f, err := os.OpenFile(filepath.Join(dir, "tasks"), os.O_WRONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			f, err = os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
		}
		if err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
		defer f.Close()
		cgroups = append(cgroups, f)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := makeRoot(o); err != nil {
		return err
	}
	if err := os.Chdir(o.Cwd); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	// The output is a pipe of the caller. Its user may open it again as /dev/stdout.
	for fd := 1; fd <= 2; fd++ {
		if err := unix.Fchown(fd, o.User.UID, o.User.GID); err != nil && !o.Userns {
			return fmt.Errorf("output: %w", err)
		}
	}
	// Late, so that as little of this process as possible counts.
	for _, f := range cgroups {
		if _, err := f.WriteString("0"); err != nil {
			return fmt.Errorf("cgroup: %w", err)
		}
	}
	if err := dropPrivileges(o); err != nil {
		return err
	}
	unix.Umask(0o022)
	return nil
}

// makeRoot mounts what the container sees and makes it the root.
func makeRoot(o *order) error {
	const safe = unix.MS_NOSUID | unix.MS_NODEV
	mount := func(source, target, fstype string, flags uintptr, data string) error {
		if err := unix.Mount(source, target, fstype, flags, data); err != nil {
			return fmt.Errorf("mount %s %s: %w", fstype, target, err)
		}
		return nil
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount(o.Root, o.Root, "", unix.MS_BIND, ""); err != nil {
		return err
	}

	dev := filepath.Join(o.Root, "dev")
	if err := mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, tmpfsDev); err != nil {
		return err
	}
	for _, name := range devices {
		node := filepath.Join(dev, name)
		if err := os.WriteFile(node, nil, 0o666); err != nil {
			return err
		}
		if err := mount("/dev/"+name, node, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	for _, l := range devLinks {
		if err := os.Symlink(l[1], filepath.Join(dev, l[0])); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dev, "shm"), 0o755); err != nil {
		return err
	}
	if err := mount("tmpfs", filepath.Join(dev, "shm"), "tmpfs", safe|unix.MS_NOEXEC, tmpfsTmp); err != nil {
		return err
	}
	if err := remount(dev); err != nil {
		return err
	}
	// While the machine's own /proc is still in sight: without it, a user namespace may not mount one.
	if err := mount("proc", filepath.Join(o.Root, "proc"), "proc", safe|unix.MS_NOEXEC, ""); err != nil {
		return err
	}

	// The old root ends up on top of the new one, from where it is taken away.
	if err := os.Chdir(o.Root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}

	if err := mount("tmpfs", o.Tmp, "tmpfs", safe, tmpfsTmp); err != nil {
		return err
	}
	for _, v := range o.Volumes {
		if err := mount("tmpfs", v.Path, "tmpfs", safe, v.options(o.Userns)); err != nil {
			return err
		}
	}
	for _, name := range maskedPaths {
		fi, err := os.Stat(name)
		if err != nil {
			continue
		}
		if fi.IsDir() {
			err = mount("tmpfs", name, "tmpfs", unix.MS_RDONLY, "size=0,nr_inodes=1")
		} else {
			err = mount("/dev/null", name, "", unix.MS_BIND, "")
		}
		if err != nil {
			return err
		}
	}
	for _, name := range readonlyPaths {
		if _, err := os.Stat(name); err != nil {
			continue
		}
		if err := mount(name, name, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
		if err := remount(name); err != nil {
			return err
		}
	}
	return remount("/")
}

// remount makes a mount read-only. In a user namespace its other flags must stay as they are.
func remount(name string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return fmt.Errorf("make %s read-only: %w", name, err)
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY)
	for have, flag := range map[int64]uintptr{
		unix.ST_NOSUID: unix.MS_NOSUID, unix.ST_NODEV: unix.MS_NODEV, unix.ST_NOEXEC: unix.MS_NOEXEC,
	} {
		if int64(st.Flags)&have != 0 {
			flags |= flag
		}
	}
	if err := unix.Mount("", name, "", flags, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", name, err)
	}
	return nil
}

// dropPrivileges makes the calling thread the image's user, without any capability, for good, or until it
// executes a file that gives an allowed one.
func dropPrivileges(o *order) error {
	allowed, err := engine.CapabilityMask(o.Capabilities)
	if err != nil {
		return err
	}
	for c := uintptr(0); ; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			break // the kernel has no more of them
		}
		if allowed>>c&1 == 1 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	if err := denyUserNamespaces(); err != nil {
		return err
	}
	if !o.Userns { // there, the caller is that user already, and groups cannot be set
		if err := unix.Setgroups(o.User.Groups); err != nil {
			return fmt.Errorf("set groups: %w", err)
		}
	}
	// The standard library changes all threads of a program, unlike everything else here. That is fine.
	if err := syscall.Setresgid(o.User.GID, o.User.GID, o.User.GID); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	if err := syscall.Setresuid(o.User.UID, o.User.UID, o.User.UID); err != nil {
		return fmt.Errorf("set user: %w", err)
	}
	none := [2]unix.CapUserData{}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if allowed != 0 {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no-new-privileges: %w", err)
	}
	return nil
}
