package sandbox

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/slipway-ci/slipway/pipelines/internal/uncompress"
)

// Limits for what an image may hold. They only keep a broken or hostile image from filling the machine.
// They are variables for the tests' sake.
var (
	maxImageBytes   int64 = 16 << 30
	maxImageEntries       = 1 << 20
)

// maxJSONBytes is the limit for manifests and other small files.
const maxJSONBytes = 8 << 20

// whiteout is the prefix of the entries by which a layer deletes what lower layers hold.
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// An unpacker writes the layers of one image into a directory, the lowest first.
//
// Layers are not trusted. Every access goes through an os.Root, so that no name and no symbolic link in a
// layer leads out of the directory; links are followed by locate, which takes the directory for the root
// as a container would.
type unpacker struct {
	root *os.Root
	// owners says whether files get the owners and capabilities that the layers name. That takes root.
	owners bool

	bytes   int64
	entries int

	// seen are the paths that the current layer holds, with their parents: whiteouts spare them.
	seen map[string]bool
	// dirs are the directories and what they get at the end: a directory may be closed to its own owner.
	dirs map[string]meta
	// files are the regular files, of which the owner is not kept.
	files map[string]meta
	// capabilities are those of files, as the kernel stores them.
	capabilities map[string]string

	// The parent directory of the last entry: entries of one directory mostly follow each other.
	parentName string
	parentPath string
	parent     *os.Root
}

// meta is what a layer says of a file or directory.
type meta struct {
	uid, gid int
	mode     fs.FileMode
	time     time.Time
}

// unpack writes the layers of an image into an empty directory and checks every digest on the way.
// The caller must call finish, or discard the directory after an error.
func unpack(ctx context.Context, im *image, root *os.Root, owners bool) (*unpacker, error) {
	u := &unpacker{root: root, owners: owners, dirs: map[string]meta{".": {mode: 0o755}}, files: map[string]meta{}, capabilities: map[string]string{}}
	for i, l := range im.manifest.Layers {
		if err := u.layer(ctx, im.layout, l, im.config.RootFS.DiffIDs[i]); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	return u, nil
}

// layer applies one layer.
func (u *unpacker) layer(ctx context.Context, layout string, l v1.Descriptor, diffID v1.Hash) error {
	u.seen = map[string]bool{}
	defer u.forget()

	f, err := openBlob(layout, l)
	if err != nil {
		return err
	}
	defer f.Close()
	compressed := &digester{r: contextReader{ctx, f}, hash: sha256.New()}
	plain, err := uncompress.Layer(io.NopCloser(compressed))
	if err != nil {
		return err
	}
	defer plain.Close()
	content := &digester{r: plain, hash: sha256.New(), left: maxImageBytes - u.bytes + 1, limited: true}

	tr := tar.NewReader(content)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		// A sparse file may be larger than the layer that holds it.
		u.bytes += hdr.Size
		if u.entries++; u.entries > maxImageEntries || u.bytes > maxImageBytes {
			return errTooLarge
		}
		if err := u.entry(hdr, tr); err != nil {
			return fmt.Errorf("%s: %w", hdr.Name, err)
		}
	}
	// The digests cover what follows the end of the archive, too.
	if _, err := io.Copy(io.Discard, content); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, compressed); err != nil {
		return err
	}
	if err := compressed.check(l.Digest, l.Size); err != nil {
		return err
	}
	return content.check(diffID, -1)
}

var errTooLarge = errors.New("the image is too large to run: more than 16 GiB or a million files")

// entry applies one entry of a layer.
func (u *unpacker) entry(hdr *tar.Header, content io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader, tar.TypeChar, tar.TypeBlock:
		return nil // devices come from the sandbox
	}
	if slices.Contains(strings.Split(hdr.Name, "/"), "..") {
		return errors.New("the name leads out of the image")
	}
	name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
	mode := hdr.FileInfo().Mode()
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return errors.New("the root is not a directory")
		}
		u.dirs["."] = metaOf(hdr)
		return u.chown(u.root, ".", hdr)
	}
	dirName, base := path.Split(name)
	if err := u.enter(strings.TrimSuffix(dirName, "/")); err != nil {
		return err
	}
	real := path.Join(u.parentPath, base)

	if strings.HasPrefix(base, whiteout) {
		switch lower := strings.TrimPrefix(base, whiteout); {
		case base == opaque:
			return u.clear(u.parentPath)
		case lower == "" || lower == "." || lower == "..":
			return errors.New("a whiteout without a name")
		case strings.HasPrefix(lower, whiteout):
			return nil // records of the aufs file system
		default:
			return u.clear(path.Join(u.parentPath, lower))
		}
	}
	for p := real; !u.seen[p]; p = path.Dir(p) {
		u.seen[p] = true
	}

	switch hdr.Typeflag {
	case tar.TypeDir:
		err := u.parent.Mkdir(base, 0o700)
		if errors.Is(err, fs.ErrExist) {
			if fi, serr := u.parent.Lstat(base); serr == nil && fi.IsDir() {
				err = nil
			} else {
				err = u.create(base, func() error { return u.parent.Mkdir(base, 0o700) })
			}
		}
		if err != nil {
			return err
		}
		u.dirs[real] = metaOf(hdr)
		return u.chown(u.parent, base, hdr)

	case tar.TypeReg, tar.TypeGNUSparse:
		return u.file(hdr, real, base, mode, content)

	case tar.TypeSymlink:
		if err := u.create(base, func() error { return u.parent.Symlink(hdr.Linkname, base) }); err != nil {
			return err
		}
		return u.chown(u.parent, base, hdr)

	case tar.TypeLink:
		old, err := locate(u.root, hdr.Linkname, false)
		if err != nil {
			return err
		}
		if old == real {
			return nil
		}
		if fi, err := u.root.Lstat(old); err != nil {
			return fmt.Errorf("hard link to %s: %w", hdr.Linkname, errors.Unwrap(err))
		} else if fi.IsDir() {
			return fmt.Errorf("hard link to the directory %s", hdr.Linkname)
		}
		u.able(real, u.capabilities[old])
		return u.create(base, func() error { return u.root.Link(old, real) })

	case tar.TypeFifo:
		err := u.create(base, func() error {
			d, err := u.parent.Open(".")
			if err != nil {
				return err
			}
			defer d.Close()
			return unix.Mkfifoat(int(d.Fd()), base, uint32(mode.Perm()))
		})
		if err != nil {
			return err
		}
		return u.chown(u.parent, base, hdr)
	}
	return fmt.Errorf("an entry of the unknown type %q", hdr.Typeflag)
}

