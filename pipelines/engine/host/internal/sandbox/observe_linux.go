package sandbox

import (
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

// The words of engine.Isolation, in its order.
var holdsNames = []string{
	"user", "rootfs", "read-only", "pid", "mount", "ipc", "uts", "network", "capabilities", "no-new-privileges", "memory",
	"processes", "tmpfs",
}

// namespaceFiles are the files of /proc/<pid>/ns by those words.
var namespaceFiles = map[string]string{"pid": "pid", "mount": "mnt", "ipc": "ipc", "uts": "uts", "network": "net"}

// namespaces returns the namespaces of a process ("self" or its id).
func namespaces(pid string) map[string]string {
	ns := map[string]string{}
	for word, file := range namespaceFiles {
		ns[word], _ = os.Readlink("/proc/" + pid + "/ns/" + file)
	}
	return ns
}

// observed is what is in force and what is not, as in engine.Isolation.
type observed struct {
	holds, missing []string
}

func (s *observed) check(word string, ok bool, format string, args ...any) {
	if ok {
		s.holds = append(s.holds, word)
	} else {
		s.missing = append(s.missing, word+": "+fmt.Sprintf(format, args...))
	}
}

// observe tells how the container's first process is confined, when it is about to execute the
// entrypoint. It asks the kernel, and so takes the word of neither runc nor this package.
func observe(process int, o *order) *observed {
	s := &observed{}
	if o.Emulator != "" {
		s.check("processor", false, "%s takes the place of the one that the image is for", o.Emulator)
	}
	if o.Kind == kindProcess {
		for _, word := range holdsNames {
			s.check(word, false, "runs without isolation, as was asked for")
		}
		return s
	}
	pid := strconv.Itoa(process)
	uid, gid := strings.Fields(statusField(pid, "Uid")), strings.Fields(statusField(pid, "Gid"))
	s.check("user", all(uid, strconv.Itoa(o.User.UID)) && all(gid, strconv.Itoa(o.User.GID)),
		"the process has the user ids %v and group ids %v", uid, gid)
	if o.Userns {
		note := "user: a user namespace maps one id to the caller's, so all files seem to be owned by the image's user"
		if len(o.User.Groups) > 0 {
			note += fmt.Sprintf(", and the supplementary groups %v are not set", o.User.Groups)
		}
		s.missing = append(s.missing, note)
	}

	root, rootErr := os.Stat("/proc/" + pid + "/root")
	unpacked, err := os.Stat(o.Root)
	s.check("rootfs", rootErr == nil && err == nil && os.SameFile(root, unpacked), "the root is not the image's")
	options := mountOptions(pid, "/")
	s.check("read-only", options["ro"], "the root is mounted %v", slices.Sorted(maps.Keys(options)))

	inside := namespaces(pid)
	for _, word := range holdsNames {
		if _, ok := namespaceFiles[word]; ok {
			s.check(word, inside[word] != "" && inside[word] != o.Outside[word], "%s is also the caller's", inside[word])
		}
	}

	s.checkCapabilities(pid, o)

	options = mountOptions(pid, o.Tmp)
	if tmp, err := os.Stat("/proc/" + pid + "/root" + o.Tmp); err != nil || tmp.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		options["not for everyone"] = true
	}
	s.check("tmpfs", options["tmpfs"] && options["nosuid"] && options["nodev"] && !options["not for everyone"],
		"%s is mounted %v", o.Tmp, slices.Sorted(maps.Keys(options)))

	for _, v := range o.Volumes {
		if options := mountOptions(pid, v.Path); !options["tmpfs"] || !options["nosuid"] || !options["nodev"] {
			s.missing = append(s.missing, fmt.Sprintf("tmpfs: the volume %s is mounted %v", v.Path, slices.Sorted(maps.Keys(options))))
		}
	}

	memory, processes := cgroupLimits(pid, o.Limits)
	if memory {
		s.holds = append(s.holds, "memory")
	}
	if processes {
		s.holds = append(s.holds, "processes")
	}
	return s
}

// limits completes the list with what is set when the entrypoint is executed: the filter of system calls, and
// resource limits that stand in for those that cgroups do not enforce.
func (s *observed) limits(process int, o *order) {
	if o.Kind == kindProcess {
		return
	}
	if !o.Probe && statusField(strconv.Itoa(process), "Seccomp") != "2" {
		s.check("user namespaces", false, "the process may make its own and has all capabilities there, as system calls are not filtered")
	}
	l, why := o.Limits, cmp.Or(o.Limits.Why, "the cgroup does not limit it")
	limit := func(name, row string) uint64 {
		if !o.Probe {
			return procLimit(strconv.Itoa(process), row)
		}
		for _, r := range l.rlimits(o.Userns) {
			if r.Name == name {
				return r.Value // nothing will be executed
			}
		}
		return 0
	}
	if !slices.Contains(s.holds, "memory") {
		n := limit("RLIMIT_DATA", "Max data size")
		switch {
		case l.Memory <= 0:
			s.check("memory", false, "no limit was asked for")
		case n > 0 && n <= uint64(l.Memory)+dataAllowance:
			s.check("memory", true, "")
			s.check("memory", false, "limited for each process, not for all together: RLIMIT_DATA is %d MiB, %d MiB above the limit because "+
				"it counts what a Go program only reserves (%s)", n>>20, dataAllowance>>20, why)
		default:
			s.check("memory", false, "%s", why)
		}
	}
	if !slices.Contains(s.holds, "processes") {
		n := limit("RLIMIT_NPROC", "Max processes")
		switch {
		case l.Processes <= 0:
			s.check("processes", false, "no limit was asked for")
		case o.Userns && o.Caller == 0, !o.Userns && o.User.UID == 0:
			s.check("processes", false, "the kernel does not limit those of root without a cgroup (%s)", why)
		case !countsProcesses(o.Userns):
			s.check("processes", false, "before Linux 5.14 they are not counted for each user namespace (%s)", why)
		case n > 0 && n <= uint64(l.Processes)+processAllowance:
			s.check("processes", true, "")
			note := ""
			if o.Userns {
				note = fmt.Sprintf(", %d above the limit because slipway's helper counts, too", processAllowance)
			}
			s.check("processes", false, "limited for the user, not for the container: RLIMIT_NPROC is %d%s (%s)", n, note, why)
		default:
			s.check("processes", false, "%s", why)
		}
	}
	order := func(a, b string) int {
		word := func(s string) int {
			w, _, _ := strings.Cut(s, ":")
			return slices.Index(holdsNames, w)
		}
		return word(a) - word(b)
	}
	slices.SortStableFunc(s.holds, order)
	slices.SortStableFunc(s.missing, order)
}

// mountOptions returns the type and the options of what a process sees mounted at a path.
func mountOptions(pid, name string) map[string]bool {
	options := map[string]bool{}
	mounts, _ := os.ReadFile("/proc/" + pid + "/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		a, b := strings.Fields(before), strings.Fields(after)
		if len(a) < 6 || len(b) < 1 || unescapeMount(a[4]) != name {
			continue
		}
		clear(options) // mounted over the one before
		for _, opt := range append(strings.Split(a[5], ","), b[0]) {
			options[opt] = true
		}
	}
	return options
}

func all(list []string, want string) bool {
	for _, s := range list {
		if s != want {
			return false
		}
	}
	return len(list) > 0
}
