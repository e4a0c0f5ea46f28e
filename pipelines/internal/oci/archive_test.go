package oci

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func archiveEntries(t *testing.T) []Entry {
	return []Entry{
		{Path: "app_linux_amd64/server", Mode: 0o755, File: writeTestFile(t, "server", content(600_000, 11))},
		{Path: "app_linux_amd64/README.md", Mode: 0o644, Data: []byte("# App\n")},
		{Path: "app_linux_amd64/latest", Link: "server"},
		{Path: "app_linux_amd64/empty", Mode: 0o644},
		{Path: "app_linux_amd64/dir", Mode: fs.ModeDir | 0o755},
		{Path: "app_linux_amd64/grüße", Mode: 0o644, Data: []byte("x")},
	}
}

// Archives must not change with the Go release, the processor or the compressor either.
func TestArchiveGolden(t *testing.T) {
	entries := archiveEntries(t)
	for _, test := range []struct {
		name   string
		write  func(string, []Entry, time.Time) (Archive, error)
		sha256 string
	}{
		{"a.tar.gz", WriteTarGz, "973fb271207834ca051819b2dc4c5d26dd4e58209247eafc5a4aaaaeea000af0"},
		{"a.zip", WriteZip, "abbeaba1a0fff508ec2e46bb6320d544ee1732642d7f120b4a60233d89914b1f"},
	} {
		t.Run(test.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "new", test.name)
			got, err := test.write(file, entries, commitTime)
			require.NoError(t, err)
			data := readFile(t, file)
			sum := sha256.Sum256([]byte(data))
			require.Equal(t, Archive{SHA256: hex.EncodeToString(sum[:]), Size: int64(len(data))}, got)
			require.Equal(t, test.sha256, got.SHA256)
			again, err := test.write(filepath.Join(t.TempDir(), "b"), entries, commitTime.In(time.FixedZone("elsewhere", -7*3600)))
			require.NoError(t, err)
			require.Equal(t, got, again)
		})
	}
}

type archived struct {
	mode    fs.FileMode
	content string
}

// What other implementations read from the archives is what was put in.
func TestArchiveContent(t *testing.T) {
	entries := archiveEntries(t)
	server := readFile(t, entries[0].File)
	want := map[string]archived{
		"app_linux_amd64/server":    {0o755, server},
		"app_linux_amd64/README.md": {0o644, "# App\n"},
		"app_linux_amd64/latest":    {fs.ModeSymlink | 0o777, "server"},
		"app_linux_amd64/empty":     {0o644, ""},
		"app_linux_amd64/dir/":      {fs.ModeDir | 0o755, ""},
		"app_linux_amd64/grüße":     {0o644, "x"},
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "a.tar.gz")
	_, err := WriteTarGz(file, entries, commitTime)
	require.NoError(t, err)
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	got := map[string]archived{}
	var order []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		got[h.Name] = archived{h.FileInfo().Mode(), string(data) + h.Linkname}
		order = append(order, h.Name)
		require.True(t, h.ModTime.Equal(commitTime.Truncate(time.Second)))
	}
	require.Equal(t, want, got)
	require.IsIncreasing(t, order)

	file = filepath.Join(dir, "a.zip")
	_, err = WriteZip(file, entries, commitTime)
	require.NoError(t, err)
	r, err := zip.OpenReader(file)
	require.NoError(t, err)
	defer r.Close()
	got = map[string]archived{}
	for _, f := range r.File {
		rc, err := f.Open()
		require.NoError(t, err)
		data, err := io.ReadAll(rc)
		require.NoError(t, err)
		got[f.Name] = archived{f.Mode(), string(data)}
		require.True(t, f.Modified.Equal(commitTime.Truncate(2*time.Second)), "%v", f.Modified)
	}
	require.Equal(t, want, got)

	// A time that the format does not know.
	_, err = WriteZip(file, entries[1:2], time.Unix(0, 0))
	require.NoError(t, err)
	early, err := zip.OpenReader(file)
	require.NoError(t, err)
	defer early.Close()
	require.Equal(t, 1980, early.File[0].Modified.Year())

	t.Run("unzip", func(t *testing.T) { run(t, tool(t, "unzip"), "-tq", file) })
}

func TestArchiveErrors(t *testing.T) {
	dir := t.TempDir()
	for _, write := range []func(string, []Entry, time.Time) (Archive, error){WriteTarGz, WriteZip} {
		file := filepath.Join(dir, "a")
		require.NoError(t, os.WriteFile(file, []byte("old"), 0o644))
		_, err := write(file, []Entry{{Path: "x", File: filepath.Join(dir, "nothing")}}, commitTime)
		require.ErrorContains(t, err, "archive "+file)
		_, err = write(file, []Entry{{Path: "../x"}}, commitTime)
		require.ErrorContains(t, err, "not a clean path")
		require.Equal(t, map[string]string{"a": "-rw-r--r-- " + hashOf([]byte("old")).String()}, tree(t, dir), "the old file stays")
	}
}

func TestArchiveMemory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(file)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(40<<20))
	require.NoError(t, f.Close())
	for _, write := range []func(string, []Entry, time.Time) (Archive, error){WriteTarGz, WriteZip} {
		peak := watchHeap(t, func() {
			_, err := write(filepath.Join(t.TempDir(), "a"), []Entry{{Path: "x", File: file}}, commitTime)
			require.NoError(t, err)
		})
		require.Less(t, peak, uint64(16<<20))
	}
}
