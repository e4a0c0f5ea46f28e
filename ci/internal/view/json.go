package view

import (
	"encoding/json"
	"io"
	"sync"

	"github.com/slipway-ci/slipway/pipelines"
)

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
	closed  bool
}

func (j *jsonLines) Event(e pipelines.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		_ = j.encoder.Encode(e)
	}
}

func (j *jsonLines) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
}
