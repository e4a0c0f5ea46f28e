package sandbox

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// processRuns tells whether "process" is a way out.
const processRuns = true

// attempt is one way to isolate a process.
type attempt struct {
	kind string
	// program is the file of runc or crun.
	program string
	// userns says that a user namespace of its own is needed, for want of privileges outside.
	userns bool
}

// owners tells whether files of the image can be seen with their owners.
func (a attempt) owners() bool { return a.kind != kindProcess && !a.userns }

// attempts returns the ways to isolate a process as the given kind says, the best first, and the kinds
// that are out of the question here.
func attempts(isolation string) ([]attempt, []Level, error) {
	kinds := isolating
	if isolation != "" {
		if isolation != kindProcess && !slices.Contains(kinds, isolation) {
			return nil, nil, fault.Usagef("auto takes the best that the machine has.", "unknown isolation %q: it is one of %s and %s", isolation, strings.Join(kinds, ", "), kindProcess)
		}
		kinds = []string{isolation}
	}
	var list []attempt
	var out []Level
	root := os.Geteuid() == 0
	for _, kind := range kinds {
		switch kind {
		case kindProcess:
			list = append(list, attempt{kind: kind})
		case kindNamespaces:
			if root {
				list = append(list, attempt{kind: kind})
			}
			list = append(list, attempt{kind: kind, userns: true})
		default:
			program, err := exec.LookPath(kind)
			switch {
			case !root:
				out = append(out, Level{Kind: kind, Reason: "slipway uses it only as root"})
			case err != nil:
				out = append(out, Level{Kind: kind, Reason: "not installed"})
			default:
				list = append(list, attempt{kind: kind, program: program})
			}
		}
	}
	return list, out, nil
}

func (r *roots) start(ctx context.Context, c engine.Container) (engine.Process, error) {
	list, out, err := attempts(c.Isolation)
	if err != nil {
		return nil, err
	}
	if _, err := engine.CapabilityMask(c.Capabilities); err != nil {
		return nil, err
	}
	im, err := readImage(c.Layout, c.Manifest)
	if err != nil {
		return nil, err
	}
	dir, err := privateDir(r.parent(), "slipway-run-")
	if err != nil {
		return nil, err
	}
	p, err := r.startIn(ctx, dir, im, c, list, out)
	if err != nil {
		return nil, errors.Join(err, removeTree(dir))
	}
	p.dir = dir
	return p, nil
}

// privateDir makes a temporary directory that only the caller can enter, in parent if that is not empty. Its path is absolute because the
// helper is elsewhere, and without symbolic links because runc refuses them.
func privateDir(parent, prefix string) (string, error) {
	parent, err := filepath.EvalSymlinks(cmp.Or(parent, os.TempDir()))
	if err == nil {
		parent, err = filepath.Abs(parent)
	}
	if err != nil {
		return "", fmt.Errorf("directory for temporary files: %w", err)
	}
	return os.MkdirTemp(parent, prefix)
}

// startIn makes the attempts in turn.
func (r *roots) startIn(ctx context.Context, dir string, im *image, c engine.Container, list []attempt, out []Level) (_ *process, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Flags&unix.ST_NOEXEC != 0 {
		return nil, fmt.Errorf("the directory for temporary files, %s, is on a file system that executes nothing (noexec); set TMPDIR to another", os.TempDir())
	}
	var prepared *order
	var owners bool
	var taken []string
	release := func() {
		for _, root := range taken {
			r.done(root)
		}
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	for _, a := range list {
		if prepared == nil || owners != a.owners() {
			var err error
			prepared, err = r.prepare(ctx, dir, im, c, a)
			if owners = a.owners(); owners && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)) {
				// Root without the capabilities of root, or in a user namespace that does not have the owner.
				out = append(out, Level{Kind: a.kind, Reason: "files cannot be given their owners: " + err.Error()})
				prepared = nil
				continue
			}
			if err != nil {
				return nil, err
			}
			taken = append(taken, prepared.Root)
		}
		p, err := try(ctx, *prepared, a, c.Memory, c.Processes)
		if err == nil {
			p.release = release
			return p, nil
		}
		if setup, ok := errors.AsType[*setupError](err); ok && a.kind != kindProcess {
			out = append(out, Level{Kind: a.kind, Reason: reason(a, setup)})
			continue
		}
		// The kernel may not be built for programs of 32 bits.
		if p := im.config.Platform(); p != nil && p.Architecture != machineArch() && errors.Is(err, unix.ENOEXEC) {
			err = &engine.ForeignError{Platform: platformName(p), Machine: "linux/" + machineArch()}
		}
		return nil, err
	}
	return nil, &UnavailableError{Levels: out}
}

