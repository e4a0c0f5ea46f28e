// Package layers reads the file system that the layers of an image make. Anyone may have made the image.
package layers

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// Limits of what is read of a foreign image.
const (
	maxUnpacked = 64 << 30  // bytes of all layers
	maxTree     = 512 << 20 // bytes of memory for names, links and what was found, of all layers, counted generously
	maxPath     = 4096      // bytes, as Linux has it
	maxLinks    = 40        // symbolic links in one path, as Linux has it
)

// A DamagedError says what is wrong with an image itself.
type DamagedError struct{ What string }

func (e *DamagedError) Error() string { return e.What }

// Found is what is kept of a regular file.
type Found interface {
	// Bytes is about how much memory is behind a value. There is an end to what an image may take.
	Bytes() int
}

// File is whatever is no directory. All of its hard links share it.
type File[T Found] struct {
	Kind  byte // as in an archive
	Mode  int64
	Size  int64
	Link  string // target of a symbolic link
	Found T      // in a regular file
}

// node is a name in a directory.
type node[T Found] struct {
	file     *File[T]            // nil for a directory
	children map[string]*node[T] // nil for a file
	length   int                 // of its path
	layer    int                 // that it comes from, from 1
	pruned   int                 // layer that has last hidden what lower ones have in this directory
}

// Tree is what layers make when they lie upon each other. It is as large as the number of names in it, whatever the files hold.
type Tree[T Found] struct {
	root     *node[T]
	layer    int   // that is read, from 1
	memory   int   // bytes that may still be used
	unpacked int64 // bytes that layers may still have
	look     func(layer int, name string, header *tar.Header, content io.Reader) (T, error)
}

// Read reads all layers of an image, lowest first, which are verified by that. It is a *DamagedError that an image is
// not what it should be. What look finds in a regular file is kept with it; layers count from 0, and the name may
// lead through symbolic links.
func Read[T Found](ctx context.Context, img v1.Image, look func(layer int, name string, header *tar.Header, content io.Reader) (T, error)) (*Tree[T], error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(config.RootFS.DiffIDs) {
		return nil, &DamagedError{fmt.Sprintf("the image has %d layers, but its configuration lists %d", len(layers), len(config.RootFS.DiffIDs))}
	}
	t := &Tree[T]{root: &node[T]{children: map[string]*node[T]{}}, memory: maxTree, unpacked: maxUnpacked, look: look}
	for i, l := range layers {
		t.layer = i + 1
		got, err := t.add(ctx, l)
		if err != nil {
			return nil, t.layerError(ctx, err)
		}
		if want := config.RootFS.DiffIDs[i]; got != want.Hex {
			return nil, &DamagedError{fmt.Sprintf("layer %d unpacks to sha256:%s, but the configuration says %s", t.layer, got, want)}
		}
	}
	return t, nil
}

// Find returns the regular file that a path leads to, nil if there is none. Links are followed as the kernel does.
func (t *Tree[T]) Find(name string) *File[T] {
	n, err := t.walk(name, true, false)
	if err != nil || n == nil || n.file == nil || n.file.Kind != tar.TypeReg {
		return nil
	}
	return n.file
}

