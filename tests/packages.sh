#!/bin/sh
# Installs what the tests need and is missing: Debian packages by apt, Python packages into tests/.cache/venv.
#   sh tests/packages.sh PYTHON          for make test
#   sh tests/packages.sh PYTHON bench    the peers of make bench
set -eu
python=$1
here=$(dirname "$0")
venv=$here/.cache/venv

missing=
need() { # a path that tells, the package that has it
    [ -e "$1" ] || missing="$missing $2"
}
need /usr/share/doc/busybox-static busybox-static
need /usr/bin/strace strace
need /usr/bin/unshare util-linux
need /usr/bin/git git
need /usr/bin/curl curl
need /bin/ip iproute2
need /usr/sbin/nft nftables
need /usr/sbin/iptables-legacy iptables
need /usr/bin/dig bind9-dnsutils
need /usr/bin/skopeo skopeo
need /usr/bin/zstd zstd
if [ "${2:-}" = bench ]; then
    need /usr/sbin/dockerd docker.io
    need /usr/bin/podman podman
    need /usr/bin/docker-registry docker-registry
    need /usr/bin/gcc gcc
    need /usr/sbin/mkfs.ext4 e2fsprogs
fi
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
"$python" -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"

if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "tests/packages.sh: these packages are missing:$missing" >&2
        exit 1
    fi
    apt-get -qq update
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends -y $missing >/dev/null
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
# dockerode is tried where node is.
if command -v npm >/dev/null && [ ! -d "$here/.cache/node/node_modules/dockerode" ]; then
    npm install --silent --no-audit --no-fund --prefix "$here/.cache/node" dockerode@4.0.9 >/dev/null ||
        echo "tests/packages.sh: npm does not install dockerode; its test is skipped" >&2
fi
touch "$venv/ready"
