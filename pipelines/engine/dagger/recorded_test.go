package dagger_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	sdk "dagger.io/dagger"
	"dagger.io/dagger/engineconn"
	"github.com/stretchr/testify/require"
	"github.com/vektah/gqlparser/v2/ast"
	"github.com/vektah/gqlparser/v2/formatter"
	"github.com/vektah/gqlparser/v2/parser"

	"github.com/slipway-ci/slipway/pipelines/engine/dagger"
)

var onEngine = flag.Bool("dagger", false, "ask a real Dagger engine and record its answers, instead of comparing with the recorded ones")

// exchange is a question to a Dagger engine and its answer, without what differs from run to run.
type exchange struct {
	Query  []string        `json:"query"` // lines of GraphQL
	Answer json.RawMessage `json:"answer"`
	// Files are what the engine exported, by name relative to the path of the export; "." if that is a file.
	Files map[string]string `json:"files,omitempty"`
}

func (x exchange) key() string { return strings.Join(x.Query, "\n") }

// recorded is a connection to a Dagger engine: to a real one, whose answers it records, or to the record of
// one. A question that was not recorded was never seen to work, and fails the test.
type recorded struct {
	real engineconn.EngineConn // nil if the record answers

	mu        sync.Mutex
	exchanges []exchange
	left      []exchange
	ids       map[string]string // of a real engine, to what stands for them
	paths     map[string]string // of this machine, to what stands for them
	endpoint  func(args []string) string
	asked     []string // every question as it was, with all secrets
	service   []string // arguments of the last service
}

// connect is a client of the Dagger engine for one test. What was recorded lies in a file of the test's name.
func connect(t *testing.T) (*sdk.Client, *recorded) {
	file := filepath.Join("testdata", "recorded", strings.NewReplacer("/", "_").Replace(t.Name())+".json")
	// The test's own is cancelled before what a cleanup closes.
	ctx := context.WithoutCancel(t.Context())
	r := &recorded{ids: map[string]string{}, paths: map[string]string{}}
	if *onEngine {
		// Finds the dagger command, or says what is missing.
		client, err := dagger.Connect(ctx)
		require.NoError(t, err, "no engine to test with")
		require.NoError(t, client.Close())
		r.real, err = engineconn.Get(ctx, &engineconn.Config{})
		require.NoError(t, err)
	} else {
		b, err := os.ReadFile(file)
		require.NoError(t, err, "nothing recorded: make test-dagger records, where a Dagger engine can be reached")
		require.NoError(t, json.Unmarshal(b, &r.left))
	}
	client, err := sdk.Connect(ctx, sdk.WithConn(r))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, client.Close())
		switch {
		case t.Failed():
		case *onEngine:
			record(t, file, r.exchanges)
		default:
			require.Empty(t, r.left, "recorded, and not asked")
		}
	})
	return client, r
}

// record writes a file, unless it says the same already: questions at the same time have no order.
func record(t *testing.T, file string, exchanges []exchange) {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	require.NoError(t, e.Encode(exchanges))
	var old []exchange
	if b, err := os.ReadFile(file); err == nil && json.Unmarshal(b, &old) == nil {
		sorted := func(xs []exchange) string {
			var all []string
			for _, x := range xs {
				var answer bytes.Buffer
				_ = json.Compact(&answer, x.Answer)
				all = append(all, fmt.Sprint(x.key(), answer.String(), x.Files))
			}
			slices.Sort(all)
			return strings.Join(all, "\n")
		}
		if sorted(old) == sorted(exchanges) {
			return
		}
	}
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	require.NoError(t, os.WriteFile(file, text.Bytes(), 0o644))
}

// hide makes name stand for a path in what is recorded.
func (r *recorded) hide(path, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paths[path] = name
}

func (r *recorded) Host() string { return "recorded" }

func (r *recorded) Close() error {
	if r.real != nil {
		return r.real.Close()
	}
	return nil
}

func (r *recorded) Do(request *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return nil, err
	}
	var question struct{ Query string }
	if err := json.Unmarshal(body, &question); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.asked = append(r.asked, question.Query)
	x, export, err := r.canonical(question.Query)
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if r.real == nil {
		return r.replay(x, export)
	}
	request.Body = io.NopCloser(bytes.NewReader(body))
	response, err := r.real.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if err := r.keep(x, export, answer); err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(answer))
	return response, nil
}

