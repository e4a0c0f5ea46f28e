package deps

import (
	"encoding/json"
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDuplicates(t *testing.T) {
	require.Equal(t, []Duplicate{
		{"example.com/app", []Version{{"example.com/app", "v1.9.0"}, {"example.com/app/v2", ""}}},
		{"example.com/lib", []Version{{"example.com/lib", "v7.0.0+incompatible"}, {"example.com/lib/v9", "v9.0.1"}, {"example.com/lib/v10", "v10.2.0"}}},
		{"gopkg.in/yaml", []Version{{"gopkg.in/yaml.v2", "v2.4.0"}, {"gopkg.in/yaml.v3", "v3.0.2"}}},
	}, Duplicates(&debug.BuildInfo{
		Main: debug.Module{Path: "example.com/app/v2", Version: "(devel)"},
		Deps: []*debug.Module{
			{Path: "example.com/lib/v10", Version: "v10.2.0"},
			{Path: "example.com/lib", Version: "v7.0.0+incompatible"},
			{Path: "example.com/lib/sub", Version: "v1.0.0"},
			{Path: "example.com/lib/v9", Version: "v9.0.1"},
			{Path: "example.com/app", Version: "v1.9.0"},
			{Path: "example.com/single/v3", Version: "v3.1.0"},
			{Path: "gopkg.in/yaml.v3", Version: "v3.0.1", Replace: &debug.Module{Path: "example.com/fork/v3", Version: "v3.0.2"}},
			{Path: "gopkg.in/yaml.v2", Version: "v2.4.0"},
			{Path: "go.yaml.in/yaml/v3", Version: "v3.0.4"},
		},
	}))
	out, err := json.Marshal(Duplicates(&debug.BuildInfo{}))
	require.NoError(t, err)
	require.Equal(t, "[]", string(out))
}

func TestUnlinked(t *testing.T) {
	gomod := []byte(`module example.com/app

go 1.99

somethingnew x

require (
	example.com/used v1.0.0
	example.com/replaced v1.0.0
	example.com/zz-tests v1.0.0
	example.com/aa-tools v1.0.0 // a comment
)

require (
	example.com/used-indirectly v1.0.0 // indirect
	example.com/graph v1.0.0 // indirect
)

replace example.com/replaced => ../replaced
`)
	windows := &debug.BuildInfo{Deps: []*debug.Module{{Path: "example.com/used-indirectly"}}}
	linux := &debug.BuildInfo{Deps: []*debug.Module{
		{Path: "example.com/used", Version: "v1.0.0"},
		{Path: "example.com/replaced", Version: "v1.0.0", Replace: &debug.Module{Path: "../replaced"}},
	}}
	all, err := Unlinked(gomod, windows, linux)
	require.NoError(t, err)
	require.Equal(t, []Requirement{
		{"example.com/aa-tools", "v1.0.0", false, unusedMeaning},
		{"example.com/zz-tests", "v1.0.0", false, unusedMeaning},
		{"example.com/graph", "v1.0.0", true, indirectMeaning},
	}, all)

	_, err = Unlinked([]byte("module \"x\nrequire ("))
	require.ErrorContains(t, err, "deps: go.mod:")
}
