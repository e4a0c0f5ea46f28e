package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/rogpeppe/go-internal/testscript"
)

var frozen sync.Map // addresses of registries

// startRegistry starts a registry that lasts as long as the script and sets REGISTRY to its address. It is
//
//	registry                 open to everybody
//	registry USER PASSWORD   open to one user, and BASIC is what travels for him
//	registry refuse          closed to the unknown, and to be read only; repeats in its answer what it was sent
//	registry dies            gone for good after the first blob has arrived
//	registry debian          Debian's docker-registry, a program of its own
//
// registry freeze lets the one that runs fail everything that is no question from now on.
func startRegistry(ts *testscript.TestScript, neg bool, args []string) {
	kind := strings.Join(args, " ")
	if neg || len(args) > 2 {
		ts.Fatalf("usage: registry [USER PASSWORD | refuse | dies | debian]")
	}
	if kind == "freeze" {
		frozen.Store(ts.Getenv("REGISTRY"), true)
		return
	}
	if kind == "debian" {
		startDebian(ts)
		return
	}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewUnstartedServer(nil)
	var dead atomic.Bool
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if dead.Load() {
			panic(http.ErrAbortHandler)
		}
		user, password, known := r.BasicAuth()
		status := 0
		_, closed := frozen.Load(server.Listener.Addr().String())
		switch {
		case closed && r.Method != http.MethodGet && r.Method != http.MethodHead:
			status = http.StatusMethodNotAllowed
		case len(args) == 2 && (user != args[0] || password != args[1]), kind == "refuse" && !known:
			status = http.StatusUnauthorized
			w.Header().Set("WWW-Authenticate", `Basic realm="scripts"`)
		case kind == "refuse" && r.Method != http.MethodGet && r.Method != http.MethodHead:
			status = http.StatusForbidden
		}
		if status != 0 {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			message := "go away, " + user + " with " + password + " (" + r.Header.Get("Authorization") + ")"
			_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": "DENIED", "message": message}}})
			return
		}
		inner.ServeHTTP(w, r)
		if kind == "dies" && r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") && !dead.Swap(true) {
			_ = server.Listener.Close()
		}
	})
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	ts.Defer(server.Close)
	ts.Setenv("REGISTRY", server.Listener.Addr().String())
	if len(args) == 2 {
		ts.Setenv("BASIC", base64.StdEncoding.EncodeToString([]byte(args[0]+":"+args[1])))
	}
}

var listens = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// startDebian starts the program docker-registry on a free port, which it names in its log.
func startDebian(ts *testscript.TestScript) {
	dir := ts.MkAbs(".registry")
	ts.Check(os.MkdirAll(dir, 0o755))
	config := filepath.Join(dir, "config.yml")
	ts.Check(os.WriteFile(config, []byte("version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: "+dir+"}}\nhttp: {addr: '127.0.0.1:0'}\n"), 0o600))
	cmd := exec.Command("docker-registry", "serve", config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none"}
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	drained := make(chan struct{})
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		<-drained
		_ = cmd.Wait()
	})
	lines := bufio.NewReader(stderr)
	address := ""
	for address == "" && err == nil {
		var line string
		if line, err = lines.ReadString('\n'); listens.MatchString(line) {
			address = listens.FindStringSubmatch(line)[1]
		}
	}
	go func() {
		defer close(drained)
		_, _ = io.Copy(io.Discard, lines)
	}()
	if address == "" {
		ts.Fatalf("docker-registry does not listen: %v", err)
	}
	ts.Setenv("REGISTRY", address)
}

func tagDigest(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tag VARIABLE REFERENCE")
	}
	ref, err := name.ParseReference(args[1], name.Insecure)
	ts.Check(err)
	d, err := remote.Head(ref)
	if answer, ok := errors.AsType[*transport.Error](err); ok && answer.StatusCode == http.StatusNotFound {
		ts.Setenv(args[0], "none")
		return
	}
	ts.Check(err)
	ts.Setenv(args[0], d.Digest.String())
}
