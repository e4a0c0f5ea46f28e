package pipelines

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// Explanation is how two runs differ, and why.
type Explanation struct {
	// Inputs are those that differ, in the order in which a run reads them.
	Inputs []Change `json:"inputs"`
	// Outputs are those that differ, from the linker to the registry.
	Outputs []OutputChange `json:"outputs"`
	// Verdicts are those of stages that differ.
	Verdicts []Change `json:"verdicts"`
	// Same counts the outputs that both runs have and that are the same.
	Same int `json:"same"`
	// Notes say what could not be compared.
	Notes []string `json:"notes,omitempty"`
}

// Change is a value that two runs have differently; empty where one has none.
type Change struct {
	Name string `json:"name"`
	A    string `json:"a"`
	B    string `json:"b"`
}

// OutputChange is an output that two runs have differently.
type OutputChange struct {
	Change
	// Chain leads from the first input that explains the change to the output; where no input does, from the first
	// output that changed without a reason.
	Chain []string `json:"chain"`
	// Defect tells that nothing which may change this output has changed: the same inputs must give the same bytes.
	Defect bool `json:"defect,omitempty"`
}

// Defects counts the outputs that changed without a reason.
func (e *Explanation) Defects() int {
	n := 0
	for _, o := range e.Outputs {
		if o.Defect {
			n++
		}
	}
	return n
}

// Explain compares two runs.
func Explain(a, b *Record) *Explanation {
	e := &Explanation{Inputs: inputChanges(a, b), Outputs: []OutputChange{}, Verdicts: []Change{}}
	e.explainOutputs(a, b)
	verdicts := func(r *Record) map[string]string {
		m := map[string]string{}
		for _, s := range r.Stages {
			m[s.Name] = string(s.Verdict)
		}
		return m
	}
	e.Verdicts = append(e.Verdicts, mapChanges("", verdicts(a), verdicts(b))...)
	if a.Slipway.Version == b.Slipway.Version && a.Slipway.Version == "(devel)" {
		e.Notes = append(e.Notes, "both runs are of a slipway that was built from a source tree: whether it was the same one is not known")
	}
	return e
}

// mapChanges lists what two maps have differently, sorted by key.
func mapChanges(prefix string, a, b map[string]string) []Change {
	names := map[string]bool{}
	for name := range a {
		names[name] = true
	}
	for name := range b {
		names[name] = true
	}
	var changes []Change
	for _, name := range sortedKeys(names) {
		if a[name] != b[name] {
			changes = append(changes, Change{prefix + name, a[name], b[name]})
		}
	}
	return changes
}

// notInputs are keys of the configuration that are compared under another name, or decide over nothing.
var notInputs = []string{"engine", "profile", "profiles", "fresh"}

// inputChanges lists the inputs that differ: source, lock, configuration, toolchains, base image, slipway, engine,
// machine.
func inputChanges(a, b *Record) []Change {
	changes := []Change{}
	add := func(name, x, y string) {
		if x != y {
			changes = append(changes, Change{name, x, y})
		}
	}
	s, t := a.Plan.Source, b.Plan.Source
	add("source", s.Digest, t.Digest)
	add("commit", s.revision(), t.revision())
	add("source time", strconv.FormatInt(s.Time, 10), strconv.FormatInt(t.Time, 10))
	changes = append(changes, mapChanges("lock go ", a.Lock.Go, b.Lock.Go)...)
	changes = append(changes, mapChanges("lock base ", a.Lock.Bases, b.Lock.Bases)...)
	changes = append(changes, mapChanges("config ", shownConfig(a), shownConfig(b))...)
	add("releases", strings.Join(a.Plan.exact(), ", "), strings.Join(b.Plan.exact(), ", "))
	add("build release", a.Plan.BuildRelease, b.Plan.BuildRelease)
	for _, x := range a.Toolchains {
		for _, y := range b.Toolchains {
			// The same release has other checksums for other platforms, and as an image.
			kind, _, _ := strings.Cut(x.Checksum, ":")
			if x.Release != y.Release || x.Platform != y.Platform || !strings.HasPrefix(y.Checksum, kind+":") {
				continue
			}
			name := "toolchain " + x.Release
			if x.Release == a.Plan.BuildRelease {
				name = "build toolchain"
			}
			add(name, x.Checksum, y.Checksum)
		}
	}
	if a.Image != nil && b.Image != nil {
		add("base image", a.Image.BaseDigest, b.Image.BaseDigest)
		add("compressor", a.Image.Compressor, b.Image.Compressor)
	}
	add("slipway", a.Slipway.Version, b.Slipway.Version)
	if a.Engine == b.Engine && len(a.Environment) > 0 && len(b.Environment) > 0 {
		changes = append(changes, mapChanges("environment ", variables(a), variables(b))...)
	}
	add("engine", a.Engine+" "+a.EngineVersion, b.Engine+" "+b.EngineVersion)
	add("host", a.Host, b.Host)
	return changes
}

