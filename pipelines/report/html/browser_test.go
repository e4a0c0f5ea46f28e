package html

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/html"
)

// measured is what a browser says of a page that it shows.
type measured struct {
	Page                string
	Width, ScrollWidth  int
	Title, Background   string
	SmallestFont        float64
	Height, Closed      int // Closed counts details whose content cannot be seen.
	Headings, Landmarks int
}

// prober is a page that shows others in frames of given widths and then replaces itself by what it has measured.
const prober = `<!DOCTYPE html><html><head><meta charset="utf-8"><meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>probe</title></head><body>
<script>
const frames = %s
const results = []
for (const [page, width] of frames) {
  const f = document.createElement('iframe')
  f.style.width = width + 'px'; f.style.height = '900px'; f.style.border = '0'
  f.src = '/' + page
  f.onload = () => {
    const d = f.contentDocument, w = f.contentWindow
    let smallest = 99
    for (const e of d.querySelectorAll('body *')) {
      if ([...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())) smallest = Math.min(smallest, parseFloat(w.getComputedStyle(e).fontSize))
    }
    results.push({Page: page, Width: width, ScrollWidth: d.documentElement.scrollWidth, Title: d.title, Background: w.getComputedStyle(d.body).backgroundColor, SmallestFont: smallest,
      Height: d.body.offsetHeight, Closed: [...d.querySelectorAll('details')].filter(e => !e.lastElementChild.checkVisibility({contentVisibilityAuto: true})).length,
      Headings: d.querySelectorAll('h1').length, Landmarks: d.querySelectorAll('header, main, footer').length})
    if (results.length == frames.length) { document.body.textContent = JSON.stringify(results) }
  }
  document.body.append(f)
}
</script></body></html>`

// browse shows pages in a browser. It returns what that measured, the console's messages and what was asked for.
func browse(t *testing.T, scheme int, pages map[string]string, widths ...int) (all []measured, console []string, asked []string) {
	chromium := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			chromium = found
			break
		}
	}
	if chromium == "" {
		t.Skip("chromium is not installed")
	}
	frames := [][]any{}
	for _, name := range slices.Sorted(maps.Keys(pages)) {
		for _, w := range widths {
			frames = append(frames, []any{name, w})
		}
	}
	text, err := json.Marshal(frames)
	require.NoError(t, err)
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, strings.TrimPrefix(r.URL.Path, "/"))
		mu.Unlock()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if page, ok := pages[strings.TrimPrefix(r.URL.Path, "/")]; ok {
			_, _ = io.WriteString(w, page)
			return
		}
		fmt.Fprintf(w, prober, text)
	}))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--user-data-dir="+t.TempDir(),
		"--enable-logging=stderr", "--v=0", fmt.Sprintf("--blink-settings=preferredColorScheme=%d", scheme), "--window-size=1700,1000", "--timeout=60000", "--dump-dom", server.URL+"/probe")
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	require.NoError(t, c.Run(), stderr.String())
	for line := range strings.Lines(stderr.String()) {
		if strings.Contains(line, ":CONSOLE") {
			console = append(console, strings.TrimSpace(line))
		}
	}
	doc, err := html.Parse(&stdout)
	require.NoError(t, err)
	result := ""
	for n := range doc.Descendants() {
		if n.Type == html.TextNode && n.Parent.Data == "body" {
			result += n.Data
		}
	}
	require.NoError(t, json.Unmarshal([]byte(strings.TrimSpace(result)), &all), "%s", stderr.String())
	require.Len(t, all, len(frames))
	return all, console, asked
}

// TestBrowser shows the pages on a phone and on a wide screen, in both colour schemes, and as paper has them.
func TestBrowser(t *testing.T) {
	shown := pages(t)
	for _, name := range []string{"passed", "failed"} {
		shown[name+"-print"] = strings.ReplaceAll(shown[name], "@media print", "@media all")
	}
	var closed int
	for scheme, background := range []string{"rgb(13, 17, 23)", "rgb(255, 255, 255)"} {
		all, console, asked := browse(t, scheme, shown, 320, 400, 800, 1600)
		require.Empty(t, console)
		for _, name := range asked {
			require.True(t, name == "probe" || shown[name] != "", "a page asks for %s", name)
		}
		for _, m := range all {
			print := strings.HasSuffix(m.Page, "-print")
			if !print || m.Width >= 640 { // no paper is narrower
				require.LessOrEqual(t, m.ScrollWidth, m.Width, "%+v", m)
			}
			require.Equal(t, background, m.Background, "%+v", m)
			require.GreaterOrEqual(t, m.SmallestFont, 12.0, "%+v", m)
			require.Greater(t, m.Height, 500, "%+v", m)
			require.NotEmpty(t, m.Title)
			require.Equal(t, 1, m.Headings, "%+v", m)
			require.Equal(t, 3, m.Landmarks, "%+v", m)
			if print {
				require.Zero(t, m.Closed, "%+v", m)
			}
			closed += m.Closed
		}
	}
	require.Positive(t, closed, "nothing is folded on a screen")
}

// TestBrowserSees shows a page that has what TestBrowser looks for.
func TestBrowserSees(t *testing.T) {
	all, console, asked := browse(t, 1, map[string]string{"bad": `<body><p style="width:2000px;font-size:9px">x<script>console.error("here")</script><link rel="stylesheet" href="/elsewhere.css">`}, 400)
	require.Equal(t, 400, all[0].Width)
	require.Greater(t, all[0].ScrollWidth, 1900)
	require.EqualValues(t, 9, all[0].SmallestFont)
	require.Len(t, console, 1)
	require.Contains(t, asked, "elsewhere.css")
}
