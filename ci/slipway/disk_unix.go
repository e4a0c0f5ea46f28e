//go:build unix

package main

import "golang.org/x/sys/unix"

// freeSpace is how many bytes a user may still write where dir is; ok is false if that is not known.
func freeSpace(dir string) (free int64, ok bool) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true
}
