// SPDX-License-Identifier: GPL-2.0-only
//
// MXFS in a lab: the module loaded, a volume made and mounted, roles asked for, kernel logs watched. What the
// demo, the lab tests and the perf harness have in common.
//
// Kernel logs are read from the consoles, which the lab keeps on the host over all boots: a guest that hangs or is
// switched off cannot hide what it said. `checkKernelLogs` throws for anything new that looks like trouble.
//
// Weakness: which node is the holder is a snapshot, and the caller must know that nothing moves it meanwhile.

import { setTimeout as delay } from "node:timers/promises";
import { patience } from "./guest.js";
import { type Command, type ExecOptions, Lab, type NodeName, PROJECT_DIR } from "./lab.js";

export const MOUNTPOINT = "/mnt/shared";
export const DEVICE = "/dev/sda";
export const WORK = "/usr/local/bin/mxfs-work";
export const FSX = "/usr/local/bin/mxfs-fsx";
/** A crash with its registers and its stack. */
const STORY_LINES = 45;
const STORY_END_LINES = 15;

export type Role = "holder" | "member";

/** What no kernel log of a healthy run has. Most of it only the debug kernel can say. */
const TROUBLE: readonly RegExp[] = [
  /WARNING:/,
  /\bBUG\b/,
  /INFO: (task|rcu|trying|possible|suspicious|lockdep|inconsistent)/,
  /\bOops\b/,
  /general protection fault/,
  /unable to handle/i,
  /Kernel panic/,
  /Call Trace:/,
  /refcount_t:/,
  /\bKASAN\b/,
  /soft lockup|hard LOCKUP/,
  /kmemleak/,
  /XFS \([^)]*\): .*(error|corrupt|shut ?down|failed)/i,
  /\bmxfs: .*\b(error|corrupt)/i,
  /mxfs_inode.*remaining|Objects remaining in mxfs/i,
  /VFS: Busy inodes/,
  /Assertion failed/,
  /ODEBUG:/,
  /double free|list_(add|del) corruption/,
];

/** Whether a line of a kernel's log is one that no healthy run has. */
export function isTrouble(line: string): boolean {
  return TROUBLE.some((rule) => rule.test(line));
}

/** What kmemleak is asked for: everything is told, then twice a scan (what is seen once may be on its way). */
const LEAK_SCAN = `
  file=/sys/kernel/debug/kmemleak
  test -e $file || { echo "no kmemleak in this kernel" >&2; exit 1; }
  echo scan >$file && sleep 6 && echo scan >$file && cat $file`;

/** What a node that is thrown out says, rightly. */
export const FENCING_SAYS: readonly RegExp[] = [
  /mxfs: .*(fenc|evict|lease|reservation|key|error)/i,
  /XFS .*(shut|error|log I\/O|log mount failed)/i,
  /reservation conflict/i,
];

function counterOf(counters: ReadonlyMap<string, number>, node: NodeName, name: string): number {
  const value = counters.get(name);
  if (value === undefined || Number.isNaN(value)) {
    throw new VolumeError(`node${node}: the kernel has no counter ${name}`);
  }
  return value;
}

/** An expectation that did not hold; the message says what was expected and what was found. */
export class VolumeError extends Error {
  override name = "VolumeError";
}

