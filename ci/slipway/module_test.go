package main

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
)

// TestModulesFitTogether compares what is written in more than one place, as far as no engine is needed to tell:
// versions, and the generated code with what it was generated from.
func TestModulesFitTogether(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	var root struct {
		Name, EngineVersion, Source string
	}
	require.NoError(t, json.Unmarshal(readFile(t, "dagger.json"), &root))
	assert.Equal(t, "slipway", root.Name)
	assert.Equal(t, "modules/slipway", root.Source)
	goMod := readGoMod(t)
	versions := requirements(goMod)
	assert.Equal(t, root.EngineVersion, versions["dagger.io/dagger"], "go.mod and dagger.json")

	own := moduleFunctions(t, "modules/slipway")
	for _, dir := range []string{"modules/example", "modules/tests"} {
		var m struct {
			EngineVersion string
			Dependencies  []struct{ Name, Source string }
		}
		require.NoError(t, json.Unmarshal(readFile(t, dir+"/dagger.json"), &m))
		assert.Equal(t, root.EngineVersion, m.EngineVersion, dir)
		require.Len(t, m.Dependencies, 1, dir)
		assert.Equal(t, "../..", m.Dependencies[0].Source, dir)

		// What others call was generated from the module as it is.
		generated := moduleFunctions(t, dir)
		const stale = "%s is stale: dagger develop -m %s"
		assert.Equal(t, own[""][""].args, generated["dagger.Query"]["slipway"].args, stale, dir, dir)
		for typ, name := range map[string]string{"Slipway": "dagger.Slipway", "Result": "dagger.SlipwayResult"} {
			require.NotEmpty(t, own[typ])
			for function, f := range own[typ] {
				if strings.HasSuffix(function, "marshal-json") {
					continue
				}
				g, ok := generated[name][function]
				if assert.True(t, ok, "%s has no %s: "+stale, name, function, dir, dir) {
					assert.True(t, maps.Equal(f.args, g.args), "arguments of %s: "+stale, function, dir, dir)
				}
			}
		}
	}

	dispatch := string(readFile(t, "modules/slipway/dagger.gen.go"))
	for _, typ := range []string{"Slipway", "Result"} {
		_, cases, ok := strings.Cut(dispatch, `case "`+typ+`":`)
		require.True(t, ok)
		for function, f := range own[typ] {
			if f.args != nil && !strings.HasSuffix(function, "marshal-json") { // those two are generated
				assert.True(t, strings.Contains(cases, `case "`+camel(function)+`":`), "no %s: modules/slipway is stale: dagger develop", function)
			}
		}
	}

	// The module is compiled from this repository, with the versions that this repository was tested with.
	f, err := modfile.Parse("go.mod", readFile(t, "modules/slipway/go.mod"), nil)
	require.NoError(t, err)
	assert.Equal(t, goMod.Go.Version, f.Go.Version)
	require.NotEmpty(t, f.Replace)
	assert.Equal(t, goMod.Module.Mod.Path, f.Replace[0].Old.Path)
	assert.Equal(t, "../..", f.Replace[0].New.Path)
}

func requirements(f *modfile.File) map[string]string {
	versions := map[string]string{}
	for _, r := range f.Require {
		versions[r.Mod.Path] = r.Mod.Version
	}
	return versions
}

// camel is the name of a Go function that the command line calls by a name in kebab case.
func camel(name string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(name, "-") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}
