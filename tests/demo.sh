#!/bin/sh
# The main job, from an image of this host's own programs to a container's exit code: make demo.
#   sh tests/demo.sh PYTHON
set -eu
roots=$(mktemp -d /tmp/engine-demo-XXXXXX)
engine="$1 engine.pyz --data-root $roots/data --run-root $roots/run"
trap 'rm -rf "$roots"' EXIT

say() {
    printf '\n$ ./engine.pyz %s\n' "$*"
    # shellcheck disable=SC2086
    $engine "$@"
}

say image from-host -t tools sh ls cat sleep id
say images
say run --rm --network none tools sh -c 'echo "hello from pid $$ of $(cat /etc/hostname)"; id; ls /'
say run -d --name clock --network none tools sh -c 'trap "echo bye; exit 3" TERM
    for i in 1 2 3 4 5 6 7 8 9; do echo "tick $i"; sleep 1; done'
say ps
say exec clock sh -c 'echo "beside it: pid $$"'
say stop clock
say logs clock
say ps -a --format '{{.Names}}: {{.Status}}'
say rm clock
say image rm tools
