#!/bin/sh
# The main job on some host, with nothing but sh, python3 and the engine's one file; prints a line
# for each check and "N passed, N failed" at the end. Exit status 1 if something failed.
#   ENGINE=path/to/engine.pyz sh smoke.sh
# State is where the environment (ENGINE_DATA_ROOT, ENGINE_RUN_ROOT) or the defaults say; it should
# be empty. A host that cannot run containers (who is not root) must say so in one sentence, and
# that is then what is checked. Without overlayfs everything works by copies, and info tells it.
: "${ENGINE:=./engine.pyz}"
data=${ENGINE_DATA_ROOT:-/var/lib/engine}
work=$(mktemp -d /tmp/smoke-XXXXXX)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 none="--network none"

e() { "$ENGINE" "$@"; }

result() { # NAME REASON [OUTPUT]: an empty reason means that it passed
    if [ -z "$2" ]; then
        passed=$((passed + 1))
        echo "ok    $1"
    else
        failed=$((failed + 1))
        printf '%s\n' "FAIL  $1: $2" ${3:+"$3"}
    fi
}

check() { # NAME STATUS PATTERN COMMAND...: shell patterns for the exit status and the output
    name=$1 status=$2 pattern=$3
    shift 3
    out=$("$@" 2>&1)
    got=$?
    reason=
    # shellcheck disable=SC2254
    case $out in $pattern) ;; *) reason="output is not $pattern" ;; esac
    # shellcheck disable=SC2254
    case $got in $status) ;; *) reason="exit status $got, not $status" ;; esac
    result "$name" "$reason" "$out"
}

one_line() { # NAME STATUS PATTERN COMMAND...: as check, and all that is printed is one line
    check "$@"
    lines=$(printf '%s\n' "$out" | wc -l)
    [ "$lines" -eq 1 ] || result "$1, in one line" "$lines lines" "$out"
}

clock() { # COMMAND...: milliseconds, in $ms; the clock of the kernel, in steps of 10 ms
    before=$(cut -d' ' -f1 /proc/uptime | tr -d .)
    "$@" >/dev/null 2>&1
    ms=$((($(cut -d' ' -f1 /proc/uptime | tr -d .) - before) * 10))
}

settle() { # PATTERN COMMAND...: waits until the command prints it, ten seconds at most
    wanted=$1
    shift
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        # shellcheck disable=SC2254
        case $("$@" 2>&1) in $wanted) return ;; esac
        sleep 0.5
    done
}

net_of() { ls -l /proc/self/ns/net | tr -dc '0-9 >' | sed 's/.*> *//'; }

cgroups() { find /sys/fs/cgroup -type d -path '*engine/????????????*' 2>/dev/null | wc -l; }

have_overlay() {
    grep -q overlay /proc/filesystems ||
        { modprobe overlay 2>/dev/null && grep -q overlay /proc/filesystems; }
}

have_freezer() { grep -q ' cgroup2 ' /proc/mounts || grep -q '[ ,]freezer[ ,]' /proc/mounts; }

have_devices() { grep -q ' cgroup2 ' /proc/mounts || grep -q '[ ,]devices[ ,]' /proc/mounts; }

versions() {
    clock e version
    first=$ms
    clock e version
    second=$ms
    clock python3 -c pass
    python=$(python3 -c 'import sys; print(sys.version.split()[0])')
    echo "      python $python, linux $(uname -r) $(uname -m):" \
        "first start $first ms, next $second ms, python alone $ms ms"
    check version 0 "*Version:*Server*" e version
    check --version 0 "*version*" e --version
    check --help 0 "*Usage:*Commands:*" e --help
    check "help of run" 0 "*Usage:*--rm*" e run --help
}

