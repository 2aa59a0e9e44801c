#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Makes a fresh clone ready on Debian 12: system packages, node modules, the guests' kernel for the lab, the
# build. Does nothing, within a second or two, where nothing is missing; may be run as often as one likes.
#
# The guests' kernel is Debian's own package, of exactly the version of the installed headers (the module is
# built against those), unpacked into .lab/cache/kernel-RELEASE and never installed.
#
# Weakness: a package that is installed but broken, or older than needed, is not noticed.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=.lab/cache

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }
trap 'echo "setup: line $LINENO failed" >&2' ERR
set -E

NODE_NEEDED=20.19.0
PACKAGES=(
  qemu-system-x86 qemu-block-extra tgt busybox-static iproute2 util-linux kmod cpio xz-utils binutils # lab
  linux-headers-amd64 gcc g++ make python3 sparse libc6-dev                                           # build
  xfsprogs fio sg3-utils attr acl procps                                                              # used in guests
)

check_host() {
  [ "$(id -u)" = 0 ] || die "needs root: the lab makes network namespaces and taps, and packages may be missing"
  local id="" version=""
  # shellcheck source=/dev/null
  id=$(. /etc/os-release && echo "${ID:-}")
  # shellcheck source=/dev/null
  version=$(. /etc/os-release && echo "${VERSION_ID:-}")
  [ "$id $version" = "debian 12" ] || die "this machine runs $id $version, expected debian 12: the guests boot its kernel 6.1 and use its root"
  [ "$(uname -m)" = x86_64 ] || die "this machine is $(uname -m), expected x86_64"
  command -v node >/dev/null || die "node is missing, expected version $NODE_NEEDED or later: install Node.js (https://nodejs.org) first"
  local found
  found=$(node -p 'process.versions.node')
  [ "$(printf '%s\n' "$NODE_NEEDED" "$found" | sort -V | head -n 1)" = "$NODE_NEEDED" ] ||
    die "node is $found ($(command -v node)), expected $NODE_NEEDED or later: install a newer Node.js"
}

apt_updated=no
apt_update_once() {
  [ $apt_updated = yes ] && return
  say "apt-get update"
  apt-get update -q -o Acquire::Retries=3 >/dev/null || die "apt-get update failed: packages cannot be fetched, see above"
  apt_updated=yes
}

install_packages() {
  local missing=() package status
  for package in "${PACKAGES[@]}"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  apt_update_once
  say "apt-get install ${missing[*]}"
  # tgt comes with a service of its own, which the lab does not want: no daemon is started by this.
  local policy=/usr/sbin/policy-rc.d made=no
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy && made=yes
  fi
  local failed=no
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o Acquire::Retries=3 \
    "${missing[@]}" >"$cache/apt.log" 2>&1 || failed=yes
  [ $made = no ] || rm -f $policy
  if [ $failed = yes ]; then
    tail -n 20 "$cache/apt.log" >&2
    die "apt-get install failed (all of it: $cache/apt.log)"
  fi
}

# The kernel release whose headers linux-headers-amd64 stands for.
headers_release() {
  dpkg-query -W -f '${Depends}' linux-headers-amd64 | grep -o 'linux-headers-[^ ,]*' | sed -n '1s/^linux-headers-//p'
}

fetch_kernel() {
  local release=$1 version dir work deb offset
  dir=$cache/kernel-$release
  [ -e "$dir/complete" ] && return
  version=$(dpkg-query -W -f '${Version}' "linux-headers-$release")
  work=$(mktemp -d "$cache/kernel-new-XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$PWD/$work'" EXIT
  say "fetching the guests' kernel linux-image-$release $version (70 MB)"
  download() { (cd "$work" && apt-get download -q -o APT::Sandbox::User=root -o Acquire::Retries=3 "$1" >/dev/null 2>&1); }
  if ! download "linux-image-$release=$version"; then
    apt_update_once
    download "linux-image-$release=$version" ||
      die "linux-image-$release $version cannot be fetched: expected it beside the installed headers; try apt-get install --only-upgrade linux-headers-amd64"
  fi
  deb=$(echo "$work"/*.deb)
  say "unpacking it"
  dpkg -x "$deb" "$work/root"
  offset=$(LC_ALL=C grep -abom1 -P '\xFD7zXZ\x00' "$work/root/boot/vmlinuz-$release" | LC_ALL=C cut -d: -f1 | sed -n 1p)
  [ -n "$offset" ] || die "boot/vmlinuz-$release holds no xz stream: expected Debian's compression"
  tail -c +"$((offset + 1))" "$work/root/boot/vmlinuz-$release" >"$work/vmlinux.xz"
  xz -dc --single-stream <"$work/vmlinux.xz" >"$work/root/vmlinux"
  depmod -b "$work/root" "$release"
  rm -rf "$dir" "$work/root/boot"
  mv "$work/root" "$dir"
  touch "$dir/complete"
  rm -rf "$work"
  trap - EXIT
}

install_node_modules() {
  local stamp=node_modules/.mxfs-package-lock
  cmp -s package-lock.json $stamp && return
  say "npm ci"
  npm ci --no-audit --no-fund --loglevel=error
  cp package-lock.json $stamp
}

mkdir -p $cache
check_host
# One at a time: several checks of one tree may start together.
exec 9>.lab/setup.lock
flock 9
install_packages
install_node_modules
fetch_kernel "$(headers_release)"
flock -u 9
exec 9>&-
bash scripts/build.sh
node dist/lab/cli.js probe >/dev/null
