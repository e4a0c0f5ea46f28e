package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/slipway-ci/slipway/ci/internal/view"
	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// arguments checks how many a command that is about records has.
func arguments(c *command, args []string) error {
	usage, n := "slipway reproduce RECORD", 1
	if c.name == "explain" {
		usage, n = "slipway explain A B", 2
	}
	if len(args) != n {
		return fault.Usagef("Write "+usage+"; a record is the run.json of a run, - for standard input, or oci:DIR for the image of a run.", "%s: %d arguments", c.name, len(args))
	}
	for _, a := range args {
		if a == "" {
			return fault.Usagef("Is a variable empty?", "%s: the name of a record is empty", c.name)
		}
	}
	return nil
}

// readRecord reads the record that an argument names.
func readRecord(name string) (*pipelines.Record, error) {
	if name != "-" {
		return pipelines.ReadRecord(name)
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		return nil, fault.Environmentf(err, "", "standard input")
	}
	return pipelines.ParseRecord("from standard input", text)
}

// explain compares two records.
func explain(in *input, stdout io.Writer) error {
	var records [2]*pipelines.Record
	for i, name := range in.records {
		var err error
		if records[i], err = readRecord(name); err != nil {
			return err
		}
	}
	e := pipelines.Explain(records[0], records[1])
	var err error
	if in.json {
		err = json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "explain": e})
	} else {
		err = report.Explain(stdout, e)
	}
	if err == nil && e.Defects() > 0 {
		err = errVerdict
	}
	return err
}

// reproduce repeats what failed in a record and says whether it fails here too.
func reproduce(ctx context.Context, in *input, stdout io.Writer, stderr *os.File) (err error) {
	x := in.reproduction
	cache, err := host.CacheDir("")
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp("", "slipway-reproduce-")
	if err != nil {
		return fault.Environmentf(err, "Check TMPDIR.", "temporary directory")
	}
	defer os.RemoveAll(temp)
	words := io.Writer(stderr)
	if in.json {
		words = io.Discard // the end has what differs
	}
	e, closeEngine, err := recordedSource(ctx, in, temp, words)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, closeEngine())
		if err != nil && !errors.Is(err, errVerdict) && in.json {
			_ = json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "error": err.Error()})
		}
	}()
	output := filepath.Join(temp, "dist")
	if in.keep {
		output = in.output
	}
	progress := view.Choose(stderr, false, os.Getenv)
	if in.json {
		progress = view.JSON(stdout)
	}
	origins := x.Origins()
	for key, from := range in.origins {
		if from == "flag" {
			origins[key] = from
		}
	}
	p, err := pipelines.New(ctx, e, in.config, pipelines.Options{Output: output, Cache: cache, Lock: x.Lock, Observe: progress.Event, Credentials: in.credentials, Signer: in.signer, Origins: origins})
	if err == nil {
		defer func() { err = errors.Join(err, p.Close()) }()
		err = x.Run(ctx, p)
	}
	progress.Close()
	if err != nil {
		return err
	}
	if in.keep {
		writePage(in, p, e.Source().FS, stderr)
	}
	if _, err := p.Finish(); err != nil {
		return err
	}
	result, err := x.Compare(p.Record)
	if err != nil {
		return err
	}
	if in.json {
		err = json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "verdict": p.Record.Verdict, "record": p.Record, "reproduce": result})
	} else {
		resume := quiet(stdout, os.Getenv)
		fmt.Fprintln(stdout)
		err = errors.Join(report.Stages(stdout, p.Record), report.Failures(stdout, p.Record, nil), report.Reproduced(stdout, result))
		resume()
	}
	if err == nil && result.Outcome != pipelines.PassesHere {
		err = errVerdict
	}
	return err
}

// recordedSource opens the engine over the recorded source, as far as it can be had, and says what differs.
func recordedSource(ctx context.Context, in *input, temp string, stderr io.Writer) (engine.Engine, func() error, error) {
	x := in.reproduction
	fmt.Fprintf(stderr, "reproduce: engine %s, recorded with %s on %s at %s\n", in.config.Engine, x.Record.Engine, x.Record.Host, x.Record.Started)
	e, closeEngine, err := openEngine(ctx, in)
	if err != nil {
		return nil, nil, err
	}
	advice, err := x.Source(e.Source())
	if err != nil {
		return nil, nil, errors.Join(err, closeEngine())
	}
	for _, words := range advice.Words {
		fmt.Fprintln(stderr, words)
	}
	if advice.Checkout == "" {
		return e, closeEngine, nil
	}
	if err := closeEngine(); err != nil {
		return nil, nil, err
	}
	other := *in
	if other.source, err = host.Checkout(ctx, in.source, advice.Checkout, temp); err != nil {
		return nil, nil, err
	}
	fmt.Fprintf(stderr, "source: commit %s is checked out into a temporary directory; the tree here stays as it is\n", advice.Checkout)
	if e, closeEngine, err = openEngine(ctx, &other); err != nil {
		return nil, nil, err
	}
	if again, err := x.Source(e.Source()); err != nil || !again.Same {
		if err == nil {
			fmt.Fprintln(stderr, "source: the commit's tree differs from the recorded one all the same, such as by submodules or filters of git")
		} else {
			return nil, nil, errors.Join(err, closeEngine())
		}
	}
	return e, closeEngine, nil
}

// recorded reads the record to reproduce and gives its configuration. Of that of the source counts only where runs
// write, since that is no part of the source.
func (in *input) recorded(f *flagSet, output string) (c pipelines.Config, err error) {
	if f.Changed("profile") {
		return c, fault.Usagef("Give single settings as flags.", "--profile: the configuration is that of the record")
	}
	r, err := readRecord(in.records[0])
	if err != nil {
		return c, err
	}
	if in.reproduction, err = pipelines.Reproduce(r); err != nil {
		return c, err
	}
	c = in.reproduction.Config
	c.Output, in.keep = output, f.Changed("output")
	if in.records[0], err = filepath.Abs(in.records[0]); err != nil {
		return c, err
	}
	return c, nil
}

// keyOf is the key of the configuration that a flag sets.
func keyOf(flag string) string {
	switch flag {
	case "smoke":
		return "smoke.isolation"
	case "repeat":
		return "smoke.repeat"
	}
	return flag
}
