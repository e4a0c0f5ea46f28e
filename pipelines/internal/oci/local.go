package oci

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// pushLayout publishes to a directory. The copy is made beside it, read back, and renamed into place; what
// was there before has to be a layout of one thing and nothing else, or it stays.
//
// Renaming a directory over another takes two steps. A run that is killed between them leaves the old
// layout beside the place, under the name DIR.tmp-*.old.
func pushLayout(ctx context.Context, l *layout, dir string, o PushOptions) (*Pushed, error) {
	if dir == "" {
		return nil, errors.New("target oci: has no directory")
	}
	dir = filepath.Clean(dir)
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real // what a link points at is replaced, not the link
	}
	exists, err := replaceable(dir)
	if err != nil {
		return nil, err
	}
	result := &Pushed{Reference: "oci:" + dir, Digest: l.top.desc.Digest.String()}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(parent, filepath.Base(dir)+".tmp-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil { // MkdirTemp keeps others out
		return nil, err
	}
	if err := l.copyTo(ctx, tmp, o.Progress); err != nil {
		return nil, err
	}
	written, err := openLayout(tmp)
	if err == nil {
		err = written.verify(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("reading back: %w", err)
	}
	amount := Amount{len(l.blobs) + len(l.documents()), l.size()}
	result.Sent, result.ReadBack = amount, amount

	old := tmp + ".old"
	if exists {
		if err := os.Rename(dir, old); err != nil {
			return nil, err
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		if exists {
			err = errors.Join(err, os.Rename(old, dir))
		}
		return nil, err
	}
	if exists {
		return result, os.RemoveAll(old)
	}
	return result, nil
}

// replaceable tells whether there is something at dir, and refuses what a layout may not replace.
func replaceable(dir string) (exists bool, err error) {
	files, err := os.ReadDir(dir)
	if isNotExist(err) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("%s cannot become an OCI layout: %w", dir, err)
	}
	if len(files) == 0 {
		return true, nil
	}
	if err := checkLayout(dir); err != nil {
		return true, fmt.Errorf("%s exists and is left as it is: %w", dir, err)
	}
	for _, f := range files {
		if !slices.Contains([]string{"blobs", "index.json", "oci-layout"}, f.Name()) {
			return true, fmt.Errorf("%s exists and is left as it is: it holds %s, which is no part of an OCI layout", dir, f.Name())
		}
	}
	if _, err := layoutDescriptor(dir); err != nil {
		return true, fmt.Errorf("%s exists and is left as it is: %w", dir, err)
	}
	return true, nil
}

// copyTo writes what the layout's index reaches into an empty directory.
func (l *layout) copyTo(ctx context.Context, dir string, progress func(done, total int64)) error {
	if err := os.MkdirAll(blobDir(dir), 0o755); err != nil {
		return err
	}
	count := l.counter(progress)
	for _, b := range l.blobs {
		if err := copyBlob(ctx, dir, b, l.what(b), func() (io.ReadCloser, error) { return l.open(b) }, count); err != nil {
			return err
		}
	}
	for _, d := range l.documents() {
		if _, err := writeBlob(dir, d.raw); err != nil {
			return err
		}
		count(d.desc.Size)
	}
	return writeLayoutFiles(dir, l.top.desc)
}

func (l *layout) counter(progress func(done, total int64)) func(int64) {
	var done int64
	return func(n int64) {
		if done += n; progress != nil {
			progress(done, l.size())
		}
	}
}

