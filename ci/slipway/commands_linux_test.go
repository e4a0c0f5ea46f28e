package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// canMount tells whether this process may mount file systems: root outside of most containers may.
var canMount = sync.OnceValue(func() bool {
	dir, err := os.MkdirTemp("", "slipway-mount-")
	if err != nil {
		return false
	}
	defer os.RemoveAll(dir)
	if unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k") != nil {
		return false
	}
	return unix.Unmount(dir, unix.MNT_DETACH) == nil
})

func disk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: disk SIZE PATH")
	}
	dir := ts.MkAbs(args[1])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size="+args[0]))
	ts.Defer(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// interrupt is the program `interrupt FIFO PROGRAM ARG...`. It runs the program until somebody writes numbers
// of processes into the named pipe FIFO, sends it SIGINT, and ends with its exit code, or with 99 if the
// processes are still there then.
func interrupt() {
	pids, code, err := interruptAfter(os.Args[1], os.Args[2:])
	if err == nil {
		err = waitGone(pids)
	}
	if err != nil {
		fmt.Println("interrupt:", err)
		code = 99
	}
	os.Exit(code)
}

func interruptAfter(fifo string, args []string) (pids []string, code int, err error) {
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		return nil, 0, err
	}
	// Opened for both, it does not wait for the other side.
	f, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		_ = f.SetReadDeadline(time.Now())
	}()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return nil, 0, fmt.Errorf("nothing came: %w, and the program: %v", err, <-ended)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		return nil, 0, err
	}
	if x, ok := errors.AsType[*exec.ExitError](<-ended); ok {
		code = x.ExitCode()
	}
	return strings.Fields(line), code, nil
}

// waitGone waits for the end of processes that were killed already.
func waitGone(pids []string) error {
	if len(pids) == 0 {
		return errors.New("no process to look for")
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, pid := range pids {
		for {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			if err != nil || strings.Contains(string(stat), ") Z ") {
				break // nobody may collect it: what counts is that it does not run
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("process %s still runs: %s", pid, stat)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// nobody is the program `nobody ARG...`: slipway as a user without rights. For root, no file is unreadable and
// no directory read-only. Anybody else just is himself.
func nobody() {
	const stage, id = "SLIPWAY_TEST_NOBODY", 65534
	if os.Getuid() != 0 {
		main()
	}
	if os.Getenv(stage) == "" {
		// In a mount namespace of its own, so that nothing of it stays.
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Args[0] = os.Args[0]
		cmd.Env = append(os.Environ(), stage+"=1")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		err := cmd.Run()
		if x, ok := errors.AsType[*exec.ExitError](err); ok {
			os.Exit(x.ExitCode())
		}
		exitOn(err)
		return
	}
	// Scripts run in a directory that is closed to others, and so is root's module cache.
	work := os.Getenv("WORK")
	exitOn(os.Chmod(filepath.Dir(work), 0o755))
	own := filepath.Join(work, ".nobody")
	modules := filepath.Join(own, "mod")
	exitOn(os.MkdirAll(modules, 0o755))
	exitOn(unix.Mount(os.Getenv("GOMODCACHE"), modules, "", unix.MS_BIND, ""))
	exitOn(unix.Mount("", modules, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	exitOn(os.Setenv("GOMODCACHE", modules))
	for variable, dir := range map[string]string{"HOME": "home", "TMPDIR": "tmp", "GOCACHE": "build", "SLIPWAY_CACHE": "slipway"} {
		dir = filepath.Join(own, dir)
		exitOn(os.MkdirAll(dir, 0o755))
		exitOn(os.Chown(dir, id, id))
		exitOn(os.Setenv(variable, dir))
	}
	exitOn(syscall.Setgroups(nil))
	exitOn(syscall.Setgid(id))
	exitOn(syscall.Setuid(id))
	main()
}

func exitOn(err error) {
	if err != nil {
		fmt.Println("nobody: " + strconv.Quote(err.Error()))
		os.Exit(98)
	}
}
