// App is what the tests of package sandbox put into an image. It tells what it sees from inside.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	command, args := os.Args[1], os.Args[2:]
	switch command {
	case "report":
		check(json.NewEncoder(os.Stdout).Encode(report(args)))
	case "serve": // addresses
		for _, addr := range args {
			l, err := net.Listen("tcp", addr)
			check(err)
			go http.Serve(l, http.HandlerFunc(serve))
		}
		fmt.Println("serving")
		forever()
	case "stop": // ends in good order on SIGTERM
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("serving")
		<-c
		fmt.Println("stopped")
		os.Exit(7)
	case "ignore":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("serving")
		forever()
	case "wait":
		fmt.Println("serving")
		forever()
	case "userns": // tries in every way to make a user namespace
		cmd := exec.Command("/proc/self/exe", "exit", "0")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		fmt.Println("clone:", text(cmd.Run()))
		fmt.Println("unshare:", text(syscall.Unshare(syscall.CLONE_NEWUSER)))
		const clone3 = 435
		_, _, errno := syscall.Syscall(clone3, 0, 0, 0)
		fmt.Println("clone3:", errno)
	case "exit":
		code, _ := strconv.Atoi(args[0])
		fmt.Fprintln(os.Stderr, "bye")
		os.Exit(code)
	case "output": // number of lines
		n, _ := strconv.Atoi(args[0])
		for i := range n {
			fmt.Fprintln([]io.Writer{os.Stdout, os.Stderr}[i%2], "line", i)
		}
	case "eat": // MiB
		n, _ := strconv.Atoi(args[0])
		var all [][]byte
		for range n {
			b := make([]byte, 1<<20)
			for j := 0; j < len(b); j += 4096 {
				b[j] = 1
			}
			all = append(all, b)
		}
		fmt.Println("ate", len(all))
	case "fork": // number of processes to try
		n, _ := strconv.Atoi(args[0])
		started := 0
		for range n {
			if exec.Command("/proc/self/exe", "wait").Start() != nil {
				break
			}
			started++
		}
		fmt.Println("forked", started)
	case "daemon": // address; leaves a process behind, as daemons do
		cmd := exec.Command("/proc/self/exe", append([]string{"daemon2"}, args...)...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		check(cmd.Run())
		if len(args) > 1 {
			forever()
		}
	case "daemon2":
		cmd := exec.Command("/proc/self/exe", "serve", args[0])
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		check(cmd.Start())
	default:
		check(fmt.Errorf("unknown command %q", command))
	}
}

// forever does not return, nor does it make the runtime look for a deadlock.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "app:", err)
		os.Exit(1)
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, "hello from ", r.URL.Path)
}

// Report is what the process sees. It is decoded by the tests into a type of their own.
type Report struct {
	UID, GID int
	Groups   []int
	PID      int
	Caps     map[string]string
	NNP      string
	Cwd      string
	Exe      string
	Host     string
	Env      []string
	Args     []string
	Pids     []string
	FDs      []string
	Files    map[string]string
	Writes   map[string]string
	Reads    map[string]string
	Dials    map[string]string
	Links    []string
	NS       map[string]string
	Mounts   []string
	Sig      string
}

func report(args []string) Report {
	r := Report{
		UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), Env: os.Environ(), Args: os.Args,
		Caps: map[string]string{}, Files: map[string]string{}, Writes: map[string]string{}, Reads: map[string]string{},
		Dials: map[string]string{}, NS: map[string]string{},
	}
	r.Groups, _ = os.Getgroups()
	r.Cwd, _ = os.Getwd()
	r.Exe, _ = os.Executable()
	r.Host, _ = os.Hostname()
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		v = strings.TrimSpace(v)
		switch {
		case strings.HasPrefix(k, "Cap"):
			r.Caps[k] = v
		case k == "NoNewPrivs":
			r.NNP = v
		case k == "SigIgn" || k == "SigBlk":
			r.Sig += k + "=" + v + " "
		}
	}
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && !strings.HasPrefix(target, "anon_inode:") {
			r.FDs = append(r.FDs, fd.Name()+" "+target)
		}
	}
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range pids {
		r.Pids = append(r.Pids, filepath.Base(p))
	}
	for _, ns := range []string{"pid", "mnt", "ipc", "uts", "net", "user"} {
		r.NS[ns], _ = os.Readlink("/proc/self/ns/" + ns)
	}
	links, _ := net.Interfaces()
	for _, l := range links {
		r.Links = append(r.Links, l.Name+" "+l.Flags.String())
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	r.Mounts = strings.Split(strings.TrimSpace(string(mounts)), "\n")

	for _, a := range args {
		what, name, _ := strings.Cut(a, "=")
		switch what {
		case "stat":
			fi, err := os.Lstat(name)
			if err != nil {
				r.Files[name] = text(err)
				continue
			}
			st := fi.Sys().(*syscall.Stat_t)
			r.Files[name] = fmt.Sprintf("%v %d:%d", fi.Mode(), st.Uid, st.Gid)
		case "write":
			f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644)
			if err == nil {
				_, err = f.WriteString("x")
				f.Close()
			}
			r.Writes[name] = text(err)
		case "remove":
			r.Files[name] = text(os.Remove(name))
		case "fill": // how much fits in
			f, err := os.Create(name)
			n := 0
			for err == nil && n < 1<<30 {
				var k int
				k, err = f.Write(make([]byte, 1<<20))
				n += k
			}
			r.Writes[name] = strconv.Itoa(n>>20) + " MiB, " + text(err)
		case "read":
			f, err := os.Open(name)
			var b []byte
			if err == nil {
				b, err = io.ReadAll(io.LimitReader(f, 16))
				f.Close()
			}
			r.Reads[name] = text(err)
			if err == nil {
				r.Reads[name] = fmt.Sprintf("%q", b)
			}
		case "dial":
			c, err := net.DialTimeout("tcp", name, 5*time.Second)
			if err == nil {
				c.Close()
			}
			r.Dials[name] = text(err)
		}
	}
	return r
}

// text is an error as its number's text, which does not depend on where it occurred.
func text(err error) string {
	if err == nil {
		return "ok"
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}
