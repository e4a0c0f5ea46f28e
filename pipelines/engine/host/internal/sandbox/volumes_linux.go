package sandbox

import (
	"fmt"
	"io/fs"
	"strings"
)

// A volume is a directory that the image declares as one. In production something that can be written is
// mounted there; here it is an empty file system in memory, with the owner and mode of the directory in the image.
type volume struct {
	Path     string // in the image, without symbolic links
	Mode     fs.FileMode
	UID, GID int
}

// volume describes the directory at a path without links.
func (u *unpacker) volume(real string, as *user) volume {
	m := u.dirs[real]
	if m.mode == 0 {
		m.mode = 0o755
	}
	if !u.owners {
		m.mode = as.owning(m)
	}
	// What the container's runtime mounts there has the mode of what it covers.
	u.dirs[real] = m
	return volume{Path: "/" + real, Mode: m.mode, UID: m.uid, GID: m.gid}
}

// within tells whether v is dir, or below it.
func (v volume) within(dir string) bool { return strings.HasPrefix(v.Path+"/", dir+"/") }

// options are those of the mount. In a user namespace there is no other owner than the image's user.
func (v volume) options(userns bool) string {
	mode := uint32(v.Mode.Perm())
	if v.Mode&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	o := fmt.Sprintf("mode=%o,size=64m", mode)
	if !userns {
		o += fmt.Sprintf(",uid=%d,gid=%d", v.UID, v.GID)
	}
	return o
}
