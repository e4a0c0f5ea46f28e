package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	bundlev1 "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/stretchr/testify/require"
	"github.com/youmark/pkcs8"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

var update = flag.Bool("update", false, "write testdata anew")

const statement = `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{"html":"<&>"}}`

// secret is a password that must not be in an error text.
const secret = "correct horse"

// testKeys returns one key of each kind, the same ones every time.
func testKeys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	ec, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), bytes.Repeat([]byte{7}, 32))
	require.NoError(t, err)
	return map[string]crypto.Signer{"ecdsa": ec, "ed25519": ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))}
}

func encodePEM(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// privatePEM and publicPEM are what OpenSSL would write.
func privatePEM(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return encodePEM("PRIVATE KEY", der)
}

func publicPEM(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	require.NoError(t, err)
	return encodePEM("PUBLIC KEY", der)
}

func load(t testing.TB, key any) *Key {
	t.Helper()
	k, err := LoadKey(privatePEM(t, key), nil)
	require.NoError(t, err)
	return k
}

func sealed(t testing.TB, s Signer, statement string) []byte {
	t.Helper()
	b, err := Bundle(t.Context(), s, []byte(statement))
	require.NoError(t, err)
	return b
}

func TestBundle(t *testing.T) {
	for kind, private := range testKeys(t) {
		t.Run(kind, func(t *testing.T) {
			key := load(t, private)
			bundle := sealed(t, key, statement)
			require.Equal(t, bundle, sealed(t, key, statement), "equal statements have equal bundles")

			public, err := LoadPublicKey(publicPEM(t, private.Public()))
			require.NoError(t, err)
			require.Equal(t, key.Public().String(), public.String())
			got, err := public.Open(bundle)
			require.NoError(t, err)
			require.Equal(t, statement, string(got))

			annotations, err := Annotations(bundle)
			require.NoError(t, err)
			require.Equal(t, map[string]string{
				"dev.sigstore.bundle.content":       "dsse-envelope",
				"dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1",
			}, annotations)

			// Sigstore's own types read it, and write the same but for spaces.
			var theirs bundlev1.Bundle
			require.NoError(t, protojson.Unmarshal(bundle, &theirs))
			require.Equal(t, statement, string(theirs.GetDsseEnvelope().Payload))
			require.Equal(t, key.Public().String(), theirs.GetVerificationMaterial().GetPublicKey().Hint)
			text, err := protojson.Marshal(&theirs)
			require.NoError(t, err)
			var compact bytes.Buffer
			require.NoError(t, json.Compact(&compact, text))
			require.Equal(t, compact.String(), string(bundle))

			golden := filepath.Join("testdata", kind+".golden")
			if *update {
				require.NoError(t, os.WriteFile(golden, append(bundle, '\n'), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, strings.TrimSpace(string(want)), string(bundle))
		})
	}
}

func TestBundleRefuses(t *testing.T) {
	key := load(t, testKeys(t)["ed25519"])
	for name, test := range map[string]struct {
		signer    Signer
		statement string
		want      string
	}{
		"no JSON":      {key, "hello", "not an in-toto statement"},
		"no statement": {key, "{}", "predicateType"},
		"too large":    {key, strings.Replace(statement, "<&>", strings.Repeat("x", MaxSize/4*3), 1), "bundle of more than"},
		"no signature": {brokenSigner{}, statement, "signing: out of order"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Bundle(t.Context(), test.signer, []byte(test.statement))
			require.ErrorContains(t, err, test.want)
		})
	}
}

type brokenSigner struct{}

func (brokenSigner) Sign(context.Context, []byte) ([]byte, json.RawMessage, error) {
	return nil, nil, errors.New("out of order")
}

func TestOpenRefuses(t *testing.T) {
	keys := testKeys(t)
	key, other := load(t, keys["ecdsa"]), load(t, keys["ed25519"])
	good := string(sealed(t, key, statement))
	replace := func(old, new string) string {
		t.Helper()
		require.Equal(t, 1, strings.Count(good, old))
		return strings.Replace(good, old, new, 1)
	}
	encoded := base64.StdEncoding.EncodeToString([]byte(statement))
	changed := base64.StdEncoding.EncodeToString([]byte(strings.Replace(statement, "e3b0", "e3b1", 1)))
	hint := `"hint":"` + key.Public().String() + `"`

	_, err := other.Public().Open([]byte(good))
	require.ErrorIs(t, err, ErrOtherKey)
	require.ErrorContains(t, err, key.Public().String())

	for name, test := range map[string]struct {
		bundle string
		want   error
	}{
		"another statement":   {replace(encoded, changed), ErrSignature},
		"signature of others": {replace(hint, `"hint":"x"`), nil},
		"changed, no hint":    {strings.Replace(replace(encoded, changed), hint, "", 1), ErrOtherKey},
		"changed, other hint": {strings.Replace(replace(encoded, changed), hint, `"hint":"x"`, 1), ErrOtherKey},
		"certificate": {strings.Replace(replace(encoded, changed), `"publicKey":{`+hint+`}`,
			`"certificate":{"rawBytes":"AAAA"}`, 1), ErrOtherKey},
		"no material":         {replace(`"publicKey":{`+hint+`}`, ""), ErrNotBundle},
		"payload type":        {replace("application/vnd.in-toto+json", "application/json"), ErrNotBundle},
		"media type":          {replace("v0.3", "v0.4"), ErrNotBundle},
		"older media type":    {replace(".v0.3+json", "+json;version=0.3"), nil},
		"unknown field":       {replace(`{"mediaType"`, `{"x":1,"mediaType"`), ErrNotBundle},
		"long unknown field":  {`{"` + strings.Repeat("x", 1<<20) + `":1}`, ErrNotBundle},
		"no envelope":         {`{"mediaType":"` + ArtifactType + `","verificationMaterial":{"publicKey":{}}}`, ErrNotBundle},
		"message signature":   {`{"mediaType":"` + ArtifactType + `","verificationMaterial":{"publicKey":{}},"messageSignature":{"signature":"AAAA"}}`, ErrNotBundle},
		"no signatures":       {good[:strings.Index(good, `"signatures":[`)] + `"signatures":[]}}`, ErrNotBundle},
		"two signatures":      {replace(`"signatures":[`, `"signatures":[{"sig":"AAAA"},`), ErrNotBundle},
		"signature is null":   {good[:strings.Index(good, `"signatures":[`)] + `"signatures":[null]}}`, ErrSignature},
		"signature is empty":  {good[:strings.Index(good, `"signatures":[`)] + `"signatures":[{"sig":""}]}}`, ErrSignature},
		"both kinds":          {replace(`"dsseEnvelope"`, `"messageSignature":{},"dsseEnvelope"`), ErrNotBundle},
		"material is null":    {replace(`{"publicKey":{`+hint+`}}`, "null"), ErrNotBundle},
		"unknown in envelope": {replace(`"payloadType"`, `"x":1,"payloadType"`), ErrNotBundle},
		"something follows":   {good + "{}", ErrNotBundle},
		"log entries":         {replace(`"publicKey"`, `"tlogEntries":[{"logIndex":"1"}],"publicKey"`), nil},
		"truncated":           {good[:len(good)-1], ErrNotBundle},
		"garbage":             {"garbage", ErrNotBundle},
		"nothing":             {"", ErrNotBundle},
		"null":                {"null", ErrNotBundle},
		"too large":           {strings.Repeat(" ", MaxSize) + good, ErrNotBundle},
		"deeply nested":       {strings.Repeat("[", 1<<20), ErrNotBundle},
		"a bare envelope":     {`{"payload":"` + encoded + `","payloadType":"application/vnd.in-toto+json","signatures":[]}`, ErrNotBundle},
		"as large as can be":  {strings.Repeat(" ", MaxSize-len(good)) + good, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := key.Public().Open([]byte(test.bundle))
			if test.want == nil {
				require.NoError(t, err)
				require.Equal(t, statement, string(got))
				return
			}
			require.ErrorIs(t, err, test.want)
			require.Nil(t, got)
			require.Less(t, len(err.Error()), 1000)
			_, err = Annotations([]byte(test.bundle))
			require.Equal(t, test.want == ErrNotBundle, errors.Is(err, ErrNotBundle))
		})
	}

	_, err = Annotations([]byte(replace(encoded, base64.StdEncoding.EncodeToString([]byte("{}")))))
	require.ErrorIs(t, err, ErrNotBundle)
}

// What is not under the signature, as the hint, may be changed; the statement is never another one.
func TestOneByteChanged(t *testing.T) {
	for kind, private := range testKeys(t) {
		t.Run(kind, func(t *testing.T) {
			key := load(t, private)
			good := sealed(t, key, statement)
			begin := bytes.Index(good, []byte(`"payload":"`)) + len(`"payload":"`)
			end := begin + base64.StdEncoding.EncodedLen(len(statement))
			for i := range good {
				bad := bytes.Clone(good)
				bad[i] ^= 1
				got, err := key.Public().Open(bad)
				if err == nil {
					require.Equal(t, statement, string(got))
				}
				// The end is spared: its bits may be of no importance in base64.
				if i >= begin && i < end-4 {
					require.Error(t, err, string(bad))
				}
			}
		})
	}
}

func TestLoadKey(t *testing.T) {
	keys := testKeys(t)
	der := func(key any) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		require.NoError(t, err)
		return der
	}
	cosign := func(key any, password string) []byte {
		// As with the number of rounds below, what costs an attacker little costs a test little.
		text, err := encrypted.EncryptWithCustomKDFParameters(der(key), []byte(password), encrypted.Legacy)
		require.NoError(t, err)
		return encodePEM("ENCRYPTED SIGSTORE PRIVATE KEY", text)
	}
	ofCosign := cosign(keys["ed25519"], secret)
	protect := func(key any, kdf pkcs8.KDFOpts) []byte {
		o := &pkcs8.Opts{Cipher: pkcs8.AES256CBC, KDFOpts: kdf}
		der, err := pkcs8.MarshalPrivateKey(key, []byte(secret), o)
		require.NoError(t, err)
		return encodePEM("ENCRYPTED PRIVATE KEY", der)
	}
	pbkdf2 := pkcs8.PBKDF2Opts{SaltSize: 8, IterationCount: 2, HMACHash: crypto.SHA256}
	sec1, err := x509.MarshalECPrivateKey(keys["ecdsa"].(*ecdsa.PrivateKey))
	require.NoError(t, err)
	for name, test := range map[string]struct {
		kind, password string
		text           []byte
	}{
		"ECDSA PKCS#8":              {"ecdsa", "", privatePEM(t, keys["ecdsa"])},
		"Ed25519 PKCS#8":            {"ed25519", "", privatePEM(t, keys["ed25519"])},
		"password of no use":        {"ed25519", secret, privatePEM(t, keys["ed25519"])},
		"SEC1":                      {"ecdsa", "", encodePEM("EC PRIVATE KEY", sec1)},
		"SEC1 with parameters":      {"ecdsa", "", append(encodePEM("EC PARAMETERS", []byte{6, 0}), encodePEM("EC PRIVATE KEY", sec1)...)},
		"cosign":                    {"ed25519", secret, ofCosign},
		"older cosign":              {"ed25519", secret, bytes.ReplaceAll(ofCosign, []byte("SIGSTORE"), []byte("COSIGN"))},
		"cosign, password is empty": {"ecdsa", "", cosign(keys["ecdsa"], "")},
		"encrypted ECDSA":           {"ecdsa", secret, protect(keys["ecdsa"], pbkdf2)},
		"encrypted Ed25519, scrypt": {"ed25519", secret, protect(keys["ed25519"],
			pkcs8.ScryptOpts{SaltSize: 8, CostParameter: 1 << 8, BlockSize: 8, ParallelizationParameter: 1})},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := LoadKey(test.text, []byte(test.password))
			require.NoError(t, err)
			_, err = load(t, keys[test.kind]).Public().Open(sealed(t, key, statement))
			require.NoError(t, err)
			if bytes.Contains(test.text, []byte("ENCRYPTED")) {
				_, err = LoadKey(test.text, []byte("wrong "+secret))
				requireUsage(t, err, "password is another one")
			}
		})
	}

	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	good := privatePEM(t, keys["ecdsa"])
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":                    {nil, "not in PEM"},
		"DER":                        {der(keys["ecdsa"]), "not in PEM"},
		"truncated":                  {good[:len(good)-30], "not in PEM"},
		"line is missing":            {encodePEM("PRIVATE KEY", der(keys["ecdsa"])[:40]), "damaged"},
		"too large":                  {bytes.Repeat([]byte("x"), maxKey+1), "65537 bytes"},
		"two keys":                   {append(bytes.Clone(good), good...), "several PEM blocks"},
		"RSA":                        {privatePEM(t, rsaKey), "kind RSA"},
		"RSA PKCS#1":                 {encodePEM("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey)), "kind RSA"},
		"P-384":                      {privatePEM(t, p384), "curve P-384"},
		"public key":                 {publicPEM(t, keys["ecdsa"].Public()), "is a public key"},
		"certificate":                {encodePEM("CERTIFICATE", nil), `unknown type "CERTIFICATE"`},
		"OpenSSL's old encryption":   {[]byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n"), "old versions of OpenSSL"},
		"no password":                {protect(keys["ecdsa"], pbkdf2), "there is no password"},
		"no password for cosign":     {ofCosign, "there is no password"},
		"SEC1 in PKCS#8":             {encodePEM("PRIVATE KEY", sec1), "damaged"},
		"cosign's envelope is empty": {encodePEM("ENCRYPTED SIGSTORE PRIVATE KEY", []byte("{}")), "there is no password"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadKey(test.text, nil)
			requireUsage(t, err, test.want)
			for line := range strings.Lines(string(test.text)) {
				if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "-----") && len(line) > 8 {
					require.NotContains(t, err.Error(), line)
				}
			}
		})
	}

	// The library that decrypts panics on some of these.
	block, _ := pem.Decode(protect(keys["ecdsa"], pbkdf2))
	for i := range block.Bytes {
		for _, bad := range [][]byte{block.Bytes[:i], slices.Delete(bytes.Clone(block.Bytes), i, i+1)} {
			_, err := LoadKey(encodePEM(block.Type, bad), []byte(secret))
			requireUsage(t, err, "password is another one")
		}
	}
	_, err = LoadKey(withShortCiphertext(t, block.Bytes), []byte(secret))
	requireUsage(t, err, "password is another one")
}

