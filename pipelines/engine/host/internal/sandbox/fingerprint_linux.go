package sandbox

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Fingerprint tells what the outcome of a start depends on beside the image: kernel, user, programs, emulators.
func Fingerprint() string {
	var b strings.Builder
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		fmt.Fprintf(&b, "%s %s ", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]))
	}
	fmt.Fprintf(&b, "%d", os.Geteuid())
	files, _ := filepath.Glob("/proc/sys/fs/binfmt_misc/*")
	for _, name := range []string{kindRunc, kindCrun} {
		if program, err := exec.LookPath(name); err == nil {
			files = append(files, program)
		}
	}
	for _, name := range files {
		if i, err := os.Stat(name); err == nil {
			fmt.Fprintf(&b, " %q %d %d", name, i.Size(), i.ModTime().UnixNano())
		}
	}
	return b.String()
}
