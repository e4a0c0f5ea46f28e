package view

import (
	"os"

	"golang.org/x/sys/windows"
)

// escapes makes the console w understand escape codes until restore is called. Consoles before Windows 10
// cannot.
func escapes(w *os.File) (restore func(), ok bool) {
	handle := windows.Handle(w.Fd())
	var mode uint32
	if err := windows.GetConsoleMode(handle, &mode); err != nil {
		return nil, false
	}
	wanted := mode | windows.ENABLE_PROCESSED_OUTPUT | windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING
	if err := windows.SetConsoleMode(handle, wanted); err != nil {
		return nil, false
	}
	return func() { _ = windows.SetConsoleMode(handle, mode) }, true
}
