package oci

import (
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
)

func TestParsePlatform(t *testing.T) {
	for in, want := range map[string]string{
		"linux/amd64":    "linux/amd64",
		"linux/amd64/v1": "linux/amd64",
		"linux/amd64/v3": "linux/amd64/v3",
		"linux/arm64":    "linux/arm64",
		"linux/arm64/v8": "linux/arm64",
		"linux/arm/v7":   "linux/arm/v7",
		"linux/arm/7":    "linux/arm/v7",
		"linux/s390x":    "linux/s390x",
	} {
		p, err := parsePlatform(in)
		require.NoError(t, err)
		require.Equal(t, want, platformName(p))
	}
	for _, in := range []string{"", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux//v7"} {
		_, err := parsePlatform(in)
		require.Error(t, err, in)
	}
}

func TestChoosePlatform(t *testing.T) {
	index := func(platforms ...string) (manifests []v1.Descriptor) {
		for _, s := range platforms {
			p, err := parsePlatform(s)
			require.NoError(t, err)
			if s == "linux/arm64/v8" {
				p.Variant = "v8" // as images say it
			}
			manifests = append(manifests, v1.Descriptor{MediaType: types.OCIManifestSchema1, Platform: &p, ArtifactType: s})
		}
		return manifests
	}
	for _, test := range []struct {
		want string
		have []string
		got  string
	}{
		{"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v6", "linux/arm/v7"}, "linux/arm/v7"},
		{"linux/arm/v7", []string{"linux/arm/v5", "linux/arm/v6"}, "linux/arm/v6"},
		{"linux/arm/v6", []string{"linux/arm/v7"}, ""},
		{"linux/arm/v6", []string{"linux/arm/v7", "linux/arm/v5"}, "linux/arm/v5"},
		{"linux/arm", []string{"linux/arm/v6", "linux/arm/v7"}, "linux/arm/v7"},
		{"linux/arm64", []string{"linux/arm/v7", "linux/arm64/v8"}, "linux/arm64/v8"},
		{"linux/amd64/v3", []string{"linux/amd64"}, "linux/amd64"},
		{"linux/amd64/v3", []string{"linux/amd64", "linux/amd64/v2", "linux/amd64/v4"}, "linux/amd64/v2"},
		{"linux/amd64", []string{"linux/amd64/v2"}, ""},
		{"linux/amd64", []string{"windows/amd64"}, ""},
	} {
		got, ok := choose(index(test.have...), func() v1.Platform { p, _ := parsePlatform(test.want); return p }())
		require.Equal(t, test.got != "", ok, "%v", test)
		require.Equal(t, test.got, got.ArtifactType, "%v", test)
	}

	// An attestation is no image, whatever platform it claims.
	manifests := index("linux/amd64")
	manifests[0].Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	_, ok := choose(manifests, v1.Platform{OS: "linux", Architecture: "amd64"})
	require.False(t, ok)
	require.Empty(t, platformsOf(manifests))
}