// withShortCiphertext cuts one byte off the ciphertext of an encrypted key whose lengths are right again.
func withShortCiphertext(t *testing.T, der []byte) []byte {
	t.Helper()
	var info struct {
		Algorithm  asn1.RawValue
		Ciphertext []byte
	}
	_, err := asn1.Unmarshal(der, &info)
	require.NoError(t, err)
	info.Ciphertext = info.Ciphertext[1:]
	der, err = asn1.Marshal(info)
	require.NoError(t, err)
	require.Panics(t, func() { _, _ = pkcs8.ParsePKCS8PrivateKey(der, []byte(secret)) })
	return encodePEM("ENCRYPTED PRIVATE KEY", der)
}

func TestLoadPublicKey(t *testing.T) {
	keys := testKeys(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	require.NoError(t, err)
	for name, test := range map[string]struct {
		text []byte
		want string
	}{
		"nothing":     {nil, "not in PEM"},
		"private key": {privatePEM(t, keys["ed25519"]), `type "PRIVATE KEY"`},
		"truncated":   {encodePEM("PUBLIC KEY", []byte{0x30, 0x59}), "cannot be read"},
		"RSA":         {publicPEM(t, rsaKey.Public()), "kind RSA"},
		"P-384":       {publicPEM(t, p384.Public()), "curve P-384"},
		"two keys":    {append(publicPEM(t, keys["ecdsa"].Public()), publicPEM(t, keys["ed25519"].Public())...), "several PEM blocks"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadPublicKey(test.text)
			requireUsage(t, err, test.want)
		})
	}
}

