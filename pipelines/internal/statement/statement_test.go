package statement

import (
	"strings"
	"testing"

	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"
)

var sum = strings.Repeat("ab", 32)

func TestStatement(t *testing.T) {
	text, err := Write(Provenance, map[string]any{"b": "<&>", "a": 1}, Resource{Name: "app", Digest: Digest("sha256:" + sum), Annotations: map[string]any{"platform": "linux/amd64"}})
	require.NoError(t, err)
	assert.Equal(t, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":"`+sum+`"},"annotations":{"platform":"linux/amd64"}}],`+
		`"predicateType":"https://slsa.dev/provenance/v1","predicate":{"a":1,"b":"<&>"}}`, string(text))

	var theirs intoto.Statement
	require.NoError(t, protojson.Unmarshal(text, &theirs))
	require.NoError(t, theirs.Validate())

	s, err := Parse(text)
	require.NoError(t, err)
	assert.True(t, s.About("sha256:"+sum))
	assert.False(t, s.About("sha256:"+strings.Repeat("cd", 32)))
	assert.False(t, s.About("sha512:"+sum))
	assert.False(t, s.About(""))
	assert.False(t, s.About("sha256:"))
}

func TestDigest(t *testing.T) {
	assert.Equal(t, map[string]string{"dirHash": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}, Digest("h1:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="))
	assert.Nil(t, Digest("h1:?"))
	assert.Nil(t, Digest("md5:00"))
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "not an in-toto statement",
		"[]":                              "not an in-toto statement",
		`{"_type":1}`:                     "not an in-toto statement",
		`{"_type":"https://example.com"}`: "its type is",
		`{"_type":"` + Type + `"}`:        "about nothing",
		`{"_type":"` + Type + `","subject":[{}]}`:                              "without a type",
		`{"_type":"` + Type + `","x":"` + strings.Repeat("x", MaxSize) + `"}"`: "more than",
	} {
		_, err := Parse([]byte(text))
		assert.ErrorContains(t, err, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{"sha256":"00"}}],"predicateType":"x","predicate":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if s, err := Parse(text); err == nil {
			s.About("sha256:00")
		}
	})
}
