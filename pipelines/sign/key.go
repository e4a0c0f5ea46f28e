package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/youmark/pkcs8"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// maxKey limits the text of a key, in bytes. Keys of the kinds below have a few hundred.
const maxKey = 64 << 10

const (
	kinds       = "Keys are ECDSA P-256 or Ed25519, as `cosign generate-key-pair` or `openssl genpkey -algorithm ed25519` write them."
	rsaKey      = "the %s is of kind RSA, which is not supported"
	unsupported = "the %s is of kind %T, which is not supported"
)

// A Key is a private key: ECDSA on P-256 with SHA-256, or Ed25519. Equal statements get equal signatures,
// as nonces follow RFC 6979 and RFC 8032. No verb of package fmt prints what is secret.
type Key struct {
	private crypto.Signer
	public  *PublicKey
}

// A PublicKey verifies what its Key has signed.
type PublicKey struct {
	key  crypto.PublicKey
	hint string
}

// LoadKey reads a private key in PEM: PKCS#8 (RFC 5208), also encrypted with PBES2 (RFC 8018), SEC1
// "EC PRIVATE KEY" (RFC 5915), or the form of cosign, which is PKCS#8 in
// https://github.com/secure-systems-lab/go-securesystemslib/tree/v0.11.1/encrypted. The password is for those
// that are encrypted, else ignored; cosign's may be empty. Every error is a *fault.Error of kind Usage, and
// none repeats a part of the key or the password.
func LoadKey(text, password []byte) (*Key, error) {
	block, err := onlyBlock(text, "private key")
	if err != nil {
		return nil, err
	}
	var key any
	switch block.Type {
	case "PRIVATE KEY":
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		if block.Headers["DEK-Info"] != "" {
			return nil, fault.Usagef("Convert it with `openssl pkcs8 -topk8`.", "the private key is encrypted in the way of old versions of OpenSSL, which does not notice a wrong password")
		}
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		var der []byte
		if block.Type == "ENCRYPTED PRIVATE KEY" {
			key, err = decryptPKCS8(block.Bytes, password)
		} else if der, err = encrypted.Decrypt(block.Bytes, password); err == nil {
			key, err = x509.ParsePKCS8PrivateKey(der)
		}
		if err != nil && len(password) == 0 {
			return nil, fault.Usagef("Give its password.", "the private key is encrypted, and there is no password")
		} else if err != nil {
			return nil, fault.Usagef("Compare the password with the one that the key was made with.", "the private key cannot be decrypted: the password is another one, or the key is damaged")
		}
	case "PUBLIC KEY":
		return nil, fault.Usagef("Give the private one of the pair.", "the private key is a public key")
	case "RSA PRIVATE KEY":
		return nil, fault.Usagef(kinds, rsaKey, "private key")
	default:
		return nil, fault.Usagef(kinds, "the private key is a PEM block of the unknown type %.40q", block.Type)
	}
	// The causes are of no help to users and are written by packages that do not promise to keep secrets.
	if err != nil {
		return nil, fault.Usagef(kinds, "the private key cannot be read: what is inside %q is damaged", block.Type)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fault.Usagef(kinds, unsupported, "private key", key)
	}
	public, err := newPublicKey("private key", signer.Public())
	if err != nil {
		return nil, err
	}
	return &Key{private: signer, public: public}, nil
}

// decryptPKCS8 decrypts with a library that panics if lengths in the key do not fit.
func decryptPKCS8(der, password []byte) (key any, err error) {
	if len(password) == 0 { // means "not encrypted" there
		return nil, x509.IncorrectPasswordError
	}
	defer func() {
		if recover() != nil {
			key, err = nil, x509.IncorrectPasswordError
		}
	}()
	return pkcs8.ParsePKCS8PrivateKey(der, password)
}

// LoadPublicKey reads a public key in PEM, "PUBLIC KEY" (RFC 5280 section 4.1.2.7). Every error is a
// *fault.Error of kind Usage.
func LoadPublicKey(text []byte) (*PublicKey, error) {
	block, err := onlyBlock(text, "public key")
	if err != nil {
		return nil, err
	}
	if block.Type != "PUBLIC KEY" {
		return nil, fault.Usagef("A public key begins with -----BEGIN PUBLIC KEY-----.", "the public key is a PEM block of the type %.40q", block.Type)
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fault.Usagef(kinds, "the public key cannot be read: %v", err)
	}
	return newPublicKey("public key", key)
}

// onlyBlock returns the one key in a text. With several, a reader could take another one for what counts.
func onlyBlock(text []byte, what string) (*pem.Block, error) {
	if len(text) > maxKey {
		return nil, fault.Usagef(kinds, "the %s has %d bytes, more than the %d that a key can have", what, len(text), maxKey)
	}
	var found *pem.Block
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch {
		case block.Type == "EC PARAMETERS": // OpenSSL writes the name of the curve before the key
		case found != nil:
			return nil, fault.Usagef("Give one key.", "the %s is a text with several PEM blocks", what)
		default:
			found = block
		}
	}
	if found == nil {
		return nil, fault.Usagef("A key is a text with a line -----BEGIN ...----- and a line -----END ...-----; see that it is whole.", "the %s is not in PEM", what)
	}
	return found, nil
}

func newPublicKey(what string, key crypto.PublicKey) (*PublicKey, error) {
	switch k := key.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			return nil, fault.Usagef(kinds, "the %s is on curve %s, which is not supported", what, k.Curve.Params().Name)
		}
	case *rsa.PublicKey:
		return nil, fault.Usagef(kinds, rsaKey, what)
	default:
		return nil, fault.Usagef(kinds, unsupported, what, key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, fault.Usagef(kinds, "the %s is invalid: %v", what, err)
	}
	hash := sha256.Sum256(der)
	return &PublicKey{key: key, hint: base64.StdEncoding.EncodeToString(hash[:])}, nil
}

// Public returns the key that verifies what k signs.
func (k *Key) Public() *PublicKey { return k.public }

// Sign is that of a Signer.
func (k *Key) Sign(_ context.Context, message []byte) ([]byte, json.RawMessage, error) {
	var signature []byte
	var err error
	if _, ok := k.private.(ed25519.PrivateKey); ok {
		// Not the prehashed variant, which cosign does not verify.
		signature, err = k.private.Sign(nil, message, crypto.Hash(0))
	} else {
		hash := sha256.Sum256(message)
		signature, err = k.private.Sign(nil, hash[:], crypto.SHA256) // without randomness this is RFC 6979
	}
	if err != nil {
		return nil, nil, err
	}
	m, err := json.Marshal(material{PublicKey: &publicKey{Hint: k.public.hint}})
	return signature, m, err
}

// Format keeps what is secret out of logs, whatever the verb.
func (k *Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "private key of "+k.public.hint) }

// String names the key as bundles and cosign do: the SHA-256 of its SubjectPublicKeyInfo in DER, in base64.
func (p *PublicKey) String() string { return p.hint }

func (p *PublicKey) verify(message, signature []byte) bool {
	switch key := p.key.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(key, message, signature)
	case *ecdsa.PublicKey:
		hash := sha256.Sum256(message)
		return ecdsa.VerifyASN1(key, hash[:], signature)
	}
	return false
}
