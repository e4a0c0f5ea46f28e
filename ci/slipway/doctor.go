package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	goversion "go/version"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// check is one thing that a machine can do or not.
type check struct {
	Name string `json:"name"`
	// State is "ok", "not here" (nothing that the configuration in force needs) or "broken" (it does).
	State  string `json:"state"`
	Detail string `json:"detail"`
	// Next is what to do about it.
	Next string `json:"next,omitempty"`
}

const (
	isOK      = "ok"
	isNotHere = "not here"
	isBroken  = "broken"
)

// missing is the state of something that is not there.
func missing(needed bool) string {
	if needed {
		return isBroken
	}
	return isNotHere
}

// patience is how long doctor waits for one answer from a network.
const patience = 5 * time.Second

// doctor tells what this machine can do. It changes nothing.
func doctor(ctx context.Context, in *input, stdout io.Writer) error {
	x := &examination{in: in, onHost: in.config.Engine != "dagger"}
	parts := []func(context.Context) []check{x.golang, x.git, x.cCompiler, x.registries, x.smoke, x.dagger, x.cache, x.lockFile}
	found := make([][]check, len(parts))
	var group sync.WaitGroup
	for i, part := range parts {
		group.Go(func() { found[i] = part(ctx) })
	}
	group.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	checks := slices.Concat(found...)
	broken := 0
	for _, c := range checks {
		if c.State == isBroken {
			broken++
		}
	}
	if in.json {
		if err := json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "checks": checks, "broken": broken}); err != nil {
			return err
		}
	} else if err := printChecks(stdout, checks); err != nil {
		return err
	}
	if broken > 0 {
		what := "1 thing is"
		if broken > 1 {
			what = fmt.Sprint(broken, " things are")
		}
		return fault.Environmentf(nil, "The lines that say \"broken\" tell what to do; `slipway doctor` again shows whether it helped.", "%s not as the configuration needs it", what)
	}
	return nil
}

func printChecks(w io.Writer, checks []check) error {
	width := 0
	for _, c := range checks {
		width = max(width, len(c.Name))
	}
	for _, c := range checks {
		line := report.Pad(c.State, len(isNotHere)) + "  " + report.Pad(c.Name, width) + "  " + report.Clean(c.Detail)
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " ")); err != nil {
			return err
		}
		if c.Next != "" {
			if _, err := fmt.Fprintf(w, "%*s%s\n", len(isNotHere)+2, "", report.Clean(c.Next)); err != nil {
				return err
			}
		}
	}
	return nil
}

// examination makes the checks.
type examination struct {
	in     *input
	onHost bool // the engine is this machine
	once   sync.Once
	lock   *pipelines.Lock
	noLock error
}

// pins reads the lock file, as the source has it.
func (x *examination) pins() (*pipelines.Lock, error) {
	x.once.Do(func() { x.lock, x.noLock = pipelines.ReadLock(os.DirFS(x.in.source)) })
	return x.lock, x.noLock
}

// golang is about the go command, toolchains, and where modules come from.
func (x *examination) golang(ctx context.Context) []check {
	const next = "Install Go 1.21 or newer from https://go.dev/dl; slipway fetches the other releases with it."
	m, err := host.Examine(ctx)
	if err != nil {
		return []check{{"go command", missing(x.onHost), oneLine(err), next}}
	}
	c := check{"go command", isOK, m.Go + ", " + m.Command, ""}
	// A development version compares as none.
	if v := "go" + m.Go; goversion.IsValid(v) && goversion.Compare(v, "go1.21") < 0 {
		c.State, c.Next = missing(x.onHost), next
	}
	tools := check{"toolchains", isOK, strings.Join(m.Toolchains, ", "), ""}
	absent, pinned := x.absentToolchains(m)
	switch {
	case len(absent) > 0:
		tools.State, tools.Detail = isNotHere, "to be fetched: "+strings.Join(absent, ", ")+"; in the module cache: "+cmp.Or(tools.Detail, "none")
		tools.Next = "The first run fetches them, or `go mod download golang.org/toolchain@v0.0.1-go" + absent[0] + "." + runtime.GOOS + "-" + runtime.GOARCH + "`."
	case len(m.Toolchains) == 0:
		tools.State, tools.Detail, tools.Next = isNotHere, "none in the module cache", "The first run fetches them."
	}
	needed := x.onHost && (len(absent) > 0 || !pinned)
	return []check{c, tools, moduleProxy(ctx, m.GOPROXY, needed), checksums(m.GOSUMDB, x.onHost && !pinned)}
}

