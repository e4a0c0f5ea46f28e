package oci

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipway-ci/slipway/pipelines/internal/uncompress"
)

// LayerInfo describes a layer in results and records.
type LayerInfo struct {
	// Kind says what the layer holds: "base", "certificates", "application" and so on.
	Kind string `json:"kind"`
	// Digest is the digest of the compressed layer, as registries know it.
	Digest string `json:"digest"`
	// DiffID is the digest of the uncompressed layer. It does not depend on the compressor.
	DiffID string `json:"diffId"`
	// Size is the compressed size in bytes.
	Size int64 `json:"size"`
	// UncompressedSize is the size in bytes of the uncompressed tar stream.
	UncompressedSize int64 `json:"uncompressedSize"`
}

// Layer is a layer in a file. It implements v1.Layer.
type Layer struct {
	// Info describes the layer. It must not be changed.
	Info LayerInfo

	path           string
	digest, diffID v1.Hash
	mediaType      types.MediaType
}

// LayerOptions say how a layer is written.
type LayerOptions struct {
	// ModTime is the time of every entry, cut to seconds.
	ModTime time.Time
	// Compression is the format of the layer.
	Compression Compression
	// CacheDir keeps compressed layers for later runs. Any number of runs may share it at the same time. Empty
	// means none.
	CacheDir string
}

// WriteLayer writes a layer with entries into the layout at dir. Directories on the way to an entry become
// entries too (owned by root, mode 0755), which also sets the owner and mode of those that a base image has:
// entries belong into directories of their own, or into ones like /usr/bin that look so everywhere.
//
// Content is streamed: memory does not grow with the size of the files. A layer that the cache holds is not
// compressed again.
func WriteLayer(dir, kind string, entries []Entry, o LayerOptions) (*Layer, error) {
	sorted, err := arrange(entries, true)
	if err != nil {
		return nil, fmt.Errorf("layer %q: %w", kind, err)
	}
	if err := os.MkdirAll(blobDir(dir), 0o755); err != nil {
		return nil, err
	}
	info, err := writeLayer(dir, sorted, o)
	if err != nil {
		return nil, fmt.Errorf("layer %q: %w", kind, err)
	}
	info.Kind = kind
	l := &Layer{Info: info, mediaType: types.OCILayer}
	if o.Compression == Zstd {
		l.mediaType = types.OCILayerZStd
	}
	if l.digest, err = v1.NewHash(info.Digest); err != nil {
		return nil, err
	}
	if l.diffID, err = v1.NewHash(info.DiffID); err != nil {
		return nil, err
	}
	l.path = filepath.Join(blobDir(dir), l.digest.Hex)
	return l, nil
}

func writeLayer(dir string, sorted []Entry, o LayerOptions) (LayerInfo, error) {
	var key string
	if o.CacheDir != "" {
		var err error
		if key, err = layerKey(sorted, o); err != nil {
			return LayerInfo{}, err
		}
		if info, ok := cachedLayer(o.CacheDir, key, dir); ok {
			return info, nil
		}
	}
	diff, blob := newHasher(), newHasher()
	err := writeAtomic(blobDir(dir), func(f *os.File) (string, error) {
		err := compress(o.Compression, io.MultiWriter(blob, f), diff, func(w io.Writer) error {
			return writeTar(w, sorted, o.ModTime.Truncate(time.Second))
		})
		return blob.hash().Hex, err
	})
	info := LayerInfo{Digest: blob.hash().String(), DiffID: diff.hash().String(), Size: blob.size, UncompressedSize: diff.size}
	if err == nil && key != "" {
		cacheLayer(o.CacheDir, key, dir, info)
	}
	return info, err
}

var _ v1.Layer = (*Layer)(nil)

// Digest implements v1.Layer.
func (l *Layer) Digest() (v1.Hash, error) { return l.digest, nil }

// DiffID implements v1.Layer.
func (l *Layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Size implements v1.Layer.
func (l *Layer) Size() (int64, error) { return l.Info.Size, nil }

// MediaType implements v1.Layer.
func (l *Layer) MediaType() (types.MediaType, error) { return l.mediaType, nil }

// Compressed implements v1.Layer.
func (l *Layer) Compressed() (io.ReadCloser, error) { return os.Open(l.path) }

// Uncompressed implements v1.Layer.
func (l *Layer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	return uncompress.Layer(f)
}

func (l *Layer) descriptor() v1.Descriptor {
	return v1.Descriptor{MediaType: l.mediaType, Size: l.Info.Size, Digest: l.digest}
}

// unpacked reads a layer to its end and returns the digest and the size of its tar stream.
func unpacked(rc io.ReadCloser) (v1.Hash, int64, error) {
	r, err := uncompress.Layer(rc)
	if err != nil {
		return v1.Hash{}, 0, fmt.Errorf("cannot be uncompressed: %w", err)
	}
	defer r.Close()
	h := newHasher()
	if _, err := copyBuffer(h, r); err != nil {
		return v1.Hash{}, 0, fmt.Errorf("cannot be uncompressed: %w", err)
	}
	return h.hash(), h.size, nil
}
