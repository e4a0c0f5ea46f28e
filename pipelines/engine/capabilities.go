package engine

import (
	"slices"

	"github.com/moby/sys/capability"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

// CapabilityMask returns the set of the named capabilities ("cap_net_bind_service"), as the kernel writes it:
// a bit for each number.
func CapabilityMask(names []string) (uint64, error) {
	var known []string
	var mask uint64
	for _, c := range capability.ListKnown() {
		known = append(known, "cap_"+c.String())
		if slices.Contains(names, known[len(known)-1]) {
			mask |= 1 << c
		}
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return 0, fault.Usagef(fault.Nearest(name, known), "capabilities: there is no capability %q; capabilities(7) has their names", name)
		}
	}
	return mask, nil
}
