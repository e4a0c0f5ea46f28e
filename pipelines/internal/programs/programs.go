// Package programs finds the Go programs in an image that anyone may have made.
package programs

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/internal/binary"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// Limits of what is read of a foreign image.
const (
	maxUnpacked = 64 << 30 // bytes of all layers
	maxPrograms = 256
	maxProgram  = 2 << 30 // bytes of one program, which is kept on disk while it is looked at
)

// Program is a Go program in an image.
type Program struct {
	Path   string // absolute
	SHA256 string // in hex
	Size   int64  // in bytes
	Info   *debug.BuildInfo
	// Stripped tells that it has no symbol table, Dynamic that it needs shared libraries.
	Stripped, Dynamic bool
}

// A DamagedError says what is wrong with an image itself.
type DamagedError struct{ What string }

func (e *DamagedError) Error() string { return e.What }

// Read reads all layers of an image, which are verified by that, and describes the Go programs that are
// left when all of them lie upon each other. It needs a directory, for one program at a time.
func Read(ctx context.Context, img v1.Image, dir string) ([]Program, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	found := map[string]Program{}
	left := int64(maxUnpacked)
	for i, l := range layers {
		if err := readLayer(ctx, l, config.RootFS.DiffIDs[i], dir, found, &left); err != nil {
			return nil, err
		}
	}
	var all []Program
	for _, p := range found {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Program) int { return cmp.Compare(a.Path, b.Path) })
	return all, nil
}

func readLayer(ctx context.Context, l v1.Layer, diffID v1.Hash, dir string, found map[string]Program, left *int64) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	h := sha256.New()
	limited := &limitedReader{r: io.TeeReader(rc, h), ctx: ctx, left: left}
	t := tar.NewReader(limited)
	for {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return layerError(err)
		}
		name := path.Clean("/" + header.Name)
		base := path.Base(name)
		// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts
		if base == ".wh..wh..opq" {
			forget(found, path.Dir(name)+"/")
			continue
		}
		if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
			delete(found, path.Join(path.Dir(name), hidden))
			forget(found, path.Join(path.Dir(name), hidden)+"/")
			continue
		}
		delete(found, name)
		if header.Typeflag == tar.TypeLink {
			if p, ok := found[path.Clean("/"+header.Linkname)]; ok {
				p.Path = name
				found[name] = p
			}
			continue
		}
		// Such a file is as large as it says without any bytes: https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#file-types
		if _, sparse := header.PAXRecords["GNU.sparse.major"]; sparse || header.Typeflag == tar.TypeGNUSparse {
			return &DamagedError{"a layer has a sparse file, " + name}
		}
		if header.Typeflag != tar.TypeReg || header.Mode&0o111 == 0 || header.Size > maxProgram {
			continue
		}
		p, err := readProgram(t, name, filepath.Join(dir, "program"))
		if err != nil {
			return layerError(err)
		}
		if p == nil {
			continue
		}
		if len(found) == maxPrograms {
			return &DamagedError{fmt.Sprintf("it has more than %d Go programs", maxPrograms)}
		}
		found[name] = *p
	}
	// What follows the end of the archive belongs to the layer too.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return layerError(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return &DamagedError{fmt.Sprintf("a layer unpacks to sha256:%s, but the configuration says %s", got, diffID)}
	}
	return nil
}

func forget(found map[string]Program, below string) {
	for name := range found {
		if strings.HasPrefix(name, below) {
			delete(found, name)
		}
	}
}

// layerError tells a damaged layer from one that could not be fetched.
func layerError(err error) error {
	var fetch *oci.FetchError
	var digest *oci.DigestError
	var path *os.PathError
	var damaged *DamagedError
	if errors.As(err, &fetch) || errors.As(err, &digest) || errors.As(err, &path) || errors.As(err, &damaged) || errors.Is(err, context.Canceled) {
		return err
	}
	return &DamagedError{"a layer cannot be unpacked: " + err.Error()}
}

// readProgram describes what comes from r, nil if it is no Go program.
func readProgram(r io.Reader, name, spool string) (*Program, error) {
	magic := make([]byte, 4)
	n, err := io.ReadFull(r, magic)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil
	}
	if err != nil || string(magic[:n]) != "\x7fELF" {
		return nil, err
	}
	f, err := os.Create(spool)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	w := io.MultiWriter(f, h)
	_, _ = w.Write(magic)
	size, err := io.Copy(w, r)
	if err != nil {
		return nil, err
	}
	p := &Program{Path: name, SHA256: hex.EncodeToString(h.Sum(nil)), Size: size + 4}
	if p.Info, err = buildinfo.Read(f); err != nil {
		return nil, nil // of another language, or damaged: nothing that Go can tell of it
	}
	content, err := binary.Read(f, p.Size)
	if err != nil {
		return nil, &DamagedError{fmt.Sprintf("%s: %v", name, err)}
	}
	p.Dynamic, p.Stripped = content.Dynamic, true
	for _, s := range content.Sections {
		p.Stripped = p.Stripped && s.Name != ".symtab"
	}
	return p, nil
}

// limitedReader ends with an error when an image unpacks to more than anyone needs, or when ctx is done.
type limitedReader struct {
	r    io.Reader
	ctx  context.Context
	left *int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.r.Read(p)
	if *l.left -= int64(n); *l.left < 0 {
		return n, &DamagedError{"it unpacks to more than 64 GiB"}
	}
	return n, err
}
