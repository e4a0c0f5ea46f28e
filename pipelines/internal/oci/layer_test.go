package oci

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"
)

// The bytes of layers must not change with the Go release, the processor or the compressor. A change of the
// compressor changes the digests below and is a change that users see: every image gets another digest.
// A diff ID that changes is worse, as it means that the tar stream is no longer the same.
func TestLayerGolden(t *testing.T) {
	small := []Entry{
		{Path: "/app/server", Mode: 0o755, Data: []byte("#!/bin/true\n"), Xattrs: map[string]string{"security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
		{Path: "app/link", Link: "server"},
		{Path: "home/user", Mode: fs.ModeDir | 0o700, UID: 65532, GID: 65532},
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "usr/share/" + strings.Repeat("long/", 30) + "name", Mode: 0o644, UID: 3_000_000, Data: []byte("x")},
		{Path: "usr/share/grüße", Mode: fs.ModeSetuid | 0o755, Data: []byte("y")},
	}
	large := []Entry{{Path: "data", Mode: 0o644, Data: content(3<<20, 7)}}
	for _, test := range []struct {
		name           string
		entries        []Entry
		digest, diffID string
	}{
		{"small", small,
			"sha256:0eee91cb8b4a1dd28f0f7f334cd32eab0ac02cf51308c4dd0cfccf0feaa9179c",
			"sha256:ff12b3e2f500590e16a8ebbb70ce01c4c40dfcfb94a584f6e952edcdff96038e"},
		{"large", large,
			"sha256:0375596c638875e565c37741e329871daf9124f209738e9ce159e6f66a652412",
			"sha256:aff2ae3c36eff2160332127207d2a992ac8d6a6f5b8d379e5dd15ab19207030d"},
		{"empty", nil,
			"sha256:9addb4c7f3afa99b03f24f9e05cb87d274a63ae9ba30c94f02c75e85d133e9de",
			"sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"},
	} {
		t.Run(test.name, func(t *testing.T) {
			layer, err := WriteLayer(t.TempDir(), "test", test.entries, LayerOptions{ModTime: commitTime})
			require.NoError(t, err)
			require.Equal(t, test.diffID, layer.Info.DiffID, "the tar stream has changed")
			require.Equal(t, test.digest, layer.Info.Digest, "the compressor has changed")
		})
	}
}

func TestCompressorIsTheOneOfGoMod(t *testing.T) {
	mod, err := os.ReadFile("../../../go.mod")
	require.NoError(t, err)
	match := regexp.MustCompile(`(?m)^\s*(?:require )?` + regexp.QuoteMeta(compressorModule) + ` (\S+)`).FindSubmatch(mod)
	require.NotNil(t, match, "go.mod does not require %s", compressorModule)
	require.Equal(t, compressorVersion, string(match[1]))
	require.Equal(t, "klauspost/compress "+compressorVersion+" gzip level 4", Compressor(Gzip))
}

func TestLinkedCompressor(t *testing.T) {
	module := func(version string, replace *debug.Module) *debug.BuildInfo {
		return &debug.BuildInfo{Deps: []*debug.Module{{Path: "example.com/other", Version: "v1.0.0"}, {Path: compressorModule, Version: version, Replace: replace}}}
	}
	require.Equal(t, "v1.99.0", linkedCompressor(module("v1.99.0", nil), true))
	require.Equal(t, "v1.20.3 (replaced by example.com/fork v0.1.0)", linkedCompressor(module("v1.20.3", &debug.Module{Path: "example.com/fork", Version: "v0.1.0"}), true))
	require.Equal(t, compressorVersion, linkedCompressor(&debug.BuildInfo{}, true))
	require.Equal(t, compressorVersion, linkedCompressor(nil, false))
}

// The compressor must not see how its input was cut; blockWriter would hide it if it did.
func TestCompressorIgnoresChunks(t *testing.T) {
	data := content(400_000, 3)
	compressed := func(chunk int) []byte {
		var out bytes.Buffer
		z, err := gzip.NewWriterLevel(&out, compressorLevel)
		require.NoError(t, err)
		for rest := data; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
			_, err := z.Write(rest[:min(chunk, len(rest))])
			require.NoError(t, err)
		}
		require.NoError(t, z.Close())
		return out.Bytes()
	}
	want := compressed(len(data))
	for _, chunk := range []int{1, 512, 65534, 65535, 65536, 100_003} {
		require.Equal(t, hashOf(want), hashOf(compressed(chunk)), "chunks of %d bytes", chunk)
	}
}

