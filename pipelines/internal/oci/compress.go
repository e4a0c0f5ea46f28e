package oci

import (
	"bufio"
	"fmt"
	"io"
	"runtime/debug"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is the format in which layers are compressed. The zero value is gzip, which everything reads.
type Compression string

// The formats that the OCI image specification names.
const (
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// What compresses layers and archives. The level is a compromise that was measured on stripped Go
// binaries: level 1 is 1.5 times as fast and gives 8 % more bytes, level 6 takes a third more time and
// gives 3 % fewer, level 9 takes ten times as long for 5 %.
//
// The output of klauspost/compress is a function of its version, the level and the input alone, checked
// for v1.20.3: package flate has no assembly and no code of one architecture that could choose another
// match; its floating-point estimates are either exact in float64 or rounded by explicit conversions,
// so that fused multiply-add cannot change them; and levels 1 to 9 collect blocks before they look at
// them, so that the sizes of the writes do not matter. Golden tests guard all of it (they were run on
// 386, amd64 with and without v3, arm, arm64, ppc64le, riscv64 and s390x, where the bytes are the same),
// and blockWriter makes sure that the last point stays true whatever a later version does. A writer is
// never reused: whether Reset leaves a trace would be one more thing to prove.
//
// The same holds for zstd at its default level with one thread: the assembly that package zstd has for
// encoding looks for the length of a match, which is what it is in any language.
const (
	compressorModule  = "github.com/klauspost/compress"
	compressorVersion = "v1.20.3"
	compressorLevel   = 4
	zstdLevel         = zstd.SpeedDefault
)

// Compressor names what compresses layers and archives, for cache keys and records. Two slipways whose
// compressors have the same name write the same bytes. The version is the one that is linked, which is
// not the one of slipway's go.mod in another program that imports slipway and needs a later one.
func Compressor(c Compression) string {
	name := fmt.Sprintf("klauspost/compress %s ", linkedCompressor(debug.ReadBuildInfo()))
	if c == Zstd {
		return name + "zstd level " + zstdLevel.String()
	}
	return name + fmt.Sprintf("gzip level %d", compressorLevel)
}

func linkedCompressor(info *debug.BuildInfo, ok bool) string {
	if !ok {
		return compressorVersion
	}
	for _, dep := range info.Deps {
		if dep.Path != compressorModule {
			continue
		}
		if dep.Replace != nil {
			return fmt.Sprintf("%s (replaced by %s %s)", dep.Version, dep.Replace.Path, dep.Replace.Version)
		}
		return dep.Version
	}
	return compressorVersion // the binary of a test does not say
}

// compress runs write and passes its output on to w, compressed, and to raw as it is. The gzip header holds
// neither name nor time nor operating system.
func compress(c Compression, w, raw io.Writer, write func(io.Writer) error) error {
	// The compressor writes a few hundred bytes at a time.
	out := bufio.NewWriterSize(w, blockSize)
	z, err := newCompressor(c, out)
	if err != nil {
		return err
	}
	in := &blockWriter{w: io.MultiWriter(raw, z)}
	if err := write(in); err != nil {
		return err
	}
	if err := in.flush(); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return out.Flush()
}

func newCompressor(c Compression, w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstdLevel), zstd.WithEncoderConcurrency(1))
	case Gzip, "":
		z, err := gzip.NewWriterLevel(w, compressorLevel)
		if err != nil {
			return nil, err
		}
		z.ModTime = time.Unix(0, 0) // the zero time would be written as some time in 2042
		return z, nil
	}
	return nil, fmt.Errorf("unknown compression %q", c)
}

// blockWriter passes data on in blocks of blockSize, whatever the sizes of the writes to it.
type blockWriter struct {
	w   io.Writer
	buf []byte
}

func (b *blockWriter) Write(p []byte) (int, error) {
	n := len(p)
	if b.buf == nil {
		b.buf = make([]byte, 0, blockSize)
	}
	for len(p) > 0 {
		take := min(len(p), blockSize-len(b.buf))
		b.buf = append(b.buf, p[:take]...)
		p = p[take:]
		if len(b.buf) == blockSize {
			if err := b.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (b *blockWriter) flush() error {
	_, err := b.w.Write(b.buf)
	b.buf = b.buf[:0]
	return err
}
