// Package oci writes, reads and publishes container images.
//
// Images are OCI layouts on disk that are assembled without a container engine, from layers that this
// package writes itself and from base images that are carried over byte for byte. The same input gives
// the same bytes: in another directory, on another machine, at another time, and when slipway was built
// by another Go release. That is why layers and archives are compressed by a library at a fixed version
// (see [Compressor]) and why nothing here reads the clock, the environment or the names of users.
//
// The parts, in the order in which a build uses them:
//
//	WriteLayer                        a layer from files, streamed
//	Certificates, TimeZones, ...      what a program needs around it in an image
//	ResolveBase, Base.Image           the image below
//	Assemble                          an OCI layout with one image index
//	Push                              that layout to a registry, a directory or a file, and read back
//	WriteTarGz, WriteZip              archives for people who want no image
package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// blockSize is the size of the blocks in which data moves.
const blockSize = 64 << 10

// writeAtomic writes a file of dir that appears complete or not at all. The writer function returns its
// name, which may depend on the content. It is safe when several processes write the same file.
func writeAtomic(dir string, write func(f *os.File) (name string, err error)) (err error) {
	f, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	name, err := write(f)
	if err != nil {
		return err
	}
	// CreateTemp makes files that only their owner may read.
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}

// writeFile is writeAtomic for content that is at hand.
func writeFile(path string, content []byte) error {
	return writeAtomic(filepath.Dir(path), func(f *os.File) (string, error) {
		_, err := f.Write(content)
		return filepath.Base(path), err
	})
}

// blobDir is where a layout (and the cache of blobs) keeps content by digest.
func blobDir(layout string) string { return filepath.Join(layout, "blobs", "sha256") }

// blobPath is the file of one blob. A digest of another algorithm has no place in a layout of ours.
func blobPath(layout string, h v1.Hash) (string, error) {
	if h.Algorithm != "sha256" || len(h.Hex) != hex.EncodedLen(sha256.Size) {
		return "", fmt.Errorf("digest %s is not a sha256 digest", h)
	}
	return filepath.Join(blobDir(layout), h.Hex), nil
}

// hashOf is the digest of content that is at hand.
func hashOf(content []byte) v1.Hash {
	sum := sha256.Sum256(content)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// writeBlob stores small content under its digest.
func writeBlob(layout string, content []byte) (v1.Hash, error) {
	h := hashOf(content)
	return h, writeFile(filepath.Join(blobDir(layout), h.Hex), content)
}

// hasher is a writer that takes the sha256 and the length of what is written to it.
type hasher struct {
	sum  interface{ Sum([]byte) []byte }
	w    io.Writer
	size int64
}

func newHasher() *hasher {
	h := sha256.New()
	return &hasher{sum: h, w: h}
}

func (h *hasher) Write(p []byte) (int, error) {
	h.size += int64(len(p))
	return h.w.Write(p)
}

func (h *hasher) hash() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.sum.Sum(nil))}
}

// A DigestError says that content is not what its digest promises.
type DigestError struct {
	// What the content is and where it lies: "layer of registry.example/app".
	What string
	// Want is the digest that was promised, Got the one found; Got is empty when only the size was wrong
	// or when the other side's library found the difference.
	Want, Got string
	// Err holds further detail, if any.
	Err error
}

func (e *DigestError) Error() string {
	s := fmt.Sprintf("%s is not what its digest says: want %s", e.What, e.Want)
	if e.Got != "" {
		s += ", got " + e.Got
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *DigestError) Unwrap() error { return e.Err }

// verifier passes on a stream and gives a DigestError in place of io.EOF when the stream was not the
// content that desc describes.
type verifier struct {
	r    io.Reader
	c    io.Closer
	h    *hasher
	desc v1.Descriptor
	what string
}

func newVerifier(r io.ReadCloser, desc v1.Descriptor, what string) *verifier {
	return &verifier{r: r, c: r, h: newHasher(), desc: desc, what: what}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.h.Write(p[:n])
	if v.h.size > v.desc.Size {
		return n, &DigestError{What: v.what, Want: v.desc.Digest.String(), Err: fmt.Errorf("it is longer than %d bytes", v.desc.Size)}
	}
	if err == io.EOF {
		if got := v.h.hash(); got != v.desc.Digest || v.h.size != v.desc.Size {
			return n, &DigestError{What: v.what, Want: v.desc.Digest.String(), Got: got.String()}
		}
	}
	return n, err
}

func (v *verifier) Close() error { return v.c.Close() }

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// copyBlob puts a blob into a layout, verified while it is copied. A file that is already there is kept
// if it is what its name says. count, if not nil, is told how many bytes went by.
func copyBlob(ctx context.Context, layout string, desc v1.Descriptor, what string, open func() (io.ReadCloser, error), count func(int64)) error {
	path, err := blobPath(layout, desc.Digest)
	if err != nil {
		return err
	}
	if count == nil {
		count = func(int64) {}
	}
	if err := verifyFile(ctx, path, desc, what); err == nil {
		count(desc.Size)
		return nil
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	rc, err := open()
	if err != nil {
		return err
	}
	v := newVerifier(rc, desc, what)
	defer v.Close()
	return writeAtomic(filepath.Dir(path), func(f *os.File) (string, error) {
		_, err := copyBuffer(io.MultiWriter(f, counter(count)), contextReader{ctx, v})
		return filepath.Base(path), err
	})
}

// counter turns a function into a writer.
type counter func(int64)

func (c counter) Write(p []byte) (int, error) {
	c(int64(len(p)))
	return len(p), nil
}

// copyBuffer is io.Copy in large blocks. It hides the special cases of io.Copy, which would take smaller ones.
func copyBuffer(w io.Writer, r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, blockSize))
}

// verifyFile reads a file to its end and compares it with desc.
func verifyFile(ctx context.Context, path string, desc v1.Descriptor, what string) error {
	// Links could lead out of the layout, and devices never end.
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	v := newVerifier(f, desc, what)
	defer v.Close()
	_, err = copyBuffer(io.Discard, contextReader{ctx, v})
	return err
}

// readLimited reads a small file whole, such as a manifest, and verifies it.
func readLimited(r io.ReadCloser, desc v1.Descriptor, what string) ([]byte, error) {
	v := newVerifier(r, desc, what)
	defer v.Close()
	if desc.Size < 0 || desc.Size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, more than %d are not read", what, desc.Size, maxDocument)
	}
	return io.ReadAll(v)
}

// maxDocument is the largest manifest, index or configuration that is read: what the distribution
// specification asks registries to accept.
const maxDocument = 4 << 20

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
