// SPDX-License-Identifier: GPL-2.0-only
//
// The lines of the demo: each does something with the shared volume, checks it from the other machine, and answers
// with one sentence of detail. A check that does not hold throws.
//
// Weakness: figures are one short round; `npm run perf` takes medians of several.

import { FIGURES, type Figures, figureTable, fio, measure, SIZE_SHORT } from "../perf/figures.js";
import { Field } from "./field.js";
import type { Lab } from "./lab.js";
import { DEVICE, MOUNTPOINT, until, type Volume, VolumeError } from "./volume.js";

const TREE_FILES = 2000;
const TREE_JOBS = 8;
const CHURN_NAMES = 80;
const APPENDS = 400;
const MMAP_TURNS = 10;
const FIO_MIB = 4;

export interface DemoState {
  readonly lab: Lab;
  readonly volume: Volume;
  /** Printed before the table of lines. */
  readonly tables: string[];
  raw: Figures | undefined;
}

export interface DemoLine {
  readonly title: string;
  /** Without it the following lines make no sense. */
  readonly foundation?: boolean;
  /** Tried even after a foundation failed. */
  readonly always?: boolean;
  run(state: DemoState): Promise<string>;
}

function expectEqual(what: string, found: unknown, expected: unknown): void {
  if (found !== expected) {
    throw new VolumeError(
      `${what}: expected ${JSON.stringify(expected)}, found ${JSON.stringify(found)}`.slice(0, 600),
    );
  }
}

function seconds(sinceMs: number): string {
  return `${((Date.now() - sinceMs) / 1000).toFixed(1)} s`;
}

async function rawFigures(state: DemoState): Promise<string> {
  const { lab, volume } = state;
  await volume.prepareAll();
  await volume.mkfs();
  await lab.run(1, `mount -t xfs ${DEVICE} ${MOUNTPOINT}`);
  state.raw = await measure(lab, 1, MOUNTPOINT, SIZE_SHORT);
  await lab.run(1, `umount ${MOUNTPOINT}`);
  return `sequential write ${state.raw.seqWrite.toFixed(0)} MiB/s, ${state.raw.create.toFixed(0)} creates per s`;
}

async function mountBoth({ volume }: DemoState): Promise<string> {
  await volume.mkfs();
  const began = Date.now();
  await volume.mount(1);
  const first = seconds(began);
  const second = Date.now();
  await volume.mount(2);
  const took = seconds(second);
  const { holder, member } = await volume.roles();
  const views = await Promise.all([holder, member].map((node) => volume.status(node)));
  expectEqual("roles that mxfs_lock status tells", views.map((view) => view.role).join(), "holder,member");
  expectEqual("epochs of both", views[1]?.epoch, views[0]?.epoch);
  return `node${holder} is the holder (${first}), node${member} a member (${took}), epoch ${views[0]?.epoch}`;
}

async function tree({ volume }: DemoState): Promise<string> {
  const began = Date.now();
  await volume.work(1, ["tree-make", `${MOUNTPOINT}/tree`, TREE_FILES, 7, TREE_JOBS]);
  const made = seconds(began);
  const check = Date.now();
  const there = await volume.work(2, ["tree-check", `${MOUNTPOINT}/tree`, TREE_FILES, 7, TREE_JOBS]);
  const checked = seconds(check);
  const here = await volume.work(1, ["tree-check", `${MOUNTPOINT}/tree`, TREE_FILES, 7, TREE_JOBS]);
  expectEqual("checksums of both nodes", there, here);
  return `made in ${made}, ${there.trim()} on node2 in ${checked}`;
}

async function churn({ lab, volume }: DemoState): Promise<string> {
  const dir = `${MOUNTPOINT}/churn`;
  await lab.run(1, ["mkdir", dir]);
  await Promise.all([1, 2].map((node) => volume.work(node, ["churn", dir, `n${node}`, CHURN_NAMES])));
  const [one, two] = await Promise.all([1, 2].map((node) => lab.run(node, `ls -1A ${dir}`)));
  expectEqual("listings of both nodes", two, one);
  const left = (one ?? "").split("\n").filter(Boolean).length;
  expectEqual("names left", left, 2 * (Math.ceil(CHURN_NAMES / 4) + Math.ceil(CHURN_NAMES / 8)));
  return `${2 * CHURN_NAMES} names made, renamed and mostly removed, the same ${left} left on both`;
}

