//go:build !unix

package pipelines

func removable(string) error { return nil }
