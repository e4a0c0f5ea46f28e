package pipelines

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// ConfigFile is the name of the optional configuration file in the root of a source tree.
const ConfigFile = "slipway.yaml"

// ReadConfig reads slipway.yaml in a directory, the root of a source. Paths in it are made absolute, for they
// are relative to that directory. Without the file, or without the directory, everything has its default.
// profile is the profile to use; empty means the one that the file names, if any.
func ReadConfig(dir, profile string) (Config, error) {
	text, err := os.ReadFile(filepath.Join(dir, ConfigFile))
	if i, statErr := os.Stat(dir); errors.Is(err, fs.ErrNotExist) || statErr == nil && !i.IsDir() {
		// What is wrong with a source the engine says.
		return ParseConfig(ConfigFile, nil, profile)
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	if err != nil {
		return Config{}, fault.Environmentf(err, "slipway must be able to read it.", "%s", ConfigFile)
	}
	c, err := ParseConfig(ConfigFile, text, profile)
	c.SetDir(dir)
	return c, err
}

// SetDir makes the relative paths in c absolute, as paths below dir.
func (c *Config) SetDir(dir string) {
	local := func(s string) string {
		for _, kind := range []string{"oci:", "tar:"} {
			if path, ok := strings.CutPrefix(s, kind); ok && path != "" && !filepath.IsAbs(path) {
				return kind + filepath.Join(dir, path)
			}
		}
		return s
	}
	c.Base = local(c.Base)
	for i := range c.Bases {
		c.Bases[i] = local(c.Bases[i])
	}
	if c.Previous != "" && !filepath.IsAbs(c.Previous) {
		c.Previous = filepath.Join(dir, c.Previous)
	}
	for i := range c.To {
		c.To[i] = local(c.To[i])
	}
	if c.VulnDB != "" && !isURL(c.VulnDB) && !filepath.IsAbs(c.VulnDB) {
		c.VulnDB = filepath.Join(dir, c.VulnDB)
	}
	if c.Output != "" && !filepath.IsAbs(c.Output) {
		c.Output = filepath.Join(dir, c.Output)
	}
}

// DocsURL is where the documentation is.
const DocsURL = "https://github.com/slipway-ci/slipway/blob/main/docs/"

// ParseConfig reads slipway.yaml. An unknown key is an error that names line and nearest known key.
// name stands in errors; profile is as for [ReadConfig].
func ParseConfig(name string, text []byte, profile string) (Config, error) {
	c, err := parseConfig(name, text, profile)
	if err != nil {
		return c, err
	}
	if _, ok := c.Profiles[c.Profile]; !ok && c.Profile != "" {
		return c, fault.Usagef(fault.Nearest(c.Profile, sortedKeys(c.Profiles)), "%s: there is no profile %q", name, c.Profile)
	}
	return c, nil
}

// Profile are settings that take the place of others when they are asked for by name: lists and values
// replace, mappings add. It may have every key of slipway.yaml but profile and profiles.
type Profile struct{ node *yaml.Node }

// UnmarshalYAML implements yaml.Unmarshaler.
func (p *Profile) UnmarshalYAML(n *yaml.Node) error {
	p.node = n
	return nil
}

func parseConfig(name string, text []byte, profile string) (Config, error) {
	var c Config
	var doc yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	err := d.Decode(&doc)
	if errors.Is(err, io.EOF) {
		c.Profile = profile
		return c, nil // empty, or nothing but comments
	}
	if err == nil {
		var second yaml.Node
		if err = d.Decode(&second); err == nil {
			err = fmt.Errorf("line %d: there is more than one document", second.Line)
		} else if errors.Is(err, io.EOF) {
			err = nil
		}
	}
	if err == nil {
		err = knownKeys(name, &doc, reflect.TypeFor[Config]())
	}
	if err == nil {
		err = doc.Decode(&c)
	}
	if err == nil {
		c.Profile = cmp.Or(profile, c.Profile)
		if chosen := c.Profiles[c.Profile]; chosen.node != nil {
			err = chosen.node.Decode(&c)
		}
	}
	if e, ok := errors.AsType[*yaml.TypeError](err); ok {
		err = errors.New(wrongType(e.Errors[0]))
	}
	if err == nil {
		return c, nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return c, err
	}
	return c, fault.Usagef(DocsURL+"configuration.md lists the keys of slipway.yaml.", "%s", name+yamlLine.ReplaceAllString(": "+strings.TrimPrefix(err.Error(), "yaml: "), ":$1: "))
}

var (
	yamlLine = regexp.MustCompile(`^: line (\d+): `)
	yamlType = regexp.MustCompile("cannot unmarshal !!\\w+(?: `(.*)`)? into (.*)$")
)

// wrongType turns the yaml package's words for a value of a wrong type into ours.
func wrongType(text string) string {
	m := yamlType.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	what := "this"
	if m[1] != "" {
		what = strconv.Quote(m[1])
	}
	wanted := "a mapping of keys"
	if strings.HasPrefix(m[2], "[]") {
		wanted = "a list"
	}
	known := map[string]string{
		"int": "a whole number", "bool": "true or false", "time.Duration": "a duration such as 30s", "[]string": "a list such as [a, b]", "map[string]string": "a mapping such as {a: b}",
		"string": "a text",
	}[m[2]]
	if m[2] == "pipelines.Smoke" && m[1] != "" { // what the flag --smoke takes
		known = "a mapping of keys such as {isolation: " + m[1] + "}"
	}
	return strings.TrimSuffix(text, m[0]) + what + " is not " + cmp.Or(known, wanted)
}

// below says in which block of the configuration a key has its place, empty if in none.
func below(t reflect.Type, key string) string {
	for block := range t.Fields() {
		if name := block.Tag.Get("yaml"); name != "" && block.Type.Kind() == reflect.Struct {
			for f := range block.Type.Fields() {
				if f.Tag.Get("yaml") == key {
					return fmt.Sprintf("Its place is %s: {%s: ...}.", name, key)
				}
			}
		}
	}
	return ""
}

// knownKeys checks the keys of every mapping that is decoded into a struct, and that whole numbers are
// whole, which the yaml package does not. Keys in without are not known.
func knownKeys(file string, n *yaml.Node, t reflect.Type, without ...string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch {
	case n.Kind == yaml.ScalarNode && t.Kind() == reflect.Int && n.ShortTag() == "!!float":
		return fault.Usagef("", "%s:%d: %q is not a whole number", file, n.Line, n.Value)
	case n.Kind == yaml.DocumentNode:
		return knownKeys(file, n.Content[0], t, without...)
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for _, c := range n.Content {
			if err := knownKeys(file, c, t.Elem()); err != nil {
				return err
			}
		}
	case t == reflect.TypeFor[Profile]():
		return knownKeys(file, n, reflect.TypeFor[Config](), "profile", "profiles")
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Map:
		for i := 1; i < len(n.Content); i += 2 {
			if err := knownKeys(file, n.Content[i], t.Elem()); err != nil {
				return err
			}
		}
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		fields := map[string]reflect.Type{}
		var names []string
		for f := range t.Fields() {
			if key := f.Tag.Get("yaml"); key != "" && !slices.Contains(without, key) {
				fields[key] = f.Type
				names = append(names, key)
			}
		}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			ft, ok := fields[key.Value]
			if !ok {
				return fault.Usagef(cmp.Or(below(t, key.Value), fault.Nearest(key.Value, names)), "%s:%d: unknown key %q", file, key.Line, key.Value)
			}
			if err := knownKeys(file, n.Content[i+1], ft); err != nil {
				return err
			}
		}
	}
	return nil
}
