package sandbox

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// checkCapabilities tells whether the process, and what it executes, can have the allowed capabilities and no
// others.
func (s *observed) checkCapabilities(pid string, o *order) {
	allowed, _ := engine.CapabilityMask(o.Capabilities) // was checked
	sets := map[string]string{}
	exact := true
	for _, name := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		sets[name] = statusField(pid, name)
		want := uint64(0)
		if name == "CapBnd" {
			want = allowed
		}
		set, err := strconv.ParseUint(sets[name], 16, 64)
		exact = exact && err == nil && set == want
	}
	s.check("capabilities", exact, "the process has %v", sets)
	if allowed == 0 {
		s.check("no-new-privileges", statusField(pid, "NoNewPrivs") == "1", "not set")
		return
	}
	s.check("no-new-privileges", false, "the image's files may give %s, and setuid files their owner", strings.Join(o.Capabilities, ", "))
	const word = "file capabilities"
	if mountOptions(pid, "/")["nosuid"] {
		s.check(word, false, "the directory for temporary files is on a file system that gives no privileges (nosuid); set TMPDIR to another")
	}
	for _, name := range slices.Sorted(maps.Keys(o.FileCapabilities)) {
		if _, err := unix.Lgetxattr(filepath.Join(o.Root, name), xattrCapability, nil); err != nil {
			s.check(word, false, "/%s has none: %s", name, cmp.Or(o.Unset, err.Error()))
		}
	}
}

const xattrCapability = "security.capability"

// outerMain is the parent of a helper in a user namespace, itself in one where the caller is root. Only root
// of a user namespace can give capabilities to files without privileges outside, and the kernel heeds them
// in the namespaces below that. The image's user, another than root, cannot be had in the same one.
func outerMain() {
	runtime.LockOSThread() // the helper takes the death of this thread for that of the caller
	closeOnExec()
	fail := func(what string, err error) {
		fmt.Fprintln(os.Stderr, what+":", err)
		syscall.Exit(1)
	}
	var o order
	if err := json.NewDecoder(os.NewFile(fdOrder, "order")).Decode(&o); err != nil {
		fail("order", err)
	}
	for name, value := range o.FileCapabilities {
		if err := unix.Lsetxattr(filepath.Join(o.Root, name), xattrCapability, value, 0); err != nil {
			o.Unset = "they cannot be set in a user namespace: " + err.Error()
		}
	}
	orderR, orderW, err := os.Pipe()
	if err != nil {
		fail("order", err)
	}
	attr := helperAttr(&o)
	attr.Setsid = false // one kill is for both
	pid, err := syscall.ForkExec("/proc/self/exe", []string{shimName}, &syscall.ProcAttr{
		Env:   []string{},
		Files: []uintptr{0, 1, 2, fdControl, orderR.Fd(), fdOutput},
		Sys:   attr,
	})
	if err != nil {
		fail("new namespaces", err)
	}
	// The ends of these are the helper's to tell.
	for _, fd := range []int{fdControl, fdOutput, int(orderR.Fd())} {
		_ = unix.Close(fd)
	}
	if err := json.NewEncoder(orderW).Encode(o); err != nil {
		fail("order", err)
	}
	orderW.Close()
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &status, 0, nil); err != unix.EINTR {
			break
		}
	}
	if status.Signaled() {
		fail("helper", errors.New(status.Signal().String()))
	}
	syscall.Exit(status.ExitStatus())
}
