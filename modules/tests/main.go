// Tests of the slipway module from the outside, on a real engine: one function a case, and all of them.
//
// Broken programs come with the text that their failure must contain.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	"dagger/tests/internal/dagger"
)

// Tests holds the programs that the cases work on.
type Tests struct {
	// +private
	Hello *dagger.Directory
	// +private
	Escapes *dagger.Directory
	// +private
	Goproxy *dagger.Secret
}

func New(
	// The program to test with.
	// +defaultPath="/testdata/hello"
	hello *dagger.Directory,
	// A program that tries to leave the place where it runs.
	// +defaultPath="/testdata/escapes"
	escapes *dagger.Directory,
	// The Go module proxy of an inner network.
	// +optional
	goproxy *dagger.Secret,
) *Tests {
	return &Tests{Hello: hello, Escapes: escapes, Goproxy: goproxy}
}

// All runs every case, one after the other: they share an engine.
//
// +cache="session"
func (t *Tests) All(ctx context.Context) (string, error) {
	var report []string
	var failed []error
	for _, c := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"vet", t.Vet}, {"test", t.Test}, {"failing-test", t.FailingTest}, {"build", t.Build}, {"verify", t.Verify}, {"image", t.Image}, {"oci-layout", t.OciLayout},
		{"smoke", t.Smoke}, {"bad-smoke", t.BadSmoke}, {"isolation", t.Isolation}, {"sizes", t.Sizes}, {"compare", t.Compare}, {"kube", t.Kube}, {"publish", t.Publish}, {"everything", t.Everything}, {"failing-run", t.FailingRun},
		{"no-go-mod", t.NoGoMod}, {"no-such-image", t.NoSuchImage}, {"attest", t.Attest}, {"wrong-credentials", t.WrongCredentials}, {"unknown-key", t.UnknownKey},
	} {
		err := c.run(ctx)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", c.name, err))
			continue
		}
		report = append(report, "ok "+c.name)
	}
	return strings.Join(report, "\n"), errors.Join(failed...)
}

// slipway tests with one release only: the matrix itself is the command's own business.
func (t *Tests) slipway() *dagger.Slipway {
	return dag.Slipway(dagger.SlipwayOpts{GoVersions: []string{"1.22"}, Goproxy: t.Goproxy})
}

// broken is the program with one more file.
func (t *Tests) broken(name, text string) *dagger.Directory {
	return t.Hello.WithNewFile(name, text)
}

const failingTest = `package main

import "testing"

func TestFails(t *testing.T) { t.Error("fails on purpose") }
`

// wants is an error unless err contains all of the texts.
func wants(err error, texts ...string) error {
	if err == nil {
		return errors.New("it did not fail")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			return fmt.Errorf("it failed without saying %q: %w", text, err)
		}
	}
	return nil
}

// Vet passes for a good program and names file and line for another.
//
// +cache="session"
func (t *Tests) Vet(ctx context.Context) error {
	if _, err := t.slipway().Vet(t.Hello).Assert(ctx); err != nil {
		return err
	}
	_, err := t.slipway().Vet(t.broken("ugly.go", "package main\nvar   x = 1\n")).Assert(ctx)
	return wants(err, "gofmt (ugly.go:2)")
}

// Test gives JUnit, coverage and the record.
//
// +cache="session"
func (t *Tests) Test(ctx context.Context) error {
	r := t.slipway().Test(t.Hello)
	if _, err := r.Assert(ctx); err != nil {
		return err
	}
	for file, text := range map[*dagger.File]string{r.Junit(): "<testsuites", r.Coverage(): "mode: ", r.JSON(): `"engine": "dagger"`} {
		if got, err := file.Contents(ctx); err != nil || !strings.Contains(got, text) {
			return fmt.Errorf("no %q in %q: %w", text, got, err)
		}
	}
	return nil
}

