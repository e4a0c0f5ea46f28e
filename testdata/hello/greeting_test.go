package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestGreeting(t *testing.T) {
	for name, want := range map[string]string{"": "Hello, world!", "Ada": "Hello, Ada!", "  Ada ": "Hello, Ada!"} {
		if got := greeting(name); got != want {
			t.Errorf("greeting(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestHandler(t *testing.T) {
	for path, want := range map[string]string{"/healthz": "ok\n", "/?name=Ada": "Hello, Ada!\n"} {
		path, want := path, want
		t.Run(path, func(t *testing.T) {
			w := httptest.NewRecorder()
			handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			body, err := io.ReadAll(w.Result().Body)
			if err != nil {
				t.Fatal(err)
			}
			if string(body) != want {
				t.Errorf("GET %s = %q, want %q", path, body, want)
			}
		})
	}
}

func TestServeStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := serve(ctx, "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
}
