// Package statement writes and reads in-toto statements: who says what about which files.
//
// The types follow https://github.com/in-toto/attestation/tree/v1.1.0/spec/v1. That project's own Go types
// are generated and write JSON with spaces that change on purpose; what is signed here has the same
// bytes every time. Tests read it with that project's types.
package statement

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Type is the type of all statements.
const Type = "https://in-toto.io/Statement/v1"

// Types of predicates.
const (
	// Provenance is https://slsa.dev/spec/v1.0/provenance.
	Provenance = "https://slsa.dev/provenance/v1"
	// SPDX is an SPDX document.
	SPDX = "https://spdx.dev/Document"
	// Signature is what cosign writes for a signature of an image. The predicate says nothing.
	Signature = "https://sigstore.dev/cosign/sign/v1"
)

// MaxSize limits what Parse reads, in bytes.
const MaxSize = 32 << 20

// Statement says something about its subjects.
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Resource      `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Resource names an artefact by digest.
type Resource struct {
	Name string `json:"name,omitempty"`
	URI  string `json:"uri,omitempty"`
	// Digest maps algorithms to digests in hex.
	Digest      map[string]string `json:"digest,omitempty"`
	MediaType   string            `json:"mediaType,omitempty"`
	Annotations map[string]any    `json:"annotations,omitempty"`
}

// Write writes a statement. Equal input gives equal bytes.
func Write(predicateType string, predicate any, subject ...Resource) ([]byte, error) {
	text, err := encode(predicate)
	if err != nil {
		return nil, err
	}
	return encode(Statement{Type: Type, Subject: subject, PredicateType: predicateType, Predicate: text})
}

// encode is json.Marshal without escapes for HTML.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(b.Bytes()), err
}

// Parse reads a statement that anyone may have written.
func Parse(text []byte) (*Statement, error) {
	if len(text) > MaxSize {
		return nil, fmt.Errorf("statement of %d bytes, more than %d", len(text), MaxSize)
	}
	var s Statement
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("not an in-toto statement: %w", err)
	}
	switch {
	case s.Type != Type && s.Type != "https://in-toto.io/Statement/v0.1":
		return nil, fmt.Errorf("not an in-toto statement: its type is %q", s.Type)
	case len(s.Subject) == 0:
		return nil, errors.New("a statement about nothing")
	case s.PredicateType == "":
		return nil, errors.New("a statement without a type")
	}
	return &s, nil
}

// About tells whether a digest such as "sha256:..." is one of the subjects.
func (s *Statement) About(digest string) bool {
	algorithm, value, _ := strings.Cut(digest, ":")
	for _, r := range s.Subject {
		if value != "" && r.Digest[algorithm] == value {
			return true
		}
	}
	return false
}

// Digest is the digest set of "sha256:..." in that notation, of "h1:..." as the dirHash of
// https://github.com/in-toto/attestation/blob/v1.1.0/spec/v1/digest_set.md, and nil of anything else.
func Digest(digest string) map[string]string {
	algorithm, value, _ := strings.Cut(digest, ":")
	switch algorithm {
	case "sha256":
		return map[string]string{algorithm: value}
	case "h1":
		if b, err := base64.StdEncoding.DecodeString(value); err == nil {
			return map[string]string{"dirHash": hex.EncodeToString(b)}
		}
	}
	return nil
}
