package pipelines

import (
	"io/fs"
	"os"
)

// Conclude gives the record its verdict and the time that the run has taken so far, for reports that are written before
// Finish, which does the same. Of several times, the first is kept.
func (p *Pipeline) Conclude() {
	if p.Record.Elapsed == 0 {
		p.Record.Elapsed = p.since()
	}
	p.Record.conclude()
}

// Written is what the run has written so far, to be read before Finish puts it into place.
func (p *Pipeline) Written() fs.FS { return os.DirFS(p.dist.dir) }

// WriteFile adds a file to what the run writes, such as a report. Finish puts it into place with the rest.
func (p *Pipeline) WriteFile(name string, content []byte) error { return p.writeFile(name, content) }