// absentToolchains are the releases that slipway.lock pins for this machine and the module cache lacks. pinned
// tells whether it pins any.
func (x *examination) absentToolchains(m host.Machine) (absent []string, pinned bool) {
	lock, err := x.pins()
	if err != nil {
		return nil, false
	}
	for release, sums := range lock.Toolchains {
		if sums[runtime.GOOS+"/"+runtime.GOARCH] == "" {
			continue
		}
		pinned = true
		if !slices.Contains(m.Toolchains, release) {
			absent = append(absent, release)
		}
	}
	slices.SortFunc(absent, func(a, b string) int { return goversion.Compare("go"+a, "go"+b) })
	return absent, pinned
}

func moduleProxy(ctx context.Context, setting string, needed bool) check {
	first, _, _ := strings.Cut(strings.ReplaceAll(setting, "|", ","), ",")
	c := check{"module proxy", isOK, "", ""}
	u, err := url.Parse(first)
	switch {
	case first == "off":
		c.State, c.Detail, c.Next = missing(needed), "GOPROXY is off: nothing can be fetched", "Set GOPROXY, or bring the toolchains and modules in the module cache and slipway.lock."
		return c
	case first == "direct":
		c.Detail = "none (GOPROXY=direct): modules come from where they are developed, toolchains from go.dev"
		return c
	case err != nil || u.Scheme == "":
		c.State, c.Detail, c.Next = missing(needed), "the first entry of GOPROXY is no address", "See `go help goproxy`."
		return c
	}
	u.User = nil // it may be a password
	shown := u.Redacted()
	if i := strings.IndexAny(shown, "?#"); i >= 0 {
		shown = shown[:i]
	}
	c.Detail = shown
	if u.Scheme == "file" {
		if _, err := os.Stat(filepath.FromSlash(u.Path)); err != nil {
			c.State, c.Detail, c.Next = missing(needed), shown+": there is no such directory", "Check GOPROXY."
		}
		return c
	}
	if err := answers(ctx, first); err != nil {
		c.State, c.Detail = missing(needed), shown+": "+oneLine(err)
		c.Next = "Check the network, HTTPS_PROXY and GOPROXY. What is in the module cache and in slipway.lock needs no network."
	}
	return c
}

// answers asks whether there is a server at an address, whatever it says.
func answers(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, address, nil)
	if err != nil {
		return errors.New("it is no address")
	}
	response, err := http.DefaultClient.Do(request)
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err // the rest repeats the address, with its password
	}
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode == http.StatusProxyAuthRequired || response.StatusCode >= 500 {
		return errors.New(response.Status)
	}
	return nil
}

func checksums(setting string, needed bool) check {
	name, _, _ := strings.Cut(setting, " ")
	name, _, _ = strings.Cut(name, "+") // what follows is its key
	if name != "off" {
		return check{"checksum database", isOK, cmp.Or(name, "the default"), ""}
	}
	c := check{"checksum database", isOK, "off: toolchains are compared with slipway.lock only", ""}
	if needed {
		c.State, c.Next = isBroken, "Commit a slipway.lock made where the checksum database can be reached, or unset GOSUMDB."
	}
	return c
}

