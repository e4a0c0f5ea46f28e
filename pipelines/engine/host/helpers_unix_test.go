//go:build unix

package host_test

import (
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func mkfifo(t *testing.T, name string) {
	t.Helper()
	require.NoError(t, syscall.Mkfifo(filepath.FromSlash(name), 0o644))
}
