package pipelines

import (
	"debug/elf"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine/host"
)

// built is a pipeline that has built a small program with a real toolchain.
func built(t *testing.T, cache string, change func(*Config)) *Pipeline {
	e, err := host.Open(t.Context(), filepath.Join("..", "testdata", "tiny"), host.Options{CacheDir: cache})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, e.Close()) })
	off := false
	c := Config{GoVersions: []string{"1.22.12"}, Platforms: []string{"linux/amd64"}, Rebuild: &off, Timezones: []string{"none"}}
	if change != nil {
		change(&c)
	}
	p, err := New(t.Context(), e, c, Options{Output: filepath.Join(t.TempDir(), "dist"), Cache: cache})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, p.Close()) })
	r, err := p.Build(t.Context())
	require.NoError(t, err)
	require.Equal(t, Passed, r.Verdict)
	return p
}

// flip changes one byte of a section.
func flip(t *testing.T, name, section string) {
	f, err := elf.Open(name)
	require.NoError(t, err)
	at := int64(f.Section(section).Offset) + 100
	require.NoError(t, f.Close())
	w, err := os.OpenFile(name, os.O_RDWR, 0)
	require.NoError(t, err)
	defer w.Close()
	b := make([]byte, 1)
	_, err = w.ReadAt(b, at)
	require.NoError(t, err)
	b[0] ^= 1
	_, err = w.WriteAt(b, at)
	require.NoError(t, err)
}

func requireFailure(t *testing.T, p *Pipeline, stage, text string) {
	t.Helper()
	for _, s := range p.Record.Stages {
		if s.Name == stage {
			var all string
			for _, f := range s.Failures {
				all += f.Message + "\n"
			}
			require.Contains(t, all, text)
			return
		}
	}
	require.Fail(t, "no stage "+stage)
}

func TestTampering(t *testing.T) {
	cache := t.TempDir() // what a toolchain's files hash to is found out once
	for name, test := range map[string]func(*testing.T, string){
		"nothing": untouched, "binary changed after strip": binaryChangedAfterStrip, "strip changes a loaded section": stripChangesLoadedSection,
		"binary changed after verify": binaryChangedAfterVerify, "home in program": homeInProgram,
	} {
		t.Run(name, func(t *testing.T) { test(t, cache) })
	}
}

func binaryChangedAfterStrip(t *testing.T, cache string) {
	p := built(t, cache, nil)
	flip(t, p.path(p.build.Binaries[0].Path), ".text")
	r, err := p.Verify(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Failed, r.Verdict)
	requireFailure(t, p, "verify", "tiny_linux_amd64/tiny changed after it was built: SHA256 ")
	i, err := p.Image(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Skipped, i.Verdict)
}

// As if the tool that strips had changed what is loaded: the hash of its output is the one that was noted.
func stripChangesLoadedSection(t *testing.T, cache string) {
	p := built(t, cache, nil)
	b := &p.build.Binaries[0]
	flip(t, p.path(b.Path), ".rodata")
	var err error
	b.SHA256, _, err = hashFile(p.path(b.Path))
	require.NoError(t, err)
	r, err := p.Verify(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Failed, r.Verdict)
	requireFailure(t, p, "verify", "strip changed what is loaded: ")
	requireFailure(t, p, "verify", ".rodata")
}

// Between verify and image another program takes the binary's place.
func binaryChangedAfterVerify(t *testing.T, cache string) {
	p := built(t, cache, nil)
	r, err := p.Verify(t.Context())
	require.NoError(t, err)
	require.Equal(t, Passed, r.Verdict)
	flip(t, p.path(p.build.Binaries[0].Path), ".text")
	i, err := p.Image(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Failed, i.Verdict)
	requireFailure(t, p, "image", "tiny in the layer has SHA256 ")
}

func homeInProgram(t *testing.T, cache string) {
	t.Setenv("HOME", "/home/somebody-7c1f")
	p := built(t, cache, func(c *Config) { c.LDFlags = "-X main.version=/home/somebody-7c1f/src" })
	r, err := p.Verify(t.Context())
	require.NoError(t, err)
	assert.Equal(t, Failed, r.Verdict)
	assert.False(t, r.Binaries[0].Paths)
	requireFailure(t, p, "verify", "the user's home")
}

func untouched(t *testing.T, cache string) {
	p := built(t, cache, nil)
	r, err := p.Verify(t.Context())
	require.NoError(t, err)
	e := r.Binaries[0]
	assert.Contains(t, e.Kept, ".text")
	assert.NotContains(t, e.Kept, ".symtab")
	assert.Contains(t, e.Removed, ".symtab")
	assert.Empty(t, e.Libraries)
	assert.Empty(t, e.CgoPackages)
	assert.True(t, e.Paths)
}
