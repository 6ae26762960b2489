#!/usr/bin/env bash
# A Debian 12 that boots: systemd, nftables, and an empty virtual environment of Python in /opt/ftpproxy; about 350 MB.
#   rootfs.sh DIRECTORY      made once, and left alone if it is there
# The package archive is the one that this machine uses.
set -eu

root=$1
[ -e "$root/.complete" ] && exit 0
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -1)
rm -rf "$root"
mkdir -p "$root"
packages=systemd,systemd-sysv,dbus,libnss-systemd,python3,python3-venv,nftables,iproute2,procps,xinetd
debootstrap --variant=minbase --include="$packages" bookworm "$root" "$mirror" >/dev/null

# What would only take time at boot.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer getty.target \
    console-getty.service systemd-resolved.service systemd-timesyncd.service systemd-networkd.service xinetd.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
rm -f "$root/etc/machine-id"
: > "$root/etc/machine-id"

# The package and what it needs come with each test run.
chroot "$root" /usr/bin/python3 -m venv /opt/ftpproxy
ln -s /opt/ftpproxy/bin/ftpproxy "$root/usr/local/bin/ftpproxy"
touch "$root/.complete"
