#!/bin/bash
# build.sh PROGRAM|FLAVOUR...: makes the flavours' kernels, disks and initramfs below $VM_CACHE, and
# installs qemu where a PROGRAM (qemu-system-x86_64, qemu-system-aarch64) is named.
# Kernels are Debian's cloud kernels with their modules; process 1 is our busybox shell, no systemd.
. "$(dirname "$0")/lib.sh"
set -eo pipefail

# what every Debian flavour has beside minbase
FULL=python3,iproute2,iptables,nftables,kmod,procps,mount,util-linux,e2fsprogs,xz-utils,zstd,curl
FULL=$FULL,uidmap,iputils-ping,ca-certificates,netcat-openbsd,bash,tar
# modules that debian12-initramfs carries
CARRIED="overlay fuse loop squashfs veth bridge br_netfilter dummy tun macvlan ipvlan vxlan
    nf_tables nft_* nf_nat nf_conntrack nf_conntrack_netlink nfnetlink nfnetlink_* ip_tables
    iptable_* ip6_tables ip6table_* x_tables xt_* ipt_REJECT ip6t_REJECT nf_reject_* af_packet
    netlink_diag inet_diag tcp_diag binfmt_misc"
# those that minimal and musl, which have no /lib/modules, load at boot, as if they were built in
LOADED="overlay fuse loop veth bridge br_netfilter dummy tun macvlan ipvlan vxlan nf_tables
    nft_chain_nat nft_masq nft_nat nft_ct nft_compat nft_redir nft_reject_inet nft_fib_inet nft_log
    nft_limit ip_tables iptable_nat iptable_filter xt_MASQUERADE xt_conntrack xt_addrtype xt_nat
    xt_tcpudp xt_comment xt_mark af_packet"
BOOT="virtio_pci virtio_blk virtio_console ext4 crc32c_generic crc32c_intel crc32c"
WITHOUT="tar cpio ip ipneigh ipcalc ifconfig route brctl vconfig tunctl unshare nsenter pivot_root
    switch_root run-init dpkg dpkg-deb rpm"
work="$VM_CACHE/build"
mkdir -p "$work"

