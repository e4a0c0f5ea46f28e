# The race detector needs a C compiler; a machine with Go only tests without it.
RACE := $(shell command -v gcc >/dev/null 2>&1 && echo -race)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: run test test-dagger check bench bench-dagger soak fuzz recording

# The main job on the sample, up to an image that is pushed to a registry and read back.
run:
	go run ./ci/slipway all --source=testdata/hello --to=embedded

test: check
	CGO_ENABLED=$(if $(RACE),1,0) go test $(RACE) -timeout=20m ./...

# What needs a Dagger engine, which is found as the dagger command finds it; fails where there is none. What the
# tests without an engine compare with is recorded anew. GOPROXY must be one that containers reach.
test-dagger:
	go test -count=1 -timeout=20m ./pipelines/engine/dagger -dagger
	go test -count=1 -timeout=40m -run='^TestEnginesAgree$$' -v ./ci/slipway -dagger
	cd modules/tests && dagger call --progress=plain $(if $(GOPROXY),--goproxy=env:GOPROXY) all
	cd modules/example && dagger call --progress=plain accept --source=../../testdata/hello

check:
	@unformatted=$$(gofmt -l ci pipelines modules); test -z "$$unformatted" || { echo "not formatted: $$unformatted"; exit 1; }
	go mod verify
	go mod tidy -diff
	go vet ./...
	GOOS=windows go vet ./...
	GOOS=darwin go vet ./...
	@set -e; for module in modules/*/; do echo "go vet $$module"; (cd $$module && go vet ./...); done
	go run $(STATICCHECK) ./...

# Ratios against bare go commands and, where it is installed, ko. Takes about ten minutes.
bench:
	go run ./ci/bench
	go test -run=NONE -bench='Sum|Read|Strip' ./pipelines/internal/binary

# Needs a Dagger engine that has not built with these releases yet.
bench-dagger:
	ci/bench/dagger.sh 1.25.14 1.26.11 1.27.4

# Runs that are killed at a hundred moments; make test has a shorter version of it.
soak:
	go test -count=1 -v -run='TestKilled|TestRunsAt|TestClock' -timeout=60m ./ci/slipway -soak=100

# Every fuzz target for a minute.
fuzz:
	@set -e; for package in $$(go list ./...); do \
	  for target in $$(go test -list '^Fuzz' $$package | grep ^Fuzz || true); do \
	    echo "$$package $$target"; go test -run=NONE -fuzz="^$$target\$$" -fuzztime=60s -fuzzminimizetime=10x $$package; \
	  done; \
	done

# The picture of a run in the README.
recording:
	docs/run.sh
