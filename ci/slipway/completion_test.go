package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

// What completion offers are flags that exist and values that they take.
func TestCompletionValues(t *testing.T) {
	all := allFlags()
	for name, values := range flagValues {
		i := slices.IndexFunc(all, func(f *pflag.Flag) bool { return f.Name == name })
		require.GreaterOrEqual(t, i, 0, name)
		for _, v := range values {
			require.NotContains(t, v, " ", name)
			require.NotContains(t, v, ",", name)
			require.NoError(t, all[i].Value.Set(v), name)
		}
	}
	for _, name := range directoryFlags {
		require.True(t, slices.ContainsFunc(all, func(f *pflag.Flag) bool { return f.Name == name }), name)
	}
	for _, text := range flagValues["platforms"] {
		p, err := pipelines.ParsePlatform(text)
		require.NoError(t, err)
		require.True(t, p.String() == text, "%s is %s", text, p)
	}
}

// Bash is asked as it asks when somebody presses the tab key: it has taken words apart at equals signs and colons.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	script := bashCompletion() + `
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_slipway slipway "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
echo "${COMPREPLY[*]}"
`
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "sources"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "slipway.log"), nil, 0o644))
	for _, c := range []struct{ words, want string }{
		{"slipway publ", "publish"},
		{"slipway he", "help"},
		{"slipway x", ""},
		{"slipway publish --dry", "--dry-run"},
		{"slipway vet --dry", ""},
		{"slipway lock --up", "--update"},
		{"slipway vet --eng", "--engine="},
		{"slipway vet --ra", "--race"},
		{"slipway vet --he", "--help"},
		{"slipway vet --engine =", "host dagger"},
		{"slipway vet --engine = d", "dagger"},
		{"slipway vet --engine d", "dagger"},
		{"slipway build --platforms = linux/amd64,linux/arm6", "linux/amd64,linux/arm64"},
		{"slipway build --vuln = re", "require"},
		{"slipway build --to = oc", "oci:"},
		{"slipway build --source = so", "sources"},
		{"slipway build --source sl", ""},
		{"slipway build --previous = sl", "slipway.log"},
		{"slipway build --race sl", "slipway.log"},
		{"slipway completion b", "bash"},
		{"slipway completion --s", ""},
		{"slipway help pub", "publish"},
	} {
		cmd := exec.Command(bash, append([]string{"--norc", "-c", script, "bash"}, strings.Fields(c.words)...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", c.words, out)
		require.Equal(t, c.want, strings.TrimSpace(string(out)), c.words)
	}
}

// Every command and flag is in every script, and the shells take them.
func TestCompletionScripts(t *testing.T) {
	for shell, text := range map[string]string{"bash": bashCompletion(), "zsh": zshCompletion(), "fish": fishCompletion()} {
		t.Run(shell, func(t *testing.T) {
			for _, c := range completable() {
				require.Contains(t, text, c.name)
			}
			for _, f := range allFlags() {
				dashes := "--"
				if shell == "fish" {
					dashes = "-l "
				}
				require.Contains(t, text, dashes+f.Name)
			}
			program, err := exec.LookPath(shell)
			if err != nil {
				t.Skipf("%s is not installed", shell)
			}
			cmd := exec.Command(program, "-n")
			cmd.Stdin = strings.NewReader(text)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Empty(t, string(out))
		})
	}
}

// Help fits a terminal of ordinary width, whatever is in it, and has every flag once or says that it is of no use.
func TestHelp(t *testing.T) {
	for _, c := range commands {
		var b strings.Builder
		var config pipelines.Config
		var f *flagSet
		if !c.plain() {
			f = newFlagSet(c.name, &config)
		}
		require.NoError(t, printHelp(&b, &c, f))
		require.NotEmpty(t, c.example, c.name)
		require.Contains(t, b.String(), c.example)
		for line := range strings.Lines(b.String()) {
			if line = strings.TrimSuffix(line, "\n"); !strings.Contains(line, c.example) {
				require.LessOrEqual(t, len(line), helpWidth, "%s: %s", c.name, line)
				require.Equal(t, strings.TrimRight(line, " "), line, c.name)
			}
		}
		for _, flag := range completionFlags(&c) {
			i := slices.IndexFunc(flagGroups, func(g flagGroup) bool { return slices.Contains(g.flags, flag.Name) })
			if i >= 0 && slices.Contains(flagGroups[i].unused, c.name) {
				require.NotContains(t, b.String(), "\n  --"+flag.Name+"=", c.name)
				continue
			}
			n := strings.Count(b.String(), "\n  --"+flag.Name+"=") + strings.Count(b.String(), "\n  --"+flag.Name+" ")
			require.Equal(t, 1, n, "%s --%s", c.name, flag.Name)
		}
	}
	for name := range about {
		require.NotNil(t, find(name), name)
	}
	for _, g := range flagGroups {
		for _, name := range g.unused {
			require.NotNil(t, find(name), name)
		}
		for _, name := range g.flags {
			require.True(t, slices.ContainsFunc(allFlags(), func(f *pflag.Flag) bool { return f.Name == name }), name)
		}
	}
}