// FailingTest hands over its files although it fails.
//
// +cache="session"
func (t *Tests) FailingTest(ctx context.Context) error {
	r := t.slipway().Test(t.broken("fails_test.go", failingTest))
	_, err := r.Assert(ctx)
	if err := wants(err, "TestFails", "fails on purpose", "fails_test.go:5", "to repeat:"); err != nil {
		return err
	}
	junit, err := r.Junit().Contents(ctx)
	if err == nil && !strings.Contains(junit, "fails on purpose") {
		err = fmt.Errorf("the failure is not in %s", junit)
	}
	return err
}

// Build gives binaries and their hashes.
//
// +cache="session"
func (t *Tests) Build(ctx context.Context) error {
	sums, err := t.slipway().Build(t.Hello).File("SHA256SUMS").Contents(ctx)
	if err == nil && !strings.Contains(sums, "/hello\n") {
		err = fmt.Errorf("no hello in %q", sums)
	}
	if err != nil {
		return err
	}
	_, err = t.slipway().Build(t.broken("broken.go", "package main\n\nvar x int = \"text\"\n")).Sync(ctx)
	return wants(err, "FAILED build", "broken.go:3")
}

// Verify gives the evidence.
//
// +cache="session"
func (t *Tests) Verify(ctx context.Context) error {
	text, err := t.slipway().Verify(t.Hello).Contents(ctx)
	if err == nil && !strings.Contains(text, `"verdict": "passed"`) {
		err = errors.New(text)
	}
	return err
}

// Image can be chained: the program runs in it.
//
// +cache="session"
func (t *Tests) Image(ctx context.Context) error {
	out, err := t.slipway().Image(t.Hello).WithExec([]string{"--version"}, dagger.ContainerWithExecOpts{UseEntrypoint: true}).Stdout(ctx)
	if err == nil && !strings.HasPrefix(out, "hello ") {
		err = fmt.Errorf("it printed %q", out)
	}
	return err
}

// OciLayout gives the same digest twice, from two runs.
//
// +cache="session"
func (t *Tests) OciLayout(ctx context.Context) error {
	layout, err := t.digest(ctx, t.slipway().OciLayout(t.Hello))
	if err != nil {
		return err
	}
	dist, err := t.digest(ctx, t.slipway().Run(t.Hello).Dist().Directory("image"))
	if err == nil && layout != dist {
		err = fmt.Errorf("digests differ: %s and %s", layout, dist)
	}
	return err
}

func (t *Tests) digest(ctx context.Context, layout *dagger.Directory) (string, error) {
	text, err := layout.File("index.json").Contents(ctx)
	if err != nil {
		return "", err
	}
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal([]byte(text), &index); err != nil || len(index.Manifests) != 1 {
		return "", fmt.Errorf("index.json is %q: %w", text, err)
	}
	return index.Manifests[0].Digest, nil
}

// Smoke starts the image.
//
// +cache="session"
func (t *Tests) Smoke(ctx context.Context) error {
	summary, err := t.slipway().Smoke(t.Hello).Assert(ctx)
	if err == nil && !strings.Contains(summary, "(service)") {
		err = errors.New(summary)
	}
	return err
}

// BadSmoke says what the image answered.
//
// +cache="session"
func (t *Tests) BadSmoke(ctx context.Context) error {
	_, err := t.slipway().Smoke(t.broken("slipway.yaml", "ports: ['8080']\nsmoke:\n  deadline: 2s\n  probes: [{http: /missing, status: 201}]\n")).Assert(ctx)
	return wants(err, "FAILED smoke", "GET /missing on port 8080 was not answered with 201")
}

// smokeRun is what the run record says of a smoke run.
type smokeRun struct {
	Verdict, Detail   string
	Isolation         struct{ Holds, Missing []string }
	Leftover, Written []string
}

