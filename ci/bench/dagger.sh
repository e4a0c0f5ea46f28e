#!/usr/bin/env bash
# Measures the Dagger module on a real engine: the first build with an empty build cache, an unchanged call and one
# after a change, each beside the bare go command in the same image. Call it with releases of Go that the engine
# has not built with yet: build caches are kept by release. GOPROXY must be one that containers reach.
set -euo pipefail
cd "$(dirname "$0")/../.."
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cp -r testdata/hello/. "$source"
git -C "$source" init -q
TIMEFORMAT=%R

seconds() { { time "$@" >"$source.log" 2>&1 || { cat "$source.log" >&2; exit 1; }; } 2>&1; }

bare() { # RELEASE
  dagger core container from --address="golang:$1" with-mounted-cache --path=/cache --cache="bench-$1" with-env-variable --name=GOCACHE --value=/cache \
    with-env-variable --name=CGO_ENABLED --value=0 with-mounted-directory --path=/src --source="$source" with-workdir --path=/src \
    with-exec --args=go,build,-buildvcs=false,-trimpath,-o,/hello,. file --path=/hello size
}

slipway() { # RELEASE
  dagger call -m . ${GOPROXY:+--goproxy=env:GOPROXY} --go-versions="$1" build --source="$source" entries
}

change() { printf '\n// %s\n' "$RANDOM$RANDOM" >>"$source/main.go"; }

echo "| release | state | bare go build | dagger call build |"
echo "|---|---|---|---|"
for release in "$@"; do
  # The image is there and the module is compiled, as on an engine that is in use.
  dagger core container from --address="golang:$release" sync >/dev/null 2>&1
  dagger call -m . --help >/dev/null 2>&1
  echo "| $release | cold | $(seconds bare "$release") | $(seconds slipway "$release") |"
  echo "| $release | unchanged | $(seconds bare "$release") | $(seconds slipway "$release") |"
  change
  echo "| $release | one file changed | $(seconds bare "$release") | $(seconds slipway "$release") |"
done
