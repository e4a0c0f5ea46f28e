package pipelines

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

const nextRecord = "Name the run.json that a run of slipway has written, as it was written."

// ReadRecord reads a run record: a file, or "oci:DIR" for the image of a run, whose record lies beside it.
func ReadRecord(name string) (*Record, error) {
	file := name
	layout, isLayout := strings.CutPrefix(name, "oci:")
	if isLayout {
		file = filepath.Join(layout, "..", "run.json")
	}
	text, err := os.ReadFile(file)
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	if err != nil {
		return nil, fault.Usagef(nextRecord, "run record %s: %v", name, err)
	}
	r, err := ParseRecord(name, text)
	if err == nil && isLayout {
		err = r.checkLayout(name, layout)
	}
	return r, err
}

// checkLayout refuses a record that lies beside an image of another run.
func (r *Record) checkLayout(name, layout string) error {
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return fault.Usagef("Name the image/ directory of a run's output.", "%s is no image: %v", name, err)
	}
	if r.Image == nil || !bytes.Contains(text, []byte(`"`+r.Image.Digest+`"`)) {
		return fault.Usagef("Name the run.json of the run that made it.", "the run record beside %s is of another image", name)
	}
	return nil
}

var (
	digestPattern  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	commitPattern  = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
	goTypes        = regexp.MustCompile(`Go (?:struct field \w+\.(\S+)|value) of type .*$`)
	recordVerdicts = []Verdict{Passed, Failed, Skipped, NotRun}
)

// ParseRecord reads a run record from its text. name stands in errors. Whatever this slipway would not have written
// so is an error.
func ParseRecord(name string, text []byte) (*Record, error) {
	bad := func(format string, a ...any) error {
		return fault.Usagef(nextRecord, "run record %s %s", name, fmt.Sprintf(format, a...))
	}
	var schema struct{ Schema int }
	err := json.Unmarshal(text, &schema)
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok && syntax.Offset >= int64(len(bytes.TrimRight(text, " \r\n"))) {
		return nil, bad("is cut off after %d bytes", len(text))
	}
	if err != nil {
		return nil, bad("cannot be read: %s", plainJSON(err))
	}
	switch {
	case schema.Schema > recordSchema:
		return nil, fault.Usagef("Use a slipway that is as new as the one that wrote it.", "run record %s has schema %d, this slipway reads %d", name, schema.Schema, recordSchema)
	case schema.Schema != recordSchema:
		return nil, bad("has schema %d, this slipway reads %d", schema.Schema, recordSchema)
	}
	r := &Record{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil {
		return nil, bad("cannot be read: %s", plainJSON(err))
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, bad("has something after its end")
	}
	if err := r.check(); err != nil {
		return nil, bad("is not as slipway wrote it: %v", err)
	}
	r.Lock.fill()
	return r, nil
}

// plainJSON is an error of the JSON package in words of the document.
func plainJSON(err error) string {
	text := strings.TrimPrefix(err.Error(), "json: ")
	return goTypes.ReplaceAllStringFunc(text, func(s string) string {
		if m := goTypes.FindStringSubmatch(s); m[1] != "" {
			return m[1]
		}
		return "the record"
	})
}

// check looks for what a run never writes.
func (r *Record) check() error {
	if r.Plan == nil || r.Lock == nil || r.Config == nil || r.Slipway.Version == "" || r.Engine == "" {
		return errors.New("slipway, engine, config, lock or plan is missing")
	}
	if r.Lock.Schema != lockSchema {
		return fmt.Errorf("lock has schema %d, this slipway reads %d", r.Lock.Schema, lockSchema)
	}
	source := r.Plan.Source
	if !digestPattern.MatchString(source.Digest) {
		return fmt.Errorf("plan.source.digest is %q", source.Digest)
	}
	if source.Commit != "" && !commitPattern.MatchString(source.Commit) {
		return fmt.Errorf("plan.source.commit is %q", source.Commit)
	}
	if !slices.Contains(r.Plan.exact(), r.Plan.BuildRelease) {
		return fmt.Errorf("plan.build_release %q is none of plan.releases", r.Plan.BuildRelease)
	}
	if len(r.Stages) == 0 {
		return errors.New("it has no stages")
	}
	failed := false
	for i, s := range r.Stages {
		if s == nil || stageInputs[s.Name] == nil {
			name := ""
			if s != nil {
				name = s.Name
			}
			return fmt.Errorf("stages[%d]: there is no stage %q", i, name)
		}
		if !slices.Contains(recordVerdicts, s.Verdict) {
			return fmt.Errorf("the verdict of stage %s is %q", s.Name, s.Verdict)
		}
		if len(s.Failures) > 0 && s.Verdict != Failed {
			return fmt.Errorf("stage %s has failures, and its verdict is %q", s.Name, s.Verdict)
		}
		failed = failed || s.Verdict == Failed
	}
	if r.Verdict != Passed && r.Verdict != Failed || failed != (r.Verdict == Failed) {
		return fmt.Errorf("its verdict is %q, which its stages do not say", r.Verdict)
	}
	_, err := r.config()
	return err
}

// withoutEmpty drops what is null or an empty list: that is no setting, but a probe may not have both arguments, be they
// none, and a path.
func withoutEmpty(v any) any {
	switch v := v.(type) {
	case map[string]any:
		kept := map[string]any{}
		for key, x := range v {
			if list, ok := x.([]any); x != nil && (!ok || len(list) > 0) {
				kept[key] = withoutEmpty(x)
			}
		}
		return kept
	case []any:
		kept := make([]any, len(v))
		for i := range v {
			kept[i] = withoutEmpty(v[i])
		}
		return kept
	}
	return v
}

// config is the configuration in force, as slipway.yaml would have it.
func (r *Record) config() (Config, error) {
	text, err := yaml.Marshal(withoutEmpty(r.Config))
	if err != nil {
		return Config{}, err
	}
	// The profile's settings are among the others, and only its name is left of it.
	c, err := parseConfig("config", text, "")
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return c, errors.New(e.What) // what to do next is another thing here
	}
	return c, err
}
