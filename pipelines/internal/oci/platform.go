package oci

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// parsePlatform reads "linux/arm/v7". A variant that says nothing is dropped, so that one platform has
// one spelling: v8 is what arm64 means, v1 is what amd64 means.
func parsePlatform(s string) (v1.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return v1.Platform{}, fmt.Errorf("%q is not a platform such as linux/amd64 or linux/arm/v7", s)
	}
	p := v1.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	p.Variant = normalVariant(p)
	return p, nil
}

func normalVariant(p v1.Platform) string {
	switch p.Architecture + "/" + p.Variant {
	case "arm64/v8", "arm64/v8.0", "amd64/v1":
		return ""
	case "arm/5", "arm/6", "arm/7":
		return "v" + p.Variant // some images say it so
	}
	return p.Variant
}

// platformName is the text of a platform; versions of operating systems are left out.
func platformName(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if v := normalVariant(p); v != "" {
		s += "/" + v
	}
	return s
}

// accepts returns the variants of an image that run where p runs, the best first. An older variant runs on
// a newer processor, never the other way round.
func accepts(p v1.Platform) []string {
	v := normalVariant(p)
	switch p.Architecture {
	case "arm":
		v = cmp.Or(v, "v7")
		variants := []string{"v7", "v6", "v5"}
		if i := slices.Index(variants, v); i >= 0 {
			// Without a variant, an image is commonly for v7.
			if v == "v7" {
				return []string{"v7", "", "v6", "v5"}
			}
			return variants[i:]
		}
	case "amd64":
		variants := []string{"v4", "v3", "v2", ""}
		if i := slices.Index(variants, v); i >= 0 {
			return variants[i:]
		}
	case "arm64":
		if v != "" {
			return []string{v, ""}
		}
	}
	return []string{v}
}

// choose returns the descriptor of an index that fits p best.
func choose(manifests []v1.Descriptor, p v1.Platform) (v1.Descriptor, bool) {
	for _, variant := range accepts(p) {
		for _, d := range manifests {
			if have := d.Platform; isImage(d) && have != nil && have.OS == p.OS && have.Architecture == p.Architecture && normalVariant(*have) == variant {
				return d, true
			}
		}
	}
	return v1.Descriptor{}, false
}

// isImage tells images of an index from attestations, which builders put beside them as
// "unknown/unknown".
func isImage(d v1.Descriptor) bool {
	return d.MediaType.IsImage() && d.Annotations["vnd.docker.reference.type"] == ""
}

// platformsOf lists the platforms of an index, sorted.
func platformsOf(manifests []v1.Descriptor) []string {
	var names []string
	for _, d := range manifests {
		if isImage(d) && d.Platform != nil {
			names = append(names, platformName(*d.Platform))
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
