package pipelines_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

const lockText = `{
  "schema": 1,
  "go": {
    "1.22": "1.22.12",
    "stable": "1.27.4"
  },
  "toolchains": {
    "1.22.12": {
      "darwin/arm64": "h1:mac",
      "linux/amd64": "h1:linux"
    }
  },
  "bases": {
    "gcr.io/distroless/static-debian12:nonroot": "sha256:0000"
  }
}
`

func TestLockRoundTrip(t *testing.T) {
	l := readLock(t, lockText)
	assert.Equal(t, map[string]string{"1.22": "1.22.12", "stable": "1.27.4"}, l.Go)
	assert.Equal(t, lockText, string(l.Bytes()), "the same bytes, whatever wrote it")

	empty, err := pipelines.ReadLock(fstest.MapFS{})
	require.NoError(t, err)
	assert.Equal(t, "{\n  \"schema\": 1,\n  \"go\": {},\n  \"toolchains\": {},\n  \"bases\": {}\n}\n", string(empty.Bytes()))
	again := readLock(t, string(empty.Bytes()))
	assert.Equal(t, empty.Bytes(), again.Bytes())

	sparse := readLock(t, `{"schema":1,"toolchains":{"1.22.12":null}}`)
	assert.NotNil(t, sparse.Go)
	assert.NotNil(t, sparse.Bases)
	mustPipeline(t, goModule("1.20"), pipelines.Config{GoVersions: []string{"1.22.12"}}, pipelines.Options{Lock: sparse})
	assert.Equal(t, map[string]string{"linux/amd64": "h1:1.22.12"}, sparse.Toolchains["1.22.12"])
}

func TestLockErrors(t *testing.T) {
	const restore = "Restore it from version control"
	for name, c := range map[string]struct {
		text  string
		parts []string
	}{
		"empty":           {"", []string{"slipway.lock cannot be read", restore}},
		"truncated":       {lockText[:len(lockText)/2], []string{"slipway.lock cannot be read", "unexpected end", restore}},
		"conflict":        {"<<<<<<< HEAD\n" + lockText, []string{"slipway.lock cannot be read", "invalid character '<'", restore}},
		"conflict inside": {lockText[:40] + "=======\n" + lockText[40:], []string{"slipway.lock cannot be read", restore}},
		"two":             {lockText + lockText, []string{"slipway.lock cannot be read", "after top-level value", restore}},
		"text after it":   {lockText + ">>>>>>> theirs\n", []string{"slipway.lock cannot be read", restore}},
		"list":            {"[]", []string{"slipway.lock cannot be read", restore}},
		"null":            {"null", []string{"slipway.lock has schema 0, this slipway reads 1"}},
		"no schema":       {`{"go":{}}`, []string{"slipway.lock has schema 0, this slipway reads 1"}},
		"unknown field":   {`{"schema":1,"gos":{}}`, []string{"slipway.lock cannot be read", `unknown field "gos"`, restore}},
		"newer":           {`{"schema":2,"go":{}}`, []string{"slipway.lock has schema 2, this slipway reads 1", "as new as the one that wrote it"}},
		"newer, other":    {`{"schema":2,"releases":[],"go":[]}`, []string{"slipway.lock has schema 2, this slipway reads 1", "as new as the one that wrote it"}},
		"wrong type":      {`{"schema":1,"go":["1.22"]}`, []string{"slipway.lock cannot be read", restore}},
		"wrong schema":    {`{"schema":"1"}`, []string{"slipway.lock cannot be read", restore}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pipelines.ReadLock(fstest.MapFS{pipelines.LockFile: &fstest.MapFile{Data: []byte(c.text)}})
			requireFault(t, err, fault.Usage, c.parts...)
			assert.NotContains(t, err.Error(), "pipelines.", "no Go types in messages")
		})
	}
	t.Run("a directory", func(t *testing.T) {
		_, err := pipelines.ReadLock(fstest.MapFS{pipelines.LockFile + "/x": &fstest.MapFile{}})
		requireFault(t, err, fault.Environment, "slipway.lock")
	})
}

// A person may have written anything.
func TestLockWithStrangeReleases(t *testing.T) {
	for request, exact := range map[string]string{"1.22": "latest", "1.21": "1.22.1", "stable": "../../../etc", "oldstable": ""} {
		t.Run(request, func(t *testing.T) {
			f := goModule("1.20")
			lock := readLock(t, fmt.Sprintf(`{"schema":1,"go":{%q:%q}}`, request, exact))
			_, err := newPipeline(t, f, pipelines.Config{GoVersions: []string{request}}, pipelines.Options{Lock: lock})
			if exact == "" {
				assert.NoError(t, err, "nothing is no choice")
				assert.Equal(t, "1.26.11", lock.Go[request])
				return
			}
			requireFault(t, err, fault.Usage, "slipway.lock", request, exact)
		})
	}
}

func TestLockWrite(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, pipelines.LockFile)
	l := readLock(t, lockText)
	wrote, err := l.Write(dir)
	require.NoError(t, err)
	assert.True(t, wrote)
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	assert.Equal(t, lockText, string(b))
	before, err := os.Stat(name)
	require.NoError(t, err)

	wrote, err = l.Write(dir)
	require.NoError(t, err)
	assert.False(t, wrote, "it says the same already")
	after, err := os.Stat(name)
	require.NoError(t, err)
	assert.True(t, os.SameFile(before, after))

	l.Forget()
	assert.Empty(t, l.Go)
	assert.Empty(t, l.Bases)
	assert.NotEmpty(t, l.Toolchains, "a release never changes")
	wrote, err = l.Write(dir)
	require.NoError(t, err)
	assert.True(t, wrote)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "no temporary files are left")

	_, err = l.Write(filepath.Join(dir, "missing"))
	assert.ErrorIs(t, err, os.ErrNotExist)

	// A directory stands where the file should.
	blocked := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(blocked, pipelines.LockFile, "x"), 0o755))
	wrote, err = l.Write(blocked)
	assert.Error(t, err)
	assert.False(t, wrote)
	entries, err = os.ReadDir(blocked)
	require.NoError(t, err)
	assert.Len(t, entries, 1)
}

func FuzzReadLock(f *testing.F) {
	for _, seed := range []string{lockText, lockText[:60], "{}", "null", `{"schema":1}`, `{"schema":2,"x":{}}`, `{"schema":1,"go":null,"toolchains":{"1.22.12":null}}`, `{"schema":1}{}`, `{"SCHEMA":1,"Go":{"a":"b"}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := pipelines.ReadLock(fstest.MapFS{pipelines.LockFile: &fstest.MapFile{Data: text}})
		if err != nil {
			require.Equal(t, fault.Usage, fault.Of(err))
			require.ErrorContains(t, err, "slipway.lock ")
			return
		}
		// What was read is written, and read the same again.
		written := l.Bytes()
		require.True(t, json.Valid(written))
		again, err := pipelines.ReadLock(fstest.MapFS{pipelines.LockFile: &fstest.MapFile{Data: written}})
		require.NoError(t, err)
		require.Equal(t, string(written), string(again.Bytes()))
		l.Forget()
	})
}
