package pipelines

import (
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whoever adds a key must say which stage reads it, so that the record and the explanation of changes know of it.
func TestEveryKeyIsReadByAStage(t *testing.T) {
	none := []string{"profile", "profiles", "engine", "go-image", "output", "parallel", "fresh"}
	for f := range reflect.TypeFor[Config]().Fields() {
		key := f.Tag.Get("yaml")
		if key == "" {
			continue
		}
		read := false
		for _, inputs := range stageInputs {
			read = read || slices.Contains(inputs, key)
		}
		require.True(t, read != slices.Contains(none, key), "%s: add it to stageInputs, and to ownInputs if it can change an output", key)
		if slices.Contains(imageKeys, key) && key != "platforms" {
			found := false
			for _, inputs := range ownInputs {
				found = found || slices.Contains(inputs, "config "+key)
			}
			require.True(t, found, "%s: add it to ownInputs", key)
		}
	}
}

func TestStageOfFile(t *testing.T) {
	for name, want := range map[string]string{
		"run.json": "", "vet.json": "vet", "junit.xml": "test", "verification.json": "verify", "image/index.json": "image", "image/blobs/sha256/00": "", "deps.json": "deps",
		"compare.svg": "compare", "sbom_linux_amd64.spdx.json": "attest", "image.sigstore.json": "attest", "provenance.json": "attest", "SHA256SUMS": "build", "hello_linux_amd64/hello": "build",
		"test_linux_amd64/test": "build", "debug/hello_linux_amd64/hello": "build", "build.tar.gz": "build", "kube.yaml": "", "sizes.json": "", "report.html": "",
	} {
		require.Equal(t, want, stageOf(name), name)
	}
}