/** One word for a POSIX shell. */
export function quote(word: string): string {
  return /^[A-Za-z0-9_/.:=@%+,-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/**
 * Asks until the answer is not undefined. There is no event to wait for in another machine's state. Slow guests get
 * more time (`patience`).
 */
export async function until<T>(
  what: string,
  timeoutMs: number,
  ask: () => Promise<T | undefined>,
  everyMs = 300,
): Promise<T> {
  const limitMs = timeoutMs * patience();
  const deadline = Date.now() + limitMs;
  for (;;) {
    const answer = await ask();
    if (answer !== undefined) {
      return answer;
    }
    if (Date.now() > deadline) {
      throw new VolumeError(`${what}: not within ${limitMs / 1000} s`);
    }
    await delay(everyMs);
  }
}

/** A command in a guest that said its first line and goes on until it is let go. */
export interface Holding {
  readonly command: Command;
  /** Resolves with the first line of its output. */
  readonly first: Promise<string>;
  /** Ends its standard input; resolves with its exit status. */
  letGo(): Promise<number>;
}

export class Volume {
  readonly lab: Lab;
  readonly #consoleSeen = new Map<string, number>();

  constructor(lab: Lab) {
    this.lab = lab;
  }

  get nodes(): number[] {
    return Array.from({ length: this.lab.nodeCount }, (_, i) => i + 1);
  }

  /** After every boot of a node: the module, the workload tool, the mount point. */
  async prepare(node: NodeName): Promise<void> {
    await this.lab.run(
      node,
      `set -e
      install -m 755 /mxfs/.lab/bin/mxfs-work ${WORK}
      install -m 755 /mxfs/.lab/bin/mxfs-fsx ${FSX}
      mkdir -p ${MOUNTPOINT}
      modprobe xfs
      grep -q '^mxfs ' /proc/modules || insmod /mxfs/kernel/mxfs.ko`,
      { timeoutMs: 60_000 },
    );
  }

  async prepareAll(): Promise<void> {
    await Promise.all(this.nodes.map((node) => this.prepare(node)));
  }

  async mkfs(node: NodeName = 1, device = DEVICE): Promise<void> {
    await this.lab.run(node, `mkfs.xfs -f -q -K ${device}`, { timeoutMs: 120_000 });
  }

  /** @throws ExecError with what mount and the kernel said. */
  async mount(node: NodeName, options = "", device = DEVICE, at = MOUNTPOINT): Promise<void> {
    const result = await this.tryMount(node, options, device, at);
    if (result.status !== 0) {
      throw new VolumeError(
        `node ${node}: mount -t mxfs ${options} ${device}: exit status ${result.status}: ${result.said}`,
      );
    }
  }

  /** Mounts, or returns why not: what mount(8) and the kernel's log said. */
  async tryMount(
    node: NodeName,
    options = "",
    device = DEVICE,
    at = MOUNTPOINT,
  ): Promise<{ status: number; said: string }> {
    const before = this.lab.console(node).length;
    const words = options === "" ? "" : `-o ${quote(options)} `;
    const result = await this.lab.exec(node, `mount -t mxfs ${words}${quote(device)} ${quote(at)}`, {
      timeoutMs: 150_000,
    });
    const kernel = this.lab.console(node).slice(before);
    return { status: result.status, said: `${result.stderr.trim()}\n${kernel}`.trim().slice(-1500) };
  }

  async umount(node: NodeName, at = MOUNTPOINT): Promise<void> {
    await this.lab.run(node, `umount ${at}`, { timeoutMs: 120_000 });
  }

  async isMounted(node: NodeName): Promise<boolean> {
    return (await this.lab.exec(node, `grep -q ' ${MOUNTPOINT} mxfs ' /proc/mounts`)).status === 0;
  }

  /** The holder first, then the rest, at the same time. */
  async mountAll(options = ""): Promise<void> {
    const [first = 1, ...rest] = this.nodes;
    await this.mount(first, options);
    await Promise.all(rest.map((node) => this.mount(node, options)));
  }

  /** Members first: so no role moves. */
  async umountAll(): Promise<void> {
    const mounted: { node: number; role: Role }[] = [];
    for (const node of this.nodes) {
      if (this.lab.state(node) === "running" && (await this.isMounted(node))) {
        mounted.push({ node, role: await this.role(node) });
      }
    }
    for (const role of ["member", "holder"] as const) {
      await Promise.all(mounted.filter((it) => it.role === role).map((it) => this.umount(it.node)));
    }
  }

  /** What `mxfs_lock status --json` says. */
  async status(node: NodeName): Promise<Record<string, unknown>> {
    const text = await this.lab.run(node, ["mxfs_lock", "status", "--json"], { timeoutMs: 60_000 });
    return JSON.parse(text) as Record<string, unknown>;
  }

  /** The kernel's counters and gauges, by their names. From the kernel itself: a daemon that is busy is not waited for. */
  async counters(node: NodeName): Promise<ReadonlyMap<string, number>> {
    const text = await this.lab.run(node, [WORK, "counters"], { timeoutMs: 60_000 });
    return new Map(
      text
        .trim()
        .split("\n")
        .map((line) => line.split(" "))
        .map(([name = "", value]) => [name, Number(value)] as const),
    );
  }

  /** One of them. @throws VolumeError when the kernel has none of that name. */
  async counter(node: NodeName, name: string): Promise<number> {
    return counterOf(await this.counters(node), node, name);
  }

  /** How far counters have moved while `action` ran. */
  async moved(node: NodeName, action: () => Promise<unknown>): Promise<(name: string) => number> {
    const before = await this.counters(node);
    await action();
    const after = await this.counters(node);
    return (name) => counterOf(after, node, name) - counterOf(before, node, name);
  }

  /** What the kernel says of a mount: its role, its state, its daemon's pid. Needs no daemon, and costs little. */
  async kernelState(
    node: NodeName,
    device = DEVICE,
  ): Promise<{ role: string; state: string; pid: number } | undefined> {
    const text = await this.lab.run(node, [WORK, "mounts"], { timeoutMs: 20_000 });
    for (const line of text.split("\n")) {
      const [found, role = "", state = "", pid = ""] = line.split(" ");
      if (found === device) return { role, state, pid: Number(pid) };
    }
    return undefined;
  }

  /** The mount was thrown out: every operation ends in EIO until it is unmounted and mounted again. */
  async isFenced(node: NodeName): Promise<boolean> {
    return (await this.kernelState(node))?.state === "fenced";
  }

  async role(node: NodeName): Promise<Role> {
    const state = await this.kernelState(node);
    if (state?.role !== "holder" && state?.role !== "member") {
      throw new VolumeError(
        `node ${node}: expected ${DEVICE} mounted as holder or member, found ${state?.role ?? "no mount"}`,
      );
    }
    return state.role;
  }

  /** [holder, a member] of the mounted nodes. */
  async roles(): Promise<{ holder: number; member: number }> {
    const found = await Promise.all(this.nodes.map(async (node) => ({ node, role: await this.role(node) })));
    const holder = found.filter((it) => it.role === "holder");
    const member = found.find((it) => it.role === "member");
    if (holder[0] === undefined || holder.length !== 1 || member === undefined) {
      throw new VolumeError(
        `expected one holder and members, found ${found.map((it) => `node${it.node} ${it.role}`).join(", ")}`,
      );
    }
    return { holder: holder[0].node, member: member.node };
  }

  /** Runs a workload of mxfs-work. */
  work(node: NodeName, words: readonly (string | number)[], options: ExecOptions = {}): Promise<string> {
    return this.lab.run(node, [WORK, ...words.map(String)], { timeoutMs: 180_000, ...options });
  }

  /** Starts something that prints a line when it is ready and goes on until its standard input ends. */
  hold(node: NodeName, words: readonly string[]): Holding {
    const command = this.lab.spawn(node, words);
    let said = "";
    const first = new Promise<string>((resolve, reject) => {
      command.on("stdout", (piece) => {
        said += piece.toString();
        if (said.includes("\n")) {
          resolve(said.slice(0, said.indexOf("\n")));
        }
      });
      command.on("stderr", (piece) => {
        said += piece.toString();
      });
      command.done.then(
        (end) =>
          reject(new VolumeError(`node ${node}: ${words.join(" ")}: ended with ${end.status}: ${said}`)),
        reject,
      );
    });
    first.catch(() => undefined); // who does not ask does not want to know
    command.done.catch(() => undefined);
    const letGo = async (): Promise<number> => {
      await command.end();
      return (await command.done).status;
    };
    return { command, first, letGo };
  }

  /** From here on the kernel logs count. */
  markKernelLogs(): void {
    for (const node of this.nodes) {
      this.#consoleSeen.set(String(node), this.lab.console(node).length);
    }
  }

  /** What the kernels have said since the last call that looks like trouble, in lines. */
  kernelTrouble(expected: readonly RegExp[] = []): string[] {
    const found: string[] = [];
    for (const node of this.nodes) {
      const log = this.lab.console(node);
      const lines = log.slice(this.#consoleSeen.get(String(node)) ?? 0).split(/\r?\n/);
      for (const line of lines) {
        if (isTrouble(line) && !expected.some((rule) => rule.test(line))) {
          found.push(`node${node}: ${line}`);
        }
      }
      this.#consoleSeen.set(String(node), log.length);
    }
    return found;
  }

  /** For messages about failures: from the first trouble since the last look on (a crash tells it at its begin), or the end. */
  kernelStory(node: NodeName, expected: readonly RegExp[] = []): string {
    const log = this.lab.console(node);
    const lines = log.slice(this.#consoleSeen.get(String(node)) ?? 0).split(/\r?\n/);
    const trouble = (line: string): boolean => isTrouble(line) && !expected.some((rule) => rule.test(line));
    const first = lines.findIndex(trouble);
    const story = first < 0 ? lines.slice(-STORY_END_LINES) : lines.slice(first, first + STORY_LINES);
    return story.join("\n").trimEnd();
  }

  /** @throws VolumeError with the lines. */
  checkKernelLogs(expected: readonly RegExp[] = []): void {
    const found = this.kernelTrouble(expected);
    if (found.length > 0) {
      throw new VolumeError(
        `kernel logs: expected no trouble, found ${found.length} lines:\n${found.slice(0, 30).join("\n")}`,
      );
    }
  }

  /**
   * On the debug kernel: removes the module from every running node (nobody has the volume mounted), and asks kmemleak
   * for memory that nobody points to any more. Reports of others than MXFS are not ours.
   * @throws VolumeError with the stacks that allocated it.
   */
  async checkLeaks(): Promise<void> {
    const running = this.nodes.filter((node) => this.lab.state(node) === "running");
    const found = await Promise.all(
      running.map(async (node) => {
        await this.lab.run(node, "rmmod mxfs", { timeoutMs: 60_000 });
        return await this.lab.run(node, LEAK_SCAN, { timeoutMs: 120_000 });
      }),
    );
    const leaks = found.flatMap((text, i) =>
      text
        .split(/^(?=unreferenced object)/m)
        .filter((one) => /mxfs/.test(one))
        .map((one) => `node${running[i]}: ${one.trim()}`),
    );
    if (leaks.length > 0) {
      throw new VolumeError(
        `kmemleak: expected nothing, found ${leaks.length} objects:\n${leaks.slice(0, 8).join("\n")}`,
      );
    }
  }

  /** The last lines of a node's daemon log, for messages about failures. */
  async daemonLog(node: NodeName, lines = 40): Promise<string> {
    if (this.lab.state(node) !== "running") {
      return `(node ${node} is ${this.lab.state(node)})`;
    }
    const result = await this.lab.exec(node, `tail -n ${lines} /var/log/mxfsd.log`, { timeoutMs: 20_000 });
    return result.stdout;
  }

  /** xfs_repair -n and a mount that replays what is in the log: the XFS is whole. Nobody has it mounted. */
  async checkXfs(node: NodeName): Promise<void> {
    await this.lab.run(node, `xfs_repair -n ${DEVICE} 2>&1`, { timeoutMs: 120_000 });
  }

  /** Keys registered on the shared disk. */
  async keys(node: NodeName): Promise<string[]> {
    // A unit attention (the target was restarted, say) is told once, in place of the answer.
    const ask = `for i in 1 2 3; do sg_persist --in --read-keys ${DEVICE} && exit 0; done; exit 1`;
    const text = await this.lab.run(node, ask);
    return [...text.matchAll(/^\s+(0x[0-9a-f]+)\s*$/gm)].map((match) => match[1] ?? "");
  }

  /** Whoever is stuck or broken: power cut, boot, a fresh volume, mounted by all. */
  async reset(options = ""): Promise<void> {
    for (const node of this.nodes) {
      this.lab.heal(node);
      this.lab.kill(node);
    }
    await Promise.all(this.nodes.map((node) => this.lab.start(node)));
    await this.prepareAll();
    await this.clearKeys(1);
    await this.mkfs();
    this.markKernelLogs();
    await this.mountAll(options);
  }

  /** Takes every registration away, as after a restart of the target. For set-up only. */
  async clearKeys(node: NodeName): Promise<void> {
    await this.lab.run(
      node,
      `for i in 1 2 3; do sg_persist --out --register-ignore --param-sark=0xdead ${DEVICE} && break; done
      sg_persist --out --clear --param-rk=0xdead ${DEVICE}`,
      { timeoutMs: 30_000 },
    );
  }
}

export { Lab, PROJECT_DIR };
