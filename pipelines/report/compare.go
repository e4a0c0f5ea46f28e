package report

import (
	"cmp"
	"fmt"
	"io"
	"strconv"

	"github.com/slipway-ci/slipway/pipelines"
)

// Compare writes what images on several base images look like.
func Compare(w io.Writer, r *pipelines.CompareResult) error {
	t := Table{Right: []int{1, 2, 3, 4, 9}}
	t.Row("base", "pull", "unpacked", "files", "setuid", "shell", "package manager", "libc", "packages", "memory", "cold start")
	for _, x := range r.Bases {
		if x.Missing != "" {
			continue
		}
		memory := ""
		if x.Smoke != nil && x.Smoke.MaxMemory > 0 {
			memory = Bytes(x.Smoke.MaxMemory)
		}
		packages := "no"
		if x.PackageDB != "" {
			packages = x.PackageDB + " " + strconv.Itoa(x.Packages)
			if x.Packages < 0 {
				packages = x.PackageDB + " unknown"
			}
		}
		t.Row(x.Base, Bytes(x.Size), Bytes(x.Uncompressed), strconv.Itoa(x.Files), strconv.Itoa(len(x.Setuid)),
			cmp.Or(x.Shell, "no"), cmp.Or(x.PackageManager, "no"), cmp.Or(x.Libc, "no"), packages, memory, x.ColdStart())
	}
	_, err := t.WriteTo(w)
	for _, x := range r.Bases {
		if x.Missing != "" && err == nil {
			_, err = fmt.Fprintf(w, "%s: %s\n", Clean(x.Base), Clean(x.Missing))
		}
	}
	return err
}

// Sizes writes what an image is made of.
func Sizes(w io.Writer, r *pipelines.SizesResult) error {
	grown := func(now, before int64) string {
		switch d := now - before; {
		case before < 0:
			return ""
		case d < 0:
			return "-" + Bytes(-d)
		default:
			return "+" + Bytes(d)
		}
	}
	for _, s := range r.Platforms {
		if _, err := fmt.Fprintf(w, "\n%s\n", s.Platform); err != nil {
			return err
		}
		t := Table{Right: []int{1, 2}}
		for _, l := range s.Layers {
			t.Row(l.Layer, Bytes(l.Size), grown(l.Size, l.Previous))
		}
		t.Row("image", Bytes(s.Size), grown(s.Size, s.Previous))
		if _, err := t.WriteTo(w); err != nil {
			return err
		}
	}
	for _, s := range r.Platforms {
		for _, program := range s.Programs {
			if program.Weight == nil {
				continue
			}
			if _, err := fmt.Fprintf(w, "\n%s %s\n", Clean(program.Name), program.Platform); err != nil {
				return err
			}
			t := Table{Right: []int{1}}
			heavy(&t, program.Weight)
			if _, err := t.WriteTo(w); err != nil {
				return err
			}
		}
	}
	return nil
}

// heaviest is how many packages of a program are shown.
const heaviest = 10

// heavy adds the packages that take most of a program.
func heavy(t *Table, weight *pipelines.Weight) {
	for i, x := range weight.Packages {
		if i == heaviest {
			break
		}
		t.Row("heavy", Bytes(int64(x.Bytes)), x.Package)
	}
}
