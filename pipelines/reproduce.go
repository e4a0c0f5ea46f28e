package pipelines

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/testjson"
)

// Reproduction is a run that repeats the failed stages of a recorded one.
type Reproduction struct {
	Record *Record
	// Config and Lock are those of the record, for [New]. Tests have the recorded order.
	Config Config
	Lock   *Lock
	// Stages are those that failed.
	Stages []string

	tests *TestResult // of Run
}

// Outcomes of a reproduction.
const (
	SameFailure  = "same failure"
	OtherFailure = "other failure"
	PassesHere   = "passes here"
)

// Reproduced is what a reproduction came to.
type Reproduced struct {
	// Outcome is SameFailure if one of the recorded failures is here again, OtherFailure if only others are, else
	// PassesHere.
	Outcome string `json:"outcome"`
	// Recorded counts the recorded failures.
	Recorded int `json:"recorded"`
	// Same are the failures of this run that were recorded too, Other those that were not. Missing are the recorded
	// ones that are not here.
	Same    []string `json:"same"`
	Other   []string `json:"other"`
	Missing []string `json:"missing"`
	// Differs are the inputs that differ: A is the record, B this run.
	Differs []Change `json:"differs"`
}

// Reproduce says how to repeat what failed in a recorded run.
func Reproduce(r *Record) (*Reproduction, error) {
	c, err := r.config()
	if err != nil {
		return nil, fault.Usagef(nextRecord, "the run record is not as slipway wrote it: %v", err)
	}
	x := &Reproduction{Record: r, Config: c, Lock: &Lock{Schema: lockSchema}}
	if err := x.Lock.read(r.Lock.Bytes()); err != nil {
		return nil, err
	}
	x.Lock.fill()
	for _, s := range r.Stages {
		if s.Verdict == Failed {
			x.Stages = append(x.Stages, s.Name)
		}
		if s.Name == "test" && s.Seed != "" {
			x.Config.Shuffle = s.Seed
		}
	}
	if len(x.Stages) == 0 {
		return nil, fault.Usagef("Name the record of a run that failed; `slipway explain` compares runs that passed.", "nothing failed in the recorded run")
	}
	x.Config.Engine = cmp.Or(r.Engine, x.Config.Engine)
	if !x.image() {
		// They belong to stages that do not run, and may name files of another machine.
		x.Config.Previous, x.Config.SizeLimit, x.Config.LayerLimit = "", "", ""
	}
	if !slices.Contains(x.Stages, "vuln") {
		x.Config.VulnDB = ""
	}
	x.Config.To, x.Config.Fresh = nil, true // that it passed once is no answer
	return x, nil
}

// image tells whether an image is part of the reproduction.
func (x *Reproduction) image() bool {
	return slices.ContainsFunc(x.Stages, func(s string) bool {
		return !slices.Contains([]string{"vet", "test", "vuln", "build", "verify", "deps"}, s)
	})
}

// Origins says that the configuration is from the record.
func (x *Reproduction) Origins() map[string]string {
	all := map[string]string{}
	for key := range flatten(x.Record.Config) {
		all[key] = "record"
	}
	return all
}

// Check looks at the configuration that the caller has made of the recorded one, of which given tells the keys that are
// the caller's: what lay on the disk of the other machine must be named anew, and nothing is published that the caller
// does not say.
func (x *Reproduction) Check(c Config, given func(key string) bool) (Config, error) {
	local := map[string]string{"previous": x.Config.Previous}
	if x.image() && strings.HasPrefix(x.Config.Base, "oci:") {
		local["base"] = x.Config.Base
	}
	if !isURL(x.Config.VulnDB) {
		local["vuln-db"] = x.Config.VulnDB
	}
	for _, key := range sortedKeys(local) {
		if local[key] != "" && !given(key) {
			return c, fault.Usagef("Name it with --"+key+".", "%s: %s lay on the disk of the machine that made the record", key, local[key])
		}
	}
	if slices.Contains(x.Stages, "publish") && len(c.To) == 0 {
		return c, fault.Usagef("`slipway publish` does; or name another place here, such as --to=oci:DIR.", "publish failed, and a reproduction pushes only to where --to says")
	}
	// Engines have kinds of isolation of their own.
	if c.Engine != x.Record.Engine && !given("smoke") && c.Smoke.Isolation != "off" {
		c.Smoke.Isolation = "auto"
	}
	return c, nil
}

