package oci

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestArtifacts(t *testing.T) {
	for name, start := range map[string]func(*testing.T) string{"go-containerregistry": newRegistry, "docker-registry": newDockerRegistry} {
		t.Run(name, func(t *testing.T) {
			host := start(t)
			types := []string{"application/vnd.example.one", "application/vnd.example.two"}
			dir, index := testLayout(t)
			manifest := index.Images[0].Manifest
			target := host + "/team/app:v1.2.3"
			o := PushOptions{Auth: nobody, RetryDelay: fast, Attach: []Artifact{
				{Subject: index.Digest, Type: "application/vnd.example.one", Content: []byte(`{"one":1}`), Annotations: map[string]string{"example": "one"}},
				{Subject: index.Digest, Type: "application/vnd.example.two", Content: []byte("two")},
				{Subject: manifest, Type: "application/vnd.example.one", Content: []byte("of a platform")},
			}}
			pushed, err := Push(t.Context(), dir, target, o)
			require.NoError(t, err)
			require.Equal(t, 3, pushed.Attached)

			found, err := Artifacts(t.Context(), target, index.Digest, nobody, "application/vnd.example.two")
			require.NoError(t, err)
			require.Len(t, found, 1, "of one type only")
			found, err = Artifacts(t.Context(), target, index.Digest, nobody, types...)
			require.NoError(t, err)
			require.Len(t, found, 2)
			require.Equal(t, o.Attach[0].Type, found[0].Type)
			require.Equal(t, o.Attach[0].Content, found[0].Content)
			require.Equal(t, "one", found[0].Annotations["example"])
			found, err = Artifacts(t.Context(), target, manifest, nobody, types...)
			require.NoError(t, err)
			require.Len(t, found, 1)
			found, err = Artifacts(t.Context(), target, "sha256:"+strings.Repeat("0", 64), nobody, types...)
			require.NoError(t, err)
			require.Empty(t, found)

			// Again: two are there. What others put there is no concern: a scanner's report may have any size.
			huge := Artifact{Subject: index.Digest, Type: "application/vnd.example.scan", Content: make([]byte, MaxArtifact+1)}
			_, err = Push(t.Context(), dir, target, PushOptions{Auth: nobody, RetryDelay: fast, Attach: []Artifact{huge}})
			require.NoError(t, err)
			found, err = Artifacts(t.Context(), target, index.Digest, nobody, append(types, huge.Type)...)
			require.NoError(t, err)
			require.Len(t, found, 2)
			o.Attach[1].Content = []byte("other")
			pushed, err = Push(t.Context(), dir, target, o)
			require.NoError(t, err)
			require.Equal(t, 1, pushed.Attached)
			require.Equal(t, 2, pushed.AttachedBefore)
			require.Equal(t, "unchanged", pushed.Tags[0].State)
		})
	}
}

func TestArtifactOfAnotherImage(t *testing.T) {
	host := newRegistry(t)
	dir, _ := testLayout(t, "linux/amd64")
	_, err := Push(t.Context(), dir, host+"/app:v1", PushOptions{Auth: nobody, Attach: []Artifact{{Subject: "sha256:" + strings.Repeat("0", 64), Type: "a/b"}}})
	require.ErrorContains(t, err, "which is not in the image")
	require.Empty(t, tagDigest(t, host+"/app:v1"))
}
