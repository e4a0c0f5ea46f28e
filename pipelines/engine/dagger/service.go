package dagger

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"dagger.io/dagger"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// kindService is the only kind of isolation that this engine has.
const kindService = "service"

//go:embed internal/agent/main.go
var agentSource string

const (
	agentPath = "/.slipway-agent"
	agentPort = 64999
	tempSize  = 64 << 20
)

// Start implements engine.Engine. The image runs as a Dagger service, of kind "service", as its own user.
// An agent starts its program there and answers for it: it takes all privileges from the program first.
func (e *Engine) Start(ctx context.Context, c engine.Container) (engine.Process, error) {
	if c.Isolation != "" && c.Isolation != kindService {
		return nil, fault.Usagef("Leave it at auto.", "smoke: the dagger engine has no isolation %q, only %q", c.Isolation, kindService)
	}
	mask, err := engine.CapabilityMask(c.Capabilities)
	if err != nil {
		return nil, err
	}
	img, err := readImage(c.Layout, c.Manifest)
	if err != nil {
		return nil, fault.Environmentf(err, "", "smoke run")
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, &engine.ImageError{Err: err}
	}
	if p := config.OS + "/" + config.Architecture; !strings.HasPrefix(e.platform+"/", p+"/") {
		return nil, &engine.ForeignError{Platform: p, Machine: e.platform}
	}
	args := config.Config.Cmd
	if c.Args != nil {
		args = c.Args
	}
	args = slices.Concat(config.Config.Entrypoint, args)
	if len(args) == 0 {
		return nil, &engine.ImageError{Err: errors.New("the image has neither an entrypoint nor a command, so there is nothing to start")}
	}
	agent, err := e.compileAgent(ctx)
	if err != nil {
		return nil, err
	}
	archive := filepath.Join(e.temp, strings.TrimPrefix(c.Manifest, "sha256:")+".tar")
	e.mu.Lock()
	if _, err = os.Stat(archive); err != nil {
		err = writeArchive(archive, img)
	}
	e.mu.Unlock()
	if err != nil {
		return nil, err
	}
	o := order{Port: strconv.Itoa(agentPort), Token: rand.Text(), Root: "/", Capabilities: mask, InMemory: inMemory(config.Config.Volumes)}
	ctr := e.client.Container().Import(e.client.Host().File(archive)).WithMountedFile(agentPath, agent)
	for _, v := range c.Env {
		key, value, _ := strings.Cut(v, "=")
		ctr = ctr.WithEnvVariable(key, value)
	}
	for _, dir := range o.InMemory {
		ctr = ctr.WithMountedTemp(dir, dagger.ContainerWithMountedTempOpts{Size: tempSize})
	}
	if mask != 0 {
		if ctr, err = e.asRoot(ctx, ctr, c.Capabilities, &o); err != nil {
			return nil, err
		}
	}
	text, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	service := ctr.WithExposedPort(agentPort).AsService(dagger.ContainerAsServiceOpts{Args: append([]string{agentPath, string(text)}, args...)})
	p := &process{e: e, token: o.Token}
	if p.service, err = service.Start(ctx); err != nil {
		return nil, e.fault(ctx, err, "the image cannot be started as a service")
	}
	if p.tunnel, err = e.client.Host().Tunnel(p.service).Start(ctx); err != nil {
		return nil, errors.Join(e.fault(ctx, err, "tunnel to the service"), p.Close())
	}
	if p.address, err = p.tunnel.Endpoint(ctx); err != nil {
		return nil, errors.Join(e.fault(ctx, err, "tunnel to the service"), p.Close())
	}
	var started struct {
		Error string
		Facts facts
	}
	// A program can stop the agent: it has the same user.
	asking, cancel := context.WithTimeoutCause(ctx, startIn, errors.New("no answer within "+startIn.String()))
	defer cancel()
	if err := p.ask(asking, "started", &started); err != nil {
		if ctx.Err() == nil && asking.Err() != nil {
			err = fault.Environmentf(context.Cause(asking), "", "the service of the smoke run")
		}
		return nil, errors.Join(err, p.Close())
	}
	if started.Error != "" {
		return nil, errors.Join(&engine.ImageError{Err: fmt.Errorf("the image cannot be started: %s", started.Error)}, p.Close())
	}
	p.isolation = started.Facts.isolation(config.Config.User, c.Capabilities, mask)
	return p, nil
}

// order is what the agent is to do.
type order struct {
	Port         string    `json:"port"`
	Token        string    `json:"token"`
	Root         string    `json:"root"`
	Capabilities uint64    `json:"capabilities"`
	InMemory     []string  `json:"in_memory"`
	As           *identity `json:"as,omitempty"`
}

type identity struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups"`
}

