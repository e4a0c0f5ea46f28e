// Package engine is the one seam between slipway's pipeline and the place where its commands run.
//
// An [Engine] is bound to one source tree. It shows the files of that tree, runs a command of a given Go
// toolchain over it, and starts a finished image the way production would. It decides nothing else:
// planning, parsing, comparing, assembling and publishing are plain Go in package pipelines, run in the
// calling process, and are therefore the same code with every engine.
package engine

import (
	"context"
	"io"
	"io/fs"
	"net"
	"os"
	"time"
)

// Placeholders that an engine replaces in Command.Args and Command.Env by paths of its own.
const (
	// OutDir is the directory into which a command writes what Command.Outputs names.
	OutDir = "@out@"
	// SourceDir is the root of the source tree as the command sees it.
	SourceDir = "@source@"
	// InputDir is Command.Input as the command sees it, InputURL its file URL.
	InputDir = "@input@"
	InputURL = "@inputurl@"
)

// Engine runs commands over one source tree. Its methods may be called concurrently.
// Errors that they return are those of package fault, or else faults of the environment (no network,
// disk full, cancelled); a command that ran and failed is a Result with an ExitCode, not an error.
type Engine interface {
	// Name is the engine's name in flags and run records: "host" or "dagger".
	Name() string

	// Source is the tree that the engine is bound to.
	Source() Source

	// Toolchain makes one exact Go release ready to run ("1.22.12") and verifies its checksum: against
	// its pin if there is one, else against the public checksum database or registry. Pins are by
	// Toolchain.Pin.
	Toolchain(ctx context.Context, release string, pins map[string]string) (Toolchain, error)

	// Run runs one command to its end.
	Run(ctx context.Context, c Command) (*Result, error)

	// Start starts an image. The caller must Close the process. The error is a *ForeignError when no image
	// of that platform can run here, and an *ImageError when the image itself is to blame.
	Start(ctx context.Context, c Container) (Process, error)

	// Close removes what the engine created for itself, other than caches.
	Close() error
}

// Source is a source tree as every engine sees it: what git would commit, nothing else.
type Source struct {
	// FS holds exactly the files that commands see. It implements fs.ReadLinkFS.
	FS fs.FS
	// Files are the files of FS, sorted by name.
	Files []File
	// Commit is the full hash of the checked-out commit, empty without version control.
	Commit string
	// Time is SOURCE_DATE_EPOCH where that is set, else the commit's time; zero when neither is known.
	Time time.Time
	// Dirty tells that the tree differs from Commit.
	Dirty bool
	// Changed are the files in which it does, sorted.
	Changed []string
	// Tags are the names of git's tags that point at Commit, sorted; Branch is the one that is checked out, empty
	// if none is. Both differ from clone to clone, so nothing that has a digest may depend on them.
	Tags   []string
	Branch string
}

// File is one file of a source tree.
type File struct {
	// Name is slash-separated and relative to the source's root.
	Name string
	// Executable is the only part of a file's mode that git keeps.
	Executable bool
	// Link is the target of a symbolic link, empty for a regular file.
	Link string
	// SHA256 is the digest of a regular file's content, in hex.
	SHA256 string
}

// Toolchain is a Go release that is ready to run.
type Toolchain struct {
	// Release is the exact release, "1.22.12".
	Release string
	// Platform is the platform it runs on, "linux/amd64".
	Platform string
	// Pin is the name under which the checksum is pinned: the platform, or the reference of an image.
	Pin string
	// Checksum is what was verified: "h1:..." of the toolchain module, or "sha256:..." of an image.
	Checksum string
	// VerifiedBy says against what: "slipway.lock" or "checksum database"; or "registry" for an image that
	// is not pinned yet, where there is nothing else to ask.
	VerifiedBy string
}

// Command is one command of a Go toolchain.
type Command struct {
	// Name is what people see, such as "go test (1.22.12)".
	Name string
	// Toolchain is an exact release that Engine.Toolchain has made ready. Empty means any Go that the
	// engine has, for questions whose answer does not depend on the release.
	Toolchain string
	// Dir is the working directory, slash-separated and relative to the source's root; or OutDir, for
	// questions that have nothing to do with the source.
	Dir string
	// Args is the command; Args[0] is "go" or "gofmt", or the name of Tool.
	Args []string
	// Tool is a Go program at an exact version, PACKAGE@VERSION, that runs in the toolchain's environment in
	// place of the go command. The engine builds it with the newest Go that it has, since programs which
	// read Go code must be as new as that, and the checksum database vouches for all of its modules. The
	// error is a *ToolError when there is no getting it.
	Tool string
	// Input is a directory of the calling process that the command may read, beside its source. InputDir and
	// InputURL stand for it.
	Input string
	// Env are further variables, "KEY=value". They come after the engine's own few, which are constant.
	Env []string
	// Outputs names files or directories that are wanted in OutputDir, also when the command failed: below
	// OutDir, or with SourceDir and a slash before the name, of the tree that the command changed. One that
	// the command did not write is left out.
	Outputs []string
	// OutputDir is an existing directory of the calling process. Outputs appear in it under their names,
	// relative to OutDir or SourceDir.
	OutputDir string
	// Keep lets OutDir hold what the very same command wrote in an earlier run, so that `go build` need not
	// link again what has not changed.
	Keep bool
	// Writes says that the command may change its source tree, as tests do. It then gets a tree that is
	// shared with no command of another release, and the next command finds the source as it was.
	Writes bool
	// Network lets the command reach module proxies, with the user's credentials for them. Without it
	// neither the user's proxy settings nor credentials are visible to the command.
	Network bool
	// Relocate runs the command over a copy of the source in another directory and with a build cache
	// that was empty when the engine was made.
	Relocate bool
	// CGO lets the command use the machine's C compiler.
	CGO bool
	// Stdout receives standard output while the command runs (or at its end, if the engine cannot
	// stream). Result.Stdout then stays empty.
	Stdout io.Writer
}

