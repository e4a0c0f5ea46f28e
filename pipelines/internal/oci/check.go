package oci

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
)

// CheckTarget tells what is wrong with how a target of [Push] is written. It asks nobody.
func CheckTarget(target string) error {
	kind, path, local := strings.Cut(target, ":")
	switch {
	case target == "embedded":
		return nil
	case local && (kind == "oci" || kind == "tar"):
		if path == "" {
			return fmt.Errorf("target %q names no place", target)
		}
		return nil
	}
	if scheme, rest, ok := strings.Cut(target, "://"); ok {
		return fmt.Errorf("target %q: leave out %s://, as in %s", target, scheme, rest)
	}
	_, _, err := parseTarget(target, nil)
	return err
}

// CheckBase tells what is wrong with how a base image is written, as [ResolveBase] takes it. It asks nobody.
func CheckBase(ref string) error {
	if ref == Scratch || strings.HasPrefix(ref, "oci:") {
		return nil
	}
	_, err := name.ParseReference(ref)
	return err
}

// CheckMirror tells what is wrong with an entry of BaseOptions.Mirrors. It asks nobody.
func CheckMirror(from, to string) error {
	for _, prefix := range []string{from, to} {
		if prefix == "" || strings.HasSuffix(prefix, "/") || strings.Contains(prefix, "://") {
			return fmt.Errorf("%q is neither a registry nor a repository", prefix)
		}
		if _, err := name.NewRepository(prefix+"/x", name.WithDefaultRegistry("")); err != nil {
			return err
		}
	}
	return nil
}

// Remote tells whether a target of [Push] is in a registry of somebody else.
func Remote(target string) bool {
	kind, _, _ := strings.Cut(target, ":")
	return target != "embedded" && kind != "oci" && kind != "tar"
}

// Untagged tells whether a target of [Push] is a repository in a registry, without a tag.
func Untagged(target string) bool {
	_, tags, err := parseTarget(target, nil)
	return Remote(target) && err == nil && len(tags) == 0
}
