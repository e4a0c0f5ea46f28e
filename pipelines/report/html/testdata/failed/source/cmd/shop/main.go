// Command shop sells things.
package main

import (
	"fmt"
	"net/http"

	"example.com/shop/store"
)

func main() {
	http.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	fmt.Println(store.Total(nil))
	if err := http.ListenAndServe(":8080", nil); err != nil {
		fmt.Printf("%d\n", err.Error())
	}
}
