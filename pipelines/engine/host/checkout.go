package host

import (
	"context"

	"github.com/slipway-ci/slipway/pipelines/engine/internal/source"
)

// Checkout checks a commit of the git repository that dir lies in out into a new directory below temp, and returns what
// stands there for dir. The repository itself is only read.
func Checkout(ctx context.Context, dir, commit, temp string) (string, error) {
	return source.Checkout(ctx, dir, commit, temp)
}
