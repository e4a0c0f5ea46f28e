package pipelines_test

import (
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/slipway-ci/slipway/pipelines"
	"github.com/slipway-ci/slipway/pipelines/fault"
)

func TestParsePlatform(t *testing.T) {
	for text, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/amd64/v1": "linux/amd64", "linux/amd64/v2": "linux/amd64/v2", "linux/amd64/v4": "linux/amd64/v4",
		"linux/arm": "linux/arm/v7", "linux/arm/v5": "linux/arm/v5", "linux/arm/v7": "linux/arm/v7", "linux/arm64": "linux/arm64", "linux/arm64/v8": "linux/arm64",
		"linux/arm64/v9.1": "linux/arm64/v9.1", "windows/amd64": "windows/amd64", "darwin/arm64": "darwin/arm64", "linux/386/softfloat": "linux/386/softfloat",
		"linux/mipsle/softfloat": "linux/mipsle/softfloat", "linux/mips64/hardfloat": "linux/mips64/hardfloat", "linux/riscv64": "linux/riscv64", "wasip1/wasm": "wasip1/wasm",
	} {
		p, err := pipelines.ParsePlatform(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, p.String())
		again, err := pipelines.ParsePlatform(want)
		require.NoError(t, err)
		assert.Equal(t, p, again, "what is printed can be read")
	}
	for text, part := range map[string]string{
		"": `"" is not a platform`, "linux": `"linux" is not a platform`, "linux/": `"linux/" is not a platform`, "/amd64": `"/amd64" is not a platform`, "/": "is not a platform",
		"linux/amd64/v1/x": "is not a platform", "linux/amd64/": "is not a platform", "linux/amd64/3": `"3" is not a variant of amd64`, "linux/amd64/v": `"v" is not a variant of amd64`,
		"linux/amd64/v5": `"v5" is not a variant of amd64`, "linux/arm/7": `"7" is not a variant of arm`, "linux/arm/v8": `"v8" is not a variant of arm`, "linux/arm64/8": `"8" is not a variant of arm64`,
		"linux/s390x/z13": "slipway knows no variants of s390x", "linux/amd64 ": "is not a platform", " linux/amd64": "is not a platform", "Linux/amd64": "is not a platform", "linux/x86_64": "is not a platform",
		"linux/am\nd64": "is not a platform", "../etc/passwd": "is not a platform",
	} {
		_, err := pipelines.ParsePlatform(text)
		requireFault(t, err, fault.Usage, part)
	}
	assert.Equal(t, "linux", pipelines.NativePlatform().OS)
	assert.Equal(t, runtime.GOARCH, pipelines.NativePlatform().Arch)
}

func TestPlatformsOfPlan(t *testing.T) {
	p := mustPipeline(t, goModule("1.20"), pipelines.Config{GoVersions: []string{"1.27"}, Platforms: []string{"windows/amd64", "linux/arm", "linux/amd64/v1", "linux/arm/v7", "linux/amd64"}})
	assert.Equal(t, []string{"linux/amd64", "linux/arm/v7", "windows/amd64"}, p.Record.Platforms, "sorted, and none twice")

	_, err := newPipeline(t, goModule("1.20"), pipelines.Config{GoVersions: []string{"1.22"}, Platforms: []string{"linux/arm64/v9.0"}})
	requireFault(t, err, fault.Usage, "Go 1.22.10 cannot build for linux/arm64/v9.0")
}
