// Command serves is a service that probes can ask: what it says, where it listens and how it ends is in its
// arguments.
package main

import (
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

func main() {
	listen := flag.String("listen", ":8080", "address to serve HTTP on")
	plain := flag.String("tcp", "", "address to greet on, without HTTP")
	code := flag.Int("code", 0, "exit code after the signal")
	wait := flag.Int("signal", int(syscall.SIGTERM), "signal to end on")
	capabilities := flag.Bool("capabilities", false, "print what the process may do, and end")
	read := flag.String("read", "", "print a file, and end")
	flag.Parse()
	log.SetFlags(0)
	if *capabilities {
		status, _ := os.ReadFile("/proc/self/status")
		for _, line := range strings.Split(string(status), "\n") {
			if strings.HasPrefix(line, "CapEff:") || strings.HasPrefix(line, "NoNewPrivs:") {
				fmt.Println(line)
			}
		}
		return
	}
	if *read != "" {
		dir, _ := os.Getwd()
		content, err := os.ReadFile(*read)
		fmt.Printf("%s: %s%v\n", dir, content, err)
		return
	}

	stop := make(chan os.Signal, 1)
	signal.Ignore(syscall.SIGTERM)
	signal.Notify(stop, syscall.Signal(*wait))
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Served-By", "serves 1.2.3")
		fmt.Fprintln(w, "ok")
	})
	http.HandleFunc("/hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	http.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "# HELP requests_total Requests.\n# TYPE requests_total counter\nrequests_total{code=\"200\"} 3\n# TYPE up gauge\nup 1\n")
	})
	http.HandleFunc("/broken-metrics", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "requests_total{code=\"200} three\n")
	})
	if *plain != "" {
		l, err := net.Listen("tcp", *plain)
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, "hello")
				c.Close()
			}
		}()
	}
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	log.Println("serving on", l.Addr())
	go func() { log.Fatal(http.Serve(l, nil)) }()
	<-stop
	log.Println("stopping")
	os.Exit(*code)
}
