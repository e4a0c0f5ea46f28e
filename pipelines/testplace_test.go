package pipelines

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines/engine"
)

// sourceOnly is an engine that shows files.
type sourceOnly struct {
	engine.Engine
	files fstest.MapFS
}

func (s sourceOnly) Source() engine.Source { return engine.Source{FS: s.files} }

// The output is that of real tests under Go 1.22, shortened.
func TestPlaceOfTests(t *testing.T) {
	files := fstest.MapFS{}
	for _, name := range []string{"root_test.go", "words/words.go", "words/words_test.go", "inner/deep/deep_test.go"} {
		files[name] = &fstest.MapFile{}
	}
	p := &Pipeline{engine: sourceOnly{files: files}, Plan: &Plan{Modules: []Module{{Dir: ".", Path: "example.com/app"}, {Dir: "inner", Path: "example.com/app/inner"}}}}
	for _, test := range []struct{ pkg, output, want string }{
		{"example.com/app", "    root_test.go:7: logged\n    root_test.go:9: Half(3) = 2\n--- FAIL: TestHalf (0.00s)", "root_test.go:9"},
		{"example.com/app/words", "    words_test.go:12: \n        \tError Trace:\texample.com/app/words/words_test.go:12\n        \tError:      \tNot equal", "words/words_test.go:12"},
		{"example.com/app/words", "    words_test.go:3: logged\npanic: boom [recovered]\n\tpanic: boom\n\ngoroutine 6 [running]:\ntesting.tRunner.func1.2({0x4f2d00})\n\ttesting/testing.go:1631 +0x24a\n" +
			"panic({0x4f2d00})\n\truntime/panic.go:770 +0x132\nexample.com/app/words.Half(...)\n\texample.com/app/words/words.go:5\nexample.com/app/words.TestHalf\n\texample.com/app/words/words_test.go:6 +0x2c", "words/words.go:5"},
		{"example.com/app/words", "words/words.go:3:5: undefined: f\nFAIL\texample.com/app/words [build failed]", "words/words.go:3"},
		{"example.com/app/inner/deep", "    deep_test.go:4: no", "inner/deep/deep_test.go:4"},
		{"example.com/app/inner", "deep/deep_test.go:4:2: no", "inner/deep/deep_test.go:4"},
		{"example.com/app", "    elsewhere_test.go:4: no\n    ../../etc/x.go:1: no\n    /etc/x.go:1: no", ""},
		{"example.org/other", "    root_test.go:4: no", ""},
	} {
		f := Failure{Message: test.output, Repeat: map[string]string{"packages": test.pkg}}
		p.place(&f)
		got := Finding{File: f.File, Line: f.Line}.where()
		require.Equal(t, test.want, got, test.output)
	}
}

// What go vet -json prints of two packages, under Go 1.22 and later.
func TestParseAnalyzers(t *testing.T) {
	const text = `# example.com/v
# [example.com/v]
{
	"example.com/v": {
		"printf": [
			{"posn": "/src/v/main.go:6:14", "end": "/src/v/main.go:6:16", "message": "format %d has arg of wrong type\nand more"}
		],
		"broken": {"error": "no"}
	}
}
{"example.com/v/w": {"unreachable": [{"posn": "w/w.go:9:2", "message": "unreachable code"}, {"posn": "", "message": "nowhere"}]}}
`
	require.Equal(t, map[string]string{"main.go:6:14: format %d has arg of wrong type": "printf", "w.go:9:2: unreachable code": "unreachable"}, parseAnalyzers([]byte(text)))
	require.Empty(t, parseAnalyzers([]byte("# example.com/v\nvet: ./main.go:3:5: undefined: f\n")))
}