// escape has the program that wants out tried with the given settings.
func (t *Tests) escape(ctx context.Context, settings map[string]any) (*smokeRun, error) {
	settings["rebuild"], settings["timezones"] = false, []string{"none"}
	yaml, err := json.Marshal(settings) // is YAML too
	if err != nil {
		return nil, err
	}
	source := t.Escapes.WithFile("slipway.lock", t.Hello.File("slipway.lock")).WithNewFile("slipway.yaml", string(yaml))
	text, err := t.slipway().Smoke(source).JSON().Contents(ctx)
	if err != nil {
		return nil, err
	}
	var record struct{ Smoke struct{ Runs []smokeRun } }
	if err := json.Unmarshal([]byte(text), &record); err != nil || len(record.Smoke.Runs) != 1 {
		return nil, fmt.Errorf("run.json is %s: %w", text, err)
	}
	return &record.Smoke.Runs[0], nil
}

// allBut is a probe that passes if the program says that all of its attempts were blocked, but for those named.
func allBut(attempt string, succeed ...string) map[string]any {
	const blocked = `(?:.+: blocked \(.+\)\n)`
	if len(succeed) == 0 {
		return map[string]any{"args": []string{attempt}, "output": `\A` + blocked + `+\z`}
	}
	output := `\A` + blocked + `*`
	for _, s := range succeed {
		output += regexp.QuoteMeta(s) + `: SUCCEEDED\n` + blocked + `*`
	}
	return map[string]any{"args": []string{attempt}, "output": output + `\z`, "exit-code": 1}
}

// Isolation runs a program that tries to get out. What a Dagger service does not stop, the run record names.
// What would use up the engine is not tried: the record says that there is no limit.
//
// +cache="session"
func (t *Tests) Isolation(ctx context.Context) error {
	neighbour, err := t.slipway().Image(t.Escapes.WithFile("slipway.lock", t.Hello.File("slipway.lock"))).WithExposedPort(8080).
		AsService(dagger.ContainerAsServiceOpts{Args: []string{"deaf"}, UseEntrypoint: true}).Start(ctx)
	if err != nil {
		return err
	}
	address, err := addressOf(ctx, neighbour, "8080")
	if err != nil {
		return err
	}
	usual, err := t.escape(ctx, map[string]any{"smoke": map[string]any{
		"env": map[string]string{"ESCAPE_ADDRESS": address},
		"probes": []any{
			allBut("write"),
			allBut("privilege"),
			allBut("read", "read /sys/kernel", "read /proc/1/root", "read /proc/1/environ", "read /proc/1/fd"),
			allBut("processes", "see other processes", "signal all processes", "signal the parent"),
			allBut("connect", "connect tcp "+address),
		},
	}})
	if err != nil {
		return err
	}
	root, err := t.escape(ctx, map[string]any{"user": "0:0", "smoke": map[string]any{"probes": []any{
		allBut("privilege"),
		allBut("write", "write /escaped", "write /etc/escaped", "write /dev/escaped", "write /usr/local/bin/escaped", "mkdir /escaped.d", "open /etc/passwd", "rename /usr/local/bin/escapes"),
	}}})
	if err != nil {
		return err
	}
	for user, run := range map[string]*smokeRun{"the usual user": usual, "root": root} {
		var missing []string
		for _, m := range run.Isolation.Missing {
			name, _, _ := strings.Cut(m, ":")
			missing = append(missing, name)
		}
		if run.Verdict != "passed" ||
			!slices.Equal(run.Isolation.Holds, []string{"rootfs", "pid", "mount", "ipc", "uts", "user", "capabilities", "no-new-privileges", "tmpfs"}) ||
			!slices.Equal(missing, []string{"read-only", "network", "memory", "processes"}) {
			return fmt.Errorf("as %s: %+v", user, *run)
		}
	}
	if len(usual.Written) > 0 || !slices.Equal(root.Written, []string{
		"/escaped", "/escaped.d", "/etc/escaped", "/etc/passwd", "/usr/local/bin/escaped", "/usr/local/bin/escapes", "/usr/local/bin/escapes.escaped",
	}) {
		return fmt.Errorf("the usual user has written %q, root %q", usual.Written, root.Written)
	}
	deaf, err := t.escape(ctx, map[string]any{"args": []string{"deaf"}, "ports": []string{"8080"}, "smoke": map[string]any{"stop": "200ms"}})
	if err == nil && !strings.Contains(deaf.Detail, "the image did not end within 200ms after SIGTERM") {
		err = fmt.Errorf("deaf: %+v", *deaf)
	}
	if err != nil {
		return err
	}
	daemon, err := t.escape(ctx, map[string]any{"args": []string{"daemon"}, "ports": []string{"8080"}})
	if err == nil && (daemon.Verdict != "passed" || !slices.Equal(daemon.Leftover, []string{"escapes"})) {
		err = fmt.Errorf("daemon: %+v", *daemon)
	}
	return err
}

