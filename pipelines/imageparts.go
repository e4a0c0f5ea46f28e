package pipelines

import (
	"cmp"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// part is what goes into one layer.
type part struct {
	kind    string
	entries []oci.Entry
}

// layerTime is the time of all that is in a layer. Where nobody reads it, it is the same for all commits: an image of
// another commit then has the layers in common whose content is the same. Web servers tell browsers that of files.
func (p *Pipeline) layerTime(x part) time.Time {
	if x.kind == filesKind {
		return p.sourceTime()
	}
	return time.Unix(0, 0).UTC()
}

// filesKind is the layer of the files that the configuration names.
const filesKind = "files"

// commandEntries are the commands for a platform.
func (p *Pipeline) commandEntries(platform Platform, entrypoint string) []oci.Entry {
	var entries []oci.Entry
	for _, b := range p.build.Binaries {
		if b.platform != platform {
			continue
		}
		e := oci.Entry{Path: path.Join(binDir, b.Name), Mode: 0o755, File: p.path(b.Path)}
		if mask, _ := engine.CapabilityMask(p.Config.Capabilities); mask != 0 && b.Name == entrypoint { // was checked
			e.Xattrs = map[string]string{"security.capability": fileCapabilities(mask)}
		}
		entries = append(entries, e)
	}
	return entries
}

// commonParts are what a program needs around it, the same for every platform. Each is a layer of its
// own, so that registries keep it once for all images.
func (p *Pipeline) commonParts(c Config) ([]part, error) {
	var parts []part
	if *c.Certificates {
		entries, err := oci.Certificates()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{"certificates", entries})
	}
	switch zones := c.Timezones; {
	case slices.Equal(zones, []string{"none"}):
	case slices.Equal(zones, []string{"all"}):
		zones = nil
		fallthrough
	default:
		entries, err := oci.TimeZones(zones...)
		if err != nil {
			return nil, fault.Usagef("Use names of the IANA time zone database, or all, or none.", "timezones: %v", err)
		}
		parts = append(parts, part{"timezones", entries})
	}
	if *c.Accounts {
		parts = append(parts, part{"accounts", oci.Accounts()})
	}
	if *c.Tmp {
		parts = append(parts, part{"tmp", oci.Temp()})
	}
	files, err := p.fileEntries(c, parts)
	if err != nil {
		return nil, err
	}
	if len(files) > 0 {
		parts = append(parts, part{filesKind, files})
	}
	return parts, nil
}

// fileEntries are the further files of the image, and on scratch its volumes, which the image's user owns:
// what mounts a volume takes the owner from there.
func (p *Pipeline) fileEntries(c Config, below []part) ([]oci.Entry, error) {
	entries := map[string]oci.Entry{}
	if uid, gid, err := (ImageFile{Owner: c.User}).owner(); err == nil && c.Base == oci.Scratch {
		for _, volume := range c.Volumes {
			entries[volume[1:]] = oci.Entry{Path: volume[1:], Mode: fs.ModeDir | 0o755, UID: uid, GID: gid}
		}
	}
	for i, f := range c.Files {
		found, err := p.imageFile(f)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, fault.Usagef("What git ignores is no part of the source.", "files[%d].from: the source has no file %s", i, f.From)
		}
		for _, e := range found {
			if path.Dir(e.Path) == binDir && slices.ContainsFunc(p.Plan.Commands, func(c Command) bool { return c.Name == path.Base(e.Path) }) {
				return nil, fault.Usagef("Choose another place.", "files[%d].to: /%s is the place of a command", i, e.Path)
			}
			entries[e.Path] = e // the last one counts
		}
	}
	// Owner and mode of the directories that the layers below have made stay.
	made := map[string]oci.Entry{}
	for _, part := range below {
		for _, e := range part.entries {
			if e.Mode.IsDir() {
				made[strings.TrimPrefix(e.Path, "/")] = e
			}
		}
	}
	for _, name := range sortedKeys(entries) {
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if e, ok := made[dir]; ok {
				if _, given := entries[dir]; !given {
					entries[dir] = e
				}
			}
		}
		if e, ok := made[name]; ok && slices.Contains(c.Volumes, "/"+name) {
			entries[name] = e
		}
	}
	var list []oci.Entry
	for _, name := range sortedKeys(entries) {
		list = append(list, entries[name])
	}
	return list, nil
}

// imageFile are the files of the source that f takes.
func (p *Pipeline) imageFile(f ImageFile) ([]oci.Entry, error) {
	mode, err := f.mode()
	if err != nil {
		return nil, err
	}
	uid, gid, err := f.owner()
	if err != nil {
		return nil, err
	}
	to := strings.TrimPrefix(f.To, "/")
	if f.From == "" {
		return []oci.Entry{{Path: to, Mode: fs.ModeDir | cmp.Or(mode, 0o755), UID: uid, GID: gid}}, nil
	}
	source := p.engine.Source()
	var entries []oci.Entry
	for _, file := range source.Files {
		rest, below := strings.CutPrefix(file.Name, f.From+"/")
		switch {
		case below || f.From == ".":
			if f.From == "." {
				rest = file.Name
			}
		case file.Name == f.From:
			rest = ""
		default:
			continue
		}
		e := oci.Entry{Path: path.Join(to, rest), UID: uid, GID: gid}
		switch {
		case file.Link != "":
			e.Link = file.Link
		case mode != 0:
			e.Mode = mode
		case file.Executable:
			e.Mode = 0o755
		default:
			e.Mode = 0o644
		}
		if file.Link == "" {
			e.FS, e.File = source.FS, file.Name
		}
		entries = append(entries, e)
	}
	return entries, nil
}
