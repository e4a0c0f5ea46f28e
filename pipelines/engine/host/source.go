package host

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

	"github.com/go-git/go-git/v5/plumbing/format/gitignore"
	"golang.org/x/sync/errgroup"

	"github.com/slipway-ci/slipway/pipelines/engine"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

// readSource lists and hashes the files that git would commit, and asks git for the commit. Only the
// .gitignore files of the tree count: a user's global excludes are not the same on every machine.
func readSource(ctx context.Context, dir string, exclude []string) (engine.Source, error) {
	var s engine.Source
	var names []string
	var err error
	excluded := func(name string) bool {
		return slices.ContainsFunc(exclude, func(x string) bool { return name == x || strings.HasPrefix(name, x+"/") })
	}
	if inGit(dir) {
		names, err = gitFiles(ctx, dir)
		if err == nil {
			err = gitCommit(ctx, dir, excluded, &s)
		}
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
	names = slices.Compact(names)

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
		target := path.Join(path.Dir(name), f.Link)
		if path.IsAbs(f.Link) || filepath.IsAbs(link) || target == ".." || strings.HasPrefix(target, "../") {
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
	var patterns []gitignore.Pattern
	matcher := gitignore.NewMatcher(nil)
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dir, file)
		if err == nil {
			err = relErr
		}
		name := filepath.ToSlash(rel)
		if err != nil {
			return unreadable(name, err)
		}
		parts := strings.Split(name, "/")
		if name != "." && (d.Name() == ".git" || matcher.Match(parts, d.IsDir())) {
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
		text, err := os.ReadFile(filepath.Join(file, ".gitignore"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return unreadable(path.Join(name, ".gitignore"), err)
		}
		var domain []string
		if name != "." {
			domain = parts
		}
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\r\n")
			if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#") {
				patterns = append(patterns, gitignore.ParsePattern(line, domain))
			}
		}
		matcher = gitignore.NewMatcher(patterns)
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

// gitFiles lists the files that git has in its index or would add, submodules included.
func gitFiles(ctx context.Context, dir string) ([]string, error) {
	others, err := git(ctx, dir, "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")
	if err != nil {
		return nil, err
	}
	staged, err := git(ctx, dir, "ls-files", "-z", "--cached", "--stage")
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.SplitSeq(others, "\x00") {
		// A name that ends in a slash is a repository of its own, which git would not commit.
		if name != "" && !strings.HasSuffix(name, "/") {
			names = append(names, name)
		}
	}
	for entry := range strings.SplitSeq(staged, "\x00") {
		mode, name, ok := strings.Cut(entry, "\t")
		if !ok {
			continue
		}
		if !strings.HasPrefix(mode, "160000 ") {
			names = append(names, name)
			continue
		}
		sub := filepath.Join(dir, filepath.FromSlash(name))
		if _, err := os.Lstat(filepath.Join(sub, ".git")); err != nil {
			continue // a submodule that is not checked out is an empty directory everywhere
		}
		inner, err := gitFiles(ctx, sub)
		if err != nil {
			return nil, err
		}
		for _, n := range inner {
			names = append(names, path.Join(name, n))
		}
	}
	return names, nil
}

// gitCommit sets the commit, its time, and whether the tree differs from it.
func gitCommit(ctx context.Context, dir string, excluded func(string) bool, s *engine.Source) error {
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
	prefix, err := git(ctx, dir, "rev-parse", "--show-prefix")
	if err != nil {
		return err
	}
	out, err = git(ctx, dir, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".")
	if err != nil {
		return err
	}
	for entry := range strings.SplitSeq(out, "\x00") {
		if len(entry) < 4 {
			continue
		}
		name := strings.TrimPrefix(entry[3:], strings.TrimSuffix(prefix, "\n"))
		s.Dirty = s.Dirty || !excluded(name) && name != "slipway.lock"
	}
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
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fault.Environmentf(fmt.Errorf("%w: %s", err, lastLines(stderr.Bytes(), 3)), "The same command must work by hand in the source directory.", "git %s", strings.Join(args[:1], " "))
	}
	return string(out), nil
}

// lastLines returns the last n lines of text, trimmed.
func lastLines(text []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