// Sizes says what the image is made of.
//
// +cache="session"
func (t *Tests) Sizes(ctx context.Context) error {
	sizes := t.slipway().Sizes(t.Hello)
	files, err := sizes.Entries(ctx)
	if err == nil && !slices.Equal(files, []string{"layers.svg", "packages.svg", "sizes.json"}) {
		err = fmt.Errorf("it wrote %q", files)
	}
	if err != nil {
		return err
	}
	// One that is too large is explained, too.
	text, err := t.slipway().Sizes(t.broken("slipway.yaml", "size-limit: 1KiB\n")).File("sizes.json").Contents(ctx)
	if err == nil && !strings.Contains(text, `"layer": `) {
		err = fmt.Errorf("no layers in %s", text)
	}
	if err != nil {
		return err
	}
	_, err = t.slipway().Sizes(t.broken("broken.go", "package main\n\nvar x int = \"text\"\n")).Sync(ctx)
	return wants(err, "FAILED build", "broken.go:3")
}

// Compare has a row for each base image: one that is there, one that a mirror has, and one that cannot be reached.
//
// +cache="session"
func (t *Tests) Compare(ctx context.Context) error {
	to, err := t.pushTo(ctx, t.registry().WithEnvVariable("TEST", "compare"))
	if err != nil {
		return err
	}
	if _, err := t.slipway().Publish(ctx, t.Hello, []string{to}); err != nil {
		return err
	}
	mirror, _, _ := strings.Cut(to, "/")
	bases := []string{"scratch", "base.invalid/team/hello:1.0.0", "none.invalid/base:1"}
	compared := dag.Slipway(dagger.SlipwayOpts{GoVersions: []string{"1.22"}, Goproxy: t.Goproxy, Mirrors: []string{"base.invalid=" + mirror}}).
		Compare(t.broken("slipway.yaml", "ports: ['8080']\n"), dagger.SlipwayCompareOpts{Bases: bases})
	compared, err = compared.Sync(ctx) // which is done once
	if err != nil {
		return err
	}
	if _, err := compared.File("compare.svg").Size(ctx); err != nil {
		return err
	}
	text, err := compared.File("compare.json").Contents(ctx)
	if err != nil {
		return err
	}
	var result struct {
		Bases []struct {
			Base, Missing string
			Size          int64
			Smoke         *smokeRun
		}
	}
	if err := json.Unmarshal([]byte(text), &result); err != nil || len(result.Bases) != len(bases) {
		return fmt.Errorf("compare.json is %s: %w", text, err)
	}
	for i, row := range result.Bases {
		reached := row.Missing == "" && row.Size > 0 && row.Smoke != nil && row.Smoke.Verdict == "passed"
		if row.Base != bases[i] || reached != (i < 2) || i == 2 && !strings.Contains(row.Missing, "not reachable") {
			return fmt.Errorf("the row of %s is wrong in %s", bases[i], text)
		}
	}
	return nil
}

