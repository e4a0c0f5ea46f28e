package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// Entry is one file, directory or symbolic link of a layer or an archive.
type Entry struct {
	// Path is slash-separated and relative to the root; a leading slash is accepted.
	Path string
	// Mode holds the permissions, with fs.ModeSetuid, ModeSetgid and ModeSticky where wanted, and with
	// fs.ModeDir for a directory. The mode of a symbolic link is always 0777.
	Mode fs.FileMode
	// UID and GID own the entry. Users have no names in layers and archives.
	UID, GID int
	// Link makes the entry a symbolic link to this target.
	Link string
	// File is a file of FS, or of this machine where that is nil, whose content is streamed. Only content is
	// taken from it.
	File string
	FS   fs.FS
	// Data is the content where File is empty.
	Data []byte
	// Xattrs are extended attributes, such as security.capability, with their raw values.
	Xattrs map[string]string
}

func (e *Entry) isDir() bool { return e.Mode.IsDir() }

// arrange checks entries and puts them into the order in which they are written. With parents, every
// directory on the way to an entry gets an entry of its own, owned by root with mode 0755 unless it is
// given: what unpacks a layer would otherwise choose owner and mode.
func arrange(entries []Entry, parents bool) ([]Entry, error) {
	byPath := make(map[string]Entry, len(entries))
	for _, e := range entries {
		name := strings.TrimPrefix(e.Path, "/")
		if name != path.Clean(name) || name == "." || name == ".." || strings.HasPrefix(name, "../") || strings.Contains(name, "\x00") {
			return nil, fmt.Errorf("%q is not a clean path below the root", e.Path)
		}
		e.Path = name
		switch {
		case e.Mode&^(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky|fs.ModeDir) != 0:
			return nil, fmt.Errorf("%s: mode %v cannot be written", e.Path, e.Mode)
		case e.isDir() && (e.Link != "" || e.File != "" || e.Data != nil):
			return nil, fmt.Errorf("%s: a directory has no content", e.Path)
		case e.Link != "" && (e.File != "" || e.Data != nil), e.File != "" && e.Data != nil:
			return nil, fmt.Errorf("%s: more than one kind of content", e.Path)
		}
		// Runtimes would take it for the order to remove something from the layers below.
		if slices.ContainsFunc(strings.Split(e.Path, "/"), func(element string) bool { return strings.HasPrefix(element, ".wh.") }) {
			return nil, fmt.Errorf("%s: names that begin with .wh. have a meaning of their own in layers", e.Path)
		}
		if _, ok := byPath[e.Path]; ok {
			return nil, fmt.Errorf("%s: given twice", e.Path)
		}
		byPath[e.Path] = e
	}
	for _, e := range entries {
		for dir := path.Dir(strings.TrimPrefix(e.Path, "/")); dir != "."; dir = path.Dir(dir) {
			if p, ok := byPath[dir]; ok {
				if !p.isDir() {
					return nil, fmt.Errorf("%s: %s is not a directory", e.Path, dir)
				}
			} else if parents {
				byPath[dir] = Entry{Path: dir, Mode: fs.ModeDir | 0o755}
			}
		}
	}
	sorted := make([]Entry, 0, len(byPath))
	for _, e := range byPath {
		sorted = append(sorted, e)
	}
	// Plain order of bytes. A directory comes before what it holds, as its path is a prefix.
	slices.SortFunc(sorted, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	return sorted, nil
}

// open returns the content of a regular file and its size.
func (e *Entry) open() (io.ReadCloser, int64, error) {
	if e.File == "" {
		return io.NopCloser(bytes.NewReader(e.Data)), int64(len(e.Data)), nil
	}
	var f fs.File
	var err error
	if e.FS != nil {
		f, err = e.FS.Open(e.File)
	} else {
		f, err = os.Open(e.File)
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", e.File)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// copyContent writes the content of a regular file, which must have the size that open gave.
func (e *Entry) copyContent(w io.Writer, r io.Reader, size int64) error {
	n, err := copyBuffer(w, io.LimitReader(r, size))
	if err == nil && n == size {
		// One byte more tells a file that grew.
		m, _ := io.ReadFull(r, make([]byte, 1))
		n += int64(m)
	}
	if err == nil && n != size {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", cmp.Or(e.File, e.Path), err)
	}
	return nil
}

// Limits of the USTAR format. An entry past them is written in the PAX format; the choice is made here
// and not left to archive/tar, so that it cannot change with a Go release.
const (
	ustarName = 100
	ustarID   = 1<<21 - 1
	ustarSize = 1<<33 - 1
)

// writeTar writes entries, which come from arrange, as a tar stream.
func writeTar(w io.Writer, entries []Entry, modTime time.Time) error {
	tw := tar.NewWriter(w)
	for _, e := range entries {
		if err := e.writeTar(tw, modTime); err != nil {
			return err
		}
	}
	return tw.Close()
}

func (e *Entry) writeTar(tw *tar.Writer, modTime time.Time) error {
	h := &tar.Header{
		Name:     e.Path,
		Mode:     int64(e.Mode.Perm()),
		Uid:      e.UID,
		Gid:      e.GID,
		ModTime:  modTime,
		Linkname: e.Link,
	}
	for _, bit := range []struct {
		mode fs.FileMode
		tar  int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if e.Mode&bit.mode != 0 {
			h.Mode |= bit.tar
		}
	}
	var content io.ReadCloser
	switch {
	case e.isDir():
		h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
	case e.Link != "":
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
	default:
		h.Typeflag = tar.TypeReg
		var err error
		if content, h.Size, err = e.open(); err != nil {
			return err
		}
		defer content.Close()
	}
	for name, value := range e.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+name] = value
	}
	h.Format = tar.FormatUSTAR
	if len(e.Xattrs) > 0 || len(h.Name) > ustarName || len(h.Linkname) > ustarName || !isASCII(h.Name) || !isASCII(h.Linkname) ||
		h.Uid > ustarID || h.Gid > ustarID || h.Size > ustarSize || modTime.Unix() < 0 || modTime.Unix() > ustarSize {
		h.Format = tar.FormatPAX
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	if content == nil {
		return nil
	}
	return e.copyContent(tw, content, h.Size)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
