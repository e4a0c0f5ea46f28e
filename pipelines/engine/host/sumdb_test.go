package host_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goSumDB is the name of the checksum database that this machine uses.
func goSumDB(t *testing.T) string {
	cmd := exec.Command("go", "env", "GOSUMDB")
	cmd.Env = append(cmd.Environ(), "GOSUMDB=")
	out, err := cmd.Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}