func variables(r *Record) map[string]string {
	m := map[string]string{}
	for _, v := range r.Environment {
		name, value, _ := strings.Cut(v, "=")
		m[name] = value
	}
	return m
}

func (s SourceID) revision() string {
	if s.Dirty {
		return s.Commit + ", changed: " + shorten(s.Changed, 5)
	}
	return s.Commit
}

// shownConfig is the configuration with its values as JSON.
func shownConfig(r *Record) map[string]string {
	shown := map[string]string{}
	for key, v := range flatten(r.Config) {
		if slices.Contains(notInputs, key) {
			continue
		}
		b, err := json.Marshal(v)
		if err != nil {
			panic(err) // it came from JSON or YAML
		}
		if text := string(b); text != "null" {
			shown[key] = text
		}
	}
	return shown
}

// An artefact is one output of a run.
type artefact struct {
	kind     string // linked, binary, layer, blob, config, manifest, index or published, in the order in which they are made
	holds    string // what a layer or blob holds
	part     string // tells those of one kind and platform apart
	platform string
	value    string
}

func (x artefact) name() string {
	return strings.Join(strings.Fields(x.kind+" "+x.holds+" "+x.part+" "+x.platform), " ")
}

// ownInputs are the inputs that may change an artefact by themselves, whatever it is made of. Engine and host change
// nothing: the same bytes come from all of them.
var ownInputs = map[string][]string{
	"linked":             {"source", "config modules", "config packages", "config commands", "config tags", "config ldflags", "config cgo", "build release", "build toolchain", "environment"},
	"binary":             {},
	"layer commands":     {"config capabilities", "config entrypoint"},
	"layer files":        {"source", "source time", "config files", "config volumes", "config user", "config base", "config certificates", "config timezones", "config accounts", "config tmp"},
	"layer base":         {"config base", "base image"},
	"layer certificates": {"config base", "config certificates"},
	"layer timezones":    {"config base", "config timezones"},
	"layer accounts":     {"config base", "config accounts"},
	"layer tmp":          {"config base", "config tmp"},
	"blob base":          {"config base", "base image"},
	"blob":               {"config compression", "compressor"},
	"config": append([]string{"config base", "config entrypoint", "config args", "config user", "config env", "config ports", "config volumes", "config stop-signal",
		"config working-dir", "config health"}, labelled...),
	"manifest":  append([]string{"config format", "config compression"}, labelled...),
	"index":     append([]string{"config format"}, labelled...),
	"published": {"config to", "config publish"},
	// It holds the image for the machine's own processor alone.
	"published tar": {"config to", "host"},
}

// labelled are the inputs that stand in labels.
var labelled = []string{"source", "commit", "source time", "config labels", "build release", "base image"}

// mayChange tells whether an input may change an artefact by itself. only tells that one of the runs does not have it.
func (x artefact) mayChange(input string, only bool) bool {
	if input == "slipway" || only && (input == "config platforms" || input == "config commands") {
		return true
	}
	inputs, ok := ownInputs[strings.TrimSpace(x.kind+" "+x.holds)]
	if !ok {
		inputs = ownInputs[x.kind]
	}
	if strings.HasPrefix(input, "environment ") {
		input = "environment"
	}
	return slices.Contains(inputs, input)
}

// madeOf tells whether x is made of y.
func (x artefact) madeOf(y artefact) bool {
	if x.platform != y.platform && x.platform != "" {
		return false
	}
	switch x.kind {
	case "binary":
		return y.kind == "linked" && x.part == y.part
	case "layer":
		return y.kind == "binary" && x.holds == "commands"
	case "blob":
		return y.kind == "layer" && x.holds == y.holds && x.part == y.part
	case "config":
		return y.kind == "layer"
	case "manifest":
		return y.kind == "config" || y.kind == "blob"
	case "index":
		return y.kind == "manifest"
	case "published":
		return y.kind == "index"
	}
	return false
}

