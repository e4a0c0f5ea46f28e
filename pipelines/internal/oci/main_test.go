package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/stretchr/testify/require"
)

// TestMain makes sure that no test reaches another machine.
func TestMain(m *testing.M) {
	transport := remote.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, fmt.Errorf("a test tried to reach %s", address)
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	remote.DefaultTransport = transport
	os.Exit(m.Run())
}

var (
	commitTime = time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.FixedZone("somewhere", 2*3600))
	nobody     = Auth{Keychain: authn.NewMultiKeychain()} // finds no credentials
)

const fast = time.Millisecond

// content is data of a given size that compresses about as well as a program does, the same in each run.
func content(size int, seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, 0, size+64)
	for len(data) < size {
		switch random.IntN(4) {
		case 0:
			for range 32 {
				data = append(data, byte(random.Uint32()))
			}
		case 1:
			data = append(data, bytes.Repeat([]byte{byte(random.Uint32())}, random.IntN(64))...)
		case 2:
			data = fmt.Appendf(data, "func (t *T%d) method%d() error", random.IntN(100), random.IntN(1000))
		case 3:
			if n := len(data); n > 300 {
				from := random.IntN(n - 200)
				data = append(data, data[from:from+random.IntN(200)]...)
			}
		}
	}
	return data[:size]
}

func writeTestFile(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, data, 0o600))
	return path
}

// testSpec writes layers into dir and returns what Assemble makes an image of.
func testSpec(t *testing.T, dir string, platforms ...string) Spec {
	t.Helper()
	if len(platforms) == 0 {
		platforms = []string{"linux/arm64", "linux/amd64", "linux/arm/v7"}
	}
	certificates, err := Certificates()
	require.NoError(t, err)
	common, err := WriteLayer(dir, "certificates", certificates, LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	accounts, err := WriteLayer(dir, "accounts", append(Accounts(), Temp()...), LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	spec := Spec{
		Created:     commitTime,
		Annotations: map[string]string{"org.opencontainers.image.revision": "0123456789abcdef"},
	}
	for i, p := range platforms {
		binary := writeTestFile(t, "app", content(200_000, uint64(100+i)))
		layer, err := WriteLayer(dir, "application", []Entry{{Path: "app/server", Mode: 0o755, File: binary}}, LayerOptions{ModTime: commitTime})
		require.NoError(t, err)
		spec.Images = append(spec.Images, ImageSpec{
			Platform: p,
			Layers:   []*Layer{common, accounts, layer},
			Config: Config{
				User:         "65532:65532",
				Entrypoint:   []string{"/app/server"},
				Cmd:          []string{"serve"},
				Env:          []string{"PATH=/app", "TZ=UTC"},
				WorkingDir:   "/home/nonroot",
				ExposedPorts: []string{"8080", "53/udp"},
				Volumes:      []string{"/data"},
				StopSignal:   "SIGTERM",
				Labels:       map[string]string{"org.opencontainers.image.version": "v1.2.3", "a<b": "c&d"},
			},
			Annotations: map[string]string{"org.opencontainers.image.created": "2024-05-06T05:08:09Z"},
		})
	}
	return spec
}

// testLayout assembles an image and returns its directory.
func testLayout(t *testing.T, platforms ...string) (string, *Index) {
	t.Helper()
	dir := t.TempDir()
	index, err := Assemble(t.Context(), dir, testSpec(t, dir, platforms...))
	require.NoError(t, err)
	return dir, index
}

// tree returns every file below dir with its content, and nothing that depends on the place or time.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		info, statErr := d.Info()
		name, relErr := filepath.Rel(dir, path)
		if err := errors.Join(err, statErr, relErr); err != nil {
			return err
		}
		files[name] = fmt.Sprintf("%v %s", info.Mode(), hashOf(data))
		return nil
	}))
	return files
}

// newRegistry starts the library's registry and returns its host.
func newRegistry(t *testing.T) string {
	t.Helper()
	return newServer(t, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
}

func newServer(t *testing.T, handler http.Handler) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// newProxy starts a proxy before the registry at host. It calls hook for each request; one that hook has
// answered goes no further.
func newProxy(t *testing.T, host string, hook func(w http.ResponseWriter, r *http.Request) (answered bool)) string {
	t.Helper()
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	return newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hook(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
}

// dropConnection ends a request as a registry does that is killed.
func dropConnection(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	conn.(*net.TCPConn).SetLinger(0) // a reset, not an end
	conn.Close()
}

// tool finds a program or skips the test.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// run runs a program to its end, without the credentials and settings of the machine.
func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	home := t.TempDir()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, "XDG_RUNTIME_DIR=" + home}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoErrorf(t, err, "%s %s\n%s%s", program, strings.Join(args, " "), out, &stderr)
	return string(out)
}

// newDockerRegistry starts the distribution project's registry and returns its host.
func newDockerRegistry(t *testing.T) string {
	t.Helper()
	program := tool(t, "docker-registry")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := free.Addr().String()
	require.NoError(t, free.Close())
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: %q}}
http: {addr: %q}
`, filepath.Join(dir, "data"), host), 0o600))
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "OTEL_TRACES_EXPORTER=none"}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		response, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			response.Body.Close()
			return host
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("docker-registry ended: %v\n%s", err, &output)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer: %v", err)
		}
	}
}
