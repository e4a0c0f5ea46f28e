package pipelines_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const configurationPage = "../docs/configuration.md"

// The reference of slipway.yaml is made of the comments of Config; -update makes it anew.
func TestConfigurationReference(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	structs := map[string]*ast.StructType{}
	comments := map[string]string{}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		for _, d := range f.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.TYPE {
				continue
			}
			for _, spec := range g.Specs {
				ts := spec.(*ast.TypeSpec)
				if s, ok := ts.Type.(*ast.StructType); ok {
					structs[ts.Name.Name], comments[ts.Name.Name] = s, g.Doc.Text()
				}
			}
		}
	}
	var b bytes.Buffer
	b.WriteString(`# Keys of slipway.yaml

This page is made of the comments in the code, by ` + "`go test ./pipelines -run TestConfigurationReference -update`" + `. The file is optional and lies in the root of the
source. Keys at the top are flags of the same name, too, unless they are mappings; what stands on the command line counts. ` + "`isolation` and `repeat`" + ` of the smoke run are the
flags ` + "`--smoke` and `--repeat`" + `. An unknown key is an error that names its line and the nearest known key.
[images.md](images.md), [smoke.md](smoke.md) and [publishing.md](publishing.md) explain with examples.
`)
	seen := map[string]bool{}
	var section func(name, heading string)
	section = func(name, heading string) {
		if seen[name] {
			return
		}
		seen[name] = true
		if heading == "" {
			b.WriteString("\n| key | type | |\n|---|---|---|\n")
		} else {
			fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| key | type | |\n|---|---|---|\n", heading, sentence(comments[name], name))
		}
		keys := map[string]string{}
		for _, f := range structs[name].Fields.List {
			if f.Tag != nil && len(f.Names) == 1 {
				keys[f.Names[0].Name] = reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml")
			}
		}
		type nested struct{ name, heading string }
		var below []nested
		for _, f := range structs[name].Fields.List {
			if f.Tag == nil || len(f.Names) != 1 {
				continue
			}
			key := reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("yaml")
			if key == "" || key == "-" {
				continue
			}
			kind, inner := typeName(f.Type)
			if _, ok := structs[inner]; ok && inner != "Profile" {
				path := strings.TrimPrefix(heading+"."+key, ".")
				below = append(below, nested{inner, path})
				kind = fmt.Sprintf("[%s](#%s)", kind, strings.ReplaceAll(path, ".", ""))
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", key, kind, strings.ReplaceAll(withKeys(sentence(f.Doc.Text(), f.Names[0].Name), keys), "|", "\\|"))
		}
		for _, n := range below {
			section(n.name, n.heading)
		}
	}
	section("Config", "")
	if *update {
		require.NoError(t, os.WriteFile(configurationPage, b.Bytes(), 0o644))
	}
	page, err := os.ReadFile(configurationPage)
	require.NoError(t, err)
	require.Equal(t, b.String(), string(page), "the reference is stale; -update makes it anew")
}

// sentence turns a Go comment into a cell: the name of the field does not stand in it, and code is marked.
func sentence(comment, name string) string {
	s := strings.Join(strings.Fields(comment), " ")
	for _, verb := range []string{" are ", " is ", " says ", " bounds ", " puts "} {
		if rest, ok := strings.CutPrefix(s, name+verb); ok {
			s = rest
			if verb != " are " && verb != " is " {
				s = strings.TrimSpace(verb) + " " + rest
			}
			break
		}
	}
	s = strings.NewReplacer("[ReadConfig] ", "slipway ", "<", "&lt;").Replace(s)
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// withKeys writes the names of other fields as their keys, but for those that are words by themselves.
func withKeys(text string, keys map[string]string) string {
	return regexp.MustCompile(`([ (])([A-Z][a-z]+[A-Za-z]*)\b`).ReplaceAllStringFunc(text, func(m string) string {
		if key := keys[m[1:]]; key != "" && m[1:] != "Health" && m[1:] != "Labels" {
			return m[:1] + "`" + key + "`"
		}
		return m
	})
}

// typeName is what people call a type, and the struct in it.
func typeName(e ast.Expr) (kind, inner string) {
	switch x := e.(type) {
	case *ast.StarExpr:
		return typeName(x.X)
	case *ast.ArrayType:
		kind, inner = typeName(x.Elt)
		return "list of " + strings.TrimSuffix(kind, "s") + "s", inner
	case *ast.MapType:
		kind, inner = typeName(x.Value)
		return "mapping to " + kind, inner
	case *ast.SelectorExpr:
		return "duration", ""
	case *ast.Ident:
		if known := map[string]string{"string": "text", "bool": "true or false", "int": "number"}[x.Name]; known != "" {
			return known, ""
		}
		return "mapping", x.Name
	}
	return "?", ""
}