// artefacts are the outputs of a run, in the order in which they are made.
func (r *Record) artefacts() []artefact {
	var linked, binaries, layers, blobs, configs, manifests, rest []artefact
	for _, b := range r.Binaries {
		linked = append(linked, artefact{"linked", "", b.Name, b.Platform, "sha256:" + b.FullSHA256})
		binaries = append(binaries, artefact{"binary", "", b.Name, b.Platform, "sha256:" + b.SHA256})
	}
	if r.Image != nil {
		for _, m := range r.Image.Platforms {
			n := map[string]int{}
			for _, l := range m.Layers {
				part := ""
				if n[l.Kind]++; n[l.Kind] > 1 {
					part = strconv.Itoa(n[l.Kind])
				}
				layers = append(layers, artefact{"layer", l.Kind, part, m.Platform, l.DiffID})
				blobs = append(blobs, artefact{"blob", l.Kind, part, m.Platform, l.Digest})
			}
			configs = append(configs, artefact{"config", "", "", m.Platform, m.Config})
			manifests = append(manifests, artefact{"manifest", "", "", m.Platform, m.Manifest})
		}
		rest = append(rest, artefact{"index", "", "", "", r.Image.Digest})
	}
	for i, x := range r.Published {
		// The address of an embedded registry is another one each time.
		holds := ""
		if strings.HasPrefix(x.Reference, "tar:") {
			holds = "tar"
		}
		rest = append(rest, artefact{"published", holds, strconv.Itoa(i + 1), "", x.Digest})
	}
	return slices.Concat(linked, binaries, layers, blobs, configs, manifests, rest)
}

// explainOutputs compares the outputs of two runs and looks for the reasons.
func (e *Explanation) explainOutputs(a, b *Record) {
	inA, inB := a.artefacts(), b.artefacts()
	has := func(list []artefact, same func(artefact) bool) (artefact, bool) {
		i := slices.IndexFunc(list, same)
		if i < 0 {
			return artefact{}, false
		}
		return list[i], true
	}
	// What only B has comes where others of its kind are.
	all := slices.Clone(inA)
	for _, y := range inB {
		if _, ok := has(inA, func(x artefact) bool { return x.name() == y.name() }); !ok {
			last := len(all)
			for i, x := range all {
				if x.kind == y.kind {
					last = i + 1
				}
			}
			all = slices.Insert(all, last, y)
		}
	}
	type changed struct {
		artefact
		root int // index of the first input that explains it; len(e.Inputs) for none
	}
	var before []changed
	notMade := map[string]bool{}
	for _, x := range all {
		sameName := func(y artefact) bool { return y.name() == x.name() }
		sameKind := func(y artefact) bool { return y.kind == x.kind }
		was, inFirst := has(inA, sameName)
		is, inSecond := has(inB, sameName)
		_, kindInA := has(inA, sameKind)
		_, kindInB := has(inB, sameKind)
		if !kindInA || !kindInB {
			// One of the runs was asked for less or failed before.
			notMade[x.kind] = true
			continue
		}
		if inFirst && inSecond && was.value == is.value {
			e.Same++
			continue
		}
		c := changed{x, len(e.Inputs)}
		o := OutputChange{Change: Change{x.name(), was.value, is.value}, Defect: true}
		for i, input := range e.Inputs {
			if x.mayChange(input.Name, inFirst != inSecond) {
				c.root, o.Chain, o.Defect = i, []string{input.Name}, false
				break
			}
		}
		for i, y := range before {
			if x.madeOf(y.artefact) && (o.Defect || y.root < c.root) {
				c.root, o.Chain, o.Defect = y.root, slices.Clone(e.Outputs[i].Chain), false
			}
		}
		o.Chain = append(o.Chain, x.name())
		before, e.Outputs = append(before, c), append(e.Outputs, o)
	}
	if len(notMade) > 0 {
		e.Notes = append(e.Notes, "only one of the runs has made: "+strings.Join(sortedKeys(notMade), ", "))
	}
}