// pushTar publishes one platform to a file that "docker load" and "podman load" take. It is an OCI layout
// in a tar file with the manifest.json that docker looks for, as docker save writes it since version 25:
// tools that know layouts find the image under the digest that it has everywhere.
func pushTar(ctx context.Context, l *layout, file string, o PushOptions) (*Pushed, error) {
	if file == "" {
		return nil, errors.New("target tar: has no file")
	}
	img, err := l.choose(o.Platform)
	if err != nil {
		return nil, err
	}
	path := func(d v1.Descriptor) string { return "blobs/sha256/" + d.Digest.Hex }
	entries := []Entry{
		{Path: "oci-layout", Mode: 0o644, Data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{Path: path(img.desc), Mode: 0o644, Data: img.raw},
	}
	docker := struct {
		Config   string
		RepoTags []string
		Layers   []string
	}{Config: path(img.manifest.Config), RepoTags: o.Names, Layers: []string{}}
	result := &Pushed{Reference: "tar:" + file, Digest: img.desc.Digest.String(), Sent: Amount{1, img.desc.Size}}
	seen := map[v1.Hash]bool{}
	for i, d := range append([]v1.Descriptor{img.manifest.Config}, img.manifest.Layers...) {
		if i > 0 {
			docker.Layers = append(docker.Layers, path(d))
		}
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		blob, err := blobPath(l.dir, d.Digest)
		if err != nil {
			return nil, err
		}
		if err := verifyFile(ctx, blob, d, l.what(d)); err != nil {
			return nil, err
		}
		entries = append(entries, Entry{Path: path(d), Mode: 0o644, File: blob})
		result.Sent.Objects++
		result.Sent.Bytes += d.Size
	}
	index := v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	for _, name := range o.Names {
		named := img.desc
		named.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
		index.Manifests = append(index.Manifests, named)
	}
	if len(o.Names) == 0 {
		index.Manifests = []v1.Descriptor{img.desc}
	}
	indexJSON, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	dockerJSON, err := json.Marshal([]any{docker})
	if err != nil {
		return nil, err
	}
	entries = append(entries,
		Entry{Path: "index.json", Mode: 0o644, Data: indexJSON},
		Entry{Path: "manifest.json", Mode: 0o644, Data: dockerJSON})
	sorted, err := arrange(entries, true)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	result.ReadBack = result.Sent
	return result, writeAtomic(filepath.Dir(file), func(f *os.File) (string, error) {
		blocks := &blockWriter{w: f}
		if err := errors.Join(writeTar(blocks, sorted, time.Unix(0, 0)), blocks.flush()); err != nil {
			return "", err
		}
		if err := verifyTar(ctx, f, result.ReadBack.Objects); err != nil {
			return "", fmt.Errorf("reading back: %w", err)
		}
		return filepath.Base(file), nil
	})
}

// verifyTar reads a file that pushTar wrote from its start and compares the blobs in it with their names.
func verifyTar(ctx context.Context, f *os.File, blobs int) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	archive := tar.NewReader(contextReader{ctx, f})
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		name, ok := strings.CutPrefix(h.Name, "blobs/sha256/")
		if !ok || name == "" {
			continue
		}
		sum := newHasher()
		if _, err := copyBuffer(sum, archive); err != nil {
			return err
		}
		if got := sum.hash(); got.Hex != name {
			return &DigestError{What: "blob in " + f.Name(), Want: "sha256:" + name, Got: got.String()}
		}
		blobs--
	}
	if blobs != 0 {
		return fmt.Errorf("%s lacks %d blobs", f.Name(), blobs)
	}
	return nil
}

// choose returns the image for a platform; without one, that for Linux on this machine's processor if
// there is one, else the first.
func (l *layout) choose(platform string) (*imageDocument, error) {
	want, err := parsePlatform(cmp.Or(platform, "linux/"+runtime.GOARCH))
	if err != nil {
		return nil, err
	}
	var all []v1.Descriptor
	for _, img := range l.images {
		all = append(all, img.desc)
	}
	found, ok := choose(all, want)
	switch {
	case ok:
	case platform == "":
		return &l.images[0], nil
	default:
		return nil, fmt.Errorf("the layout %s has no image for %s; it has %v", l.dir, platform, platformsOf(all))
	}
	i := slices.IndexFunc(l.images, func(img imageDocument) bool { return img.desc.Digest == found.Digest })
	return &l.images[i], nil
}
