package sandbox

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// An image is an image of an OCI layout whose manifest and configuration were read and checked.
type image struct {
	layout   string
	manifest v1.Manifest
	config   v1.ConfigFile
}

func readImage(layout, digest string) (*image, error) {
	h, err := v1.NewHash(digest)
	if err != nil {
		return nil, err
	}
	im := &image{layout: layout}
	if err := readJSON(layout, v1.Descriptor{Digest: h}, &im.manifest); err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	if im.manifest.Config.Digest.Hex == "" {
		return nil, fmt.Errorf("%s is not an image manifest", digest)
	}
	if err := readJSON(layout, im.manifest.Config, &im.config); err != nil {
		return nil, fmt.Errorf("image configuration: %w", err)
	}
	if l, d := len(im.manifest.Layers), len(im.config.RootFS.DiffIDs); l != d {
		return nil, fmt.Errorf("the image has %d layers, but its configuration names %d", l, d)
	}
	return im, nil
}

func readJSON(layout string, d v1.Descriptor, v any) error {
	b, err := readBlob(layout, d)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// command is what an image's first process is, as far as the image's configuration says it.
type command struct {
	args []string
	env  []string
	dir  string
}

// command puts the image's configuration and the caller's wishes together.
func (im *image) command(c engine.Container) (command, error) {
	cfg := im.config.Config
	args := cfg.Cmd
	if c.Args != nil {
		args = c.Args
	}
	args = append(slices.Clone(cfg.Entrypoint), args...)
	if len(args) == 0 || args[0] == "" {
		return command{}, errors.New("the image has neither an entrypoint nor a command, so there is nothing to start")
	}
	// The default is the one of every container runtime.
	env := mergeEnv([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, cfg.Env, c.Env)
	return command{args: args, env: env, dir: path.Clean("/" + cfg.WorkingDir)}, nil
}

// mergeEnv joins lists of variables. A later value takes the place of an earlier one.
func mergeEnv(lists ...[]string) []string {
	var env []string
	for _, v := range slices.Concat(lists...) {
		name, _, _ := strings.Cut(v, "=")
		if name == "" {
			continue
		}
		if i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }); i >= 0 {
			env[i] = v
		} else {
			env = append(env, v)
		}
	}
	return env
}

func lookupEnv(env []string, name string) (string, bool) {
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, name+"="); ok {
			return value, true
		}
	}
	return "", false
}

// entrypoint finds the file that the command executes. name is its path in the image, real the same
// without symbolic links.
func (c command) entrypoint(root *os.Root) (name, real string, err error) {
	arg := c.args[0]
	if strings.Contains(arg, "/") {
		if !path.IsAbs(arg) {
			arg = c.dir + "/" + arg
		}
		real, err := executable(root, arg)
		if err != nil {
			return "", "", fmt.Errorf("the image's entrypoint %s %w", c.args[0], err)
		}
		return arg, real, nil
	}
	search, _ := lookupEnv(c.env, "PATH")
	for _, dir := range strings.Split(search, ":") {
		name := path.Join(cmp.Or(dir, "."), arg)
		if !path.IsAbs(name) {
			name = path.Join(c.dir, name)
		}
		if real, err := executable(root, name); err == nil {
			return name, real, nil
		}
	}
	return "", "", fmt.Errorf("the image's entrypoint %s is not in the image's PATH (%s)", arg, search)
}

// executable follows the name of a file in an image to an executable regular file.
func executable(root *os.Root, name string) (string, error) {
	real, err := locate(root, name, true)
	if err != nil {
		return "", fmt.Errorf("cannot be found: %w", err)
	}
	fi, err := root.Lstat(real)
	switch {
	case err != nil:
		return "", errors.New("is not in the image")
	case !fi.Mode().IsRegular():
		return "", errors.New("is not a file")
	case fi.Mode()&0o111 == 0:
		return "", fmt.Errorf("is not executable (its mode is %04o)", fi.Mode().Perm())
	}
	return real, nil
}

// checkExecutable checks that a user may execute a file of the image that executable has found. What is
// asked here is what the layers say, because files do not always get their owners.
func (u *unpacker) checkExecutable(real string, as *user) error {
	m, ok := u.files[real]
	if fi, err := u.root.Lstat(real); err == nil && !ok {
		st := fi.Sys().(*syscall.Stat_t)
		m = meta{uid: int(st.Uid), gid: int(st.Gid), mode: fi.Mode()}
	}
	if as.owning(m)&0o100 == 0 {
		return fmt.Errorf("is not executable for the user %d:%d (its mode is %04o, its owner %d:%d)", as.UID, as.GID, m.mode.Perm(), m.uid, m.gid)
	}
	for dir := path.Dir(real); dir != "."; dir = path.Dir(dir) {
		if m := u.dirs[dir]; as.owning(m)&0o100 == 0 {
			return fmt.Errorf("is in /%s, which is closed to the user %d:%d (its mode is %04o, its owner %d:%d)", dir, as.UID, as.GID, m.mode.Perm(), m.uid, m.gid)
		}
	}
	return nil
}

