package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	goversion "go/version"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"

	"github.com/slipway-ci/slipway/pipelines/report/formats"
)

var (
	// In a comment a command ends where its quotation does.
	commandPattern = regexp.MustCompile("(?:go run|dagger call) [^`\n]*")
	versionPattern = regexp.MustCompile(`slipway@([\w.+-]+)`)
	actionPattern  = regexp.MustCompile(`^[\w-]+/[\w-]+@v\d+(\.\d+\.\d+)?$`)
	wordPattern    = regexp.MustCompile(`([a-z0-9])([A-Z])`)
)

// ciJob is what GitHub's and GitLab's jobs have in common.
type ciJob struct {
	work      []string // the lines that are left when the machine is set up
	setUp     []string
	golang    string // the release of Go, none if empty
	dagger    bool   // whether the Dagger command line is installed in the wanted version
	artifacts []string
	always    bool // the artifacts are kept whatever the verdict
}

// TestCIFiles holds the files that users copy, and the project's own, against what they call. No CI server
// is asked: what a wrong word in them breaks is otherwise seen by users first.
func TestCIFiles(t *testing.T) {
	t.Chdir(filepath.Join("..", ".."))
	t.Setenv("CI_REGISTRY_PASSWORD", "set by GitLab")
	mod := readGoMod(t)
	var dagger struct{ EngineVersion string }
	require.NoError(t, json.Unmarshal(readFile(t, "dagger.json"), &dagger))
	functions := moduleFunctions(t, "modules/slipway")
	versions := map[string][]string{} // of slipway, with the files that name them

	for _, f := range []struct {
		name string
		read func(*testing.T, []byte, string) map[string]ciJob
		own  bool // runs the code of this repository, not a released one
	}{
		{"ci/github/dagger.yml", githubJobs, false},
		{"ci/github/slipway.yml", githubJobs, false},
		{"ci/gitlab/dagger.yml", gitlabJobs, false},
		{"ci/gitlab/slipway.yml", gitlabJobs, false},
		{".github/workflows/ci.yml", githubJobs, true},
	} {
		t.Run(f.name, func(t *testing.T) {
			text := readFile(t, f.name)
			jobs := f.read(t, text, dagger.EngineVersion)
			require.NotEmpty(t, jobs)
			if !f.own {
				require.Len(t, jobs, 1)
			}
			for name, job := range jobs {
				assert.Len(t, job.work, 1, "%s: lines of own work", name)
				for _, line := range job.setUp {
					assert.NotRegexp(t, commandPattern, line, "%s: work among what sets up the machine", name)
				}
				for _, line := range job.work {
					checkWork(t, line, job, mod.Go.Version, f.own)
				}
			}
			// Those in comments too: people copy them.
			commands := commandPattern.FindAllString(string(text), -1)
			require.NotEmpty(t, commands)
			for _, line := range commands {
				checkCommand(t, line, mod.Module.Mod.Path, functions, f.own)
			}
			for _, m := range versionPattern.FindAllStringSubmatch(string(text), -1) {
				versions[m[1]] = append(versions[m[1]], f.name)
			}
		})
	}
	assert.Len(t, versions, 1, "versions of slipway")
	for v := range versions {
		assert.Equal(t, v, semver.Canonical(v), "not the full version of a release")
	}
}

// checkWork checks that a job has what its work needs, and keeps what it writes.
func checkWork(t *testing.T, line string, job ciJob, goLine string, own bool) {
	if strings.HasPrefix(line, "dagger call ") {
		assert.True(t, job.dagger, "%s: no Dagger of the version in dagger.json", line)
	} else {
		// Neither GitHub's action nor the golang image lets the go command fetch a newer release.
		wanted := goversion.Compare("go"+job.golang, "go"+goLine) >= 0
		assert.True(t, wanted, "%s: Go %q is older than the go line %s", line, job.golang, goLine)
	}
	if !commandPattern.MatchString(line) {
		assert.True(t, own && strings.HasSuffix(line, " bash .ci/run"), "%s: is not slipway", line)
		return
	}
	assert.True(t, job.always, "%s: the files of a failing run are lost", line)
	output := "dist"
	if args := strings.Fields(line); args[0] == "go" {
		if in := parseSlipway(t, args[3:]); in != nil {
			cwd, err := os.Getwd()
			require.NoError(t, err)
			output, err = filepath.Rel(cwd, in.output)
			require.NoError(t, err)
		}
	} else {
		assert.Contains(t, args, "--path="+output, line)
	}
	assert.Contains(t, job.artifacts, filepath.ToSlash(output)+"/", line)
}

