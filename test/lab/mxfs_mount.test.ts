// SPDX-License-Identifier: GPL-2.0-only
//
// Mounting and unmounting on real kernels: refusals with a reason, elections between two nodes that mount at the same
// instant, no trace left, and a daemon that dies.
//
// Weakness: what mount(8) says itself is only the errno; reasons are read from the kernel's log.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { quote, until } from "../../lab/volume.js";
import { MOUNTPOINT, rounds, Suite } from "./mxfs_suite.js";

const suite = new Suite("mxfs-mount", { mounted: false, scratchBytes: 512 * 2 ** 20 });
const VDA_AT = "/mnt/private";
/** A refused mount tells the kernel's log why. */
const REFUSAL = [/mxfs: .*error -?\d+/];

async function refused(node: number, options: string, reason: RegExp, device = "/dev/sda"): Promise<void> {
  const result = await suite.volume.tryMount(node, options, device);
  assert.is.not(result.status, 0, `mount -o ${options} ${device} was not refused`);
  assert.match(result.said, reason, `mount -o ${options} ${device}`);
  assert.is(await suite.volume.isMounted(node), false);
}

async function noDaemonIsLeft(node: number): Promise<void> {
  await until(`no mxfsd on node${node}`, 15_000, async () => {
    const found = await suite.lab.exec(node, ["pgrep", "-af", "mxfsd.js"]);
    return found.status === 1 ? true : undefined;
  });
}

async function slabObjects(node: number): Promise<number> {
  await suite.lab.run(node, "sync; echo 3 >/proc/sys/vm/drop_caches");
  const text = await suite.lab.run(node, ["cat", "/proc/slabinfo"]);
  const line = text.split("\n").find((it) => it.startsWith("mxfs_inode"));
  return line === undefined ? 0 : Number(line.split(/\s+/)[1]);
}

suite.proves("The module is loaded and unloaded ten times without a word from the kernel", async () => {
  const { lab } = suite;
  await lab.run(
    1,
    `set -e
    for i in 1 2 3 4 5 6 7 8 9 10; do rmmod mxfs; insmod /mxfs/kernel/mxfs.ko; done
    grep -q mxfs /proc/filesystems`,
  );
});

suite.proves(
  "Mount options that are unknown, malformed or contradict each other are refused with a reason",
  async () => {
    await refused(1, "nonsense", /nonsense|unknown parameter/i);
    await refused(1, "port=0", /port/);
    await refused(1, "port=many", /port/);
    await refused(1, "fence=perhaps", /fence/);
    await refused(1, "lease=20000,node_timeout=15000", /lease/);
    await refused(1, "profile=slow", /profile/);
    await refused(1, "profile=fast,lease=4000", /lease/);
    await noDaemonIsLeft(1);
  },
  { expected: REFUSAL },
);

suite.proves(
  "A device that is missing, no block device, or carries no XFS is refused",
  async () => {
    await suite.lab.run(1, "wipefs -a -q /dev/vda");
    await refused(1, "fence=none", /XFS|superblock/i, "/dev/vda");
    await refused(1, "", /no such|not found|ENOENT|-2|cannot|does not exist/i, "/dev/nothing");
    await refused(1, "", /block device/i, "/etc/hosts");
    await noDaemonIsLeft(1);
  },
  { expected: REFUSAL },
);

suite.proves(
  "A mount whose daemon is missing or dies at its start fails, says so, and leaves nothing",
  async () => {
    const { lab } = suite;
    await lab.run(1, "mv /usr/sbin/mxfsd /usr/sbin/mxfsd.away");
    await refused(1, "", /mxfsd/);
    await lab.run(1, `printf '#!/bin/sh\\nexit 7\\n' >/usr/sbin/mxfsd; chmod 755 /usr/sbin/mxfsd`);
    await refused(1, "", /mxfsd|daemon/);
    await lab.run(1, "mv /usr/sbin/mxfsd.away /usr/sbin/mxfsd");
    await lab.run(1, "rmmod mxfs && insmod /mxfs/kernel/mxfs.ko");
  },
  { expected: REFUSAL },
);

