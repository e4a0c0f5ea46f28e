package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
)

// layout is a layout on disk that holds one index (or one image), read for publishing.
type layout struct {
	dir string
	top document
	// images are the manifests in the order of the index.
	images []imageDocument
	// blobs are the configurations and layers of all images, each once.
	blobs []v1.Descriptor
}

// document is a manifest or index: small, and at hand.
type document struct {
	desc v1.Descriptor
	raw  []byte
}

type imageDocument struct {
	document
	manifest v1.Manifest
}

func openLayout(dir string) (*layout, error) {
	desc, err := layoutDescriptor(dir)
	if err != nil {
		return nil, err
	}
	l := &layout{dir: dir}
	if l.top, err = l.read(desc); err != nil {
		return nil, err
	}
	manifests := []v1.Descriptor{desc}
	if desc.MediaType.IsIndex() {
		var index v1.IndexManifest
		if err := json.Unmarshal(l.top.raw, &index); err != nil {
			return nil, fmt.Errorf("index of layout %s: %w", dir, err)
		}
		manifests = index.Manifests
	}
	seen := map[v1.Hash]bool{}
	for _, d := range manifests {
		if !d.MediaType.IsImage() {
			return nil, fmt.Errorf("layout %s: %s has media type %s and is no image", dir, d.Digest, d.MediaType)
		}
		doc, err := l.read(d)
		if err != nil {
			return nil, err
		}
		img := imageDocument{document: doc}
		if err := json.Unmarshal(doc.raw, &img.manifest); err != nil {
			return nil, fmt.Errorf("manifest %s of layout %s: %w", d.Digest, dir, err)
		}
		l.images = append(l.images, img)
		for _, blob := range append(img.manifest.Layers[:len(img.manifest.Layers):len(img.manifest.Layers)], img.manifest.Config) {
			if !seen[blob.Digest] {
				seen[blob.Digest] = true
				l.blobs = append(l.blobs, blob)
			}
		}
	}
	return l, nil
}

func (l *layout) open(desc v1.Descriptor) (io.ReadCloser, error) {
	path, err := blobPath(l.dir, desc.Digest)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}

func (l *layout) what(desc v1.Descriptor) string {
	return fmt.Sprintf("blob %s of layout %s", desc.Digest.Hex[:12], l.dir)
}

func (l *layout) read(desc v1.Descriptor) (document, error) {
	rc, err := l.open(desc)
	if err != nil {
		return document{}, err
	}
	raw, err := readLimited(rc, desc, "manifest in layout "+l.dir)
	return document{desc, raw}, err
}

// documents are all manifests and, if there is one, the index.
func (l *layout) documents() []document {
	var docs []document
	for _, img := range l.images {
		docs = append(docs, img.document)
	}
	if l.top.desc.MediaType.IsIndex() {
		docs = append(docs, l.top)
	}
	return docs
}

// size is the number of bytes of everything in the layout that is reached from its index.
func (l *layout) size() int64 {
	var size int64
	for _, b := range l.blobs {
		size += b.Size
	}
	for _, d := range l.documents() {
		size += d.desc.Size
	}
	return size
}

// verify reads every blob and compares it with its digest.
func (l *layout) verify(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, b := range l.blobs {
		group.Go(func() error {
			path, err := blobPath(l.dir, b.Digest)
			if err != nil {
				return err
			}
			return verifyFile(ctx, path, b, l.what(b))
		})
	}
	return group.Wait()
}
