package contents

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// testdata/rpmdb.sqlite was made by sqlite3 3.40 with the tables Basenames, Packages and Name as rpm makes them, in
// pages of 512 bytes, so that the table of tables and Packages have more than one page. 43 rows were inserted
// into Packages and one was deleted; one has pages of its own.
func TestCountRows(t *testing.T) {
	whole, err := os.ReadFile("testdata/rpmdb.sqlite")
	require.NoError(t, err)
	rows, err := countRows(whole, "Packages")
	require.NoError(t, err)
	assert.Equal(t, 42, rows)
	rows, err = countRows(whole, "Name")
	require.NoError(t, err)
	assert.Zero(t, rows)

	with := func(at int, b ...byte) []byte {
		changed := bytes.Clone(whole)
		copy(changed[at:], b)
		return changed
	}
	page := func(n int) int { return (n - 1) * 512 }
	packages := bytes.Index(whole, []byte("tablePackages")) - 7 // the row about Packages, of which the cell is the third in page 6
	for name, test := range map[string]struct {
		file []byte
		want string
	}{
		"empty":                       {nil, "not a database of SQLite"},
		"another format":              {with(0, 'x'), "not a database of SQLite"},
		"pages of no bytes":           {with(16, 0, 0), "pages of 0 bytes"},
		"pages of odd bytes":          {with(16, 2, 1), "pages of 513 bytes"},
		"pages larger than the file":  {with(16, 0, 1), "page 1 of 0"},
		"cut off":                     {whole[:1024], "page 8 of 2"},
		"no table":                    {bytes.ReplaceAll(whole, []byte("Packages"), []byte("packages")), "without a table Packages"},
		"another tree":                {with(page(4), 0x0a), "page 4 is none of a table"},
		"too many cells":              {with(page(4)+3, 0xff, 0xff), "page 4 is none of a table"},
		"a cell that is not there":    {with(page(4)+12, 0xff, 0xff), "page 4 has no cell at 65535"},
		"a page that is its own":      {with(page(4)+8, 0, 0, 0, 4), "page 4 of 13"},
		"a page that is not there":    {with(page(4)+8, 0xff, 0xff, 0xff, 0xff), "page 4294967295 of 13"},
		"a cell twice":                {with(page(4)+14, whole[page(4)+12], whole[page(4)+13]), "of 13"},
		"no row at the cell":          {with(page(6)+12, 0xff, 0xff), "without a table Packages"},
		"a row without columns":       {with(packages, 0), "without a table Packages"},
		"a row with too many columns": {with(packages, 0x8f, 0x7f), "without a table Packages"},
		"a column that is no text":    {with(packages+1, 8), "without a table Packages"},
		"a column that is too long":   {with(packages+1, 0x8f, 0x7f), "without a table Packages"},
		"a page that is not anywhere": {with(page(4)+8, 0, 0, 0, 0), "page 0 of 13"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := countRows(test.file, "Packages")
			assert.ErrorContains(t, err, test.want)
		})
	}
}

func TestVarint(t *testing.T) {
	for want, b := range map[uint64]string{
		0x7f: "\x7f", 0x80: "\x81\x00", 1<<63 | 0xff: "\xc0\x80\x80\x80\x80\x80\x80\x80\xff", 1<<64 - 1: "\xff\xff\xff\xff\xff\xff\xff\xff\xff", 0: "\x80",
	} {
		got, rest := varint([]byte(b))
		assert.Equal(t, want, got)
		assert.Empty(t, rest)
	}
}

