package oci

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zip"
)

// Archive is a file that WriteTarGz or WriteZip wrote.
type Archive struct {
	// SHA256 is the digest of the file in hexadecimal, as sha256sum prints it.
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// WriteTarGz writes entries to a gzip-compressed tar file, which appears complete or not at all. The same
// entries and time give the same bytes. Directories are in it only where they are given.
func WriteTarGz(file string, entries []Entry, modTime time.Time) (Archive, error) {
	return writeArchive(file, entries, func(w io.Writer, sorted []Entry) error {
		return compress(Gzip, w, io.Discard, func(w io.Writer) error {
			return writeTar(w, sorted, modTime.Truncate(time.Second))
		})
	})
}

// WriteZip is WriteTarGz for zip files. They know no owners and no extended attributes, and no time before
// 1980; an earlier one becomes 1980-01-01.
func WriteZip(file string, entries []Entry, modTime time.Time) (Archive, error) {
	modTime = modTime.UTC().Truncate(2 * time.Second) // the resolution of the format
	if modTime.Year() < 1980 {
		modTime = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return writeArchive(file, entries, func(w io.Writer, sorted []Entry) error {
		// This package zip is the standard library's at a fixed version.
		z := zip.NewWriter(w)
		z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
			f, err := flate.NewWriter(w, compressorLevel)
			if err != nil {
				return nil, err
			}
			return &blockCompressor{blockWriter{w: f}, f}, nil
		})
		for _, e := range sorted {
			if err := e.writeZip(z, modTime); err != nil {
				return err
			}
		}
		return z.Close()
	})
}

// blockCompressor feeds a compressor in blocks of a fixed size.
type blockCompressor struct {
	blockWriter
	z io.Closer
}

func (b *blockCompressor) Close() error {
	if err := b.flush(); err != nil {
		return err
	}
	return b.z.Close()
}

func (e *Entry) writeZip(z *zip.Writer, modTime time.Time) error {
	h := &zip.FileHeader{Name: e.Path, Method: zip.Deflate, Modified: modTime}
	switch {
	case e.isDir():
		h.Name, h.Method = e.Path+"/", zip.Store
		h.SetMode(e.Mode)
	case e.Link != "":
		h.Method = zip.Store
		h.SetMode(os.ModeSymlink | 0o777)
	default:
		h.SetMode(e.Mode)
	}
	w, err := z.CreateHeader(h)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	if e.isDir() {
		return nil
	}
	if e.Link != "" {
		_, err := io.WriteString(w, e.Link)
		return err
	}
	content, size, err := e.open()
	if err != nil {
		return err
	}
	defer content.Close()
	return e.copyContent(w, content, size)
}

func writeArchive(file string, entries []Entry, write func(io.Writer, []Entry) error) (Archive, error) {
	sorted, err := arrange(entries, false)
	if err != nil {
		return Archive{}, fmt.Errorf("archive %s: %w", file, err)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return Archive{}, err
	}
	h := newHasher()
	err = writeAtomic(filepath.Dir(file), func(f *os.File) (string, error) {
		return filepath.Base(file), write(io.MultiWriter(h, f), sorted)
	})
	if err != nil {
		return Archive{}, fmt.Errorf("archive %s: %w", file, err)
	}
	return Archive{SHA256: h.hash().Hex, Size: h.size}, nil
}