suite.proves(
  "A daemon that finds a broken configuration makes the mount fail with its file and line",
  async () => {
    const { lab } = suite;
    await lab.run(1, "mkdir -p /etc/mxfs; printf '[node]\\nport = lots\\n' >/tmp/bad.conf");
    const result = await suite.volume.tryMount(1, "config=/tmp/bad.conf");
    assert.is.not(result.status, 0);
    const log = await suite.volume.daemonLog(1);
    assert.match(result.said, /its log says why/);
    assert.match(log, /bad\.conf:2.*port/);
    await noDaemonIsLeft(1);
  },
  { expected: REFUSAL },
);

suite.proves(
  "Who lacks CAP_NET_ADMIN cannot talk to the module, and who is not root cannot mount",
  async () => {
    const { lab } = suite;
    const drop = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    for (const command of [1, 2, 3, 21, 22]) {
      const said = await lab.run(1, `${drop} mxfs-work genl mxfs ${command}`);
      assert.is(said, "refused Operation not permitted\n", `netlink command ${command}`);
    }
    const result = await lab.exec(1, `${drop} mount -t mxfs /dev/sda ${MOUNTPOINT}`);
    assert.is.not(result.status, 0);
  },
);

suite.proves(
  "While mounted, a second mxfs mount and mount -t xfs are refused on holder and member",
  async () => {
    const { lab, volume } = suite;
    await volume.mountAll();
    await lab.run(1, "mkdir -p /mnt/second");
    await lab.run(2, "mkdir -p /mnt/second");
    for (const node of [1, 2]) {
      const role = await volume.role(node);
      const xfs = await lab.exec(node, "mount -t xfs /dev/sda /mnt/second");
      assert.is.not(xfs.status, 0, `mount -t xfs on the ${role} was not refused`);
      // Refused, or the same superblock once more, which may not outlive its unmount.
      const again = await volume.tryMount(node, "", "/dev/sda", "/mnt/second");
      if (again.status === 0) await lab.run(node, "umount /mnt/second");
      await lab.run(node, `echo ${node} >${MOUNTPOINT}/still-${node}`);
    }
    assert.is(await lab.run(2, `cat ${MOUNTPOINT}/still-1`), "1\n");
    assert.is(await lab.run(1, `cat ${MOUNTPOINT}/still-2`), "2\n");
    const shown = await lab.run(1, "cat /proc/mounts");
    assert.is.not(shown.includes(" xfs "), true, "the internal XFS is visible");
    await volume.umountAll();
    await volume.checkXfs(1);
  },
);

suite.proves(
  "A read-only mount takes part in the cluster and changes nothing, on holder and member, and is remounted rw and ro",
  async () => {
    const { lab, volume } = suite;
    await volume.mount(1, "ro,noatime");
    await volume.mount(2);
    const { holder, member } = await volume.roles();
    assert.is(holder, 1);
    await lab.run(2, `echo from the member >${MOUNTPOINT}/seen`);
    assert.is(await lab.run(1, `cat ${MOUNTPOINT}/seen`), "from the member\n");
    for (const node of [holder, member]) {
      await lab.run(node, `mount -o remount,ro ${MOUNTPOINT}`);
      const shown = await lab.run(node, `grep " ${MOUNTPOINT} " /proc/mounts`);
      assert.match(shown, / mxfs ro[, ]/);
      for (const change of [
        "touch new",
        "rm seen",
        "truncate -s 1 seen",
        "chmod 600 seen",
        "mkdir d",
        "mv seen s",
      ]) {
        const result = await lab.exec(node, `cd ${MOUNTPOINT} && ${change}`);
        assert.match(result.stderr, /Read-only file system/, `${change} on node${node}`);
      }
      await lab.run(
        node,
        `cat ${MOUNTPOINT}/seen && mount -o remount,rw ${MOUNTPOINT} && echo ${node} >>${MOUNTPOINT}/seen`,
      );
    }
    assert.is(await lab.run(member, `cat ${MOUNTPOINT}/seen`), `from the member\n${holder}\n${member}\n`);
    // Who writes keeps it writable.
    const result = await lab.exec(member, `exec 3>>${MOUNTPOINT}/seen; mount -o remount,ro ${MOUNTPOINT}`);
    assert.is.not(result.status, 0);
    assert.match(result.stderr, /busy/i);
    await volume.umount(holder);
    assert.is(await volume.role(member), "holder");
    await lab.run(member, `mount -o remount,ro ${MOUNTPOINT}`);
    await volume.mount(holder);
    await lab.run(holder, `rm ${MOUNTPOINT}/seen`);
    assert.is((await lab.exec(member, `stat ${MOUNTPOINT}/seen`)).status, 1);
    await volume.umountAll();
    await volume.checkXfs(1);
  },
);

