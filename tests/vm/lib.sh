# Sourced by build.sh and build_musl.sh: where things are, and an apt of its own per suite.
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VM_CACHE=${VM_CACHE:-$HERE/../.cache/vm}
mkdir -p "$VM_CACHE"
VM_CACHE=$(cd "$VM_CACHE" && pwd)
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

say() { echo "build: $*" >&2; }
die() {
    say "$*"
    exit 125
}

need() { # PROGRAM PACKAGE ...: installs what is not there
    local missing=()
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    {
        apt-get update -q &&
            DEBIAN_FRONTEND=noninteractive \
                apt-get install -qy --no-install-recommends "${missing[@]}"
    } >"$VM_CACHE/install.log" 2>&1 || die "apt-get failed: see $VM_CACHE/install.log"
}

mirror() { # the Debian mirror that this machine is set up with
    local found
    found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null |
        sed -nE 's/^URIs: *//p; s/^deb +(\[[^]]*\] +)?(http[^ ]+).*/\2/p' |
        grep -E '/debian/?( |$)' | head -1)
    [ -n "$found" ] || die "no Debian mirror found in /etc/apt"
    echo "${found%% *}"
}

apt_own() { # SUITE ARCH: sets APT_CONFIG to an apt of its own that knows this suite only
    local root="$VM_CACHE/apt/$1-$2" from
    export APT_CONFIG="$root/apt.conf"
    # The lists are good for half a day.
    [ -n "$(find "$root/ready" -mmin -720 2>/dev/null)" ] && return
    mkdir -p "$root"/{state/lists/partial,cache/archives/partial,empty}
    : >"$root/status"
    from="[signed-by=$KEYRING] $(mirror) $1 main"
    printf 'deb %s\ndeb-src %s\n' "$from" "$from" >"$root/sources.list"
    # Check-Valid-Until: the mirror may stand still.
    cat >"$root/apt.conf" <<C
Dir::Etc::SourceList "$root/sources.list";
Dir::Etc::SourceParts "$root/empty";
Dir::State "$root/state";
Dir::State::status "$root/status";
Dir::Cache "$root/cache";
APT::Architecture "$2";
APT::Architectures { "$2"; };
APT::Sandbox::User "root";
Acquire::Check-Valid-Until "false";
C
    if ! apt-get update -q >"$root/update.log" 2>&1 || grep -q '^E:' "$root/update.log"; then
        unset APT_CONFIG
        die "no suite $1 for $2: see $root/update.log"
    fi
    touch "$root/ready"
}
