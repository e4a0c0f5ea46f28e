package engine

// Describer is an engine that can say more of itself than its name, for run records.
type Describer interface {
	// Describe gives the version of what runs the commands, empty if that is slipway itself, and the environment
	// that every command gets without network, sorted, "KEY=value". A directory of this machine is "@dir@";
	// CGO_ENABLED and GOWORK are left to the pipeline.
	Describe() (version string, env []string)
}
