package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// about says more of commands than their summaries.
var about = map[string]string{
	"all": "Runs plan, vet, test, build, verify, image, smoke and attest, and publish if there is a place for it. The first bad verdict ends the run, but findings of vet " +
		"do not keep the tests from running. Everything is written to dist/, and the record of it is dist/run.json.",
	"vet":       "Each finding has a file and a line. gofmt, the module files and vendor/ are checked once, with the newest release.",
	"test":      "JUnit, JSON and coverage are written to dist/ also when tests fail. A test that fails under one release only is named first.",
	"vuln":      "Asks a vulnerability database which known ones the program can reach. A directory with a copy of the database needs no network.",
	"build":     "With -trimpath, and without cgo unless told otherwise. The flags are read back from each binary. Archives and SHA256SUMS have the same bytes on every machine.",
	"verify":    "Builds everything a second time, elsewhere and from nothing, and compares. With a REFERENCE it checks a published image instead: content, signatures, provenance, SBOM and labels; --source builds it anew to compare.",
	"image":     "One OCI layout in dist/image with an index for all platforms, byte for byte the same on every machine.",
	"smoke":     "The image runs under its own user, read-only, without network and capabilities. The probes are in slipway.yaml; " + pipelines.DocsURL + "smoke.md has them all.",
	"attest":    "An SBOM for each platform and provenance of the image, in dist/. With a key, they and the image are signed so that cosign accepts them.",
	"publish":   "Everything is verified before the first byte travels, blobs and manifests are read back, and tags move last. A full version (1.4.2) or commit (sha-...) is never moved to other content. A place without a tag gets the tags of the block `publish` in slipway.yaml; " + pipelines.DocsURL + "publishing.md has it all.",
	"deps":      "Lists what the programs were linked from, and what makes them heavy.",
	"compare":   "Makes an image on each base and puts them side by side. Nothing is published.",
	"kube":      "Prints a Deployment and a Service for what the smoke run has seen: ports, user, memory, probes.",
	"reproduce": "Takes the settings, lock and order of tests of the record, checks its commit out elsewhere if it is not the tree at hand, and runs the stages that failed. Flags that are given count more. RECORD is a run.json, - or oci:DIR.",
	"explain":   "Shows the inputs that differ, the outputs that differ, and the chain from one to the other. An output that changed without a reason is a defect: exit code 1. A and B are run.json files or oci:DIR.",
	"report": "One file that needs nothing beside it, for browsers, paper and screen readers. Every run writes it to dist/; this does it anew, from the record and what lies beside it. " +
		"Excerpts of the source are in it where --source is the recorded one. With two records, the page says what differs.",
	"init": "Both files are commented and say what was found. Neither is needed: slipway works without them.",
	"plan": "Shows modules, Go releases, commands and platforms. Nothing is built.",
	"lock": "Without --update, only what is not pinned yet is resolved. Commit slipway.lock, so that every machine uses the same.",
	"doctor": "Each check is ok, not here (the configuration in force has no need of it), or broken (it has), with what to do about it. The exit code is 3 if anything " +
		"is broken. Nothing is changed, and no secret is shown.",
	"completion": "SHELL is bash, zsh or fish. The output is a script for that shell: load it from its start-up file, or put it where it keeps completions.",
	"version":    "The version, commit and Go release that are in the program itself.",
}

// flagGroup is what belongs together in help. unused are the commands that take its flags and make no use of them.
type flagGroup struct {
	title  string
	flags  []string
	unused []string
}

var (
	noImage    = []string{"vet", "test", "vuln", "build", "deps", "init"}
	flagGroups = []flagGroup{
		{"Source and output", []string{"source", "profile", "engine", "go-image", "output", "fresh", "parallel", "json", "timestamps"}, nil},
		{"What to test and build", []string{"go-versions", "platforms", "modules", "packages", "commands", "tags", "ldflags", "race", "cgo", "shuffle", "count", "timeout", "vet-checks", "rebuild"}, nil},
		{"Known vulnerabilities", []string{"vuln", "vuln-mode", "vuln-db"}, []string{"vet", "test", "build", "verify", "image", "smoke", "attest", "publish", "deps", "compare", "kube", "init", "lock", "doctor"}},
		{"Base image", []string{"base"}, slices.DeleteFunc(slices.Clone(noImage), func(c string) bool { return c == "build" })}, // which decides whether programs may be linked dynamically
		{"Image", []string{"mirrors", "entrypoint", "args", "user", "env", "ports", "volumes", "working-dir", "stop-signal", "capabilities", "labels", "certificates", "timezones", "accounts", "tmp",
			"format", "compression", "size-limit", "layer-limit", "previous"}, noImage},
		{"Smoke run", []string{"smoke", "repeat"}, append([]string{"verify", "image", "attest", "lock"}, noImage...)},
		{"Publish and sign", []string{"to", "dry-run", "username", "password", "sign-key", "sign-password"}, append([]string{"image", "smoke", "compare", "lock"}, noImage...)},
	}
)

