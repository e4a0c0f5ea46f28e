package pipelines

import (
	"context"
	"fmt"
	"go/version"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

var exactRelease = regexp.MustCompile(`^1\.\d+(\.\d+|rc\d+)$`)

// makeMatrix turns requests into exact releases, with the lock file's pins before anything else.
func (p *Plan) makeMatrix(ctx context.Context, e engine.Engine, requests []string, l *Lock) error {
	minimum := p.minimum()
	var known []string // all releases, listed when the first question needs them
	for _, request := range requests {
		request = strings.TrimPrefix(strings.TrimSpace(request), "go")
		key := request
		if request == "minimum" {
			key = strings.TrimPrefix(version.Lang("go"+minimum), "go")
		}
		var exact string
		switch {
		case exactRelease.MatchString(key):
			exact = key
		case key != "stable" && key != "oldstable" && version.Lang("go"+key) != "go"+key:
			return fault.Usagef("Write it as 1.22 (newest patch release), 1.22.5 (exactly that), stable, oldstable or minimum.", "go-versions: %q is not a Go release", request)
		case l.Go[key] != "":
			exact = l.Go[key]
			if lang := version.Lang("go" + exact); lang == "" || key != "stable" && key != "oldstable" && lang != "go"+key {
				return fault.Usagef("Restore it from version control, or choose anew with `slipway lock --update`.", "%s says that Go %s is %q, which is no such release", LockFile, key, exact)
			}
		default:
			if known == nil {
				var err error
				if known, err = listReleases(ctx, e); err != nil {
					return err
				}
			}
			if exact = newest(known, key); exact == "" {
				return noRelease(key)
			}
			l.Go[key] = exact
		}
		p.addRelease(request, exact)
	}
	slices.SortFunc(p.Releases, func(a, b Release) int { return version.Compare("go"+a.Exact, "go"+b.Exact) })
	if len(p.Releases) == 0 {
		var reasons []string
		for _, x := range p.Excluded {
			reasons = append(reasons, fmt.Sprintf("%s: %s", x.Requested, x.Reason))
		}
		return fault.Usagef("Ask for a newer one with --go-versions, or lower the go line.", "no requested Go release can be used (%s)", strings.Join(reasons, "; "))
	}
	p.BuildRelease = p.Releases[len(p.Releases)-1].Exact
	return nil
}

func noRelease(key string) error {
	return fault.Usagef("`go list -m -versions go` lists the releases that exist.", "go-versions: there is no release of Go %s", key)
}

// minimum is the oldest release that every module of the plan allows and slipway supports.
func (p *Plan) minimum() string {
	minimum := oldestRelease
	for _, m := range p.Modules {
		if version.Compare("go"+m.Go, "go"+minimum) > 0 {
			minimum = m.Go
		}
	}
	return minimum
}

func (p *Plan) addRelease(request, exact string) {
	exclude := func(format string, a ...any) {
		p.Excluded = append(p.Excluded, Exclusion{Requested: request, Exact: exact, Reason: fmt.Sprintf(format, a...)})
	}
	if version.Compare("go"+exact, "go"+oldestRelease) < 0 {
		exclude("slipway supports Go %s and newer", oldestRelease)
		return
	}
	for _, m := range p.Modules {
		// A go line of 1.21 means 1.21rc1 at least: compare languages where it names no release.
		if version.Compare("go"+exact, "go"+m.Go) < 0 {
			exclude("older than the line `go %s` of %s", m.Go, modFileName(m))
			return
		}
	}
	for i, r := range p.Releases {
		if r.Exact == exact {
			p.Releases[i].Requested += "," + request
			return
		}
	}
	p.Releases = append(p.Releases, Release{Requested: request, Exact: exact})
}

func modFileName(m Module) string {
	if m.Dir == "." {
		return "go.mod"
	}
	return m.Dir + "/go.mod"
}

// listReleases asks the Go module proxy for all Go releases, oldest first.
func listReleases(ctx context.Context, e engine.Engine) ([]string, error) {
	// Not in the source: its go.mod may want a newer Go than the one that answers, or vendor everything.
	dir, err := os.MkdirTemp("", "slipway-")
	if err != nil {
		return nil, fault.Environmentf(err, "Set TMPDIR to a directory that can be written and has space.", "directory for temporary files")
	}
	defer os.RemoveAll(dir)
	r, err := e.Run(ctx, engine.Command{
		Name: "go list -m -versions go", Dir: engine.OutDir, OutputDir: dir, Network: true,
		Args: []string{"go", "list", "-m", "-versions", "-f", "{{join .Versions \" \"}}", "go"},
	})
	if err != nil {
		return nil, err
	}
	list := strings.Fields(string(r.Stdout))
	if r.ExitCode != 0 || len(list) == 0 {
		return nil, fault.Environmentf(fmt.Errorf("%s", tail.Lines(r.Stderr, 3)),
			"Check GOPROXY and the network, name exact releases with --go-versions=1.22.12, or commit a slipway.lock: then nothing must be looked up.", "the list of Go releases cannot be fetched")
	}
	return list, nil
}

// newest finds the newest patch release of a language version, of the newest (stable) or of the one
// before it (oldstable). Release candidates do not count.
func newest(releases []string, key string) string {
	byLang := map[string]string{}
	var langs []string
	for _, r := range releases {
		lang := version.Lang("go" + r)
		// 1.20 and older have a first release without a patch number.
		if !version.IsValid("go"+r) || strings.Contains(r, "rc") || strings.Contains(r, "beta") {
			continue
		}
		if byLang[lang] == "" {
			langs = append(langs, lang)
		}
		if byLang[lang] == "" || version.Compare("go"+r, "go"+byLang[lang]) > 0 {
			byLang[lang] = r
		}
	}
	slices.SortFunc(langs, version.Compare)
	switch n := len(langs); {
	case key == "stable" && n > 0:
		return byLang[langs[n-1]]
	case key == "oldstable" && n > 1:
		return byLang[langs[n-2]]
	}
	return byLang["go"+key]
}
