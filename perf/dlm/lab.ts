// SPDX-License-Identifier: GPL-2.0-only
//
// The rows of `npm run perf:dlm -- --lab`: mxfs and the kernel's own dlm in the same two guests, by the same client
// (locker.c), in turns. The five rows are the classic ones of a distributed lock manager: a new lock and a conversion on
// a resource mastered here; a new lock, a conversion up and one down on a resource mastered by the other node. Every
// resource is held in NL on its master meanwhile, in both systems. And the memory of a daemon that serves a mounted volume.
//
// mxfs: USER locks by the control socket of a mounted volume. The kernel's dlm: libdlm, dlm_controld and corosync as
// Debian has them, without fencing, in a lockspace of its own. Each row twice: in EX, of which mxfs writes a record to the
// shared disk before it tells of the grant (the kernel's dlm has nothing like it), and in PR, of which it writes none.
//
// Weakness: emulated guests are about twelve times slower than a machine, so what costs CPU weighs more than on a network
// of machines; a release and a conversion down are statements in mxfs, and answered by its own daemon. The client's way to
// mxfs is JSON over a socket to a thread of Node.js, that to the dlm a device of its own kernel: the locks of the file
// system itself do not go that way.

import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Holding, Lab, Volume } from "../../lab/volume.js";
import { hashResource } from "../../src/dlm/resource.js";
import { masterOf, sortedNodes } from "../../src/dlm/view.js";
import { parseResource } from "../../src/main/resource_name.js";
import { startKernelDlm } from "../kernel_dlm.js";

const NAMES = 100;
const LOCKER = "/usr/local/bin/perf-locker";
const MEMORY = "/usr/local/bin/perf-memory";
const SOCKET = "/var/run/mxfsd.sock";
const LOCKSPACE = "perf";
const START_MS = 60_000;

const CLASSIC = [
  "new local",
  "local convert",
  "remote up-convert",
  "remote down-convert",
  "new with remote master",
] as const;
/** What the client is told to do (locker.c), and what that is about. */
const KINDS = { write: "EX", read: "PR" } as const;
type Kind = keyof typeof KINDS;
export const LAB_ROWS = (["write", "read"] as const).flatMap((kind) =>
  CLASSIC.map((row) => `${row}, ${KINDS[kind]}` as const),
);
type LabRow = (typeof LAB_ROWS)[number];
type System = "mxfs" | "dlm";

export interface LabFigures {
  /** Microseconds, of one round: the median of NAMES operations. */
  note(row: LabRow, system: System, us: number): void;
  /** MiB of node 1's daemon as it serves a mounted volume: resident, and of that its lock table. */
  memory(residentMib: number, tableMib: number): void;
  say(line: string): void;
}

/** Device nodes are udev's work, and guests have none: lockspaces that are made later are in /proc/misc. */
const MAKE_NODES = `setsid sh -c 'while :; do while read minor name; do case $name in dlm*) [ -e /dev/misc/$name ] ||
  mknod /dev/misc/$name c 10 $minor;; esac; done </proc/misc; sleep 0.3; done' >/dev/null 2>&1 </dev/null &`;

