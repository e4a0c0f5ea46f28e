package pipelines

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// TagPolicy says which tags the image gets in a repository that Config.To names without a tag. They come from what
// git knows of the commit. Nothing that has a digest depends on them.
type TagPolicy struct {
	// Tags are the kinds of tags: "semver" (of the git tag v1.4.2: 1.4.2, and 1.4 and 1 unless there is a later
	// one), "commit" (sha- and twelve digits of the commit), "branch". Default: none, and the image has no tag but
	// those in Config.To.
	Tags []string `yaml:"tags"`
	// Latest is what moves the tag latest: the name of a branch, or "release" for the highest version without
	// a pre-release. Default: nothing does.
	Latest string `yaml:"latest"`
}

var tagKinds = []string{"semver", "commit", "branch"}

func (t TagPolicy) none() bool { return len(t.Tags) == 0 && t.Latest == "" }

func (t TagPolicy) check() error {
	for _, kind := range t.Tags {
		if !slices.Contains(tagKinds, kind) {
			return fault.Usagef(fault.Nearest(kind, tagKinds), "publish.tags: there is no kind of tag %q", kind)
		}
	}
	return nil
}

var (
	fixedTag = regexp.MustCompile(`^(v?\d+\.\d+\.\d+([-+._].*)?|sha-[0-9a-f]{12})$`)
	// floatingTag are those that a policy moves along with versions.
	floatingTag = regexp.MustCompile(`^(v?\d+(\.\d+)?|latest)$`)
	notInTag    = regexp.MustCompile(`[^a-zA-Z0-9_.-]+`)
)

// longestTag is from https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-manifests
const longestTag = 128

// immutable tells whether a tag names one content for ever: a full version, such as 1.4.2, v1.4.2 or 1.5.0-rc.1, or
// a commit, as a policy writes it. All others may be moved: 1.4, 1, latest, branches.
func immutable(tag string) bool { return fixedTag.MatchString(tag) }

// chosenTags are the tags of one run.
type chosenTags struct {
	names []string
	// behind are for oci.PushOptions.
	behind map[string]func(existing []string) string
	// without says why there are not more.
	without []string
}

// choose applies the policy to what is known of the source. What is not committed has neither version nor commit,
// and is nobody's latest.
func (t TagPolicy) choose(s engine.Source) chosenTags {
	c := chosenTags{behind: map[string]func([]string) string{}}
	var versions []string // the highest first
	for _, tag := range s.Tags {
		if fullVersion(tag) == tag {
			versions = append(versions, tag)
		}
	}
	semver.Sort(versions)
	slices.Reverse(versions)
	dirty := ""
	switch {
	case s.Commit == "":
		dirty = "the source has no commit"
	case s.Dirty:
		dirty = "the source has changes that are not committed"
	}
	for _, kind := range t.Tags {
		switch {
		case kind == "branch":
			c.branch(s.Branch)
		case dirty != "":
			c.without = append(c.without, kind+": "+dirty)
		case kind == "commit":
			c.add("sha-" + s.Commit[:12])
		case len(versions) == 0:
			c.without = append(c.without, "semver: no tag of git such as v1.4.2 points at the commit")
		default:
			c.versions(versions)
		}
	}
	released := slices.IndexFunc(versions, func(v string) bool { return semver.Prerelease(v) == "" })
	switch {
	case t.Latest == "":
	case dirty != "":
		c.without = append(c.without, "latest: "+dirty)
	case t.Latest == "release" && released >= 0:
		c.forward("latest", versions[released], "")
	case t.Latest == "release":
		c.without = append(c.without, "latest: the commit is no release")
	case t.Latest == s.Branch:
		c.add("latest")
	default:
		c.without = append(c.without, "latest: the branch is "+cmp.Or(s.Branch, "not known")+", not "+t.Latest)
	}
	return c
}

func (c *chosenTags) add(tag string) {
	if !slices.Contains(c.names, tag) {
		c.names = append(c.names, tag)
	}
}

// forward adds a tag that only goes forward: not where the repository has a later version of the same scope, such
// as v1.4, than the given one.
func (c *chosenTags) forward(tag, given, scope string) {
	if slices.Contains(c.names, tag) {
		return // of a higher version at the same commit
	}
	c.add(tag)
	c.behind[tag] = func(existing []string) string {
		latest, name := given, ""
		for _, x := range existing {
			v := fullVersion("v" + strings.TrimPrefix(x, "v"))
			if v == "" || semver.Prerelease(v) != "" || scope != "" && scope != semver.Major(v) && scope != semver.MajorMinor(v) {
				continue
			}
			if semver.Compare(v, latest) > 0 {
				latest, name = v, x
			}
		}
		return name
	}
}

func (c *chosenTags) versions(versions []string) {
	for _, v := range versions {
		c.add(v[1:])
	}
	for _, v := range versions {
		if semver.Prerelease(v) != "" {
			continue
		}
		minor, major := semver.MajorMinor(v), semver.Major(v)
		c.forward(minor[1:], v, minor)
		if major != "v0" { // where every minor version may break what there was
			c.forward(major[1:], v, major)
		}
	}
}

// fullVersion is a tag if it is a full version that can be the tag of an image, else empty. Build metadata begins with a
// plus sign, which tags of images cannot have.
func fullVersion(tag string) string {
	if semver.Canonical(tag) != tag || len(tag) > longestTag {
		return ""
	}
	return tag
}

func (c *chosenTags) branch(branch string) {
	tag := strings.TrimLeft(notInTag.ReplaceAllString(branch, "-"), "-.")
	tag = tag[:min(len(tag), longestTag)]
	switch {
	case branch == "":
		c.without = append(c.without, "branch: no branch is checked out")
	case tag == "":
		c.without = append(c.without, "branch: "+branch+" has no letter that a tag can have")
	case immutable(tag), floatingTag.MatchString(tag):
		c.without = append(c.without, "branch: "+tag+" is what a release is called")
	default:
		c.add(tag)
	}
}

// publishTags are the tags that the policy gives, or an error if it gives none and some place needs one.
func (p *Pipeline) publishTags() (chosenTags, error) {
	if p.Config.Publish.none() || !slices.ContainsFunc(p.Config.To, oci.Untagged) {
		return chosenTags{}, nil
	}
	src := p.engine.Source()
	src.Branch = cmp.Or(src.Branch, p.opts.Branch)
	if t := p.opts.Tag; t != "" && !slices.Contains(src.Tags, t) {
		src.Tags = append(slices.Clone(src.Tags), t)
	}
	c := p.Config.Publish.choose(src)
	if len(c.names) == 0 {
		return c, fault.Usagef("Commit and tag first, add another kind to publish.tags, or write a tag into `to`.", "publish: there is no tag to publish under (%s)", strings.Join(c.without, "; "))
	}
	return c, nil
}
