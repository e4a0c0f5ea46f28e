package pipelines_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
)

// The whole pipeline over the program in the working directory, with the engine that needs nothing but Go.
func Example() {
	ctx := context.Background()
	config, err := pipelines.ReadConfig(".", "")
	if err != nil {
		log.Fatal(err)
	}
	engine, err := host.Open(ctx, ".", host.Options{Exclude: pipelines.OutputNames("dist")})
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	cache, err := host.CacheDir("")
	if err != nil {
		log.Fatal(err)
	}
	p, err := pipelines.New(ctx, engine, config, pipelines.Options{
		Output: "dist", Cache: cache,
		Observe: func(e pipelines.Event) { fmt.Println(e.Stage, e.Task, e.Verdict, e.Detail) },
	})
	if err != nil {
		log.Fatal(err)
	}
	defer p.Close()
	if err := p.All(ctx); err != nil {
		log.Fatal(err) // no verdict: see package fault
	}
	if _, err := p.Finish(); err != nil {
		log.Fatal(err)
	}
	if p.Record.Verdict != pipelines.Passed {
		os.Exit(1)
	}
}

// A profile takes the place of settings that it has, and leaves the others.
func ExampleParseConfig() {
	c, err := pipelines.ParseConfig("slipway.yaml", []byte(`
env: {REGION: eu, LOG_LEVEL: debug}
profiles:
  prod:
    env: {LOG_LEVEL: warn}
    base: distroless
`), "prod")
	fmt.Println(c.Base, c.Env, err)
	_, err = pipelines.ParseConfig("slipway.yaml", []byte("platfroms: [linux/arm64]\n"), "")
	fmt.Println(err)
	// Output:
	// distroless map[LOG_LEVEL:warn REGION:eu] <nil>
	// slipway.yaml:1: unknown key "platfroms"
	//   Did you mean "platforms"?
}

// The stages of a run, as its record has them.
func ExampleReadRecord() {
	r, err := pipelines.ReadRecord(filepath.Join("dist", "run.json"))
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, s := range r.Stages {
		fmt.Println(s.Name, s.Verdict, s.Outcome())
	}
	// Output:
	// run record dist/run.json: no such file or directory
	//   Name the run.json that a run of slipway has written, as it was written.
}
