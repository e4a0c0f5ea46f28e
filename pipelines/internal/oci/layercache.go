package oci

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// layerCacheSize is how much the cache of compressed layers holds, in bytes. What was not used for the
// longest time goes first.
const layerCacheSize = 1 << 30

// layerFormat changes with the way in which entries are written. TestLayerGolden notices such a change.
const layerFormat = 1

// layerKey is a digest of everything that decides over the bytes of a layer.
func layerKey(sorted []Entry, o LayerOptions) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%d %s %s\n%d\n", layerFormat, runtime.Version(), Compressor(o.Compression), o.ModTime.Unix())
	for _, e := range sorted {
		fmt.Fprintf(h, "%q %o %d %d %q\n", e.Path, e.Mode, e.UID, e.GID, e.Link)
		for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
			fmt.Fprintf(h, "%q %q\n", name, e.Xattrs[name])
		}
		if e.isDir() || e.Link != "" {
			continue
		}
		content, size, err := e.open()
		if err != nil {
			return "", err
		}
		sum := newHasher()
		_, err = copyBuffer(sum, content)
		if content.Close(); err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d %s\n", size, sum.hash())
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// The cache holds two files for each layer: KEY, what is known of the layer with a digest of that, and the
// layer itself under KEY.layer. Both are complete or absent, and verified when they are read.

// cachedLayer puts a layer from the cache into the layout at dir.
func cachedLayer(cache, key, dir string) (LayerInfo, bool) {
	var info LayerInfo
	text, err := os.ReadFile(filepath.Join(cache, key))
	if err != nil {
		return info, false
	}
	content, sum, _ := bytes.Cut(text, []byte("\n"))
	if string(sum) != hashOf(content).Hex || json.Unmarshal(content, &info) != nil {
		return info, false
	}
	digest, err := v1.NewHash(info.Digest)
	if err != nil {
		return info, false
	}
	file := filepath.Join(cache, key+".layer")
	err = copyBlob(context.Background(), dir, v1.Descriptor{Digest: digest, Size: info.Size}, "cached layer", func() (io.ReadCloser, error) { return os.Open(file) }, nil)
	if err != nil {
		return info, false
	}
	now := time.Now()
	for _, name := range []string{file, filepath.Join(cache, key)} {
		_ = os.Chtimes(name, now, now) // else it goes earlier
	}
	return info, true
}

// cacheLayer keeps a layer of the layout at dir. A cache that cannot be written is no reason to fail.
func cacheLayer(cache, key, dir string, info LayerInfo) {
	content, err := json.Marshal(info)
	if err != nil || info.Size > layerCacheSize/4 || os.MkdirAll(cache, 0o755) != nil {
		return
	}
	digest, err := v1.NewHash(info.Digest)
	if err != nil {
		return
	}
	err = writeAtomic(cache, func(f *os.File) (string, error) {
		blob, err := os.Open(filepath.Join(blobDir(dir), digest.Hex))
		if err != nil {
			return "", err
		}
		defer blob.Close()
		_, err = copyBuffer(f, blob)
		return key + ".layer", err
	})
	if err == nil && writeFile(filepath.Join(cache, key), append(append(content, '\n'), hashOf(content).Hex...)) == nil {
		trimCache(cache)
	}
}

// trimCache removes what was not used for the longest time, and what killed runs have left.
func trimCache(cache string) {
	entries, err := os.ReadDir(cache)
	if err != nil {
		return
	}
	var files []fs.FileInfo
	var size int64
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			files = append(files, info)
			size += info.Size()
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int {
		return cmp.Or(a.ModTime().Compare(b.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	for _, f := range files {
		if size <= layerCacheSize {
			return
		}
		if os.Remove(filepath.Join(cache, f.Name())) == nil {
			size -= f.Size()
		}
	}
}
