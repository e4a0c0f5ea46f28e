package sandbox

import (
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// leftover returns the names of the processes that the container has besides its first, of those given.
func (s *shim) leftover(pids []int) []string {
	var names []string
	for _, pid := range pids {
		id := strconv.Itoa(pid)
		// One that has ended is nobody's but its parent's, and one that is gone has no state.
		if state := statusField(id, "State"); pid != s.pid && state != "" && state[0] != 'Z' && state[0] != 'X' {
			names = append(names, statusField(id, "Name"))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// inside returns the processes in the container's pid namespace, as the helper, outside of it, sees them.
func inside() []int {
	var pids []int
	for _, pid := range descendants() {
		if ids := strings.Fields(statusField(strconv.Itoa(pid), "NSpid")); len(ids) > 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// maxWritten is how many files engine.Exit names.
const maxWritten = 20

// files are what a root file system holds, by path in the image. Every write and every other change of a file
// gives it another state, as nothing can set the time of a change.
type files map[string]fileState

type fileState struct {
	inode          uint64
	mode           uint32
	size           int64
	modified, then syscall.Timespec
}

// list returns the files below a root, but for /tmp.
func list(root string) files {
	l := files{}
	_ = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		rel := strings.TrimPrefix(name, root)
		switch {
		case err != nil || rel == "":
			return nil // what is closed to the caller is closed to the process, which has the same user
		case rel == "/tmp":
			return filepath.SkipDir
		case d.IsDir():
			l[rel] = fileState{} // what is made in it tells on its own
			return nil
		}
		if fi, err := d.Info(); err == nil {
			st := fi.Sys().(*syscall.Stat_t)
			l[rel] = fileState{st.Ino, st.Mode, st.Size, st.Mtim, st.Ctim}
		}
		return nil
	})
	return l
}

// written returns what is not as it was: the files that are new, changed or gone.
func (l files) written(now files) []string {
	var names []string
	for name, state := range now {
		if was, ok := l[name]; !ok || was != state {
			names = append(names, name)
		}
	}
	for name := range l {
		if _, ok := now[name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), maxWritten)]
}
