package main

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// interrupt is the program `interrupt WHEN PROGRAM ARG...`. It runs the program, sends it SIGINT, and ends with
// its exit code, or with 99 if processes that it has started are still there then. WHEN is a text that the
// program prints before, or the path of a named pipe into which somebody writes numbers of processes.
func interrupt() {
	starts, code, err := interruptWhen(os.Args[1], exec.Command(os.Args[2], os.Args[3:]...))
	if err == nil {
		err = waitGone(starts)
	}
	if err != nil {
		fmt.Println("interrupt:", err)
		code = 99
	}
	os.Exit(code)
}

func interruptWhen(when string, cmd *exec.Cmd) (starts map[string]string, code int, err error) {
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, 0, err
	}
	sign := make(chan string, 1)
	if filepath.IsAbs(when) {
		if err := unix.Mkfifo(when, 0o600); err != nil {
			return nil, 0, err
		}
		// Opened for both, it does not wait for the other side.
		pipe, err := os.OpenFile(when, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, 0, err
		}
		defer pipe.Close()
		go func() {
			if line, err := bufio.NewReader(pipe).ReadString('\n'); err == nil {
				sign <- line
			}
		}()
	}
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		said := false
		for lines := bufio.NewReader(stdout); ; {
			line, err := lines.ReadString('\n')
			_, _ = os.Stdout.WriteString(line)
			if !said && strings.Contains(line, when) {
				said = true
				sign <- ""
			}
			if err != nil {
				return
			}
		}
	}()
	select {
	case line := <-sign:
		starts = map[string]string{}
		for _, pid := range append(strings.Fields(line), descendants(cmd.Process.Pid)...) {
			starts[pid] = running(pid)
		}
	case <-ended:
		return nil, 0, fmt.Errorf("it ended by itself (%v)", cmd.Wait())
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		return nil, 0, err
	}
	<-ended
	if x, ok := errors.AsType[*exec.ExitError](cmd.Wait()); ok {
		code = x.ExitCode()
	}
	return starts, code, nil
}

// descendants are the processes that a process has started, and what those have started.
func descendants(pid int) []string {
	var all []string
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range lists {
		children, _ := os.ReadFile(name)
		for _, child := range strings.Fields(string(children)) {
			all = append(all, child)
			if n, err := strconv.Atoi(child); err == nil {
				all = append(all, descendants(n)...)
			}
		}
	}
	return all
}

// running tells when a process was started, in the kernel's own measure, and "" if it does not run. Numbers of
// processes are used again; with its start a process cannot be mistaken for another one.
func running(pid string) string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	_, rest, ok := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	// Nobody may collect one that has ended: what counts is that it does not run.
	if err != nil || !ok || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

// waitGone waits for the end of processes that were killed already, given with their starts.
func waitGone(starts map[string]string) error {
	if strings.Join(slices.Collect(maps.Values(starts)), "") == "" {
		return errors.New("no process to look for")
	}
	deadline := time.Now().Add(10 * time.Second)
	for pid, start := range starts {
		for start != "" && running(pid) == start {
			if time.Now().After(deadline) {
				if n, err := strconv.Atoi(pid); err == nil {
					_ = syscall.Kill(n, syscall.SIGKILL)
				}
				return fmt.Errorf("process %s still runs", pid)
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
	// Scripts run in a directory that is closed to others, and so is root's module cache. The source must lie
	// in a directory of its own, beside the one of nobody.
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
