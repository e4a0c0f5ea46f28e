package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

// repository is its root, made absolute because scripts run elsewhere.
var repository = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// pages are README and docs, by their names relative to the repository's root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	names, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	for _, name := range append(names, "../../README.md") {
		text, err := os.ReadFile(name)
		require.NoError(t, err)
		all[strings.TrimPrefix(filepath.ToSlash(name), "../../")] = string(text)
	}
	require.Greater(t, len(all), 10)
	return all
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

// Every link within the repository leads somewhere, and every page is reached from another.
func TestDocsLinks(t *testing.T) {
	linked := map[string]bool{"README.md": true}
	for name, text := range pages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target := filepath.ToSlash(filepath.Join(filepath.Dir(name), m[1]))
			_, err := os.Stat(filepath.Join("../..", target))
			require.NoError(t, err, "%s links to %s", name, m[1])
			linked[target] = true
		}
	}
	for name := range pages(t) {
		require.True(t, linked[name], "nothing leads to %s", name)
	}
}

// block is a block of code in a page.
type block struct {
	lines  []string
	remote bool // needs a service that tests cannot reach
}

// blocks are those of a page: lines with four spaces or more before them. One after a comment
// "<!-- remote: WHY -->" is marked, and so is a line that ends in "# remote: WHY".
func blocks(text string) []block {
	var all []block
	open, remote := false, false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "    "):
			if !open {
				all = append(all, block{remote: remote})
			}
			open = true
			last := &all[len(all)-1]
			last.lines = append(last.lines, line)
		case strings.TrimSpace(line) != "":
			open, remote = false, strings.HasPrefix(line, "<!-- remote: ")
		default:
			open = false
		}
	}
	return all
}

// isCommands tells whether the block is what a person types. (make run is what the script all does, and cosign's commands
// are in the script of that name.)
func (b block) isCommands() bool {
	first, _, _ := strings.Cut(strings.TrimSpace(b.lines[0]), " ")
	return !strings.Contains(b.lines[0], ": passed in ") && slices.Contains([]string{"slipway", "go", "cd", "sha256sum", "openssl", "dagger"}, first)
}

// script is what of the block can be executed.
func (b block) script() string {
	var s strings.Builder
	for _, line := range b.lines {
		if !b.remote && !strings.Contains(line, "# remote: ") {
			s.WriteString(line + "\n")
		}
	}
	return s.String()
}

// executePage executes the commands of a page in the working directory, one block after the other. The registry of
// the docs is $REGISTRY, and LAYER in them is $LAYER. Further arguments CODE=COMMAND name commands that end with another code than 0.
func executePage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: page NAME [CODE=COMMAND...]")
	}
	text, err := os.ReadFile(filepath.Join(repository, args[0]))
	ts.Check(err)
	replace := []string{"registry.example/", ts.Getenv("REGISTRY") + "/", "cd your-program", "true"}
	if layer := ts.Getenv("LAYER"); layer != "" {
		replace = append(replace, "LAYER", strings.TrimPrefix(layer, "sha256:"))
	}
	n := 0
	for _, b := range blocks(string(text)) {
		script := strings.NewReplacer(replace...).Replace(b.script())
		if !b.isCommands() || strings.TrimSpace(script) == "" {
			continue
		}
		for _, a := range args[1:] {
			code, command, _ := strings.Cut(a, "=")
			expected := "    " + command
			if strings.Contains(script, expected) {
				script = strings.ReplaceAll(script, expected, "    ends "+code+" "+command)
			}
		}
		n++
		const prelude = `set -eu -o pipefail
ends() { code=$1; shift; got=0; "$@" || got=$?; [ "$got" = "$code" ] || { echo "exit code $got of: $*"; exit 1; }; }
set -v
`
		if err := ts.Exec("bash", "-c", prelude+script); err != nil {
			ts.Fatalf("%s: %v in\n%s", args[0], err, script)
		}
	}
	if n == 0 {
		ts.Fatalf("%s has no commands that can be executed", args[0])
	}
}

var inline = regexp.MustCompile("`(slipway [a-z][^`]*)`")

// Every command in the docs is one that slipway understands, and every page with commands is executed by a script.
func TestDocsCommands(t *testing.T) {
	var scripts strings.Builder
	names, err := filepath.Glob("testdata/script/*.txtar")
	require.NoError(t, err)
	for _, name := range names {
		b, err := os.ReadFile(name)
		require.NoError(t, err)
		scripts.Write(b)
	}
	n := 0
	for name, text := range pages(t) {
		executable := false
		var lines []string
		for _, b := range blocks(text) {
			if b.isCommands() {
				executable = executable || b.script() != ""
				lines = append(lines, b.lines...)
			}
		}
		for _, m := range inline.FindAllStringSubmatch(text, -1) {
			lines = append(lines, m[1])
		}
		for _, line := range lines {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
			line, _, _ = strings.Cut(line, " | ")
			line, _, _ = strings.Cut(line, " > ")
			words := strings.Fields(line)
			if len(words) < 2 || words[0] != "slipway" || strings.HasPrefix(words[1], "--") {
				continue
			}
			n++
			c := find(words[1])
			require.NotNil(t, c, "%s: %s", name, line)
			var config pipelines.Config
			if err := newFlagSet(c.name, &config).Parse(words[2:]); !errors.Is(err, pflag.ErrHelp) {
				require.NoError(t, err, "%s: %s", name, line)
			}
		}
		if executable {
			require.Contains(t, scripts.String(), "\npage "+name, "no script executes the commands of this page")
		}
	}
	require.Greater(t, n, 20)
}

// Settings in the docs are ones that slipway takes.
func TestDocsSettings(t *testing.T) {
	n := 0
	for name, text := range pages(t) {
		for _, b := range blocks(text) {
			yaml := strings.Join(b.lines, "\n") + "\n"
			if key, _, ok := strings.Cut(strings.TrimSpace(b.lines[0]), ":"); !ok || !slices.Contains(configKeys(), key) {
				continue
			}
			n++
			indent := len(b.lines[0]) - len(strings.TrimLeft(b.lines[0], " "))
			yaml = strings.ReplaceAll("\n"+yaml, "\n"+strings.Repeat(" ", indent), "\n")
			_, err := pipelines.ParseConfig("slipway.yaml", []byte(yaml), "")
			require.NoError(t, err, "%s:%s", name, yaml)
		}
	}
	require.Greater(t, n, 5)
}

// configKeys are the keys of slipway.yaml at the top, as the reference has them.
func configKeys() []string {
	text, err := os.ReadFile(filepath.Join(repository, "docs/configuration.md"))
	if err != nil {
		panic(err)
	}
	var keys []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		keys = append(keys, m[1])
	}
	return keys
}

// Every message that has a place in the troubleshooting page is one that the code still prints.
func TestTroubleshooting(t *testing.T) {
	text, err := os.ReadFile("../../docs/troubleshooting.md")
	require.NoError(t, err)
	var code strings.Builder
	for _, dir := range []string{"../../pipelines", "../../ci"} {
		require.NoError(t, filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			b, err := os.ReadFile(name)
			code.Write(b)
			return err
		}))
	}
	// Of the system, not of slipway.
	others := []string{"no space left on device"}
	headings := regexp.MustCompile("(?m)^## `(.+)`$").FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(headings), 10)
	for _, h := range headings {
		message := strings.ReplaceAll(regexp.QuoteMeta(h[1]), "…", "%[a-z]") // where something else stands each time
		require.True(t, slices.Contains(others, h[1]) || regexp.MustCompile(message).MatchString(code.String()), "no code prints %q", h[1])
	}
}
