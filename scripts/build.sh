#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Builds all that runs: TypeScript to dist/, the native addon and launcher to native/build/, the kernel module to
# kernel/mxfs.ko, the guests' tools to .lab/bin/. A part whose sources have not changed since it was built is
# left alone. Any error or warning fails, and is shown again by the next run.
#
# Weakness: "changed" means the contents of the part's own sources and of include/; a new compiler is not seen.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .lab/cache

say() { printf 'build: %s\n' "$*"; }
die() { printf 'build: %s\n' "$*" >&2; exit 1; }
trap 'echo "build: line $LINENO failed" >&2' ERR
set -E

exec 9>.lab/build.lock
flock 9

fingerprint() { # files on stdin
  { node -p 'process.version'; xargs -d '\n' -r sha256sum; } | sha256sum
}

# Runs a build with its output in a log; shows that, cleans up, and fails on an error or a warning.
checked() {
  local name=$1 clean=$2 log=.lab/build-$1.log began=$SECONDS failed=no
  shift 2
  say "$name"
  "$@" >"$log" 2>&1 || failed=yes
  if [ $failed = yes ] || grep -Eiq '(^|[^-a-z])warning:' "$log"; then
    cat "$log" >&2
    $clean >/dev/null 2>&1 || true
    die "$name: errors or warnings, see above"
  fi
  say "$name done ($((SECONDS - began)) s)"
}

build_typescript() {
  [ -x node_modules/.bin/tsc ] || die "node_modules is missing: run scripts/setup.sh"
  # dist/ holds nothing whose source is gone: a deleted test must not go on passing.
  if [ -d dist ]; then
    find dist -name '*.js' -printf '%P\n' | while read -r file; do
      [ -e "${file%.js}.ts" ] || [[ "$file" == daemon/* || "$file" == workers/* ]] || rm -f "dist/$file"
    done
  fi
  [ -n "$(find dist -name '*.js' -print -quit 2>/dev/null)" ] || rm -f dist/.tsbuildinfo
  node_modules/.bin/tsc -p . || die "typescript: errors, see above"
  node scripts/bundle.mjs || die "bundle: errors, see above"
}

build_native() {
  [ -e native/binding.gyp ] || return 0
  local stamp=native/build/.mxfs-sources now
  now=$(find native include -path native/build -prune -o -type f ! -name '*.ts' -print | sort | fingerprint)
  [ "$(cat $stamp 2>/dev/null)" = "$now" ] && return
  # Node's own headers, where they came with it; else node-gyp fetches them.
  local prefix nodedir=()
  prefix=$(node -p 'require("path").dirname(require("path").dirname(process.execPath))')
  [ ! -e "$prefix/include/node/node_api.h" ] || nodedir=(--nodedir "$prefix")
  checked native "rm -f $stamp" node_modules/.bin/node-gyp rebuild --directory native --loglevel error "${nodedir[@]}"
  echo "$now" >$stamp
}

build_kernel() {
  [ -e kernel/Makefile ] || return 0
  local stamp=.lab/kernel-sources now release
  release=$(dpkg-query -W -f '${Depends}' linux-headers-amd64 | grep -o 'linux-headers-[^ ,]*' | sed -n 1p)
  now=$({ find kernel -type f \( -name '*.[ch]' ! -name '*.mod.c' -o -name Makefile -o -name Kbuild \); find include -type f; } |
    sort | fingerprint; echo "$release")
  [ -e kernel/mxfs.ko ] && [ "$(cat $stamp 2>/dev/null)" = "$now" ] && return
  rm -f $stamp
  checked kernel "make -C kernel clean KDIR=/usr/src/$release" make -j"$(nproc)" -C kernel KDIR="/usr/src/$release"
  echo "$now" >$stamp
}

# Tools of the guests, static, because guests start them often: build_tool NAME SOURCE [HEADER...]
build_tool() {
  local name=$1 out=.lab/bin/mxfs-$1 stamp=.lab/$1-sources now
  shift
  now=$(printf '%s\n' "$@" | fingerprint)
  [ -x "$out" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$now" ] && return
  mkdir -p .lab/bin
  checked "$name" "rm -f $out" gcc -static -O2 -Wall -Wextra -Wshadow -o "$out" "$1"
  echo "$now" >"$stamp"
}

build_typescript
build_native
# The workloads of demo and lab tests, and those of the perf harness.
build_tool work lab/work.c lab/tool.h include/mxfs/netlink.h
build_tool load lab/load.c include/mxfs/netlink.h
build_tool fsx lab/fsx.c
build_tool perf perf/load.c lab/tool.h
build_kernel