suite.proves(
  "Two nodes that mount a fresh XFS at the same instant become one holder and one member",
  async () => {
    const { volume } = suite;
    const count = rounds(10);
    const holders = new Set<number>();
    for (let round = 1; round <= count; round++) {
      await volume.mkfs(1);
      await Promise.all([volume.mount(1), volume.mount(2)]);
      const { holder, member } = await volume.roles();
      holders.add(holder);
      await suite.lab.run(holder, `echo round ${round} >${MOUNTPOINT}/round`);
      assert.is(await suite.lab.run(member, `cat ${MOUNTPOINT}/round`), `round ${round}\n`);
      await volume.umountAll();
      assert.equal(await volume.keys(1), [], `keys left after round ${round}`);
    }
    await volume.checkXfs(1);
  },
);

suite.proves(
  "Mounting and unmounting again and again leaves no daemon, no inode, no key, and an XFS that is clean",
  async () => {
    const { lab, volume } = suite;
    const count = rounds(20);
    await volume.mount(1);
    await volume.work(1, ["names", MOUNTPOINT, "n", 200]);
    await volume.umount(1);
    const before = await slabObjects(1);
    for (let round = 1; round <= count; round++) {
      await volume.mount(1);
      await lab.run(1, `ls -l ${MOUNTPOINT} >/dev/null; echo ${round} >${MOUNTPOINT}/round`);
      await volume.umount(1);
    }
    const after = await slabObjects(1);
    assert.ok(after <= before + 4, `mxfs_inode objects: ${before} before, ${after} after ${count} rounds`);
    await noDaemonIsLeft(1);
    assert.equal(await volume.keys(1), []);
    await volume.checkXfs(1);
    await lab.run(1, "rmmod mxfs && insmod /mxfs/kernel/mxfs.ko");
  },
);

suite.proves("Two volumes are mounted on one node at once, each with its own daemon", async () => {
  const { lab, volume } = suite;
  await volume.mkfs(1, "/dev/vda");
  await lab.run(1, `mkdir -p ${VDA_AT}`);
  await volume.mount(1);
  await volume.mount(1, "fence=none,port=7611", "/dev/vda", VDA_AT);
  await lab.run(1, `echo shared >${MOUNTPOINT}/which; echo private >${VDA_AT}/which`);
  assert.is(await lab.run(1, `cat ${MOUNTPOINT}/which ${VDA_AT}/which`), "shared\nprivate\n");
  const daemons = await lab.run(1, ["pgrep", "-fc", "mxfsd.js"]);
  assert.is(daemons.trim(), "2");
  await volume.umount(1, VDA_AT);
  assert.is(await lab.run(1, `cat ${MOUNTPOINT}/which`), "shared\n");
  await volume.umount(1);
  await noDaemonIsLeft(1);
});

suite.proves(
  "A daemon that is killed comes back, on holder and member, and locks and files outlive it",
  async () => {
    const { lab, volume } = suite;
    await volume.mountAll();
    for (const node of [1, 2]) {
      const other = 3 - node;
      const role = await volume.role(node);
      const file = `${MOUNTPOINT}/locked-${node}`;
      const holding = volume.hold(node, ["mxfs-work", "hold", file, "flock"]);
      assert.is(await holding.first, "held");
      const before = (await lab.run(node, ["pgrep", "-f", "mxfsd.js"])).trim();
      await lab.run(node, `kill -9 ${quote(before)}`);
      await until(`a new mxfsd on the ${role}`, 60_000, async () => {
        const found = (await lab.exec(node, ["pgrep", "-f", "mxfsd.js"])).stdout.trim();
        return found !== "" && found !== before ? found : undefined;
      });
      await lab.run(node, `echo after >${MOUNTPOINT}/after-${node}`, { timeoutMs: 90_000 });
      assert.is(await lab.run(other, `cat ${MOUNTPOINT}/after-${node}`, { timeoutMs: 90_000 }), "after\n");
      assert.is(await volume.work(other, ["try-lock", file, "flock"]), "busy\n", `flock held on the ${role}`);
      assert.is(await holding.letGo(), 0);
      assert.is(await volume.work(other, ["try-lock", file, "flock"]), "free\n");
    }
    await volume.umountAll();
    await volume.checkXfs(1);
  },
);

test.run();
