// Package contents tells what is in the file system of an image.
package contents

import (
	"archive/tar"
	"context"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipway-ci/slipway/pipelines/internal/layers"
)

// Facts are what a comparison of base images shows. Paths and texts are those of the image, whatever characters they have.
type Facts struct {
	// Files is the number of names of regular files and symbolic links. Hard links count each, directories and devices do not.
	Files int
	// Size is the bytes of the regular files that are left when all layers lie upon each other. Hard links count once.
	Size int64
	// Setuid are the absolute paths of regular files with the setuid or setgid bit, sorted. No part of them is a symbolic link.
	Setuid []string
	// Shell is the path of the first shell in /bin, /usr/bin or the image's PATH, "" for none.
	Shell string
	// PackageManager is what can install packages: apt, apk, dnf, microdnf, yum, zypper, pacman and others, dpkg or rpm
	// where there is nothing above them, "" for none.
	PackageManager string
	// Libc is "glibc" or "musl", with the version where that is known, as in "glibc 2.36"; "" for none.
	Libc string
	// Packages is how many packages the package database knows, -1 where it is there but cannot be read: rpm had
	// formats before SQLite, one over 64 MiB is too large, and one with a write-ahead log is not the whole of it.
	Packages int
	// PackageDB is dpkg, apk or rpm, "" for none.
	PackageDB string
	// OS is how the system calls itself: PRETTY_NAME of its os-release file.
	OS string
}

// Inspect reads all layers of an image, lowest first, as a runtime would lay them over each other. It is a
// *layers.DamagedError that an image is not what it should be.
func Inspect(ctx context.Context, img v1.Image) (Facts, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return Facts{}, err
	}
	files, err := layers.Read(ctx, img, look)
	if err != nil {
		return Facts{}, err
	}
	t := tree{files}
	f := t.count()
	f.Shell = t.shell(config.Config.Env)
	f.PackageManager = t.packageManager()
	f.PackageDB, f.Packages = t.packages()
	f.Libc = t.libc()
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if file := t.Find(name); file != nil && f.OS == "" {
			f.OS = file.Found.text
		}
	}
	return f, nil
}

// found is what was found in a regular file while its layer was read. Nothing else is kept of its content.
type found struct {
	packages int    // in a package database, -1 if that cannot be told
	text     string // version of glibc, or of musl in a database of apk; name in os-release
}

// Bytes is for layers.Found.
func (f found) Bytes() int { return len(f.text) }

// tree is the file system of an image.
type tree struct{ *layers.Tree[found] }

// look reads the files that a fact comes from. It goes by the last element of the path alone, as other elements may
// be symbolic links of later layers, and the file the target of one.
func look(_ int, name string, header *tar.Header, content io.Reader) (found, error) {
	base := path.Base(name)
	glibc, _ := path.Match("libc-2.*.so", base)
	switch {
	case base == "status":
		return dpkgStatus(content)
	case base == "installed":
		return apkInstalled(content)
	case base == sqliteName:
		if header.Size > maxDatabase {
			return found{packages: -1}, nil
		}
		b := make([]byte, header.Size)
		if _, err := io.ReadFull(content, b); err != nil {
			return found{}, err
		}
		n, err := countRows(b, "Packages")
		if err != nil {
			n = -1
		}
		return found{packages: n}, nil
	case strings.Contains(base, "os-release"): // Fedora's are links to others such as os-release-container
		return osRelease(content)
	case glibc || base == "libc.so.6":
		return glibcVersion(content)
	}
	return found{}, nil
}

// executable returns the first path that leads to a file that can be executed, "" if none does.
func (t tree) executable(names, dirs []string) string {
	for _, name := range names {
		for _, dir := range dirs {
			at := path.Join("/", dir, name)
			if f := t.Find(at); f != nil && f.Mode&0o111 != 0 {
				return at
			}
		}
	}
	return ""
}

// count tells of the facts what concerns all files.
func (t tree) count() (f Facts) {
	seen := map[*layers.File[found]]bool{}
	for name, file := range t.All() {
		if file.Kind != tar.TypeReg && file.Kind != tar.TypeSymlink {
			continue
		}
		f.Files++
		if !seen[file] {
			f.Size += file.Size
			seen[file] = true
		}
		if file.Kind == tar.TypeReg && file.Mode&0o6000 != 0 {
			f.Setuid = append(f.Setuid, name)
		}
	}
	slices.Sort(f.Setuid)
	return f
}

func (t tree) shell(env []string) string {
	dirs := []string{"/bin", "/usr/bin"}
	for _, variable := range env { // images for debugging have their only shell elsewhere
		if list, ok := strings.CutPrefix(variable, "PATH="); ok {
			dirs = append(dirs, strings.Split(list, ":")...)
		}
	}
	return t.executable([]string{"sh", "bash", "ash", "dash", "busybox", "ksh", "mksh", "zsh", "fish", "toybox"}, dirs)
}

// packageManagers are programs and the managers that they belong to, those first that install packages by name from afar.
var packageManagers = [][2]string{
	{"apt-get", "apt"}, {"apk", "apk"}, {"dnf", "dnf"}, {"dnf5", "dnf"}, {"microdnf", "microdnf"}, {"tdnf", "tdnf"}, {"yum", "yum"},
	{"zypper", "zypper"}, {"pacman", "pacman"}, {"opkg", "opkg"}, {"xbps-install", "xbps"}, {"emerge", "portage"}, {"dpkg", "dpkg"}, {"rpm", "rpm"},
}

func (t tree) packageManager() string {
	for _, m := range packageManagers {
		if t.executable(m[:1], []string{"/bin", "/usr/bin", "/sbin", "/usr/sbin"}) != "" {
			return m[1]
		}
	}
	return ""
}

var gnuVersion = regexp.MustCompile(`GNU C Library [^\n]{0,200}release version ([0-9]+\.[0-9.]*[0-9])`)

// glibcVersion finds what libc.so.6 prints when it is executed.
func glibcVersion(content io.Reader) (found, error) {
	b, err := io.ReadAll(io.LimitReader(content, maxLibc))
	if m := gnuVersion.FindSubmatch(b); m != nil {
		return found{text: string(m[1])}, err
	}
	return found{}, err
}

func (t tree) libc() string {
	for _, lib := range []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		dirs := []string{lib}
		for _, triplet := range t.Names(lib, "*-linux-gnu*") {
			dirs = append(dirs, path.Join(lib, triplet))
		}
		for _, dir := range dirs {
			if f := t.Find(path.Join(dir, "libc.so.6")); f != nil && f.Found.text != "" {
				return "glibc " + f.Found.text
			}
		}
	}
	for _, lib := range []string{"/lib", "/usr/lib"} {
		for _, name := range t.Names(lib, "ld-musl-*.so.1") {
			if t.Find(path.Join(lib, name)) == nil {
				continue
			}
			for _, db := range apkDatabases {
				if f := t.Find(db); f != nil && f.Found.text != "" {
					return "musl " + f.Found.text
				}
			}
			return "musl"
		}
	}
	return ""
}
