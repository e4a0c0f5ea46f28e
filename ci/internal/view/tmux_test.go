package view

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/report"
)

// pane is a shell in a real terminal that runs the demo program.
type pane struct {
	t       *testing.T
	dir     string
	command string // the first line, with which the shell starts the demo
	listen  net.Listener
	conn    net.Conn
	events  *json.Encoder
}

// demo builds the demo program.
func demo(t *testing.T) string {
	if _, err := exec.LookPath("tmux"); err != nil {
		t.Skip("tmux is not installed")
	}
	program := filepath.Join(t.TempDir(), "demo")
	out, err := exec.Command("go", "build", "-o", program, "./testdata/demo").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// newPane starts the demo program in a terminal of the given size; env is for it alone.
func newPane(t *testing.T, program string, width, height int, env string) *pane {
	// The path of a socket must be short, t.TempDir's are not.
	dir, err := os.MkdirTemp("", "view")
	require.NoError(t, err)
	p := &pane{t: t, dir: dir}
	p.listen, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = exec.Command("tmux", "-S", filepath.Join(dir, "socket"), "kill-server").Run()
		p.listen.Close()
		if p.conn != nil {
			p.conn.Close()
		}
		os.RemoveAll(dir)
	})
	config := "set -g status off\nset -g default-terminal screen-256color\nset -g history-limit 5000\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(config), 0o600))
	// A shell without line editing: what is typed, or sent by the terminal, is echoed and stays visible.
	shell := "exec env -i PATH=/usr/bin:/bin TERM=screen-256color LC_ALL=C.UTF-8 PS1='$ ' " + env + " sh -i"
	p.tmux("new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height), shell)
	p.until("a prompt", func(lines []string) bool { return lines[len(lines)-1] == "$" })
	command := program + " " + p.listen.Addr().String()
	p.command = "$ " + command
	p.tmux("send-keys", command, "Enter")
	require.NoError(t, p.listen.(*net.TCPListener).SetDeadline(time.Now().Add(time.Minute)))
	p.conn, err = p.listen.Accept()
	require.NoError(t, err)
	p.events = json.NewEncoder(p.conn)
	return p
}

func (p *pane) tmux(args ...string) string {
	p.t.Helper()
	c := exec.Command("tmux", append([]string{"-S", filepath.Join(p.dir, "socket"), "-f", filepath.Join(p.dir, "conf")}, args...)...)
	// tmux wants to know that its outside is UTF-8.
	c.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TMUX=")
	out, err := c.CombinedOutput()
	require.NoError(p.t, err, "%s", out)
	return string(out)
}

