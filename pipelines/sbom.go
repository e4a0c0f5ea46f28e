package pipelines

import "github.com/slipway-ci/slipway/pipelines/internal/sbom"

// sbomName is the file with the SBOM of a platform.
func sbomName(platform Platform) string { return "sbom_" + platform.dirName() + ".spdx.json" }

// sbom is an SPDX document about the programs of a platform and, where there is one, the image around them. It
// names what was linked, which the programs themselves tell.
func (p *Pipeline) sbom(platform Platform) ([]byte, error) {
	o := sbom.Options{Name: p.Plan.Name + " " + platform.String(), Version: p.Record.Slipway.Version, Created: p.sourceTime()}
	for _, b := range p.build.Binaries {
		if b.platform == platform {
			o.Binaries = append(o.Binaries, sbom.Binary{Name: b.Name + platform.exe(), Package: b.Package, SHA256: b.SHA256, Info: b.info})
		}
	}
	if m := p.platformImage(platform); m != nil {
		o.Image = &sbom.Image{Name: p.Plan.Name, Digest: m.Manifest, BaseName: p.image.Base, BaseDigest: p.image.BaseDigest}
	}
	return sbom.SPDX(o)
}