// reason says why an attempt failed, and what on this machine is likely to be behind it.
func reason(a attempt, err error) string {
	s := err.Error()
	if !a.userns {
		return s
	}
	s = "in a user namespace: " + s
	for _, k := range []struct{ file, value, hint string }{
		{"/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces is 0"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns is 1"},
	} {
		if b, err := os.ReadFile(k.file); err == nil && strings.TrimSpace(string(b)) == k.value {
			s += " (" + k.hint + ")"
		}
	}
	return s
}

// prepare unpacks an image into root and works out what is to be started.
func prepare(ctx context.Context, dir, rootDir string, im *image, c engine.Container, a attempt) (*order, error) {
	cmd, err := im.command(c)
	if err != nil {
		return nil, &engine.ImageError{Err: err}
	}
	if err := os.Mkdir(rootDir, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(rootDir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	u, err := unpack(ctx, im, root, a.owners())
	if err != nil {
		return nil, fmt.Errorf("unpack the image: %w", err)
	}
	as, err := lookupUser(root, im.config.Config.User)
	if err != nil {
		return nil, &engine.ImageError{Err: err}
	}
	cmd.setHome(as)
	cwd, err := u.directory(cmd.dir)
	if err != nil {
		return nil, &engine.ImageError{Err: fmt.Errorf("the image's working directory %w", err)}
	}

	name, real, err := cmd.entrypoint(root)
	if err != nil {
		return nil, &engine.ImageError{Err: err}
	}
	head, err := readHead(root, real)
	if err != nil {
		return nil, err
	}
	emulator, err := checkPlatform(im.config.Platform(), head, a.kind != kindProcess, dir)
	if err != nil {
		return nil, err
	}
	o := &order{Dir: dir, Root: rootDir, Path: name, Args: cmd.args, Env: cmd.env, Cwd: cmd.dir, User: *as, Capabilities: c.Capabilities, Emulator: emulator}
	if a.kind == kindProcess {
		o.Path, o.Cwd = filepath.Join(rootDir, real), filepath.Join(rootDir, cwd)
		if err := u.finish(nil); err != nil {
			return nil, err
		}
		o.files = list(rootDir)
		return o, nil
	}
	if err := cmp.Or(u.checkExecutable(real, as), interpreter(root, real, head)); err != nil {
		return nil, fmt.Errorf("the image's entrypoint %s %w", cmd.args[0], err)
	}
	if o.Tmp, o.Volumes, err = u.mountPoints(im.config.Config.Volumes, as); err != nil {
		return nil, err
	}
	if len(c.Capabilities) > 0 {
		o.FileCapabilities = u.capable()
	}
	return o, u.finish(as)
}

// readHead returns the first bytes of a file, as many as the kernel looks at.
func readHead(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, 256)
	n, err := io.ReadFull(f, head)
	if err == io.ErrUnexpectedEOF || err == io.EOF {
		err = nil
	}
	return head[:n], err
}

// directory makes sure that a directory exists in the image, and returns its path without symbolic links.
func (u *unpacker) directory(name string) (string, error) {
	real, err := locate(u.root, name, true)
	if err != nil {
		return "", err
	}
	if fi, err := u.root.Lstat(real); err == nil && !fi.IsDir() {
		return "", fmt.Errorf("%s is not a directory in the image", name)
	}
	return real, u.mkdirAll(real)
}

// mountPoints prepares what the sandbox puts into the root file system, and returns the path of /tmp and the
// volumes that are mounted.
func (u *unpacker) mountPoints(volumes map[string]struct{}, as *user) (tmp string, mounted []volume, err error) {
	for _, name := range []string{"proc", "dev"} {
		// runc does not follow links there either.
		if fi, err := u.root.Lstat(name); err == nil && !fi.IsDir() {
			return "", nil, fmt.Errorf("/%s is not a directory in the image", name)
		}
		if err := u.mkdirAll(name); err != nil {
			return "", nil, err
		}
	}
	real, err := u.directory("/tmp")
	if err != nil {
		return "", nil, err
	}
	// runc gives what it mounts there the mode of what it covers.
	u.dirs[real] = meta{mode: fs.ModeDir | fs.ModeSticky | 0o777}
	tmp = "/" + real
	for _, name := range slices.Sorted(maps.Keys(volumes)) {
		real, err := u.directory(name)
		if err != nil {
			return "", nil, &engine.ImageError{Err: fmt.Errorf("the image's volume %w", err)}
		}
		if v := u.volume(real, as); !slices.ContainsFunc([]string{"/proc", "/dev", tmp}, v.within) && v.Path != "/." {
			mounted = append(mounted, v)
		}
	}
	return tmp, mounted, u.hosts()
}

// hosts writes /etc/hosts, as all container engines do: without it, an image from scratch cannot listen
// on "localhost".
func (u *unpacker) hosts() error {
	real, err := locate(u.root, "etc/hosts", true)
	if err != nil {
		return err
	}
	if err := u.mkdirAll(path.Dir(real)); err != nil {
		return err
	}
	if err := u.root.Remove(real); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace the image's /etc/hosts: %w", err)
	}
	u.files[real] = meta{mode: 0o644}
	text := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.0.1\t" + hostname + "\n"
	if err := u.root.WriteFile(real, []byte(text), 0o644); err != nil {
		return err
	}
	return u.root.Chmod(real, 0o644) // whatever the umask is
}

// try makes one attempt at starting what was prepared. A setupError says that another may succeed.
func try(ctx context.Context, o order, a attempt, memory int64, processes int) (_ *process, err error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	o.Kind, o.Program, o.Userns = a.kind, a.program, a.userns
	o.Caller, o.Outside = os.Geteuid(), namespaces("self")
	o.Work = filepath.Join(o.Dir, a.kind)
	if err := os.MkdirAll(o.Work, 0o700); err != nil {
		return nil, err
	}
	o.Limits, err = makeLimits(a, memory, processes)
	if err != nil {
		return nil, err
	}
	p, err := launch(ctx, &o)
	if err != nil {
		return nil, errors.Join(err, removeCgroup(o.Limits.Cgroup))
	}
	return p, nil
}

// makeLimits makes the limits for an attempt, with a cgroup if there can be one.
func makeLimits(a attempt, memory int64, processes int) (limits, error) {
	l := limits{Memory: memory, Processes: processes}
	if a.kind == kindProcess || memory <= 0 && processes <= 0 {
		return l, nil
	}
	if os.Geteuid() != 0 {
		l.Why = "only root can make a cgroup"
		return l, nil
	}
	if a.userns {
		l.Why = "in a user namespace, no cgroup is made"
		return l, nil
	}
	err := makeCgroup(fmt.Sprintf("slipway-%d-%s", os.Getpid(), strings.ToLower(rand.Text())), &l)
	if err == nil && a.kind == kindNamespaces {
		return l, nil
	}
	// Either it was made in part, or to see whether runc or crun can make it.
	for _, dir := range l.Dirs {
		if err := removeCgroupDir(dir); err != nil {
			return l, err
		}
	}
	l.Dirs = nil
	if err != nil {
		l.Why = "no cgroup can be made in " + err.Error()
	}
	return l, nil
}

// helperAttr returns how a helper is started.
func helperAttr(o *order) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setsid: true} // out of reach of the terminal's Ctrl-C
	if o.Kind != kindProcess {
		// The helper is the first process of a pid namespace, so that nothing outlives it.
		attr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWNS
	}
	if o.Userns {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: o.User.UID, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: o.User.GID, HostID: os.Getegid(), Size: 1}}
		// Without these a user other than root would lose its capabilities when the helper is executed.
		attr.AmbientCaps = []uintptr{
			unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_KILL, unix.CAP_SETGID, unix.CAP_SETUID,
			unix.CAP_SETPCAP, unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE,
		}
	}
	return attr
}