const helpWidth = 80

func printUsage(w io.Writer) error {
	var b strings.Builder
	b.WriteString("slipway tests, builds, verifies, packs, tries and publishes a Go program.\n\nUsage: slipway COMMAND [--flag=value ...]\n\n")
	width := 0
	for _, c := range commands {
		width = max(width, len(c.name))
	}
	for _, c := range commands {
		hang(&b, 2, width+4, c.name, c.summary)
	}
	b.WriteByte('\n')
	hang(&b, 0, 0, "", "Each stage runs the ones that it needs: vet, test and vuln stand alone, then build, verify, image, smoke, attest, publish. "+
		"Settings are also keys of slipway.yaml, most under the name of the flag ("+pipelines.DocsURL+"configuration.md). `slipway help COMMAND` tells more and lists the flags.")
	b.WriteByte('\n')
	hang(&b, 0, 0, "", exitCodes)
	_, err := io.WriteString(w, b.String())
	return err
}

const exitCodes = "Exit codes: 0 good, 1 a stage failed, 2 wrong usage or configuration, 3 the environment failed, 130 interrupted."

func printHelp(w io.Writer, c *command, f *flagSet) error {
	var b strings.Builder
	hang(&b, 0, 2, "", "slipway "+c.name+": "+c.summary)
	if text := about[c.name]; text != "" {
		b.WriteByte('\n')
		hang(&b, 0, 0, "", text)
	}
	argument := map[string]string{"verify": "[REFERENCE] ", "completion": "SHELL ", "reproduce": "RECORD ", "explain": "A B ", "report": "RECORD [RECORD] "}[c.name]
	flags := "[--flag=value ...]"
	if f == nil {
		flags = ""
	}
	fmt.Fprintf(&b, "\nUsage:\n  %s\n\nExample:\n  %s\n", strings.TrimSpace("slipway "+c.name+" "+argument+flags), c.example)
	if f == nil {
		_, err := io.WriteString(w, b.String())
		return err
	}
	own := flagGroup{title: "Of this command alone"}
	f.VisitAll(func(flag *pflag.Flag) {
		if !slices.ContainsFunc(flagGroups, func(g flagGroup) bool { return slices.Contains(g.flags, flag.Name) }) {
			own.flags = append(own.flags, flag.Name)
		}
	})
	var unused []string
	for _, g := range append([]flagGroup{own}, flagGroups...) {
		if slices.Contains(g.unused, c.name) {
			unused = append(unused, strings.ToLower(g.title[:1])+g.title[1:])
		} else {
			g.write(&b, f)
		}
	}
	if len(unused) > 0 {
		b.WriteByte('\n')
		hang(&b, 0, 0, "", "Flags for other commands ("+strings.Join(unused, ", ")+") are taken and make no difference here.")
	}
	b.WriteByte('\n')
	hang(&b, 0, 0, "", "Lists are given with commas. "+exitCodes)
	_, err := io.WriteString(w, b.String())
	return err
}

func (g flagGroup) write(b *strings.Builder, f *flagSet) {
	title := "\n" + g.title + ":\n"
	for _, name := range g.flags {
		flag := f.Lookup(name)
		if flag == nil {
			continue // it is another command's
		}
		b.WriteString(title)
		title = ""
		argument, usage := pflag.UnquoteUsage(flag)
		if flag.NoOptDefVal == "" {
			argument = "=" + argument
		} else {
			argument = ""
		}
		if flag.DefValue == "." {
			usage += " (default .)"
		}
		hang(b, 2, 28, "--"+name+argument, usage)
	}
}

// hang writes a head, indented, and a text that begins beside it and is wrapped at column.
func hang(b *strings.Builder, indent, column int, head, text string) {
	line := strings.Repeat(" ", indent) + head
	if len(line) > column-2 && head != "" {
		b.WriteString(line + "\n")
		line = ""
	}
	if head != "" {
		line = report.Pad(line, column)
	}
	space := ""
	for word := range strings.FieldsSeq(text) {
		if space != "" && len(line)+1+len(word) > helpWidth {
			b.WriteString(line + "\n")
			line, space = strings.Repeat(" ", column), ""
		}
		line += space + word
		space = " "
	}
	b.WriteString(line + "\n")
}
