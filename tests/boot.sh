#!/bin/sh
# The first process of a throw-away machine, for tests/booted.py: it builds the root folder and execs systemd.
#
#   boot.sh STATE CONSOLE SETUP
#
# It runs in namespaces of its own, in a cgroup that is the root of its cgroup namespace. STATE is a folder with
# `share`, which becomes /srv/share, and perhaps `python`, a link to an interpreter's folder for /opt/python. CONSOLE is
# the terminal that shows the boot. SETUP is a shell script, run in the new root before systemd starts.
set -eu
state=$1 console=$2 setup=$3

# The new machine sees this machine's root file system, and no other; what it writes stays in memory.
layers=$state/layers
root=$layers/root
mount -t tmpfs -o mode=755 forkd-test "$layers"
mkdir "$root" "$layers/upper" "$layers/work"
chmod 755 "$layers/upper"
mount -t overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" overlay "$root"

# systemd must not change settings of the whole kernel, but may change those of its own network.
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"

mount -t tmpfs -o mode=755,nosuid,noexec tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/full" c 1 7
mknod -m 666 "$root/dev/random" c 1 8
mknod -m 666 "$root/dev/urandom" c 1 9
mknod -m 666 "$root/dev/tty" c 5 0
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5,nosuid,noexec devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
: >"$root/dev/console"
mount --bind "$console" "$root/dev/console"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"

mkdir -p "$root/srv/share"
mount --bind "$state/share" "$root/srv/share"
if [ -e "$state/python" ]; then
    mkdir -p "$root/opt/python"
    mount --bind "$(readlink "$state/python")" "$root/opt/python"
    mount -o remount,bind,ro "$root/opt/python"
fi

cd "$root"
mkdir -p .old
pivot_root . .old
cd /
umount -l /.old
rmdir /.old
mount --make-rshared /

# Of the units installed here only the journal may start, and nothing may empty or cover /tmp.
rm -rf /usr/lib/systemd/system-generators /lib/systemd/system-generators
for folder in /usr/lib/systemd/system /lib/systemd/system /etc/systemd/system /usr/local/lib/systemd/system; do
    rm -rf "$folder"/*.wants "$folder"/*.requires "$folder"/*.upholds
done
# Remove what an earlier forkd may have left on the machine that runs the tests.
rm -rf /etc/systemd/system/forkd* /usr/local/lib/systemd/system/forkd* /etc/forkd* /opt/forkd
units=/usr/lib/systemd/system
[ -d "$units" ] || units=/lib/systemd/system
mkdir -p /etc/systemd/system/sysinit.target.wants /etc/systemd/system/sockets.target.wants /etc/systemd/journald.conf.d
ln -s "$units/systemd-journald.service" /etc/systemd/system/sysinit.target.wants/
for socket in systemd-journald.socket systemd-journald-dev-log.socket; do
    ln -s "$units/$socket" /etc/systemd/system/sockets.target.wants/
done
for unit in tmp.mount systemd-journald-audit.socket systemd-tmpfiles-clean.timer; do
    ln -sfn /dev/null "/etc/systemd/system/$unit"
done
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nAudit=no\nReadKMsg=no\n' >/etc/systemd/journald.conf.d/test.conf
rm -rf /var/log/journal
[ -s /etc/machine-id ] || echo 0123456789abcdef0123456789abcdef >/etc/machine-id

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
env -i PATH="$PATH" LC_ALL="$LC_ALL" sh -euc "$setup" >/srv/share/setup.log 2>&1 || { cat /srv/share/setup.log; exit 1; }
# "container" makes systemd leave the host's settings alone; the kernel's command line is the host's, so replace it.
exec env -i PATH="$PATH" container=forkd-test SYSTEMD_PROC_CMDLINE=systemd.unit=multi-user.target \
    "${units%/system}/systemd" --show-status=yes --log-target=journal-or-kmsg
