#!/bin/sh
# Records docs/run.svg: the first run of the sample in a terminal, at twice its speed. It takes git and asciinema 2
# from Debian, and node with svg-term-cli from npm. `make recording` calls it.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$root" && go build -o "$work/bin/slipway" ./ci/slipway)
mkdir "$work/hello"
(cd "$root/testdata/hello" && cp -r ./*.go go.* slipway.* "$work/hello")
cd "$work/hello"
git init --quiet
git add .
git -c user.name=slipway -c user.email=slipway@example.com commit --quiet --message=hello
cat >"$work/session" <<'SESSION'
printf '\033[1m$ slipway all\033[m\n'
slipway all
sleep 4
SESSION
env -u CI -u NO_COLOR TERM=xterm-256color PATH="$work/bin:$PATH" SLIPWAY_CACHE="$work/cache" \
  asciinema rec --quiet --cols=124 --rows=34 --command="sh $work/session" "$work/run.cast"
# Frames that are nearer to each other than a third of a second become one.
node -e '
  const lines = require("fs").readFileSync(process.argv[1], "utf8").trim().split("\n").map(JSON.parse);
  const out = [lines[0]];
  for (const [time, kind, data] of lines.slice(1)) {
    const slot = Math.floor(time * 3) / 3 / 2;
    const last = out[out.length - 1];
    if (last[0] === slot) last[2] += data; else out.push([slot, kind, data]);
  }
  require("fs").writeFileSync(process.argv[1], out.map((l) => JSON.stringify(l)).join("\n") + "\n");
' "$work/run.cast"
npx --yes svg-term-cli@2.1.1 --in="$work/run.cast" --out="$root/docs/run.svg" --window --no-cursor
