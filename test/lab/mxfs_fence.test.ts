// SPDX-License-Identifier: GPL-2.0-only
//
// Reservations on real targets: keys taken away by strangers, targets that restart and forget everything, devices that
// cannot be fenced or only by another way. MXFS_TARGET=lio runs all of it on the kernel's target (default: tgt).
// Two nodes mount; the third one is the stranger.
//
// Weakness: NVMe is not here, since no emulated namespace of this QEMU has reservations (test/unit/pr_ways.test.ts).

import { test } from "uvu";
import * as assert from "uvu/assert";
import type { TargetKind } from "../../lab/lab.js";
import { DEVICE, until } from "../../lab/volume.js";
import { MOUNTPOINT, Suite } from "./mxfs_suite.js";

const TARGET = process.env.MXFS_TARGET ?? "tgt";
if (TARGET !== "tgt" && TARGET !== "lio") throw new Error(`MXFS_TARGET=${TARGET}: expected tgt or lio`);
const STRANGER = 3;
const STRANGERS_KEY = "0xdeadbeef";
/** From a death until the survivors work: node_timeout, lease, fencing, and slow machines. */
const EVICTION_MS = 90_000;
/** A fenced node notices at its next look, a heartbeat later; the rest is for slow machines. */
const NOTICE_MS = 20_000;
/** The last whole 4 KiB of the 4 GiB LUN: beyond every allocation group, or free space. */
const SPARE_BLOCK = 4 * 2 ** 30 - 4096;
const FENCING = [
  /mxfs: .*(fenc|evict|lease|reservation|key|error)/i,
  /XFS .*(shut|error|log I\/O)/i,
  /reservation conflict/i,
  /I\/O error, dev (sda|dm-0)/,
];

const suite = new Suite(`mxfs-fence-${TARGET}`, {
  mounted: false,
  nodes: 3,
  memoryMib: 768,
  scratchBytes: 2 ** 29,
  target: TARGET as TargetKind,
});

/** Two nodes mounted; their keys. */
async function mountTwo(): Promise<{ holder: string; member: string }> {
  const { volume } = suite;
  await volume.mkfs(STRANGER);
  await volume.mount(1);
  const [holder = ""] = await volume.keys(STRANGER);
  await volume.mount(2);
  const member = (await volume.keys(STRANGER)).find((key) => key !== holder) ?? "";
  assert.is(await volume.role(1), "holder");
  assert.is(await volume.role(2), "member");
  assert.is((await volume.keys(STRANGER)).length, 2);
  return { holder, member };
}

/** sg_persist of the stranger; a command that meets a unit attention was not executed. */
async function stranger(words: string): Promise<void> {
  await suite.lab.run(
    STRANGER,
    `for i in 1 2 3 4; do sg_persist --out ${words} ${DEVICE} && exit 0; done; exit 1`,
    { timeoutMs: 30_000 },
  );
}

async function preemptFromOutside(victim: string): Promise<void> {
  await stranger(`--register-ignore --param-sark=${STRANGERS_KEY}`);
  await stranger(`--preempt --param-rk=${STRANGERS_KEY} --param-sark=${victim} --prout-type=5`);
}

async function strangerLeaves(): Promise<void> {
  await stranger(`--register --param-rk=${STRANGERS_KEY} --param-sark=0`);
}

async function reservation(): Promise<string> {
  const ask = `for i in 1 2 3; do sg_persist --in --read-reservation ${DEVICE} && exit 0; done; exit 1`;
  return suite.lab.run(STRANGER, ask);
}

async function isFenced(node: number): Promise<void> {
  await until(`node${node} is fenced`, NOTICE_MS, async () =>
    (await suite.volume.kernelState(node))?.state === "fenced" ? true : undefined,
  );
}

/** Every kind of operation, none of them quietly: the name of what is served all the same would be printed. */
async function allFailWithEio(node: number): Promise<void> {
  const result = await suite.lab.exec(
    node,
    `cd / ; f=${MOUNTPOINT}
    for op in "cat $f/seen" "ls $f" "mkdir $f/late" "touch $f/late2" "rm $f/seen" "mv $f/seen $f/moved" \\
      "dd if=/dev/zero of=$f/seen bs=4096 count=1 conv=notrunc" "stat -f $f/seen" "truncate -s 0 $f/seen"; do
      if $op >/tmp/said 2>&1; then echo "served: $op"
      else grep -q 'Input/output error' /tmp/said || { echo "other error: $op"; cat /tmp/said; }; fi
    done`,
    { timeoutMs: EVICTION_MS },
  );
  assert.is(result.stdout, "");
}