// Kube fits the image of a profile, and fails with the smoke run.
//
// +cache="session"
func (t *Tests) Kube(ctx context.Context) error {
	source := t.broken("slipway.yaml", "ports: ['8080']\nto: [registry.example/team/hello:1.0.0]\nprofiles: {prod: {user: '1234:1234'}}\n")
	prod := dag.Slipway(dagger.SlipwayOpts{GoVersions: []string{"1.22"}, Goproxy: t.Goproxy, Profile: "prod"})
	digest, err := t.digest(ctx, prod.OciLayout(source))
	if err != nil {
		return err
	}
	for repository, opts := range map[string]dagger.SlipwayKubeOpts{"registry.example/team/hello": {}, "registry.example/other": {To: "registry.example/other:1"}} {
		manifest, err := prod.Kube(ctx, source, opts)
		if err != nil {
			return err
		}
		for _, text := range []string{"runAsNonRoot: true\n", "runAsUser: 1234\n", repository + "@" + digest} {
			if !strings.Contains(manifest, text) {
				return fmt.Errorf("no %q in %s", text, manifest)
			}
		}
	}
	_, err = t.slipway().Kube(ctx, t.broken("slipway.yaml", "ports: ['8080']\nsmoke:\n  deadline: 2s\n  probes: [{http: /missing, status: 201}]\n"))
	return wants(err, "FAILED smoke")
}

// registry is a real one.
func (t *Tests) registry() *dagger.Container {
	return dag.Container().From("registry:2").WithExposedPort(5000)
}

// pushTo is where to push in a registry: its address, as registries at private addresses are spoken to without TLS.
func (t *Tests) pushTo(ctx context.Context, registry *dagger.Container) (string, error) {
	service, err := registry.AsService(dagger.ContainerAsServiceOpts{UseEntrypoint: true}).Start(ctx)
	if err != nil {
		return "", err
	}
	address, err := addressOf(ctx, service, "5000")
	return address + "/team/hello:1.0.0", err
}

func addressOf(ctx context.Context, service *dagger.Service, port string) (string, error) {
	name, err := service.Hostname(ctx)
	if err != nil {
		return "", err
	}
	addresses, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(addresses[0], port), nil
}

// Publish pushes the digest of the layout, and refuses to move the tag of a release.
//
// +cache="session"
func (t *Tests) Publish(ctx context.Context) error {
	to, err := t.pushTo(ctx, t.registry())
	if err != nil {
		return err
	}
	digest, err := t.digest(ctx, t.slipway().OciLayout(t.Hello))
	if err != nil {
		return err
	}
	reference, err := t.slipway().Publish(ctx, t.Hello, []string{to})
	if err != nil {
		return err
	}
	if !strings.HasSuffix(reference, "@"+digest) {
		return fmt.Errorf("%s was published, the layout is %s", reference, digest)
	}
	_, err = t.slipway().Publish(ctx, t.broken("other.go", "package main\n\nfunc init() { println() }\n"), []string{to})
	return wants(err, "The tag names a release that exists with other content", "dagger call publish --source=. --to="+to)
}

// The key pair of this test. It signs nothing else.
const (
	signKey   = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIGAEpYr1H4wxmXvdkUMGMV6cpfIT0onWJcDYTUKT32M5\n-----END PRIVATE KEY-----\n"
	publicKey = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAYpWOWxm+Ck7P5JtM043HeyQTbEV2SGmZbjnMWErB5o4=\n-----END PUBLIC KEY-----\n"
)

// Attest signs what is published, and anyone can check it.
//
// +cache="session"
func (t *Tests) Attest(ctx context.Context) error {
	signing := dag.Slipway(dagger.SlipwayOpts{GoVersions: []string{"1.22"}, Goproxy: t.Goproxy, SignKey: dag.SetSecret("sign-key", signKey)})
	files, err := signing.Attest(t.Hello).Entries(ctx)
	if err != nil {
		return err
	}
	if !strings.Contains(strings.Join(files, " "), "provenance.sigstore.json") {
		return fmt.Errorf("nothing signed in %q", files)
	}
	to, err := t.pushTo(ctx, t.registry().WithEnvVariable("TEST", "attest"))
	if err != nil {
		return err
	}
	if _, err := signing.Publish(ctx, t.Hello, []string{to}); err != nil {
		return err
	}
	key := dag.Directory().WithNewFile("key.pub", publicKey).File("key.pub")
	text, err := t.slipway().VerifyImage(ctx, to, dagger.SlipwayVerifyImageOpts{Key: key})
	if err == nil && !strings.Contains(text, "by the key that was given") {
		err = errors.New(text)
	}
	if err != nil {
		return err
	}
	plain, err := t.pushTo(ctx, t.registry().WithEnvVariable("TEST", "plain"))
	if err == nil {
		_, err = t.slipway().Publish(ctx, t.Hello, []string{plain})
	}
	if err != nil {
		return err
	}
	_, err = t.slipway().VerifyImage(ctx, plain, dagger.SlipwayVerifyImageOpts{Key: key})
	return wants(err, "signature", "it has none")
}