async function append({ volume }: DemoState): Promise<string> {
  const file = `${MOUNTPOINT}/appended`;
  const began = Date.now();
  await Promise.all([1, 2].map((node) => volume.work(node, ["append", file, `n${node}`, APPENDS])));
  const took = seconds(began);
  await Promise.all([1, 2].map((node) => volume.work(node, ["append-check", file, APPENDS, "n1", "n2"])));
  return `${2 * APPENDS} records of 64 bytes in ${took}, every one whole and in order`;
}

async function attributes({ lab }: DemoState): Promise<string> {
  const file = `${MOUNTPOINT}/attributes`;
  await lab.run(1, `echo hello >${file}`);
  let seen = 0;
  for (const [size, mode] of [
    [12_345, "4711"],
    [0, "600"],
    [1_000_000, "664"],
    [17, "1640"],
  ] as const) {
    const [from, to] = seen % 2 === 0 ? [1, 2] : [2, 1];
    await lab.run(from, `truncate -s ${size} ${file} && chmod ${mode} ${file}`);
    const found = await lab.run(to, ["stat", "-c", "%s %a", file]);
    expectEqual(
      `stat on node${to} right after truncate and chmod on node${from}`,
      found,
      `${size} ${mode}\n`,
    );
    seen++;
  }
  return `${seen} changes, each seen by the next stat on the other node`;
}

async function sharedMapping({ lab, volume }: DemoState): Promise<string> {
  const file = `${MOUNTPOINT}/mapped`;
  await lab.run(1, `truncate -s 8192 ${file}`);
  const seen = volume.work(2, ["mmap-wait", file, 4104, 4711, 30]);
  await Promise.all([seen, volume.work(1, ["mmap-set", file, 4104, 4711])]);
  const began = Date.now();
  await Promise.all([
    volume.work(1, ["mmap-turns", file, 0, MMAP_TURNS, 60]),
    volume.work(2, ["mmap-turns", file, 1, MMAP_TURNS, 60]),
  ]);
  const total = await lab.run(1, `od -An -tu8 -N8 ${file}`);
  expectEqual("word after the turns", total.trim(), String(2 * MMAP_TURNS));
  return `a word set on node1 seen on node2; ${2 * MMAP_TURNS} strict turns through mappings in ${seconds(began)}`;
}

async function lockContention({ lab, volume }: DemoState): Promise<string> {
  const holding = volume.hold(1, ["mxfs_lock", "lock", "demo", "EX"]);
  expectEqual("mxfs_lock on node1", await holding.first, "granted EX demo");
  const busy = await lab.exec(2, ["mxfs_lock", "lock", "demo", "EX", "--noqueue"]);
  expectEqual("status of mxfs_lock --noqueue on node2 while node1 holds the lock", busy.status, 1);
  const waiting = volume.hold(2, ["mxfs_lock", "lock", "demo", "EX"]);
  const early = await Promise.race([
    waiting.first,
    lab.run(1, ["mxfs_lock", "dump", "--resource", "demo"]).then(() => "still waiting"),
  ]);
  expectEqual("node2 while node1 holds the lock", early, "still waiting");
  const began = Date.now();
  await lab.run(1, ["mxfs_lock", "unlock", "demo"]);
  expectEqual("mxfs_lock on node2 after the unlock on node1", await waiting.first, "granted EX demo");
  const took = seconds(began);
  await lab.run(2, ["mxfs_lock", "unlock", "demo"]);
  await Promise.all([holding.command.done, waiting.command.done]);
  return `refused with --noqueue; the waiting one had it ${took} after the unlock command was started`;
}

