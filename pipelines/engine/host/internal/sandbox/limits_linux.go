package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// limits are what a container may use, and how that is enforced: by a cgroup where one can be made, else
// by resource limits of its processes.
type limits struct {
	// Memory and Processes are what the caller asked for; 0 is no limit.
	Memory    int64
	Processes int
	// Cgroup is the name of the container's cgroup, a directory in the caller's own cgroups. It is empty
	// when there can be none, and Why says why.
	Cgroup string
	Why    string
	// Dirs are the directories of that cgroup, if it was made by makeCgroup.
	Dirs []string
}

// Allowances for the resource limits that stand in for a cgroup. They exist because those limits count
// something else than a cgroup does, and must not stop a program that a cgroup would let run.
const (
	// RLIMIT_DATA counts what is reserved, not what is used. That is 74 MiB when a small Go program starts.
	dataAllowance = 128 << 20
	// RLIMIT_NPROC counts the threads of the sandbox's helper in a user namespace, where it has the same user.
	processAllowance = 32
)

// rlimit is a resource limit of a process.
type rlimit struct {
	Resource int
	Name     string // as in the OCI runtime specification
	Value    uint64
}

// rlimits returns the resource limits that stand in for a cgroup. userns says that the container has a
// user namespace of its own.
func (l limits) rlimits(userns bool) []rlimit {
	var r []rlimit
	if l.Cgroup != "" {
		return nil
	}
	if l.Memory > 0 {
		r = append(r, rlimit{unix.RLIMIT_DATA, "RLIMIT_DATA", uint64(l.Memory) + dataAllowance})
	}
	if l.Processes > 0 && countsProcesses(userns) {
		n := uint64(l.Processes)
		if userns {
			n += processAllowance
		}
		r = append(r, rlimit{unix.RLIMIT_NPROC, "RLIMIT_NPROC", n})
	}
	return r
}

// countsProcesses tells whether RLIMIT_NPROC can be used: before Linux 5.14 it counts all processes that
// the caller has on the machine, also when they are outside the container's user namespace.
func countsProcesses(userns bool) bool {
	if !userns {
		return true // the image's own user, who has few other processes
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 5 || major == 5 && minor >= 14
}

// hierarchy is a mounted cgroup hierarchy and the place of this process in it.
type hierarchy struct {
	// controllers are the controllers of a version 1 hierarchy, such as "memory". Version 2 has none here.
	controllers []string
	v2          bool
	// mount is where the hierarchy is mounted, root the cgroup that is mounted there, own ours.
	mount, root, own string
}

// dir returns the directory of a cgroup of the hierarchy.
func (h hierarchy) dir(cgroup string) string {
	if rel, ok := strings.CutPrefix(cgroup, strings.TrimSuffix(h.root, "/")+"/"); ok {
		cgroup = rel
	} else if cgroup == h.root {
		cgroup = ""
	}
	return filepath.Join(h.mount, cgroup)
}

// hierarchies returns the mounted cgroup hierarchies as a process sees them: "self" or its id.
func hierarchies(pid string) []hierarchy {
	cgroups, _ := os.ReadFile("/proc/" + pid + "/cgroup")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	var hs []hierarchy
	for line := range strings.Lines(string(mounts)) {
		// 36 35 0:31 /root /mount rw,nosuid - cgroup source rw,memory
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		a, b := strings.Fields(before), strings.Fields(after)
		if !ok || len(a) < 6 || len(b) < 3 || b[0] != "cgroup" && b[0] != "cgroup2" {
			continue
		}
		h := hierarchy{v2: b[0] == "cgroup2", root: a[3], mount: unescapeMount(a[4])}
		options := strings.Split(b[2], ",")
		for line := range strings.Lines(string(cgroups)) {
			// 4:memory:/path, 9:name=systemd:/path, 0::/path
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) != 3 {
				continue
			}
			if h.v2 && f[0] == "0" && f[1] == "" {
				h.own = f[2]
			}
			if c := strings.Split(f[1], ","); !h.v2 && f[1] != "" && slices.Contains(options, c[0]) {
				h.own, h.controllers = f[2], c
			}
		}
		if h.own != "" {
			hs = append(hs, h)
		}
	}
	return hs
}

