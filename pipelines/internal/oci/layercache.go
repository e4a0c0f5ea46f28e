package oci

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/internal/store"
)

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

// cachedLayer puts a layer from the cache into the layout at dir.
func cachedLayer(cache, key, dir string) (info LayerInfo, ok bool) {
	if err := os.MkdirAll(blobDir(dir), 0o755); err != nil {
		return info, false
	}
	// The layout may have the blob already, from another image.
	temp, err := os.MkdirTemp(dir, ".layer-")
	if err != nil {
		return info, false
	}
	defer os.RemoveAll(temp)
	e := store.Open(cache).Get(key, temp)
	if e == nil || len(e.Files) != 1 || json.Unmarshal(e.Value, &info) != nil || info.Digest != "sha256:"+e.Files[0].SHA256 {
		return info, false
	}
	name := e.Files[0].SHA256
	return info, os.Rename(filepath.Join(temp, name), filepath.Join(blobDir(dir), name)) == nil
}

// cacheLayer keeps a layer of the layout at dir. A cache that cannot be written is no reason to fail.
func cacheLayer(cache, key, dir string, info LayerInfo) {
	value, err := json.Marshal(info)
	if err != nil || info.Size > store.Limit/4 { // one that would push all others out
		return
	}
	_ = store.Open(cache).Put(key, value, blobDir(dir), []string{strings.TrimPrefix(info.Digest, "sha256:")})
}