byte_code() { # of this Python alone comes from the archive, of all others from the cache
    tag=$(python3 -c 'import sys; print(sys.implementation.cache_tag)')
    inside=$(python3 - "$ENGINE" "$tag/engine" <<'P'
import sys, zipfile
print(sys.argv[2] in zipfile.ZipFile(sys.argv[1]).namelist())
P
    )
    kept=$(ls "$data"/cache/*/"$tag.engine" 2>/dev/null)
    echo "      byte code of $tag in the archive: $inside, in the cache: ${kept:-none}"
    [ -n "$kept" ] || kept=$inside
    result "byte code is kept" "$([ "$kept" != False ] || echo "nothing in the cache")"
}

images_make() {
    programs="sh ls cat id sleep touch env pwd mv chmod"
    # shellcheck disable=SC2086
    check from-host 0 "sha256:*" e image from-host -t tools $programs
    check images 0 "*tools*latest*" e images
    check "image inspect" 0 "linux/*" e image inspect -f '{{.Os}}/{{.Architecture}}' tools
    check save 0 "" e save -o "$work/tools.tar" tools
    check rmi 0 "*Untagged: tools:latest*Deleted: sha256:*" e rmi tools
    check load 0 "Loaded image: tools:latest" e load -i "$work/tools.tar"
    check "save | load" 0 "Loaded image: tools:latest" sh -c '"$ENGINE" save tools | "$ENGINE" load'
    check "save | load, gzip" 0 "Loaded image: tools:latest" sh -c '"$ENGINE" save tools |
        python3 -c "import gzip, shutil, sys
with gzip.open(sys.stdout.buffer, \"wb\", 1) as packed:
    shutil.copyfileobj(sys.stdin.buffer, packed)" | "$ENGINE" load'
    mkdir "$work/tree"
    echo hello >"$work/tree/greeting"
    check import 0 "sha256:*" e import -c 'CMD ["cat", "/greeting"]' "$work/tree" greeting
    compressions
    check tag 0 "" e tag tools tools:again
    check "rmi of one tag" 0 "Untagged: tools:again" e rmi tools:again
    check history 0 "*IMAGE*" e history tools
}

compressions() { # of a small tar: each needs a module of Python, or an extension in the archive
    python3 - "$work" <<'P'
import base64, bz2, gzip, lzma, sys, tarfile
packed = base64.b64decode(
    "KLUv/WAAB2UCALJDDBCg7fQnvab/rW1FGq/+zMwUBm2tkwxbc850Br7op8OF6v3vS9kwVk3uXXIjpuA5DgUKIJCbB/b9"
    "9hyFMQDtD0hzzJxgUIDhROU=")
with tarfile.open(sys.argv[1] + "/t.tar", "w") as tar:
    tar.add(sys.argv[1] + "/tree/greeting", "greeting")
with open(sys.argv[1] + "/t.tar", "rb") as file:
    data = file.read()
for name, content in (("gz", gzip.compress(data)), ("bz2", bz2.compress(data)),
                      ("xz", lzma.compress(data)), ("zst", packed)):
    with open(sys.argv[1] + "/t.tar." + name, "wb") as file:
        file.write(content)
P
    for kind in gz bz2 xz zst; do
        if [ "$kind ${VM_NAME:-}" = "zst minimal" ]; then # no libpthread.so.0, which pyzstd asks for
            one_line "import of zst" 1 "*zstd is not available*" e import "$work/t.tar.zst" zst
            continue
        fi
        check "import of $kind" 0 "sha256:*" e import "$work/t.tar.$kind" "greeting:$kind"
        e rmi "greeting:$kind" >/dev/null
    done
}

run() { e run --rm $none "$@"; }

runs() {
    check run 0 hello run tools sh -c 'echo hello'
    check "exit code" 7 "" run tools sh -c 'exit 7'
    check "code of a signal" 137 "" run --init tools sh -c 'kill -9 $$'
    check "not found" 127 "*executable file not found*" run tools nothing-there
    check "not executable" 126 "*permission denied*" run tools /etc/passwd
    check "no such image" 125 "*nothing-here*" run nothing-here
    check stdin 0 "some words" \
        sh -c 'echo some words | "$ENGINE" run --rm -i --network none tools cat'
    check "no stdin" 0 "" run tools cat
    check "-u number" 0 "uid=1234*gid=55*" run -u 1234:55 tools id
    check "-u name" 0 "uid=0(root)*" run -u root tools id
    check "-e" 0 "*ONE=1*" run -e ONE=1 tools env
    check "-w" 0 /some/where run -w /some/where tools pwd
    check --read-only 1 "*ead-only file system*" run --read-only tools touch /file
    check --tmpfs 0 "*" run --read-only --tmpfs /scratch tools touch /scratch/file
    check --init 5 "" run --init tools sh -c 'exit 5'
    check --hostname 0 "some-name some-name" run --hostname some-name tools \
        sh -c 'echo $(cat /etc/hostname /proc/sys/kernel/hostname)'
    check --entrypoint 0 "/etc/passwd" run --entrypoint ls tools /etc/passwd
    check "a pid namespace" 0 1 run tools sh -c 'echo $$'
    held=00000000a80425fb
    have_devices || held=00000000a00425fb   # no CAP_MKNOD where no cgroup guards the devices
    check "capabilities, seccomp" 0 "*CapEff:?$held*Seccomp:?2*" \
        run tools cat /proc/self/status
    check "the host's root is out of sight" "[12]" "*o such file*" run tools ls "$work"
    check "/proc/sys is read-only" "[12]" "*ead-only*" \
        run tools sh -c 'echo 1 >/proc/sys/kernel/panic'
    check "masked paths" 0 "" run tools cat /proc/timer_list /proc/keys
    check "lo is all" 0 "*lo:*" run tools cat /proc/net/dev
    check "--network host" 0 "*\\[$(net_of)\\]*" \
        e run --rm --network host tools ls -l /proc/self/ns/net
    check "-t" 0 "*dev/pts/0*" run -t tools ls -l /proc/self/fd/0
    check "-m" 0 "*" run -m 64m tools cat /etc/hostname
}

life() {
    check "run -d" 0 "????????????????????????????????????????????????????????????????" \
        e run -d --name one $none tools \
        sh -c 'trap "echo bye; exit 3" TERM; echo up; while :; do sleep 0.2; done'
    settle "*up*" e logs one
    check logs 0 up e logs one
    check "logs -t" 0 "20??-??-??T*Z up" e logs -t one
    check ps 0 "one: Up*" e ps --format '{{.Names}}: {{.Status}}'
    check exec 4 beside e exec one sh -c 'echo beside; exit 4'
    check "exec -i" 0 given sh -c 'echo given | "$ENGINE" exec -i one cat'
    check "exec: not found" 127 "*not found*" e exec one nothing-there
    check top 0 "*PID*sleep*" e top one
    check "inspect" 0 "true running" e inspect -f '{{.State.Running}} {{.State.Status}}' one
    if have_freezer; then
        check pause 0 one e pause one
        check "exec when paused" 1 "*is paused*" e exec one pwd
        check "ps when paused" 0 "Up*(Paused)" e ps --format '{{.Status}}'
        check unpause 0 one e unpause one
    else
        one_line "pause without a freezer" 1 "*freeze*" e pause one
    fi
    check "diff" 0 "A /made" sh -c '"$ENGINE" exec one touch /made; "$ENGINE" diff one'
    check stop 0 one e stop one
    check "logs to the end" 0 "up
bye" e logs one
    check "inspect after" 0 "exited 3" e inspect -f '{{.State.Status}} {{.State.ExitCode}}' one
    check "start again" 0 one e start one
    check "kill" 0 one e kill one
    check "wait" 0 137 e wait one
    check rm 0 one e rm one
    check "run -d of another" 0 "????????????????*" e run -d --name two $none tools sleep 1000
    check "rm -f of a running one" 0 two e rm -f two
}

many_layers() { # 60 of them are more than one option of an older kernel takes
    python3 - "$work/tools.tar" "$work/many.tar" 60 <<'P'
import hashlib, io, json, sys, tarfile
source, target, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
with tarfile.open(source) as tar:
    manifest = json.load(tar.extractfile("manifest.json"))[0]
    config = json.load(tar.extractfile(manifest["Config"]))
    parts = {name: tar.extractfile(name).read() for name in manifest["Layers"]}
names = list(manifest["Layers"])
def entry(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
for at in range(number):
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        entry(tar, "layers/%02d" % at, b"%d\n" % at)
        entry(tar, "last", b"%d\n" % at)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    parts[digest + "/layer.tar"] = layer.getvalue()
    names.append(digest + "/layer.tar")
    config["rootfs"]["diff_ids"].append("sha256:" + digest)
config.pop("history", None)
text = json.dumps(config).encode()
name = hashlib.sha256(text).hexdigest() + ".json"
with tarfile.open(target, "w") as tar:
    for path, data in parts.items():
        entry(tar, path, data)
    entry(tar, name, text)
    manifest = [{"Config": name, "RepoTags": ["many:1"], "Layers": names}]
    entry(tar, "manifest.json", json.dumps(manifest).encode())
P
    check "load of 60 layers" 0 "Loaded image: many:1" e load -i "$work/many.tar"
    check "run of 60 layers" 0 "59
*60 layers" run many:1 sh -c 'cat /last; set -- /layers/*; echo "$# layers"'
    check "write over 60 layers" 0 "new" run many:1 sh -c 'echo new >/last; cat /last'
    check "60 layers, read-only" 0 59 run --read-only many:1 cat /last
    renames
    check "rmi of 60 layers" 0 "Untagged: many:1*" e rmi many:1
}

renames() { # of a directory of the image, on kernels whose overlay would rather note than copy it
    if [ -n "${VM_NAME:-}" ]; then
        for option in redirect_dir metacopy; do
            echo Y 2>/dev/null >"/sys/module/overlay/parameters/$option"
        done
    fi
    check "mv of a directory" 0 "" e run --name moved $none many:1 \
        sh -c 'mv /layers /moved && chmod 600 /last'
    check "diff of a rename" 0 "C /last
D /layers
A /moved
A /moved/*" e diff moved
    check "commit of a rename" 0 "sha256:*" e commit moved many:2
    check "run of a rename" 0 "59
60 in it, /moved" run many:2 sh -c 'cat /last; set -- /moved/*; echo "$# in it, $(ls -d /layers /moved 2>/dev/null)"'
    check "rm of a rename" 0 moved e rm moved
    check "rmi of a rename" 0 "Untagged: many:2*" e rmi many:2
}

files() { # in and out of a container that never ran, runs, has stopped
    echo in >"$work/in"
    check "create, for files" 0 "*" e create --name box $none tools sh -c 'cat /in /two; sleep 60'
    check "cp into what never ran" 0 "" e cp "$work/in" box:/in
    check "cp out of what never ran" 0 "" e cp box:/in "$work/out"
    check "what came out" 0 in cat "$work/out"
    check "cp of a directory" 0 "" e cp "$work/tree" box:/two
    check "cp to a place that is none" 1 "*" e cp "$work/in" box:/two/greeting/../../
    check "start, for files" 0 box e start box
    settle "in*" e logs box
    check "cp out of what runs" 0 "" e cp box:/etc/hosts "$work/hosts"
    check "its own file of names" 0 "*localhost*" cat "$work/hosts"
    check "cp into what runs" 0 "" e cp "$work/in" box:/three
    check "seen inside" 0 in e exec box cat /three
    check commit 0 "sha256:*" e commit -c 'CMD ["cat", "/three"]' box made
    check "run of a commit" 0 in run made
    check stop 0 box e stop -t 1 box
    check "cp into what has stopped" 0 "" e cp "$work/in" box:/four
    check diff 0 "*A /four*" e diff box
    check "export | tar" 0 "*four*" sh -c '"$ENGINE" export box | python3 -c "import sys, tarfile
print(tarfile.open(fileobj=sys.stdin.buffer, mode=\"r|\").getnames())"'
    check "system df" 0 "TYPE*Images*Containers*" e system df
    check "system prune" 0 "*Deleted Containers:*Total reclaimed space: *" e system prune -f
    check "rmi of a commit" 0 "*Untagged: made:latest*Deleted: sha256:*" e rmi made
}

crowd() { # side by side
    cat >"$work/crowd" <<'S'
for i in 1 2 3 4 5 6; do
    { "$ENGINE" run --rm --network none tools sh -c "exit $i"; echo "$i $?"; } &
done
wait
S
    check "six at once" 0 "1 1 2 2 3 3 4 4 5 5 6 6 " \
        sh -c "sh $work/crowd 2>&1 | sort | tr '\n' ' '"
}

leftovers() {
    check "rmi of all" 0 "*" e rmi tools greeting
    check "no image" 0 "" e images -aq
    check "no container" 0 "" e ps -aq
    check "no tree" 0 "" find "$data/layers" "$data/containers" -mindepth 1 -maxdepth 1
    check "nothing half done" 0 "" sh -c "ls -A $data/tmp"
    check "no mount" 0 "$mounts_before" sh -c 'wc -l </proc/self/mountinfo'
    check "no cgroup" 0 "$cgroups_before" cgroups
    check "no process but those that wait a minute" 0 "" python3 - "${ENGINE_RUN_ROOT:-/run/engine}" <<'P'
import os, sys
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        name = open("/proc/%s/comm" % pid).read().strip()
        words = open("/proc/%s/cmdline" % pid).read().split("\0")
    except OSError:
        continue
    waiting = "engine:launcher", "engine:commands", "engine:command", "engine:watch"
    if sys.argv[1] in words[2:] and words[1] != "-" and name not in waiting:
        print(pid, name, words)
P
}

main() {
    export ENGINE
    cgroups_before=$(cgroups)
    mounts_before=$(wc -l </proc/self/mountinfo)
    versions
    byte_code
    check info 0 "*Storage Driver: *Kernel Version: *" e info
    if [ "$(id -u)" != 0 ]; then
        images_make
        check "not root" 125 "docker: *: containers need root *
Run 'engine.pyz run --help' for more information" run tools pwd
    else
        have_overlay || check "no overlay is told by info" 0 \
            "*Storage Driver: vfs*WARNING: no overlayfs for *: this kernel has no overlayfs.*" e info
        images_make
        runs
        life
        many_layers
        files
        crowd
        leftovers
    fi
    echo "$passed passed, $failed failed"
    [ $failed = 0 ]
}

main "$@"