// checkCommand checks that what a command line calls exists.
func checkCommand(t *testing.T, line, module string, functions map[string]map[string]function, own bool) {
	args := strings.Fields(line)[2:]
	if strings.HasPrefix(line, "go run ") {
		program, _, released := strings.Cut(args[0], "@")
		if own {
			assert.Equal(t, "./ci/slipway", args[0], line)
		} else {
			assert.True(t, released, "%s: no version", line)
			assert.Equal(t, module+"/ci/slipway", program, line)
		}
		parseSlipway(t, args[1:])
		return
	}
	if !own {
		require.Greater(t, len(args), 2, line)
		source, _, released := strings.Cut(args[1], "@")
		assert.Equal(t, "-m", args[0], line)
		assert.Equal(t, module, source, line)
		assert.True(t, released, "%s: no version", line)
		args = args[2:]
	}
	// The constructor's arguments come first, then functions with theirs, each of what the one before returns.
	f, called := functions[""][""], "the constructor"
	given := map[string]bool{}
	complete := func() {
		for name, required := range f.args {
			assert.False(t, required && !given[name], "%s: %s needs --%s", line, called, name)
		}
	}
	for _, arg := range args {
		if flag, ok := strings.CutPrefix(arg, "--"); ok {
			name, _, _ := strings.Cut(flag, "=")
			assert.Contains(t, f.args, name, "%s: argument of %s", line, called)
			given[name] = true
			continue
		}
		complete()
		require.Contains(t, functions[f.returns], arg, "%s: function of %q", line, f.returns)
		f, called, given = functions[f.returns][arg], arg, map[string]bool{}
	}
	complete()
}

// parseSlipway has the command line's own parser read arguments. Nothing is run.
func parseSlipway(t *testing.T, args []string) *input {
	require.NotEmpty(t, args)
	c := find(args[0])
	require.NotNil(t, c, "there is no command %q", args[0])
	in, err := parse(c, args[1:], io.Discard)
	assert.NoError(t, err, "%q", args)
	if in != nil {
		assert.DirExists(t, in.source, "%q", args)
	}
	return in
}

