//go:build !linux

package main

import "github.com/rogpeppe/go-internal/testscript"

// What needs Linux; the scripts that use it say so.

func canMount() bool { return false }

func disk(ts *testscript.TestScript, _ bool, _ []string) { ts.Fatalf("disk needs Linux") }

func interrupt() { panic("interrupt needs Linux") }

func nobody() { panic("nobody needs Linux") }