suite.proves(
  "A member whose key a stranger takes away notices at once: EIO, the reason in dmesg and log, and it may come back",
  async () => {
    const { lab, volume } = suite;
    const keys = await mountTwo();
    await lab.run(2, `echo seen >${MOUNTPOINT}/seen; sync -f ${MOUNTPOINT}`);
    await preemptFromOutside(keys.member);
    await isFenced(2);
    await allFailWithEio(2);
    assert.match(await volume.work(2, ["raw-write", DEVICE, SPARE_BLOCK]), /^refused /);
    assert.match(lab.console(2), /mxfs: .*fenced, every operation fails with EIO .*: .*(our key|refused)/);
    assert.match(await volume.daemonLog(2), /fenced: this mount is over/);
    await strangerLeaves();
    await lab.run(1, `echo goes on >>${MOUNTPOINT}/seen`, { timeoutMs: EVICTION_MS });
    await volume.umount(2);
    await volume.mount(2);
    assert.is(await lab.run(2, `cat ${MOUNTPOINT}/seen`), "seen\ngoes on\n");
    await volume.umountAll();
    assert.equal(await volume.keys(STRANGER), []);
    await volume.checkXfs(1);
  },
  { expected: FENCING },
);

suite.proves(
  "A holder whose key a stranger takes away shuts its XFS down; when the stranger has left, the member takes over",
  async () => {
    const { lab, volume } = suite;
    const keys = await mountTwo();
    await lab.run(1, `echo seen >${MOUNTPOINT}/seen; sync -f ${MOUNTPOINT}`);
    await preemptFromOutside(keys.holder);
    await isFenced(1);
    await allFailWithEio(1);
    assert.match(await volume.work(1, ["raw-write", DEVICE, SPARE_BLOCK]), /^refused /);
    assert.match(lab.console(1), /XFS \(sda\):.*Shutting down/i);
    await strangerLeaves();
    await lab.run(2, `echo goes on >>${MOUNTPOINT}/seen`, { timeoutMs: EVICTION_MS });
    assert.is(await volume.role(2), "holder");
    await volume.umount(1);
    await volume.mount(1);
    assert.is(await volume.role(1), "member");
    assert.is(await lab.run(1, `cat ${MOUNTPOINT}/seen`), "seen\ngoes on\n");
    await volume.umountAll();
    assert.equal(await volume.keys(STRANGER), []);
    await volume.checkXfs(1);
  },
  { expected: FENCING },
);

suite.proves(
  "A target that restarts and forgets its reservations is armed again under load, and nobody loses the mount",
  async () => {
    const { lab, volume } = suite;
    const keys = await mountTwo();
    await lab.run(1, ["mkdir", `${MOUNTPOINT}/churn`]);
    const load = Promise.all([
      volume.work(1, ["append", `${MOUNTPOINT}/log`, "h", 60]),
      volume.work(2, ["append", `${MOUNTPOINT}/log`, "m", 60]),
    ]);
    load.catch(() => undefined); // awaited below
    await lab.restartTarget();
    await until(
      "both keys are registered and the holder has the reservation again",
      EVICTION_MS,
      async () => {
        const now = await volume.keys(STRANGER);
        const held = (await reservation()).includes(`Key=${keys.holder}`);
        return held && now.includes(keys.holder) && now.includes(keys.member) ? true : undefined;
      },
    );
    assert.match(await volume.work(STRANGER, ["raw-write", DEVICE, SPARE_BLOCK]), /^refused /);
    await load;
    await volume.work(2, ["append-check", `${MOUNTPOINT}/log`, 60, "h", "m"]);
    assert.is(await volume.role(1), "holder");
    assert.is(await volume.role(2), "member");
    assert.match(await volume.daemonLog(1, 60), /the target had lost its reservation: reserved again/);
    assert.match(await volume.daemonLog(2, 60), /the target had lost its reservations: registered again/);
    await volume.umountAll();
    assert.equal(await volume.keys(STRANGER), []);
    await volume.checkXfs(1);
  },
  { expected: FENCING },
);