// inMemory are the directories that are file systems in memory: /tmp and the volumes, as with the host engine.
func inMemory(volumes map[string]struct{}) []string {
	dirs := []string{"/tmp"}
	for _, v := range slices.Sorted(maps.Keys(volumes)) {
		v = path.Clean("/" + v)
		below := func(dir string) bool { return v == "/" || strings.HasPrefix(v+"/", dir+"/") }
		if !slices.ContainsFunc([]string{"/proc", "/dev", "/sys", "/tmp"}, below) {
			dirs = append(dirs, v)
		}
	}
	return dirs
}

// asRoot has the agent run as root and start the program as the image's user. Only root can limit the capabilities
// that files give: without it those that Dagger leaves to root would all be within the program's reach.
func (e *Engine) asRoot(ctx context.Context, ctr *dagger.Container, capabilities []string, o *order) (*dagger.Container, error) {
	text, err := ctr.WithExec([]string{agentPath, "whoami"}).Stdout(ctx)
	if err != nil {
		return nil, e.fault(ctx, err, "the image's user")
	}
	var user struct {
		identity
		Home, Bounding string
	}
	if err := json.Unmarshal([]byte(text), &user); err != nil {
		return nil, fmt.Errorf("the image's user: %w", err)
	}
	bounding, err := strconv.ParseUint(user.Bounding, 16, 64)
	if err != nil {
		return nil, fmt.Errorf("the capabilities of a container: %w", err)
	}
	for _, name := range capabilities {
		if mask, _ := engine.CapabilityMask([]string{name}); mask&^bounding != 0 {
			return nil, fault.Environmentf(nil, "The embedded engine (--engine=host) can.", "smoke run: a Dagger service cannot have %s", name)
		}
	}
	o.As = &user.identity
	if user.Home != "" {
		ctr = ctr.WithEnvVariable("HOME", user.Home) // Dagger sets that of root else
	}
	return ctr.WithUser("0:0"), nil
}

func readImage(layoutDir, manifest string) (v1.Image, error) {
	digest, err := v1.NewHash(manifest)
	if err != nil {
		return nil, err
	}
	index, err := layout.ImageIndexFromPath(layoutDir)
	if err != nil {
		return nil, err
	}
	img, err := findImage(index, digest)
	if err == nil && img == nil {
		err = fmt.Errorf("the image layout has no manifest %s", digest)
	}
	return img, err
}

// findImage finds an image in an index or in the indexes below it.
func findImage(index v1.ImageIndex, digest v1.Hash) (v1.Image, error) {
	m, err := index.IndexManifest()
	if err != nil {
		return nil, err
	}
	for _, d := range m.Manifests {
		if d.Digest == digest {
			return index.Image(digest)
		}
		if !d.MediaType.IsIndex() {
			continue
		}
		inner, err := index.ImageIndex(d.Digest)
		if err != nil {
			return nil, err
		}
		if img, err := findImage(inner, digest); err != nil || img != nil {
			return img, err
		}
	}
	return nil, nil
}

// WriteArchive writes an image of an OCI layout into a file that Container.Import takes.
func WriteArchive(file, layoutDir, manifest string) error {
	img, err := readImage(layoutDir, manifest)
	if err != nil {
		return err
	}
	return writeArchive(file, img)
}

func writeArchive(file string, img v1.Image) error {
	tag, err := name.NewTag("slipway:image")
	if err != nil {
		return err
	}
	if err := tarball.WriteToFile(file, tag, img); err != nil {
		return tempError(err)
	}
	return nil
}

// facts are what the agent read back from the kernel about the program that it has started.
type facts struct {
	UID              int               `json:"uid"`
	NoNewPrivs       bool              `json:"no_new_privs"`
	ReadOnly         bool              `json:"read_only"`
	Sets             map[string]string `json:"sets"`
	FileCapabilities bool              `json:"file_capabilities"`
	OnDisk           []string          `json:"on_disk"`
}

// only tells whether the program has no capabilities but the allowed ones, and no way to others.
func (f facts) only(allowed uint64) bool {
	for name, most := range map[string]uint64{"CapInh": 0, "CapAmb": 0, "CapPrm": allowed, "CapEff": allowed, "CapBnd": allowed} {
		set, err := strconv.ParseUint(f.Sets[name], 16, 64)
		if name == "CapBnd" && f.NoNewPrivs {
			most = set // it bounds what files give, and they give nothing
		}
		if err != nil || set&^most != 0 {
			return false
		}
	}
	return true
}

