#!/bin/sh
# Makes DIRECTORY such that a build with PKG_CONFIG_PATH=DIRECTORY links hwloc into the executable: a package then needs no
# libhwloc of the machine's, whose version differs between distributions. libudev, which hwloc uses, is everywhere systemd is.
set -eu
directory=$1
mkdir -p "$directory"
directory=$(cd "$directory" && pwd)
libraries=$(pkg-config --variable=libdir hwloc)
version=$(pkg-config --modversion hwloc)
[ -e "$libraries/libhwloc.a" ] || { echo "static_hwloc: $libraries/libhwloc.a is missing: install libhwloc-dev" >&2; exit 1; }
cp "$libraries/libhwloc.a" "$directory/"
udev=$(find "$libraries" /usr/lib /lib -maxdepth 3 -name 'libudev.so.1' 2>/dev/null | head -n 1)
[ -n "$udev" ] || { echo "static_hwloc: libudev.so.1 is missing: install libudev1" >&2; exit 1; }
ln -sf "$udev" "$directory/libudev.so"
cat > "$directory/hwloc.pc" <<PC
Name: hwloc
Description: hwloc, linked in
Version: $version
Libs: -L$directory -lhwloc -ludev -lm
PC