suite.proves(
  "A target that restarts while a fenced node sleeps is armed again at once, and the sleeper stays out",
  async () => {
    const { lab, volume } = suite;
    const keys = await mountTwo();
    lab.freeze(2);
    await until("the sleeper is fenced", EVICTION_MS, async () =>
      (await volume.keys(STRANGER)).includes(keys.member) ? undefined : true,
    );
    await lab.run(1, `echo after >${MOUNTPOINT}/seen`, { timeoutMs: EVICTION_MS });
    await lab.restartTarget();
    await until("the holder has the reservation again", EVICTION_MS, async () =>
      (await reservation()).includes(`Key=${keys.holder}`) ? true : undefined,
    );
    lab.thaw(2);
    await isFenced(2);
    await allFailWithEio(2);
    assert.match(await volume.work(2, ["raw-write", DEVICE, SPARE_BLOCK]), /^refused /);
    assert.equal(await volume.keys(STRANGER), [keys.holder]);
    await volume.umount(2);
    await volume.mount(2);
    assert.is(await lab.run(2, `cat ${MOUNTPOINT}/seen`), "after\n");
    await volume.umountAll();
    assert.equal(await volume.keys(STRANGER), []);
    await volume.checkXfs(1);
  },
  { expected: FENCING },
);

/** Each writes 64 KiB after 64 KiB straight to a part of the file that is its own, over and over, another text each round. */
const WRITERS = 8;

suite.proves(
  "A node is stopped with writes on their way: it is fenced, and none of them lands when the others have gone on",
  async () => {
    const { lab, volume } = suite;
    const keys = await mountTwo();
    const file = `${MOUNTPOINT}/written`;
    await lab.run(2, `dd if=/dev/zero of=${file} bs=1M count=${WRITERS} conv=fsync 2>&1`);
    const writer = `n=0; while n=$((n + 1)); do
      yes $w.$n | dd of=${file} bs=64k count=16 seek=$((w * 16)) iflag=fullblock oflag=direct conv=notrunc || exit
      : >/tmp/round.$w; done 2>/dev/null`;
    const writers = volume.hold(2, [
      "sh",
      "-c",
      `for w in $(seq 0 ${WRITERS - 1}); do (${writer}) & done; echo ready; read -r line || true; wait`,
    ]);
    assert.is(await writers.first, "ready");
    await lab.run(2, `while [ $(ls /tmp/round.* 2>/dev/null | wc -l) -lt ${WRITERS} ]; do sleep 0.2; done`, {
      timeoutMs: EVICTION_MS,
    });
    lab.freeze(2);
    await until("the sleeper is fenced", EVICTION_MS, async () =>
      (await volume.keys(STRANGER)).includes(keys.member) ? undefined : true,
    );
    // Straight from the disk; answered when the sleeper's locks have passed on.
    const read = `dd if=${file} bs=1M iflag=direct 2>/dev/null | sha256sum`;
    const passed_on = await lab.run(1, read, { timeoutMs: EVICTION_MS });
    lab.thaw(2);
    await isFenced(2);
    assert.match(lab.console(2), /reservation conflict/i);
    assert.is(await lab.run(1, read), passed_on, "a write of the fenced node has landed late");
    const aborted = TARGET === "lio" ? /command="PREEMPT AND ABORT"/ : /may still land for a while/;
    assert.match(await volume.daemonLog(1, 60), aborted);
    await writers.letGo();
    await volume.umount(2);
    await volume.mount(2);
    assert.is(await lab.run(2, read), passed_on);
    await volume.umountAll();
    assert.equal(await volume.keys(STRANGER), []);
    await volume.checkXfs(1);
  },
  { expected: FENCING },
);

suite.proves("A disk without reservations is refused, and the log says why", async () => {
  const { lab, volume } = suite;
  await volume.mkfs(1, "/dev/vda");
  const result = await volume.tryMount(1, "", "/dev/vda");
  assert.is.not(result.status, 0);
  assert.match(result.said, /neither a SCSI disk nor an NVMe namespace nor a multipath map/);
  await lab.run(1, "wipefs -a -q /dev/vda");
});

suite.proves("A LUN that other software has reserved is refused, and left as it is", async () => {
  const { volume } = suite;
  await volume.mkfs(1);
  await stranger(`--register-ignore --param-sark=${STRANGERS_KEY}`);
  await stranger(`--reserve --param-rk=${STRANGERS_KEY} --prout-type=1`);
  const result = await volume.tryMount(1);
  assert.is.not(result.status, 0);
  assert.match(result.said, /reserved by other software/);
  assert.match(await reservation(), new RegExp(`Key=${STRANGERS_KEY}`));
  await strangerLeaves();
  assert.equal(await volume.keys(1), []);
});

/** A map of one path, as multipathd makes it. */
async function makeMap(node: number): Promise<void> {
  await suite.lab.run(
    node,
    `set -e
    modprobe dm-multipath; modprobe dm-round-robin
    sectors=$(blockdev --getsz ${DEVICE})
    dmsetup create mpatha --noudevsync --uuid mpath-lab \\
      --table "0 $sectors multipath 0 0 1 1 round-robin 0 1 1 $(stat -c '%Hr:%Lr' ${DEVICE}) 1000"
    test -b /dev/dm-0`,
    { timeoutMs: 60_000 },
  );
}

