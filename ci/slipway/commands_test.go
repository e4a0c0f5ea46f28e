package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// locked makes the lock file once, for all scripts: they need not ask a network for what it pins.
func locked(env []string) func(*testscript.TestScript, bool, []string) {
	text := sync.OnceValues(func() ([]byte, error) {
		dir, err := os.MkdirTemp("", "slipway-lock-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.com/lock\n\ngo 1.20\n"), 0o600); err != nil {
			return nil, err
		}
		cmd := exec.Command("slipway", "lock", "--source="+dir, "--go-versions=1.20,1.21,1.22")
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/no-home"}, env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%w: %s", err, out)
		}
		return os.ReadFile(filepath.Join(dir, "slipway.lock"))
	})
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) > 0 {
			ts.Fatalf("usage: locked")
		}
		b, err := text()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs("slipway.lock"), b, 0o644))
	}
}

// remembered maps absolute paths to what was there.
var remembered sync.Map

func remember(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: remember PATH...")
	}
	for _, a := range args {
		s, err := snapshot(ts.MkAbs(a))
		ts.Check(err)
		remembered.Store(ts.MkAbs(a), s)
	}
}

func unchanged(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: unchanged PATH...")
	}
	for _, a := range args {
		was, ok := remembered.Load(ts.MkAbs(a))
		if !ok {
			ts.Fatalf("%s was not remembered", a)
		}
		is, err := snapshot(ts.MkAbs(a))
		ts.Check(err)
		if was != is {
			ts.Fatalf("%s has changed\nwas:\n%sis:\n%s", a, was, is)
		}
	}
}

// snapshot is a line for each file below name with all that can be seen of it; what does not exist is "none".
func snapshot(name string) (string, error) {
	var b strings.Builder
	err := filepath.WalkDir(name, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && file == name {
			b.WriteString("none\n")
			return nil
		}
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%q %v", file, i.Mode())
		switch {
		case i.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " to %q", to)
		case i.Mode().IsRegular():
			content, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %v %x", i.ModTime(), sha256.Sum256(content))
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String(), err
}

func value(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: value VARIABLE FILE KEY[.KEY...]")
	}
	var v any
	d := json.NewDecoder(strings.NewReader(ts.ReadFile(args[1])))
	d.UseNumber()
	ts.Check(d.Decode(&v))
	for key := range strings.SplitSeq(args[2], ".") {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			n, err := strconv.Atoi(key)
			if err != nil || n >= len(x) {
				ts.Fatalf("%s: there is no element %s in a list of %d", args[2], key, len(x))
			}
			v = x[n]
		default:
			ts.Fatalf("%s: there is no %s in %v", args[2], key, v)
		}
	}
	if v == nil {
		ts.Fatalf("there is no %s in %s", args[2], args[1])
	}
	ts.Setenv(args[0], fmt.Sprint(v))
}

// less sets a variable to a number less one: less VARIABLE NUMBER.
func less(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: less VARIABLE NUMBER")
	}
	n, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Setenv(args[0], strconv.FormatInt(n-1, 10))
}

// objects looks whether every line of a file is a JSON object.
func objects(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: objects FILE")
	}
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			ts.Fatalf("%v: %s", err, line)
		}
	}
}

func equal(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: [!] equal A B")
	}
	if (args[0] == args[1]) == neg {
		ts.Fatalf("%q, %q", args[0], args[1])
	}
}

func found(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 || args[0] == "" {
		ts.Fatalf("usage: [!] found TEXT PATH...")
	}
	var names []string
	files := 0
	for _, a := range args[1:] {
		ts.Check(filepath.WalkDir(ts.MkAbs(a), func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			files++
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			if z, err := gzip.NewReader(bytes.NewReader(content)); err == nil {
				plain, err := io.ReadAll(z)
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				content = append(content, plain...)
			}
			if bytes.Contains(content, []byte(args[0])) || strings.Contains(d.Name(), args[0]) {
				names = append(names, name)
			}
			return nil
		}))
	}
	switch {
	case files == 0:
		ts.Fatalf("no file in %v", args[1:])
	case neg && len(names) > 0:
		ts.Fatalf("%q is in %v", args[0], names)
	case !neg && len(names) == 0:
		ts.Fatalf("%q is in none of %d files", args[0], files)
	}
}
