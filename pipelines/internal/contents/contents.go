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
// *DamagedError that an image is not what it should be.
func Inspect(ctx context.Context, img v1.Image) (Facts, error) {
	config, err := img.ConfigFile()
	if err != nil {
		return Facts{}, err
	}
	t, err := readTree(ctx, img, config, look)
	if err != nil {
		return Facts{}, err
	}
	var f Facts
	t.count(t.root, "", &f)
	slices.Sort(f.Setuid)
	f.Shell = t.shell(config.Config.Env)
	f.PackageManager = t.packageManager()
	f.PackageDB, f.Packages = t.packages()
	f.Libc = t.libc()
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if file := t.regular(name); file != nil && f.OS == "" {
			f.OS = file.found.text
		}
	}
	return f, nil
}

// found is what was found in a regular file while its layer was read. Nothing else is kept of its content.
type found struct {
	packages int    // in a package database, -1 if that cannot be told
	text     string // version of glibc, or of musl in a database of apk; name in os-release
}

// look reads the files that a fact comes from. It goes by the last element of the path alone, as other elements may
// be symbolic links of later layers, and the file the target of one.
func look(name string, header *tar.Header, content io.Reader) (found, error) {
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

// regular returns the regular file that a path leads to, nil if there is none.
func (t *tree) regular(name string) *file {
	n := t.find(name)
	if n == nil || n.file == nil || n.file.kind != tar.TypeReg {
		return nil
	}
	return n.file
}

// names are those in a directory that match a pattern, sorted.
func (t *tree) names(dir, pattern string) []string {
	n := t.find(dir)
	if n == nil {
		return nil
	}
	var names []string
	for name := range n.children {
		if ok, _ := path.Match(pattern, name); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// executable returns the first path that leads to a file that can be executed, "" if none does.
func (t *tree) executable(names, dirs []string) string {
	for _, name := range names {
		for _, dir := range dirs {
			at := path.Join("/", dir, name)
			if f := t.regular(at); f != nil && f.mode&0o111 != 0 {
				return at
			}
		}
	}
	return ""
}

func (t *tree) count(n *node, name string, f *Facts) {
	for base, child := range n.children {
		t.count(child, name+"/"+base, f)
	}
	if n.file == nil || n.file.kind != tar.TypeReg && n.file.kind != tar.TypeSymlink {
		return
	}
	f.Files++
	if !n.file.counted {
		f.Size += n.file.size
		n.file.counted = true
	}
	if n.file.kind == tar.TypeReg && n.file.mode&0o6000 != 0 {
		f.Setuid = append(f.Setuid, name)
	}
}

func (t *tree) shell(env []string) string {
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

func (t *tree) packageManager() string {
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

func (t *tree) libc() string {
	for _, lib := range []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		dirs := []string{lib}
		for _, triplet := range t.names(lib, "*-linux-gnu*") {
			dirs = append(dirs, path.Join(lib, triplet))
		}
		for _, dir := range dirs {
			if f := t.regular(path.Join(dir, "libc.so.6")); f != nil && f.found.text != "" {
				return "glibc " + f.found.text
			}
		}
	}
	for _, lib := range []string{"/lib", "/usr/lib"} {
		for _, name := range t.names(lib, "ld-musl-*.so.1") {
			if t.regular(path.Join(lib, name)) == nil {
				continue
			}
			for _, db := range apkDatabases {
				if f := t.regular(db); f != nil && f.found.text != "" {
					return "musl " + f.found.text
				}
			}
			return "musl"
		}
	}
	return ""
}