func (x *examination) git(ctx context.Context) []check {
	// Without version control there is no need for git.
	needed := false
	for dir := x.in.source; ; dir = filepath.Dir(dir) {
		needed = needed || exists(dir, ".git")
		if dir == filepath.Dir(dir) {
			break
		}
	}
	out, err := exec.CommandContext(ctx, "git", "--version").Output()
	if err != nil {
		return []check{{"git", missing(needed), "no git on the PATH", "Install git; it says which files are the source, and which commit that is."}}
	}
	return []check{{"git", isOK, strings.TrimPrefix(strings.TrimSpace(string(out)), "git version "), ""}}
}

func (x *examination) cCompiler(context.Context) []check {
	if !x.in.config.Race && !x.in.config.CGO {
		return nil
	}
	name := "gcc"
	if runtime.GOOS == "darwin" || runtime.GOOS == "freebsd" || runtime.GOOS == "openbsd" {
		name = "clang"
	}
	if path, err := exec.LookPath(name); err == nil {
		return []check{{"C compiler", isOK, path, ""}}
	}
	return []check{{"C compiler", missing(x.onHost), "no " + name + " on the PATH", "Install " + name + ", or do without race and cgo."}}
}

func (x *examination) registries(ctx context.Context) []check {
	places := x.in.config.Places()
	checks := make([]check, len(places))
	var group sync.WaitGroup
	for i, p := range places {
		group.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			needed := p.Key == "to"
			if lock, err := x.pins(); p.Key == "base" {
				needed = err != nil || lock.Bases[p.Name] == "" // one that is pinned may be in the cache
			}
			checks[i] = askRegistry(ctx, p, x.in.credentials, needed)
		})
	}
	group.Wait()
	return checks
}

func askRegistry(ctx context.Context, p pipelines.Place, credentials pipelines.Credentials, needed bool) check {
	name, _, _ := strings.Cut(p.Reference, "/")
	c := check{"registry (" + p.Key + ")", isOK, "", ""}
	login, known, err := p.Reach(ctx, credentials)
	switch {
	case err == nil:
		c.Detail = name + " answers " + login
	case known:
		c.State, c.Detail, c.Next = missing(needed), name+" answers, but lets nobody in "+login, "Log in: docker login "+name+", or --username with --password=env:NAME."
	default:
		c.State, c.Detail, c.Next = missing(needed), name+": "+oneLine(err), "Check the name, the network and HTTPS_PROXY."
		if p.Key == "base" {
			c.Next += " A base image that is in slipway.lock and in the cache needs no registry."
		}
	}
	return c
}

// smoke is about trying images.
func (x *examination) smoke(context.Context) []check {
	if !x.onHost {
		return []check{{"smoke", isOK, "images are started as services of the Dagger engine", ""}}
	}
	wanted := cmp.Or(x.in.config.Smoke.Isolation, "auto")
	var checks []check
	works := wanted == "off"
	for _, l := range host.Isolations() {
		c := check{"smoke " + l.Kind, isOK, "works", ""}
		switch {
		case l.Reason != "":
			c.State, c.Detail = isNotHere, l.Reason
		case len(l.Missing) > 0:
			c.Detail = "works, without: " + strings.Join(l.Missing, ", ")
		}
		works = works || l.Reason == "" && (l.Kind == wanted || wanted == "auto" && l.Kind != "process")
		if l.Kind != "process" {
			checks = append(checks, c)
		}
	}
	if !works {
		checks = append(checks, check{"smoke", isBroken, "images cannot be started here with --smoke=" + wanted,
			"Allow user namespaces, or run as root with runc or crun installed; --smoke=process tries without isolation, --smoke=off not at all."})
	}
	for _, text := range x.in.config.Platforms {
		p, err := pipelines.ParsePlatform(text)
		if err != nil || p.OS != "linux" || p.Arch == runtime.GOARCH {
			continue
		}
		c := check{"run " + p.String(), isOK, "", ""}
		emulator, ok := host.Emulator(p.Arch)
		c.Detail = "by the processor itself"
		if emulator != "" {
			c.Detail = "with " + emulator
		}
		if !ok {
			c.State, c.Detail, c.Next = isNotHere, "no emulator: such images are built, but not started", "Install qemu-user-static and register it with the flag F (Debian does; docker run --privileged tonistiigi/binfmt --install "+p.Arch+")."
		}
		checks = append(checks, c)
	}
	return checks
}

