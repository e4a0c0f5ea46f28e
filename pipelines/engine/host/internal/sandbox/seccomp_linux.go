package sandbox

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// In a user namespace of its own, any process may mount cgroups. One that is root on the machine, though
// without privileges, owns the files there, could change its own limits, and leave cgroups behind. So no
// container may make a user namespace. The defaults of container engines say the same.

// calls are the system calls that make namespaces, of one of the architectures that a machine executes.
type calls struct {
	audit                  uint32
	clone, clone3, unshare uint32
	name                   string // as in the OCI runtime specification
}

// callsOf are those by Go's name of the machine's architecture.
var callsOf = map[string][]calls{
	"amd64": {
		{unix.AUDIT_ARCH_X86_64, 56, 435, 272, "SCMP_ARCH_X86_64"},
		{unix.AUDIT_ARCH_I386, 120, 435, 310, "SCMP_ARCH_X86"},
	},
	"arm64": {
		{unix.AUDIT_ARCH_AARCH64, 220, 435, 97, "SCMP_ARCH_AARCH64"},
		{unix.AUDIT_ARCH_ARM, 120, 435, 337, "SCMP_ARCH_ARM"},
	},
}

// denyUserNamespaces keeps the calling thread and what it executes from making user namespaces. It must still
// have its privileges.
func denyUserNamespaces() error {
	const (
		offsetNumber, offsetArch, offsetFlags = 0, 4, 16
		x32                                   = 0x40000000 // of the number
	)
	do := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	load := func(offset uint32) unix.SockFilter { return do(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset) }
	// unless skips what follows, so many steps, if the value is another.
	unless := func(k uint32, steps uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: steps, K: k}
	}
	fail := func(errno syscall.Errno) unix.SockFilter {
		return do(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(errno))
	}
	allow := do(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW)
	var program []unix.SockFilter
	for _, c := range callsOf[runtime.GOARCH] {
		program = append(program,
			load(offsetArch), unless(c.audit, 10),
			load(offsetNumber), do(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, ^uint32(x32)),
			unless(c.clone3, 1), fail(unix.ENOSYS), // its flags are out of sight; libraries take clone then
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: c.clone}, unless(c.unshare, 3),
			load(offsetFlags), unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.CLONE_NEWUSER},
			fail(unix.EPERM), allow,
		)
	}
	if program == nil {
		return nil // observe says so
	}
	program = append(program, allow)
	list := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&list)), 0, 0)
	if err != nil && !errors.Is(err, unix.EINVAL) { // the kernel has no filters
		return fmt.Errorf("deny user namespaces: %w", err)
	}
	return nil
}

// runtimeSeccomp is the same for runc and crun.
func runtimeSeccomp() *runtimeFilter {
	const denied = "SCMP_ACT_ERRNO"
	f := &runtimeFilter{DefaultAction: "SCMP_ACT_ALLOW", Syscalls: []runtimeSyscalls{
		{Names: []string{"clone3"}, Action: denied, Errno: uint(unix.ENOSYS)},
		{Names: []string{"clone", "unshare"}, Action: denied, Errno: uint(unix.EPERM), Args: []runtimeArg{
			{Index: 0, Value: unix.CLONE_NEWUSER, Mask: unix.CLONE_NEWUSER, Op: "SCMP_CMP_MASKED_EQ"},
		}},
	}}
	for _, c := range callsOf[runtime.GOARCH] {
		f.Architectures = append(f.Architectures, c.name)
	}
	if f.Architectures == nil {
		return nil
	}
	return f
}