func githubJobs(t *testing.T, text []byte, engine string) map[string]ciJob {
	var workflow struct {
		On          map[string]any
		Permissions map[string]string
		Env         map[string]string
		Jobs        map[string]struct {
			RunsOn      string            `yaml:"runs-on"`
			Timeout     int               `yaml:"timeout-minutes"`
			Permissions map[string]string `yaml:"permissions"`
			Steps       []struct {
				Name, Uses, If, Run string
				With                map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &workflow))
	assert.Contains(t, workflow.On, "pull_request")
	assert.Equal(t, map[string]string{"contents": "read"}, workflow.Permissions)
	jobs := map[string]ciJob{}
	for name, j := range workflow.Jobs {
		assert.NotEmpty(t, j.RunsOn, name)
		assert.Positive(t, j.Timeout, "%s: a run that hangs is ended after six hours only", name)
		assert.Empty(t, j.Permissions, "%s: more than the workflow has", name)
		var job ciJob
		var checkedOut bool
		for _, s := range j.Steps {
			action, _, _ := strings.Cut(s.Uses, "@")
			if s.Uses != "" {
				assert.Regexp(t, actionPattern, s.Uses, name)
			}
			switch action {
			case "":
				lines := strings.Split(strings.TrimSpace(s.Run), "\n")
				// GitHub has no before_script: what belongs there is told by the step's name.
				if strings.HasPrefix(s.Name, "Set up ") {
					job.setUp = append(job.setUp, lines...)
				} else {
					job.work = append(job.work, lines...)
				}
			case "actions/checkout":
				checkedOut = true
			case "actions/setup-go":
				assert.NotEqual(t, "false", s.With["cache"], name)
				if job.golang = s.With["go-version"]; s.With["go-version-file"] == "go.mod" {
					job.golang = readGoMod(t).Go.Version
				}
			case "dagger/dagger-for-github":
				assert.Empty(t, s.With["call"]+s.With["args"], "%s: work in an action", name)
				job.dagger = s.With["version"] == "${{ env.DAGGER_VERSION }}" && workflow.Env["DAGGER_VERSION"] == engine
			case "actions/upload-artifact":
				job.artifacts = append(job.artifacts, s.With["path"])
				job.always = s.If == "always()"
			default:
				assert.Fail(t, "this test does not know the action "+action)
			}
		}
		assert.True(t, checkedOut, "%s: no source", name)
		jobs[name] = job
	}
	return jobs
}

func gitlabJobs(t *testing.T, text []byte, engine string) map[string]ciJob {
	var pipeline struct {
		Variables map[string]string
		Jobs      map[string]struct {
			Image, Timeout string
			Coverage       string
			Services       []string
			Variables      map[string]string
			BeforeScript   []string `yaml:"before_script"`
			Script         []string
			Artifacts      struct {
				When    string
				Paths   []string
				Reports struct {
					JUnit, CodeQuality string
					Coverage           struct {
						Format string `yaml:"coverage_format"`
						Path   string
					} `yaml:"coverage_report"`
				}
			}
		} `yaml:",inline"`
	}
	require.NoError(t, yaml.Unmarshal(text, &pipeline))
	jobs := map[string]ciJob{}
	for name, j := range pipeline.Jobs {
		assert.NotEmpty(t, j.Timeout, name)
		reports := j.Artifacts.Reports
		assert.Equal(t, "dist/junit.xml", reports.JUnit, name)
		assert.Equal(t, "dist/"+formats.CodeQualityFile, reports.CodeQuality, name)
		assert.Equal(t, "cobertura dist/"+formats.CoberturaFile, reports.Coverage.Format+" "+reports.Coverage.Path, name)
		if j.Coverage != "" {
			assert.Regexp(t, strings.Trim(j.Coverage, "/"), "coverage: 63.6% of statements", name)
		}
		job := ciJob{setUp: j.BeforeScript, artifacts: j.Artifacts.Paths, always: j.Artifacts.When == "always"}
		for _, line := range j.Script {
			job.work = append(job.work, strings.Split(strings.TrimSpace(line), "\n")...)
		}
		job.golang, _ = strings.CutPrefix(j.Image, "golang:")
		for _, line := range j.BeforeScript {
			// The script installs the version that this variable names, the newest if there is none.
			if strings.Contains(line, "dagger/install.sh") {
				job.dagger = pipeline.Variables["DAGGER_VERSION"] == engine && !strings.Contains(line, "DAGGER_VERSION=")
			}
		}
		if job.dagger {
			client, _, _ := strings.Cut(j.Image, "-")
			assert.Contains(t, j.Services, client+"-dind", "%s: the engine runs in Docker of the same release", name)
			assert.Equal(t, j.Variables["DOCKER_TLS_CERTDIR"]+"/client", j.Variables["DOCKER_CERT_PATH"], name)
		}
		jobs[name] = job
	}
	return jobs
}

// function is one that `dagger call` can call.
type function struct {
	args    map[string]bool // true if it must be given
	returns string          // a type, as moduleFunctions names it
}

// moduleFunctions reads the functions of a Dagger module from its source: type, name, function. Names are as
// on the command line. The constructor is the only function of the type "". Types of the generated client begin
// with "dagger.".
func moduleFunctions(t *testing.T, module string) map[string]map[string]function {
	functions := map[string]map[string]function{}
	add := func(typ, name string, f function) {
		if functions[typ] == nil {
			functions[typ] = map[string]function{}
		}
		functions[typ][name] = f
	}
	fields := map[string][]string{} // of structs, which hold the optional arguments of Dagger's own functions
	for _, pattern := range []string{module + "/internal/dagger/*.go", module + "/*.go"} {
		names, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, names, pattern)
		for _, name := range names {
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, name, nil, parser.ParseComments|parser.SkipObjectResolution)
			require.NoError(t, err)
			prefix := ""
			if file.Name.Name == "dagger" {
				prefix = "dagger."
			}
			doc := map[int]string{} // by the line that follows
			for _, c := range file.Comments {
				doc[fset.Position(c.End()).Line+1] = c.Text()
			}
			for _, d := range file.Decls {
				switch d := d.(type) {
				case *ast.GenDecl:
					for _, s := range d.Specs {
						s, ok := s.(*ast.TypeSpec)
						if !ok {
							continue
						}
						typ, ok := s.Type.(*ast.StructType)
						if !ok {
							continue
						}
						for _, field := range typ.Fields.List {
							private := strings.Contains(doc[fset.Position(field.Pos()).Line], "+private")
							for _, n := range field.Names {
								if n.IsExported() && !private {
									fields[prefix+s.Name.Name] = append(fields[prefix+s.Name.Name], kebab(n.Name))
									add(prefix+s.Name.Name, kebab(n.Name), function{returns: typeName(prefix, field.Type)})
								}
							}
						}
					}
				case *ast.FuncDecl:
					typ, constructor := "", d.Recv == nil && d.Name.Name == "New" && prefix == ""
					if d.Recv != nil {
						typ = typeName(prefix, d.Recv.List[0].Type)
					}
					if !d.Name.IsExported() || typ == "" && !constructor || d.Type.Results == nil {
						continue
					}
					f := function{args: map[string]bool{}, returns: typeName(prefix, d.Type.Results.List[0].Type)}
					for _, p := range d.Type.Params.List {
						if e, ok := p.Type.(*ast.Ellipsis); ok {
							for _, o := range fields[typeName(prefix, e.Elt)] {
								f.args[o] = false
							}
							continue
						}
						text := doc[fset.Position(p.Pos()).Line]
						for _, n := range p.Names {
							if n.Name != "ctx" {
								f.args[kebab(n.Name)] = !strings.Contains(text, "+optional") && !strings.Contains(text, "+default")
							}
						}
					}
					if constructor {
						add("", "", f)
					} else {
						add(typ, kebab(d.Name.Name), f)
					}
				}
			}
		}
	}
	return functions
}

// typeName is the name of a type, or of what it points to.
func typeName(prefix string, e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return typeName(prefix, e.X)
	case *ast.SelectorExpr:
		return typeName("", e.X) + "." + e.Sel.Name
	case *ast.Ident:
		return prefix + e.Name
	}
	return ""
}

func kebab(name string) string {
	return strings.ToLower(wordPattern.ReplaceAllString(name, "$1-$2"))
}

func readGoMod(t *testing.T) *modfile.File {
	f, err := modfile.Parse("go.mod", readFile(t, "go.mod"), nil)
	require.NoError(t, err)
	return f
}

func readFile(t *testing.T, name string) []byte {
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return b
}
