package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// pushEmbedded publishes to a registry that lives in this process for the length of the call: the same
// requests over HTTP as for any other, without one.
func pushEmbedded(ctx context.Context, l *layout, o PushOptions) (result *Pushed, err error) {
	dir, err := os.MkdirTemp("", "slipway-registry-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("embedded registry: %w", err)
	}
	server := &http.Server{Handler: newEmbedded(dir), ErrorLog: log.New(io.Discard, "", 0)}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		server.Serve(listener)
	}()
	defer func() {
		server.Close()
		<-stopped
	}()
	// Nobody else's credentials belong here.
	o.Auth = Auth{Keychain: authn.NewMultiKeychain()}
	target := listener.Addr().String() + "/slipway/image"
	if len(o.Tags) == 0 {
		target += ":embedded"
	}
	p, err := newPush(ctx, l, target, o)
	if err != nil {
		return nil, err
	}
	if err := p.prepare(ctx); err != nil {
		return nil, err
	}
	return (&Publication{push: p}).complete(ctx)
}

// embedded is a registry with its blobs on disk. The library's own registry does the rest, but would hold
// every upload in memory until it is complete.
type embedded struct {
	dir      string
	registry http.Handler
	uploads  atomic.Int64
}

func newEmbedded(dir string) http.Handler {
	return &embedded{dir: dir, registry: registry.New(
		registry.Logger(log.New(io.Discard, "", 0)),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
	)}
}

func (e *embedded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	before, id, ok := strings.Cut(r.URL.Path, "/blobs/uploads/")
	if !ok {
		e.registry.ServeHTTP(w, r)
		return
	}
	if err := e.upload(w, r, before, id); err != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": "BLOB_UPLOAD_UNKNOWN", "message": err.Error()}}})
	}
}

// upload serves the three requests of an upload: POST begins it, PATCH brings the content, PUT names it.
func (e *embedded) upload(w http.ResponseWriter, r *http.Request, before, id string) error {
	if r.Method == http.MethodPost {
		w.Header().Set("Location", fmt.Sprintf("%s/blobs/uploads/%d", before, e.uploads.Add(1)))
		w.WriteHeader(http.StatusAccepted)
		return nil
	}
	if id == "" || id != path.Base(id) || strings.Trim(id, "0123456789") != "" {
		return fmt.Errorf("there is no upload %q", id)
	}
	file := filepath.Join(e.dir, "upload-"+id)
	switch r.Method {
	case http.MethodPatch:
		f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		_, err = copyBuffer(f, r.Body)
		if closed := f.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return err
		}
		w.Header().Set("Location", r.URL.Path)
		w.WriteHeader(http.StatusAccepted)
		return nil
	case http.MethodPut:
		want, err := v1.NewHash(r.URL.Query().Get("digest"))
		if err != nil {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		sum := newHasher()
		_, err = copyBuffer(sum, f)
		f.Close()
		if err != nil {
			return err
		}
		if sum.hash() != want {
			return &DigestError{What: "upload", Want: want.String(), Got: sum.hash().String()}
		}
		if err := os.MkdirAll(filepath.Join(e.dir, want.Algorithm), 0o700); err != nil {
			return err
		}
		if err := os.Rename(file, filepath.Join(e.dir, want.Algorithm, want.Hex)); err != nil {
			return err
		}
		w.Header().Set("Docker-Content-Digest", want.String())
		w.WriteHeader(http.StatusCreated)
		return nil
	}
	return fmt.Errorf("method %s is not for uploads", r.Method)
}
