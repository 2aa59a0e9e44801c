#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-only
# Compiles the kernel module in a private copy with sparse on every file; any message of compiler or sparse fails.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/include"
cp -r include/mxfs "$work/include/"
mkdir "$work/kernel"
cp kernel/*.[ch] kernel/Makefile "$work/kernel/"
log="$work/log"
if ! make -C "$work/kernel" C=2 CF=-D__CHECK_ENDIAN__ >"$log" 2>&1; then
	cat "$log"
	exit 1
fi
if grep -E "(warning|error):" "$log"; then
	echo "sparse or the compiler complained" >&2
	exit 1
fi
echo "no complaints in $(ls kernel/*.c | wc -l) files"
