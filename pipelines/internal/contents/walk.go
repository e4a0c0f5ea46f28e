package contents

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// Limits of what is read of a foreign image.
const (
	maxUnpacked = 64 << 30  // bytes of all layers
	maxTree     = 512 << 20 // bytes of memory for names, links and texts of all layers, counted generously
	maxPath     = 4096      // bytes, as Linux has it
	maxLinks    = 40        // symbolic links in one path, as Linux has it
)

// A DamagedError says what is wrong with an image itself.
type DamagedError struct{ What string }

func (e *DamagedError) Error() string { return e.What }

// file is whatever is no directory. All of its hard links share it.
type file struct {
	kind    byte // as in an archive
	mode    int64
	size    int64
	link    string // target of a symbolic link
	found   found
	counted bool // its size is
}

// node is a name in a directory.
type node struct {
	file     *file            // nil for a directory
	children map[string]*node // nil for a file
	layer    int              // that it comes from, from 1
	pruned   int              // layer that has last hidden what lower ones have in this directory
}

// tree is what layers make when they lie upon each other. It is as large as the number of names in it, whatever the files hold.
type tree struct {
	root  *node
	layer int
	left  int // bytes of memory that may still be used
	look  func(name string, header *tar.Header, content io.Reader) (found, error)
}

// readTree reads all layers of an image, which are verified by that. What look finds in a regular file is kept with it.
func readTree(ctx context.Context, img v1.Image, config *v1.ConfigFile, look func(name string, header *tar.Header, content io.Reader) (found, error)) (*tree, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	if len(layers) != len(config.RootFS.DiffIDs) {
		return nil, &DamagedError{fmt.Sprintf("the image has %d layers, but its configuration lists %d", len(layers), len(config.RootFS.DiffIDs))}
	}
	t := &tree{root: &node{children: map[string]*node{}}, left: maxTree, look: look}
	left := int64(maxUnpacked)
	for i, l := range layers {
		t.layer = i + 1
		if err := t.add(ctx, l, config.RootFS.DiffIDs[i], &left); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *tree) add(ctx context.Context, l v1.Layer, diffID v1.Hash, left *int64) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return t.layerError(ctx, err)
	}
	defer rc.Close()
	h := sha256.New()
	limited := &limitedReader{r: io.TeeReader(rc, h), ctx: ctx, left: left}
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
			return t.layerError(ctx, err)
		}
	}
	// What follows the end of the archive belongs to the layer too.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return t.layerError(ctx, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return &DamagedError{fmt.Sprintf("layer %d unpacks to sha256:%s, but the configuration says %s", t.layer, got, diffID)}
	}
	return nil
}

// layerError tells a damaged layer from one that could not be fetched.
func (t *tree) layerError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var fetch *oci.FetchError
	var digest *oci.DigestError
	var path *os.PathError
	var damaged *DamagedError
	if errors.As(err, &fetch) || errors.As(err, &digest) || errors.As(err, &path) {
		return err
	}
	if errors.As(err, &damaged) {
		return &DamagedError{fmt.Sprintf("layer %d: %s", t.layer, damaged.What)}
	}
	return &DamagedError{fmt.Sprintf("layer %d cannot be unpacked: %s", t.layer, err)}
}

// entry puts one entry of a layer into its place, as runtimes do: parents that are symbolic links are followed, and
// whatever is no directory takes the place of all that was there.
func (t *tree) entry(header *tar.Header, content io.Reader) error {
	name := path.Clean("/" + header.Name)
	dir, base := path.Split(name)
	// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts: they hide lower layers only.
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		at, err := t.walk(dir, true, false)
		if err != nil || at.node == nil {
			return err
		}
		if base == ".wh..wh..opq" {
			t.prune(at.node)
		} else if n := at.node.children[hidden]; n != nil && t.hide(n) {
			delete(at.node.children, hidden)
		}
		return nil
	}
	var f *file
	switch header.Typeflag {
	case tar.TypeDir:
	case tar.TypeLink:
		target, err := t.walk(path.Clean("/"+header.Linkname), false, false)
		if err != nil {
			return err
		}
		if target.node == nil || target.node.file == nil {
			return &DamagedError{fmt.Sprintf("%q is a hard link to %q, which is no file", name, header.Linkname)}
		}
		f = target.node.file
	case tar.TypeReg, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		f = &file{kind: header.Typeflag, mode: header.Mode}
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
	length := at.length + 1 + len(base)
	if old := at.node.children[base]; f == nil && old != nil && old.file == nil {
		old.layer = t.layer
		return nil
	}
	switch header.Typeflag {
	case tar.TypeSymlink:
		f.link = strings.Clone(header.Linkname)
	case tar.TypeReg:
		f.size = header.Size
		if f.found, err = t.look(name, header, content); err != nil {
			return err
		}
	}
	_, err = t.put(at.node, base, length, f)
	return err
}

// put gives a directory a file, or another directory if f is nil, instead of what it had of that name.
func (t *tree) put(dir *node, name string, length int, f *file) (*node, error) {
	n := &node{file: f, layer: t.layer}
	// The path is more than what is kept, and what is listed of it at most.
	t.left -= 250 + length
	if f == nil {
		n.children = map[string]*node{}
	} else {
		t.left -= len(f.link) + len(f.found.text)
	}
	if length > maxPath || f != nil && len(f.link) > maxPath {
		return nil, &DamagedError{fmt.Sprintf("a path is longer than %d bytes", maxPath)}
	}
	if t.left < 0 {
		return nil, &DamagedError{"the image has more files than anyone needs"}
	}
	dir.children[strings.Clone(name)] = n
	return n, nil
}

// hide hides what lower layers have below n, and tells whether nothing of this layer is left.
func (t *tree) hide(n *node) bool {
	t.prune(n)
	return n.layer < t.layer && len(n.children) == 0
}

// prune hides what lower layers have in a directory. Nothing of theirs can come back, so once a layer will do; doing
// it again would take ages where there are many whiteouts.
func (t *tree) prune(dir *node) {
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

// place is a node, nil if there is none, and the length of its path without symbolic links.
type place struct {
	node   *node
	length int
}

// walk follows a path and its symbolic links, the last element's only if last. With create, it makes directories of
// whatever is missing or in their way.
func (t *tree) walk(name string, last, create bool) (place, error) {
	at := []place{{t.root, 0}}
	links := 0
	for todo := strings.Split(name, "/"); len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = at[:max(1, len(at)-1)]
			continue
		}
		dir := at[len(at)-1]
		n := dir.node.children[part]
		if n != nil && n.file != nil && n.file.kind == tar.TypeSymlink && (last || len(todo) > 0) {
			if links++; links > maxLinks {
				return place{}, &DamagedError{fmt.Sprintf("a loop of symbolic links at %q", name)}
			}
			if path.IsAbs(n.file.link) {
				at = at[:1]
			}
			todo = append(strings.Split(n.file.link, "/"), todo...)
			continue
		}
		length := dir.length + 1 + len(part)
		if create && (n == nil || n.file != nil) {
			var err error
			if n, err = t.put(dir.node, part, length, nil); err != nil {
				return place{}, err
			}
		}
		if n == nil {
			return place{}, nil
		}
		at = append(at, place{n, length})
	}
	return at[len(at)-1], nil
}

// find is walk for a tree that is complete; what cannot be reached is nil.
func (t *tree) find(name string) *node {
	at, _ := t.walk(name, true, false)
	return at.node
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
