package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/slipway-ci/slipway/pipelines"
)

// assembling measures what comes after the binaries: images for four platforms of a program of 10 MB, on a base
// image from the cache, first with everything to compress and then with nothing new.
func (b *bench) assembling() {
	src := filepath.Join(b.dir, "assembling")
	must(0, os.CopyFS(src, os.DirFS("testdata/hello")))
	// Data that compresses about as well as a program does.
	random := rand.New(rand.NewPCG(1, 2))
	const size = 4 << 20
	var data []byte
	for len(data) < size {
		data = append(data, byte(random.Uint32()), byte(random.Uint32()), 0, byte(len(data)>>8))
	}
	must(0, os.WriteFile(filepath.Join(src, "data.bin"), data, 0o644))
	must(0, os.WriteFile(filepath.Join(src, "data.go"), []byte("package main\n\nimport _ \"embed\"\n\n//go:embed data.bin\nvar data string\n\nfunc init() { version += data[:1] }\n"), 0o644))
	tiny, base := filepath.Join(b.dir, "assembling-tiny"), filepath.Join(b.dir, "assembling-base")
	must(0, os.CopyFS(tiny, os.DirFS("testdata/tiny")))
	run(b.command(tiny, "", b.slipway, "publish", "--rebuild=false", "--smoke=off", "--go-versions="+b.release, "--platforms="+strings.Join(platforms, ","), "--to=oci:"+base))
	image := func() (stages map[string]time.Duration, r pipelines.Record) {
		run(b.command(src, "", b.slipway, "image", "--fresh", "--rebuild=false", "--base=oci:"+base, "--go-versions="+b.release, "--platforms="+strings.Join(platforms, ",")))
		return b.stages(src)
	}
	must(0, os.RemoveAll(filepath.Join(src, "dist")))
	cold := b.coldBuild(src)
	must(0, os.RemoveAll(filepath.Join(b.cache, "layers")))
	first, record := image()
	again, _ := image()

	var raw int64
	start := time.Now()
	for _, x := range record.Binaries {
		f := must(os.Open(filepath.Join(src, "dist", filepath.FromSlash(x.Path))))
		z := must(gzip.NewWriterLevel(io.Discard, 4))
		raw += must(io.Copy(z, f))
		must(0, z.Close())
		must(0, f.Close())
	}
	speed := float64(raw) / time.Since(start).Seconds()
	cores := min(runtime.NumCPU(), len(platforms))
	fmt.Printf("\nImages for %d platforms from binaries of %d MB each, on a base on disk: %d ms, %.1f %% of the cold bare go build (%.1f s); unchanged %d ms.\n",
		len(platforms), raw/int64(len(platforms))/1e6, first["image"].Milliseconds(), 100*first["image"].Seconds()/cold.Seconds(), cold.Seconds(), again["image"].Milliseconds())
	fmt.Printf("Compressing them alone, at %.0f MB/s on each of %d cores, takes %.0f ms.\n", speed/1e6, cores, 1000*float64(raw)/speed/float64(cores))
}

// coldBuild is the time of a bare build of src for all platforms, with an empty build cache.
func (b *bench) coldBuild(src string) time.Duration {
	gocache := must(os.MkdirTemp(b.dir, "gocache-"))
	defer os.RemoveAll(gocache)
	start := time.Now()
	b.bare(src, gocache, platforms)
	return time.Since(start)
}

// stages are the times of the stages of the last run over src.
func (b *bench) stages(src string) (map[string]time.Duration, pipelines.Record) {
	var record pipelines.Record
	must(0, json.Unmarshal(must(os.ReadFile(filepath.Join(src, "dist", "run.json"))), &record))
	times := map[string]time.Duration{}
	for _, s := range record.Stages {
		times[s.Name] = time.Duration(s.Elapsed)
	}
	return times, record
}

// smoke measures what a smoke run costs beside the program: start, one answer, and end, by kind of isolation.
func (b *bench) smoke() {
	src := filepath.Join(b.dir, "smoke")
	must(0, os.CopyFS(src, os.DirFS("testdata/hello")))
	const times = 20
	must(0, os.WriteFile(filepath.Join(src, "slipway.yaml"), []byte("smoke: {probes: [{args: [--version]}]}\n"), 0o644))
	one := func(kind string, n int) (pipelines.Record, time.Duration) {
		run(b.command(src, "", b.slipway, "smoke", "--fresh", "--rebuild=false", "--go-versions="+b.release, "--smoke="+kind, fmt.Sprint("--repeat=", n)))
		stages, r := b.stages(src)
		return r, stages["smoke"]
	}
	r, _ := one("auto", 1)
	program := filepath.Join(src, "dist", filepath.FromSlash(r.Binaries[0].Path))
	var bare []time.Duration
	for range times {
		start := time.Now()
		run(exec.Command(program, "--version"))
		bare = append(bare, time.Since(start))
	}
	fmt.Printf("\nA smoke run of `hello --version`; bare it takes %.1f ms (median of %d):\n", 1000*median(bare), times)
	for _, kind := range []string{"namespaces", "crun", "runc"} {
		if _, err := exec.LookPath(kind); err != nil && kind != "namespaces" {
			continue
		}
		_, first := one(kind, 1)
		r, all := one(kind, times)
		var starts []time.Duration
		for _, d := range r.Smoke.Runs[0].Starts {
			starts = append(starts, time.Duration(d))
		}
		fmt.Printf("  %-10s  %3d ms for one, with unpacking the image; %.1f ms for each further one; %.1f ms from start to end of the program\n",
			kind, first.Milliseconds(), float64((all-first).Microseconds())/1000/(times-1), 1000*median(starts))
	}
}