// file writes a regular file.
func (u *unpacker) file(hdr *tar.Header, real, base string, mode fs.FileMode, content io.Reader) error {
	var f *os.File
	err := u.create(base, func() (err error) {
		f, err = u.parent.OpenFile(base, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, content); err != nil {
		return err
	}
	if u.owners {
		if err := f.Chown(hdr.Uid, hdr.Gid); err != nil {
			return err
		}
	}
	// After the owner, because a change of that takes setuid bits and capabilities away.
	if err := f.Chmod(mode); err != nil {
		return err
	}
	value := hdr.PAXRecords["SCHILY.xattr."+xattrCapability]
	u.able(real, value)
	if u.owners && value != "" {
		err := unix.Fsetxattr(int(f.Fd()), xattrCapability, []byte(value), 0)
		if err != nil && err != unix.ENOTSUP {
			return fmt.Errorf("file capabilities: %w", err)
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	if !u.owners {
		u.files[real] = metaOf(hdr)
	}
	if hdr.ModTime.IsZero() {
		return nil
	}
	return u.parent.Chtimes(base, hdr.ModTime, hdr.ModTime)
}

// able notes the capabilities of a file, in place of those of an earlier one.
func (u *unpacker) able(real, value string) {
	delete(u.capabilities, real)
	if value != "" {
		u.capabilities[real] = value
	}
}

// capable returns the files that have capabilities, and these.
func (u *unpacker) capable() map[string][]byte {
	files := map[string][]byte{}
	for name, value := range u.capabilities {
		// A later entry may have taken the file away, or put something else in its place.
		if fi, err := u.root.Lstat(name); err == nil && fi.Mode().IsRegular() {
			files[name] = []byte(value)
		}
	}
	return files
}

// create makes a file with the given function. What has the name already, from a lower layer or from
// this one, makes way.
func (u *unpacker) create(base string, create func() error) error {
	err := create()
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := u.parent.RemoveAll(base); err != nil {
		return err
	}
	return create()
}

func (u *unpacker) chown(dir *os.Root, base string, hdr *tar.Header) error {
	if !u.owners {
		return nil
	}
	return dir.Lchown(base, hdr.Uid, hdr.Gid)
}

// enter makes the directory of the given name, as a layer spells it, the parent of what follows.
func (u *unpacker) enter(name string) error {
	if u.parent != nil && u.parentName == name {
		return nil
	}
	u.forget()
	real, err := locate(u.root, name, true)
	if err != nil {
		return err
	}
	if err := u.mkdirAll(real); err != nil {
		return err
	}
	dir, err := u.root.OpenRoot(real)
	if err != nil {
		return err
	}
	u.parentName, u.parentPath, u.parent = name, real, dir
	return nil
}

// mkdirAll makes the directories of a path that locate has returned, those that a layer does not list.
// A file in the place of one of them makes way, as for any later entry.
func (u *unpacker) mkdirAll(real string) error {
	fi, err := u.root.Lstat(real)
	if err == nil && fi.IsDir() {
		return nil
	}
	if err := u.mkdirAll(path.Dir(real)); err != nil {
		return err
	}
	if err == nil {
		if err := u.root.Remove(real); err != nil {
			return err
		}
	}
	u.dirs[real] = meta{mode: 0o755}
	return u.root.Mkdir(real, 0o700)
}

// forget closes the current parent directory.
func (u *unpacker) forget() {
	if u.parent != nil {
		u.parent.Close()
		u.parent = nil
	}
}

// clear removes what lower layers hold at a path and below. What the current layer holds there stays.
func (u *unpacker) clear(real string) error {
	fi, err := u.root.Lstat(real)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if real != u.parentPath && !u.seen[real] {
		return u.root.RemoveAll(real)
	}
	if !fi.IsDir() {
		return nil
	}
	children, err := fs.ReadDir(u.root.FS(), real)
	if err != nil {
		return err
	}
	for _, c := range children {
		if err := u.clear(path.Join(real, c.Name())); err != nil {
			return err
		}
	}
	return nil
}

// finish gives the directories their modes and times, the deepest first. Where owners are not kept, all
// files are owned by the caller, who is the image's user in the sandbox. Then the owner's permissions are
// made those that production would grant to as, so that a file that the user may not read or execute
// there is out of reach here, too. (Nothing needs to be done about writing: the root is read-only.)
func (u *unpacker) finish(as *user) error {
	u.forget()
	if as != nil && !u.owners {
		for name, m := range u.files {
			mode := as.owning(m)
			if fi, err := u.root.Lstat(name); mode == m.mode || err != nil || !fi.Mode().IsRegular() {
				continue
			}
			if err := u.root.Chmod(name, mode); err != nil {
				return err
			}
		}
	}
	names := make([]string, 0, len(u.dirs))
	for name := range u.dirs {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) })
	for _, name := range names {
		// A later entry may have replaced the directory.
		if fi, err := u.root.Lstat(name); err != nil || !fi.IsDir() {
			continue
		}
		m := u.dirs[name]
		if as != nil && !u.owners {
			m.mode = as.owning(m)
		}
		if !m.time.IsZero() {
			if err := u.root.Chtimes(name, m.time, m.time); err != nil {
				return err
			}
		}
		// The root may be closed to us from here on, so it must be the last.
		if name != "." {
			if err := u.root.Chmod(name, m.mode); err != nil {
				return err
			}
		}
	}
	m := u.dirs["."]
	if as != nil && !u.owners {
		m.mode = as.owning(m)
	}
	return u.root.Chmod(".", m.mode)
}

func metaOf(hdr *tar.Header) meta {
	return meta{uid: hdr.Uid, gid: hdr.Gid, mode: hdr.FileInfo().Mode(), time: hdr.ModTime}
}

// locate follows a path through the symbolic links below root as the kernel does for a process whose root
// that is: absolute links start there, and ".." stops there. It returns a path without links, relative to
// root; what does not exist is taken as it is written. With last, a link at the end is followed, too.
func locate(root *os.Root, name string, last bool) (string, error) {
	real, links := ".", 0
	rest := strings.Split(name, "/")
	for len(rest) > 0 {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			real = path.Dir(real)
			continue
		}
		next := path.Join(real, part)
		if !last && strings.Join(rest, "") == "" {
			return next, nil
		}
		fi, err := root.Lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			return "", err
		}
		if err != nil || fi.Mode().Type() != fs.ModeSymlink {
			real = next
			continue
		}
		if links++; links > 40 {
			return "", &fs.PathError{Op: "open", Path: name, Err: syscall.ELOOP}
		}
		target, err := root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(target) {
			real = "."
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	return real, nil
}

// openBlob opens a blob of an OCI layout.
func openBlob(layout string, d v1.Descriptor) (*os.File, error) {
	name, err := blobName(d.Digest)
	if err != nil {
		return nil, err
	}
	return os.Open(filepath.Join(layout, name))
}

func blobName(h v1.Hash) (string, error) {
	if sum, err := hex.DecodeString(h.Hex); h.Algorithm != "sha256" || err != nil || len(sum) != sha256.Size {
		return "", fmt.Errorf("%q is not a SHA-256 digest", h)
	}
	return filepath.Join("blobs", h.Algorithm, h.Hex), nil
}

// readBlob returns a small blob whose digest was checked.
func readBlob(layout string, d v1.Descriptor) ([]byte, error) {
	f, err := openBlob(layout, d)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &digester{r: f, hash: sha256.New(), left: maxJSONBytes, limited: true}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return b, r.check(d.Digest, d.Size)
}

// A digester hashes what is read through it.
type digester struct {
	r       io.Reader
	hash    hash.Hash
	n       int64
	limited bool
	left    int64
}

func (d *digester) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.hash.Write(p[:n])
	d.n += int64(n)
	if d.left -= int64(n); d.limited && d.left <= 0 {
		return n, errTooLarge
	}
	return n, err
}

// check compares what was read with a digest and a size; a size below 1 is not known.
func (d *digester) check(want v1.Hash, size int64) error {
	if got := hex.EncodeToString(d.hash.Sum(nil)); got != want.Hex || size > 0 && size != d.n {
		return fmt.Errorf("the content is not that of %s: %d bytes with SHA-256 %s", want, d.n, got)
	}
	return nil
}

// A contextReader stops reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// removeTree removes a directory with all that it holds, directories closed to their owner included.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// WalkDir reads a directory after it has called the function for it.
	_ = filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.Chmod(name, 0o700)
		}
		return err
	})
	return os.RemoveAll(dir)
}
