// SPDX-License-Identifier: GPL-2.0-only
//
// The rows of `npm run perf:dlm` that need whole daemons: three lock services without a mount, each in a network
// namespace of its own, over one loop device; real processes, real TCP.
//
// memory        resident memory of a daemon that has joined, and how much of it is its lock table (memory.c)
// view change   100,000 locks are held (a tenth of them EX, the others PR) by clients of two daemons when the third is
//               killed with SIGKILL: from the coordinator's notice of its death to the last survivor's commit, by their
//               logs, which are written on one clock. Before that the node timeout runs, which is a setting.
//
// Afterwards a twentieth of the locks is asked for in EX, without queueing, from the other node: what a view change lost
// would be granted, and that is an error, not a better figure.
//
// Weakness: three daemons on the processors of one host; what a mounted volume does besides (fencing, the kernel's dump,
// lock records) is not in it.

import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { run } from "../../lab/host.js";
import { ControlConnection, ControlError, isObject } from "../../src/main/control.js";
import { LockMode } from "../../src/wire/abi.js";

const ROOT = join(import.meta.dirname, "..", "..", "..");
const MXFSD = join(ROOT, "dist", "daemon", "mxfsd.js");
const NODES = [1, 2, 3] as const;
type Node = (typeof NODES)[number];
const LOCK_COUNT = 100_000;
const LOCKS_PER_CLIENT = 4_000;
const ASKED_AT_ONCE = 500;
const EX_EVERY = 10;
const START_MS = 60_000;
const POLL_MS = 50;
const TIMING = "heartbeat_ms = 500\nrenew_ms = 500\nlease_ms = 2500\nnode_timeout_ms = 6000\n";

export interface ServiceFigures {
  /** MiB of a daemon: resident, and of that its lock table. */
  memory(residentMib: number, tableMib: number): void;
  /** Milliseconds of a view change with LOCK_COUNT locks held. */
  viewChange(ms: number): void;
  say(line: string): void;
}

const CHECK_EVERY = 20;

class Cluster {
  readonly #dir = mkdtempSync("/tmp/mxfs-perf-service-");
  readonly #tag = `mxp${process.pid}`;
  readonly #daemons = new Map<Node, ChildProcess>();
  readonly #spaces: string[] = [];
  #device = "";

