package pipelines

import (
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// stageInputs are what each stage reads: source, lock, toolchains, earlier stages, and keys of the configuration.
var stageInputs = map[string][]string{
	"plan":    {"source", "lock", "go-versions", "platforms", "modules", "packages", "commands", "tags", "cgo"},
	"vet":     {"source", "toolchains", "modules", "packages", "tags", "cgo", "vet-checks"},
	"test":    {"source", "toolchains", "modules", "packages", "tags", "cgo", "race", "shuffle", "count", "timeout"},
	"vuln":    {"source", "toolchains", "modules", "packages", "tags", "cgo", "platforms", "commands", "vuln", "vuln-mode", "vuln-db"},
	"build":   {"source", "toolchains", "modules", "packages", "commands", "platforms", "tags", "ldflags", "cgo", "base"},
	"verify":  {"build", "source", "toolchains", "rebuild", "cgo"},
	"image":   slices.Concat([]string{"verify", "lock", "source", "platforms"}, imageKeys, imageLimits),
	"smoke":   {"image", "capabilities", "ports", "smoke"},
	"attest":  {"image", "verify", "source", "lock"},
	"publish": {"attest", "smoke", "to", "publish"},
	"deps":    {"build", "source"},
	"compare": slices.Concat([]string{"verify", "lock", "source", "platforms", "bases", "smoke"}, imageKeys, []string{"mirrors"}),
}

// imageLimits decide over how an image is made and whether it is good, but not over its bytes.
var imageLimits = []string{"mirrors", "size-limit", "layer-limit", "previous"}

// imageKeys decide over the bytes of an image, beside the binaries in it.
var imageKeys = []string{
	"base", "entrypoint", "args", "user", "env", "ports", "volumes", "stop-signal", "working-dir", "health", "capabilities", "files", "labels",
	"certificates", "timezones", "accounts", "tmp", "format", "compression",
}

// stageOf is the stage that writes a file of the output directory, empty for what no stage writes.
func stageOf(name string) string {
	switch {
	case strings.HasPrefix(name, imageDir+"/blobs/"):
		return "" // they are named by their digests
	case strings.HasPrefix(name, imageDir+"/"):
		return "image"
	case path.Dir(name) != "." || name == "SHA256SUMS" || strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".zip"):
		return "build"
	case name == "junit.xml" || name == "coverage.out":
		return "test"
	case name == "verification.json":
		return "verify"
	case name == provenanceName || strings.HasSuffix(name, ".spdx.json") || strings.HasSuffix(name, ".sigstore.json"):
		return "attest"
	}
	stem, _, _ := strings.Cut(name, ".") // vet.json, deps.json, compare.svg
	if _, ok := stageInputs[stem]; !ok {
		return ""
	}
	return stem
}

// recordFiles puts what each stage has read and written into the record.
func (p *Pipeline) recordFiles() error {
	known := map[string]string{}
	for _, b := range p.Record.Binaries {
		known[b.Path], known[b.Full] = b.SHA256, b.FullSHA256
	}
	stages := map[string]*StageRecord{}
	for _, s := range p.Record.Stages {
		stages[s.Name], s.Inputs = s, stageInputs[s.Name]
	}
	return filepath.WalkDir(p.dist.dir, func(file string, d fs.DirEntry, err error) error {
		if file == p.dist.temp {
			return fs.SkipDir
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(p.dist.dir, file)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		s := stages[stageOf(name)]
		if s == nil {
			return nil
		}
		sum := known[name]
		if sum == "" {
			if sum, _, err = hashFile(file); err != nil {
				return err
			}
		}
		if s.Outputs == nil {
			s.Outputs = map[string]string{}
		}
		s.Outputs[name] = "sha256:" + sum
		return nil
	})
}
