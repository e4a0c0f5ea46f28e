package pipelines

import (
	"cmp"
	"os"
	"path/filepath"
	"reflect"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// ConfigOrigins says of each key that [ReadConfig] takes from the file of a directory whether it is the file itself or
// the profile in force that sets it: "slipway.yaml" or "profile NAME". Keys below smoke are given as smoke.KEY.
func ConfigOrigins(dir, profile string) map[string]string {
	found := map[string]string{}
	text, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if err != nil {
		return found // ReadConfig says what is wrong
	}
	var file yaml.Node
	c, err := parseConfig(ConfigFile, text, profile)
	if err != nil || yaml.Unmarshal(text, &file) != nil || len(file.Content) == 0 {
		return found
	}
	keysOf(file.Content[0], "", func(key string) { found[key] = ConfigFile })
	if node := c.Profiles[cmp.Or(profile, c.Profile)].node; node != nil {
		keysOf(node, "", func(key string) { found[key] = "profile " + c.Profile })
	}
	return found
}

func keysOf(n *yaml.Node, prefix string, each func(key string)) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind != yaml.MappingNode {
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i].Value
		if prefix == "" && key == "smoke" {
			keysOf(n.Content[i+1], "smoke.", each)
			continue
		}
		each(prefix + key)
	}
}

// flatten gives the keys of a configuration as origins have them, with their values.
func flatten(config map[string]any) map[string]any {
	flat := map[string]any{}
	for key, v := range config {
		if smoke, ok := v.(map[string]any); ok && key == "smoke" {
			for k, v := range smoke {
				flat["smoke."+k] = v
			}
			continue
		}
		flat[key] = v
	}
	return flat
}

// origins says of each key of c where its value is from. What nobody told of is from the caller, if given has it.
func origins(c, given Config, told map[string]string) map[string]string {
	all := map[string]string{}
	unset, set := flatten(Config{}.asMap()), flatten(given.asMap())
	for key := range flatten(c.asMap()) {
		switch {
		case told[key] != "":
			all[key] = told[key]
		case reflect.DeepEqual(unset[key], set[key]):
			all[key] = "default"
		default:
			all[key] = "caller"
		}
	}
	return all
}

// describeEngine is what an engine tells of itself, where it does.
func describeEngine(c Config, e engine.Engine) (version string, env []string) {
	if d, ok := e.(engine.Describer); ok {
		version, env = d.Describe()
	}
	cgo := "CGO_ENABLED=0"
	if c.CGO {
		cgo = "CGO_ENABLED=1"
	}
	return cmp.Or(version, slipwayVersion()), append([]string{cgo}, env...)
}