kernel() { # SUITE ARCH: $K = folder with vmlinuz and lib/modules/VERSION, not compressed
    local package modules
    K="$VM_CACHE/kernel/$1-$2"
    [ -e "$K/ready" ] && return
    say "kernel of $1 for $2"
    rm -rf "$K"
    mkdir -p "$K/deb" "$K/lib/modules"
    apt_own "$1" "$2"
    package=$(apt-cache depends "linux-image-cloud-$2" |
        sed -n 's/ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
    [ -n "$package" ] || die "no cloud kernel in $1 for $2"
    # Newer suites have split it: linux-binary-VERSION, linux-modules-VERSION, linux-base-VERSION.
    modules=$(apt-cache depends "$package" |
        sed -n "s/ *Depends: \(linux-[a-z]*-${package#linux-image-}\)$/\1/p" | sort -u)
    # shellcheck disable=SC2086
    (cd "$K/deb" && apt-get download -q "$package" $modules) >"$K/log" 2>&1 || die "see $K/log"
    for package in "$K"/deb/*.deb; do dpkg -x "$package" "$K/x"; done
    mv "$(find "$K/x" -name 'vmlinuz*' -type f | head -1)" "$K/vmlinuz"
    find "$K/x" -type d -path '*/lib/modules/*' -prune -exec mv {} "$K/lib/modules/" \;
    find "$K/lib/modules" -name '*.ko.xz' -print0 | xargs -0r xz -d -T2
    find "$K/lib/modules" -name '*.ko.zst' -print0 | xargs -0r zstd -q -d --rm
    depmod -b "$K" "$(kernel_version)"
    rm -rf "$K/x" "$K/deb"
    unset APT_CONFIG
    touch "$K/ready"
}

kernel_version() { ls "$K/lib/modules"; }

modules_order() { # PATTERN...: files of modules, in the order of loading
    python3 "$HERE/module_order.py" "$K/lib/modules/$(kernel_version)" "$@"
}

joe_add() { # ROOT: what every userland has: joe, names of hosts
    grep -q ^joe: "$1/etc/passwd" || {
        echo 'joe:x:1000:1000::/home/joe:/bin/sh' >>"$1/etc/passwd"
        echo 'joe:x:1000:' >>"$1/etc/group"
        echo 'joe:*:19000:0:99999:7:::' >>"$1/etc/shadow"
        echo joe:100000:65536 >"$1/etc/subuid"
        echo joe:100000:65536 >"$1/etc/subgid"
        mkdir -p "$1/home/joe"
        chown 1000:1000 "$1/home/joe"
    }
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$1/etc/hosts"
    : >"$1/etc/resolv.conf"
    : >"$1/etc/machine-id"
}

userland() { # SUITE ARCH: $U = a tar file
    U="$VM_CACHE/root/$1-$2.tar"
    [ -e "$U" ] && return
    say "userland of $1 for $2"
    mkdir -p "$VM_CACHE/root"
    if [ "$2" = "$(dpkg --print-architecture)" ]; then
        local out=(--dpkgopt=path-exclude=/usr/share/{doc,man,locale}/\*)
        mmdebstrap --mode=root --format=tar --variant=minbase --architectures="$2" \
            --include="$FULL" --keyring="$KEYRING" "${out[@]}" \
            --aptopt='APT::Install-Recommends "0"' --aptopt='Acquire::Check-Valid-Until "false"' \
            "$1" "$U.part" "deb $(mirror) $1 main" >"$U.log" 2>&1 || die "see $U.log"
    else
        userland_unpacked "$1" "$2"
    fi
    mv "$U.part" "$U"
}

userland_unpacked() { # SUITE ARCH: not configured, as nothing of the other architecture runs here
    local to="$work/$1-$2" debs="$VM_CACHE/apt/$1-$2/debs" item essential
    rm -rf "$to"
    mkdir -p "$to" "$debs/partial"
    apt_own "$1" "$2"
    essential=$(apt-cache dumpavail |
        awk -v RS= '/\nEssential: yes/{sub(/^Package: /,""); sub(/\n.*/,""); print}' | sort -u)
    # shellcheck disable=SC2086
    apt-get install -qy --download-only --no-install-recommends -o Dir::Cache::archives="$debs" \
        $essential ${FULL//,/ } >"$U.log" 2>&1 || die "see $U.log"
    for item in "$debs"/*.deb; do
        dpkg-deb --fsys-tarfile "$item" | tar -x -C "$to" --keep-directory-symlink
    done
    unset APT_CONFIG
    # what the maintainer scripts would do
    cp "$to/usr/share/base-passwd/passwd.master" "$to/etc/passwd"
    cp "$to/usr/share/base-passwd/group.master" "$to/etc/group"
    sed 's/:.*/:*:19000:0:99999:7:::/' "$to/etc/passwd" >"$to/etc/shadow"
    chmod 640 "$to/etc/shadow"
    for item in {ip,ip6}tables{,-save,-restore}; do
        ln -sf "${item%%-*}-nft${item#"${item%%-*}"}" "$to/usr/sbin/$item"
    done
    ln -sf dash "$to/bin/sh"
    ln -sf nc.openbsd "$to/bin/nc"
    ln -sf mawk "$to/usr/bin/awk"
    mkdir -p "$to/var/lib/dpkg"
    find "$to/usr/share/ca-certificates" -name '*.crt' -exec cat {} + \
        >"$to/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$to"/usr/share/{doc,man,locale}
    tar -C "$to" -cf "$U.part" .
    rm -rf "$to"
}

