package pipelines

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

func maxProcs() int { return runtime.GOMAXPROCS(0) } // follows CPU limits of containers since Go 1.25

// availableMemory is the memory in bytes that this process may still use, 0 where that is unknown.
func availableMemory() int64 {
	var available int64
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range bytes.Lines(b) {
			var kib int64
			if n, _ := fmt.Sscanf(string(line), "MemAvailable: %d kB", &kib); n == 1 {
				available = kib << 10
			}
		}
	}
	// The limit of a container, cgroup version 2 and 1.
	for _, name := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if limit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && limit > 0 && limit < available {
			available = limit
		}
	}
	return available
}
