//go:build linux

package dagger_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/dagger"
)

const server = `package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Println("arguments:", os.Args[1:], os.Getenv("GREETING"))
		os.Exit(7)
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "uid %d", os.Getuid()) })
	go func() { panic(http.ListenAndServe(":18080", nil)) }()
	fmt.Println("up")
	<-stop
	fmt.Println("down")
	os.Exit(3)
}
`

// compile compiles one file with the go command of the machine.
func compile(t *testing.T, file string) string {
	out := filepath.Join(t.TempDir(), "program")
	c := exec.Command("go", "build", "-o", out, file)
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	text, err := c.CombinedOutput()
	require.NoError(t, err, "%s", text)
	return out
}

// image is an OCI layout with one program, and the digest of its manifest.
func image(t *testing.T, program, user string) (layoutDir, manifest string) {
	content, err := os.ReadFile(program)
	require.NoError(t, err)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "server", Mode: 0o755, Size: int64(len(content))}))
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
// with the arguments that the engine was asked to start it with, and returns its address.
func runAgent(t *testing.T, agent, program string) func(args []string) string {
	return func(args []string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		address := l.Addr().String()
		require.NoError(t, l.Close())
		_, port, err := net.SplitHostPort(address)
		require.NoError(t, err)
		c := exec.Command(agent, append([]string{port, args[2], program}, args[4:]...)...)
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

func startServer(t *testing.T, c engine.Container) engine.Process {
	if os.Getuid() != 0 {
		t.Skip("only root has privileges that the agent can take from a program")
	}
	source := filepath.Join(program(t, map[string]string{"main.go": server}), "main.go")
	binary := compile(t, source)
	e, r := open(t, failingProgram(t), dagger.Options{})
	if !*onEngine {
		r.endpoint = runAgent(t, compile(t, filepath.Join("internal", "agent", "main.go")), binary)
	}
	c.Layout, c.Manifest = image(t, binary, "65532:65532")
	p, err := e.Start(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	return p
}

func TestServiceAnswersUntilItIsStopped(t *testing.T) {
	p := startServer(t, engine.Container{})
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return p.Dial(ctx, 18080) }}}
	var answer string
	require.Eventually(t, func() bool {
		r, err := client.Get("http://server/")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		answer = string(b)
		return err == nil
	}, time.Minute, 20*time.Millisecond)
	assert.Contains(t, answer, "uid ")
	ports, err := p.Listening(t.Context())
	require.NoError(t, err)
	// Neither the agent's own nor one of another process.
	if *onEngine {
		assert.Equal(t, []int{18080}, ports)
	} else {
		assert.Contains(t, ports, 18080)
	}
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
	assert.Equal(t, "up\ndown\n", string(p.Output()))
}

func TestServiceEndsByItself(t *testing.T) {
	p := startServer(t, engine.Container{Args: []string{"once"}, Env: []string{"GREETING=hello"}})
	x, err := p.Wait(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 7, x.Code)
	assert.Equal(t, "arguments: [once] hello\n", string(p.Output()))
}
