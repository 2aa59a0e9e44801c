// SPDX-License-Identifier: GPL-2.0-only
//
// What counts as trouble in the kernel logs of the lab: the reports of Debian's kernel, and those that only the debug
// kernel makes (scripts/debug-kernel.sh). A kind that is not known here would let its bug pass every lab test.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { isTrouble } from "../../lab/volume.js";

const REPORTS: readonly string[] = [
  "[   12.345678] BUG: KASAN: use-after-free in mxfs_lock_put+0x12/0x80 [mxfs]",
  "[   12.345678] WARNING: possible circular locking dependency detected",
  "[   12.345678] WARNING: possible recursive locking detected",
  "[   12.345678] WARNING: possible irq lock inversion dependency detected",
  "[   12.345678] WARNING: inconsistent lock state",
  "[   12.345678] WARNING: bad unlock balance detected!",
  "[   12.345678] WARNING: lock held when returning to user space!",
  "[   12.345678] WARNING: suspicious RCU usage",
  "[   12.345678] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
  "[   12.345678] BUG: scheduling while atomic: mxfs-exec/123/0x00000002",
  "[   12.345678] INFO: task mxfs-work:321 blocked for more than 120 seconds.",
  "[   12.345678] INFO: trying to register non-static key.",
  "[   12.345678] kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
  "[   12.345678] ODEBUG: free active (active state 0) object type: work_struct hint: mxfs_work+0x0/0x10 [mxfs]",
  "[   12.345678] XFS: Assertion failed: ip->i_delayed_blks == 0, file: fs/xfs/xfs_super.c, line: 651",
  "[   12.345678] list_add corruption. next->prev should be prev (ffff8), but was ffff9. (next=ffffa).",
  "[   12.345678] kernel BUG at mm/filemap.c:151!",
  "[   12.345678] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
  "[   12.345678] refcount_t: underflow; use-after-free.",
  "[   12.345678] VFS: Busy inodes after unmount of mxfs. Self-destruct in 5 seconds.  Have a nice day...",
];

test("every kind of report that a kernel makes counts", () => {
  for (const line of REPORTS) assert.ok(isTrouble(line), line);
});

test("what a healthy run says does not count", () => {
  for (const line of [
    "[   12.345678] mxfs: sda: mounted as holder, incarnation 3",
    "[   12.345678] XFS (sda): Mounting V5 Filesystem",
    "[   12.345678] XFS (sda): Ending clean mount",
    "[   12.345678] mxfs: loading out-of-tree module taints kernel.",
    "[   12.345678] sd 0:0:0:0: [sda] Attached SCSI disk",
  ]) {
    assert.not.ok(isTrouble(line), line);
  }
});

test.run();
