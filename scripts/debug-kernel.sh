#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Builds a kernel for the lab that reports bugs of the module which Debian's own kernel is silent about (KASAN, lockdep,
# DEBUG_ATOMIC_SLEEP, DEBUG_OBJECTS, DEBUG_VM, XFS's assertions, kmemleak, failing allocations), and the module for it:
#
#   scripts/debug-kernel.sh            both, where they are not there yet (the kernel: half an hour, once)
#   scripts/debug-kernel.sh module     the module alone, in seconds; the lab does that by itself at every start
#
# Then: npm run -s lab -- up --kernel debug, npm test -- lab/mxfs_coherence --kernel debug (lab/README.md).
#
# The kernel is Debian's linux-source-6.1 with the options of lab/debug-kernel.config. All of it stays in
# .lab/cache/debug-kernel (1.6 GB): source, build, vmlinux, lib/modules/RELEASE. MXFS_DEBUG_KERNEL=DIR puts it elsewhere,
# where several clones of the project share it; MXFS_LINUX_SOURCE=DIR is a clean source tree to use instead of one's own.
#
# Weakness: a new linux-source-6.1 is noticed only where it is installed already; a new compiler is not seen.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${MXFS_DEBUG_KERNEL:-.lab/cache/debug-kernel}
config=lab/debug-kernel.config
PACKAGES=(linux-source-6.1 bc bison flex libelf-dev gcc make xz-utils kmod)

say() { printf 'debug-kernel: %s\n' "$*"; }
die() { printf 'debug-kernel: %s\n' "$*" >&2; exit 1; }
trap 'echo "debug-kernel: line $LINENO failed" >&2' ERR
set -E

install_packages() {
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)" = "install ok installed" ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "apt-get install ${missing[*]}"
  apt-get update -q -o Acquire::Retries=3 >/dev/null || die "apt-get update failed, see above"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends -o Acquire::Retries=3 "${missing[@]}" \
    >"$dir/apt.log" 2>&1 || { tail -n 20 "$dir/apt.log" >&2; die "apt-get install failed (all of it: $dir/apt.log)"; }
}

# What the kernel is made of: its options and the version of its source.
wanted() {
  sha256sum <$config
  dpkg-query -W -f '${Version}\n' linux-source-6.1 2>/dev/null || true
}

# make in the build directory, niced: whatever else runs on the machine goes first. What PVH's entry calls runs before
# KASAN's shadow is mapped, and would never come to its first message with checks in it.
build_make() {
  nice make -C "$source" O="$build" KBUILD_BUILD_USER=mxfs KBUILD_BUILD_HOST=lab \
    KASAN_SANITIZE_enlighten.o=n KASAN_SANITIZE_string.o=n "$@"
}

configure() {
  KCONFIG_ALLCONFIG=$PWD/$config build_make -s allnoconfig >>"$log" 2>&1
  # An option that depends on one that is off is dropped without a word.
  local lost
  lost=$(grep -E '^(CONFIG_|# CONFIG_)' $config | grep -vxFf "$build/.config" || true)
  [ -z "$lost" ] || die "options that the kernel did not take: $lost"
}

compile() {
  local began=$SECONDS job files
  build_make -j"$(nproc)" vmlinux modules >>"$log" 2>&1 &
  job=$!
  # shellcheck disable=SC2064
  trap "kill $job 2>/dev/null || true" EXIT
  while sleep 15 && kill -0 $job 2>/dev/null; do
    files=$(grep -c '^  CC ' "$log" || true)
    [ $(((SECONDS - began) % 60)) -ge 15 ] || say "$files of about $FILE_COUNT files, $(((SECONDS - began) / 60)) min"
  done
  trap - EXIT
  wait $job || { tail -n 30 "$log" >&2; die "the kernel does not build (all of it: $log)"; }
}
FILE_COUNT=1350

kernel() {
  [ "$(cat "$dir/complete" 2>/dev/null)" = "$(wanted)" ] && return
  install_packages
  rm -f "$dir/complete"
  source=${MXFS_LINUX_SOURCE:-$dir/source}
  if [ ! -e "$source/Makefile" ]; then
    say "unpacking the source of linux-source-6.1"
    mkdir -p "$dir/unpack"
    tar -xf /usr/src/linux-source-6.1.tar.xz -C "$dir/unpack"
    mv "$dir/unpack/linux-source-6.1" "$source"
    rmdir "$dir/unpack"
  fi
  source=$(realpath "$source")
  mkdir -p "$build"
  : >"$log"
  say "building the kernel, with $(nproc) processors (log: $log)"
  configure
  compile
  local release
  release=$(build_make -s kernelrelease)
  rm -rf "$dir/lib"
  build_make modules_install INSTALL_MOD_PATH="$dir" >>"$log" 2>&1
  rm -f "$dir/lib/modules/$release/build" "$dir/lib/modules/$release/source"
  depmod -b "$dir" "$release"
  strip -s -o "$dir/vmlinux" "$build/vmlinux"
  # What a module is built with stays: headers, scripts, objtool, Module.symvers.
  find "$build" \( -path "$build/scripts" -o -path "$build/tools" \) -prune -o \
    \( -name '*.o' -o -name '*.a' -o -name '.*.cmd' -o -name 'vmlinux*' \) ! -name vmlinux.symvers -type f -exec rm -f {} +
  wanted >"$dir/complete"
  say "$release is in $dir"
}

# In a copy of its own: kernel/ has the objects for Debian's kernel.
module() {
  [ -e "$dir/complete" ] || die "there is no debug kernel in $dir: run scripts/debug-kernel.sh"
  local work=.lab/debug-module now began=$SECONDS
  mkdir -p $work/kernel $work/include
  now=$(cat kernel/*.[ch] kernel/Makefile include/mxfs/*.h "$dir/complete" | sha256sum)
  [ -e $work/kernel/mxfs.ko ] && [ "$(cat $work/stamp 2>/dev/null)" = "$now" ] && return
  rm -rf $work/stamp $work/include/mxfs $work/kernel/*.[ch]
  cp -r include/mxfs $work/include/
  for file in kernel/*.[ch] kernel/Makefile; do
    case $file in *.mod.c) ;; *) cp -p "$file" $work/kernel/ ;; esac
  done
  make -j"$(nproc)" -C $work/kernel KDIR="$build" >$work/log 2>&1 ||
    { cat $work/log >&2; die "the module does not build for the debug kernel"; }
  echo "$now" >$work/stamp
  say "module done ($((SECONDS - began)) s)"
}

mkdir -p "$dir" .lab
dir=$(realpath "$dir")
build=$dir/build
log=$dir/build.log
exec 9>.lab/debug-kernel.lock
flock 9
case "${1:-all}" in
  all)
    kernel
    module
    ;;
  module) module ;;
  *) die "expected nothing or \"module\", found \"$1\"" ;;
esac
