package pipelines

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines/internal/chart"
	"github.com/slipway-ci/slipway/pipelines/internal/contents"
	"github.com/slipway-ci/slipway/pipelines/internal/layers"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// compareStarts is how often an image is started for a comparison, unless smoke.repeat says more.
const compareStarts = 10

// CompareResult is what images of the same program look like on several base images.
type CompareResult struct {
	Verdict Verdict `json:"verdict"`
	// Platform is the one that was compared.
	Platform string         `json:"platform"`
	Bases    []ComparedBase `json:"bases"`
}

// ComparedBase is the image of the program on one base image. Sizes are in bytes.
type ComparedBase struct {
	// Base is as it was asked for, Reference what that stands for.
	Base      string `json:"base"`
	Reference string `json:"reference"`
	Digest    string `json:"digest,omitempty"`
	// Missing says why there is nothing to compare, such as that the base image cannot be reached.
	Missing string `json:"missing,omitempty"`
	// Size is what a pull transfers, BaseSize that of the base image's layers alone. Uncompressed is the size
	// of all layers unpacked.
	Size         int64 `json:"size"`
	BaseSize     int64 `json:"base_size"`
	Uncompressed int64 `json:"uncompressed"`
	// Files counts regular files and symbolic links. Setuid lists the files that give privileges.
	Files  int      `json:"files"`
	Setuid []string `json:"setuid,omitempty"`
	// Shell and PackageManager are paths or names, empty for none.
	Shell          string `json:"shell,omitempty"`
	PackageManager string `json:"package_manager,omitempty"`
	// Libc is the C library, empty for none.
	Libc string `json:"libc,omitempty"`
	// Packages are those that the package database PackageDB knows: what a scanner finds. -1 is unknown.
	Packages  int    `json:"packages"`
	PackageDB string `json:"package_db,omitempty"`
	OS        string `json:"os,omitempty"`
	// Smoke is the smoke run, nil where there was none.
	Smoke *SmokeRun `json:"smoke,omitempty"`
}

// Compare puts the verified program on several base images, and tells what each of them brings along. What is
// wrong with one of them is said in its place and does not keep the others from being compared.
func (p *Pipeline) Compare(ctx context.Context) (*CompareResult, error) {
	if err := p.checkImage(); err != nil {
		return nil, err
	}
	verify, err := p.Verify(ctx)
	if err != nil || verify.Verdict != Passed {
		return &CompareResult{Verdict: Skipped}, err
	}
	platforms := p.imagePlatforms()
	platform := platforms[0]
	if native := NativePlatform(); slices.Contains(platforms, native) {
		platform = native
	}
	s := p.stage("compare")
	result := &CompareResult{Verdict: NotRun, Platform: platform.String()}
	for _, base := range p.Config.Bases {
		err := s.task(ctx, "compare "+shownBase(base), func(ctx context.Context, progress func(string)) (Verdict, string, error) {
			row, err := p.compareBase(ctx, base, platform, progress)
			if err != nil {
				return "", "", err
			}
			result.Bases = append(result.Bases, *row)
			if row.Missing != "" {
				return NotRun, row.Missing, nil
			}
			result.Verdict = Passed
			return Passed, humanBytes(row.Size), nil
		})
		if err != nil {
			return nil, err
		}
	}
	s.end(result.Verdict, fmt.Sprintf("%s on %s", plural(len(result.Bases), "base image", "base images"), result.Platform))
	p.Record.Compare = result
	if err := p.writeFile("compare.svg", result.chart().SVG()); err != nil {
		return nil, err
	}
	return result, p.writeJSON("compare.json", result)
}

