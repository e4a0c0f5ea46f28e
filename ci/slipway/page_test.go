package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report/html"
)

// A page that cannot be made is an error for a note, whatever is wrong with the record.
func TestPageNeverPanics(t *testing.T) {
	_, err := runPage(html.Run{Record: &pipelines.Record{Stages: []*pipelines.StageRecord{nil}}}, nil, nil)
	require.Error(t, err)
}

func TestRepeatRecorded(t *testing.T) {
	r := &pipelines.Record{
		Config: map[string]any{"go-versions": []any{"1.21", "1.22"}, "race": true, "env": map[string]any{"B": "2", "A": "a b"}, "timeout": "1m0s", "to": []any{"embedded"}, "tmp": nil,
			"smoke": map[string]any{"isolation": "process", "repeat": float64(3), "probes": []any{}}},
		Origins: map[string]string{"go-versions": "flag", "race": "flag", "env": "flag", "timeout": "slipway.yaml", "to": "flag", "tmp": "flag", "smoke.isolation": "flag", "smoke.repeat": "flag", "smoke.probes": "flag"},
	}
	repeat := repeatRecorded(r)
	require.Equal(t, "slipway smoke '--env=A=a b,B=2' --go-versions=1.21,1.22 --race=true --smoke=process --repeat=3", repeat("smoke", nil))
	require.Equal(t, "slipway test --race=true --go-versions=1.22", repeat("test", map[string]string{"go-versions": "1.22"}))
}