// Result is what a command that ran has left.
type Result struct {
	// ExitCode is the command's exit code; 128 plus the signal's number when a signal ended it.
	ExitCode int
	Stdout   []byte
	Stderr   []byte
	// Dir is the absolute path of the source's root as the command saw it. It must not be found in
	// anything that the command built.
	Dir string
	// Duration is the time that the command took.
	Duration time.Duration
}

// Container says which image to start and how.
type Container struct {
	// Layout is the directory of an OCI layout in the calling process.
	Layout string
	// Manifest is the digest of the image manifest in it (of one platform, not of the index).
	Manifest string
	// Args follow the image's entrypoint, in place of its command when not nil.
	Args []string
	// Env are further variables, "KEY=value".
	Env []string
	// Memory is the memory limit in bytes.
	Memory int64
	// Processes is the limit of processes and threads.
	Processes int
	// Capabilities are those that the image's files may give to its processes, as capabilities(7) names them:
	// "cap_net_bind_service". All others stay out of reach. Without any, no file gives privileges at all.
	Capabilities []string
	// Isolation asks for one kind of isolation, of those that the engine's documentation names. Empty
	// means the best that the machine offers, and an error where it offers none.
	Isolation string
}

// ForeignError says that images of a platform cannot run here. That is not the image's fault.
type ForeignError struct {
	// Platform is that of the image, Machine says what runs here.
	Platform, Machine string
}

func (e *ForeignError) Error() string {
	return "the image is for " + e.Platform + ", which this machine (" + e.Machine + ") cannot execute"
}

// ImageError says that an image cannot be started anywhere, for what is in it or is not.
type ImageError struct{ Err error }

func (e *ImageError) Error() string { return e.Err.Error() }
func (e *ImageError) Unwrap() error { return e.Err }

// ToolError says that a program which a command needs cannot be had here. The command's subject is not to
// blame for that.
type ToolError struct {
	Tool string
	Err  error
}

func (e *ToolError) Error() string { return e.Tool + " cannot be built: " + e.Err.Error() }
func (e *ToolError) Unwrap() error { return e.Err }

// Process is a started image.
type Process interface {
	// Dial connects to a TCP port of the process's own loopback interface.
	Dial(ctx context.Context, port int) (net.Conn, error)
	// Listening returns the TCP ports that accept connections now, sorted.
	Listening(ctx context.Context) ([]int, error)
	// Wait waits for the end of the image's first process. It may be called more than once.
	Wait(ctx context.Context) (Exit, error)
	// Signal sends a signal to the image's first process, once that waits for something or after a second at most.
	// The error is os.ErrProcessDone if it has ended by itself.
	Signal(s os.Signal) error
	// Output returns the last output so far, standard output and error together, at most 64 KiB.
	Output() []byte
	// Isolation tells how the process is confined.
	Isolation() Isolation
	// Close kills what is left of the process and removes every trace of it.
	Close() error
}

// Exit tells how a process ended.
type Exit struct {
	// Code is the exit code, or 128 plus the number of the signal that ended the process.
	Code int
	// Signal is the name of that signal, such as "SIGKILL", if there was one.
	Signal string
	// MaxMemory is the largest resident size in bytes, 0 when unknown.
	MaxMemory int64
	// Leftover names the processes that the first one left behind, sorted: those that were there when it had
	// ended, or, where the end of a pid namespace ends them all at once, those that were there besides it
	// when it was last signalled. They are gone by now, or when the process is closed.
	Leftover []string
	// Written are files of the image that were changed, and files that were made, outside of what is a file
	// system in memory; sorted, at most 20. A read-only root file system has none.
	Written []string
}

// Isolation tells how a process is confined. Production confines it likewise; what a machine cannot do is
// named in Missing, never passed over.
type Isolation struct {
	// Kind is "runc", "crun", "namespaces", "process" (host engine) or "service" (dagger engine).
	Kind string `json:"kind"`
	// Holds lists what is in force, of: "user", "rootfs", "read-only", "pid", "mount", "ipc", "uts",
	// "network", "capabilities", "no-new-privileges", "memory", "processes", "tmpfs".
	Holds []string `json:"holds"`
	// Missing lists what is not in force, each with the reason: "memory: cgroups are not writable".
	Missing []string `json:"missing,omitempty"`
}
