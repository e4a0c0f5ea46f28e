package testjson_test

import (
	"bytes"
	"compress/gzip"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/internal/testjson"
)

var record = flag.Bool("record", false, "run the toolchains and rewrite testdata")

// The releases whose output is recorded: before and after build events came, which was with Go 1.24.
var releases = []string{"1.20", "1.22", "1.27"}

var exact = map[string]string{"1.20": "1.20.14", "1.22": "1.22.12", "1.27": "1.27.4"}

// recording reads what a release said, or makes it say it again.
func recording(t *testing.T, release string) map[string][]byte {
	t.Helper()
	name := filepath.Join("testdata", "go"+release+".txtar")
	zipped := filepath.Join("testdata", "go"+release+"-huge.json.gz")
	if *record {
		run(t, release, name, zipped)
	}
	a, err := txtar.ParseFile(name)
	require.NoError(t, err)
	files := map[string][]byte{}
	for _, f := range a.Files {
		files[f.Name] = f.Data
	}
	f, err := os.Open(zipped)
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	files["huge.json"], err = io.ReadAll(z)
	require.NoError(t, err)
	return files
}

func run(t *testing.T, release, name, zipped string) {
	module, err := txtar.ParseFile(filepath.Join("testdata", "module.txtar"))
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, txtar.Write(module, dir))
	command := func(env string, args ...string) (stdout, stderr []byte) {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOTOOLCHAIN=go"+exact[release], "GOFLAGS=", "CGO_ENABLED=0", env)
		var out, problems bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &problems
		_ = cmd.Run() // it fails
		return clean(out.Bytes(), dir), clean(problems.Bytes(), dir)
	}
	// The flags are those that the test stage gives.
	flags := []string{"test", "-json", "-trimpath", "-vet=off", "-timeout=3s"}
	cover := append(slices.Clone(flags), "-coverprofile="+filepath.Join(dir, "coverage.out"))
	a := &txtar.Archive{Comment: []byte("Recorded with Go " + exact[release] + "; see module.txtar.\n")}
	add := func(name string, stdout, stderr []byte) {
		a.Files = append(a.Files, txtar.File{Name: name + ".json", Data: stdout}, txtar.File{Name: name + ".stderr", Data: stderr})
	}
	out, problems := command("", append(cover, "./...")...)
	add("all", out, problems)
	out, problems = command("", append(cover, "./brokendep", "./pass")...)
	add("dependency", out, problems)
	command("", append(flags, "./pass", "./skip")...)
	out, problems = command("", append(flags, "./pass", "./skip")...)
	add("cached", out, problems)
	command("", append(cover, "./pass")...)
	out, problems = command("", append(cover, "./pass")...)
	add("cover", out, problems)
	out, problems = command("", append(cover, "./skip", "-nosuchflag")...)
	add("usage", out, problems)
	require.NoError(t, os.WriteFile(name, txtar.Format(a), 0o644))

	out, _ = command("HUGE=1", append(cover, "./huge")...)
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	require.NoError(t, err)
	_, err = z.Write(out)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.NoError(t, os.WriteFile(zipped, b.Bytes(), 0o644))
}

var clock = regexp.MustCompile(`"Time":"[^"]*",`)

// clean drops what is of one machine and moment only.
func clean(b []byte, dir string) []byte {
	b = clock.ReplaceAll(b, nil)
	return bytes.ReplaceAll(b, []byte(dir), []byte("/work"))
}

func TestDummy(t *testing.T) {
	for _, r := range releases {
		rec := recording(t, r)
		rep := testjson.Read(bytes.NewReader(rec["all.json"]), nil)
		rep.AddBuildErrors(rec["all.stderr"])
		t.Logf("=== %s stray %q", r, rep.Stray)
		for _, p := range rep.Packages {
			t.Logf("%s %s cached=%v OUT %.300q", p.Path, p.Result, p.Cached, p.Output)
			for _, x := range p.Tests {
				t.Logf("     %s %s %.300q", x.Name, x.Result, x.Output)
			}
		}
	}
	_ = assert.Equal
	_ = strings.Cut
}
