// Package source reads a source tree as git would commit it, the same way for every engine, and copies it.
package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
	"github.com/slipway-ci/slipway/pipelines/internal/tail"
)

// Read lists and hashes the files that git would commit, and asks git for the commit. Only the
// .gitignore files of the tree count: a user's global excludes are not the same on every machine.
func Read(ctx context.Context, dir string, exclude []string) (engine.Source, error) {
	var s engine.Source
	var names []string
	var err error
	excluded := func(name string) bool {
		return slices.ContainsFunc(exclude, func(x string) bool { return name == x || strings.HasPrefix(name, x+"/") })
	}
	if inGit(dir) {
		names, err = gitSource(ctx, dir, excluded, &s)
	} else {
		names, err = walkFiles(dir)
	}
	if err != nil {
		return s, err
	}
	if t := os.Getenv("SOURCE_DATE_EPOCH"); t != "" {
		sec, err := strconv.ParseInt(t, 10, 64)
		if err != nil || sec < 0 {
			return s, fault.Usagef("Set it to seconds since 1970, or unset it.", "SOURCE_DATE_EPOCH=%q is not a time", t)
		}
		s.Time = time.Unix(sec, 0).UTC()
	}
	names = slices.DeleteFunc(names, excluded)
	slices.Sort(names)
	names = belowDirectories(dir, slices.Compact(names))

	files := make([]engine.File, len(names))
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, name := range names {
		g.Go(func() error {
			var err error
			files[i], err = readFile(dir, name)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return s, err
	}
	// What is listed but gone or not a file (deleted in the working tree, a socket) has no name.
	s.Files = slices.DeleteFunc(files, func(f engine.File) bool { return f.Name == "" })
	return s, ctx.Err()
}

// belowDirectories drops names that lie below something that is no directory any more: git's index has
// them still, but what is there now is a file, or a link to a directory that has files of those names.
func belowDirectories(dir string, names []string) []string {
	known := map[string]bool{".": true}
	var isDir func(name string) bool
	isDir = func(name string) bool {
		is, ok := known[name]
		if !ok {
			i, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(name)))
			// One that may not be looked at fails when its files are read.
			is = isDir(path.Dir(name)) && (err == nil && i.IsDir() || errors.Is(err, fs.ErrPermission))
			known[name] = is
		}
		return is
	}
	return slices.DeleteFunc(names, func(name string) bool { return !isDir(path.Dir(name)) })
}

func readFile(dir, name string) (engine.File, error) {
	file := filepath.Join(dir, filepath.FromSlash(name))
	i, err := os.Lstat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return engine.File{}, nil
	}
	if err != nil {
		return engine.File{}, unreadable(name, err)
	}
	f := engine.File{Name: name, Executable: i.Mode()&0o111 != 0}
	switch {
	case i.Mode()&fs.ModeSymlink != 0:
		link, err := os.Readlink(file)
		if err != nil {
			return f, unreadable(name, err)
		}
		f.Link, f.Executable = filepath.ToSlash(link), false
		if leadsOut(dir, name) {
			return f, fault.Usagef("Its target is not part of the source, so no other machine has it. Commit the file itself, or remove the link.",
				"source: the symbolic link %q leads out of the tree (to %q)", name, link)
		}
		return f, nil
	case !i.Mode().IsRegular():
		return engine.File{}, nil
	}
	r, err := os.Open(file)
	if err != nil {
		return f, unreadable(name, err)
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return f, unreadable(name, err)
	}
	f.SHA256 = hex.EncodeToString(h.Sum(nil))
	return f, nil
}

// leadsOut tells whether a name leads out of the tree when all links in it are followed.
func leadsOut(dir, name string) bool {
	rest := strings.Split(name, "/")
	at := "."
	for links := 0; len(rest) > 0 && links < 100; {
		var e string
		e, rest = rest[0], rest[1:]
		switch e {
		case "", ".":
			continue
		case "..":
			if at == "." {
				return true
			}
			at = path.Dir(at)
			continue
		}
		at = path.Join(at, e)
		link, err := os.Readlink(filepath.Join(dir, filepath.FromSlash(at)))
		if err != nil {
			continue // no link, or nothing at all
		}
		if filepath.IsAbs(link) || path.IsAbs(filepath.ToSlash(link)) {
			return true
		}
		links++
		at, rest = path.Dir(at), append(strings.Split(filepath.ToSlash(link), "/"), rest...)
	}
	return false
}

func unreadable(name string, err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		err = p.Err
	}
	return fault.Environmentf(err, "slipway reads every file that git would commit. Give yourself the right to read it, or list it in .gitignore.",
		"source: cannot read %q", name)
}

// walkFiles lists the files of a tree without version control, less those that its .gitignore files name.
func walkFiles(dir string) ([]string, error) {
	var names []string
	var ignored ignores
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dir, file)
		if err == nil {
			err = relErr
		}
		name := filepath.ToSlash(rel)
		if err != nil {
			return unreadable(name, err)
		}
		if name != "." && (d.Name() == ".git" || ignored.match(name, d.IsDir())) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.IsDir() {
			names = append(names, name)
			return nil
		}
		// WalkDir is lexical, so a directory's .gitignore is read before anything that it rules on.
		// As git does, do not follow a link.
		file = filepath.Join(file, ".gitignore")
		if i, err := os.Lstat(file); err != nil || !i.Mode().IsRegular() {
			return nil
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return unreadable(path.Join(name, ".gitignore"), err)
		}
		ignored = ignored.add(name, string(text))
		return nil
	})
	return names, err
}

// inGit tells whether dir lies in a git work tree.
func inGit(dir string) bool {
	for {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return false
		}
		dir = parent
	}
}