async function dropMaps(nodes: readonly number[]): Promise<void> {
  for (const node of nodes) await suite.lab.run(node, "dmsetup remove --noudevsync mpatha");
}

if (TARGET === "lio") {
  suite.proves(
    "Through multipath maps, by the kernel's PR ioctls, two nodes share the LUN and a dead holder is taken over",
    async () => {
      const { lab, volume } = suite;
      await volume.mkfs(1);
      await Promise.all([1, 2].map(makeMap));
      await volume.mount(1, "", "/dev/dm-0");
      await volume.mount(2, "", "/dev/dm-0");
      assert.match(await volume.daemonLog(1, 60), /PR ioctls on every path/);
      assert.is((await volume.keys(STRANGER)).length, 2);
      assert.match(await volume.work(STRANGER, ["raw-write", DEVICE, SPARE_BLOCK]), /^refused /);
      await lab.run(1, `echo seen >${MOUNTPOINT}/seen; sync -f ${MOUNTPOINT}`);
      assert.is(await lab.run(2, `cat ${MOUNTPOINT}/seen`), "seen\n");
      lab.kill(1);
      await lab.run(2, `echo after >>${MOUNTPOINT}/seen`, { timeoutMs: EVICTION_MS });
      assert.is((await volume.kernelState(2, "/dev/dm-0"))?.role, "holder");
      assert.is((await volume.keys(STRANGER)).length, 1);
      await lab.start(1);
      await volume.prepare(1);
      await makeMap(1);
      await volume.mount(1, "", "/dev/dm-0");
      assert.is(await lab.run(1, `cat ${MOUNTPOINT}/seen`), "seen\nafter\n");
      for (const node of [1, 2]) await volume.umount(node);
      await dropMaps([1, 2]);
      assert.equal(await volume.keys(STRANGER), []);
      await volume.checkXfs(2);
    },
    { expected: FENCING },
  );
} else {
  suite.proves("A multipath map over a target without APTPL is refused, and the log says why", async () => {
    const { volume } = suite;
    await volume.mkfs(1);
    await makeMap(1);
    const result = await volume.tryMount(1, "", "/dev/dm-0");
    assert.is.not(result.status, 0);
    assert.match(result.said, /refuses to register a key .*APTPL/);
    await dropMaps([1]);
    assert.equal(await volume.keys(STRANGER), []);
  });
}

/** A master boot record: partitions of `sectors` from each start, of 512 bytes. */
function partitionTable(starts: readonly number[], sectors: number): Buffer {
  const record = Buffer.alloc(512);
  for (const [i, start] of starts.entries()) {
    const at = 446 + 16 * i;
    record.writeUInt8(0x83, at + 4);
    record.writeUInt32LE(start, at + 8);
    record.writeUInt32LE(sectors, at + 12);
  }
  record.writeUInt16LE(0xaa55, 510);
  return record;
}

suite.proves("A second volume on another partition of the LUN is refused, on every node", async () => {
  const { lab, volume } = suite;
  await lab.run(1, `dd of=${DEVICE} bs=512 count=1 conv=fsync 2>&1 && blockdev --rereadpt ${DEVICE}`, {
    stdin: partitionTable([2048, 2099200], 2097152),
  });
  await lab.run(2, ["blockdev", "--rereadpt", DEVICE]);
  for (const part of [1, 2]) await volume.mkfs(1, `${DEVICE}${part}`);
  await volume.mount(1, "", `${DEVICE}1`);
  const keys = await volume.keys(STRANGER);
  await lab.run(1, "mkdir -p /mnt/second");
  for (const [node, at] of [
    [1, "/mnt/second"],
    [2, MOUNTPOINT],
  ] as const) {
    const result = await volume.tryMount(node, "port=7602", `${DEVICE}2`, at);
    assert.is.not(result.status, 0);
    assert.match(result.said, /sda1 .*one mxfs volume per LUN/);
  }
  assert.equal(await volume.keys(STRANGER), keys);
  await volume.mount(2, "", `${DEVICE}1`);
  await lab.run(2, `echo well >${MOUNTPOINT}/seen`);
  await volume.umount(2);
  await volume.umount(1);
  await volume.mount(2, "", `${DEVICE}2`);
  await volume.umount(2);
  await lab.run(
    1,
    `dd if=/dev/zero of=${DEVICE} bs=512 count=1 conv=fsync 2>&1 && blockdev --rereadpt ${DEVICE}`,
    { timeoutMs: 60_000 },
  );
  await lab.run(2, ["blockdev", "--rereadpt", DEVICE]);
});

test.run();
