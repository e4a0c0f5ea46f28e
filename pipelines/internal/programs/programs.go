// Package programs finds the Go programs in an image that anyone may have made.
package programs

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/internal/oci"
)

// Limits of what is read of a foreign image.
const (
	maxUnpacked = 64 << 30 // bytes of all layers
	maxNodes    = 100_000
	maxPath     = 4096    // bytes, as Linux has it
	maxProgram  = 2 << 30 // bytes of one program, which is kept on disk while it is looked at
)

// Program is a Go program in an image.
type Program struct {
	Path   string // absolute
	SHA256 string // in hex
	Size   int64  // in bytes
	// Layer is the layer that it comes from, from 0.
	Layer int
	Info  *debug.BuildInfo
	// Stripped tells that it has no symbol table, Dynamic that it needs shared libraries.
	Stripped, Dynamic bool
}

// A DamagedError says what is wrong with an image itself.
type DamagedError struct{ What string }

func (e *DamagedError) Error() string { return e.What }

// Tree is what is left of the Go programs in an image when all of its layers lie upon each other.
type Tree struct {
	// Programs are sorted by path, of which no part is a symbolic link.
	Programs []Program

	links map[string]string
}

// node is a file as far as it matters here.
type node struct {
	program *Program
	link    string // target of a symbolic link
}

// nodes are files by path.
type nodes struct {
	at    map[string]node
	under map[string]int // how many lie below a directory
}

func newNodes() nodes { return nodes{map[string]node{}, map[string]int{}} }

func (n nodes) put(name string, x node) {
	n.remove(name)
	n.at[name] = x
	for i := range name {
		if name[i] == '/' {
			n.under[name[:i]]++
		}
	}
}

func (n nodes) remove(name string) {
	if _, ok := n.at[name]; !ok {
		return
	}
	delete(n.at, name)
	for i := range name {
		if name[i] == '/' {
			n.under[name[:i]]--
		}
	}
}

// clear removes what lies below a directory.
func (n nodes) clear(dir string) {
	if n.under[dir] == 0 {
		return
	}
	for name := range n.at {
		if strings.HasPrefix(name, dir+"/") {
			n.remove(name)
		}
	}
}

// Read reads all layers of an image, which are verified by that. It needs a directory, for one program at a time.
func Read(ctx context.Context, img v1.Image, dir string) (*Tree, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	u := &unpacking{ctx: ctx, spool: filepath.Join(dir, "program"), below: newNodes(), left: maxUnpacked}
	for i, l := range layers {
		u.number = i
		if err := u.layer(l, config.RootFS.DiffIDs[i]); err != nil {
			return nil, err
		}
	}
	t := &Tree{links: map[string]string{}}
	for name, n := range u.below.at {
		if n.program == nil {
			t.links[name] = n.link
			continue
		}
		p := *n.program
		p.Path = name
		t.Programs = append(t.Programs, p)
	}
	slices.SortFunc(t.Programs, func(a, b Program) int { return cmp.Compare(a.Path, b.Path) })
	return t, nil
}

// Find returns the program that a path in the image names, nil if that is none.
func (t *Tree) Find(name string) *Program {
	name, err := resolve(path.Clean("/"+name), func(name string) (string, bool) {
		link, ok := t.links[name]
		return link, ok
	}, true)
	i := slices.IndexFunc(t.Programs, func(p Program) bool { return p.Path == name })
	if err != nil || i < 0 {
		return nil
	}
	return &t.Programs[i]
}

// resolve replaces symbolic links in a path, the last element's only if last.
func resolve(name string, links func(string) (string, bool), last bool) (string, error) {
next:
	for range 40 { // as many as Linux follows
		for i := 1; i <= len(name); i++ {
			if i < len(name) && name[i] != '/' || i == len(name) && !last {
				continue
			}
			if to, ok := links(name[:i]); ok {
				if !path.IsAbs(to) {
					to = path.Join(path.Dir(name[:i]), to)
				}
				name = path.Join("/", to, name[i:])
				continue next
			}
		}
		return name, nil
	}
	return "", &DamagedError{"a loop of symbolic links at " + name}
}

// unpacking reads one layer after the other, and has in below what the ones before have left.
type unpacking struct {
	ctx    context.Context
	spool  string
	left   int64 // bytes that may still be unpacked
	number int   // of the layer

	below, here nodes
}

func (u *unpacking) link(name string) (string, bool) {
	n, ok := u.find(name)
	return n.link, ok && n.program == nil
}

func (u *unpacking) find(name string) (node, bool) {
	n, ok := u.here.at[name]
	if !ok {
		n, ok = u.below.at[name]
	}
	return n, ok
}

// put notes a file of this layer.
func (u *unpacking) put(name string, n node) error {
	if len(u.here.at)+len(u.below.at) >= maxNodes {
		return &DamagedError{fmt.Sprintf("it has more than %d links and Go programs", maxNodes)}
	}
	u.here.put(name, n)
	return nil
}

