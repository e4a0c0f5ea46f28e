// Command misbehaves does what services should not do; the argument says which.
package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	switch mode {
	case "exits":
		fmt.Fprintln(os.Stderr, "cannot find the flux capacitor")
		os.Exit(4)
	case "dawdles": // before it ends by itself it has something to do
		fmt.Fprintln(os.Stderr, "cannot find the flux capacitor")
		for begin := time.Now(); time.Since(begin) < 5*time.Millisecond; {
		}
		os.Exit(4)
	case "silent":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		return
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
	case "broken":
		http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "out of order", http.StatusInternalServerError)
		})
	case "moved":
		http.Handle("/", http.RedirectHandler("https://example.com/elsewhere", http.StatusFound))
	}
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("listening on", l.Addr())
	_ = http.Serve(l, nil)
}