// What rpm itself says of a database that it made. There are enough packages for several pages.
func TestCountRowsLikeRPM(t *testing.T) {
	for _, tool := range []string{"rpm", "rpmbuild"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := t.TempDir()
	db := filepath.Join(dir, "db")
	run := func(name string, args ...string) string {
		c := exec.Command(name, append([]string{"--define", "_db_backend sqlite", "--define", "_dbpath " + db, "--define", "_topdir " + dir}, args...)...)
		c.Env = append(os.Environ(), "HOME="+dir)
		out, err := c.Output()
		require.NoError(t, err, "%s %s: %s", name, args, out)
		return string(out)
	}
	spec := "Name: p\nVersion: 1\nRelease: 1\nSummary: s\nLicense: none\nBuildArch: noarch\n%description\nd\n"
	for i := range 60 {
		spec += fmt.Sprintf("%%package n%d\nSummary: s\n%%description n%d\nd\n%%files n%d\n", i, i, i)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "p.spec"), []byte(spec), 0o600))
	run("rpm", "--initdb")
	check := func() int {
		b, err := os.ReadFile(filepath.Join(db, sqliteName))
		require.NoError(t, err)
		rows, err := countRows(b, "Packages")
		require.NoError(t, err)
		assert.Equal(t, strings.Count(run("rpm", "-qa"), "\n"), rows)
		return rows
	}
	assert.Zero(t, check())
	run("rpmbuild", "-bb", "--nodeps", filepath.Join(dir, "p.spec"))
	built, err := filepath.Glob(filepath.Join(dir, "RPMS", "*", "*.rpm"))
	require.NoError(t, err)
	run("rpm", append([]string{"-i", "--justdb", "--nodeps"}, built...)...)
	assert.Equal(t, 60, check())
	run("rpm", "-e", "--justdb", "p-n7", "p-n31")
	assert.Equal(t, 58, check())
}

func TestOSRelease(t *testing.T) {
	for content, want := range map[string]string{
		"":                                      "",
		"PRETTY_NAME=":                          "",
		"PRETTY_NAME=\"":                        "\"",
		"PRETTY_NAME=\"\"":                      "",
		"PRETTY_NAME=Wolfi\r\n":                 "Wolfi",
		"#PRETTY_NAME=a\nPRETTY_NAME='b \\$'\n": `b \$`,
		`PRETTY_NAME="a \"b\" \\$ \$"`:          `a "b" \$ $`,
		"PRETTY_NAME=a\nPRETTY_NAME=\"b\"":      "b",
	} {
		got, err := osRelease(strings.NewReader(content))
		require.NoError(t, err)
		assert.Equal(t, want, got.text, "%q", content)
	}
}

// A very long line is one line, and a layer that cannot be read is no shorter database.
func TestLines(t *testing.T) {
	long := strings.Repeat("P:", 10_000)
	f, err := apkInstalled(strings.NewReader(long + "\nP:x\r\n" + long))
	require.NoError(t, err)
	assert.Equal(t, 3, f.packages)
	_, err = dpkgStatus(io.MultiReader(strings.NewReader(dpkg2), iotest.ErrReader(iotest.ErrTimeout)))
	assert.ErrorIs(t, err, iotest.ErrTimeout)
}

func FuzzCountRows(f *testing.F) {
	whole, err := os.ReadFile("testdata/rpmdb.sqlite")
	require.NoError(f, err)
	f.Add(whole)
	f.Add(whole[:1024])
	f.Fuzz(func(t *testing.T, file []byte) {
		rows, err := countRows(file, "Packages")
		if err == nil && (rows < 0 || rows > len(file)/2) {
			t.Error(strconv.Itoa(rows) + " rows")
		}
	})
}

func FuzzDatabases(f *testing.F) {
	for _, seed := range []string{dpkg2, apk3, osReleaseDebian, glibc236} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		for _, read := range []func() (found, error){
			func() (found, error) { return dpkgStatus(bytes.NewReader(file)) },
			func() (found, error) { return apkInstalled(bytes.NewReader(file)) },
			func() (found, error) { return osRelease(bytes.NewReader(file)) },
			func() (found, error) { return glibcVersion(bytes.NewReader(file)) },
		} {
			got, err := read()
			require.NoError(t, err)
			assert.LessOrEqual(t, got.packages+len(got.text), len(file))
		}
	})
}
