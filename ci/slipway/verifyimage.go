package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/slipway-ci/slipway/ci/internal/view"
	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/engine/host"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// verifyImage checks a published image and prints what was found. With a source it builds that first, to compare.
func verifyImage(ctx context.Context, in *input, stdout io.Writer, stderr *os.File) error {
	cache, err := host.CacheDir("")
	if err != nil {
		return err
	}
	o := pipelines.VerifyImageOptions{Key: in.key, Cache: cache, Credentials: in.credentials}
	if in.rebuild {
		if o.Rebuilt, err = rebuiltDigest(ctx, in, cache, stdout, stderr); err != nil {
			return err
		}
	}
	r, err := pipelines.VerifyImage(ctx, in.reference, o)
	if err != nil {
		return err
	}
	if in.json {
		err = json.NewEncoder(stdout).Encode(map[string]any{"event": "end", "verdict": r.Verdict, "image": r})
	} else {
		err = report.Image(stdout, r)
		fmt.Fprintf(stdout, "\nslipway verify: %s\n", r.Verdict)
	}
	if err == nil && r.Verdict != pipelines.Passed {
		err = errVerdict
	}
	return err
}

// rebuiltDigest is the digest of the image that the source gives. Nothing is left of that build.
func rebuiltDigest(ctx context.Context, in *input, cache string, stdout io.Writer, stderr *os.File) (digest string, err error) {
	e, closeEngine, err := openEngine(ctx, in)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, closeEngine()) }()
	dir, err := os.MkdirTemp("", "slipway-verify-")
	if err != nil {
		return "", fault.Environmentf(err, "Check TMPDIR.", "temporary directory")
	}
	defer os.RemoveAll(dir)
	progress := view.Choose(stderr, false, os.Getenv)
	if in.json {
		progress = view.JSON(stdout)
	}
	defer progress.Close()
	p, err := pipelines.New(ctx, e, in.config, pipelines.Options{Output: filepath.Join(dir, "output"), Cache: cache, Observe: progress.Event})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	image, err := p.Image(ctx)
	if err != nil {
		return "", err
	}
	if image.Verdict != pipelines.Passed {
		return "", fault.Environmentf(nil, "`slipway image` with the same flags shows why.", "the source does not give an image to compare with")
	}
	return image.Digest, nil
}