// unescapeMount undoes the kernel's octal escapes in a path of a mount table.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// makeCgroup makes a cgroup of the given name with the limits in it.
func makeCgroup(name string, l *limits) error {
	need := map[string]bool{"memory": l.Memory > 0, "pids": l.Processes > 0}
	set := func(dir string, files map[string]int64) error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("%s: %w", filepath.Dir(dir), cause(err)) // without the name, which is random
		}
		l.Dirs = append(l.Dirs, dir)
		for file, value := range files {
			if err := os.WriteFile(filepath.Join(dir, file), strconv.AppendInt(nil, value, 10), 0); err != nil {
				return fmt.Errorf("%s: %w", file, cause(err))
			}
		}
		return nil
	}
	for _, h := range hierarchies("self") {
		switch {
		case h.v2:
			// Where this process is, no child can have limits; next to it, one can.
			dir := filepath.Dir(h.dir(h.own))
			if h.own == "/" {
				dir = h.dir("/")
			}
			enabled, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
			files := map[string]int64{}
			for _, c := range strings.Fields(string(enabled)) {
				switch {
				case c == "memory" && need[c]:
					files["memory.max"] = l.Memory
				case c == "pids" && need[c]:
					files["pids.max"] = int64(l.Processes)
				default:
					continue
				}
				need[c] = false
			}
			if len(files) == 0 {
				continue
			}
			if err := set(filepath.Join(dir, name), files); err != nil {
				return err
			}
			if _, ok := files["memory.max"]; ok {
				_ = os.WriteFile(filepath.Join(dir, name, "memory.swap.max"), []byte("0"), 0) // absent without swap
			}
		case slices.Contains(h.controllers, "memory") && need["memory"]:
			need["memory"] = false
			dir := filepath.Join(h.dir(h.own), name)
			if err := set(dir, map[string]int64{"memory.limit_in_bytes": l.Memory}); err != nil {
				return err
			}
			_ = os.WriteFile(filepath.Join(dir, "memory.memsw.limit_in_bytes"), strconv.AppendInt(nil, l.Memory, 10), 0)
		case slices.Contains(h.controllers, "pids") && need["pids"]:
			need["pids"] = false
			if err := set(filepath.Join(h.dir(h.own), name), map[string]int64{"pids.max": int64(l.Processes)}); err != nil {
				return err
			}
		}
	}
	for _, c := range []string{"memory", "pids"} {
		if need[c] {
			return fmt.Errorf("no cgroup hierarchy with the %s controller", c)
		}
	}
	l.Cgroup = name
	return nil
}

// cause returns what is behind an error that names a file.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return e.Err
	}
	return err
}

// removeCgroup removes the cgroups of the given name, wherever makeCgroup, runc or crun may have made
// them: in our own cgroup, beside it, or at the top. The name is unique.
func removeCgroup(name string) error {
	if name == "" {
		return nil
	}
	var errs []error
	for _, h := range hierarchies("self") {
		for _, parent := range []string{h.own, path.Dir(h.own), "/", h.root} {
			errs = append(errs, removeCgroupDir(filepath.Join(h.dir(parent), name)))
		}
	}
	return errors.Join(errs...)
}

// removeCgroupDir removes one directory. The kernel lets go of a cgroup a moment after it has reaped its
// last process, without telling.
func removeCgroupDir(dir string) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := os.Remove(dir)
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
			return nil
		case !errors.Is(err, unix.EBUSY) || wait > 2*time.Second:
			return err
		}
		time.Sleep(wait)
	}
}

// cgroupLimits returns whether cgroups limit the memory and the processes of a process as was asked for.
func cgroupLimits(pid string, l limits) (memory, processes bool) {
	within := func(name string, limit int64) bool {
		b, err := os.ReadFile(name)
		n, perr := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		return limit > 0 && err == nil && perr == nil && n <= limit // the kernel rounds down to pages
	}
	for _, h := range hierarchies(pid) {
		dir := h.dir(h.own)
		memory = memory || within(filepath.Join(dir, "memory.max"), l.Memory) || within(filepath.Join(dir, "memory.limit_in_bytes"), l.Memory)
		processes = processes || within(filepath.Join(dir, "pids.max"), int64(l.Processes))
	}
	return memory, processes
}

// procLimit returns a soft limit of a process by its name in /proc/<pid>/limits. It is 0 when there is none.
func procLimit(pid, name string) uint64 {
	table, _ := os.ReadFile("/proc/" + pid + "/limits")
	for line := range strings.Lines(string(table)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				n, _ := strconv.ParseUint(f[0], 10, 64)
				return n
			}
		}
	}
	return 0
}