func requireUsage(t *testing.T, err error, want string) {
	t.Helper()
	require.ErrorContains(t, err, want)
	f, ok := errors.AsType[*fault.Error](err)
	require.True(t, ok)
	require.Equal(t, fault.Usage, f.Kind)
	require.NotEmpty(t, f.Next)
	require.NotContains(t, err.Error(), secret)
}

func TestKeyIsNotPrinted(t *testing.T) {
	for _, private := range testKeys(t) {
		key := load(t, private)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
			require.Equal(t, "private key of "+key.Public().String(), fmt.Sprintf(verb, key))
		}
		text, err := json.Marshal(map[string]any{"key": key})
		require.NoError(t, err)
		require.Equal(t, `{"key":{}}`, string(text))
	}
}

func TestKeysOfOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	for name, args := range map[string][]string{
		"ECDSA":             {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"},
		"Ed25519":           {"genpkey", "-algorithm", "ed25519"},
		"SEC1":              {"ecparam", "-genkey", "-name", "prime256v1"},
		"encrypted ECDSA":   {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-aes-256-cbc", "-pass", "pass:" + secret},
		"encrypted Ed25519": {"genpkey", "-algorithm", "ed25519", "-aes-128-cbc", "-pass", "pass:" + secret},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "key.pem")
			out, err := exec.CommandContext(t.Context(), openssl, append(args, "-out", file)...).CombinedOutput()
			require.NoError(t, err, string(out))
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			key, err := LoadKey(text, []byte(secret))
			require.NoError(t, err)
			out, err = exec.CommandContext(t.Context(), openssl, "pkey", "-in", file, "-pubout", "-passin", "pass:"+secret).Output()
			require.NoError(t, err)
			public, err := LoadPublicKey(out)
			require.NoError(t, err)
			_, err = public.Open(sealed(t, key, statement))
			require.NoError(t, err)
		})
	}
}

func FuzzOpen(f *testing.F) {
	var public []*PublicKey
	for _, private := range testKeys(f) {
		key := load(f, private)
		public = append(public, key.Public())
		good, err := Bundle(context.Background(), key, []byte(statement))
		require.NoError(f, err)
		f.Add(good)
		f.Add(bytes.Replace(good, []byte("v0.3"), []byte("v0.4"), 1))
		f.Add(good[:len(good)/2])
	}
	f.Add([]byte(`{"mediaType":"` + ArtifactType + `","verificationMaterial":{"certificate":{"rawBytes":"AAAA"},"tlogEntries":[{"logIndex":"1"}]},` +
		`"dsseEnvelope":{"payload":"e30=","payloadType":"` + payloadType + `","signatures":[{"sig":"AAAA","keyid":""}]}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, bundle []byte) {
		for _, p := range public {
			got, err := p.Open(bundle)
			switch {
			case err == nil: // nothing else was ever signed
				require.Equal(t, statement, string(got))
			default:
				require.Nil(t, got)
				require.True(t, errors.Is(err, ErrNotBundle) || errors.Is(err, ErrOtherKey) || errors.Is(err, ErrSignature), err)
			}
		}
		_, _ = Annotations(bundle)
	})
}
