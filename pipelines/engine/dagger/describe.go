package dagger

import "strings"

// Describe implements engine.Describer.
func (e *Engine) Describe() (version string, env []string) {
	return e.version, strings.Fields("GO111MODULE=on GOCACHE=@dir@ GOENV=off GOFLAGS= GOMODCACHE=@dir@ GOPATH=@dir@ GOPROXY=off GOSUMDB=off GOTOOLCHAIN=local HOME=@dir@ LANG=C.UTF-8 TZ=UTC")
}
