// Package uncompress undoes the compression of image layers.
package uncompress

import (
	"bufio"
	"bytes"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Layer returns the tar stream of a layer, whatever it is compressed with: base images are made by others, and
// media types lie. Closing the result closes rc.
func Layer(rc io.ReadCloser) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(rc, 64<<10)
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
		// The window bounds the memory; zstd's own tools go no further without being told to.
		z, err := zstd.NewReader(buffered, zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderConcurrency(1))
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
