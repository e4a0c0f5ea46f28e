package sandbox
import ("testing";"bytes";"io";"crypto/sha256";"context";"os"
kg "github.com/klauspost/compress/gzip"
sg "compress/gzip"
v1 "github.com/google/go-containerregistry/pkg/v1")
func BenchmarkParts(b *testing.B) {
	var buf bytes.Buffer
	w, _ := kg.NewWriterLevel(&buf, 6); w.Write(app); w.Close()
	b.Run("sha-comp", func(b *testing.B){ b.SetBytes(int64(len(app))); for b.Loop() { sha256.Sum256(buf.Bytes()) } })
	b.Run("sha-plain", func(b *testing.B){ b.SetBytes(int64(len(app))); for b.Loop() { sha256.Sum256(app) } })
	b.Run("gunzip-k", func(b *testing.B){ b.SetBytes(int64(len(app))); for b.Loop() { r,_:=kg.NewReader(bytes.NewReader(buf.Bytes())); io.Copy(io.Discard, r) } })
	b.Run("gunzip-s", func(b *testing.B){ b.SetBytes(int64(len(app))); for b.Loop() { r,_:=sg.NewReader(bytes.NewReader(buf.Bytes())); io.Copy(io.Discard, r) } })
	b.Run("unpack", func(b *testing.B){ b.SetBytes(int64(len(app))); c := appImage(&testing.T{}, v1.Config{}); cc := c.write2(b); for b.Loop() { 
		d := b.TempDir(); r,_ := os.OpenRoot(d); im,_:=readImage(cc.Layout, cc.Manifest); unpack(context.Background(), im, r, true); os.RemoveAll(d)
	} })
}
