// Command tiny says its name. It is compiled in no time.
package main

// version is set with -ldflags "-X main.version=...".
var version = "0.0.0-dev"

func main() { println("tiny", version) }
