package store

import (
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestTotal(t *testing.T) {
	for _, x := range []struct {
		name, want string
		items      []Item
	}{
		{"nothing", "0.00", nil},
		{"one", "1.05", []Item{{"tea", 105}}},
		{"</script><script>alert(1)</script>", "3.00", []Item{{"tea", 105}, {"cup", 195}}},
	} {
		x := x
		t.Run(x.name, func(t *testing.T) {
			time.Sleep(10 * time.Millisecond)
			if got := Total(x.items); got != x.want {
				t.Errorf("Total(%v) = %q, want %q", x.items, got, x.want)
			}
		})
	}
}

func TestOldRuntime(t *testing.T) {
	if strings.HasPrefix(runtime.Version(), "go1.20") {
		t.Logf("the answer comes from \x1b[31m%s\x1b[0m", runtime.Version())
		t.Errorf("Total is %q, want %q", Total([]Item{{"tea", 105}}), "1.050")
	}
}

func TestRounding(t *testing.T) {
	if got := Total([]Item{{"refund", -105}}); got != "-1.05" {
		t.Errorf("Total = %q, want %q", got, "-1.05")
	}
}

func TestCheapest(t *testing.T) {
	Cheapest([]Item{{"tea", 2}, {"cup", 1}})
}

func TestRegistry(t *testing.T) { t.Skip("needs a registry: set SHOP_REGISTRY") }
