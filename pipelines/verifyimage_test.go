package pipelines

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/internal/statement"
)

// imageWith is an image with files, each executable.
func imageWith(t *testing.T, files map[string][]byte, change func(*v1.Config)) v1.Image {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range sortedKeys(files) {
		require.NoError(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name]))}))
		_, err := w.Write(files[name])
		require.NoError(t, err)
	}
	require.NoError(t, w.Close())
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	require.NoError(t, err)
	img, err := mutate.AppendLayers(empty.Image, layer)
	require.NoError(t, err)
	config, err := img.ConfigFile()
	require.NoError(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config.User, config.Config.Entrypoint = "65532", []string{"/usr/local/bin/app"}
	if change != nil {
		change(&config.Config)
	}
	img, err = mutate.ConfigFile(img, config)
	require.NoError(t, err)
	return img
}

// published writes a layout, and beside it provenance that names the programs.
func published(t *testing.T, index v1.ImageIndex, programs ...[]byte) string {
	dir := filepath.Join(t.TempDir(), "image")
	l, err := layout.Write(dir, empty.Index)
	require.NoError(t, err)
	require.NoError(t, l.AppendIndex(index))
	digest, err := index.Digest()
	require.NoError(t, err)
	subject := []statement.Resource{{Digest: statement.Digest(digest.String())}}
	for _, p := range programs {
		sum := sha256.Sum256(p)
		subject = append(subject, statement.Resource{Digest: map[string]string{"sha256": hex.EncodeToString(sum[:])}})
	}
	var v provenance
	v.BuildDefinition.BuildType = buildType
	text, err := statement.Write(statement.Provenance, v, subject...)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(dir), provenanceName), text, 0o644))
	return "oci:" + dir
}

func indexOf(img mutate.Appendable, platform *v1.Platform) v1.ImageIndex {
	return mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: platform}})
}

func details(r *ImageReport, check string) string {
	var all string
	for _, c := range r.Checks {
		if c.Check == check {
			all += string(c.Verdict) + ": " + c.Detail + "\n"
		}
	}
	return all
}

// Images that slipway would not make, with provenance that is right as far as it goes.
func TestVerifyStrangeImages(t *testing.T) {
	dir := t.TempDir()
	c := exec.Command("go", "build", "-o", filepath.Join(dir, "tiny"), ".")
	c.Dir = filepath.Join("..", "testdata", "tiny")
	c.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0", "GOWORK=off")
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
	good, err := os.ReadFile(filepath.Join(dir, "tiny"))
	require.NoError(t, err)
	evil := bytes.Replace(good, []byte("0.0.0-dev"), []byte("9.9.9-bad"), 1)
	unknown := &v1.Platform{OS: "unknown", Architecture: "unknown"}
	amd64 := &v1.Platform{OS: "linux", Architecture: "amd64"}
	app := map[string][]byte{"usr/local/bin/app": good}

	for name, x := range map[string]struct {
		index         v1.ImageIndex
		check, detail string
	}{
		"as it should be":          {indexOf(imageWith(t, app, nil), amd64), "strip", "passed: app is the program that was built"},
		"another program":          {indexOf(imageWith(t, map[string][]byte{"usr/local/bin/app": evil}, nil), amd64), "strip", "failed: /usr/local/bin/app has SHA256"},
		"starts another one":       {indexOf(imageWith(t, map[string][]byte{"usr/local/bin/app": good, "opt/app": evil}, func(c *v1.Config) { c.Entrypoint = []string{"/opt/app"} }), amd64), "strip", `failed: it starts "/opt/app"`},
		"starts a script":          {indexOf(imageWith(t, map[string][]byte{"usr/local/bin/app": []byte("#!/bin/sh\n")}, nil), amd64), "strip", `failed: it starts "/usr/local/bin/app"`},
		"starts nothing":           {indexOf(imageWith(t, app, func(c *v1.Config) { c.Entrypoint = nil }), amd64), "strip", `failed: it starts ""`},
		"root in other words":      {indexOf(imageWith(t, app, func(c *v1.Config) { c.User = "+0:1" }), amd64), "user", "failed: it runs as root"},
		"a user by name":           {indexOf(imageWith(t, app, func(c *v1.Config) { c.User = "toor" }), amd64), "user", "no evidence: it runs as toor"},
		"without a platform":       {indexOf(imageWith(t, map[string][]byte{"usr/local/bin/app": evil}, nil), nil), "strip", "failed: /usr/local/bin/app has SHA256"},
		"an index without images":  {indexOf(empty.Image, unknown), "content", "failed: the index holds no image"},
		"documents of BuildKit":    {mutate.AppendManifests(indexOf(imageWith(t, app, nil), amd64), mutate.IndexAddendum{Add: empty.Image, Descriptor: v1.Descriptor{Platform: unknown}}), "strip", "passed: app is"},
		"an index within an index": {indexOf(indexOf(imageWith(t, app, nil), amd64), amd64), "", "holds an index"},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := VerifyImage(t.Context(), published(t, x.index, good), VerifyImageOptions{Cache: t.TempDir()})
			if x.check == "" {
				assert.ErrorContains(t, err, x.detail)
				return
			}
			require.NoError(t, err)
			assert.Contains(t, details(r, x.check), x.detail)
			assert.Equal(t, bytes.Contains([]byte(details(r, "strip")+details(r, "user")+details(r, "content")), []byte("failed: ")), r.Verdict == Failed)
		})
	}
}
