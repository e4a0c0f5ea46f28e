package sign

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/require"
)

// Predicates as programs write them, of the types that cosign has short names for.
var predicates = map[string]string{
	"https://sigstore.dev/cosign/sign/v1": `{}`,
	"https://slsa.dev/provenance/v1": `{"buildDefinition":{"buildType":"https://example.com/v1","externalParameters":{"x":1},"resolvedDependencies":[{"uri":"git+https://example.com/a"}]},` +
		`"runDetails":{"builder":{"id":"https://example.com/builder"}}}`,
	"https://spdx.dev/Document": `{"spdxVersion":"SPDX-2.3","dataLicense":"CC0-1.0","SPDXID":"SPDXRef-DOCUMENT","name":"app","packages":[]}`,
}

// registries are one that lists referrers, and one that does not, for which a tag stands in.
var registries = map[string]func(*testing.T) string{
	"referrers": func(t *testing.T) string {
		server := httptest.NewServer(registry.New(registry.WithReferrersSupport(true), registry.Logger(log.New(io.Discard, "", 0))))
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	},
	"docker-registry": startDockerRegistry,
}

// cosign runs a program in a directory of its own, from where no service of the internet is reached.
type cosign struct {
	t             *testing.T
	program, home string
}

func newCosign(t *testing.T) *cosign {
	t.Helper()
	program, err := exec.LookPath("cosign")
	if err != nil {
		t.Skip("cosign is not installed")
	}
	return &cosign{t: t, program: program, home: t.TempDir()}
}

func (c *cosign) try(args ...string) (string, error) {
	cmd := exec.CommandContext(c.t.Context(), c.program, args...)
	cmd.Dir = c.home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.home, "TMPDIR=" + c.home, "COSIGN_PASSWORD=" + secret,
		"HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1", "NO_PROXY=127.0.0.1"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	c.t.Logf("cosign %s\n%v\n%s", strings.Join(args, " "), err, &out)
	return out.String(), err
}

func (c *cosign) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	require.NoError(c.t, err)
	return out
}

func (c *cosign) file(name string, content []byte) string {
	c.t.Helper()
	path := filepath.Join(c.home, name)
	require.NoError(c.t, os.WriteFile(path, content, 0o600))
	return path
}

func (c *cosign) read(name string) []byte {
	c.t.Helper()
	content, err := os.ReadFile(filepath.Join(c.home, name))
	require.NoError(c.t, err)
	return content
}

func startDockerRegistry(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed")
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host := free.Addr().String()
	require.NoError(t, free.Close())
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n",
		filepath.Join(dir, "data"), host), 0o600))
	cmd := exec.Command(program, "serve", config)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "OTEL_TRACES_EXPORTER=none"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for deadline := time.Now().Add(20 * time.Second); ; {
		response, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			_ = response.Body.Close()
			return host
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("docker-registry ended: %v\n%s", err, &out)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("docker-registry does not answer: %v", err)
		}
	}
}

// image is an image in a registry.
type image struct {
	t    *testing.T
	ref  name.Digest
	desc *v1.Descriptor
}

func pushImage(t *testing.T, repository string) *image {
	t.Helper()
	img, err := random.Image(100, 1)
	require.NoError(t, err)
	return push(t, repository, img, func(ref name.Reference) error { return remote.Write(ref, img) })
}

func pushIndex(t *testing.T, repository string) *image {
	t.Helper()
	index, err := random.Index(100, 1, 2)
	require.NoError(t, err)
	return push(t, repository, index, func(ref name.Reference) error { return remote.WriteIndex(ref, index) })
}

func push(t *testing.T, repository string, what partial.Describable, write func(name.Reference) error) *image {
	t.Helper()
	desc, err := partial.Descriptor(what)
	require.NoError(t, err)
	repo, err := name.NewRepository(repository)
	require.NoError(t, err)
	require.NoError(t, write(repo.Tag("latest")))
	return &image{t: t, ref: repo.Digest(desc.Digest.String()), desc: desc}
}

