#!/bin/bash
# CPython 3.11 linked with musl, from Debian's sources, in $VM_CACHE/python-musl/root (prefix /usr);
# zlib, libffi, OpenSSL, bzip2, xz and SQLite are linked in. 4 to 6 minutes on two cores. It lacks
# pyexpat, _crypt, readline, curses and dbm.
. "$(dirname "$0")/lib.sh"
set -e
W="$VM_CACHE/python-musl" D="$VM_CACHE/python-musl/dep" R="$VM_CACHE/python-musl/root"
need musl-gcc musl-tools make make gcc gcc dpkg-source dpkg-dev perl perl tclsh tcl
mkdir -p "$W/src" "$D"/{include,lib}
apt_own bookworm amd64
JOBS=-j$(nproc)
cd "$W/src"
[ -e fetched ] || {
    apt-get source -qy zlib libffi openssl bzip2 xz-utils sqlite3 python3.11 >fetch.log 2>&1
    touch fetched
}
# musl-gcc leaves out /usr/include: the kernel's headers by themselves
mkdir -p "$W/kernel"
ln -sfn /usr/include/linux "$W/kernel/linux"
ln -sfn /usr/include/asm-generic "$W/kernel/asm-generic"
ln -sfn "/usr/include/$(gcc -dumpmachine)/asm" "$W/kernel/asm"
[ -d /usr/include/mtd ] && ln -sfn /usr/include/mtd "$W/kernel/mtd"
cat >"$W/cc" <<'C'
#!/bin/sh
# CPython's configure asks for this.
[ "$1" = --print-multiarch ] && { echo x86_64-linux-musl; exit; }
exec musl-gcc "$@"
C
chmod +x "$W/cc"
export CC="$W/cc" LDFLAGS="-L$D/lib"
export CFLAGS="-O2 -fPIC -idirafter $W/kernel -I$D/include"

zlib() {
    ./configure --static --prefix="$D"
    make "$JOBS" libz.a
    cp zlib.h zconf.h "$D/include"
    cp libz.a "$D/lib"
}

libffi() {
    ./configure --host=x86_64-linux-musl --disable-shared --enable-static --disable-docs \
        --prefix="$D" --libdir="$D/lib"
    make "$JOBS"
    make install
}

bzip2() {
    make "$JOBS" CC=musl-gcc CFLAGS="$CFLAGS" libbz2.a
    cp bzlib.h "$D/include"
    cp libbz2.a "$D/lib"
}

xz() {
    ./configure --host=x86_64-linux-musl --disable-shared --disable-xz --disable-xzdec \
        --disable-lzmadec --disable-lzmainfo --disable-scripts --disable-doc --disable-nls \
        --prefix="$D"
    make "$JOBS"
    make install
}

sqlite() {
    ./configure --host=x86_64-linux-musl --disable-shared --disable-tcl --disable-readline \
        --prefix="$D" BUILD_CC=gcc
    make sqlite3.c sqlite3.h
    # shellcheck disable=SC2086
    $CC $CFLAGS -DSQLITE_THREADSAFE=1 -c sqlite3.c -o sqlite3.o
    ar rcs "$D/lib/libsqlite3.a" sqlite3.o
    cp sqlite3.h "$D/include"
}

openssl() {
    # shellcheck disable=SC2086
    ./Configure linux-x86_64 no-shared no-tests no-engine no-dso no-legacy --prefix="$D" \
        --libdir=lib --openssldir=/etc/ssl $CFLAGS
    make "$JOBS" build_libs
    make install_dev
}

python() {
    rm -rf build-musl
    mkdir build-musl
    cd build-musl
    # Its setup.py would add the glibc headers of this machine.
    grep -q 'paths(self): return' ../setup.py ||
        sed -i 's/^    def add_multiarch_paths(self):$/& return\n    def unused(self):/' \
            ../setup.py
    PKG_CONFIG_LIBDIR="$D/lib/pkgconfig" ../configure --prefix=/usr --disable-test-modules \
        --without-ensurepip --with-openssl="$D" --with-system-ffi
    make "$JOBS"
    rm -rf "$R"
    make install DESTDIR="$R"
}

step() { # FUNCTION FOLDER: run in the source's folder, once
    [ -e "$W/src/$1.done" ] && return
    say "musl: $1"
    # shellcheck disable=SC2086
    (cd "$W"/src/$2/ && "$1")
    touch "$W/src/$1.done"
}

step zlib 'zlib-1*'
step libffi 'libffi-*'
step bzip2 'bzip2-*'
step xz 'xz-utils-*'
step sqlite 'sqlite3-*'
step openssl 'openssl-*'
step python 'python3.11-*'
cd "$R/usr"
rm -rf lib/python3.11/{test,idlelib,lib2to3,tkinter,turtledemo,ensurepip,config-3.11*}
rm -rf lib/*.a include share bin/*config bin/idle* bin/2to3* bin/pydoc*
find . -name __pycache__ -prune -exec rm -rf {} +
strip bin/python3.11 lib/python3.11/lib-dynload/*.so 2>/dev/null || true
mkdir -p "$R/lib"
cp -L /usr/lib/x86_64-linux-musl/libc.so "$R/lib/ld-musl-x86_64.so.1"
ln -sfn ld-musl-x86_64.so.1 "$R/lib/libc.musl-x86_64.so.1"
# Debian's musl-gcc asks for libc.so by name.
ln -sfn /lib/ld-musl-x86_64.so.1 "$R/usr/lib/libc.so"
touch "$W/ready"
