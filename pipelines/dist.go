package pipelines

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// dist is the output directory while it is being made. Everything goes to a directory beside it, which
// takes its place in one step when the run ends: a killed run leaves the old or the new one.
type dist struct {
	final string // what the user asked for
	dir   string // final.new
	temp  string // work files, inside dir so that they are on the same disk
}

// OutputNames are the names that a pipeline with the given output directory may create: the directory,
// the one that it makes it in, the one for the last passed run, and one that is needed for a moment where a
// system cannot exchange two directories. They are not part of a source.
func OutputNames(output string) []string {
	return []string{output, output + ".new", output + ".passed", output + ".old"}
}

func newDist(final string) (*dist, error) {
	final, err := filepath.Abs(final) // commands write there from other directories
	if err != nil {
		return nil, fault.Environmentf(err, "", "output")
	}
	d := &dist{final: final, dir: final + ".new", temp: filepath.Join(final+".new", "tmp")}
	for _, name := range OutputNames(final) {
		if err := ours(name, name == d.dir); err != nil {
			return nil, err
		}
	}
	if err := d.rescue(); err != nil {
		return nil, d.error(err)
	}
	if err := os.MkdirAll(d.temp, 0o755); err != nil {
		return nil, d.error(err)
	}
	return d, nil
}

// rescue brings what a killed run left into the state that is nearest to one which a whole run leaves.
func (d *dist) rescue() error {
	old := d.final + ".old"
	if _, err := os.Lstat(d.final); errors.Is(err, fs.ErrNotExist) {
		if _, ok := recordIn(old); ok {
			if err := os.Rename(old, d.final); err != nil {
				return err
			}
		}
	}
	now, _ := recordIn(d.final)
	for _, left := range []string{old, d.dir} {
		// It was killed between exchange and rename.
		if v, _ := recordIn(left); v == Passed && now == Failed {
			if err := errors.Join(os.RemoveAll(d.final+".passed"), os.Rename(left, d.final+".passed")); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(left); err != nil {
			return err
		}
	}
	return nil
}

// ours refuses to replace a directory that slipway has not written. What slipway has written holds a run
// record; what it had not finished holds its work files.
func ours(dir string, unfinished bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	const next = "Choose another place with --output, or remove it."
	if err != nil {
		return fault.Environmentf(err, next, "output")
	}
	if _, ok := recordIn(dir); ok {
		if err := removable(dir); err != nil {
			return fault.Environmentf(err, "Remove it, as the user who owns it if that is another one, or choose another place with --output.", "output: %s cannot be replaced", filepath.Base(dir))
		}
		return nil
	}
	if i, err := os.Lstat(filepath.Join(dir, "tmp")); unfinished && err == nil && i.IsDir() {
		return nil
	}
	return fault.Usagef(next, "output: %s was not written by slipway, so slipway does not replace it", dir)
}

func (d *dist) error(err error) error {
	return fault.Environmentf(err, "Check that the directory can be written and that its disk has space, or choose another with --output.", "output")
}

// publish writes the record and puts the new directory into place.
func (d *dist) publish(r *Record) (kept bool, err error) {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return false, err
	}
	// In this order: what is left of a killed run always holds one of the two.
	if err := os.WriteFile(filepath.Join(d.dir, "run.json"), append(b, '\n'), 0o644); err != nil {
		return false, d.error(err)
	}
	if err := os.RemoveAll(d.temp); err != nil {
		return false, d.error(err)
	}
	passed := d.final + ".passed"
	if err := os.Mkdir(d.final, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, d.error(err)
	}
	// After this, d.dir is the old directory.
	if err := exchange(d.dir, d.final); err != nil {
		return false, d.error(err)
	}
	switch old, _ := recordIn(d.dir); {
	case r.Verdict == Passed:
		err = os.RemoveAll(passed)
	case old == Passed:
		if err = os.RemoveAll(passed); err == nil {
			err = os.Rename(d.dir, passed)
		}
	}
	if err != nil {
		return false, d.error(err)
	}
	_, statErr := os.Stat(passed)
	return statErr == nil, d.discard()
}

// recordIn reads the verdict of the run record in a directory. It reports whether there is a record.
func recordIn(dir string) (Verdict, bool) {
	var r struct {
		Verdict Verdict
		Slipway *ProgramID
	}
	b, err := os.ReadFile(filepath.Join(dir, "run.json"))
	if err != nil || json.Unmarshal(b, &r) != nil {
		return "", false
	}
	return r.Verdict, r.Slipway != nil
}

func (d *dist) discard() error {
	if err := os.RemoveAll(d.dir); err != nil {
		return d.error(err)
	}
	return nil
}
