package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/slipway-ci/slipway/pipelines/fault"
)

func TestError(t *testing.T) {
	assert.EqualError(t, fault.Usagef("Do %s.", "no key %q", "x"), "no key \"x\"\n  Do %s.")
	assert.EqualError(t, fault.Usagef("", "no key"), "no key")
	assert.EqualError(t, fault.Environmentf(io.EOF, "Try again.", "cannot read %s", "x"), "cannot read x: EOF\n  Try again.")
	assert.EqualError(t, fault.Environmentf(io.EOF, "Try again.", ""), "EOF\n  Try again.")
	assert.EqualError(t, fault.Environmentf(nil, "", "broken"), "broken")
	assert.ErrorIs(t, fault.Environmentf(io.EOF, "", "x"), io.EOF)
}

func TestOf(t *testing.T) {
	for want, errs := range map[fault.Kind][]error{
		fault.Usage:       {fault.Usagef("", "x"), fmt.Errorf("around: %w", fault.Usagef("", "x")), errors.Join(fault.Usagef("", "x"), io.EOF)},
		fault.Environment: {io.EOF, fault.Environmentf(nil, "", "x"), fault.Environmentf(fault.Usagef("", "inner"), "", "the outer one counts"), context.DeadlineExceeded},
		fault.Interrupted: {context.Canceled, fault.Environmentf(context.Canceled, "", "x"), fmt.Errorf("go test: %w", context.Canceled), errors.Join(io.EOF, context.Canceled)},
	} {
		for _, err := range errs {
			assert.Equal(t, want, fault.Of(err), "%v", err)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"platforms", "packages", "parallel", "race", "cgo", "go-versions"}
	for word, want := range map[string]string{
		"platform": "platforms", "PLATFORMS": "platforms", "package": "packages", "paralel": "parallel", "rcae": "race", "go_versions": "go-versions", "goversions": "go-versions", "cg": "cgo",
	} {
		assert.Equal(t, fmt.Sprintf("Did you mean %q?", want), fault.Nearest(word, known), word)
	}
	for _, word := range []string{"", "x", "zzzzzz", "ünïcödé"} {
		assert.Equal(t, "There are: cgo, go-versions, packages, parallel, platforms, race.", fault.Nearest(word, known), word)
	}
	assert.Equal(t, []string{"platforms", "packages", "parallel", "race", "cgo", "go-versions"}, known, "left as it was")
	assert.Equal(t, "There is none.", fault.Nearest("x", nil))
}
