// Package ci holds the CI files that users copy, and `slipway init` writes.
package ci

import (
	"embed"
	"fmt"
)

//go:embed github/*.yml gitlab/*.yml
var files embed.FS

// File is the file for a service, github or gitlab, with an engine, host or dagger.
func File(service, engine string) ([]byte, error) {
	name := "slipway.yml"
	if engine == "dagger" {
		name = "dagger.yml"
	}
	b, err := files.ReadFile(service + "/" + name)
	if err != nil {
		return nil, fmt.Errorf("no CI file for %s: %w", service, err)
	}
	return b, nil
}
