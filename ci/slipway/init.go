package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/ci"
	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

var ciServices = []string{"github", "gitlab", "none"}

// initTargets are the names of the files that init writes: the configuration and, unless service is none, the job.
// Those that exist are kept, unless they may be overwritten. That nothing is left to write is an error.
func initTargets(in *input) (service string, names, kept []string, err error) {
	if service = in.ci; service == "" {
		service = ciService(in.source)
	}
	names = []string{pipelines.ConfigFile}
	switch service {
	case "none":
	case "github":
		names = append(names, ".github/workflows/slipway.yml")
	case "gitlab":
		job := ".gitlab-ci.yml"
		if text, err := os.ReadFile(filepath.Join(in.source, job)); err == nil && !strings.HasPrefix(string(text), jobHeader) {
			job = includedJob
		}
		names = append(names, job)
	default:
		return "", nil, nil, fault.Usagef(fault.Nearest(service, ciServices), "ci: there is no file for %q", service)
	}
	if in.force {
		return service, names, nil, nil
	}
	var missing []string
	for _, name := range names {
		if exists(in.source, name) {
			kept = append(kept, name)
		} else {
			missing = append(missing, name)
		}
	}
	if len(missing) == 0 {
		return "", nil, nil, fault.Usagef("--force overwrites what exists.", "%s: there already; nothing was written", strings.Join(kept, ", "))
	}
	return service, missing, kept, nil
}

// jobHeader is what the jobs begin with that init writes.
const jobHeader = "# slipway "

// includedJob is for repositories of GitLab with a pipeline of their own, which includes it.
const includedJob = ".gitlab/slipway.yml"

// initialise writes a configuration for what the plan has found, and a CI job.
func initialise(w io.Writer, in *input, p *pipelines.Pipeline) error {
	service, names, kept, err := initTargets(in)
	if err != nil {
		return err
	}
	for _, name := range kept {
		fmt.Fprintln(w, "kept    ", name)
	}
	for _, name := range names {
		text := configText(p)
		if name != pipelines.ConfigFile {
			if text, err = ci.File(service, in.config.Engine); err != nil {
				return err
			}
		}
		path := filepath.Join(in.source, filepath.FromSlash(name))
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			err = os.WriteFile(path, text, 0o644)
		}
		if err != nil {
			return fault.Environmentf(err, "The source directory must be writable for this.", "%s cannot be written", name)
		}
		fmt.Fprintln(w, "written ", name)
	}
	if err := ignoreOutput(w, in); err != nil {
		return err
	}
	if slices.Contains(names, includedJob) {
		fmt.Fprint(w, "\nAdd to .gitlab-ci.yml:\n\n  include:\n    - local: "+includedJob+"\n")
	}
	_, err = fmt.Fprintf(w, "\nNext: commit %s and %s, and run `slipway all`\n", strings.Join(names, ", "), pipelines.LockFile)
	return err
}

func exists(dir, name string) bool {
	_, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(name)))
	return !errors.Is(err, fs.ErrNotExist)
}

// ignoreOutput keeps what runs write out of git.
func ignoreOutput(w io.Writer, in *input) error {
	if !exists(in.source, ".git") || in.config.Output != "" {
		return nil
	}
	name := filepath.Join(in.source, ".gitignore")
	text, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Environmentf(err, "", ".gitignore")
	}
	add := ""
	for _, dir := range []string{"dist", "dist.passed"} {
		if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool { return strings.Trim(strings.TrimSpace(line), "/") == dir }) {
			add += "/" + dir + "/\n"
		}
	}
	if add == "" {
		return nil
	}
	if len(text) > 0 && !strings.HasSuffix(string(text), "\n") {
		add = "\n" + add
	}
	if err := os.WriteFile(name, append(text, add...), 0o644); err != nil {
		return fault.Environmentf(err, "The source directory must be writable for this.", ".gitignore cannot be written")
	}
	_, err = fmt.Fprintln(w, "written  .gitignore")
	return err
}

// ciService guesses where a repository is kept.
func ciService(source string) string {
	switch {
	case exists(source, ".gitlab-ci.yml"), exists(source, ".gitlab"):
		return "gitlab"
	case exists(source, ".github"):
		return "github"
	}
	remotes, _ := os.ReadFile(filepath.Join(source, ".git", "config"))
	if strings.Contains(string(remotes), "gitlab") {
		return "gitlab"
	}
	return "github"
}

// configText is a slipway.yaml that says what differs from the defaults, and shows the rest.
func configText(p *pipelines.Pipeline) []byte {
	var b strings.Builder
	var releases, commands []string
	for _, r := range p.Plan.Releases {
		releases = append(releases, r.Exact)
	}
	for _, c := range p.Plan.Commands {
		commands = append(commands, c.Name)
	}
	b.WriteString("# slipway works without this file. All keys:\n# " + pipelines.DocsURL + "configuration.md\n\n# Defaults:\n")
	fmt.Fprintf(&b, "# go-versions: [minimum, oldstable, stable] # now %s; slipway.lock pins them\n", strings.Join(releases, ", "))
	fmt.Fprintf(&b, "# platforms: [%s]\n", strings.Join(p.Record.Platforms, ", "))
	if len(commands) == 0 {
		b.WriteString("\n# There is no main package: `slipway vet` and `slipway test` are for libraries.\n")
	} else {
		b.WriteString("# base: scratch\n")
		if len(commands) > 1 && !slices.Contains(commands, p.Plan.Name) {
			fmt.Fprintf(&b, "\n# What the image starts, of %s.\nentrypoint: %s\n", strings.Join(commands, ", "), commands[0])
		}
		b.WriteString(`
# Examples:
# ports: ["8080"]
# smoke:
#   isolation: auto # process where a machine cannot isolate images, off to try none
#   probes:
#     - args: [--version]
#     - http: /healthz
# to: [registry.example/team/` + p.Plan.Name + `]
# publish: {tags: [semver, commit, branch], latest: main}
`)
	}
	return []byte(b.String())
}
