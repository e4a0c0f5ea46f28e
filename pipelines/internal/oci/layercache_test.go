package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/internal/store"
)

func TestLayerCache(t *testing.T) {
	cache := t.TempDir()
	file := writeTestFile(t, "app", content(200_000, 3))
	entries := []Entry{{Path: "app", Mode: 0o755, File: file}, {Path: "etc/app.conf", Mode: 0o644, Data: []byte("a=1\n")}}
	o := LayerOptions{ModTime: commitTime, CacheDir: cache}
	write := func(o LayerOptions, entries ...Entry) (*Layer, string) {
		t.Helper()
		dir := t.TempDir()
		layer, err := WriteLayer(dir, "application", entries, o)
		require.NoError(t, err)
		require.Equal(t, layer.Info.Digest, hashOf([]byte(readBlob(t, dir, layer.Info.Digest))).String())
		return layer, dir
	}
	first, _ := write(o, entries...)
	again, _ := write(o, entries...)
	require.Equal(t, first.Info, again.Info)
	without, _ := write(LayerOptions{ModTime: commitTime}, entries...)
	require.Equal(t, first.Info, without.Info)

	// It is the cache that gave it: content of its own under the right key comes back.
	names, err := filepath.Glob(filepath.Join(cache, strings.Repeat("?", 64)))
	require.NoError(t, err)
	require.Len(t, names, 1)
	key := filepath.Base(names[0])
	forged := LayerInfo{Digest: hashOf([]byte("forged")).String(), DiffID: first.Info.DiffID, Size: 6, UncompressedSize: 1}
	forge := t.TempDir()
	require.NoError(t, os.MkdirAll(blobDir(forge), 0o755))
	_, err = writeBlob(forge, []byte("forged"))
	require.NoError(t, err)
	cacheLayer(cache, key, forge, forged)
	fromCache, _ := write(o, entries...)
	require.Equal(t, forged.Digest, fromCache.Info.Digest)

	// A layer that is not the one which is named is a miss, and mended. (What else can be damaged is the store's.)
	forged.Digest = hashOf([]byte("other")).String()
	value, err := json.Marshal(forged)
	require.NoError(t, err)
	require.NoError(t, store.Open(cache).Put(key, value, blobDir(forge), []string{hashOf([]byte("forged")).Hex}))
	for range 2 {
		layer, dir := write(o, entries...)
		require.Equal(t, first.Info, layer.Info)
		require.Len(t, tree(t, dir), 1, "nothing else is left")
	}

	// Whatever decides over the bytes is in the key.
	changed := func(change func(*Entry)) []Entry {
		e := entries[1]
		change(&e)
		return []Entry{entries[0], e}
	}
	for name, other := range map[string][]Entry{
		"content": changed(func(e *Entry) { e.Data = []byte("a=2\n") }),
		"mode":    changed(func(e *Entry) { e.Mode = 0o600 }),
		"owner":   changed(func(e *Entry) { e.UID = 1 }),
		"group":   changed(func(e *Entry) { e.GID = 1 }),
		"path":    changed(func(e *Entry) { e.Path = "etc/b.conf" }),
		"xattr":   changed(func(e *Entry) { e.Xattrs = map[string]string{"user.a": "b"} }),
		"link":    changed(func(e *Entry) { e.Data, e.Link = nil, "b" }),
	} {
		layer, _ := write(o, other...)
		require.NotEqual(t, first.Info.DiffID, layer.Info.DiffID, name)
	}
	later, _ := write(LayerOptions{ModTime: commitTime.Add(time.Hour), CacheDir: cache}, entries...)
	require.NotEqual(t, first.Info.DiffID, later.Info.DiffID)
	zst, _ := write(LayerOptions{ModTime: commitTime, CacheDir: cache, Compression: Zstd}, entries...)
	require.NotEqual(t, first.Info.Digest, zst.Info.Digest)
	require.Equal(t, first.Info.DiffID, zst.Info.DiffID)

	// A cache that cannot be there makes no difference.
	nowhere, _ := write(LayerOptions{ModTime: commitTime, CacheDir: filepath.Join(file, "cache")}, entries...)
	require.Equal(t, first.Info, nowhere.Info)
}

func TestLayerCacheInParallel(t *testing.T) {
	cache, layout := t.TempDir(), t.TempDir()
	var group sync.WaitGroup
	errs := make([]error, 16)
	for i := range errs {
		group.Go(func() {
			_, errs[i] = WriteLayer(layout, "x", []Entry{{Path: "f", Data: content(100_000, uint64(i%2))}}, LayerOptions{CacheDir: cache})
		})
	}
	group.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Len(t, tree(t, layout), 2)
}
