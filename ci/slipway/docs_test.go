package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

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

// docCommands are the slipway commands in blocks of code.
func docCommands(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		command := strings.TrimLeft(line, " ")
		if len(line)-len(command) < 4 || !strings.HasPrefix(command, "slipway ") {
			continue
		}
		command, _, _ = strings.Cut(command, " #")
		command, _, _ = strings.Cut(command, " | ")
		command, _, _ = strings.Cut(command, " > ")
		all = append(all, strings.TrimSpace(command))
	}
	return all
}

// Every command in the docs is one that slipway understands.
func TestDocsCommands(t *testing.T) {
	n := 0
	for name, text := range pages(t) {
		for _, line := range docCommands(text) {
			if strings.Contains(line, ": passed in ") || strings.Contains(line, "…") {
				continue // output, and what is left to the reader
			}
			n++
			words := strings.Fields(line)
			c := find(words[1])
			require.NotNil(t, c, "%s: %s", name, line)
			var config pipelines.Config
			require.NoError(t, newFlagSet(c.name, &config).Parse(words[2:]), "%s: %s", name, line)
		}
	}
	require.Greater(t, n, 20)
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
		require.True(t, slices.Contains(others, h[1]) || strings.Contains(code.String(), h[1]), "no code prints %q", h[1])
	}
}
