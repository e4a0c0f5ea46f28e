package pipelines

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// limit is a bound for a size in bytes: absolute, or as growth over an earlier size.
type limit struct {
	key, text string
	bytes     int64
	percent   float64
	growth    bool
}

// parseLimit reads a limit such as 20MiB, +5% or +512KiB; nil where there is none.
func parseLimit(key, s string) (*limit, error) {
	if s == "" {
		return nil, nil
	}
	l := &limit{key: key, text: s}
	size, growth := strings.CutPrefix(s, "+")
	l.growth = growth
	if percent, ok := strings.CutSuffix(size, "%"); ok && growth {
		n, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(n >= 0 && n <= 1000) {
			return nil, fault.Usagef("Write it as +5%.", "%s: %q is not a growth", key, s)
		}
		l.percent = n
		return l, nil
	}
	if growth && (size == "0" || size == "0B") {
		return l, nil
	}
	var err error
	if l.bytes, err = parseBytes(key, size); err != nil {
		return nil, fault.Usagef("Write it as 20MiB, or as growth over --previous: +5% or +512KiB.", "%s: %q is not a limit", key, s)
	}
	return l, nil
}

// most is the largest size that l allows.
func (l *limit) most(before int64) int64 {
	if !l.growth {
		return l.bytes
	}
	return before + l.bytes + int64(math.Floor(float64(before)*l.percent/100))
}

// checkLimits finds what is wrong with the limits before anything runs.
func (c Config) checkLimits() error {
	for key, s := range map[string]string{"size-limit": c.SizeLimit, "layer-limit": c.LayerLimit} {
		l, err := parseLimit(key, s)
		if err != nil {
			return err
		}
		if l != nil && l.growth && c.Previous == "" {
			return fault.Usagef("Name the run.json of an earlier run with --previous.", "%s: %s is growth over an earlier run, and none is named", key, s)
		}
	}
	if c.Previous != "" {
		_, err := c.previousImage()
		return err
	}
	return nil
}

// previousImage is the image of the record that sizes are compared with; nil where none is named.
func (c Config) previousImage() (*ImageResult, error) {
	if c.Previous == "" {
		return nil, nil
	}
	r, err := ReadRecord(c.Previous)
	if err != nil {
		return nil, err
	}
	if r.Image == nil {
		return nil, fault.Usagef("Name the run.json of a run that made an image.", "previous: %s is of a run that made no image", c.Previous)
	}
	return r.Image, nil
}

// sized is a part of an image with its size now and before; before is negative where there was no such part.
type sized struct {
	name        string
	now, before int64
}

func (s sized) String() string {
	text := fmt.Sprintf("%s %s", s.name, humanBytes(s.now))
	switch d := s.now - s.before; {
	case s.before < 0:
	case d > 0:
		text += " (+" + humanBytes(d) + ")"
	case d < 0:
		text += " (-" + humanBytes(-d) + ")"
	}
	return text
}

// sizes are the image of a platform as a whole, and its layers.
func sizes(m PlatformImage, previous *ImageResult) (total sized, layers []sized) {
	before := map[string]int64{}
	count := func(m PlatformImage, each func(name string, l Layer)) {
		n := map[string]int{}
		for _, l := range m.Layers {
			name := l.Kind
			if n[l.Kind]++; n[l.Kind] > 1 {
				name += " " + strconv.Itoa(n[l.Kind])
			}
			each(name, l)
		}
	}
	total = sized{"image", m.Size, -1}
	if previous != nil {
		for _, old := range previous.Platforms {
			if old.Platform == m.Platform {
				total.before = old.Size
				count(old, func(name string, l Layer) { before[name] = l.Size })
			}
		}
	}
	count(m, func(name string, l Layer) {
		s := sized{name, l.Size, -1}
		if b, ok := before[name]; ok {
			s.before = b
		}
		layers = append(layers, s)
	})
	return total, layers
}

// exceeded lists what is larger than the limits allow.
func (p *Pipeline) exceeded(r *ImageResult) ([]Failure, error) {
	previous, err := p.Config.previousImage()
	if err != nil {
		return nil, err
	}
	ofImage, err := parseLimit("size-limit", p.Config.SizeLimit)
	if err != nil {
		return nil, err
	}
	ofLayer, err := parseLimit("layer-limit", p.Config.LayerLimit)
	if err != nil {
		return nil, err
	}
	var failures []Failure
	for _, m := range r.Platforms {
		total, layers := sizes(m, previous)
		var bad []string
		check := func(l *limit, s sized) {
			switch {
			case l == nil:
			case l.growth && s.before < 0:
				p.note("image", "%s: %s of %s is not in the earlier record, so its growth is unknown", l.key, s.name, m.Platform)
			case s.now > l.most(s.before):
				bad = append(bad, fmt.Sprintf("%s has %d bytes, %d more than %s=%s allows", s.name, s.now, s.now-l.most(s.before), l.key, l.text))
			}
		}
		check(ofImage, total)
		for _, l := range layers {
			check(ofLayer, l)
		}
		if len(bad) == 0 {
			continue
		}
		var parts []string
		for _, s := range append([]sized{total}, layers...) {
			parts = append(parts, s.String())
		}
		text := strings.Join(bad, "\n") + "\n" + strings.Join(parts, ", ")
		if heavy, err := p.heaviest(m.Platform, 5); err != nil {
			return nil, err
		} else if heavy != "" {
			text += "\n" + heavy
		}
		failures = append(failures, Failure{What: "image " + m.Platform, Where: m.Platform, Message: text, Next: "`slipway image --explain` shows every layer and package.", Repeat: map[string]string{"platforms": m.Platform}})
	}
	return failures, nil
}

// heaviest names the packages that take most of the programs for a platform.
func (p *Pipeline) heaviest(platform string, n int) (string, error) {
	var lines []string
	for _, b := range p.build.Binaries {
		if b.Platform != platform {
			continue
		}
		w, err := p.weigh(b)
		if err != nil {
			return "", err
		}
		if w == nil {
			continue
		}
		var parts []string
		for _, x := range w.Packages[:min(n, len(w.Packages))] {
			parts = append(parts, x.Package+" "+humanBytes(int64(x.Bytes)))
		}
		lines = append(lines, "heaviest packages of "+b.Name+": "+strings.Join(parts, ", "))
	}
	return strings.Join(lines, "\n"), nil
}