// lines are scroll-back and screen, rows that were wrapped joined, without the empty rows at the end.
func (p *pane) lines() []string {
	lines := strings.Split(strings.TrimRight(p.tmux("capture-pane", "-p", "-J", "-S", "-"), " \n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return lines
}

// until waits for what is to be seen.
func (p *pane) until(what string, seen func(lines []string) bool) []string {
	p.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		lines := p.lines()
		if seen(lines) {
			return lines
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("no %s in\n%s", what, strings.Join(lines, "\n"))
		}
	}
}

func (p *pane) untilLine(line string) []string {
	p.t.Helper()
	return p.until(line, func(lines []string) bool {
		for _, l := range lines {
			if strings.HasPrefix(l, line) {
				return true
			}
		}
		return false
	})
}

func (p *pane) send(events ...pipelines.Event) {
	p.t.Helper()
	for _, e := range events {
		require.NoError(p.t, p.events.Encode(e))
	}
}

// finish ends the demo and expects these lines, the demo's last one, an empty prompt, and nothing else.
func (p *pane) finish(want ...string) {
	p.t.Helper()
	p.conn.Close()
	got := p.until("prompt at the end", func(lines []string) bool { return lines[len(lines)-1] == "$" })
	require.Equal(p.t, append(append([]string{p.command}, want...), "demo ended", "$"), got)
	require.Equal(p.t, "1 1", strings.TrimSpace(p.tmux("display-message", "-p", "#{cursor_flag} #{wrap_flag}")), "cursor and wrapping")
	// Nothing is left in the input: the next command runs as it was typed.
	p.tmux("send-keys", "echo clean", "Enter")
	p.until("echo", func(lines []string) bool {
		n := len(lines)
		return n > 3 && lines[n-3] == "$ echo clean" && lines[n-2] == "clean" && lines[n-1] == "$"
	})
}

func TestTmux(t *testing.T) {
	program := demo(t)
	for _, size := range []struct{ width, height int }{{60, 12}, {100, 30}} {
		t.Run(fmt.Sprintf("%dx%d", size.width, size.height), func(t *testing.T) {
			p := newPane(t, program, size.width, size.height, "")
			const count = 40
			name := func(i int) string { return fmt.Sprintf("test %d", i) }
			for i := range count {
				p.send(start(name(i)), progress(name(i), nasty))
			}
			// One row is empty, one says how many are not shown.
			p.untilLine(fmt.Sprintf("… and %d more", count-(size.height-2)))
			var want []string
			for i := range count {
				p.send(done(name(i), pipelines.Passed, second, nasty), notice(name(i), nasty))
				want = append(want, fmt.Sprintf("✓ %-24s   1.0s  %s", name(i), report.Clean(nasty)), "note: "+name(i)+": "+report.Clean(nasty))
			}
			p.finish(want...)
		})
	}
}

// TestTmuxResize changes the size of the terminal while tasks run. The screen is full at first: on an
// empty one tmux wraps anew as if it were full of empty lines, and may push the cursor's row, and so
// copies of running tasks, into the scroll-back.
func TestTmuxResize(t *testing.T) {
	p := newPane(t, demo(t), 100, 30, "")
	var want []string
	for i := range 30 {
		p.send(notice("", fmt.Sprint("line ", i)))
		want = append(want, fmt.Sprint("note: line ", i))
	}
	for i := range 5 {
		name := fmt.Sprintf("test %d", i)
		p.send(start(name), progress(name, strings.Repeat("0123456789", 10)))
	}
	running := func(width int) func([]string) bool {
		return func(lines []string) bool {
			cut := 0
			for _, line := range lines {
				if strings.HasSuffix(line, "…") && len([]rune(line)) == width-1 {
					cut++
				}
			}
			return cut == 5
		}
	}
	p.until("five tasks", running(100))
	for _, size := range [][2]int{{60, 12}, {90, 8}, {40, 20}, {100, 30}} {
		p.tmux("resize-window", "-x", fmt.Sprint(size[0]), "-y", fmt.Sprint(size[1]))
		p.until(fmt.Sprint("five tasks at ", size), running(size[0]))
		p.send(notice("", fmt.Sprint("size ", size)))
		want = append(want, fmt.Sprint("note: size ", size))
		p.untilLine(want[len(want)-1])
	}
	for i := range 5 {
		p.send(done(fmt.Sprintf("test %d", i), pipelines.Failed, second, ""))
		want = append(want, fmt.Sprintf("✗ test %d                     1.0s  failed", i))
	}
	p.finish(want...)
}

// TestTmuxKeys types while tasks run. The keys are for the shell, and Ctrl-C for the program.
func TestTmuxKeys(t *testing.T) {
	p := newPane(t, demo(t), 60, 12, "")
	p.send(start("one"), start("two"))
	p.until("second task", func(lines []string) bool { return strings.Contains(lines[len(lines)-1], " two ") })
	p.tmux("send-keys", "typed", "Enter")
	p.until("frame below what was typed", func(lines []string) bool {
		n := len(lines)
		return n == 5 && lines[1] == "typed" && lines[2] == "" && strings.Contains(lines[3], " one ") && strings.Contains(lines[4], " two ")
	})
	p.send(notice("", "typed"))
	p.untilLine("note: typed")
	p.tmux("send-keys", "C-c")
	lines := p.until("prompt", func(lines []string) bool { return lines[len(lines)-1] == "$" })
	text := strings.Join(lines, "\n")
	require.Regexp(t, regexp.MustCompile(`(?m)^note: typed
\? one +\d+\.\ds  did not finish
\? two +\d+\.\ds  did not finish
demo interrupted
\$`), text)
	require.Equal(t, 1, strings.Count(text, " one "), text)
	require.Equal(t, 1, strings.Count(text, " two "), text)
}

// TestTmuxChoose checks which view a terminal gets.
func TestTmuxChoose(t *testing.T) {
	program := demo(t)
	for env, want := range map[string]string{
		"":           "\x1b[32m✓\x1b[39m a                          \x1b[2m1.0s\x1b[",
		"NO_COLOR=1": "✓ a                          1.0s  fine",
		"NO_COLOR=":  "\x1b[32m✓",
		"CI=true":    "ok    a                          1.0s  fine",
		"TERM=dumb":  "ok    a                          1.0s  fine",
		"CI=":        "\x1b[32m✓",
	} {
		t.Run(env, func(t *testing.T) {
			p := newPane(t, program, 60, 12, env)
			p.send(start("a"), done("a", pipelines.Passed, second, "fine"))
			p.conn.Close()
			p.untilLine("demo ended")
			require.Contains(t, p.tmux("capture-pane", "-p", "-e"), want)
		})
	}
}
