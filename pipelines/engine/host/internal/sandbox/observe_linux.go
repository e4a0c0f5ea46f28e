package sandbox

import (
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

// observe tells how the container's first process is confined, when it is about to execute the
// entrypoint. It asks the kernel, and so takes the word of neither runc nor this package.
func observe(process int, o *order) (holds, missing []string) {
	if o.Kind == kindProcess {
		for _, word := range holdsNames {
			missing = append(missing, word+": runs without isolation, as was asked for")
		}
		return nil, missing
	}
	pid := strconv.Itoa(process)
	check := func(word string, ok bool, format string, args ...any) {
		if ok {
			holds = append(holds, word)
		} else {
			missing = append(missing, word+": "+fmt.Sprintf(format, args...))
		}
	}

	uid, gid := strings.Fields(statusField(pid, "Uid")), strings.Fields(statusField(pid, "Gid"))
	check("user", all(uid, strconv.Itoa(o.User.UID)) && all(gid, strconv.Itoa(o.User.GID)),
		"the process has the user ids %v and group ids %v", uid, gid)
	if o.Userns {
		note := "user: a user namespace maps one id to the caller's, so all files seem to be owned by the image's user"
		if len(o.User.Groups) > 0 {
			note += fmt.Sprintf(", and the supplementary groups %v are not set", o.User.Groups)
		}
		missing = append(missing, note)
	}

	root, rootErr := os.Stat("/proc/" + pid + "/root")
	unpacked, err := os.Stat(o.Root)
	check("rootfs", rootErr == nil && err == nil && os.SameFile(root, unpacked), "the root is not the image's")
	options := mountOptions(pid, "/")
	check("read-only", options["ro"], "the root is mounted %v", slices.Sorted(maps.Keys(options)))

	inside := namespaces(pid)
	for _, word := range holdsNames {
		if _, ok := namespaceFiles[word]; ok {
			check(word, inside[word] != "" && inside[word] != o.Outside[word], "%s is also the caller's", inside[word])
		}
	}

	caps := map[string]string{}
	none := true
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		caps[set] = statusField(pid, set)
		none = none && caps[set] != "" && strings.Trim(caps[set], "0") == ""
	}
	check("capabilities", none, "the process has %v", caps)
	check("no-new-privileges", statusField(pid, "NoNewPrivs") == "1", "not set")

	h, m := limitsInForce(pid, o.Limits, o.Userns, o.Userns && o.Caller == 0 || !o.Userns && o.User.UID == 0)
	holds, missing = append(holds, h...), append(missing, m...)

	options = mountOptions(pid, o.Tmp)
	if tmp, err := os.Stat("/proc/" + pid + "/root" + o.Tmp); err != nil || tmp.Mode() != fs.ModeDir|fs.ModeSticky|0o777 {
		options["not for everyone"] = true
	}
	check("tmpfs", options["tmpfs"] && options["nosuid"] && options["nodev"] && !options["not for everyone"],
		"%s is mounted %v", o.Tmp, slices.Sorted(maps.Keys(options)))
	return holds, missing
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