// SourceAdvice says how a source tree is to be used for a reproduction.
type SourceAdvice struct {
	// Same tells that the tree is the recorded one.
	Same bool
	// Checkout is the commit to check out in its place, empty if there is none that would be the recorded tree.
	Checkout string
	// Words say what differs, for people.
	Words []string
}

// Source compares a tree and its lock file with the recorded ones.
func (x *Reproduction) Source(s engine.Source) (SourceAdvice, error) {
	was, is := x.Record.Plan.Source, identify(s)
	lock, err := ReadLock(s.FS)
	if err != nil {
		return SourceAdvice{}, err
	}
	a := SourceAdvice{Same: was.Digest == is.Digest}
	for _, change := range lock.Changes(x.Lock) {
		if change.Before != "" && change.After != "" {
			a.Words = append(a.Words, fmt.Sprintf("lock: %s %s was %s and is %s here; the recorded one is used", change.Kind, change.Name, change.Before, change.After))
		}
	}
	if a.Same {
		return a, nil
	}
	if was.Commit == "" || was.Dirty {
		what := "of no commit"
		if was.Dirty {
			what = "a changed tree"
		}
		a.Words = append(a.Words, "source: the recorded one was "+what+", which nothing can check out; this run is over the tree as it is here")
	} else {
		a.Checkout = was.Commit
	}
	a.Words = append(a.Words, "recorded: "+was.describe(), "here:     "+is.describe())
	return a, nil
}

// describe is a source in a few words.
func (s SourceID) describe() string {
	if s.Commit == "" {
		return "no commit, " + s.Digest
	}
	text := "commit " + s.Commit
	if s.Dirty {
		text += ", with changes in " + shorten(s.Changed, 5)
	}
	return text + ", " + s.Digest
}

// Run runs the stages that failed, and those that they need.
func (x *Reproduction) Run(ctx context.Context, p *Pipeline) error {
	runs := map[string]func() error{
		"vet":     func() error { _, err := p.Vet(ctx); return err },
		"test":    func() (err error) { x.tests, err = p.Test(ctx); return err },
		"vuln":    func() error { _, err := p.Vuln(ctx); return err },
		"build":   func() error { _, err := p.Build(ctx); return err },
		"verify":  func() error { _, err := p.Verify(ctx); return err },
		"image":   func() error { _, err := p.Image(ctx); return err },
		"smoke":   func() error { _, err := p.Smoke(ctx); return err },
		"attest":  func() error { _, err := p.Attest(ctx); return err },
		"publish": func() error { _, err := p.Publish(ctx); return err },
		"deps":    func() error { _, err := p.Deps(ctx); return err },
		"compare": func() error { _, err := p.Compare(ctx); return err },
	}
	for _, name := range x.Stages {
		run := runs[name]
		if run == nil {
			return fault.Usagef(nextRecord, "the stage %s has no verdict of its own", name)
		}
		if err := run(); err != nil {
			return err
		}
	}
	return nil
}

// Compare compares the failures of the reproduction with the recorded ones. It is an error of the environment when
// this machine could not try what had failed, such as an image of another platform.
func (x *Reproduction) Compare(now *Record) (*Reproduced, error) {
	was, is := x.Record.failures(), now.failures()
	r := &Reproduced{Recorded: len(was), Same: []string{}, Other: []string{}, Missing: []string{}, Differs: x.differs(now)}
	used := make([]bool, len(is))
	for _, w := range was {
		i := slices.IndexFunc(is, func(n failed) bool { return n.same(w) })
		if i < 0 {
			r.Missing = append(r.Missing, w.String())
			continue
		}
		used[i] = true
		r.Same = append(r.Same, w.String())
	}
	for i, n := range is {
		if !used[i] && !slices.ContainsFunc(was, n.same) {
			r.Other = append(r.Other, n.String())
		}
	}
	switch {
	case len(r.Same) > 0:
		r.Outcome = SameFailure
		return r, nil
	case len(r.Other) > 0:
		r.Outcome = OtherFailure
		return r, nil
	}
	r.Outcome = PassesHere
	if err := x.untried(now); err != nil {
		return r, err
	}
	for _, w := range was {
		if w.stage == "test" && x.tests != nil && !x.tests.passed(w.What) {
			return r, fault.Environmentf(nil, nextUntried, "%s failed in the record and did not run here: it was skipped, or there is no such test", w.What)
		}
	}
	return r, nil
}

