package main

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/sign"
)

// input is what a command line and a configuration file say together.
type input struct {
	source      string // absolute
	output      string // absolute
	config      pipelines.Config
	credentials pipelines.Credentials
	reference   string // an image to verify, in place of a source
	rebuild     bool   // the source of that image was named
	signer      sign.Signer
	key         *sign.PublicKey
	json        bool
	update      bool
	ci          string // service that init writes a job for
	force       bool
	explain     bool     // what the image is made of
	dryRun      bool     // publish only asks what would travel
	timestamps  bool     // progress with the time
	given       []string // the flags that were given, for repeating the run
	origins     map[string]string
	// Records that explain and reproduce are about, and what comes of the one.
	records      []string
	reproduction *pipelines.Reproduction
	keep         bool   // what reproduce writes
	outputFile   string // of report
}

// flagSet defines the flags. Those of the configuration are bound to c, whose values are the defaults.
type flagSet struct {
	*pflag.FlagSet
	source, username, password     string
	signKey, signPassword, keyFile string
	ci                             string
	json, update, force, explain   bool
	dryRun, timestamps             bool
	outputFile                     string
}

func newFlagSet(name string, c *pipelines.Config) *flagSet {
	f := &flagSet{FlagSet: pflag.NewFlagSet("slipway "+name, pflag.ContinueOnError)}
	f.SortFlags = false
	f.SetOutput(io.Discard) // errors are printed once, by main
	f.Usage = func() {}
	f.StringVar(&f.source, "source", ".", "`directory` of the source tree")
	f.StringVar(&c.Profile, "profile", c.Profile, "`name` of the profile of slipway.yaml to use")
	f.StringVar(&c.Engine, "engine", c.Engine, "`engine` that runs commands: host (this machine) or dagger (containers) (default host)")
	f.StringVar(&c.GoImage, "go-image", c.GoImage, "`repository` of the golang images for the dagger engine, such as a mirror's (default golang)")
	f.StringVar(&c.Output, "output", c.Output, "`directory` for everything that the run writes (default dist in the source)")
	f.StringSliceVar(&c.GoVersions, "go-versions", c.GoVersions, "Go `releases`: 1.22, 1.22.5, stable, oldstable, minimum (default minimum,oldstable,stable)")
	f.StringSliceVar(&c.Platforms, "platforms", c.Platforms, "`platforms`: os/arch or os/arch/variant (default linux and this machine's architecture)")
	f.StringSliceVar(&c.Modules, "modules", c.Modules, "`directories` of modules (default those of go.work, else the root, else all)")
	f.StringSliceVar(&c.Packages, "packages", c.Packages, "package `patterns` (default ./...)")
	f.StringSliceVar(&c.Commands, "commands", c.Commands, "`names` of the main packages to build (default those in the root and below cmd, else all)")
	f.StringSliceVar(&c.Tags, "tags", c.Tags, "build `tags`")
	f.StringVar(&c.LDFlags, "ldflags", c.LDFlags, "linker `flags`, such as \"-X main.version=1.2.3\"")
	f.BoolVar(&c.Race, "race", c.Race, "test with the race detector (needs a C compiler)")
	f.BoolVar(&c.CGO, "cgo", c.CGO, "let builds and tests use cgo")
	f.StringVar(&c.Shuffle, "shuffle", c.Shuffle, "`order` of tests: off, on, or a seed (default off)")
	f.IntVar(&c.Count, "count", c.Count, "`number` of times that each test runs; one that passes and fails is named as flaky (default once)")
	f.DurationVar(&c.Timeout, "timeout", c.Timeout, "`limit` for the tests of one package (default 10m)")
	f.StringSliceVar(&c.VetChecks, "vet-checks", c.VetChecks, "`checks` of the vet stage: vet, gofmt, tidy, verify, vendor (default all)")
	f.StringVar(&c.Vuln, "vuln", c.Vuln, "known vulnerabilities: `when` they fail a run of all: off, check, or require (that the database answers) (default off)")
	f.StringVar(&c.VulnMode, "vuln-mode", c.VulnMode, "`where` vulnerabilities are looked for: source (with call stacks) or binary (what was linked) (default source)")
	f.StringVar(&c.VulnDB, "vuln-db", c.VulnDB, "vulnerability `database`: a URL, or a directory with a copy (default the public one)")
	f.optional(&c.Rebuild, "rebuild", "build a second time, elsewhere and from nothing, and compare (default true)")
	f.StringVar(&c.Base, "base", c.Base, "base image: scratch, distroless, alpine, debian, ubi, a `reference`, or oci:DIR (default scratch)")
	f.StringToStringVar(&c.Mirrors, "mirrors", c.Mirrors, "where base images are fetched instead, as `REGISTRY=MIRROR`: docker.io=mirror.example/hub")
	f.Lookup("mirrors").DefValue = ""
	f.StringVar(&c.Entrypoint, "entrypoint", c.Entrypoint, "`name` of the command that the image starts")
	f.StringSliceVar(&c.Args, "args", c.Args, "`arguments` that the image starts its entrypoint with")
	f.StringVar(&c.User, "user", c.User, "`user` that the image runs as (default 65532:65532)")
	f.StringToStringVar(&c.Env, "env", c.Env, "environment variables of the image, as `KEY=value`")
	f.StringSliceVar(&c.Ports, "ports", c.Ports, "`ports` that the image exposes")
	f.Lookup("env").DefValue = ""
	f.StringSliceVar(&c.Volumes, "volumes", c.Volumes, "`directories` that the image declares as volumes")
	f.StringVar(&c.WorkingDir, "working-dir", c.WorkingDir, "working `directory` of the image")
	f.StringVar(&c.StopSignal, "stop-signal", c.StopSignal, "`signal` that asks the image to end (default SIGTERM)")
	f.StringSliceVar(&c.Capabilities, "capabilities", c.Capabilities, "`capabilities` of the entrypoint's file, such as cap_net_bind_service")
	f.StringToStringVar(&c.Labels, "labels", c.Labels, "labels of the image, as `KEY=value`")
	f.Lookup("labels").DefValue = ""
	f.optional(&c.Certificates, "certificates", "put CA certificates into the image (default true on scratch)")
	f.StringSliceVar(&c.Timezones, "timezones", c.Timezones, "time zones in the image: all, none, or `names` (default all on scratch)")
	f.optional(&c.Accounts, "accounts", "put /etc/passwd and /etc/group into the image (default true on scratch)")
	f.optional(&c.Tmp, "tmp", "put an empty /tmp into the image (default true on scratch)")
	f.StringVar(&c.Format, "format", c.Format, "`format` of manifests: oci or docker (default oci)")
	f.StringVar(&c.Compression, "compression", c.Compression, "`compression` of layers: gzip or zstd (default gzip)")
	f.StringVar(&c.SizeLimit, "size-limit", c.SizeLimit, "`limit` for a platform's image as it is pulled: 20MiB, or growth over --previous: +5%, +512KiB")
	f.StringVar(&c.LayerLimit, "layer-limit", c.LayerLimit, "`limit` for each layer, likewise")
	f.StringVar(&c.Previous, "previous", c.Previous, "`file` of an earlier run record, to compare sizes with")
	f.StringVar(&c.Smoke.Isolation, "smoke", c.Smoke.Isolation, "`isolation` of the smoke run: auto, runc, crun, namespaces, process (none at all), service (dagger), or off (default auto)")
	f.IntVar(&c.Smoke.Repeat, "repeat", c.Smoke.Repeat, "`number` of smoke runs, of which times and memory are medians (default 1)")
	f.StringSliceVar(&c.To, "to", c.To, "where to publish: a `reference`, oci:DIR, tar:FILE, or embedded (a registry for the length of the run)")
	f.StringVar(&f.username, "username", "", "`user` at the registry (default from the docker configuration)")
	f.StringVar(&f.password, "password", "", "`where` the password is: env:NAME or file:PATH; never the password itself")
	f.StringVar(&f.signKey, "sign-key", "", "`where` the private key is that signs image, SBOMs and provenance: a file, or env:NAME (default: nothing is signed)")
	f.StringVar(&f.signPassword, "sign-password", "", "`where` the password of that key is: env:NAME or file:PATH; never the password itself")
	f.BoolVar(&c.Fresh, "fresh", c.Fresh, "do everything again, also what an earlier run has done with the same inputs")
	f.IntVar(&c.Parallel, "parallel", c.Parallel, "`number` of commands that run at the same time (default what cores and memory allow)")
	f.BoolVar(&f.json, "json", false, "print events and the run record as JSON, one object a line")
	f.BoolVar(&f.timestamps, "timestamps", false, "print progress as in a log, each line with the time in UTC")
	if name == "publish" || name == "all" {
		f.BoolVar(&f.dryRun, "dry-run", false, "do everything but publish: show what would travel and which tags would move")
	}
	if name == "report" {
		f.StringVar(&f.outputFile, "output-file", "", "`file` to write, - for standard output (default report.html or comparison.html beside the record)")
	}
	if name == "verify" {
		f.StringVar(&f.keyFile, "key", "", "for a published image: `where` the public key is that its signatures must be of: a file, or env:NAME")
	}
	if name == "compare" {
		f.StringSliceVar(&c.Bases, "bases", c.Bases, "base `images` to compare (default scratch,distroless,alpine,debian,ubi)")
	}
	if name == "image" {
		f.BoolVar(&f.explain, "explain", false, "show layers and the heaviest packages, and draw them in layers.svg and packages.svg")
	}
	if name == "init" {
		f.StringVar(&f.ci, "ci", "", "`service` to write a job for: github, gitlab, or none (default what the repository looks like)")
		f.BoolVar(&f.force, "force", false, "overwrite files that exist")
	}
	if name == "lock" {
		f.BoolVar(&f.update, "update", false, "resolve anew what slipway.lock has pinned")
	}
	return f
}

