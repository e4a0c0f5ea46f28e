package layers

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// text is where a file comes from, and what is in it.
type text string

func (t text) Bytes() int { return len(t) }

func look(layer int, name string, _ *tar.Header, content io.Reader) (text, error) {
	b, err := io.ReadAll(content)
	return text(fmt.Sprintf("%d %s %s", layer, name, b)), err
}

func newTree() *Tree[text] {
	return &Tree[text]{root: &node[text]{children: map[string]*node[text]{}}, layer: 1, memory: maxTree, look: look}
}

// imageOf is an image with a list of names for each layer. A name with an arrow is a symbolic link, one with an equals
// sign a hard link, and files have one byte.
func imageOf(t testing.TB, layers ...[]string) v1.Image {
	img := empty.Image
	for _, names := range layers {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range names {
			h := tar.Header{Name: name, Typeflag: tar.TypeReg, Size: 1}
			if from, to, ok := strings.Cut(name, "->"); ok {
				h = tar.Header{Name: from, Typeflag: tar.TypeSymlink, Linkname: to}
			} else if from, to, ok := strings.Cut(name, "="); ok {
				h = tar.Header{Name: from, Typeflag: tar.TypeLink, Linkname: to}
			}
			require.NoError(t, w.WriteHeader(&h))
			_, err := w.Write([]byte("x")[:h.Size])
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
		var err error
		img, err = mutate.AppendLayers(img, static.NewLayer(b.Bytes(), types.OCIUncompressedLayer))
		require.NoError(t, err)
	}
	return img
}

// What layers do to each other, and images that are damaged, are tested with package contents.
func TestTree(t *testing.T) {
	tree, err := Read(t.Context(), imageOf(t, []string{"usr/bin/a", "bin->usr/bin", "usr/lib/x", "gone"}, []string{"bin/b", "usr/bin/c->a", "d=bin/b", ".wh.gone", "d=d", "usr/lib/.wh.x"}), look)
	require.NoError(t, err)
	var all []string
	for name, f := range tree.All() {
		all = append(all, fmt.Sprintf("%s: %c %s%s", name, f.Kind, f.Link, f.Found))
	}
	slices.Sort(all)
	assert.Equal(t, []string{"/bin: 2 usr/bin", "/d: 0 1 /bin/b x", "/usr/bin/a: 0 0 /usr/bin/a x", "/usr/bin/b: 0 1 /bin/b x", "/usr/bin/c: 2 a"}, all)
	assert.Same(t, tree.Find("d"), tree.Find("/usr/bin/b"))
	assert.Equal(t, []string{"a", "c"}, tree.Names("/bin/", "[ac]"))
	assert.Equal(t, []string{"bin", "d", "usr"}, tree.Names("", "*"))
	assert.Empty(t, tree.Names("/d", "*"))
	assert.Empty(t, tree.Names("/lib", "*"))
	for range tree.All() {
		break // an iterator that went on would panic
	}
	for _, name := range []string{"", "/", "gone", "/usr/bin", "/usr/lib/../../bin/.."} {
		assert.Nil(t, tree.Find(name), name)
	}
	assert.Equal(t, int64(1), tree.Find("/usr/lib/../../bin/c").Size)
}

// It is not the image that is wrong where time is up.
func TestReadUntilDeadline(t *testing.T) {
	ctx, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	_, err := Read(ctx, imageOf(t, []string{"a"}), look)
	assert.Equal(t, context.DeadlineExceeded, err)
}

// There is an end to how many files there may be, and to what may be in them.
func TestLimits(t *testing.T) {
	tree := newTree()
	tree.memory = 1000
	var err error
	for i := 0; err == nil && i < 10; i++ {
		err = tree.entry(&tar.Header{Name: strings.Repeat("x", i+1), Typeflag: tar.TypeSymlink}, nil)
	}
	assert.ErrorContains(t, err, "more files than anyone needs")
	assert.Len(t, tree.root.children, 3)

	tree.memory = 1000
	err = tree.entry(&tar.Header{Name: "x", Typeflag: tar.TypeReg}, strings.NewReader(strings.Repeat("x", 1000)))
	assert.ErrorContains(t, err, "more files than anyone needs")

	left := int64(5)
	_, err = io.ReadAll(&limitedReader{strings.NewReader("123456"), t.Context(), &left})
	assert.ErrorContains(t, err, "more than 64 GiB")
}
