#!/bin/sh
# What the project needs from Debian, installed only where it is missing and where we may.
#   system-packages.sh          what the lab needs (nft, ip, a venv)
#   system-packages.sh peers    also the real FTP clients and servers of the tests
#   system-packages.sh system   also what boots a machine for `make system-test`
# Servers conflict as packages, so tests/netns unpacks those into .cache by itself.
set -eu

[ "$(uname)" = Linux ] || exit 0   # elsewhere the tests need Python and what pip installs, and there is no lab

missing=
PATH=$PATH:/usr/sbin:/sbin
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }

need ip iproute2
need nft nftables
need unshare util-linux
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
if [ "${1:-}" = peers ]; then
    need curl curl
    need wget wget
    need lftp lftp
    need gcc gcc
    [ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
    need sysctl procps
    need systemd-analyze systemd
    need mandoc mandoc
    need xinetd xinetd
fi
if [ "${1:-}" = system ]; then
    need debootstrap debootstrap
    need systemd-nspawn systemd-container
    need nsenter util-linux
fi

[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing:$missing (install them with your package tool; carrying on without)" >&2
    exit 0
fi
echo "installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends $missing >/dev/null