// interpreter checks that what the kernel needs to execute a file is in the image, too. The kernel's own
// message for a missing interpreter is "no such file or directory", about a file that plainly exists.
func interpreter(root *os.Root, real string, head []byte) error {
	var name, hint string
	switch {
	case bytes.HasPrefix(head, []byte("#!")):
		line, _, _ := bytes.Cut(head[2:], []byte("\n"))
		if f := bytes.Fields(line); len(f) > 0 {
			name = string(f[0])
		}
	case bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		f, err := root.Open(real)
		if err != nil {
			return err
		}
		defer f.Close()
		e, err := elf.NewFile(f)
		if err != nil {
			return fmt.Errorf("is no valid program: %w", err)
		}
		for _, p := range e.Progs {
			if p.Type == elf.PT_INTERP && p.Filesz < unix.PathMax {
				b, err := io.ReadAll(p.Open())
				if err != nil {
					return fmt.Errorf("is no valid program: %w", err)
				}
				name = string(bytes.TrimRight(b, "\x00"))
				hint = "; a Go program built with CGO_ENABLED=0 does not"
			}
		}
	default:
		return errors.New("is neither a program nor a script")
	}
	if name == "" {
		return nil
	}
	if _, err := executable(root, name); err != nil {
		return fmt.Errorf("needs %s, which %w%s", name, err, hint)
	}
	return nil
}

// user is the user that a process runs as.
type user struct {
	UID, GID int
	// Groups are supplementary groups.
	Groups []int
	home   string
}

// owning returns the mode that gives the owner of a file what m grants to the user.
func (u *user) owning(m meta) fs.FileMode {
	granted := m.mode & 7
	switch {
	case m.uid == u.UID:
		return m.mode
	case m.gid == u.GID || slices.Contains(u.Groups, m.gid):
		granted = m.mode >> 3 & 7
	}
	return m.mode&^0o500 | granted<<6&0o500
}

// lookupUser resolves the user of an image's configuration ("65532", "65532:65532", "name",
// "name:group") by the image's own /etc/passwd and /etc/group, as other container runtimes do: a number
// need not be listed, and has the group 0 then.
func lookupUser(root *os.Root, spec string) (*user, error) {
	name, group, hasGroup := strings.Cut(cmp.Or(spec, "0"), ":")
	u := &user{home: "/"}
	number, err := parseID(name)
	isNumber := err == nil
	if isNumber {
		u.UID = number
	}
	listed := ""
	for _, f := range database(root, "etc/passwd", 7) {
		uid, uidErr := parseID(f[2])
		gid, gidErr := parseID(f[3])
		if uidErr != nil || gidErr != nil || f[0] != name && (!isNumber || uid != number) {
			continue
		}
		listed, u.UID, u.GID, u.home = f[0], uid, gid, cmp.Or(f[5], "/")
		break
	}
	if listed == "" && !isNumber {
		return nil, fmt.Errorf("the image's user %q is not in its /etc/passwd", name)
	}
	groups := database(root, "etc/group", 4)
	if !hasGroup {
		for _, f := range groups {
			if gid, err := parseID(f[2]); err == nil && listed != "" && slices.Contains(strings.Split(f[3], ","), listed) {
				u.Groups = append(u.Groups, gid)
			}
		}
		return u, nil
	}
	for _, f := range groups {
		if gid, err := parseID(f[2]); err == nil && f[0] == group {
			u.GID = gid
			return u, nil
		}
	}
	if u.GID, err = parseID(group); err != nil {
		return nil, fmt.Errorf("the image's group %q is not in its /etc/group", group)
	}
	return u, nil
}

func parseID(s string) (int, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not an id", s)
	}
	return int(n), nil
}

// database returns the lines of a file like /etc/passwd that have the given number of fields. An image
// need not have it.
func database(root *os.Root, name string, fields int) [][]string {
	real, err := locate(root, name, true)
	if err != nil {
		return nil
	}
	if fi, err := root.Lstat(real); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxJSONBytes {
		return nil
	}
	b, err := root.ReadFile(real)
	if err != nil {
		return nil
	}
	var lines [][]string
	for line := range strings.Lines(string(b)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) >= fields {
			lines = append(lines, f)
		}
	}
	return lines
}