func (u *unpacking) layer(l v1.Layer, diffID v1.Hash) error {
	rc, err := l.Uncompressed()
	if err != nil {
		return err
	}
	defer rc.Close()
	h := sha256.New()
	limited := &limitedReader{r: io.TeeReader(rc, h), ctx: u.ctx, left: &u.left}
	u.here = newNodes()
	t := tar.NewReader(limited)
	for {
		header, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = u.entry(header, t)
		}
		if err != nil {
			return layerError(err)
		}
	}
	for name, n := range u.here.at {
		u.below.put(name, n)
	}
	// What follows the end of the archive belongs to the layer too.
	if _, err := io.Copy(io.Discard, limited); err != nil {
		return layerError(err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != diffID.Hex {
		return &DamagedError{fmt.Sprintf("a layer unpacks to sha256:%s, but the configuration says %s", got, diffID)}
	}
	return nil
}

// entry puts one entry of a layer into its place, as runtimes do: parents that are symbolic links are followed, and
// whatever is no directory takes the place of all that was there.
func (u *unpacking) entry(header *tar.Header, content io.Reader) error {
	name, err := resolve(path.Clean("/"+header.Name), u.link, false)
	if err == nil && len(name) > maxPath {
		err = &DamagedError{fmt.Sprintf("a layer has a path of %d bytes", len(name))}
	}
	if err != nil {
		return err
	}
	dir, base := path.Split(name)
	// https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts: they hide lower layers only.
	if base == ".wh..wh..opq" {
		u.below.clear(strings.TrimSuffix(dir, "/"))
		return nil
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		u.below.remove(dir + hidden)
		u.below.clear(dir + hidden)
		return nil
	}
	// Such a file is as large as it says without any bytes: https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#file-types
	sparse := header.Typeflag == tar.TypeGNUSparse
	for key := range header.PAXRecords {
		sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
	}
	if sparse {
		return &DamagedError{"a layer has a sparse file, " + name}
	}
	for _, n := range []nodes{u.below, u.here} {
		n.remove(name)
		if header.Typeflag != tar.TypeDir {
			n.clear(name)
		}
	}
	switch header.Typeflag {
	case tar.TypeSymlink:
		return u.put(name, node{link: header.Linkname})
	case tar.TypeLink:
		target, err := resolve(path.Clean("/"+header.Linkname), u.link, false)
		if err != nil {
			return err
		}
		if n, ok := u.find(target); ok {
			return u.put(name, n)
		}
	case tar.TypeReg:
		if header.Mode&0o111 == 0 || header.Size > maxProgram {
			return nil
		}
		p, err := readProgram(content, u.spool)
		if err != nil || p == nil {
			return err
		}
		p.Layer = u.number
		return u.put(name, node{program: p})
	}
	return nil
}

// layerError tells a damaged layer from one that could not be fetched.
func layerError(err error) error {
	var fetch *oci.FetchError
	var digest *oci.DigestError
	var path *os.PathError
	var damaged *DamagedError
	if errors.As(err, &fetch) || errors.As(err, &digest) || errors.As(err, &path) || errors.As(err, &damaged) || errors.Is(err, context.Canceled) {
		return err
	}
	return &DamagedError{"a layer cannot be unpacked: " + err.Error()}
}

// readProgram describes what comes from r, nil if it is no Go program.
func readProgram(r io.Reader, spool string) (*Program, error) {
	magic := make([]byte, 4)
	n, err := io.ReadFull(r, magic)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil
	}
	if err != nil || string(magic[:n]) != "\x7fELF" {
		return nil, err
	}
	f, err := os.Create(spool)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	w := io.MultiWriter(f, h)
	_, _ = w.Write(magic)
	size, err := io.Copy(w, r)
	if err != nil {
		return nil, err
	}
	p := &Program{SHA256: hex.EncodeToString(h.Sum(nil)), Size: size + 4}
	if p.Info, err = buildinfo.Read(f); err != nil {
		return nil, nil // of another language, or damaged: nothing that Go can tell of it
	}
	e, err := elf.NewFile(f)
	if err != nil {
		return nil, nil
	}
	p.Stripped = e.Section(".symtab") == nil
	for _, segment := range e.Progs {
		p.Dynamic = p.Dynamic || segment.Type == elf.PT_INTERP
	}
	return p, nil
}

// limitedReader ends with an error when an image unpacks to more than anyone needs, or when ctx is done.
type limitedReader struct {
	r    io.Reader
	ctx  context.Context
	left *int64
}

func (l *limitedReader) Read(p []byte) (int, error) {
	if err := l.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := l.r.Read(p)
	if *l.left -= int64(n); *l.left < 0 {
		return n, &DamagedError{"it unpacks to more than 64 GiB"}
	}
	return n, err
}
