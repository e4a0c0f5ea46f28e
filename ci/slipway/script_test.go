package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
)

var update = flag.Bool("update", false, "rewrite what the scripts compare with")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"slipway": main, "interrupt": interrupt, "nobody": nobody})
}

// TestScripts runs the scripts in testdata/script, which show how the command line behaves. Beside the
// commands of testscript they have:
//
//	exits CODE PROGRAM ARG...     the program must end with that code
//	fixture NAME                  copies testdata/NAME of the repository into the working directory
//	locked                        writes a slipway.lock that pins the releases which the scripts use
//	remember PATH...              notes all that is there, times of change included ...
//	unchanged PATH...             ... which must not have changed since
//	value VARIABLE FILE KEY...    sets a variable to what stands in a JSON file at a key such as image.digest
//	objects FILE                  every line of the file must be a JSON object
//	events FILE                   every line of the file must be as docs/formats.md describes those of --json
//	[!] equal A B                 compares two words
//	[!] found TEXT PATH...        looks for a text in files, in compressed ones too
//	registry [refuse|dies|USER]   starts a registry, whose address is $REGISTRY (see there)
//	tag VARIABLE REFERENCE        sets a variable to the digest that a tag in a registry has, or to "none"
//	key NAME [ecdsa]              writes a key pair, NAME.key and NAME.pub
//	page NAME [CODE=COMMAND...]   executes the commands of a page of the docs, see there
//	disk SIZE PATH                mounts an empty file system of that size
//
// and the programs slipway, interrupt and nobody (see there). The conditions are [root] and [mount]: whether
// it is root who runs this, and whether file systems can be mounted.
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
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "fixture": fixture, "locked": locked(env), "remember": remember, "unchanged": unchanged,
			"value": value, "less": less, "equal": equal, "objects": objects, "events": events, "found": found, "registry": startRegistry, "tag": tagDigest, "disk": disk, "key": keyPair, "page": executePage,
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Getuid() == 0, nil
			case "mount":
				return canMount(), nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
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
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
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
	// What `make run` has left in the sample.
	for _, name := range pipelines.OutputNames(ts.MkAbs("dist")) {
		ts.Check(os.RemoveAll(name))
	}
}
