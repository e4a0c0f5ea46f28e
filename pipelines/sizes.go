package pipelines

import (
	"context"
	"fmt"

	"github.com/slipway-ci/slipway/pipelines/internal/chart"
)

// SizesResult says what the image is made of: its layers, and the packages of the programs in it.
type SizesResult struct {
	Verdict   Verdict         `json:"verdict"`
	Platforms []PlatformSizes `json:"platforms"`
}

// PlatformSizes are those of one platform's image. Sizes are in bytes.
type PlatformSizes struct {
	Platform string `json:"platform"`
	// Size is what a pull transfers. Previous is that of the earlier record, -1 without one.
	Size     int64       `json:"size"`
	Previous int64       `json:"previous"`
	Layers   []LayerSize `json:"layers"`
	// Programs are the commands in the image, with what takes how much of their files.
	Programs []BinaryDeps `json:"programs"`
}

// LayerSize is one layer as it is transferred. Previous is its size in the earlier record, -1 without one.
type LayerSize struct {
	Layer    string `json:"layer"`
	Size     int64  `json:"size"`
	Previous int64  `json:"previous"`
}

// Explain makes the image and says what it is made of, also where it is larger than it may be. Beside sizes.json it
// writes two pictures, layers.svg and packages.svg.
func (p *Pipeline) Explain(ctx context.Context) (*SizesResult, error) {
	image, err := p.Image(ctx)
	if err != nil || len(image.Platforms) == 0 {
		return &SizesResult{Verdict: Skipped}, err
	}
	previous, err := p.Config.previousImage()
	if err != nil {
		return nil, err
	}
	result := &SizesResult{Verdict: Passed}
	for _, m := range image.Platforms {
		total, layers := sizes(m, previous)
		s := PlatformSizes{Platform: m.Platform, Size: total.now, Previous: total.before}
		for _, l := range layers {
			s.Layers = append(s.Layers, LayerSize{l.name, l.now, l.before})
		}
		for _, b := range p.build.Binaries {
			if b.Platform != m.Platform {
				continue
			}
			w, err := p.weigh(b)
			if err != nil {
				return nil, err
			}
			s.Programs = append(s.Programs, BinaryDeps{Name: b.Name, Platform: b.Platform, Linked: len(b.info.Deps), Weight: w})
		}
		result.Platforms = append(result.Platforms, s)
	}
	p.Record.Sizes = result
	if err := p.writeFile("layers.svg", result.layers().SVG()); err != nil {
		return nil, err
	}
	if err := p.writeFile("packages.svg", result.Platforms[0].packages().SVG()); err != nil {
		return nil, err
	}
	return result, p.writeJSON("sizes.json", result)
}

func (r *SizesResult) layers() chart.Bars {
	b := chart.Bars{Title: "Layers of the image", Subtitle: "What a pull transfers"}
	for _, s := range r.Platforms {
		row := chart.Row{Label: s.Platform, Value: humanBytes(s.Size)}
		for _, l := range s.Layers {
			row.Segments = append(row.Segments, chart.Segment{Name: l.Layer, Size: float64(l.Size)})
		}
		b.Rows = append(b.Rows, row)
	}
	return b
}

// shownPackages is how many packages of a program are drawn.
const shownPackages = 15

func (s PlatformSizes) packages() chart.Bars {
	b := chart.Bars{Title: "Heaviest packages", Subtitle: s.Platform + ", before compression"}
	for _, program := range s.Programs {
		if program.Weight == nil {
			continue
		}
		for i, x := range program.Weight.Packages {
			if i == shownPackages {
				break
			}
			label := x.Package
			if len(s.Programs) > 1 {
				label = fmt.Sprintf("%s (%s)", x.Package, program.Name)
			}
			b.Rows = append(b.Rows, chart.Row{Label: label, Value: humanBytes(int64(x.Bytes)), Segments: []chart.Segment{{Name: "code", Size: float64(x.TextBytes)}, {Name: "data", Size: float64(x.DataBytes)}}})
		}
	}
	return b
}