  open(): void {
    const image = join(this.#dir, "image");
    run("truncate", ["-s", "320M", image]);
    run("mkfs.xfs", ["-q", "-f", image]);
    this.#device = run("losetup", ["-f", "--show", image]).trim();
    const hub = this.#space("hub");
    run("ip", ["-n", hub, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
    run("ip", ["-n", hub, "link", "set", "br0", "up"]);
    for (const node of NODES) {
      const own = this.#space(String(node));
      const cable = ["link", "add", "mx0", "netns", own, "type", "veth", "peer", "name", `mx${node}`];
      run("ip", [...cable, "netns", hub]);
      run("ip", ["-n", hub, "link", "set", `mx${node}`, "master", "br0", "up"]);
      run("ip", ["-n", own, "addr", "add", `10.98.0.${node}/24`, "dev", "mx0"]);
      run("ip", ["-n", own, "link", "set", "mx0", "up"]);
      run("ip", ["-n", own, "link", "set", "lo", "up"]);
      const home = this.#home(node);
      mkdirSync(join(home, "run"), { recursive: true });
      const files = `uuid_file = ${home}/uuid\nincarnation_file = ${home}/incarnation\n`;
      const logging = `[logging]\nfile = ${this.#log(node)}\nsyslog = no\n`;
      writeFileSync(join(home, "conf"), `[node]\niface = mx0\n${files}[timing]\n${TIMING}${logging}`);
    }
  }

  #space(name: string): string {
    const space = `${this.#tag}-${name}`;
    run("ip", ["netns", "add", space]);
    this.#spaces.push(space);
    return space;
  }

  #home(node: Node): string {
    return join(this.#dir, String(node));
  }

  #log(node: Node): string {
    return join(this.#home(node), "log");
  }

  /** Resolves when it is in a view. */
  async start(node: Node): Promise<void> {
    const home = this.#home(node);
    const from = this.logLength(node);
    // /run is the node's own, so that the control sockets of all have their usual names.
    const script =
      `mount --bind ${home}/run /run && ` +
      `exec ${process.execPath} ${MXFSD} start ${this.#device} --config ${home}/conf --foreground`;
    const space = `--net=/run/netns/${this.#tag}-${node}`;
    const daemon = spawn("nsenter", [space, "unshare", "-m", "sh", "-c", script], { stdio: "ignore" });
    this.#daemons.set(node, daemon);
    await this.line(node, /lease: started /, from, START_MS);
  }

  /** nsenter, unshare and sh have each become the next: it is the daemon's own. */
  pid(node: Node): number {
    return this.#daemons.get(node)?.pid ?? 0;
  }

  kill(node: Node): void {
    this.#daemons.get(node)?.kill("SIGKILL");
    this.#daemons.delete(node);
  }

  async connect(node: Node): Promise<ControlConnection> {
    const folder = join(this.#home(node), "run", "mxfs");
    const name = readdirSync(folder).find((each) => each.endsWith(".sock"));
    return await ControlConnection.connect(join(folder, name ?? "missing"));
  }

  logLength(node: Node): number {
    try {
      return readFileSync(this.#log(node), "utf8").length;
    } catch {
      return 0; // it has not started yet
    }
  }

  /** Waits for a line behind `from` in a node's log. @returns the line. */
  async line(node: Node, pattern: RegExp, from: number, timeoutMs: number): Promise<string> {
    for (const end = Date.now() + timeoutMs; ; await pause(POLL_MS)) {
      const text = this.logLength(node) === 0 ? "" : readFileSync(this.#log(node), "utf8").slice(from);
      const found = text.split("\n").find((line) => pattern.test(line));
      if (found !== undefined) {
        return found;
      }
      if (Date.now() > end) {
        throw new Error(
          `daemon ${node} did not say ${pattern} within ${timeoutMs / 1000} s:\n${text.slice(-2000)}`,
        );
      }
    }
  }

  close(): void {
    for (const node of NODES) {
      this.kill(node);
    }
    for (const space of this.#spaces) {
      run("ip", ["netns", "del", space]);
    }
    if (this.#device !== "") {
      run("losetup", ["-d", this.#device]);
    }
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

/** When a log line was written, milliseconds. */
function timeOf(line: string): number {
  return Date.parse(line.split(" ")[0] ?? "");
}

/** Does `work` on all, ASKED_AT_ONCE of them unanswered at a time. */
async function inPortions<T, R>(all: readonly T[], work: (one: T) => Promise<R>): Promise<R[]> {
  const done: R[] = [];
  for (let from = 0; from < all.length; from += ASKED_AT_ONCE) {
    done.push(...(await Promise.all(all.slice(from, from + ASKED_AT_ONCE).map(work))));
  }
  return done;
}

/** Takes locks number [first, first + count) on a node. @returns the connections that own them. */
async function holdLocks(
  cluster: Cluster,
  node: Node,
  first: number,
  count: number,
): Promise<ControlConnection[]> {
  const owners: ControlConnection[] = [];
  for (let from = first; from < first + count; from += LOCKS_PER_CLIENT) {
    const owner = await cluster.connect(node);
    const numbers = Array.from(
      { length: Math.min(LOCKS_PER_CLIENT, first + count - from) },
      (_, i) => from + i,
    );
    await inPortions(numbers, (number) =>
      owner.request("lock", {
        resource: `user:${number}`,
        mode: number % EX_EVERY === 0 ? LockMode.EX : LockMode.PR,
      }),
    );
    owners.push(owner);
  }
  return owners;
}

/** @throws when a lock of [first, first + count) is not held any more, as seen from `node`. */
async function checkHeld(cluster: Cluster, node: Node, first: number, count: number): Promise<void> {
  const asker = await cluster.connect(node);
  const numbers = Array.from(
    { length: count / CHECK_EVERY },
    (_, i) => first + i * CHECK_EVERY + (i % CHECK_EVERY),
  );
  await inPortions(numbers, async (number) => {
    const granted = await asker
      .request("lock", { resource: `user:${number}`, mode: LockMode.EX, noqueue: true })
      .catch((error: unknown) => {
        if (error instanceof ControlError && error.errno === "EAGAIN") {
          return null;
        }
        throw error;
      });
    if (granted !== null) {
      throw new Error(`lock ${number} was lost in the view change: another node got it in EX`);
    }
  });
  asker.close();
}

/** The coordinator's node, of those that run. */
async function coordinator(cluster: Cluster): Promise<Node> {
  for (const node of NODES) {
    const connection = await cluster.connect(node);
    const { status } = await connection.request("status");
    connection.close();
    if (isObject(status) && status.role === "holder") {
      return node;
    }
  }
  throw new Error("no daemon says that it is the coordinator");
}

/** @param memoryTool the built memory.c. @throws when a daemon does not start, or a lock is lost. */
export async function serviceRows(
  rounds: number,
  memoryTool: string,
  figures: ServiceFigures,
): Promise<void> {
  const cluster = new Cluster();
  // A run that is interrupted leaves nothing either.
  const close = (): void => cluster.close();
  process.once("exit", close);
  try {
    cluster.open();
    for (const node of NODES) {
      await cluster.start(node);
    }
    const head = await coordinator(cluster);
    const [other, victim] = NODES.filter((node) => node !== head) as [Node, Node];
    const [resident = 0, table = 0] = run(memoryTool, [String(cluster.pid(other))])
      .trim()
      .split(" ")
      .map(Number);
    figures.memory(resident / 1024, table / 1024);
    figures.say(`${LOCK_COUNT} locks`);
    const owners = [
      ...(await holdLocks(cluster, head, 0, LOCK_COUNT / 2)),
      ...(await holdLocks(cluster, other, LOCK_COUNT / 2, LOCK_COUNT / 2)),
    ];
    for (let round = 0; round < rounds; round++) {
      const from = new Map([head, other].map((node) => [node, cluster.logLength(node)]));
      const after = (node: Node, pattern: RegExp): Promise<string> =>
        cluster.line(node, pattern, from.get(node) ?? 0, START_MS);
      cluster.kill(victim);
      const notice = await after(head, /evicting a node/);
      const done = await after(head, /view change done/);
      const commits = await Promise.all([head, other].map((node) => after(node, /view committed/)));
      figures.viewChange(Math.max(...commits.map(timeOf)) - timeOf(notice));
      figures.say(done.replace(/^.*view change done/, "view change"));
      await checkHeld(cluster, other, 0, LOCK_COUNT / 2);
      await checkHeld(cluster, head, LOCK_COUNT / 2, LOCK_COUNT / 2);
      if (round + 1 < rounds) {
        await cluster.start(victim);
      }
    }
    for (const owner of owners) {
      owner.close();
    }
  } finally {
    process.off("exit", close);
    cluster.close();
  }
}
