package sandbox

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEmulatorOfArchitecture(t *testing.T) {
	name, ok := Emulator(machineArch())
	require.True(t, ok)
	require.Empty(t, name, "the processor itself")
	for _, arch := range []string{"amd64", "386", "arm64", "arm", "s390x"} {
		require.Equal(t, arch, programArch(programHead(arch)))
	}
	_, ok = Emulator("abacus")
	require.False(t, ok)
}