// compareBase makes and looks at the image on one base image.
func (p *Pipeline) compareBase(ctx context.Context, base string, platform Platform, progress func(string)) (*ComparedBase, error) {
	c := p.given
	c.Base = base
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	c.Smoke.Repeat = max(c.Smoke.Repeat, compareStarts)
	row := &ComparedBase{Base: shownBase(base), Reference: shownBase(c.Base)}
	layout := p.path("compare")
	defer os.RemoveAll(layout)
	image := &ImageResult{}
	if err := p.assemble(ctx, c, []Platform{platform}, layout, image, progress); err != nil {
		if row.Missing = missing(err); row.Missing != "" && ctx.Err() == nil {
			return row, nil
		}
		return nil, err
	}
	m := image.Platforms[0]
	row.Digest, row.Size = image.BaseDigest, m.Size
	for _, l := range m.Layers {
		row.Uncompressed += l.Uncompressed
		if l.Kind == "base" {
			row.BaseSize += l.Size
		}
	}
	progress("looking into it")
	written, err := oci.ResolveBase(ctx, "oci:"+layout, oci.BaseOptions{})
	if err != nil {
		return nil, err
	}
	img, err := written.Image(ctx, platform.String())
	if err != nil {
		return nil, err
	}
	facts, err := contents.Inspect(ctx, img)
	if damaged, ok := errors.AsType[*layers.DamagedError](err); ok {
		row.Missing = damaged.Error()
		return row, nil
	}
	if err != nil {
		return nil, err
	}
	row.Files, row.Setuid, row.Shell, row.PackageManager = facts.Files, facts.Setuid, facts.Shell, facts.PackageManager
	row.Libc, row.Packages, row.PackageDB, row.OS = facts.Libc, facts.Packages, facts.PackageDB, facts.OS
	if c.Smoke.Isolation == "off" {
		return row, nil
	}
	progress("starting it")
	row.Smoke, err = p.try(ctx, c, layout, m, progress)
	return row, err
}

// missing says why a base image cannot be compared, empty if that is not its fault.
func missing(err error) string {
	var fetch *oci.FetchError
	var platform *oci.PlatformError
	var pin *oci.PinError
	var digest *oci.DigestError
	switch {
	case errors.As(err, &fetch) && strings.HasPrefix(fetch.Ref, "oci:"):
		// A record holds no path of a machine.
		return strings.ReplaceAll(fetch.Err.Error(), filepath.Dir(fetch.Host)+string(filepath.Separator), "")
	case errors.As(err, &fetch):
		return "not reachable: " + fetch.Err.Error()
	case errors.As(err, &platform):
		return platform.Error()
	case errors.As(err, &pin):
		return pin.Error()
	case errors.As(err, &digest):
		return digest.Error()
	}
	return ""
}

// chart draws the comparison.
func (r *CompareResult) chart() chart.Bars {
	b := chart.Bars{
		Title: "One program on several base images", Subtitle: "What a pull of " + r.Platform + " transfers",
		Columns: []string{"files", "setuid", "shell", "package manager", "libc", "packages", "cold start"},
	}
	for _, x := range r.Bases {
		row := chart.Row{Label: x.Base, Note: x.Missing}
		if x.Missing == "" {
			row.Value = humanBytes(x.Size)
			row.Segments = []chart.Segment{{Name: "program and slipway's layers", Size: float64(x.Size - x.BaseSize)}, {Name: "base image", Size: float64(x.BaseSize)}}
			row.Cells = []string{strconv.Itoa(x.Files), strconv.Itoa(len(x.Setuid)), cmp.Or(x.Shell, "no"), cmp.Or(x.PackageManager, "no"), cmp.Or(x.Libc, "no"), x.packages(), x.ColdStart()}
		}
		b.Rows = append(b.Rows, row)
	}
	return b
}

func (x ComparedBase) packages() string {
	switch {
	case x.PackageDB == "":
		return "no"
	case x.Packages < 0:
		return "unknown"
	}
	return strconv.Itoa(x.Packages)
}

// ColdStart is the median of the times to the first good answer, or to the end, and how far they spread.
func (x ComparedBase) ColdStart() string {
	switch {
	case x.Smoke == nil:
		return ""
	case x.Smoke.Verdict == NotRun:
		return "not run here"
	case x.Smoke.Verdict != Passed:
		return "does not start"
	case len(x.Smoke.Starts) == 0:
		return ""
	}
	ms := func(d Microseconds) string {
		return strconv.FormatFloat(float64(time.Duration(d).Microseconds())/1000, 'f', 1, 64)
	}
	all := x.Smoke.Starts
	return fmt.Sprintf("%s ms (%s to %s)", ms(median(all)), ms(slices.Min(all)), ms(slices.Max(all)))
}