// launch starts the helper and, through it, the container.
func launch(ctx context.Context, o *order) (*process, error) {
	name, attr := shimName, helperAttr(o)
	if o.Userns && len(o.FileCapabilities) > 0 {
		name, attr = outerName, &syscall.SysProcAttr{
			Setsid:      true,
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		}
	}
	p, err := startHelper(o, name, attr)
	if err != nil {
		return nil, &setupError{fmt.Errorf("new namespaces: %w", cause(err))}
	}
	select {
	case <-p.started:
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), p.Close())
	}
	if p.startErr != nil {
		return nil, errors.Join(p.startErr, p.Close())
	}
	return p, nil
}

func available() []Level {
	var levels []Level
	for _, kind := range isolating {
		levels = append(levels, probe(kind, ""))
	}
	return append(levels, Level{Kind: kindProcess, Missing: observe(0, &order{Kind: kindProcess}).missing})
}

func (r *roots) check(isolation string) error {
	if _, _, err := attempts(isolation); err != nil || isolation == kindProcess {
		return err
	}
	kinds := isolating
	if isolation != "" {
		kinds = []string{isolation}
	}
	var out []Level
	for _, kind := range kinds {
		l := probe(kind, r.parent())
		if l.Reason == "" {
			return nil
		}
		out = append(out, l)
	}
	return &UnavailableError{Levels: out}
}