busybox_for() { # ARCH: $BB = a static busybox
    local to="$VM_CACHE/busybox/d"
    BB="$VM_CACHE/busybox/busybox-$1"
    [ -e "$BB" ] && return
    rm -rf "$to"
    mkdir -p "$to"
    apt_own bookworm "$1"
    (cd "$to" && apt-get download -q busybox-static >/dev/null 2>&1 && dpkg -x ./*.deb x)
    cp -L "$to/x/bin/busybox" "$BB"
    rm -rf "$to"
    unset APT_CONFIG
}

stage1() { # ROOT PATTERN...: our busybox and the modules that guest/init loads, into the folder
    local root=$1 number=100 module
    shift
    mkdir -p "$root/vm/mod"
    cp "$BB" "$root/vm/busybox"
    for module in $(set -f; modules_order "$@"); do
        number=$((number + 1))
        cp "$K/lib/modules/$(kernel_version)/$module" "$root/vm/mod/$number-${module##*/}"
    done
}

initrd_of() { # FOLDER: not compressed, as unpacking is slow in an emulated machine
    (cd "$1" && find . | cpio --quiet -o -H newc) >"$O/initrd"
}

unpack() { # TAR: $W = fresh folder with it
    W="$work/$F"
    rm -rf "$W"
    mkdir -p "$W"
    tar -C "$W" -xf "$1"
    rm -rf "$W"/usr/share/{doc,man,locale,info,lintian,bash-completion,perl5,zoneinfo}
    rm -rf "$W"/var/cache/* "$W"/var/lib/apt/lists "$W"/var/log/* "$W"/dev/*
    rm -rf "$W"/usr/share/python-wheels
    joe_add "$W"
}

disk() { # SIZE PATTERN...: disk.img of $W, and the small initramfs with modules for it
    local size=$1
    shift
    say "$F: disk"
    rm -rf "$O/disk.img" "$W.i"
    truncate -s "$size" "$O/disk.img"
    mkdir -p "$W"/{vm,proc,sys,dev,run,tmp} "$W.i"
    mkfs.ext4 -q -d "$W" -L root "$O/disk.img" 2>"$O/mkfs.log"
    stage1 "$W.i" "$@"
    initrd_of "$W.i"
    rm -rf "$W.i"
}

python_of() { # ROOT DEST: python3 and the shared libraries that it and its modules want
    local root=$1 to=$2 version library libraries
    version=$(basename "$(readlink -f "$root/usr/bin/python3")")
    mkdir -p "$to"/usr/{bin,lib} "$to/lib64"
    cp "$root/usr/bin/$version" "$to/usr/bin/"
    ln -s "$version" "$to/usr/bin/python3"
    cp -a "$root/usr/lib/$version" "$to/usr/lib/"
    rm -rf "$to/usr/lib/$version"/{lib2to3,config-*,test,idlelib,tkinter}
    cp -a "$root/usr/lib/python3" "$to/usr/lib/" 2>/dev/null || true
    find "$to/usr/lib" -name __pycache__ -prune -exec rm -rf {} +
    libraries=$(chroot "$root" /bin/sh -c \
        "ldd /usr/bin/$version /usr/lib/$version/lib-dynload/*.so 2>/dev/null" |
        grep -oE '/(usr/)?lib[^ ]*\.so[^ ]*' | grep -v lib-dynload | sort -u)
    for library in $libraries; do
        mkdir -p "$to$(dirname "$library")"
        cp -L "$root$library" "$to$library"
    done
    cp -L "$root/lib64/ld-linux-x86-64.so.2" "$to/lib64/"
}

tiny_etc() { # ROOT
    mkdir -p "$1"/{bin,sbin,etc,root,tmp,proc,sys,dev,run,var/lib,home,usr/bin,usr/sbin}
    echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
    echo 'root:x:0:' >"$1/etc/group"
    echo 'root:*:19000:0:99999:7:::' >"$1/etc/shadow"
    joe_add "$1"
    rm -f "$1/etc/subuid" "$1/etc/subgid"
}

applets() { # ROOT [APPLET TO LEAVE OUT...]
    local root=$1 applet
    shift
    cp "$BB" "$root/bin/busybox"
    for applet in $("$BB" --list); do
        case " $(echo "$@") busybox " in
            *" $applet "*) ;;
            *) ln -sf busybox "$root/bin/$applet" ;;
        esac
    done
    ln -sf /bin/env "$root/usr/bin/env"
}

on_disk() { # SUITE ARCH
    kernel "$1" "$2"
    userland "$1" "$2"
    busybox_for "$2"
    unpack "$U"
    mkdir -p "$W/lib/modules"
    cp -a "$K/lib/modules/$(kernel_version)" "$W/lib/modules/"
    # shellcheck disable=SC2086
    disk 4G $BOOT
}

bookworm() { # the main userland, and what all that is made of it needs
    kernel bookworm amd64
    busybox_for amd64
    userland bookworm amd64
    unpack "$U"
}

initramfs_full() {
    local version module
    bookworm
    rm -rf "$W"/usr/share/perl "$W"/usr/lib/x86_64-linux-gnu/perl* "$W"/var/lib/dpkg/info
    version=$(kernel_version)
    mkdir -p "$W/lib/modules/$version"
    cp "$K/lib/modules/$version"/modules.{builtin*,order} "$W/lib/modules/$version/"
    # shellcheck disable=SC2086
    for module in $(set -f; modules_order $CARRIED); do
        mkdir -p "$W/lib/modules/$version/$(dirname "$module")"
        cp "$K/lib/modules/$version/$module" "$W/lib/modules/$version/$module"
    done
    depmod -b "$W" "$version"
    stage1 "$W" virtio_pci virtio_blk
    initrd_of "$W"
}

initramfs_minimal() {
    bookworm
    rm -rf "$W.m"
    tiny_etc "$W.m"
    python_of "$W" "$W.m"
    # shellcheck disable=SC2086
    applets "$W.m" $WITHOUT
    # shellcheck disable=SC2086
    (set -f; stage1 "$W.m" virtio_pci virtio_blk $LOADED)
    initrd_of "$W.m"
    rm -rf "$W.m"
}

musl() {
    kernel bookworm amd64
    busybox_for amd64
    [ -e "$VM_CACHE/python-musl/ready" ] || {
        say "musl: building Python, 4 to 6 minutes"
        bash "$HERE/build_musl.sh" >"$VM_CACHE/python-musl.log" 2>&1 ||
            die "see $VM_CACHE/python-musl.log"
    }
    W="$work/$F"
    rm -rf "$W"
    cp -a "$VM_CACHE/python-musl/root" "$W"
    tiny_etc "$W"
    applets "$W"
    # shellcheck disable=SC2086
    disk 1G $BOOT $LOADED
}

make() { # FLAVOUR
    F=$1
    O="$VM_CACHE/$F"
    rm -f "$O/ready"
    mkdir -p "$O"
    case $F in
        debian11) on_disk bullseye amd64 ;;
        debian12-v2) on_disk bookworm amd64 ;;
        debian12-initramfs) initramfs_full ;;
        debian13) on_disk trixie amd64 ;;
        sid) on_disk sid amd64 ;;
        arm64) on_disk bookworm arm64 ;;
        minimal) initramfs_minimal ;;
        musl) musl ;;
        *) die "no flavour $F" ;;
    esac
    ln -f "$K/vmlinuz" "$O/vmlinuz"
    rm -rf "$W"
    touch "$O/ready"
}

need mmdebstrap mmdebstrap mkfs.ext4 e2fsprogs cpio cpio depmod kmod xz xz-utils zstd zstd
for name in "$@"; do
    case $name in
        qemu-system-x86_64) need "$name" qemu-system-x86 && continue ;;
        qemu-system-aarch64) need "$name" qemu-system-arm && continue ;;
    esac
    exec 9>"$VM_CACHE/lock"
    flock 9
    [ -e "$VM_CACHE/$name/ready" ] && continue
    start=$SECONDS
    make "$name"
    say "$name: built in $((SECONDS - start)) s"
done