// Names are those in a directory that match a pattern, sorted.
func (t *Tree[T]) Names(dir, pattern string) []string {
	n, err := t.walk(dir, true, false)
	if err != nil || n == nil {
		return nil
	}
	var names []string
	for name := range n.children {
		if ok, _ := path.Match(pattern, name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// All are the absolute paths of everything but directories, in no order. No part of them is a symbolic link, but all
// of them may be one.
func (t *Tree[T]) All() iter.Seq2[string, *File[T]] {
	return func(yield func(string, *File[T]) bool) { t.root.all("", yield) }
}

func (n *node[T]) all(name string, yield func(string, *File[T]) bool) bool {
	if n.file != nil {
		return yield(name, n.file)
	}
	for base, child := range n.children {
		if !child.all(name+"/"+base, yield) {
			return false
		}
	}
	return true
}

// add lays a layer upon those before, and returns the SHA256 of its archive.
func (t *Tree[T]) add(ctx context.Context, l v1.Layer) (string, error) {
	rc, err := l.Uncompressed()
	if err != nil {
		return "", err
	}
	defer rc.Close()
	h := sha256.New()
	limited := &limitedReader{r: io.TeeReader(rc, h), ctx: ctx, left: &t.unpacked}
	r := tar.NewReader(limited)
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = t.entry(header, r)
		}
		if err != nil {
			return "", err
		}
	}
	// What follows the end of the archive belongs to the layer too.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// layerError tells a damaged layer from one that could not be fetched.
func (t *Tree[T]) layerError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var fetch *oci.FetchError
	var digest *oci.DigestError
	var path *os.PathError
	if errors.As(err, &fetch) || errors.As(err, &digest) || errors.As(err, &path) {
		return err
	}
	if damaged, ok := errors.AsType[*DamagedError](err); ok {
		return &DamagedError{fmt.Sprintf("layer %d: %s", t.layer, damaged.What)}
	}
	return &DamagedError{fmt.Sprintf("layer %d cannot be unpacked: %s", t.layer, err)}
}

// entry puts one entry of a layer into its place, as runtimes do: parents that are symbolic links are followed, and
// whatever is no directory takes the place of all that was there.
func (t *Tree[T]) entry(header *tar.Header, content io.Reader) error {
	name := path.Clean("/" + header.Name)
	dir, base := path.Split(name)
	// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts: they hide lower layers only.
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		at, err := t.walk(dir, true, false)
		if err != nil || at == nil {
			return err
		}
		if base == ".wh..wh..opq" {
			t.prune(at)
		} else if n := at.children[hidden]; n != nil && t.hide(n) {
			delete(at.children, hidden)
		}
		return nil
	}
	var f *File[T]
	switch header.Typeflag {
	case tar.TypeDir:
	case tar.TypeLink:
		target, err := t.walk(path.Clean("/"+header.Linkname), false, false)
		if err != nil {
			return err
		}
		if target == nil || target.file == nil {
			return &DamagedError{fmt.Sprintf("%q is a hard link to %q, which is no file", name, header.Linkname)}
		}
		f = target.file
	case tar.TypeReg, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		f = &File[T]{Kind: header.Typeflag, Mode: header.Mode}
	case tar.TypeXGlobalHeader:
		return nil // is about the archive
	default:
		return &DamagedError{fmt.Sprintf("%q has the type %q, which no layer may have", name, header.Typeflag)}
	}
	// Such a file is as large as it says without any bytes: https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#file-types
	for key := range header.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return &DamagedError{fmt.Sprintf("%q is a sparse file", name)}
		}
	}
	if base == "" {
		return nil // the root, which is always there
	}
	at, err := t.walk(dir, true, true)
	if err != nil {
		return err
	}
	if old := at.children[base]; f == nil && old != nil && old.file == nil {
		old.layer = t.layer
		return nil
	}
	switch header.Typeflag {
	case tar.TypeSymlink:
		f.Link = strings.Clone(header.Linkname)
	case tar.TypeReg:
		f.Size = header.Size
		if f.Found, err = t.look(t.layer-1, name, header, content); err != nil {
			return err
		}
	}
	_, err = t.put(at, base, f)
	return err
}

// put gives a directory a file, or another directory if f is nil, instead of what it had of that name.
func (t *Tree[T]) put(dir *node[T], name string, f *File[T]) (*node[T], error) {
	n := &node[T]{file: f, length: dir.length + 1 + len(name), layer: t.layer}
	// The path is more than what is kept, and what is listed of it at most.
	t.memory -= 250 + n.length
	if f == nil {
		n.children = map[string]*node[T]{}
	} else {
		t.memory -= len(f.Link) + f.Found.Bytes()
	}
	if n.length > maxPath || f != nil && len(f.Link) > maxPath {
		return nil, &DamagedError{fmt.Sprintf("a path is longer than %d bytes", maxPath)}
	}
	if t.memory < 0 {
		return nil, &DamagedError{"the image has more files than anyone needs"}
	}
	dir.children[strings.Clone(name)] = n
	return n, nil
}

// hide hides what lower layers have below n, and tells whether nothing of this layer is left.
func (t *Tree[T]) hide(n *node[T]) bool {
	t.prune(n)
	return n.layer < t.layer && len(n.children) == 0
}

// prune hides what lower layers have in a directory. Nothing of theirs can come back, so once a layer will do; doing
// it again would take ages where there are many whiteouts.
func (t *Tree[T]) prune(dir *node[T]) {
	if dir.pruned == t.layer {
		return
	}
	dir.pruned = t.layer
	for name, n := range dir.children {
		if t.hide(n) {
			delete(dir.children, name)
		}
	}
}

// walk follows a path and its symbolic links, the last element's only if last. It returns nil where there is nothing;
// with create, it makes directories of whatever is missing or in their way.
func (t *Tree[T]) walk(name string, last, create bool) (*node[T], error) {
	at := []*node[T]{t.root}
	links := 0
	for todo := strings.Split(name, "/"); len(todo) > 0; {
		dir := at[len(at)-1]
		if dir.file != nil {
			return nil, nil // not even .. leads on from a file
		}
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		n := dir.children[part]
		if n != nil && n.file != nil && n.file.Kind == tar.TypeSymlink && (last || len(todo) > 0) {
			if links++; links > maxLinks {
				return nil, &DamagedError{fmt.Sprintf("a loop of symbolic links at %q", name)}
			}
			if path.IsAbs(n.file.Link) {
				at = at[:1]
			}
			todo = append(strings.Split(n.file.Link, "/"), todo...)
			continue
		}
		if create && (n == nil || n.file != nil) {
			var err error
			if n, err = t.put(dir, part, nil); err != nil {
				return nil, err
			}
		}
		if n == nil {
			return nil, nil
		}
		at = append(at, n)
	}
	return at[len(at)-1], nil
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
		return n, &DamagedError{"the image unpacks to more than 64 GiB"}
	}
	return n, err
}