async function fioVerify({ lab }: DemoState): Promise<string> {
  const verify = ["--bs=16k", "--verify=crc32c", "--verify_fatal=1"];
  await Promise.all(
    [1, 2].map((node) =>
      fio(lab, node, [
        ...verify,
        `--filename=${MOUNTPOINT}/fio${node}`,
        `--size=${FIO_MIB}m`,
        "--rw=randwrite",
      ]),
    ),
  );
  const shared = (half: number, extra: readonly string[]): string[] => [
    ...verify,
    `--filename=${MOUNTPOINT}/fio-shared`,
    `--offset=${half * FIO_MIB}m`,
    `--size=${FIO_MIB}m`,
    "--rw=write",
    ...extra,
  ];
  await lab.run(1, `truncate -s ${2 * FIO_MIB}m ${MOUNTPOINT}/fio-shared`);
  await Promise.all([fio(lab, 1, shared(0, [])), fio(lab, 2, shared(1, []))]);
  await Promise.all([fio(lab, 1, shared(1, ["--verify_only"])), fio(lab, 2, shared(0, ["--verify_only"]))]);
  return `${FIO_MIB} MiB each verified; the halves of one file, verified by the other node`;
}

async function xfsRefused({ lab, volume }: DemoState): Promise<string> {
  await lab.run(1, "mkdir -p /mnt/xfs");
  await lab.run(2, "mkdir -p /mnt/xfs");
  const said: string[] = [];
  for (const node of [1, 2]) {
    const result = await lab.exec(node, `mount -t xfs ${DEVICE} /mnt/xfs`);
    if (result.status === 0) {
      await lab.run(node, "umount /mnt/xfs");
      throw new VolumeError(
        `node${node} (${await volume.role(node)}): mount -t xfs beside mxfs: expected a refusal, it was mounted`,
      );
    }
    said.push(
      `node${node}: ${result.stderr
        .trim()
        .split("\n")[0]
        ?.replace(/^mount: \S+ /, "")}`,
    );
  }
  return said.join("; ");
}

async function memberLeaves({ lab, volume }: DemoState): Promise<string> {
  const { holder, member } = await volume.roles();
  const began = Date.now();
  await volume.umount(member);
  const left = seconds(began);
  await lab.run(holder, `echo alone >${MOUNTPOINT}/alone && sync -f ${MOUNTPOINT}`);
  const again = Date.now();
  await volume.mount(member);
  expectEqual("what the holder wrote meanwhile", await lab.run(member, `cat ${MOUNTPOINT}/alone`), "alone\n");
  expectEqual(`role of node${member}`, await volume.role(member), "member");
  return `node${member} left in ${left}, was back in ${seconds(again)}`;
}

async function holderLeaves({ lab, volume }: DemoState): Promise<string> {
  const { holder, member } = await volume.roles();
  const file = `${MOUNTPOINT}/handover`;
  const load = volume.work(member, ["append", file, "m", 2 * APPENDS]);
  load.catch(() => undefined); // awaited below
  await until(`${file} appears`, 20_000, async () =>
    (await lab.exec(member, ["test", "-s", file])).status === 0 ? true : undefined,
  );
  const began = Date.now();
  await volume.umount(holder);
  const took = seconds(began);
  expectEqual(`role of node${member}`, await volume.role(member), "holder");
  await load;
  await volume.work(member, ["append-check", file, 2 * APPENDS, "m"]);
  await volume.work(member, ["tree-check", `${MOUNTPOINT}/tree`, TREE_FILES, 7, TREE_JOBS]);
  await volume.mount(holder);
  expectEqual(`role of node${holder}`, await volume.role(holder), "member");
  await volume.work(holder, ["append-check", file, 2 * APPENDS, "m"]);
  return `handed over to node${member} in ${took} while it appended; node${holder} is back as a member`;
}

async function mxfsFigures(state: DemoState): Promise<string> {
  if (state.raw === undefined) {
    throw new VolumeError("no figures of raw XFS to compare with");
  }
  const { lab, volume } = state;
  const { holder, member } = await volume.roles();
  const dir = (role: string): string => `${MOUNTPOINT}/figures-${role}`;
  const holderFigures = await measure(lab, holder, dir("holder"), SIZE_SHORT);
  const memberFigures = await measure(lab, member, dir("member"), SIZE_SHORT);
  state.tables.push(
    figureTable(state.raw, [
      ["holder", holderFigures],
      ["member", memberFigures],
    ]),
  );
  return `${FIGURES.length} figures of the holder (node${holder}) and the member (node${member}), see above`;
}