func (x *examination) dagger(context.Context) []check {
	c := check{"dagger command", isOK, "", ""}
	path, err := exec.LookPath("dagger")
	if err != nil {
		c.State, c.Detail, c.Next = missing(!x.onHost), "no dagger on the PATH", "Only --engine=dagger needs it: https://docs.dagger.io/install"
		return []check{c}
	}
	c.Detail = path
	engine := check{"dagger engine", isOK, "_EXPERIMENTAL_DAGGER_RUNNER_HOST names it", ""}
	if os.Getenv("_EXPERIMENTAL_DAGGER_RUNNER_HOST") == "" {
		engine.Detail = ""
		for _, name := range []string{"docker", "podman", "nerdctl", "container", "finch"} {
			if _, err := exec.LookPath(name); err == nil && engine.Detail == "" {
				engine.Detail = name + " is there to start one; whether it can was not tried"
			}
		}
		if engine.Detail == "" {
			engine.State, engine.Detail = missing(!x.onHost), "no container runtime to start one with, and _EXPERIMENTAL_DAGGER_RUNNER_HOST is not set"
			engine.Next = "Only --engine=dagger needs it: install a container runtime, or set the variable to a running engine."
		}
	}
	return []check{c, engine}
}

// enoughSpace is what a small program under three releases takes, with its toolchains.
const enoughSpace = 1 << 30

func (x *examination) cache(context.Context) []check {
	const next = "Set SLIPWAY_CACHE to a directory that you may write."
	dir, err := host.CacheDir("")
	if err != nil {
		return []check{{"cache", isBroken, oneLine(err), next}}
	}
	// What does not exist yet is made below the first directory that does.
	place := dir
	for !exists(place, ".") && place != filepath.Dir(place) {
		place = filepath.Dir(place)
	}
	c := check{"cache", isOK, dir + ", " + report.Bytes(sizeOf(dir)), ""}
	f, err := os.CreateTemp(place, ".slipway-doctor-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		c.State, c.Detail, c.Next = isBroken, dir+" cannot be written: "+reason(err).Error(), next
	}
	checks := []check{c}
	if free, ok := freeSpace(place); ok {
		space := check{"disk", isOK, report.Bytes(free) + " free for the cache", ""}
		if free < enoughSpace {
			space.State, space.Next = isBroken, "Make room, or set SLIPWAY_CACHE to a larger disk. Everything in the cache can be removed."
		}
		checks = append(checks, space)
	}
	return checks
}

// sizeOf is the size of all files below dir.
func sizeOf(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // what cannot be read or is gone has no size
		}
		if i, err := d.Info(); err == nil && i.Mode().IsRegular() {
			bytes += i.Size()
		}
		return nil
	})
	return bytes
}

func (x *examination) lockFile(context.Context) []check {
	c := check{"lock file", isOK, "", ""}
	lock, err := x.pins()
	switch {
	case err != nil:
		c.State, c.Detail, c.Next = isBroken, oneLine(err), "Restore it from version control, or remove it to resolve everything anew."
	case !exists(x.in.source, pipelines.LockFile):
		c.State, c.Detail, c.Next = isNotHere, "no "+pipelines.LockFile, "The first run writes it, or `slipway lock`; commit it, so that every machine uses the same releases."
	default:
		var pinned []string
		for asked, exact := range lock.Go {
			pinned = append(pinned, asked+" is "+exact)
		}
		slices.Sort(pinned)
		c.Detail = cmp.Or(strings.Join(pinned, ", "), "pins no release") + fmt.Sprintf("; %d base images", len(lock.Bases))
	}
	return []check{c}
}

// oneLine is an error without what to do about it.
func oneLine(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return (&fault.Error{What: e.What, Err: e.Err}).Error()
	}
	text, _, _ := strings.Cut(err.Error(), "\n")
	return text
}
