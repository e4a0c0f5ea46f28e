package sandbox

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// sigaction is the kernel's struct of that name, with room for the fields that some architectures have
// more of.
type sigaction struct {
	handler uintptr
	rest    [4]uint64
}

// resetSignals lets every signal that this process ignores do what it does by default. Ignored signals are
// inherited, and who started slipway ignored some: nohup and background jobs of a shell do, and what make
// starts ignores one of the C library's. No image that an engine starts in production sees these.
func resetSignals() {
	const ignored = 1 // SIG_IGN
	const size = 8    // of the kernel's signal set, in bytes, but for MIPS, where nothing is reset
	for n := 1; n <= 64; n++ {
		var old, def sigaction
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), 0, uintptr(unsafe.Pointer(&old)), size, 0, 0)
		if errno == 0 && old.handler == ignored {
			_, _, _ = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n), uintptr(unsafe.Pointer(&def)), 0, size, 0, 0)
		}
	}
}
