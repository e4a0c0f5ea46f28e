// Package programs finds the Go programs in an image that anyone may have made.
package programs

import (
	"archive/tar"
	"bytes"
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
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/internal/layers"
)

// Limits of what is read of a foreign image.
const (
	maxNames   = 100_000 // of links and Go programs
	maxProgram = 2 << 30 // bytes of one program, which is kept on disk while it is looked at
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

// Bytes is for layers.Found. Each line of what is known of the build has become a value of its own.
func (p *Program) Bytes() int {
	if p == nil {
		return 0
	}
	text := p.Info.String()
	return len(text) + 100*strings.Count(text, "\n")
}

// Tree is what is left of the Go programs in an image when all of its layers lie upon each other.
type Tree struct {
	// Programs are sorted by path, of which no part is a symbolic link.
	Programs []Program

	files *layers.Tree[*Program]
}

// Read reads all layers of an image, which are verified by that. It needs a directory, for one program at a time. It
// is a *layers.DamagedError that an image is not what it should be.
func Read(ctx context.Context, img v1.Image, dir string) (*Tree, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := layers.Read(ctx, img, func(layer int, _ string, header *tar.Header, content io.Reader) (*Program, error) {
		if header.Mode&0o111 == 0 || header.Size > maxProgram {
			return nil, nil
		}
		p, err := readProgram(content, filepath.Join(dir, "program"))
		if p != nil {
			p.Layer = layer
		}
		return p, err
	})
	if err != nil {
		return nil, err
	}
	t := &Tree{files: files}
	names := 0
	for name, f := range files.All() {
		if f.Kind != tar.TypeSymlink && f.Found == nil {
			continue
		}
		if names++; names > maxNames {
			return nil, &layers.DamagedError{What: fmt.Sprintf("the image has more than %d links and Go programs", maxNames)}
		}
		if f.Found != nil {
			p := *f.Found
			p.Path = name
			t.Programs = append(t.Programs, p)
		}
	}
	slices.SortFunc(t.Programs, func(a, b Program) int { return cmp.Compare(a.Path, b.Path) })
	return t, nil
}

// Find returns the program that a path in the image leads to, with that path, nil if that is none.
func (t *Tree) Find(name string) *Program {
	f := t.files.Find(name)
	if f == nil || f.Found == nil {
		return nil
	}
	p := *f.Found
	p.Path = name
	return &p
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
	size, err := io.Copy(io.MultiWriter(f, h), io.MultiReader(bytes.NewReader(magic), r))
	if err != nil {
		return nil, err
	}
	p := &Program{SHA256: hex.EncodeToString(h.Sum(nil)), Size: size}
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
