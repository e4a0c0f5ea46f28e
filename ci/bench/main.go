// Command bench measures slipway against bare go commands and, where it is installed, against ko, in one
// run on one machine: what counts are the ratios. It prints the table of docs/performance.md.
package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipway-ci/slipway/pipelines"
)

var (
	cold = flag.Int("cold", 1, "how often to measure each cold build")
	warm = flag.Int("warm", 5, "how often to measure each warm build")
	only = flag.Bool("image", false, "measure only what comes after the build")
)

var platforms = []string{"linux/amd64", "linux/arm64", "linux/386", "linux/arm/v7"}

func main() {
	flag.Parse()
	log.SetFlags(0)
	b := &bench{verified: map[int][2]int64{}, dir: must(os.MkdirTemp("", "slipway-bench-"))}
	defer os.RemoveAll(b.dir)
	b.prepare()

	fmt.Printf("%d cores, %s, go%s, %s/%s\n\n", runtime.NumCPU(), b.cpu(), b.release, runtime.GOOS, runtime.GOARCH)
	if *only {
		b.assembling()
		b.smoke()
		return
	}
	fmt.Println("Build and image, seconds (median), and as ratio to bare `go build -trimpath`, two at a time:")
	fmt.Println()
	fmt.Println("| platforms | state | go build | slipway image | ko build | slipway / go | ko / go |")
	fmt.Println("|---|---|---|---|---|---|---|")
	for _, n := range []int{1, 2, 4} {
		b.compare(platforms[:n])
	}
	fmt.Println("\nVerification without the rebuild, of a cold run:")
	for _, n := range []int{1, 2, 4} {
		if ms, ok := b.verified[n]; ok {
			fmt.Printf("  %d: %d ms, %.2f %% of the bare go build\n", n, ms[0], 100*float64(ms[0])/float64(ms[1]))
		}
	}
	b.assembling()
	b.smoke()
	fmt.Printf("\nPeak memory of the slipway process itself, `slipway image` of a program of 100 MB: %d MiB.\n", b.memory()>>20)
}

type bench struct {
	dir, slipway, ko, release, root, path, cache string
	registry                                     string
	edits                                        int
	// verified holds milliseconds of verify and of the bare go build, by number of platforms.
	verified map[int][2]int64
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

// prepare builds slipway, finds one toolchain for all, and copies the sample.
func (b *bench) prepare() {
	b.slipway = filepath.Join(b.dir, "slipway")
	run(exec.Command("go", "build", "-o", b.slipway, "./ci/slipway"))
	b.release = strings.TrimPrefix(output("go", "env", "GOVERSION"), "go")
	b.cache = filepath.Join(b.dir, "cache")
	// slipway runs the toolchain module, so that is what all run.
	warmUp := filepath.Join(b.dir, "warm-up")
	must(0, os.CopyFS(warmUp, os.DirFS("testdata/hello")))
	run(b.command(warmUp, "", b.slipway, "vet", "--vet-checks=gofmt", "--go-versions="+b.release))
	b.root = filepath.Join(output("go", "env", "GOMODCACHE"), "golang.org", "toolchain@v0.0.1-go"+b.release+"."+runtime.GOOS+"-"+runtime.GOARCH)
	must(os.Stat(b.root))
	b.path = filepath.Join(b.root, "bin") + string(os.PathListSeparator) + os.Getenv("PATH")
	if ko, err := exec.LookPath("ko"); err == nil {
		b.ko = ko
		b.baseImage()
	}
}

// baseImage serves an empty base image for all platforms: what ko puts it on is not measured.
func (b *bench) baseImage() {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(&bytes.Buffer{}, "", 0))))
	b.registry = strings.TrimPrefix(server.URL, "http://")
	var index v1.ImageIndex = empty.Index
	for _, p := range platforms {
		platform := must(v1.ParsePlatform(p))
		config := must(empty.Image.ConfigFile()).DeepCopy()
		config.OS, config.Architecture, config.Variant = platform.OS, platform.Architecture, platform.Variant
		image := must(mutate.ConfigFile(empty.Image, config))
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: image, Descriptor: v1.Descriptor{Platform: platform}})
	}
	must(0, remote.WriteIndex(must(name.ParseReference(b.registry+"/base:latest")), index))
}

func (b *bench) command(dir, gocache string, args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SLIPWAY_CACHE="+b.cache, "GOTOOLCHAIN=local", "GOFLAGS=-buildvcs=false", "CGO_ENABLED=0",
		"KO_DEFAULTBASEIMAGE="+b.registry+"/base:latest", "KO_DOCKER_REPO="+b.registry+"/out", "KOCACHE="+filepath.Join(dir, "..", "kocache"))
	if b.path != "" {
		cmd.Env = append(cmd.Env, "PATH="+b.path)
	}
	if gocache != "" {
		cmd.Env = append(cmd.Env, "GOCACHE="+gocache)
	}
	return cmd
}

// tool is one way to build.
type tool struct {
	name  string
	run   func(dir, gocache string)
	work  string // its tree and build cache
	times map[string][]time.Duration
}

// measure times one run in the tool's directory.
func (t *tool) measure(state string) {
	start := time.Now()
	t.run(filepath.Join(t.work, "src"), filepath.Join(t.work, "gocache"))
	t.times[state] = append(t.times[state], time.Since(start))
}

