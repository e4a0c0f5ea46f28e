//go:build linux

package dagger_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/dagger"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

const server = `package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	self, err := os.Executable()
	check(err)
	switch {
	case len(os.Args) == 1:
	case os.Args[1] == "privileged":
		_, err := net.Listen("tcp", ":1023")
		fmt.Println("listen:", err)
		status, err := os.ReadFile("/proc/self/status")
		check(err)
		for _, line := range regexp.MustCompile("(?m)^(Uid|Gid|Groups|Cap...|NoNewPrivs):.*").FindAllString(string(status), -1) {
			fmt.Println(line)
		}
		fmt.Println("up")
		time.Sleep(time.Hour)
	case os.Args[1] == "leave":
		child := exec.Command(self, "stay")
		child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		out, err := child.StdoutPipe()
		check(err)
		check(child.Start())
		_, err = out.Read(make([]byte, 1)) // it is what it will be
		check(err)
		check(os.WriteFile(filepath.Join(filepath.Dir(self), "made"), nil, 0o600))
		check(os.Chmod(self, 0o700))
		dir, err := os.MkdirTemp("/tmp", "server-")
		check(err)
		check(os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
		check(os.RemoveAll(dir))
		return
	case os.Args[1] == "stay":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("here")
		time.Sleep(time.Hour)
	default:
		fmt.Println("arguments:", os.Args[1:], os.Getenv("GREETING"))
		os.Exit(7)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	var connections atomic.Int64
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "uid %d", os.Getuid()) })
	http.HandleFunc("/connections", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, connections.Load()) })
	server := http.Server{Addr: ":18080", ConnState: func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			connections.Add(1)
		case http.StateClosed:
			connections.Add(-1)
		}
	}}
	go func() { panic(server.ListenAndServe()) }()
	fmt.Println("up")
	<-stop
	fmt.Println("down")
	os.Exit(3)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
`

// compile compiles one file with the go command of the machine, into a directory that is open to every user.
func compile(t *testing.T, file string) string {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755))
	out := filepath.Join(dir, "server")
	c := exec.Command("go", "build", "-o", out, file)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	text, err := c.CombinedOutput()
	require.NoError(t, err, "%s", text)
	return out
}

// bindService is cap_net_bind_service as the kernel keeps it with a file, permitted and effective.
const bindService = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// image is an OCI layout with one program, and the digest of its manifest. The program's file has the given
// capabilities.
func image(t *testing.T, program, user, capability string) (layoutDir, manifest string) {
	content, err := os.ReadFile(program)
	require.NoError(t, err)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	header := &tar.Header{Name: "server", Mode: 0o755, Size: int64(len(content))}
	if capability != "" {
		header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": capability}
	}
	require.NoError(t, w.WriteHeader(header))
	_, err = w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	require.NoError(t, err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.Entrypoint, config.Config.User = []string{"/server"}, user
	config.Config.Volumes = map[string]struct{}{"/data": {}, "/tmp/more": {}, "/": {}}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	layoutDir = t.TempDir()
	l, err := layout.Write(layoutDir, empty.Index)
	require.NoError(t, err)
	require.NoError(t, l.AppendImage(img))
	digest, err := img.Digest()
	require.NoError(t, err)
	return layoutDir, digest.String()
}

// runAgent stands for the container of a service where no engine is: it starts the agent on this machine,
// with the arguments that the engine was asked to start it with, and returns its address. The directory of the
// program stands for the root file system.
func runAgent(t *testing.T, agent, program string) func(args []string) string {
	return func(args []string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		address := l.Addr().String()
		require.NoError(t, l.Close())
		var order map[string]any
		require.NoError(t, json.Unmarshal([]byte(args[1]), &order))
		_, order["port"], err = net.SplitHostPort(address)
		require.NoError(t, err)
		order["root"] = filepath.Dir(program)
		text, err := json.Marshal(order)
		require.NoError(t, err)
		c := exec.Command(agent, append([]string{string(text), program}, args[3:]...)...)
		c.Env = []string{"GREETING=hello"}
		require.NoError(t, c.Start())
		t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
		})
		for range 500 {
			if c, err := net.Dial("tcp", address); err == nil {
				_ = c.Close()
				return address
			}
			time.Sleep(10 * time.Millisecond)
		}
		require.Fail(t, "the agent does not listen")
		return ""
	}
}