// canary must be nowhere.
const canary = "canary-5b7e1"

// WrongCredentials are refused, and not shown.
//
// +cache="session"
func (t *Tests) WrongCredentials(ctx context.Context) error {
	// The password of this user is another one.
	const htpasswd = "user:$2y$05$C8ZlVJcLQJvoyPh.AESxy.a9VFQBtbgq2J5cCWj5TyzbT28vuLkPK\n"
	registry := t.registry().WithNewFile("/auth/htpasswd", htpasswd).WithEnvVariable("REGISTRY_AUTH", "htpasswd").
		WithEnvVariable("REGISTRY_AUTH_HTPASSWD_REALM", "test").WithEnvVariable("REGISTRY_AUTH_HTPASSWD_PATH", "/auth/htpasswd")
	to, err := t.pushTo(ctx, registry)
	if err != nil {
		return err
	}
	_, err = t.slipway().Publish(ctx, t.Hello, []string{to}, dagger.SlipwayPublishOpts{Username: "user", Password: dag.SetSecret("password", canary)})
	if err == nil || strings.Contains(err.Error(), canary) {
		return fmt.Errorf("no failure, or one with the password in it: %v", err)
	}
	return wants(err, "publish to")
}

// Everything gives the whole dist/.
//
// +cache="session"
func (t *Tests) Everything(ctx context.Context) error {
	files, err := t.slipway().All(t.Hello).Entries(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{"SHA256SUMS", "coverage.out", "image/", "junit.xml", "run.json", "verification.json", "vet.json"} {
		if !strings.Contains("\n"+strings.Join(files, "\n")+"\n", "\n"+name+"\n") {
			return fmt.Errorf("no %s in %q", name, files)
		}
	}
	return nil
}

// FailingRun fails as a whole, and hands over its files as a result.
//
// +cache="session"
func (t *Tests) FailingRun(ctx context.Context) error {
	bad := t.broken("fails_test.go", failingTest)
	_, err := t.slipway().All(bad).Sync(ctx)
	if err := wants(err, "fails on purpose"); err != nil {
		return err
	}
	verdict, err := t.slipway().Run(bad).Verdict(ctx)
	if err == nil && verdict != "failed" {
		err = fmt.Errorf("the verdict is %s", verdict)
	}
	return err
}

// NoGoMod says what is missing.
//
// +cache="session"
func (t *Tests) NoGoMod(ctx context.Context) error {
	_, err := t.slipway().Build(dag.Directory().WithNewFile("main.go", "package main\n")).Sync(ctx)
	return wants(err, "no go.mod in the source")
}

// NoSuchImage names the image that cannot be fetched.
//
// +cache="session"
func (t *Tests) NoSuchImage(ctx context.Context) error {
	_, err := dag.Slipway(dagger.SlipwayOpts{GoVersions: []string{"1.22.12"}, GoImage: "mirror.invalid/golang", Goproxy: t.Goproxy}).Build(t.Hello.WithoutFile("slipway.lock")).Sync(ctx)
	return wants(err, "image mirror.invalid/golang:1.22.12 cannot be fetched", "--go-image")
}

// UnknownKey names file and line.
//
// +cache="session"
func (t *Tests) UnknownKey(ctx context.Context) error {
	_, err := t.slipway().Build(t.broken("slipway.yaml", "platform: [linux/amd64]\n")).Sync(ctx)
	return wants(err, `slipway.yaml:1: unknown key "platform"`, "platforms")
}