func TestBlockWriter(t *testing.T) {
	data := content(5*blockSize+17, 4)
	for _, chunk := range []int{100, blockSize - 1, blockSize, blockSize + 1, len(data)} {
		var sizes []int
		var out bytes.Buffer
		b := &blockWriter{w: io.MultiWriter(&out, counter(func(n int64) { sizes = append(sizes, int(n)) }))}
		for rest := data; len(rest) > 0; rest = rest[min(chunk, len(rest)):] {
			n, err := b.Write(rest[:min(chunk, len(rest))])
			require.NoError(t, err)
			require.Equal(t, min(chunk, len(rest)), n)
		}
		require.NoError(t, b.flush())
		require.Equal(t, []int{blockSize, blockSize, blockSize, blockSize, blockSize, 17}, sizes, "chunks of %d", chunk)
		require.True(t, bytes.Equal(data, out.Bytes()))
	}
}

func TestLayerContent(t *testing.T) {
	file := writeTestFile(t, "binary", []byte("from a file"))
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00"
	dir := t.TempDir()
	layer, err := WriteLayer(dir, "application", []Entry{
		{Path: "opt/z/tool", Mode: 0o755 | fs.ModeSetgid, UID: 7, GID: 8, File: file, Xattrs: map[string]string{"security.capability": capability}},
		{Path: "opt/a-link", Link: "z/tool"},
		{Path: "opt/z", Mode: fs.ModeDir | 0o711, UID: 9},
		{Path: "empty", Mode: 0o600},
	}, LayerOptions{ModTime: commitTime})
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "blobs", "sha256", strings.TrimPrefix(layer.Info.Digest, "sha256:")))

	rc, err := layer.Uncompressed()
	require.NoError(t, err)
	defer rc.Close()
	type item struct {
		name, link, content string
		kind                byte
		mode                int64
		uid, gid            int
	}
	var got []item
	r := tar.NewReader(rc)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		got = append(got, item{h.Name, h.Linkname, string(data), h.Typeflag, h.Mode, h.Uid, h.Gid})
		require.Equal(t, commitTime.Truncate(time.Second).UTC(), h.ModTime.UTC())
		require.Empty(t, h.Uname+h.Gname)
		require.True(t, h.AccessTime.IsZero() && h.ChangeTime.IsZero())
		if h.Name == "opt/z/tool" {
			require.Equal(t, map[string]string{"SCHILY.xattr.security.capability": capability}, h.PAXRecords)
		} else {
			require.Equal(t, tar.FormatUSTAR, h.Format, h.Name)
		}
	}
	require.Equal(t, []item{
		{"empty", "", "", tar.TypeReg, 0o600, 0, 0},
		{"opt/", "", "", tar.TypeDir, 0o755, 0, 0},
		{"opt/a-link", "z/tool", "", tar.TypeSymlink, 0o777, 0, 0},
		{"opt/z/", "", "", tar.TypeDir, 0o711, 9, 0},
		{"opt/z/tool", "", "from a file", tar.TypeReg, 0o2755, 7, 8},
	}, got)

	// v1.Layer says the same as Info.
	blob, err := layer.Compressed()
	require.NoError(t, err)
	defer blob.Close()
	data, err := io.ReadAll(blob)
	require.NoError(t, err)
	require.Equal(t, layer.Info.Digest, hashOf(data).String())
	require.Equal(t, layer.Info.Size, int64(len(data)))
	require.Equal(t, []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, data[:10], "the gzip header holds no time, name or system")
	again, err := os.Open(layer.path)
	require.NoError(t, err)
	diffID, size, err := unpacked(again)
	require.NoError(t, err)
	require.Equal(t, layer.Info.DiffID, diffID.String())
	require.Equal(t, layer.Info.UncompressedSize, size)
}

