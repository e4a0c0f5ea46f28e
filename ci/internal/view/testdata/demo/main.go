// Command demo shows the events that it reads, one JSON object per line, from the TCP address given to
// it. A test holds the other end and so decides what is on the screen when.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"

	"github.com/slipway-ci/slipway/ci/internal/view"
	"github.com/slipway-ci/slipway/pipelines"
)

func main() {
	interrupt := make(chan os.Signal, 1)
	signal.Notify(interrupt, os.Interrupt)
	conn, err := net.Dial("tcp", os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	v := view.Choose(os.Stdout, false, os.Getenv)
	end := make(chan struct{})
	go func() {
		defer close(end)
		for d := json.NewDecoder(conn); ; {
			var e pipelines.Event
			if d.Decode(&e) != nil {
				return
			}
			v.Event(e)
		}
	}()
	select {
	case <-end:
		v.Close()
		fmt.Println("demo ended")
	case <-interrupt:
		v.Close()
		fmt.Println("demo interrupted")
	}
}