/** @throws when a guest, mxfs or the kernel's dlm does not start. */
export async function labRows(
  rounds: number,
  withDlm: boolean,
  folder: string,
  memoryTool: string,
  figures: LabFigures,
): Promise<void> {
  const locker = join(folder, "locker");
  const source = join(import.meta.dirname, "..", "..", "..", "perf", "dlm", "locker.c");
  execFileSync("gcc", ["-O2", "-Wall", "-Wextra", "-o", locker, source], { stdio: "inherit" });
  const lab = await Lab.up({
    name: process.env.MXFS_LAB ?? "perf-dlm",
    nodes: 2,
    ephemeral: true,
    replace: true,
    log: figures.say,
  });
  try {
    const volume = new Volume(lab);
    await volume.prepareAll();
    await volume.mkfs();
    await volume.mountAll();
    for (const node of volume.nodes) {
      await lab.put(node, locker, LOCKER);
      await lab.put(node, memoryTool, MEMORY);
      await lab.run(node, `chmod 755 ${LOCKER} ${MEMORY}`);
    }
    const names = await namesByMaster(volume);
    const { pid } = await volume.status(1);
    const kib = (await lab.run(1, [MEMORY, String(pid)])).trim().split(" ").map(Number);
    figures.memory((kib[0] ?? 0) / 1024, (kib[1] ?? 0) / 1024);
    if (withDlm) {
      figures.say("corosync and dlm_controld");
      await startKernelDlm(lab, "perf");
      await Promise.all(volume.nodes.map((node) => lab.run(node, MAKE_NODES)));
    }
    const systems: readonly System[] = withDlm ? ["mxfs", "dlm"] : ["mxfs"];
    for (const [index, list] of names.entries()) {
      for (const node of volume.nodes) {
        const file = join(folder, `names-${index + 1}`);
        writeFileSync(file, `${list.join("\n")}\n\n`);
        await lab.put(node, file, `/tmp/names-${index + 1}`);
      }
    }
    // The kernel's dlm makes who comes first the master.
    const holders: Holding[] = [];
    for (const master of [1, 2]) {
      for (const system of systems) {
        figures.say(`${system}: node ${master} holds ${NAMES} locks`);
        holders.push(await hold(volume, system, master));
      }
    }
    for (let round = 0; round < rounds; round++) {
      for (const system of round % 2 === 0 ? systems : systems.toReversed()) {
        for (const kind of ["write", "read"] as const) {
          const [newLocal, localUp] = await measure(lab, system, kind, 1);
          const [newRemote, remoteUp, remoteDown] = await measure(lab, system, kind, 2);
          const all = [newLocal, localUp, remoteUp, remoteDown, newRemote];
          CLASSIC.forEach((row, index) => {
            figures.note(`${row}, ${KINDS[kind]}`, system, all[index] ?? Number.NaN);
          });
          const text = all.map((us) => us?.toFixed(0)).join(" ");
          figures.say(`lab, round ${round + 1}, ${system}, ${KINDS[kind]}: ${text} us`);
        }
      }
    }
    await Promise.all(holders.map((holder) => holder.letGo()));
  } finally {
    lab.down();
  }
}

function command(system: System, what: "hold" | Kind): string {
  return `${LOCKER} ${system} ${system === "mxfs" ? SOCKET : LOCKSPACE} ${what}`;
}

async function hold(volume: Volume, system: System, master: number): Promise<Holding> {
  const script = `(cat /tmp/names-${master}; cat) | ${command(system, "hold")}`;
  const holding = volume.hold(master, ["sh", "-c", script]);
  await holding.first;
  return holding;
}

/** On node 1, resources mastered by `master`. @returns medians of a new lock, a conversion up, one down. */
async function measure(lab: Lab, system: System, kind: Kind, master: number): Promise<number[]> {
  const text = await lab.run(1, `${command(system, kind)} </tmp/names-${master}`, {
    timeoutMs: 3 * START_MS,
  });
  return text.trim().split(" ").map(Number);
}

/** Names whose resources node 1, and node 2, are masters of. */
async function namesByMaster(volume: Volume): Promise<string[][]> {
  const [first, second] = await Promise.all([volume.status(1), volume.status(2)]);
  const node = (status: Record<string, unknown>): number => Number.parseInt(String(status.node), 16);
  const view = sortedNodes([node(first), node(second)]);
  const id = BigInt(`0x${String(first.volume)}`);
  const lists = [first, second].map(() => [] as string[]);
  for (let index = 0; lists.some((list) => list.length < NAMES); index++) {
    const name = `perf${index}`;
    const master = masterOf(view, hashResource({ volume: id, ...parseResource(name) }));
    const list = lists[master === node(first) ? 0 : 1];
    if (list !== undefined && list.length < NAMES) list.push(name);
  }
  return lists;
}
