package oci

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Uncompress returns the tar stream of a layer, whatever it is compressed with: base images are made by
// others. Closing the result closes rc.
func Uncompress(rc io.ReadCloser) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(rc, blockSize)
	magic, err := buffered.Peek(4)
	if err != nil && err != io.EOF {
		rc.Close()
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			rc.Close()
			return nil, err
		}
		return readCloser{z, rc.Close}, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1))
		if err != nil {
			rc.Close()
			return nil, err
		}
		return readCloser{z, func() error { z.Close(); return rc.Close() }}, nil
	}
	return readCloser{buffered, rc.Close}, nil
}

type readCloser struct {
	io.Reader
	close func() error
}

func (r readCloser) Close() error { return r.close() }

// unpacked reads a layer to its end and returns the digest and the size of its tar stream.
func unpacked(rc io.ReadCloser) (v1.Hash, int64, error) {
	r, err := Uncompress(rc)
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