// checkPlatform checks that this machine can execute an image's program, whose first bytes are head, and
// returns the emulator that it needs for that. Both the image's configuration and the program say what they are
// for. inside says that it is executed in a root file system of its own; dir is for temporary files.
func checkPlatform(p *v1.Platform, head []byte, inside bool, dir string) (emulator string, err error) {
	machine := machineArch()
	foreign := &engine.ForeignError{Machine: "linux/" + machine}
	switch program := programArch(head); {
	case p != nil && p.OS != "" && p.OS != "linux":
		foreign.Platform = platformName(p)
		return "", foreign // and no emulator helps
	case p != nil && p.Architecture != "" && !native(p.Architecture, machine):
		foreign.Platform = platformName(p)
	case program != "" && !native(program, machine):
		foreign.Platform = "linux/" + program
	default:
		return "", nil
	}
	const handlers = "/proc/sys/fs/binfmt_misc"
	if name := handlerOf(handlers, head, inside); name != "" {
		return name, nil
	}
	// In a container, the machine's handlers are mostly out of sight, but at work.
	if _, err := os.Stat(filepath.Join(handlers, "status")); errors.Is(err, fs.ErrNotExist) && executes(dir, head) {
		return "an emulator of the machine", nil
	}
	return "", foreign
}

// executes tries whether the kernel has something that executes programs like the one that starts with head.
// What is tried is a header that has no program, which emulators refuse.
func executes(dir string, head []byte) bool {
	if programArch(head) == "" {
		return false
	}
	name := filepath.Join(dir, "foreign")
	if err := os.WriteFile(name, append(slices.Clone(head[:20]), make([]byte, 44)...), 0o700); err != nil {
		return false
	}
	defer os.Remove(name)
	_, ended := errors.AsType[*exec.ExitError](exec.Command(name).Run())
	return ended
}

// programArch is the architecture that a program is for, by Go's name. It is empty if that is not known.
func programArch(head []byte) string {
	if len(head) < 20 || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return ""
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	return map[elf.Machine]string{
		elf.EM_X86_64: "amd64", elf.EM_386: "386", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_S390: "s390x",
	}[elf.Machine(order.Uint16(head[18:]))]
}

func platformName(p *v1.Platform) string {
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return name
}

// native tells whether a kernel executes programs of an architecture itself. That it was built to execute
// 32-bit programs is not known before they are tried.
func native(arch, machine string) bool {
	return arch == machine || arch == "386" && machine == "amd64" || arch == "arm" && machine == "arm64"
}

// machineArch is the kernel's architecture by the name that Go has for it.
func machineArch() string {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		names := map[string]string{
			"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386", "armv6l": "arm", "armv7l": "arm",
			"armv8l": "arm", "loongarch64": "loong64",
		}
		machine := unix.ByteSliceToString(u.Machine[:])
		if name, ok := names[machine]; ok {
			return name
		}
	}
	return runtime.GOARCH // the others have one name, or several that only Go tells apart
}

// handlerOf returns the handler of binfmt_misc, found in dir, that executes the program which starts with
// head. Inside another root that must be one that the kernel has opened beforehand (flag F).
func handlerOf(dir string, head []byte, inside bool) string {
	if status, err := os.ReadFile(filepath.Join(dir, "status")); err != nil || strings.TrimSpace(string(status)) != "enabled" {
		return ""
	}
	handlers, _ := os.ReadDir(dir)
	for _, h := range handlers {
		if h.Name() == "register" || h.Name() == "status" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, h.Name()))
		if err != nil {
			continue
		}
		if handles(string(text), head, inside) {
			return h.Name()
		}
	}
	return ""
}

// handles tells whether a handler of binfmt_misc, as the kernel describes it, executes a program.
func handles(handler string, head []byte, inside bool) bool {
	lines := strings.Split(handler, "\n")
	if lines[0] != "enabled" {
		return false
	}
	field := func(name string) string {
		for _, l := range lines[1:] {
			if v, ok := strings.CutPrefix(l, name+" "); ok {
				return v
			}
		}
		return ""
	}
	var magic, mask []byte
	offset, err := strconv.Atoi(field("offset"))
	if _, serr := fmt.Sscanf(field("magic"), "%x", &magic); err != nil || serr != nil {
		return false // by file name, not by content
	}
	if m := field("mask"); m != "" {
		if _, err := fmt.Sscanf(m, "%x", &mask); err != nil || len(mask) != len(magic) {
			return false
		}
	}
	if inside && !strings.Contains(field("flags:"), "F") || len(head) < offset+len(magic) {
		return false
	}
	for i, want := range magic {
		got := head[offset+i]
		if mask != nil {
			got, want = got&mask[i], want&mask[i]
		}
		if got != want {
			return false
		}
	}
	return true
}

// setHome sets HOME where the image does not.
func (c *command) setHome(as *user) {
	if _, ok := lookupEnv(c.env, "HOME"); !ok {
		c.env = append(c.env, "HOME="+as.home)
	}
}