/** Both nodes work; the holder's power is cut; the other goes on, and a checker out here knows what it was promised. */
async function powerCut({ lab, volume }: DemoState): Promise<string> {
  const { holder, member } = await volume.roles();
  const field = new Field(volume, { directory: `${MOUNTPOINT}/powercut` });
  for (const node of [holder, member]) await field.load.start(node);
  await field.load.progress([holder, member], 60_000);
  await field.settle();
  const held = volume.hold(member, ["mxfs-work", "hold", `${MOUNTPOINT}/powercut-lock`, "flock"]);
  expectEqual("flock on the member", await held.first, "held");
  const waited = await field.kill(holder);
  expectEqual(`role of node${member}`, await volume.role(member), "holder");
  expectEqual("failed operations", field.load.failuresOf([member]).join(), "");
  const phases = recoveryPhases((await volume.status(member)).lastRecovery);
  await field.load.stopAll();
  await field.load.verify([member]);
  const began = Date.now();
  await lab.start(holder);
  await volume.prepare(holder);
  await volume.mount(holder);
  expectEqual(`role of node${holder}`, await volume.role(holder), "member");
  const lock = await volume.work(holder, ["try-lock", `${MOUNTPOINT}/powercut-lock`, "flock"]);
  expectEqual("the survivor's flock, as the other sees it", lock, "busy\n");
  expectEqual("status of who held it", await held.letGo(), 0);
  return (
    `node${member} went on after ${(waited / 1000).toFixed(1)} s (${phases}), all ${field.load.ledger.operations} ` +
    `acknowledged operations are there; node${holder} was back in ${seconds(began)}`
  );
}

function recoveryPhases(report: unknown): string {
  if (typeof report !== "object" || report === null) return "phases unknown";
  const ms = (name: string): number => Number((report as Record<string, unknown>)[name]);
  const rest = ms("electMs") + ms("leaseMs") + ms("fenceMs") + ms("headerMs") + ms("viewMs");
  return `silence ${ms("silentMs")} ms, log replay ${ms("mountMs")} ms, the rest ${rest} ms`;
}

async function unmountAll({ volume }: DemoState): Promise<string> {
  await volume.umountAll();
  await volume.checkXfs(1);
  const keys = await volume.keys(1);
  expectEqual("registered keys after the last unmount", keys.join(" "), "");
  await Promise.all([1, 2].map((node) => volume.lab.run(node, "rmmod mxfs")));
  return "xfs_repair -n finds nothing, no key is left on the disk, the modules are unloaded";
}

async function kernelLogs({ volume }: DemoState): Promise<string> {
  volume.checkKernelLogs();
  return "no warning, no error on either node";
}

export const LINES: readonly DemoLine[] = [
  { title: "raw XFS, for comparison", foundation: true, run: rawFigures },
  { title: "mkfs.xfs, then mount -t mxfs on both nodes", foundation: true, run: mountBoth },
  { title: `${TREE_FILES} files written on node1, read on node2`, run: tree },
  { title: "create, rename, remove in one directory from both", run: churn },
  { title: "append to one file from both", run: append },
  { title: "size and mode changes seen at once", run: attributes },
  { title: "shared mmap seen on the other node", run: sharedMapping },
  { title: "EX contention with mxfs_lock", run: lockContention },
  { title: "fio with verify, own files and one shared", run: fioVerify },
  { title: "mount -t xfs beside mxfs is refused", run: xfsRefused },
  { title: "the member unmounts and comes back", run: memberLeaves },
  { title: "the holder unmounts, the member takes over", run: holderLeaves },
  { title: "figures beside raw XFS", run: mxfsFigures },
  { title: "the holder's power is cut, the member takes over", run: powerCut },
  { title: "unmount, xfs_repair -n", run: unmountAll },
  { title: "kernel logs", always: true, run: kernelLogs },
];
