package pipelines

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// writeArchives packs the binaries of each platform with licence and read-me files, and writes
// SHA256SUMS over binaries and archives.
func (p *Pipeline) writeArchives(ctx context.Context, binaries []Binary) error {
	documents, err := p.documents()
	if err != nil {
		return err
	}
	lines := make([][]string, len(p.Plan.Platforms))
	err = p.parallel(ctx, len(lines), func(_ context.Context, i int) error {
		platform := p.Plan.Platforms[i]
		entries := slices.Clone(documents)
		for _, b := range binaries {
			if b.platform == platform {
				entries = append(entries, oci.Entry{Path: b.Name + platform.exe(), Mode: 0o755, File: p.path(b.Path)})
				lines[i] = append(lines[i], b.SHA256+"  "+b.Path)
			}
		}
		write, name := oci.WriteTarGz, p.Plan.Name+"_"+platform.dirName()+".tar.gz"
		if platform.OS == "windows" {
			write, name = oci.WriteZip, p.Plan.Name+"_"+platform.dirName()+".zip"
		}
		written, err := write(p.path(name), entries, p.sourceTime())
		if err != nil {
			return p.dist.error(err)
		}
		lines[i] = append(lines[i], written.SHA256+"  "+name)
		return nil
	})
	if err != nil {
		return err
	}
	all := slices.Concat(lines...)
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(a[64:], b[64:]) }) // by name
	return p.writeFile("SHA256SUMS", []byte(strings.Join(all, "\n")+"\n"))
}

// documents are the licence and read-me files in the root of the source.
func (p *Pipeline) documents() ([]oci.Entry, error) {
	var entries []oci.Entry
	for _, f := range p.engine.Source().Files {
		upper := strings.ToUpper(f.Name)
		if f.Link != "" || strings.Contains(f.Name, "/") || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "README", "NOTICE"}, func(x string) bool { return strings.HasPrefix(upper, x) }) {
			continue
		}
		text, err := fs.ReadFile(p.engine.Source().FS, f.Name)
		if err != nil {
			return nil, fmt.Errorf("archive: %w", err)
		}
		entries = append(entries, oci.Entry{Path: f.Name, Mode: 0o644, Data: text})
	}
	return entries, nil
}
