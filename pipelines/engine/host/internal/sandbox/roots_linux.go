package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// roots are root file systems that are kept from start to start.
type roots struct {
	// Dir is an existing directory for them, and for what a start needs. Whoever gave it removes what a killed process
	// has left there. Without one, it is the directory for temporary files.
	Dir string

	mu   sync.Mutex
	dir  string // empty as long as nothing is kept
	n    int
	kept map[string]*kept
}

// kept is a root file system with the order of its first start, which is the same for others of the same
// key but for arguments and environment.
type kept struct {
	dir   string
	first order
	users int // processes that are not closed yet
}

func (r *roots) parent() string {
	if r == nil {
		return ""
	}
	return r.Dir
}

// prepare is like the function of this name, and unpacks into dir what is not kept.
func (r *roots) prepare(ctx context.Context, dir string, im *image, c engine.Container, a attempt) (*order, error) {
	if r == nil || a.kind == kindProcess {
		root := filepath.Join(dir, "rootfs")
		if err := removeTree(root); err != nil {
			return nil, err
		}
		return prepare(ctx, dir, root, im, c, a)
	}
	cmd, err := im.command(c)
	if err != nil {
		return nil, &engine.ImageError{Err: err}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	key := fmt.Sprintf("%s %t %q %q", c.Manifest, a.owners(), cmd.args[0], c.Capabilities)
	k := r.kept[key]
	if k == nil {
		if k, err = r.unpack(ctx, dir, im, c, a); err != nil {
			return nil, err
		}
		r.kept[key] = k
	}
	k.users++
	o := k.first
	cmd.setHome(&o.User)
	o.Dir, o.Args, o.Env = dir, cmd.args, cmd.env
	return &o, nil
}

// unpack makes room and keeps one more.
func (r *roots) unpack(ctx context.Context, dir string, im *image, c engine.Container, a attempt) (*kept, error) {
	if r.dir == "" {
		var err error
		if r.dir, err = privateDir(r.Dir, "slipway-roots-"); err != nil {
			return nil, err
		}
		r.kept = map[string]*kept{}
	}
	for key, old := range r.kept {
		if old.users == 0 {
			delete(r.kept, key)
			if err := removeTree(old.dir); err != nil {
				return nil, err
			}
		}
	}
	r.n++
	k := &kept{dir: filepath.Join(r.dir, strconv.Itoa(r.n))}
	o, err := prepare(ctx, dir, k.dir, im, c, a)
	if err != nil {
		return nil, errors.Join(err, removeTree(k.dir))
	}
	o.Shared = r.dir
	k.first = *o
	return k, nil
}

// done takes note that a process from a root file system is no more.
func (r *roots) done(root string) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.kept {
		if k.dir == root {
			k.users--
		}
	}
}

func (r *roots) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dir == "" {
		return nil
	}
	err := removeTree(r.dir)
	r.dir, r.kept = "", nil
	return err
}
