package host

import (
	"io/fs"
	"os/exec"
	"strconv"
	"syscall"
)

// ownGroup lets cancelling end a command with everything that it started.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
	cmd.Cancel = func() error {
		return exec.Command("taskkill", "/T", "/F", "/PID", strconv.Itoa(cmd.Process.Pid)).Run()
	}
}

// killGroup has nothing to do: Windows keeps no group of a process that has ended.
func killGroup(*exec.Cmd) {}

func exitCode(x *exec.ExitError) int { return x.ExitCode() }

// owned is always true: a user's temporary directory is the user's alone.
func owned(fs.FileInfo) bool { return true }
