package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/singleflight"
)

// cache keeps what was pulled, by digest, below one directory that many runs share at the same time:
// files appear whole by a rename, and what a file holds is compared with its digest whenever it is read,
// so that a damaged one is as good as none.
//
//	blobs/sha256/DIGEST   a manifest, a configuration or a layer
//	unpacked/DIGEST       the digest and size of that layer's tar stream
//	tmp/                  what is being written
type cache struct {
	dir     string
	flights singleflight.Group
}

func openCache(dir string) (*cache, error) {
	if dir == "" {
		return nil, errors.New("no directory for the cache of base images was given")
	}
	c := &cache{dir: dir}
	for _, d := range []string{blobDir(dir), filepath.Join(dir, "unpacked"), filepath.Join(dir, "tmp")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	// What killed runs left. No download takes a day.
	old, err := os.ReadDir(filepath.Join(dir, "tmp"))
	if err != nil {
		return nil, err
	}
	for _, f := range old {
		if info, err := f.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			os.Remove(filepath.Join(dir, "tmp", f.Name()))
		}
	}
	return c, nil
}

// document returns a manifest or configuration, fetched if it is not there.
func (c *cache) document(h v1.Hash, fetch func() ([]byte, error)) ([]byte, error) {
	path, err := blobPath(c.dir, h)
	if err != nil {
		return nil, err
	}
	if content, err := os.ReadFile(path); err == nil && hashOf(content) == h {
		return content, nil
	}
	content, err := fetch()
	if err != nil {
		return nil, err
	}
	return content, c.store(path, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// layer returns the file of a layer, fetched if it is not there. Only its size has been looked at: who
// reads it verifies it, and calls forget if it is damaged.
func (c *cache) layer(desc v1.Descriptor, fetch func(*os.File) error) (string, error) {
	path, err := blobPath(c.dir, desc.Digest)
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err == nil && info.Size() == desc.Size {
		return path, nil
	}
	// Several platforms often share a layer and ask for it at the same time.
	_, err, _ = c.flights.Do(path, func() (any, error) { return nil, c.store(path, fetch) })
	return path, err
}

func (c *cache) forget(h v1.Hash) {
	if path, err := blobPath(c.dir, h); err == nil {
		os.Remove(path)
	}
}

func (c *cache) store(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Join(c.dir, "tmp"), "*")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// unpackedLayer is what unpacking a layer has shown.
type unpackedLayer struct {
	DiffID v1.Hash `json:"diffId"`
	Size   int64   `json:"size"`
}

// unpacked returns what is known of a layer's tar stream, computed once.
func (c *cache) unpacked(h v1.Hash, compute func() (unpackedLayer, error)) (unpackedLayer, error) {
	path := filepath.Join(c.dir, "unpacked", h.Hex)
	var known unpackedLayer
	if content, err := os.ReadFile(path); err == nil && json.Unmarshal(content, &known) == nil && known.DiffID.Algorithm == "sha256" && known.Size > 0 {
		return known, nil
	}
	known, err := compute()
	if err != nil {
		return known, err
	}
	content, err := json.Marshal(known)
	if err != nil {
		return known, err
	}
	return known, c.store(path, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// source is where the parts of a base image come from.
type source interface {
	// document returns a manifest or a configuration, verified.
	document(ctx context.Context, desc v1.Descriptor, isManifest bool) ([]byte, error)
	// layer returns a file that holds a layer, not verified.
	layer(ctx context.Context, desc v1.Descriptor) (string, error)
	// damaged takes note that a file of layer was not what it should be, and tells whether to ask again.
	damaged(desc v1.Descriptor) bool
	// unpacked returns the digest and size of a layer's tar stream.
	unpacked(desc v1.Descriptor, compute func() (unpackedLayer, error)) (unpackedLayer, error)
}

// registrySource is a repository of a registry behind a cache.
type registrySource struct {
	cache       *cache
	session     func(context.Context) (*session, error)
	progress    func(done, total int64)
	done, total atomic.Int64
}

// Write takes note of bytes that have come.
func (r *registrySource) Write(p []byte) (int, error) {
	r.tell(r.done.Add(int64(len(p))))
	return len(p), nil
}

func (r *registrySource) tell(done int64) {
	if r.progress != nil {
		r.progress(done, r.total.Load())
	}
}

func (r *registrySource) document(ctx context.Context, desc v1.Descriptor, isManifest bool) ([]byte, error) {
	return r.cache.document(desc.Digest, func() ([]byte, error) {
		s, err := r.session(ctx)
		if err != nil {
			return nil, err
		}
		if isManifest {
			return s.manifest(ctx, desc.Digest)
		}
		if desc.Size > maxDocument {
			return nil, fmt.Errorf("configuration %s has %d bytes, more than %d are not read", desc.Digest, desc.Size, maxDocument)
		}
		var content bytes.Buffer
		err = s.blob(ctx, desc, &content, func() error { content.Reset(); return nil })
		return content.Bytes(), err
	})
}

func (r *registrySource) layer(ctx context.Context, desc v1.Descriptor) (string, error) {
	return r.cache.layer(desc, func(f *os.File) error {
		s, err := r.session(ctx)
		if err != nil {
			return err
		}
		r.total.Add(desc.Size)
		return s.blob(ctx, desc, io.MultiWriter(f, r), func() error {
			// What an earlier attempt brought comes again.
			again, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			r.done.Add(-again)
			if err := f.Truncate(0); err != nil {
				return err
			}
			_, err = f.Seek(0, io.SeekStart)
			return err
		})
	})
}

func (r *registrySource) damaged(desc v1.Descriptor) bool {
	r.cache.forget(desc.Digest)
	return true
}

func (r *registrySource) unpacked(desc v1.Descriptor, compute func() (unpackedLayer, error)) (unpackedLayer, error) {
	return r.cache.unpacked(desc.Digest, compute)
}

// layoutSource is an OCI layout on disk.
type layoutSource struct {
	dir   string
	cache *cache // for what unpacking has shown; may be nil
}

func (l *layoutSource) document(_ context.Context, desc v1.Descriptor, _ bool) ([]byte, error) {
	path, err := blobPath(l.dir, desc.Digest)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return readLimited(f, desc, "a document of the layout "+l.dir)
}

func (l *layoutSource) layer(_ context.Context, desc v1.Descriptor) (string, error) {
	path, err := blobPath(l.dir, desc.Digest)
	if err == nil {
		_, err = os.Stat(path)
	}
	return path, err
}

func (l *layoutSource) damaged(v1.Descriptor) bool { return false }

func (l *layoutSource) unpacked(desc v1.Descriptor, compute func() (unpackedLayer, error)) (unpackedLayer, error) {
	if l.cache == nil {
		return compute()
	}
	return l.cache.unpacked(desc.Digest, compute)
}