// probe goes as far with a kind of isolation as is possible without an image.
func probe(kind, parent string) Level {
	list, out, err := attempts(kind)
	var dir string
	if err == nil && len(list) > 0 {
		dir, err = privateDir(parent, "slipway-probe-")
	}
	if err != nil {
		return Level{Kind: kind, Reason: err.Error()}
	}
	defer removeTree(dir)
	for _, a := range list {
		missing, err := probeIn(dir, a)
		if err == nil {
			return Level{Kind: kind, Missing: missing}
		}
		out = append(out, Level{Kind: kind, Reason: reason(a, err)})
	}
	var reasons []string
	for _, l := range out {
		reasons = append(reasons, l.Reason)
	}
	return Level{Kind: kind, Reason: strings.Join(reasons, "; ")}
}

func probeIn(dir string, a attempt) (missing []string, err error) {
	root := filepath.Join(dir, "rootfs")
	for _, name := range []string{"proc", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), fs.ModeSticky|0o777); err != nil { // see mountPoints
		return nil, err
	}
	// It is never executed, but runc wants to see it.
	const program = "/probe"
	name := filepath.Join(root, program)
	if err := cmp.Or(os.WriteFile(name, nil, 0o755), os.Chmod(name, 0o755)); err != nil {
		return nil, err
	}
	p, err := try(context.Background(), order{
		Probe: true, Dir: dir, Root: root, Tmp: "/tmp", Path: program, Args: []string{program}, Env: []string{"PATH=/"}, Cwd: "/",
		User: user{UID: 65532, GID: 65532},
	}, a, 256<<20, 256)
	if err != nil {
		return nil, err
	}
	return p.Isolation().Missing, p.Close()
}