func (i *image) statement(predicateType string) string {
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"app","digest":{"sha256":%q}}],"predicateType":%q,"predicate":%s}`,
		i.desc.Digest.Hex, predicateType, predicates[predicateType])
}

type manifest []byte

func (m manifest) RawManifest() ([]byte, error)        { return m, nil }
func (m manifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// attach puts a bundle beside the image, with nothing in the manifest that changes from run to run.
func (i *image) attach(bundle []byte, annotations map[string]string) {
	i.t.Helper()
	config := static.NewLayer([]byte("{}"), "application/vnd.oci.empty.v1+json")
	layer := static.NewLayer(bundle, ArtifactType)
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: ArtifactType, Subject: i.desc, Annotations: annotations}
	for _, l := range []v1.Layer{config, layer} {
		require.NoError(i.t, remote.WriteLayer(i.ref.Context(), l))
	}
	desc, err := partial.Descriptor(config)
	require.NoError(i.t, err)
	m.Config = *desc
	desc, err = partial.Descriptor(layer)
	require.NoError(i.t, err)
	m.Layers = []v1.Descriptor{*desc}
	raw, err := json.Marshal(m)
	require.NoError(i.t, err)
	digest, _, err := v1.SHA256(bytes.NewReader(raw))
	require.NoError(i.t, err)
	require.NoError(i.t, remote.Put(i.ref.Context().Digest(digest.String()), manifest(raw)))
}

// bundles returns those that are beside the image.
func (i *image) bundles() (all [][]byte) {
	i.t.Helper()
	index, err := remote.Referrers(i.ref)
	require.NoError(i.t, err)
	list, err := index.IndexManifest()
	require.NoError(i.t, err)
	for _, d := range list.Manifests {
		// Not of the list: go-containerregistry's registry has the type of the configuration there.
		img, err := remote.Image(i.ref.Context().Digest(d.Digest.String()))
		require.NoError(i.t, err)
		m, err := img.Manifest()
		require.NoError(i.t, err)
		require.Equal(i.t, ArtifactType, m.ArtifactType)
		layers, err := img.Layers()
		require.NoError(i.t, err)
		require.Len(i.t, layers, 1)
		content, err := layers[0].Compressed()
		require.NoError(i.t, err)
		text, err := io.ReadAll(content)
		require.NoError(i.t, err)
		all = append(all, text)
	}
	return all
}

func TestCosignVerifies(t *testing.T) {
	c := newCosign(t)
	keys := testKeys(t)
	c.file("ecdsa.pub", publicPEM(t, keys["ecdsa"].Public()))
	c.file("ed25519.pub", publicPEM(t, keys["ed25519"].Public()))
	others := map[string]string{"ecdsa": "ed25519", "ed25519": "ecdsa"}
	for kind, start := range registries {
		t.Run(kind, func(t *testing.T) {
			host := start(t)
			for kind, private := range keys {
				t.Run(kind, func(t *testing.T) {
					c := &cosign{t, c.program, c.home}
					key, file, other := load(t, private), "--key="+kind+".pub", "--key="+others[kind]+".pub"
					img := pushImage(t, host+"/app/"+kind)
					for predicateType := range predicates {
						bundle := sealed(t, key, img.statement(predicateType))
						annotations, err := Annotations(bundle)
						require.NoError(t, err)
						img.attach(bundle, annotations)
					}
					require.Len(t, img.bundles(), len(predicates))

					out := c.run("verify", file, "--insecure-ignore-tlog", img.ref.String())
					require.Contains(t, out, "signatures were verified against the specified public key")
					require.Contains(t, out, `"type":"https://sigstore.dev/cosign/sign/v1"`)
					for _, name := range []string{"slsaprovenance1", "spdxjson", "https://sigstore.dev/cosign/sign/v1"} {
						c.run("verify-attestation", file, "--insecure-ignore-tlog", "--type="+name, img.ref.String())
					}

					_, err := c.try("verify-attestation", file, "--insecure-ignore-tlog", "--type=vuln", img.ref.String())
					require.Error(t, err)
					_, err = c.try("verify", other, "--insecure-ignore-tlog", img.ref.String())
					require.Error(t, err)
					_, err = c.try("verify-attestation", other, "--insecure-ignore-tlog", "--type=slsaprovenance1", img.ref.String())
					require.Error(t, err)

					// Beside an image that it is not about, a statement counts nothing.
					foreign := pushImage(t, host+"/foreign/"+kind)
					foreign.attach(sealed(t, key, img.statement("https://sigstore.dev/cosign/sign/v1")), nil)
					out, err = c.try("verify", file, "--insecure-ignore-tlog", foreign.ref.String())
					require.Error(t, err, out)
				})
			}
			t.Run("index by tag, no annotations", func(t *testing.T) {
				c := &cosign{t, c.program, c.home}
				img := pushIndex(t, host+"/app/bare")
				img.attach(sealed(t, load(t, keys["ecdsa"]), img.statement("https://sigstore.dev/cosign/sign/v1")), nil)
				c.run("verify", "--key=ecdsa.pub", "--insecure-ignore-tlog", host+"/app/bare:latest")
			})
		})
	}
}

// What TestOpensWhatCosignSigned has recorded with -update, for machines without cosign.
func TestOpensRecorded(t *testing.T) {
	c := &cosign{t: t, home: "testdata"}
	key, err := LoadKey(c.read("cosign.key"), []byte(secret))
	require.NoError(t, err)
	public, err := LoadPublicKey(c.read("cosign.pub"))
	require.NoError(t, err)
	require.Equal(t, key.Public().String(), public.String())
	text, err := public.Open(c.read("cosign.json"))
	require.NoError(t, err)
	// cosign's own bundle differs from this one in the random part of the signature only.
	ours := string(sealed(t, key, string(text)))
	theirs := string(c.read("cosign.json"))
	before, _, _ := strings.Cut(ours, `"sig":`)
	require.True(t, strings.HasPrefix(theirs, before), "%s\n%s", ours, theirs)
}

func TestOpensWhatCosignSigned(t *testing.T) {
	c := newCosign(t)
	c.run("generate-key-pair")
	key, err := LoadKey(c.read("cosign.key"), []byte(secret))
	require.NoError(t, err)
	public, err := LoadPublicKey(c.read("cosign.pub"))
	require.NoError(t, err)
	require.Equal(t, key.Public().String(), public.String())
	_, err = LoadKey(c.read("cosign.key"), []byte("wrong"))
	requireUsage(t, err, "password is another one")
	predicate := c.file("predicate.json", []byte(predicates["https://slsa.dev/provenance/v1"]))

	for kind, start := range registries {
		t.Run(kind, func(t *testing.T) {
			c := &cosign{t, c.program, c.home}
			img := pushImage(t, start(t)+"/app")
			offline := []string{"--key=cosign.key", "--tlog-upload=false", "--use-signing-config=false"}
			c.run(append(append([]string{"sign"}, offline...), img.ref.String())...)
			c.run(append(append([]string{"attest"}, offline...), "--type=slsaprovenance1", "--predicate="+predicate, img.ref.String())...)

			found := img.bundles()
			require.Len(t, found, 2)
			types := map[string]bool{}
			for _, bundle := range found {
				t.Logf("%s", bundle)
				text, err := public.Open(bundle)
				require.NoError(t, err)
				require.Contains(t, string(text), img.desc.Digest.Hex)
				_, err = load(t, testKeys(t)["ecdsa"]).Public().Open(bundle)
				require.ErrorIs(t, err, ErrOtherKey)
				annotations, err := Annotations(bundle)
				require.NoError(t, err)
				types[annotations["dev.sigstore.bundle.predicateType"]] = true
				if *update && strings.Contains(string(text), "cosign/sign") {
					for name, content := range map[string][]byte{"cosign.json": bundle, "cosign.key": c.read("cosign.key"), "cosign.pub": c.read("cosign.pub")} {
						require.NoError(t, os.WriteFile(filepath.Join("testdata", name), content, 0o644))
					}
				}
			}
			require.Equal(t, map[string]bool{"https://sigstore.dev/cosign/sign/v1": true, "https://slsa.dev/provenance/v1": true}, types)

			// A key of cosign's, used here.
			img = pushImage(t, strings.Split(img.ref.String(), "/")[0]+"/other")
			img.attach(sealed(t, key, img.statement("https://sigstore.dev/cosign/sign/v1")), nil)
			c.run("verify", "--key=cosign.pub", "--insecure-ignore-tlog", img.ref.String())
		})
	}
}

// If this fails, cosign signs or verifies Ed25519 in another way than it did, and Open should follow it.
func TestCosignDoesNotVerifyItsEd25519(t *testing.T) {
	c := newCosign(t)
	private := testKeys(t)["ed25519"]
	c.file("plain.pem", privatePEM(t, private))
	c.run("import-key-pair", "--key=plain.pem", "--output-key-prefix=ed")
	key, err := LoadKey(c.read("ed.key"), []byte(secret))
	require.NoError(t, err)
	img := pushImage(t, registries["referrers"](t)+"/app")
	c.run("sign", "--key=ed.key", "--tlog-upload=false", "--use-signing-config=false", img.ref.String())
	_, err = c.try("verify", "--key=ed.pub", "--insecure-ignore-tlog", img.ref.String())
	require.Error(t, err)
	bundles := img.bundles()
	require.Len(t, bundles, 1)
	_, err = key.Public().Open(bundles[0])
	require.ErrorIs(t, err, ErrSignature)
}
