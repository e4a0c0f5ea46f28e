// Package sign signs in-toto statements with a key, and verifies them, in the form that cosign 3 reads and
// writes: a Sigstore bundle around a DSSE envelope.
//
// The types of the bundle are written out here. The generated ones of Sigstore, which tests compare with, make the
// slipway command 6 MB larger, and write JSON with spaces that change from build to build.
//
//   - bundle: https://docs.sigstore.dev/about/bundle/ and
//     https://github.com/sigstore/protobuf-specs/blob/v0.5.2/protos/sigstore_bundle.proto
//   - envelope: https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md
//   - statement: https://github.com/in-toto/attestation/tree/v1.1.0/spec/v1
//   - in a registry: https://github.com/sigstore/cosign/blob/v3.1.3/specs/BUNDLE_SPEC.md
//
// Nothing is sent to a transparency log or a timestamp authority, so cosign has to be told not to ask for
// them: cosign verify --key=key.pub --insecure-ignore-tlog. It takes any statement about an image for a signature
// of it; cosign verify-attestation --type=URI looks at what is stated.
package sign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	// ArtifactType is what a bundle is in a registry: the artifact type of the manifest and the media type of
	// its only layer. The configuration is the empty one.
	ArtifactType = "application/vnd.dev.sigstore.bundle.v0.3+json"

	// MaxSize limits a bundle, in bytes. A statement can have about three quarters of that.
	MaxSize = 16 << 20

	// payloadType is https://github.com/in-toto/attestation/blob/v1.1.0/spec/v1/envelope.md
	payloadType = "application/vnd.in-toto+json"
)

// Why a bundle is not opened. They are in the chain of the errors of Open; Annotations has ErrNotBundle only.
var (
	// ErrNotBundle says that the bytes are not a bundle of version 0.3 with one signed in-toto statement.
	ErrNotBundle = errors.New("not a Sigstore bundle with a statement")
	// ErrOtherKey says that the bundle names another key, or none, and that this one does not verify it.
	ErrOtherKey = errors.New("signed by another key")
	// ErrSignature says that the bundle names this key, which does not verify it: what was signed was changed
	// later, or the name is wrong.
	ErrSignature = errors.New("the signature does not fit")
)

// A Signer signs for Bundle. A *Key is one. One without a key would get a certificate and an entry in a
// transparency log, both of which have a place in the material.
type Signer interface {
	// Sign signs message, which is to be hashed or not as the kind of key wants it, and returns the
	// signature, for ECDSA in ASN.1, together with what tells verifiers how to check it: the
	// verificationMaterial of the bundle, in JSON.
	Sign(ctx context.Context, message []byte) (signature []byte, material json.RawMessage, err error)
}

// bundle is dev.sigstore.bundle.v1.Bundle. The order of its fields is the one of the JSON.
type bundle struct {
	MediaType        string          `json:"mediaType"`
	Material         json.RawMessage `json:"verificationMaterial"`
	MessageSignature json.RawMessage `json:"messageSignature,omitempty"`
	Envelope         *envelope       `json:"dsseEnvelope"`
}

// envelope is io.intoto.Envelope.
type envelope struct {
	Payload     []byte      `json:"payload"`
	PayloadType string      `json:"payloadType"`
	Signatures  []signature `json:"signatures"`
}

type signature struct {
	Sig   []byte `json:"sig"`
	KeyID string `json:"keyid,omitempty"`
}

// material is dev.sigstore.bundle.v1.VerificationMaterial as far as it is looked at.
type material struct {
	PublicKey   *publicKey      `json:"publicKey,omitempty"`
	Certificate json.RawMessage `json:"certificate,omitempty"`
	Chain       json.RawMessage `json:"x509CertificateChain,omitempty"`
}

type publicKey struct {
	Hint string `json:"hint,omitempty"`
}

// Bundle signs an in-toto statement, which is kept byte by byte, and returns a bundle in JSON. It has the same
// bytes for the same statement if the signer has: a Key does.
func Bundle(ctx context.Context, signer Signer, statement []byte) ([]byte, error) {
	if _, err := predicateType(statement); err != nil {
		return nil, err
	}
	sig, m, err := signer.Sign(ctx, encode(payloadType, statement))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	text, err := json.Marshal(bundle{
		MediaType: ArtifactType,
		Material:  m,
		Envelope:  &envelope{Payload: statement, PayloadType: payloadType, Signatures: []signature{{Sig: sig}}},
	})
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	if len(text) > MaxSize {
		return nil, fmt.Errorf("a statement of %d bytes makes a bundle of more than %d", len(statement), MaxSize)
	}
	return text, nil
}

