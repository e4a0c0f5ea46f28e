package contents

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
)

// Limits of the files that are read into memory, one at a time.
const (
	maxDatabase  = 64 << 20
	maxLibc      = 16 << 20
	maxOSRelease = 64 << 10
)

const sqliteName = "rpmdb.sqlite"

var apkDatabases = []string{"/lib/apk/db/installed", "/usr/lib/apk/db/installed"}

// packages tells how many packages the image's database has: the first with any, as tools for the packages of another
// system leave an empty one behind.
func (t tree) packages() (db string, n int) {
	for _, kind := range []struct {
		db    string
		count func() (n int, ok bool)
	}{{"dpkg", t.dpkg}, {"apk", t.apk}, {"rpm", t.rpm}} {
		if found, ok := kind.count(); ok && (db == "" || n == 0 && found != 0) {
			db, n = kind.db, found
		}
	}
	return db, n
}

func (t tree) dpkg() (n int, ok bool) {
	if f := t.Find("/var/lib/dpkg/status"); f != nil {
		n, ok = f.Found.packages, true
	}
	// Images that were put together without dpkg have a file for each package, and maybe one with its checksums.
	const dir = "/var/lib/dpkg/status.d"
	for _, name := range t.Names(dir, "*") {
		if !strings.HasSuffix(name, ".md5sums") && t.Find(dir+"/"+name) != nil {
			n, ok = n+1, true
		}
	}
	return n, ok
}

func (t tree) apk() (n int, ok bool) {
	for _, name := range apkDatabases {
		if f := t.Find(name); f != nil {
			return f.Found.packages, true // the other may be the same file
		}
	}
	return 0, false
}

func (t tree) rpm() (n int, ok bool) {
	for _, dir := range []string{"/var/lib/rpm/", "/usr/lib/sysimage/rpm/"} {
		if f := t.Find(dir + sqliteName); f != nil {
			for _, journal := range []string{"-wal", "-journal"} {
				if j := t.Find(dir + sqliteName + journal); j != nil && j.Size > 0 {
					return -1, true // it has changes that the database has not, or the other way round
				}
			}
			return f.Found.packages, true
		}
		for _, name := range []string{"Packages", "Packages.db"} { // of Berkeley DB, and rpm's own format
			if t.Find(dir+name) != nil {
				return -1, true
			}
		}
	}
	return 0, false
}

// dpkgStatus counts installed packages. Those that were removed but for their configuration are listed too.
func dpkgStatus(content io.Reader) (f found, err error) {
	err = lines(content, func(line []byte) {
		if status, ok := bytes.CutPrefix(line, []byte("Status:")); ok {
			if words := bytes.Fields(status); len(words) == 3 && string(words[2]) == "installed" {
				f.packages++
			}
		}
	})
	return f, err
}

// apkInstalled counts installed packages, and finds the version of musl.
func apkInstalled(content io.Reader) (f found, err error) {
	musl := false
	err = lines(content, func(line []byte) {
		key, value, _ := strings.Cut(string(line[:min(len(line), 80)]), ":")
		switch key {
		case "P":
			f.packages++
			musl = value == "musl"
		case "V":
			if musl {
				f.text, _, _ = strings.Cut(value, "-r") // Alpine's own revision
			}
		}
	})
	return f, err
}

// osRelease reads the name of a system. See os-release(5); the last assignment counts, as in a shell.
func osRelease(content io.Reader) (f found, err error) {
	err = lines(io.LimitReader(content, maxOSRelease), func(line []byte) {
		value, ok := strings.CutPrefix(string(line), "PRETTY_NAME=")
		if !ok {
			return
		}
		value = strings.TrimSpace(value)
		if n := len(value); n > 1 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			quote := value[0]
			value = value[1 : n-1]
			if quote == '"' {
				value = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\$`, `$`, "\\`", "`").Replace(value)
			}
		}
		f.text = value
	})
	return f, err
}

// lines calls each for all lines, with no more than the beginning of very long ones.
func lines(r io.Reader, each func(line []byte)) error {
	b := bufio.NewReader(r)
	for beginning := true; ; {
		line, more, err := b.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if beginning {
			each(line)
		}
		beginning = !more
	}
}