func (f facts) isolation(user string, capabilities []string, mask uint64) engine.Isolation {
	i := engine.Isolation{Kind: kindService, Holds: []string{"rootfs", "pid", "mount", "ipc", "uts"}}
	add := func(holds bool, name, reason string) {
		if holds {
			i.Holds = append(i.Holds, name)
		} else {
			i.Missing = append(i.Missing, name+": "+reason)
		}
	}
	wanted, _, _ := strings.Cut(cmp.Or(user, "0"), ":")
	uid, err := strconv.Atoi(wanted)
	add(err != nil && f.UID >= 0 || f.UID == uid, "user", fmt.Sprintf("it runs as %d", f.UID))
	add(f.only(mask), "capabilities", fmt.Sprintf("the program has %v", f.Sets))
	if mask == 0 {
		add(f.NoNewPrivs, "no-new-privileges", "the kernel refused")
	} else {
		add(false, "no-new-privileges", fmt.Sprintf("the image's files may give %s, and setuid files their owner", strings.Join(capabilities, ", ")))
		if !f.FileCapabilities {
			add(false, "file capabilities", "the program's file has none")
		}
	}
	add(f.ReadOnly, "read-only", "a Dagger service has a root file system that can be written")
	add(false, "network", "a Dagger service is in the network of the session")
	for _, name := range []string{"memory", "processes"} {
		add(false, name, "a Dagger service has no such limit")
	}
	add(len(f.OnDisk) == 0, "tmpfs", strings.Join(f.OnDisk, ", ")+" is on disk")
	return i
}

// process is a started image. It implements engine.Process.
type process struct {
	e               *Engine
	service, tunnel *dagger.Service
	token, address  string
	isolation       engine.Isolation
	dials           atomic.Int64
}

// connect sends one line to the agent.
func (p *process) connect(ctx context.Context, line string) (net.Conn, *bufio.Reader, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", p.address)
	if err == nil {
		_, err = fmt.Fprintf(c, "%s %s\n", p.token, line)
	}
	if err != nil {
		return nil, nil, p.e.fault(ctx, err, "the service of the smoke run does not answer")
	}
	return c, bufio.NewReader(c), nil
}

// ask asks the agent a question with an answer of one line.
func (p *process) ask(ctx context.Context, line string, answer any) error {
	c, r, err := p.connect(ctx, line)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if err := json.NewDecoder(r).Decode(answer); err != nil {
		return p.e.fault(ctx, err, "the service of the smoke run does not answer")
	}
	return nil
}

// Dial implements engine.Process.
func (p *process) Dial(ctx context.Context, port int) (net.Conn, error) {
	name := p.dials.Add(1)
	c, r, err := p.connect(ctx, fmt.Sprintf("dial %d %d", port, name))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	line, err := r.ReadString('\n')
	stop()
	var refused string
	if err == nil {
		err = json.Unmarshal([]byte(line), &refused)
	}
	if err == nil && refused != "" {
		err = errors.New(refused)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return &dialed{Conn: c, r: r, p: p, name: name}, nil
}

// dialed is a connection of which a reader has seen the beginning.
type dialed struct {
	net.Conn
	r    *bufio.Reader
	p    *process
	name int64
}

func (d *dialed) Read(p []byte) (int, error) { return d.r.Read(p) }

// Close tells the agent, as Dagger's tunnel does not: a server waits for its connections before it ends.
func (d *dialed) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), answerIn)
	defer cancel()
	var done string
	_ = d.p.ask(ctx, fmt.Sprintf("hangup %d", d.name), &done) // it may have ended, and the connection with it
	return d.Conn.Close()
}

// Listening implements engine.Process.
func (p *process) Listening(ctx context.Context) ([]int, error) {
	var ports []int
	err := p.ask(ctx, "listening", &ports)
	return ports, err
}

// Wait implements engine.Process.
func (p *process) Wait(ctx context.Context) (engine.Exit, error) {
	var x struct {
		Code      int
		Signal    string
		MaxMemory int64 `json:"max_memory"`
		Leftover  []string
		Written   []string
	}
	err := p.ask(ctx, "wait", &x)
	return engine.Exit(x), err
}

const (
	// answerIn bounds questions that are answered at once.
	answerIn = 10 * time.Second
	// startIn bounds the start of a program, before which the agent looks through the image's files.
	startIn = time.Minute
)

// Signal implements engine.Process.
func (p *process) Signal(s os.Signal) error {
	number, ok := s.(syscall.Signal)
	if !ok {
		return fmt.Errorf("no signal of Linux: %v", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerIn)
	defer cancel()
	var refused string
	if err := p.ask(ctx, fmt.Sprintf("signal %d", int(number)), &refused); err != nil {
		return err
	}
	switch refused {
	case "":
		return nil
	case "ended": // what the agent says of a program that it cannot signal any more
		return os.ErrProcessDone
	}
	return errors.New(refused)
}

// Output implements engine.Process.
func (p *process) Output() []byte {
	ctx, cancel := context.WithTimeout(context.Background(), answerIn)
	defer cancel()
	var output []byte
	_ = p.ask(ctx, "output", &output)
	return output
}

// Isolation implements engine.Process.
func (p *process) Isolation() engine.Isolation { return p.isolation }

// Close implements engine.Process.
func (p *process) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), answerIn)
	defer cancel()
	var errs []error
	for _, s := range []*dagger.Service{p.tunnel, p.service} {
		if s != nil {
			_, err := s.Stop(ctx, dagger.ServiceStopOpts{Kill: true})
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return p.e.fault(ctx, err, "the service of the smoke run cannot be stopped")
	}
	return nil
}
