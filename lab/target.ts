// SPDX-License-Identifier: GPL-2.0-only
//
// The shared LUN: an iSCSI target with SCSI-3 persistent reservations, in one of two makes.
//
// tgt: user-space tgtd in the lab's network namespace. Simple and fast, but no PREEMPT AND ABORT, no READ FULL
//      STATUS, no APTPL.
// lio: the kernel's target in a guest of its own, set up through configfs. The fuller implementation. After
//      `kill target` and `start target` the data are there, the registrations gone.
//
// Either way node N's QEMU reaches the target under an address of its own, 10.78.0.N, so that its path to
// the disk can be cut alone: packets then go to a hardware address that nobody has, connections stay open and
// hang, as with a pulled cable.
//
// Weakness: QEMU's initiator gives a silent session up after about 15 s and logs in anew. The target sees
// that as a new nexus: with tgt the node's registration no longer covers it.

export const TARGET_IQN = "iqn.2026-01.org.mxfs:lab";
export const TARGET_PORT = 3260;

export type TargetKind = "tgt" | "lio";

/** The address under which node N's QEMU finds the target. */
export function targetAddress(node: number): string {
  return `10.78.0.${node}`;
}

export function lunUrl(node: number): string {
  return `iscsi://${targetAddress(node)}:${TARGET_PORT}/${TARGET_IQN}/1`;
}

export function initiatorName(node: number): string {
  return `iqn.2026-01.org.mxfs:node${node}`;
}

/** Run by sh in the target guest; $1 = number of nodes. The disk is /dev/vda. */
export const LIO_SCRIPT = `set -e
modprobe target_core_mod
modprobe target_core_iblock
modprobe iscsi_target_mod
mkdir -p /var/target/pr
t=/sys/kernel/config/target
n=1
while [ $n -le "$1" ]; do ip addr add 10.78.0.$n/24 dev eth0; n=$((n + 1)); done
mkdir -p $t/core/iblock_0/lun
echo "udev_path=/dev/vda" > $t/core/iblock_0/lun/control
echo 1 > $t/core/iblock_0/lun/enable
echo mxfs-lab-shared > $t/core/iblock_0/lun/wwn/vpd_unit_serial
g=$t/iscsi/${TARGET_IQN}/tpgt_1
mkdir -p $g/lun/lun_1 $g/np/0.0.0.0:${TARGET_PORT}
ln -s $t/core/iblock_0/lun $g/lun/lun_1/shared
echo 0 > $g/attrib/authentication
n=1
# Named initiators: a generated ACL is dropped with its session, and the node's registration with it.
while [ $n -le "$1" ]; do
  a=$g/acls/iqn.2026-01.org.mxfs:node$n
  mkdir -p $a/lun_1
  ln -s $g/lun/lun_1 $a/lun_1/shared
  n=$((n + 1))
done
echo 1 > $g/enable
`;
