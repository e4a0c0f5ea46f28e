package main

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/slipway-ci/slipway/pipelines/report/formats"
)

// inRepository is where the source lies in what a CI service has checked out; empty for its root and elsewhere.
func inRepository(source string, getenv func(string) string) string {
	for _, name := range []string{"GITHUB_WORKSPACE", "CI_PROJECT_DIR"} {
		if dir := getenv(name); dir != "" {
			if rel, err := filepath.Rel(realPath(dir), realPath(source)); err == nil && filepath.IsLocal(rel) && rel != "." {
				return filepath.ToSlash(rel)
			}
		}
	}
	return ""
}

// quiet keeps GitHub from taking what is written next for workflow commands, until the function that it returns is
// called: failures quote the output of tests, and a line of it may begin with "::".
func quiet(w io.Writer, getenv func(string) string) func() {
	if getenv("GITHUB_ACTIONS") != "true" {
		return func() {}
	}
	token := rand.Text()
	fmt.Fprintf(w, "::stop-commands::%s\n", token)
	return func() { fmt.Fprintf(w, "::%s::\n", token) }
}

// tellServices tells the CI service that this runs on, if it is one, what a run came to. w is what the service
// reads: GitHub takes workflow commands from standard output and standard error alike.
func tellServices(w io.Writer, out *printer, run *formats.Run, getenv func(string) string) {
	if getenv("GITHUB_ACTIONS") == "true" {
		_, _ = io.WriteString(w, run.Annotations())
	}
	if getenv("GITLAB_CI") == "true" && run.Test != nil && run.Test.Coverage >= 0 {
		// As go test says it: the expression that GitLab's documentation has for Go finds it.
		fmt.Fprintf(w, "coverage: %.1f%% of statements\n", run.Test.Coverage)
	}
	if name := getenv("GITHUB_STEP_SUMMARY"); name != "" {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = io.WriteString(f, run.Summary(out.command, out.repeat))
			if closeErr := f.Close(); err == nil {
				err = closeErr
			}
		}
		if err != nil {
			fmt.Fprintf(w, "note: the job summary cannot be written: %v\n", reason(err))
		}
	}
}
