package main

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite what the scripts compare with")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"slipway": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
		},
	})
}

// TestScripts runs the scripts in testdata/script, which show how the command line behaves. `exits CODE
// COMMAND ARG...` runs a command that must end with that code; `fixture NAME` copies testdata/NAME of the
// repository into the working directory.
func TestScripts(t *testing.T) {
	env := goEnv(t)
	// One cache for all scripts: what a toolchain's files hash to is found out once.
	env = append(env, "SLIPWAY_CACHE="+t.TempDir())
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, env...)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "fixture": fixture},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Getuid() == 0, nil
			}
			return false, nil
		},
	})
}

// goEnv is what the go command of this machine needs where HOME is another one.
func goEnv(t *testing.T) []string {
	names := []string{"GOPROXY", "GOSUMDB", "GOMODCACHE", "GOCACHE"}
	out, err := exec.Command("go", append([]string{"env"}, names...)...).Output()
	require.NoError(t, err)
	values := strings.Split(strings.TrimSpace(string(out)), "\n")
	require.Len(t, values, len(names))
	var env []string
	for i, name := range names {
		env = append(env, name+"="+values[i])
	}
	return env
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if x, ok := err.(*exec.ExitError); ok {
		code = x.ProcessState.String()
		code = strings.TrimPrefix(code, "exit status ")
	} else if err != nil {
		code = err.Error()
	}
	if code != args[0] {
		ts.Fatalf("%s: exit code %s, want %s", strings.Join(args[1:], " "), code, args[0])
	}
}

func fixture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fixture NAME")
	}
	root, err := filepath.Abs("../../testdata")
	ts.Check(err)
	ts.Check(os.CopyFS(ts.MkAbs("."), os.DirFS(filepath.Join(root, args[0]))))
}