// optional defines a flag for a setting that may be left open.
func (f *flagSet) optional(b **bool, name, usage string) {
	f.Var(&optionalBool{b}, name, usage)
	f.Lookup(name).NoOptDefVal = "true"
}

type optionalBool struct{ b **bool }

func (o *optionalBool) Type() string { return "bool" }
func (o *optionalBool) String() string {
	if o.b == nil || *o.b == nil {
		return ""
	}
	return strconv.FormatBool(**o.b)
}

func (o *optionalBool) Set(s string) error {
	v, err := strconv.ParseBool(s)
	*o.b = &v
	return err
}

// parse reads the command line and the configuration file of the source that it names. What stands on the
// command line counts.
func parse(c *command, args []string, stdout io.Writer) (*input, error) {
	var config pipelines.Config
	first := newFlagSet(c.name, &config)
	if err := first.Parse(args); errors.Is(err, pflag.ErrHelp) {
		return nil, errors.Join(err, printHelp(stdout, c, first))
	} else if err != nil {
		return nil, flagError(c, first, err)
	}
	in := &input{}
	switch {
	case c.name == "report":
		return in.forReport(first, config.Previous)
	case c.name == "reproduce" || c.name == "explain":
		if err := arguments(c, first.Args()); err != nil {
			return nil, err
		}
		in.records, in.json = first.Args(), first.json
		if c.name == "explain" {
			return in, nil
		}
	case c.name == "verify" && first.NArg() == 1:
		// In a script, an empty one is a variable that was not set. Nothing else may be verified in its place.
		if in.reference, in.rebuild = first.Arg(0), first.Changed("source"); in.reference == "" {
			return nil, fault.Usagef("Is a variable empty?", "verify: the reference is empty")
		}
	case first.NArg() == 0 && c.name == "verify" && first.Changed("key"):
		return nil, fault.Usagef("Write slipway verify REFERENCE --key=...", "--key is for a published image, and none is named")
	case first.NArg() > 0:
		return nil, fault.Usagef("Everything but the command is given as --flag=value.", "%s: unexpected argument %q", c.name, first.Arg(0))
	}
	var err error
	if in.source, err = filepath.Abs(first.source); err != nil {
		return nil, err
	}
	// Paths in the file are relative to it, paths on the command line to the working directory.
	in.origins = pipelines.ConfigOrigins(in.source, config.Profile)
	config, err = pipelines.ReadConfig(in.source, config.Profile)
	if c.name == "reproduce" {
		config, err = in.recorded(first, config.Output)
	}
	if err != nil {
		return nil, err
	}
	f := newFlagSet(c.name, &config)
	if err := f.Parse(args); err != nil {
		return nil, flagError(c, f, err)
	}
	in.output = filepath.Join(in.source, "dist")
	if config.Output != "" {
		in.output, err = filepath.Abs(config.Output)
		if err != nil {
			return nil, err
		}
	}
	if rel, err := filepath.Rel(realPath(in.output), realPath(in.source)); err == nil && filepath.IsLocal(rel) {
		return nil, fault.Usagef("Name a directory of its own: it is replaced with everything in it.", "output: %s holds the source", in.output)
	}
	f.Visit(func(flag *pflag.Flag) {
		if s, ok := flag.Value.(pflag.SliceValue); ok {
			in.given = append(in.given, flag.Name+"="+strings.Join(s.GetSlice(), ","))
		} else {
			in.given = append(in.given, flag.Name+"="+strings.Trim(flag.Value.String(), "[]"))
		}
		in.origins[keyOf(flag.Name)] = "flag"
	})
	if in.reproduction != nil {
		if config, err = in.reproduction.Check(config, f.Changed); err != nil {
			return nil, err
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	config.SetDir(cwd)
	config.Output = ""
	in.config, in.json, in.update, in.ci, in.force, in.explain = config, f.json, f.update, f.ci, f.force, f.explain
	in.dryRun, in.timestamps = f.dryRun, f.timestamps
	for _, name := range []string{"username", "password"} {
		if flag := f.Lookup(name); flag.Changed && flag.Value.String() == "" {
			return nil, fault.Usagef("Is a variable empty?", "--%s names nothing", name)
		}
	}
	if in.credentials, err = credentials(f.username, f.password); err != nil {
		return nil, err
	}
	return in, in.readKeys(f)
}

// readKeys reads the keys to sign and to verify with.
func (in *input) readKeys(f *flagSet) error {
	// Neither may an empty variable sign nothing, or verify with nothing.
	for _, name := range []string{"key", "sign-key", "sign-password"} {
		if flag := f.Lookup(name); flag != nil && flag.Changed && flag.Value.String() == "" {
			return fault.Usagef("Is a variable empty?", "--%s names nothing", name)
		}
	}
	if f.keyFile != "" {
		text, err := readPlace("key", f.keyFile, true, "Name the file of a public key, or env:NAME.")
		if err != nil {
			return err
		}
		if in.key, err = sign.LoadPublicKey(text); err != nil {
			return err
		}
	}
	if f.signKey == "" {
		if f.signPassword != "" {
			return fault.Usagef("Name the key with --sign-key.", "--sign-password without --sign-key")
		}
		return nil
	}
	text, err := readPlace("sign-key", f.signKey, true, "Name the file of a private key, or env:NAME.")
	if err != nil {
		return err
	}
	var password []byte
	if f.signPassword != "" {
		if password, err = readPlace("sign-password", f.signPassword, false, "Use --sign-password=env:NAME or --sign-password=file:PATH."); err != nil {
			return err
		}
		password = bytes.TrimRight(password, "\r\n")
	}
	key, err := sign.LoadKey(text, password)
	if err != nil {
		return err
	}
	in.signer = key
	return nil
}

// readPlace reads what a flag names the place of: env:NAME, file:PATH, or a path where that is no secret.
func readPlace(flag, place string, path bool, next string) ([]byte, error) {
	kind, name, found := strings.Cut(place, ":")
	switch {
	case found && kind == "env":
		if v := os.Getenv(name); v != "" {
			return []byte(v), nil
		}
		return nil, fault.Usagef(next, "--%s: the variable %s is not set", flag, name)
	case found && kind == "file":
		place = name
	case !path:
		return nil, fault.Usagef(next, "--%s takes the place of a password, not the password", flag)
	}
	b, err := os.ReadFile(place)
	if err != nil && strings.Contains(place, "-----BEGIN") {
		return nil, fault.Usagef(next, "--%s takes the place of a key, not the key", flag)
	}
	if err != nil {
		return nil, fault.Usagef(next, "--%s: %v", flag, err)
	}
	return b, nil
}

func flagError(c *command, f *flagSet, err error) error {
	next := "`slipway " + c.name + " --help` lists the flags."
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var names []string
		f.VisitAll(func(flag *pflag.Flag) { names = append(names, "--"+flag.Name) })
		next = fault.Nearest("--"+e.GetSpecifiedName(), names) + " " + next
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		kind := e.GetFlag().Value.Type()
		wanted := map[string]string{"int": "a number", "bool": "true or false", "duration": "a duration such as 30s", "stringToString": "NAME=VALUE", "stringSlice": "a list with commas"}[kind]
		return fault.Usagef(next, "%s: --%s: %q is not %s", c.name, e.GetFlag().Name, e.GetValue(), cmp.Or(wanted, kind))
	}
	return fault.Usagef(next, "%s: %v", c.name, err)
}

// realPath is name without symbolic links, as far as it exists.
func realPath(name string) string {
	if real, err := filepath.EvalSymlinks(name); err == nil {
		return real
	}
	return name
}

// credentials reads the password from where it is kept. On the command line itself every user of the
// machine could read it.
func credentials(username, password string) (pipelines.Credentials, error) {
	c := pipelines.Credentials{Username: username}
	const next = "Use --password=env:NAME or --password=file:PATH with --username, or neither: then the docker configuration and its credential helpers are asked."
	switch {
	case password == "" && username == "":
		return c, nil
	case password == "" || username == "":
		return c, fault.Usagef(next, "--username and --password go together")
	}
	b, err := readPlace("password", password, false, next)
	c.Password = strings.TrimRight(string(b), "\r\n")
	return c, err
}