func TestLayerRefusesBadEntries(t *testing.T) {
	for _, test := range []struct {
		entries []Entry
		want    string
	}{
		{[]Entry{{Path: "../etc/passwd"}}, "not a clean path"},
		{[]Entry{{Path: "a//b"}}, "not a clean path"},
		{[]Entry{{Path: ""}}, "not a clean path"},
		{[]Entry{{Path: "/"}}, "not a clean path"},
		{[]Entry{{Path: "a\x00b"}}, "not a clean path"},
		{[]Entry{{Path: "a"}, {Path: "/a"}}, "a: given twice"},
		{[]Entry{{Path: "a"}, {Path: "a/b"}}, "a/b: a is not a directory"},
		{[]Entry{{Path: "a", Link: "x"}, {Path: "a/b/c"}}, "a/b/c: a is not a directory"},
		{[]Entry{{Path: "a", Mode: fs.ModeDir, Data: []byte("x")}}, "a directory has no content"},
		{[]Entry{{Path: "a", Link: "x", Data: []byte("x")}}, "more than one kind of content"},
		{[]Entry{{Path: "a/.wh.b", Data: []byte("x")}}, "names that begin with .wh. have a meaning of their own"},
		{[]Entry{{Path: "a", Mode: fs.ModeDevice}}, "cannot be written"},
		{[]Entry{{Path: "a", File: "/does/not/exist"}}, "/does/not/exist"},
		{[]Entry{{Path: "a", File: os.TempDir()}}, "is not a regular file"},
	} {
		dir := t.TempDir()
		_, err := WriteLayer(dir, "application", test.entries, LayerOptions{ModTime: commitTime})
		require.ErrorContains(t, err, test.want)
		require.ErrorContains(t, err, `layer "application"`)
		require.Empty(t, tree(t, dir), "nothing is left behind")
	}
}

func TestEntryThatChanges(t *testing.T) {
	for want, have := range map[int64]string{5: "1234", 3: "1234"} {
		e := Entry{Path: "a"}
		require.ErrorContains(t, e.copyContent(io.Discard, strings.NewReader(have), want), "changed while it was read")
	}
}

// Many writers of the same and of other layers in one directory.
func TestLayersInParallel(t *testing.T) {
	dir := t.TempDir()
	var group sync.WaitGroup
	digests := make([]string, 8)
	for i := range digests {
		group.Go(func() {
			layer, err := WriteLayer(dir, "test", []Entry{{Path: "f", Mode: 0o644, Data: content(300_000, uint64(i%2))}}, LayerOptions{ModTime: commitTime})
			if err == nil {
				digests[i] = layer.Info.Digest
			}
		})
	}
	group.Wait()
	for i := range digests {
		require.NotEmpty(t, digests[i])
		require.Equal(t, digests[i%2], digests[i])
	}
	require.Len(t, tree(t, dir), 2)
}

// A layer is streamed: memory does not grow with the file.
func TestLayerMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(file)
	require.NoError(t, err)
	_, err = f.Write(content(1<<20, 5))
	require.NoError(t, err)
	const size = 100 << 20
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())

	peak := watchHeap(t, func() {
		layer, err := WriteLayer(t.TempDir(), "application", []Entry{{Path: "app", Mode: 0o755, File: file}}, LayerOptions{ModTime: commitTime})
		require.NoError(t, err)
		require.Greater(t, layer.Info.UncompressedSize, int64(size))
	})
	require.Less(t, peak, uint64(16<<20))
}

// watchHeap returns by how much the heap grew at most while f ran.
func watchHeap(t *testing.T, f func()) uint64 {
	t.Helper()
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	stop, stopped := make(chan struct{}), make(chan uint64)
	go func() {
		var peak uint64
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				stopped <- peak
				return
			case <-ticker.C:
				runtime.ReadMemStats(&now)
				if now.HeapAlloc > before.HeapAlloc {
					peak = max(peak, now.HeapAlloc-before.HeapAlloc)
				}
			}
		}
	}()
	f()
	close(stop)
	return <-stopped
}

func BenchmarkWriteLayer(b *testing.B) {
	data := content(16<<20, 9)
	if path := os.Getenv("OCI_BENCH_FILE"); path != "" {
		var err error
		data, err = os.ReadFile(path)
		require.NoError(b, err)
	}
	file := filepath.Join(b.TempDir(), "binary")
	require.NoError(b, os.WriteFile(file, data, 0o600))
	dir := b.TempDir()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		layer, err := WriteLayer(dir, "application", []Entry{{Path: "app", Mode: 0o755, File: file}}, LayerOptions{ModTime: commitTime})
		require.NoError(b, err)
		b.ReportMetric(float64(layer.Info.Size)/float64(len(data)), "ratio")
	}
}