var variable = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`[^"\s]*slipway-dagger-\d+`), "TEMP"},
	{regexp.MustCompile(`stdout-\d+`), "stdout-0"},
	{regexp.MustCompile(`\b[A-Z2-7]{26}\b`), "RANDOM"},
	{regexp.MustCompile(`[0-9a-f]{64}\.tar`), "IMAGE.tar"},
	{regexp.MustCompile(`\[traceparent:[0-9a-f:-]+\]`), "[traceparent:0-0]"},
	{regexp.MustCompile(`\d+\.\d+s\b`), "0.00s"},
	// The image of a registry's root, by the name that people use.
	{regexp.MustCompile(`\bdocker\.\w+/library/`), ""},
	{regexp.MustCompile(`(?s)^//go:build linux\n.*`), "the agent's source"},
}

func (r *recorded) stable(text string) string {
	for path, name := range r.paths {
		text = strings.ReplaceAll(text, path, name)
	}
	for _, v := range variable {
		text = v.pattern.ReplaceAllString(text, v.with)
	}
	return text
}

// canonical is a question in the form that is compared, and the path that it wants something exported to.
func (r *recorded) canonical(query string) (x exchange, export string, err error) {
	doc, err := parser.ParseQuery(&ast.Source{Input: query})
	if err != nil {
		return x, "", fmt.Errorf("%s: %w", query, err)
	}
	var value func(v *ast.Value)
	value = func(v *ast.Value) {
		if v.Kind == ast.StringValue || v.Kind == ast.BlockValue {
			v.Kind, v.Raw = ast.StringValue, r.stable(cmp.Or(r.ids[v.Raw], v.Raw))
		}
		for _, c := range v.Children {
			value(c.Value)
		}
	}
	var walk func(set ast.SelectionSet)
	walk = func(set ast.SelectionSet) {
		for _, s := range set {
			switch s := s.(type) {
			case *ast.InlineFragment:
				walk(s.SelectionSet)
			case *ast.Field:
				for _, a := range s.Arguments {
					switch {
					case s.Name == "export" && a.Name == "path":
						export = a.Value.Raw
					case s.Name == "asService" && a.Name == "args":
						r.service = nil
						for _, c := range a.Value.Children {
							r.service = append(r.service, c.Value.Raw)
						}
					}
					value(a.Value)
				}
				// The client writes them in the order of a map.
				slices.SortFunc(s.Arguments, func(a, b *ast.Argument) int { return cmp.Compare(a.Name, b.Name) })
				walk(s.SelectionSet)
			}
		}
	}
	for _, o := range doc.Operations {
		walk(o.SelectionSet)
	}
	var text bytes.Buffer
	formatter.NewFormatter(&text, formatter.WithIndent(" ")).FormatQueryDocument(doc)
	x.Query = strings.Split(strings.TrimSpace(text.String()), "\n")
	return x, export, nil
}

// idFields are the fields whose answer is the identity of an object.
var idFields = regexp.MustCompile(`"(?:id|sync|start|stop)":"([^"]+)"`)

// keep records what a real engine has answered.
func (r *recorded) keep(x exchange, export string, answer []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := idFields.FindSubmatch(answer); m != nil {
		// Named after the first question that it answered.
		name, known := r.ids[string(m[1])]
		if !known {
			name = fmt.Sprintf("ID %.6x", sha256.Sum256([]byte(x.key())))
			r.ids[string(m[1])] = name
		}
		answer = bytes.ReplaceAll(answer, m[1], []byte(name))
	}
	x.Answer = json.RawMessage(r.stable(string(answer)))
	if export != "" {
		x.Files = map[string]string{}
		err := filepath.WalkDir(export, func(name string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(export, name)
			x.Files[filepath.ToSlash(rel)] = r.stable(string(b))
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	r.exchanges = append(r.exchanges, x)
	return nil
}

// replay answers from the record.
func (r *recorded) replay(x exchange, export string) (*http.Response, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.left, func(l exchange) bool { return l.key() == x.key() })
	if i < 0 {
		return nil, fmt.Errorf("never seen on a real engine (make test-dagger asks one):\n%s", x.key())
	}
	x = r.left[i]
	r.left = slices.Delete(r.left, i, i+1)
	for name, content := range x.Files {
		name = filepath.Join(export, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	answer := []byte(x.Answer)
	if r.endpoint != nil && strings.Contains(x.key(), "endpoint") {
		answer = endpointAnswer.ReplaceAll(answer, []byte(`"endpoint": "`+r.endpoint(r.service)+`"`))
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(answer))}, nil
}

var endpointAnswer = regexp.MustCompile(`"endpoint":\s*"[^"]*"`)
