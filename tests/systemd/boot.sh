#!/bin/sh
# Boots systemd as the first process of namespaces of its own, with a root of its own: nothing of the machine can be written from there.
# Called by test_unit.py inside `unshare`: boot.sh DIRECTORY BINARY UNITS COMMAND...
#   DIRECTORY  an empty directory, on which the new root is mounted
#   BINARY     the executable, which becomes /usr/bin/raylet-uring
#   UNITS      the directory of all units that this systemd is to know
#   COMMAND    what becomes the first process
set -eu
root=$1 binary=$2 units=$3
shift 3

mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$root"
cd "$root"
mkdir -p usr etc/systemd/system dev proc sys run tmp var/tmp var/log var/lib home root srv old extra/bin
chmod 1777 tmp var/tmp
cp "$binary" extra/bin/raylet-uring
chmod 755 extra/bin/raylet-uring
# Read-only, because there is no upper directory.
mount -t overlay overlay -o "ro,lowerdir=$root/extra:/usr" usr
for name in bin sbin lib lib64; do
    if [ -L "/$name" ]; then
        ln -s "$(readlink "/$name")" "$name"
    elif [ -d "/$name" ]; then
        mkdir "$name"
        mount --bind "/$name" "$name"
        mount -o remount,bind,ro "$name"
    fi
done
for name in passwd group nsswitch.conf ld.so.cache os-release; do
    if [ -e "/etc/$name" ]; then cp -L "/etc/$name" etc/; fi
done
tr -d '-' </proc/sys/kernel/random/uuid >etc/machine-id
cp -r "$units/." etc/systemd/system/
mount -t tmpfs -o mode=0755 tmpfs dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "dev/${node%:*}" c 1 "${node#*:}"
done
mkdir dev/shm dev/pts
mknod -m 666 dev/tty c 5 0
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --rbind /sys sys
mount --make-rprivate sys
umount -R sys/fs/cgroup
mount -o remount,bind,ro sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
pivot_root . old
cd /
umount -l old
rmdir old
# The one thing that must not be wrong.
[ "$(stat -f -c %T /)" = tmpfs ] || { echo "the root is not the test's own" >&2; exit 1; }
exec "$@"
