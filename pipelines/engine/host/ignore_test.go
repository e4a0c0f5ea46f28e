package host_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGitignoreWithoutGit(t *testing.T) {
	dir := writeTree(t, map[string]string{
		".gitignore": "\uFEFF# a comment\n*.log\n!important.log\n/anchored\nbuild/\ndoc/*.txt\n**/cache/**\n!**/cache/keep\na/**/z\n\\#hash\n\\!bang\nspace\\ \ntrailing   \r\nab[0-9].[!o]\n" +
			"any/*\n!any/where\nnot-last",
		"x.log": "", "important.log": "", "sub/x.log": "", "sub/important.log": "",
		"anchored/file": "", "sub/anchored": "",
		"build/x": "", "sub/build/x": "", "sub2/build": "a file, and the pattern is for directories",
		"doc/a.txt": "", "doc/a.md": "", "doc/deep/a.txt": "the star matches no slash", "sub/doc/a.txt": "a slash anchors",
		"cache/x": "", "sub/cache/x": "", "cache/keep": "",
		"a/z/f": "", "a/b/z": "", "a/b/c/z": "", "z": "",
		"#hash": "", "!bang": "", "space ": "", "space": "", "trailing": "",
		"ab1.c": "", "ab1.o": "", "abx.c": "",
		"any/thing": "", "any/where/x": "",
		"not-last":        "",
		"nest/.gitignore": "!x.log\n/only-here\nimportant.log\n", "nest/x.log": "", "nest/y.log": "", "nest/only-here": "", "nest/deep/only-here": "", "nest/important.log": "",
		"build2/.gitignore": "*\n", "build2/x": "",
		"anchored/.gitignore": "!file\n",
		"itself/.gitignore":   ".gitignore\n", "itself/x": "",
	})
	want := []string{
		"!bang", "#hash", ".gitignore", "ab1.o", "abx.c", "any/where/x", "cache/keep", "doc/a.md", "doc/deep/a.txt", "important.log", "itself/x", "nest/.gitignore",
		"nest/deep/only-here", "nest/x.log", "space", "sub/anchored", "sub/doc/a.txt", "sub/important.log", "sub2/build", "z",
	}
	want = want[2:] // the first two are ignored: a backslash makes their signs plain
	assert.Equal(t, want, names(t, dir))
	needGit(t)
	git(t, dir, "init", "-q")
	assert.Equal(t, want, names(t, dir), "with git")
}

// The same trees, listed with and without git. There is a .gitignore of random patterns in each of many
// directories, over files whose names the patterns often match.
func TestListingsAgree(t *testing.T) {
	needGit(t)
	if runtime.GOOS == "windows" {
		t.Skip("Windows does not allow these names")
	}
	pieces := []string{"a", "b", "c", "ab", ".", "*", "*", "**", "***", "***/", "?", "/", "/", "/**/", "**/", "/**", "/*", "[ab]", "[!a]", "[^b]", "[a-c]", "[c-a]", "[]a]", "[!]]", "[a-]", "[-a]", "[",
		"[a", "[[:alpha:]]", "[[:upper:][:digit:]]", "[[:nothing:]]", "[[:a]", "[\\]]", "[a\\-c]", "\\", "\\a", "\\*", "\\/", " ", "\\ ", "#", "!", "é", "[é]", "\t"}
	elements := []string{"a", "b", "c", "ab", "aab", "a.b", ".a", "a b", " a", "a ", "*", "**", "[", "[a", "]", "-", "\\", "\\a", "#", "#a", "!a", "é", "A", "1", "a\t", "^", "["}
	seeds := 1
	if s := os.Getenv("SEEDS"); s != "" { // a longer search: SEEDS=1000 go test -run=TestListingsAgree
		_, err := fmt.Sscan(s, &seeds)
		require.NoError(t, err)
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			element := func() string { return elements[r.IntN(len(elements))] }
			dir := t.TempDir()
			for i := range 80 {
				root := filepath.Join(dir, fmt.Sprintf("d%03d", i))
				rules := ""
				for range 1 + r.IntN(4) {
					if r.IntN(4) == 0 {
						rules += "!"
					}
					for range 1 + r.IntN(4) {
						rules += pieces[r.IntN(len(pieces))]
					}
					rules += []string{"\n", "\n", "\n", "/\n", " \n", "\r\n", ""}[r.IntN(7)]
				}
				write(t, filepath.Join(root, ".gitignore"), rules)
				for range 15 {
					name := element()
					for range r.IntN(3) {
						name = path.Join(name, element())
					}
					// What is a directory already, or lies below a file, is left out.
					file := filepath.Join(root, filepath.FromSlash(name))
					if os.MkdirAll(filepath.Dir(file), 0o755) == nil {
						_ = os.WriteFile(file, nil, 0o644)
					}
				}
			}
			without := names(t, dir)
			git(t, dir, "init", "-q")
			with := names(t, dir)
			require.Greater(t, len(with), 300)
			byDir := func(all []string) map[string][]string {
				m := map[string][]string{}
				for _, name := range all {
					top, rest, _ := strings.Cut(name, "/")
					m[top] = append(m[top], rest)
				}
				return m
			}
			a, b := byDir(with), byDir(without)
			for i := range 80 {
				d := fmt.Sprintf("d%03d", i)
				rules, err := os.ReadFile(filepath.Join(dir, d, ".gitignore"))
				require.NoError(t, err)
				assert.Equal(t, a[d], b[d], "with git and without, .gitignore %q", rules)
			}
		})
	}
}