// gitSource lists the files of a git work tree and sets commit, time and whether the tree differs from it.
func gitSource(ctx context.Context, dir string, excluded func(string) bool, s *engine.Source) ([]string, error) {
	staged, others, err := gitFiles(ctx, dir)
	if err != nil {
		return nil, err
	}
	if len(staged)+len(others) == 0 {
		if entries, err := os.ReadDir(dir); err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != ".git" }) {
			return nil, fault.Usagef("Its repository ignores them: change .gitignore, or copy the source out of the repository.", "source: git would commit no file of %s", dir)
		}
	}
	// What git ignores on this machine only is part of the source, so git status is not asked about new files.
	changed := func(name string) {
		if !excluded(name) && name != "slipway.lock" {
			s.Dirty, s.Changed = true, append(s.Changed, name)
		}
	}
	for _, name := range others {
		changed(name)
	}
	err = gitCommit(ctx, dir, changed, s)
	slices.Sort(s.Changed)
	return append(staged, others...), err
}

// gitFiles lists the files that git has in its index and those that it would add, submodules included.
func gitFiles(ctx context.Context, dir string) (staged, others []string, err error) {
	list, err := git(ctx, dir, "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")
	if err != nil {
		return nil, nil, err
	}
	for name := range strings.SplitSeq(list, "\x00") {
		// A name that ends in a slash is a repository of its own, which git would not commit.
		if name != "" && !strings.HasSuffix(name, "/") {
			others = append(others, name)
		}
	}
	if list, err = git(ctx, dir, "ls-files", "-z", "--cached", "--stage"); err != nil {
		return nil, nil, err
	}
	for entry := range strings.SplitSeq(list, "\x00") {
		mode, name, ok := strings.Cut(entry, "\t")
		if !ok {
			continue
		}
		if !strings.HasPrefix(mode, "160000 ") {
			staged = append(staged, name)
			continue
		}
		sub := filepath.Join(dir, filepath.FromSlash(name))
		if _, err := os.Lstat(filepath.Join(sub, ".git")); err != nil {
			continue // a submodule that is not checked out is an empty directory everywhere
		}
		innerStaged, innerOthers, err := gitFiles(ctx, sub)
		if err != nil {
			return nil, nil, err
		}
		for _, n := range innerStaged {
			staged = append(staged, path.Join(name, n))
		}
		for _, n := range innerOthers {
			others = append(others, path.Join(name, n))
		}
	}
	return staged, others, nil
}

// gitCommit sets the commit and its time, and tells which files of it were changed or removed.
func gitCommit(ctx context.Context, dir string, changed func(name string), s *engine.Source) error {
	out, err := git(ctx, dir, "rev-parse", "--verify", "--quiet", "HEAD")
	if err != nil || strings.TrimSpace(out) == "" {
		s.Dirty = true // a repository without a commit
		return ctx.Err()
	}
	s.Commit = strings.TrimSpace(out)
	if out, err = git(ctx, dir, "show", "--no-patch", "--no-show-signature", "--format=%ct", s.Commit); err != nil {
		return err
	}
	sec, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return fault.Environmentf(err, "", "git: time of commit %s", s.Commit)
	}
	s.Time = time.Unix(sec, 0).UTC()
	if err := gitRefs(ctx, dir, s); err != nil {
		return err
	}
	prefix, err := git(ctx, dir, "rev-parse", "--show-prefix")
	if err != nil {
		return err
	}
	out, err = git(ctx, dir, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=none", "--", ".")
	if err != nil {
		return err
	}
	for entry := range strings.SplitSeq(out, "\x00") {
		if len(entry) < 4 {
			continue
		}
		changed(strings.TrimPrefix(entry[3:], strings.TrimSuffix(prefix, "\n")))
	}
	return nil
}

// gitRefs sets the tags that point at the commit, annotated ones included, and the branch.
func gitRefs(ctx context.Context, dir string, s *engine.Source) error {
	out, err := git(ctx, dir, "for-each-ref", "--points-at="+s.Commit, "--format=%(HEAD)%(refname)", "refs/tags", "refs/heads")
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		name := strings.TrimSpace(line)
		if tag, ok := strings.CutPrefix(name, "refs/tags/"); ok {
			s.Tags = append(s.Tags, tag)
		} else if branch, ok := strings.CutPrefix(name, "*refs/heads/"); ok {
			s.Branch = branch
		}
	}
	slices.Sort(s.Tags)
	return nil
}

func git(ctx context.Context, dir string, args ...string) (string, error) {
	program, err := exec.LookPath("git")
	if err != nil {
		return "", fault.Environmentf(nil, "Install git, or use a copy of the source without .git.", "source: %s is a git work tree but there is no git on the PATH", dir)
	}
	// Whoever runs slipway over a tree runs that tree's tests: git's guard against trees of other owners
	// (usual in CI containers) protects nothing here. The monitor would be one more program from the tree.
	cmd := exec.CommandContext(ctx, program, append([]string{"-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0")
	// In a hook these name the repository that the hook is for.
	cmd.Env = slices.DeleteFunc(cmd.Env, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
			"GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS"}, name)
	})
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fault.Environmentf(fmt.Errorf("%w: %s", err, tail.Lines(stderr.Bytes(), 3)), "The same command must work by hand in the source directory.", "git %s", args[0])
	}
	if bytes.Contains(stderr.Bytes(), []byte("could not open directory")) { // which git only warns of
		return "", fault.Environmentf(errors.New(tail.Lines(stderr.Bytes(), 3)), "slipway reads every file that git would commit. Give yourself the right to read it, or list it in .gitignore.", "source")
	}
	return string(out), nil
}
