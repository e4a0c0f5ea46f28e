package view

import (
	"encoding/json"
	"io"
	"sync"

	"github.com/slipway-ci/slipway/pipelines"
)

// Schema is the version of what JSON writes. It stands in the first line and in the last one, which the caller
// writes; docs/formats.md describes both and what is between.
const Schema = 1

// JSON is the view for programs: each event as it is, one JSON object per line.
func JSON(w io.Writer) View {
	encoder := json.NewEncoder(w)
	// The lines are for programs and logs, never for a web page.
	encoder.SetEscapeHTML(false)
	return &jsonLines{encoder: encoder}
}

type jsonLines struct {
	mu      sync.Mutex
	encoder *json.Encoder
	begun   bool
	closed  bool
}

func (j *jsonLines) Event(e pipelines.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
	case j.begun:
		_ = j.encoder.Encode(e)
	default:
		j.begun = true
		_ = j.encoder.Encode(struct {
			Schema int `json:"schema"`
			pipelines.Event
		}{Schema, e})
	}
}

func (j *jsonLines) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
}