// Open verifies a bundle that anyone may have written and returns the statement in it. Whether that is about
// the right thing is not looked at. The signature alone decides; what the bundle says about its key explains
// failures and no more. Log entries and timestamps are not looked at. Signatures of Ed25519ph, which cosign 3.1
// makes with Ed25519 keys and does not verify either, do not fit.
func (p *PublicKey) Open(bundle []byte) (statement []byte, err error) {
	e, hint, err := parse(bundle)
	if err != nil {
		return nil, err
	}
	if p.verify(encode(e.PayloadType, e.Payload), e.Signatures[0].Sig) {
		return e.Payload, nil
	}
	switch hint {
	case p.hint:
		return nil, fmt.Errorf("%w: the bundle names key %s, which has not signed what is in it", ErrSignature, p)
	case "":
		return nil, fmt.Errorf("%w than %s", ErrOtherKey, p)
	default:
		return nil, fmt.Errorf("%w than %s: the bundle names %.100q", ErrOtherKey, p, hint)
	}
}

// Annotations returns those that cosign gives to the manifest of a bundle, without the time: it verifies
// without any of them, and lists and copies by them. Signatures are not verified.
func Annotations(bundle []byte) (map[string]string, error) {
	e, _, err := parse(bundle)
	if err != nil {
		return nil, err
	}
	predicate, err := predicateType(e.Payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotBundle, err)
	}
	return map[string]string{
		"dev.sigstore.bundle.content":       "dsse-envelope",
		"dev.sigstore.bundle.predicateType": predicate,
	}, nil
}

// parse reads a bundle as far as to have an envelope with a statement and one signature, and the hint of the
// key, if any.
func parse(text []byte) (e *envelope, hint string, err error) {
	if len(text) > MaxSize {
		return nil, "", fmt.Errorf("%w: %d bytes, more than %d", ErrNotBundle, len(text), MaxSize)
	}
	var b bundle
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return nil, "", fmt.Errorf("%w: %.200s", ErrNotBundle, err.Error()) // may quote all of the bundle
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, "", fmt.Errorf("%w: something follows it", ErrNotBundle)
	}
	// The second is how the version was written at first; cosign reads both.
	if b.MediaType != ArtifactType && b.MediaType != "application/vnd.dev.sigstore.bundle+json;version=0.3" {
		return nil, "", fmt.Errorf("%w: its media type is %.100q", ErrNotBundle, b.MediaType)
	}
	var m material
	if err := json.Unmarshal(b.Material, &m); err != nil || m.PublicKey == nil && m.Certificate == nil && m.Chain == nil {
		return nil, "", fmt.Errorf("%w: it does not say how to verify it", ErrNotBundle)
	}
	switch {
	case b.Envelope == nil || b.MessageSignature != nil:
		return nil, "", fmt.Errorf("%w: it holds no DSSE envelope, or more than that", ErrNotBundle)
	case b.Envelope.PayloadType != payloadType:
		return nil, "", fmt.Errorf("%w: its payload is of type %.100q", ErrNotBundle, b.Envelope.PayloadType)
	case len(b.Envelope.Signatures) != 1:
		return nil, "", fmt.Errorf("%w: it has %d signatures, not one", ErrNotBundle, len(b.Envelope.Signatures))
	}
	if m.PublicKey != nil {
		hint = m.PublicKey.Hint
	}
	return b.Envelope, hint, nil
}

// encode is the "pre-authentication encoding" of DSSE: what is signed.
func encode(payloadType string, payload []byte) []byte {
	b := []byte("DSSEv1 " + strconv.Itoa(len(payloadType)) + " " + payloadType + " " + strconv.Itoa(len(payload)) + " ")
	return append(b, payload...)
}

func predicateType(statement []byte) (string, error) {
	var s struct {
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(statement, &s); err != nil {
		return "", fmt.Errorf("not an in-toto statement: %w", err)
	}
	if s.PredicateType == "" {
		return "", errors.New("not an in-toto statement: it has no predicateType")
	}
	return s.PredicateType, nil
}