// compare measures the three tools in turn, so that a slow moment of the machine hits all of them: from
// nothing, after an edit, and unchanged.
func (b *bench) compare(on []string) {
	tools := []*tool{{name: "go", run: func(dir, gocache string) { b.bare(dir, gocache, on) }},
		{name: "slipway", run: func(dir, gocache string) {
			run(b.command(dir, gocache, b.slipway, "image", "--rebuild=false", "--go-versions="+b.release, "--platforms="+strings.Join(on, ",")))
		}}}
	if b.ko != "" {
		tools = append(tools, &tool{name: "ko", run: func(dir, gocache string) {
			run(b.command(dir, gocache, b.ko, "build", "--push=false", "--sbom=none", "--oci-layout-path="+filepath.Join(dir, "..", "ko-out"), "--platform="+strings.Join(on, ","), "."))
		}})
	}
	for _, t := range tools {
		t.times = map[string][]time.Duration{}
	}
	for range *cold {
		for _, t := range tools {
			if t.work != "" {
				must(0, os.RemoveAll(t.work))
			}
			t.work = must(os.MkdirTemp(b.dir, t.name+"-"))
			must(0, os.CopyFS(filepath.Join(t.work, "src"), os.DirFS("testdata/hello")))
			t.measure("cold")
		}
		b.verified[len(on)] = [2]int64{verifyTime(tools[1].work), tools[0].times["cold"][len(tools[0].times["cold"])-1].Milliseconds()}
	}
	for _, state := range []string{"edited", "unchanged"} {
		for range *warm {
			for _, t := range tools {
				if state == "edited" {
					b.edits++
					text := fmt.Sprintf("package main\n\nfunc init() { version += \"%d\" }\n", b.edits)
					must(0, os.WriteFile(filepath.Join(t.work, "src", "edited.go"), []byte(text), 0o644))
				}
				t.measure(state)
			}
		}
	}
	for _, state := range []string{"cold", "edited", "unchanged"} {
		bare, ours := median(tools[0].times[state]), median(tools[1].times[state])
		ko, koRatio := "-", "-"
		if b.ko != "" {
			m := median(tools[2].times[state])
			ko, koRatio = fmt.Sprintf("%.2f", m), fmt.Sprintf("%.2f", m/bare)
		}
		fmt.Printf("| %d | %s | %.2f | %.2f | %s | %.2f | %s |\n", len(on), state, bare, ours, ko, ours/bare, koRatio)
	}
	for _, t := range tools {
		must(0, os.RemoveAll(t.work))
	}
}

// verifyTime reads from a run record how long verify took, in milliseconds.
func verifyTime(work string) int64 {
	var record pipelines.Record
	must(0, json.Unmarshal(must(os.ReadFile(filepath.Join(work, "src", "dist", "run.json"))), &record))
	for _, s := range record.Stages {
		if s.Name == "verify" {
			return time.Duration(s.Elapsed).Milliseconds()
		}
	}
	return 0
}

// bare is what somebody would write by hand: go build for each platform, two at a time.
func (b *bench) bare(dir, gocache string, on []string) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2)
	for _, p := range on {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			parts := append(strings.Split(p, "/"), "")
			cmd := b.command(dir, gocache, filepath.Join(b.root, "bin", "go"), "build", "-trimpath", "-o", filepath.Join(dir, "..", "bare-"+strings.ReplaceAll(p, "/", "-")), ".")
			cmd.Env = append(cmd.Env, "GOOS="+parts[0], "GOARCH="+parts[1])
			if parts[2] != "" {
				cmd.Env = append(cmd.Env, "GOARM="+strings.TrimPrefix(parts[2], "v"))
			}
			run(cmd)
		})
	}
	wg.Wait()
}

// memory is the peak resident size of slipway, in bytes, while it handles a program of 100 MB.
func (b *bench) memory() int64 {
	src := filepath.Join(b.dir, "large")
	must(0, os.MkdirAll(src, 0o755))
	data := make([]byte, 100<<20)
	must(rand.Read(data))
	for name, text := range map[string][]byte{
		"go.mod": []byte("module example.com/large\n\ngo 1.20\n"), "data.bin": data,
		"main.go": []byte("package main\n\nimport _ \"embed\"\n\n//go:embed data.bin\nvar data string\n\nfunc main() { println(len(data)) }\n"),
	} {
		must(0, os.WriteFile(filepath.Join(src, name), text, 0o644))
	}
	cmd := b.command(src, "", b.slipway, "image", "--rebuild=false", "--go-versions="+b.release)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(0, cmd.Start())
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var peak int64
	for {
		select {
		case err := <-done:
			if err != nil {
				log.Fatalf("%v\n%s", err, out.Bytes())
			}
			return peak
		case <-time.After(5 * time.Millisecond):
			// The high-water mark of this process alone; that of wait4 includes the linker.
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			for line := range strings.Lines(string(status)) {
				var kib int64
				if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
					peak = max(peak, kib<<10)
				}
			}
		}
	}
}

func (b *bench) cpu() string {
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor"
}

func median(times []time.Duration) float64 {
	slices.SortFunc(times, func(a, b time.Duration) int { return cmp.Compare(a, b) })
	return times[len(times)/2].Seconds()
}

func run(cmd *exec.Cmd) {
	if out, err := cmd.CombinedOutput(); err != nil {
		log.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
}

func output(args ...string) string {
	return strings.TrimSpace(string(must(exec.Command(args[0], args[1:]...).Output())))
}