// startServer starts the program as a user that may do nothing, or as root.
func startServer(t *testing.T, c engine.Container, user string) engine.Process {
	if os.Getuid() != 0 {
		t.Skip("only root has privileges that the agent can take from a program")
	}
	source := filepath.Join(program(t, map[string]string{"main.go": server}), "main.go")
	binary, capability := compile(t, source), ""
	if len(c.Capabilities) > 0 {
		capability = bindService
	}
	e, r := open(t, failingProgram(t), dagger.Options{})
	if !*onEngine {
		r.endpoint = runAgent(t, compile(t, filepath.Join("internal", "agent", "main.go")), binary)
		if capability != "" {
			require.NoError(t, unix.Setxattr(binary, "security.capability", []byte(capability), 0))
		}
	}
	c.Layout, c.Manifest = image(t, binary, user, capability)
	p, err := e.Start(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	return p
}

func TestServiceAnswersUntilItIsStopped(t *testing.T) {
	p := startServer(t, engine.Container{}, "65532:65532")
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Dial(ctx, 18080) }}}
	get := func(path string) string {
		r, err := client.Get("http://server" + path)
		if err != nil {
			return err.Error()
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	answer := ""
	require.Eventually(t, func() bool {
		answer = get("/")
		return strings.HasPrefix(answer, "uid ")
	}, time.Minute, 20*time.Millisecond)
	// The server sees when a connection is closed.
	idle, err := p.Dial(t.Context(), 18080)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return get("/connections") == "2" }, time.Minute, 20*time.Millisecond)
	require.NoError(t, idle.Close())
	require.Eventually(t, func() bool { return get("/connections") == "1" }, time.Minute, 20*time.Millisecond)
	ports, err := p.Listening(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []int{18080}, ports, "neither the agent's own nor one of another process")
	i := p.Isolation()
	assert.Equal(t, "service", i.Kind)
	assert.Contains(t, i.Holds, "capabilities")
	assert.Contains(t, i.Holds, "no-new-privileges")
	if *onEngine {
		assert.Equal(t, "uid 65532", answer)
		assert.Contains(t, i.Holds, "user")
	}
	_, err = p.Dial(t.Context(), 1)
	assert.ErrorContains(t, err, "refused")
	require.NoError(t, p.Signal(syscall.SIGTERM))
	x, err := p.Wait(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 3, x.Code)
	assert.Positive(t, x.MaxMemory)
	assert.Empty(t, x.Leftover)
	assert.Empty(t, x.Written)
	assert.Equal(t, "up\ndown\n", string(p.Output()))
}

func TestServiceEndsByItself(t *testing.T) {
	p := startServer(t, engine.Container{Args: []string{"once"}, Env: []string{"GREETING=hello"}}, "65532:65532")
	x, err := p.Wait(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 7, x.Code)
	assert.Equal(t, "arguments: [once] hello\n", string(p.Output()))
}

// What a program leaves behind is told, but for files in memory.
func TestServiceLeavesThingsBehind(t *testing.T) {
	p := startServer(t, engine.Container{Args: []string{"leave"}}, "0:0")
	x, err := p.Wait(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 0, x.Code, "%s", p.Output())
	assert.Equal(t, []string{"server"}, x.Leftover)
	assert.Equal(t, []string{"/made", "/server"}, x.Written)
	assert.Contains(t, p.Isolation().Holds, "capabilities")
	if *onEngine {
		assert.Contains(t, p.Isolation().Holds, "tmpfs")
	}
}

// The program has the capabilities of its file as an ordinary user, and no way to others.
func TestServiceWithCapabilities(t *testing.T) {
	p := startServer(t, engine.Container{Args: []string{"privileged"}, Capabilities: []string{"cap_net_bind_service"}}, "65532:65532")
	require.Eventually(t, func() bool { return bytes.HasSuffix(p.Output(), []byte("up\n")) }, time.Minute, 20*time.Millisecond)
	assert.Equal(t, "listen: <nil>\nUid:\t65532\t65532\t65532\t65532\nGid:\t65532\t65532\t65532\t65532\nGroups:\t65532 \n"+
		"CapInh:\t0000000000000000\nCapPrm:\t0000000000000400\nCapEff:\t0000000000000400\nCapBnd:\t0000000000000400\nCapAmb:\t0000000000000000\n"+
		"NoNewPrivs:\t0\nup\n", string(p.Output()))
	ports, err := p.Listening(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []int{1023}, ports)
	i := p.Isolation()
	assert.Contains(t, i.Holds, "user")
	assert.Contains(t, i.Holds, "capabilities")
	assert.Contains(t, i.Missing, "no-new-privileges: the image's files may give cap_net_bind_service, and setuid files their owner")
	for _, missing := range i.Missing {
		assert.NotContains(t, missing, "file capabilities")
	}
	require.NoError(t, p.Signal(syscall.SIGTERM))
	x, err := p.Wait(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "SIGTERM", x.Signal)
}

func TestServiceCannotHaveCapability(t *testing.T) {
	e, _ := open(t, failingProgram(t), dagger.Options{})
	c := engine.Container{Capabilities: []string{"cap_net_bind_service", "cap_sys_admin"}}
	c.Layout, c.Manifest = image(t, compile(t, filepath.Join("internal", "agent", "main.go")), "65532:65532", "")
	_, err := e.Start(t.Context(), c)
	requireFault(t, err, fault.Environment, "a Dagger service cannot have cap_sys_admin")
	c.Capabilities = []string{"cap_net_bind"}
	_, err = e.Start(t.Context(), c)
	requireFault(t, err, fault.Usage, `there is no capability "cap_net_bind"`)
}
