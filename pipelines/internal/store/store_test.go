package store

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func write(t *testing.T, dir string, files map[string]string) []string {
	t.Helper()
	var names []string
	for name, text := range files {
		file := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
		names = append(names, name)
	}
	return names
}

func read(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	require.NoError(t, filepath.Walk(dir, func(name string, i os.FileInfo, err error) error {
		if err != nil || i.IsDir() {
			return err
		}
		text, err := os.ReadFile(name)
		rel, _ := filepath.Rel(dir, name)
		files[filepath.ToSlash(rel)] = string(text)
		return err
	}))
	return files
}

var sample = map[string]string{"a.json": "{}", "bin/app": "program", "image/blobs/x": "layer", "again": "program"}

func put(t *testing.T, s *Store, key string) {
	t.Helper()
	dir := t.TempDir()
	names := write(t, dir, sample)
	require.NoError(t, os.Chmod(filepath.Join(dir, "bin/app"), 0o700))
	require.NoError(t, s.Put(key, []byte(`{"verdict":"passed"}`), dir, names))
}

func TestGetGivesWhatWasPut(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "store"))
	require.Nil(t, s.Get("none", t.TempDir()))
	put(t, s, "key")
	dir := t.TempDir()
	e := s.Get("key", dir)
	require.NotNil(t, e)
	require.JSONEq(t, `{"verdict":"passed"}`, string(e.Value))
	require.WithinDuration(t, time.Now(), e.Made, time.Hour)
	require.Equal(t, sample, read(t, dir))
	i, err := os.Stat(filepath.Join(dir, "bin/app"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), i.Mode())
	require.Nil(t, s.Get("other", t.TempDir()))
	// What is there is not written over.
	require.Nil(t, s.Get("key", dir))
}

func TestDamageIsAMiss(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"entry cut":     func(t *testing.T, dir string) { require.NoError(t, os.Truncate(filepath.Join(dir, "key"), 30)) },
		"entry empty":   func(t *testing.T, dir string) { require.NoError(t, os.Truncate(filepath.Join(dir, "key"), 0)) },
		"entry changed": func(t *testing.T, dir string) { replace(t, filepath.Join(dir, "key"), "passed", "failed") },
		"file gone":     func(t *testing.T, dir string) { require.NoError(t, os.Remove(fileOf(dir, "layer"))) },
		"file changed":  func(t *testing.T, dir string) { replace(t, fileOf(dir, "layer"), "layer", "LAYER") },
		"file cut":      func(t *testing.T, dir string) { require.NoError(t, os.Truncate(fileOf(dir, "program"), 3)) },
		"file longer": func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(fileOf(dir, "program"), []byte("programs"), 0o644))
		},
		"everything gone": func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := Open(dir)
			put(t, s, "key")
			damage(t, dir)
			out := t.TempDir()
			require.Nil(t, s.Get("key", out))
			require.Empty(t, read(t, out), "nothing of it is left")
			put(t, s, "key") // which mends it
			require.NotNil(t, s.Get("key", t.TempDir()))
		})
	}
}

func fileOf(dir, content string) string { return filepath.Join(dir, "files", digest([]byte(content))) }

func replace(t *testing.T, file, old, now string) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Contains(t, string(text), old)
	require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), old, now, 1)), 0o644))
}

// An entry that was made by hand leads nowhere.
func TestForgedEntry(t *testing.T) {
	dir := t.TempDir()
	s := Open(dir)
	put(t, s, "key")
	e := Entry{Value: []byte("1"), Files: []File{{Name: "../outside", Size: 7, SHA256: digest([]byte("program"))}}}
	content, err := json.Marshal(e)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "key"), []byte(string(content)+"\n"+digest(content)), 0o644))
	out := filepath.Join(t.TempDir(), "dist")
	require.Nil(t, s.Get("key", out))
	require.NoFileExists(t, filepath.Join(filepath.Dir(out), "outside"))
}

func TestManyAtOnce(t *testing.T) {
	s := Open(t.TempDir())
	var group sync.WaitGroup
	for i := range 16 {
		group.Go(func() {
			key := fmt.Sprint("key", i%3)
			put(t, s, key)
			dir := t.TempDir()
			if e := s.Get(key, dir); e == nil {
				t.Error("not there")
			}
		})
	}
	group.Wait()
	left, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestStoreIsBounded(t *testing.T) {
	s := &Store{dir: t.TempDir(), limit: 1000}
	for i := range 10 {
		dir := t.TempDir()
		names := write(t, dir, map[string]string{"f": strings.Repeat(fmt.Sprint(i), 200)})
		require.NoError(t, s.Put(fmt.Sprint("key", i), []byte("1"), dir, names))
		old := time.Now().Add(time.Duration(i-100) * time.Hour)
		for name := range read(t, s.dir) {
			file := filepath.Join(s.dir, name)
			if info, err := os.Stat(file); err == nil && time.Since(info.ModTime()) < time.Hour {
				require.NoError(t, os.Chtimes(file, old, old))
			}
		}
	}
	var size int
	for _, text := range read(t, s.dir) {
		size += len(text)
	}
	require.LessOrEqual(t, size, 1000)
	require.NotNil(t, s.Get("key9", t.TempDir()))
	require.Nil(t, s.Get("key0", t.TempDir()))

	// What a killed run has left goes after a day.
	stale := filepath.Join(s.dir, "tmp", "left")
	require.NoError(t, os.WriteFile(stale, nil, 0o644))
	old := time.Now().Add(-25 * time.Hour)
	require.NoError(t, os.Chtimes(stale, old, old))
	put(t, s, "more")
	require.NoFileExists(t, stale)
}