// passed tells whether what a failure calls "PACKAGE TEST" or "PACKAGE" has passed under some release.
func (r *TestResult) passed(what string) bool {
	path, name, one := strings.Cut(what, " ")
	for _, l := range r.Legs {
		for _, pkg := range l.Packages {
			if pkg.Path != path {
				continue
			}
			if !one && pkg.Result == testjson.Pass {
				return true
			}
			if slices.ContainsFunc(pkg.Tests, func(t testjson.Test) bool { return t.Name == name && t.Result == testjson.Pass }) {
				return true
			}
		}
	}
	// What failed without a package.
	return slices.ContainsFunc(r.Legs, func(l TestLeg) bool { return what == "go test of module "+l.Module })
}

// differs lists the inputs that this run has otherwise, but for what a reproduction itself leaves out.
func (x *Reproduction) differs(now *Record) []Change {
	wanted := shownConfig(&Record{Config: x.Config.asMap()})
	return slices.DeleteFunc(inputChanges(x.Record, now), func(c Change) bool {
		key, ok := strings.CutPrefix(c.Name, "config ")
		return ok && wanted[key] == c.B
	})
}

const nextUntried = "Run it on a machine that can, with what the record was made with."

// untried is an error if something that had failed was not tried in this run.
func (x *Reproduction) untried(now *Record) error {
	verdicts := map[string]TaskRecord{}
	for _, s := range now.Stages {
		verdicts[s.Name] = TaskRecord{Verdict: s.Verdict, Detail: s.Detail}
		for _, t := range s.Tasks {
			verdicts[s.Name+" "+t.Name] = t
		}
	}
	for _, s := range x.Record.Stages {
		if s.Verdict != Failed {
			continue
		}
		if t := verdicts[s.Name]; t.Verdict != Passed {
			return fault.Environmentf(nil, nextUntried, "%s failed in the record and cannot be tried here: %s", s.Name, cmp.Or(t.Detail, "it does not come to it"))
		}
		for _, task := range s.Tasks {
			if t, ok := verdicts[s.Name+" "+task.Name]; ok && task.Verdict == Failed && t.Verdict == NotRun {
				return fault.Environmentf(nil, nextUntried, "%s failed in the record and cannot be tried here: %s", task.Name, t.Detail)
			}
		}
	}
	return nil
}

// failed is a failure with its stage.
type failed struct {
	stage string
	Failure
}

func (r *Record) failures() []failed {
	var all []failed
	for _, s := range r.Stages {
		if s.Verdict != Failed {
			continue
		}
		if len(s.Failures) == 0 {
			all = append(all, failed{s.Name, Failure{What: s.Name}})
		}
		for _, f := range s.Failures {
			all = append(all, failed{s.Name, f})
		}
	}
	return all
}

func (f failed) String() string {
	s := f.stage + ": " + f.What
	if f.Where != "" {
		s += " (" + f.Where + ")"
	}
	if f.Probe != "" {
		s += ", " + f.Probe
	}
	return s
}

var inReleases = regexp.MustCompile(`(?:only )?Go (\d[0-9a-z.]*(?:, \d[0-9a-z.]*)*)`)

// parts are what a failure is known by, and the releases that it names. Lines move when something above them changes.
func (f failed) parts() (key string, releases []string) {
	key = strings.Join([]string{f.stage, f.What, f.Where, f.Probe}, "\n")
	if m := inReleases.FindStringSubmatch(key); m != nil {
		releases = strings.Split(m[1], ", ")
		key = strings.Replace(key, m[0], "", 1)
	}
	if f.File != "" {
		key = regexp.MustCompile(regexp.QuoteMeta(f.File)+`:\d+(:\d+)?\b`).ReplaceAllLiteralString(key, f.File)
	}
	return key, releases
}

// same tells whether two failures are the same one. One of several releases is enough. The file of a test's failure is
// taken from its output, and not always known.
func (f failed) same(g failed) bool {
	a, in := f.parts()
	b, also := g.parts()
	return a == b && (f.File == g.File || f.File == "" || g.File == "") && (len(in) == 0 && len(also) == 0 || slices.ContainsFunc(in, func(r string) bool { return slices.Contains(also, r) }))
}
