// SPDX-License-Identifier: GPL-2.0-only
//
// The lab: two or three small virtual machines ("nodes") that share one SCSI disk with persistent reservations
// and a network that carries multicast. Here are its life cycle and its faults: power cuts, frozen machines,
// cut cables. lab/cli.ts is the same for a shell; lab/README.md tells how to use both.
//
// One lab has a name (MXFS_LAB, "default"), and with it
//   /run/mxfs-lab/NAME/         config.json, pid files, sockets, logs, nodeN/share (= /share in the guest)
//   PROJECT/.lab/run/NAME/      disk images (sparse)
//   network namespace mxfs-NAME bridge br0, one tap per guest, and every QEMU
//   ... and mxfs-NAME.tgt       tgtd, behind a veth pair
// so several labs run beside each other. Nothing else is kept: whether a guest runs, is frozen or cut is read
// from the kernel each time, and any process may work on a lab that another one brought up.
//
// `down` kills what the pid files name, then whatever is left in the namespace, then removes all three. It
// works after a crash of the process that brought the lab up, and on a half-built lab.
//
// Weakness: two processes that start and kill the same node at the same time are not kept apart.

import {
  closeSync,
  createReadStream,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { type ChannelTarget, Command, GuestGoneError } from "./channel.js";
import {
  type Accelerator,
  buildInitramfs,
  chooseAccelerator,
  clearSockets,
  consolePath,
  execSocketPath,
  findKernel,
  type Kernel,
  PROJECT_DIR,
  patience,
  qemuArguments,
  wantsDebugKernel,
} from "./guest.js";
import {
  endProcess,
  LabError,
  type ProcessId,
  processState,
  readPidFile,
  removeFile,
  run,
  signalProcess,
  sleepSync,
  startDaemon,
  writePidFile,
} from "./host.js";
import { initiatorName, LIO_SCRIPT, lunUrl, TARGET_IQN, type TargetKind, targetAddress } from "./target.js";

export { Command, GuestGoneError } from "./channel.js";
export { PROJECT_DIR } from "./guest.js";
export { LabError } from "./host.js";
export type { TargetKind } from "./target.js";

const RUN_ROOT = "/run/mxfs-lab";
const NODE_COUNT_MAX = 8;
/** The target guest's number, and the last byte of its address. */
const TARGET_NUMBER = 100;
/** Times `patience`. */
const BOOT_TIMEOUT_MS = 180_000;
const TOOL_TIMEOUT_MS = 10_000;
/** Packets to a target whose path is cut go here: locally administered, and no guest has it. */
const NOBODYS_MAC = "02:00:00:00:00:01";

export interface LabOptions {
  /** Instance name; default $MXFS_LAB, else "default". */
  name?: string;
  /** 1 to 8; default 2. */
  nodes?: number;
  target?: TargetKind;
  /** Size of the shared LUN; default 4 GiB, sparse. */
  diskBytes?: number;
  /** Size of a private /dev/vda for every node; 0 (default): none. */
  scratchBytes?: number;
  /** Per guest; default 1024. Three times that with the debug kernel, whose shadow and records take the most of it. */
  memoryMib?: number;
  /** Per guest; default 1. */
  cpus?: number;
  /** Extra words for the guests' kernel command line. */
  append?: string;
  /** A kernel other than setup.sh's: a directory with vmlinux and lib/modules/RELEASE (a debug kernel, say). */
  kernelDir?: string;
  /** Take an existing lab of that name down first. */
  replace?: boolean;
  /** Take the lab down when this process exits, for whatever reason but SIGKILL. */
  ephemeral?: boolean;
  /** Told what happens, one line each. */
  log?: (line: string) => void;
}

interface LabConfig {
  name: string;
  project: string;
  nodes: number;
  target: TargetKind;
  diskBytes: number;
  scratchBytes: number;
  memoryMib: number;
  cpus: number;
  append: string;
  kernel: Kernel;
  accelerator: Accelerator;
  initramfs: string;
  /** Whether `up` came to its end. */
  complete: boolean;
}

export interface ExecOptions {
  stdin?: Buffer | string;
  /** SIGKILL for the command, and an error, after this time (times `patience`); default 300,000. 0: never. */
  timeoutMs?: number;
  env?: Record<string, string>;
  /** Default "/". */
  cwd?: string;
  /** Called with every piece of output as it arrives. */
  onOutput?: (piece: Buffer, stream: "stdout" | "stderr") => void;
}

export interface ExecResult {
  /** Exit status; 128 + signal when a signal ended it; 127 when it could not be started. */
  status: number;
  stdout: string;
  stderr: string;
}

/** A command that `run` expected to succeed did not. */
export class ExecError extends LabError {
  override name = "ExecError";
  constructor(
    readonly node: string,
    readonly command: string,
    readonly result: ExecResult,
  ) {
    const said = (result.stderr.trim() || result.stdout.trim()).slice(-2000);
    super(
      `${node}: ${command.length > 300 ? `${command.slice(0, 300)}...` : command}: exit status ${result.status}${said && `: ${said}`}`,
    );
  }
}

export type NodeState = "running" | "frozen" | "off";
export type CutKind = "network" | "disk";

export interface NodeStatus {
  node: string;
  state: NodeState;
  pid: number | undefined;
  network: "ok" | "cut";
  disk: "ok" | "cut";
}

export interface LabStatus {
  name: string;
  target: TargetKind;
  targetState: NodeState;
  accelerator: Accelerator;
  nodes: NodeStatus[];
}

/** How a node may be named: 1, "1" or "node1". */
export type NodeName = number | string;

export function defaultLabName(): string {
  return process.env.MXFS_LAB || "default";
}

function checkName(name: string): void {
  if (!/^[a-z0-9][a-z0-9-]{0,30}$/.test(name)) {
    throw new LabError(`lab name ${JSON.stringify(name)}: expected 1 to 31 of a-z, 0-9 and -`);
  }
}

function readJson(file: string): unknown {
  return JSON.parse(readFileSync(file, "utf8"));
}

function tail(file: string, bytes: number): string {
  return existsSync(file) ? readFileSync(file, "utf8").slice(-bytes).trim() : "";
}

function createSparse(file: string, bytes: number): void {
  const fd = openSync(file, "wx");
  try {
    ftruncateSync(fd, bytes);
  } finally {
    closeSync(fd);
  }
}

export class Lab {
  /** Labs to take down when this process exits; undefined until there is one. */
  static #ephemeral: Set<string> | undefined;

  readonly name: string;
  readonly #config: LabConfig;
  readonly #log: (line: string) => void;

  private constructor(config: LabConfig, log: (line: string) => void) {
    this.name = config.name;
    this.#config = config;
    this.#log = log;
  }

  get nodeCount(): number {
    return this.#config.nodes;
  }

  /** Attaches to a lab that is up. Throws when there is none of that name. */
  static open(name: string = defaultLabName(), log: (line: string) => void = () => {}): Lab {
    checkName(name);
    const file = join(RUN_ROOT, name, "config.json");
    if (!existsSync(file)) throw new LabError(`lab "${name}" is not up; start it with: npm run -s lab -- up`);
    const config = readJson(file) as LabConfig;
    if (!config.complete) {
      throw new LabError(
        `lab "${name}" is half-built: still coming up, or its start crashed; if so: lab -- down`,
      );
    }
    return new Lab(config, log);
  }

  /** Brings a lab up, and resolves when every node runs commands. On failure nothing is left. */
  static async up(options: LabOptions = {}): Promise<Lab> {
    const name = options.name ?? defaultLabName();
    checkName(name);
    const began = Date.now();
    const say = options.log ?? (() => {});
    const log = (line: string) => say(`${((Date.now() - began) / 1000).toFixed(1).padStart(5)} s  ${line}`);
    const nodes = options.nodes ?? 2;
    if (!Number.isInteger(nodes) || nodes < 1 || nodes > NODE_COUNT_MAX) {
      throw new LabError(`${nodes} nodes: expected 1 to ${NODE_COUNT_MAX}`);
    }
    if (process.getuid?.() !== 0) {
      throw new LabError(
        "the lab needs root, for a network namespace, taps and the guests' root file system",
      );
    }
    if (existsSync(join(RUN_ROOT, name))) {
      if (options.replace !== true && Lab.#isAlive(name)) {
        throw new LabError(`lab "${name}" is up already; take it down first, or choose another MXFS_LAB`);
      }
      log(`removing what an earlier lab "${name}" left`);
      Lab.down(name);
    }
    const kernel = findKernel(options.kernelDir);
    const config: LabConfig = {
      name,
      project: PROJECT_DIR,
      nodes,
      target: options.target ?? "tgt",
      diskBytes: options.diskBytes ?? 4 * 2 ** 30,
      scratchBytes: options.scratchBytes ?? 0,
      memoryMib: (options.memoryMib ?? 1024) * (wantsDebugKernel() ? 3 : 1),
      cpus: options.cpus ?? 1,
      append: options.append ?? "",
      kernel,
      accelerator: chooseAccelerator(kernel),
      initramfs: buildInitramfs(kernel),
      complete: false,
    };
    const lab = new Lab(config, log);
    mkdirSync(RUN_ROOT, { recursive: true, mode: 0o700 });
    mkdirSync(lab.#runDir()); // fails when somebody else was faster
    if (options.ephemeral === true) lab.#downAtExit();
    try {
      lab.#writeConfig();
      log(
        `lab "${name}": ${nodes} nodes, target ${config.target}, ${config.accelerator}, kernel ${kernel.release}`,
      );
      mkdirSync(lab.#diskDir(), { recursive: true });
      createSparse(lab.#diskImage(), config.diskBytes);
      lab.#buildNetwork();
      await lab.#startTarget();
      const numbers = Array.from({ length: nodes }, (_, i) => i + 1);
      await Promise.all(numbers.map((number) => lab.start(number)));
      config.complete = true;
      lab.#writeConfig();
    } catch (error) {
      Lab.down(name);
      throw error;
    }
    return lab;
  }

  /**
   * Ends every process of a lab and removes all it had. Does nothing when there is nothing. Synchronous, so
   * that exit handlers can call it.
   */
  static down(name: string = defaultLabName()): void {
    checkName(name);
    const runDir = join(RUN_ROOT, name);
    for (const entry of existsSync(runDir) ? readdirSync(runDir, { withFileTypes: true }) : []) {
      const id = entry.isDirectory() ? readPidFile(join(runDir, entry.name, "pid")) : undefined;
      if (id !== undefined) endProcess(id);
    }
    for (const space of Lab.#namespaces(name)) Lab.#removeNamespace(space);
    const configFile = join(runDir, "config.json");
    const project = existsSync(configFile) ? (readJson(configFile) as LabConfig).project : PROJECT_DIR;
    removeFile(join(project, ".lab", "run", name));
    removeFile(runDir);
    Lab.#ephemeral?.delete(name); // whoever uses the name next is not ours to take down
  }

  static #namespaces(name: string): [guests: string, target: string] {
    return [`mxfs-${name}`, `mxfs-${name}.tgt`];
  }

  static #removeNamespace(space: string): void {
    if (!existsSync(`/run/netns/${space}`)) return;
    // Whatever is still in the namespace is the lab's: nothing else can have got there.
    for (let round = 0; ; round++) {
      const pids = run("ip", ["netns", "pids", space]).trim().split("\n").filter(Boolean).map(Number);
      if (pids.length === 0) break;
      if (round === 200) throw new LabError(`processes ${pids} in namespace ${space} survive SIGKILL`);
      for (const pid of pids) {
        try {
          process.kill(pid, "SIGKILL");
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== "ESRCH") throw error;
        }
      }
      sleepSync(20);
    }
    run("ip", ["netns", "del", space]);
  }

  /** Names of labs that have left anything on this machine. */
  static list(): string[] {
    const dirs = existsSync(RUN_ROOT) ? readdirSync(RUN_ROOT) : [];
    const spaces = existsSync("/run/netns") ? readdirSync("/run/netns") : [];
    const named = spaces.flatMap((space) => /^mxfs-([^.]+)/.exec(space)?.[1] ?? []);
    return [...new Set([...dirs, ...named])].sort();
  }

  static #isAlive(name: string): boolean {
    const runDir = join(RUN_ROOT, name);
    return readdirSync(runDir).some((entry) => {
      const id = entry.startsWith("node") ? readPidFile(join(runDir, entry, "pid")) : undefined;
      return id !== undefined && processState(id) !== "gone";
    });
  }

  down(): void {
    Lab.down(this.name);
  }

  /** Runs a command to its end. A status other than 0 is not an error here; see `run`. */
  async exec(
    node: NodeName,
    argv: readonly string[] | string,
    options: ExecOptions = {},
  ): Promise<ExecResult> {
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    const command = this.spawn(node, argv, options);
    command.on("stdout", (piece) => {
      out.push(piece);
      options.onOutput?.(piece, "stdout");
    });
    command.on("stderr", (piece) => {
      err.push(piece);
      options.onOutput?.(piece, "stderr");
    });
    const timeoutMs = (options.timeoutMs ?? 300_000) * patience();
    const timer =
      timeoutMs === 0
        ? undefined
        : setTimeout(() => {
            const said = Buffer.concat([...out, ...err])
              .toString()
              .slice(-500);
            const what = typeof argv === "string" ? argv : argv.join(" ");
            command.abandon(
              new LabError(
                `${this.#nodeName(node)}: no end of "${what}" within ${timeoutMs} ms; it said: ${said}`,
              ),
            );
          }, timeoutMs);
    const feed = async () => {
      if (options.stdin !== undefined) await command.write(Buffer.from(options.stdin));
      await command.end();
    };
    try {
      const [end] = await Promise.all([command.done, feed()]);
      return {
        status: end.status,
        stdout: Buffer.concat(out).toString(),
        stderr: Buffer.concat(err).toString(),
      };
    } finally {
      clearTimeout(timer);
    }
  }

  /** Like exec, but returns stdout, and throws ExecError when the status is not 0. */
  async run(node: NodeName, argv: readonly string[] | string, options: ExecOptions = {}): Promise<string> {
    const result = await this.exec(node, argv, options);
    if (result.status !== 0) {
      throw new ExecError(this.#nodeName(node), typeof argv === "string" ? argv : argv.join(" "), result);
    }
    return result.stdout;
  }

  /**
   * Starts a command and returns at once. A string is given to `sh -c`. The caller ends stdin itself. The
   * command is killed when this process goes away.
   */
  spawn(
    node: NodeName,
    argv: readonly string[] | string,
    options: Pick<ExecOptions, "env" | "cwd"> = {},
  ): Command {
    const number = this.#nodeNumber(node);
    const state = this.#state(this.#guestDir(number));
    const name = this.#nodeName(node);
    if (state === "off") throw new GuestGoneError(`${name} is off; start it with: lab -- start ${name}`);
    if (state === "frozen") throw new GuestGoneError(`${name} is frozen; thaw it with: lab -- thaw ${name}`);
    return new Command(this.#channel(number), {
      argv: typeof argv === "string" ? ["/bin/sh", "-c", argv] : argv,
      cwd: options.cwd ?? "/",
      env: options.env ?? {},
    });
  }

  /** Power cut: the guest stops between two instructions, and what its disks were not given is lost. */
  kill(node: NodeName): void {
    const id = this.#pid(this.#guestDir(this.#nodeNumber(node)));
    if (id !== undefined) endProcess(id);
  }

  /** Switches a node on that is off, and resolves when it runs commands. */
  async start(node: NodeName): Promise<void> {
    const number = this.#nodeNumber(node);
    const name = this.#nodeName(node);
    if (this.#state(this.#guestDir(number)) !== "off") throw new LabError(`${name} is running already`);
    if (number === TARGET_NUMBER) return this.#startLio();
    if (this.#config.scratchBytes > 0 && !existsSync(this.#scratchImage(number))) {
      createSparse(this.#scratchImage(number), this.#config.scratchBytes);
    }
    await this.#boot(number);
  }

  /** SIGSTOP: the machine hangs, its connections stay open, its memory stays. */
  freeze(node: NodeName): void {
    this.#signal(node, "SIGSTOP", "frozen");
  }

  thaw(node: NodeName): void {
    this.#signal(node, "SIGCONT", "running");
  }

  /** Pulls a node's network cable, or its path to the shared disk (its I/O hangs, then fails). */
  cut(node: NodeName, what: CutKind): void {
    this.#setPath(node, what, false);
  }

  heal(node: NodeName, what?: CutKind): void {
    for (const kind of what === undefined ? (["network", "disk"] as const) : [what])
      this.#setPath(node, kind, true);
  }

  /** Two nodes cannot reach each other any more; everybody else reaches both. `healPair` undoes it. One pair at a time. */
  cutPair(one: NodeName, other: NodeName): void {
    for (const node of [one, other]) this.#isolate(node, "on");
  }

  healPair(one: NodeName, other: NodeName): void {
    for (const node of [one, other]) this.#isolate(node, "off");
  }

  /** Isolated ports of the bridge do not talk to each other. */
  #isolate(node: NodeName, state: "on" | "off"): void {
    const dev = this.#tap(this.#nodeNumber(node));
    run("bridge", ["-n", this.#netns(), "link", "set", "dev", dev, "isolated", state]);
  }

  /**
   * Ends the target as a power cut would and starts it again: the data are there, keys and reservations are not. The
   * nodes' initiators log in anew by themselves.
   */
  async restartTarget(): Promise<void> {
    if (this.#config.target === "lio") {
      this.kill(TARGET_NUMBER);
      await this.start(TARGET_NUMBER);
      return;
    }
    const id = this.#pid(join(this.#runDir(), "tgtd"));
    if (id !== undefined) endProcess(id);
    for (const name of readdirSync(this.#runDir())) {
      if (name.startsWith("tgtd.socket")) removeFile(join(this.#runDir(), name));
    }
    await this.#startTgt();
  }

  /** Copies a file of the host into a guest, with its mode. */
  async put(node: NodeName, file: string, destination: string): Promise<void> {
    const mode = (statSync(file).mode & 0o7777).toString(8);
    const script = 'd=$1; [ -d "$d" ] && d=$d/$2; cat >"$d" && chmod "$3" "$d"';
    const command = this.spawn(node, ["/bin/sh", "-c", script, "sh", destination, basename(file), mode]);
    let said = "";
    command.on("stderr", (piece) => {
      said += piece.toString();
    });
    const feed = async () => {
      for await (const piece of createReadStream(file)) await command.write(piece as Buffer);
      await command.end();
    };
    const [end] = await Promise.all([command.done, feed()]);
    if (end.status !== 0) {
      throw new ExecError(this.#nodeName(node), `put ${destination}`, { ...end, stdout: "", stderr: said });
    }
  }

  /** The shared disk, as a file of the host: to look at, or to damage. */
  get diskImage(): string {
    return this.#diskImage();
  }

  /** The console log since the lab came up, over all boots of the node. */
  console(node: NodeName): string {
    return readFileSync(this.consoleFile(node), "utf8");
  }

  consoleFile(node: NodeName): string {
    return consolePath(this.#guestDir(this.#nodeNumber(node)));
  }

  /** The host's end of a node's /share: writable on both sides, outlives kill and start. */
  shareDir(node: NodeName): string {
    return join(this.#guestDir(this.#nodeNumber(node)), "share");
  }

  state(node: NodeName): NodeState {
    return this.#state(this.#guestDir(this.#nodeNumber(node)));
  }

  status(): LabStatus {
    const { name, target, accelerator } = this.#config;
    const nodes = Array.from({ length: this.#config.nodes }, (_, i) => i + 1).map((number): NodeStatus => {
      const dir = this.#guestDir(number);
      const state = this.#state(dir);
      return {
        node: `node${number}`,
        state,
        pid: state === "off" ? undefined : this.#pid(dir)?.pid,
        network: this.#isNetworkUp(number) ? "ok" : "cut",
        disk: this.#isDiskUp(number) ? "ok" : "cut",
      };
    });
    const targetDir = target === "tgt" ? join(this.#runDir(), "tgtd") : this.#guestDir(TARGET_NUMBER);
    return { name, target, targetState: this.#state(targetDir), accelerator, nodes };
  }

  // ---- names and places

  #runDir(): string {
    return join(RUN_ROOT, this.name);
  }

  #diskDir(): string {
    return join(this.#config.project, ".lab", "run", this.name);
  }

  #diskImage(): string {
    return join(this.#diskDir(), "shared.img");
  }

  #scratchImage(number: number): string {
    return join(this.#diskDir(), `scratch${number}.img`);
  }

  #guestDir(number: number): string {
    return join(this.#runDir(), `node${number}`);
  }

  #netns(): string {
    return Lab.#namespaces(this.name)[0];
  }

  #targetNetns(): string {
    return Lab.#namespaces(this.name)[1];
  }

  #nodeNumber(node: NodeName): number {
    const match = /^(?:node)?([1-9][0-9]*)$/.exec(String(node));
    const number = match === null ? (node === "target" ? TARGET_NUMBER : 0) : Number(match[1]);
    const isTarget = number === TARGET_NUMBER && this.#config.target === "lio";
    if (!isTarget && (number < 1 || number > this.#config.nodes)) {
      throw new LabError(
        `no node "${node}" in lab "${this.name}": it has node1 to node${this.#config.nodes}`,
      );
    }
    return number;
  }

  #nodeName(node: NodeName): string {
    const number = this.#nodeNumber(node);
    return number === TARGET_NUMBER ? "target" : `node${number}`;
  }

  #writeConfig(): void {
    writeFileSync(join(this.#runDir(), "config.json"), `${JSON.stringify(this.#config, null, 2)}\n`);
  }

  // ---- processes

  #pid(dir: string): ProcessId | undefined {
    return readPidFile(join(dir, "pid"));
  }

  #state(dir: string): NodeState {
    const id = this.#pid(dir);
    if (id === undefined) return "off";
    const state = processState(id);
    return state === "gone" ? "off" : state === "stopped" ? "frozen" : "running";
  }

  #signal(node: NodeName, signal: "SIGSTOP" | "SIGCONT", expected: NodeState): void {
    const dir = this.#guestDir(this.#nodeNumber(node));
    const id = this.#pid(dir);
    if (id === undefined || !signalProcess(id, signal)) {
      throw new LabError(`${this.#nodeName(node)} is off, expected a running guest`);
    }
    // Its threads stop one after the other.
    for (const deadline = Date.now() + TOOL_TIMEOUT_MS; this.#state(dir) !== expected; sleepSync(2)) {
      if (Date.now() > deadline)
        throw new LabError(`${this.#nodeName(node)} is not ${expected} after ${signal}`);
    }
  }

  #startInNetns(
    space: string,
    dir: string,
    command: string,
    args: readonly string[],
    env?: Record<string, string>,
  ): ProcessId {
    mkdirSync(dir, { recursive: true });
    const wrapped = [`--net=/run/netns/${space}`, "--", command, ...args];
    const id = startDaemon("nsenter", wrapped, join(dir, "log"), env);
    writePidFile(join(dir, "pid"), id);
    return id;
  }

  #downAtExit(): void {
    if (Lab.#ephemeral === undefined) {
      const names = new Set<string>();
      Lab.#ephemeral = names;
      process.on("exit", () => {
        for (const name of names) Lab.down(name);
      });
      for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
        process.once(signal, () => process.exit(130));
      }
    }
    Lab.#ephemeral.add(this.name);
  }

  // ---- network

  #ip(...args: string[]): string {
    return run("ip", ["-n", this.#netns(), ...args]);
  }

  #tap(number: number): string {
    return `tap${number}`;
  }

  /** The device through which every QEMU's initiator reaches the target. */
  #diskDevice(): string {
    return this.#config.target === "tgt" ? "disk0" : "br0";
  }

  #buildNetwork(): void {
    if (!existsSync("/dev/net/tun")) {
      mkdirSync("/dev/net", { recursive: true });
      run("mknod", ["/dev/net/tun", "c", "10", "200"]);
    }
    this.#addNamespace(this.#netns());
    // Without snooping the bridge floods multicast, so nobody needs a querier.
    this.#ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0");
    this.#ip("addr", "add", "10.77.0.254/24", "dev", "br0");
    this.#ip("link", "set", "br0", "up");
    for (let number = 1; number <= this.#config.nodes; number++) this.#addTap(number);
    if (this.#config.target === "lio") this.#addTap(TARGET_NUMBER);
    else this.#addTargetNamespace();
    this.#ip("addr", "add", `${targetAddress(254)}/24`, "dev", this.#diskDevice());
  }

  #addTargetNamespace(): void {
    const space = this.#targetNetns();
    this.#addNamespace(space);
    this.#ip("link", "add", "disk0", "mtu", "65000", "type", "veth", "peer", "name", "disk1", "netns", space);
    run("ip", ["-n", space, "link", "set", "disk1", "mtu", "65000", "up"]);
    this.#ip("link", "set", "disk0", "up");
    for (let number = 1; number <= this.#config.nodes; number++) {
      run("ip", ["-n", space, "addr", "add", `${targetAddress(number)}/24`, "dev", "disk1"]);
    }
  }

  #addNamespace(space: string): void {
    run("ip", ["netns", "add", space]);
    run("ip", ["-n", space, "link", "set", "lo", "up"]);
    // A cut path is for QEMU's initiator to judge, not for TCP; and a healed one is used again within a second,
    // however long it was cut (tcp_rto_max_ms: Linux 6.15 and later).
    const script = `cd /proc/sys/net/ipv4
      echo 100 >tcp_retries2
      echo 127 >tcp_syn_retries
      [ ! -e tcp_rto_max_ms ] || echo 1000 >tcp_rto_max_ms`;
    run("nsenter", [`--net=/run/netns/${space}`, "--", "sh", "-ec", script]);
  }

  #addTap(number: number): void {
    this.#ip("tuntap", "add", this.#tap(number), "mode", "tap");
    this.#ip("link", "set", this.#tap(number), "master", "br0");
    this.#ip("link", "set", this.#tap(number), "up");
  }

  #isNetworkUp(number: number): boolean {
    const [link] = JSON.parse(this.#ip("-j", "link", "show", this.#tap(number))) as { flags: string[] }[];
    return link?.flags.includes("UP") === true;
  }

  #isDiskUp(number: number): boolean {
    return this.#ip("neigh", "show", targetAddress(number), "nud", "permanent").trim() === "";
  }

  #setPath(node: NodeName, what: CutKind, up: boolean): void {
    const number = this.#nodeNumber(node);
    if (what === "network") {
      this.#ip("link", "set", this.#tap(number), up ? "up" : "down");
      return;
    }
    if (this.#isDiskUp(number) === up) return;
    const neighbour = [targetAddress(number), "dev", this.#diskDevice()];
    if (up) this.#ip("neigh", "del", ...neighbour);
    else this.#ip("neigh", "replace", ...neighbour, "lladdr", NOBODYS_MAC, "nud", "permanent");
  }

  // ---- target

  async #startTarget(): Promise<void> {
    if (this.#config.target === "tgt") await this.#startTgt();
    else await this.#startLio();
  }

  async #startTgt(): Promise<void> {
    const dir = join(this.#runDir(), "tgtd");
    const env = { TGT_IPC_SOCKET: join(this.#runDir(), "tgtd.socket") };
    const id = this.#startInNetns(this.#targetNetns(), dir, "tgtd", ["-f", "-t", "4"], env);
    const admin = (...args: string[]) => run("tgtadm", ["--lld", "iscsi", ...args], env);
    const deadline = Date.now() + TOOL_TIMEOUT_MS;
    while (!existsSync(`${env.TGT_IPC_SOCKET}.0`)) {
      if (processState(id) === "gone" || Date.now() > deadline) {
        throw new LabError(`tgtd did not start: ${tail(join(dir, "log"), 2000)}`);
      }
      await delay(20); // tgtd has no other way to say that it is ready
    }
    admin("--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET_IQN);
    admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", this.#diskImage());
    admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL");
    this.#log("target tgt is up");
  }

  async #startLio(): Promise<void> {
    await this.#boot(TARGET_NUMBER);
    await this.run(TARGET_NUMBER, ["/bin/sh", "-c", LIO_SCRIPT, "sh", String(this.#config.nodes)]);
    this.#log("target lio is up");
  }

  // ---- guests

  #channel(number: number): ChannelTarget {
    const dir = this.#guestDir(number);
    return {
      node: this.#nodeName(number),
      socketPath: (port) => execSocketPath(dir, port),
      lockPrefix: `mxfs-lab/${this.name}/${number}`,
      alive: () => this.#state(dir) !== "off",
    };
  }

  async #boot(number: number): Promise<void> {
    const config = this.#config;
    const dir = this.#guestDir(number);
    const isTarget = number === TARGET_NUMBER;
    const name = this.#nodeName(number);
    const shareDir = join(dir, "share");
    const scratch = config.scratchBytes > 0 ? this.#scratchImage(number) : undefined;
    mkdirSync(join(shareDir, "etc-mxfs"), { recursive: true });
    clearSockets(dir);
    const args = qemuArguments({
      name: `mxfs-${this.name}-${name}`,
      role: isTarget ? "target" : "node",
      number,
      kernel: config.kernel,
      initramfs: config.initramfs,
      accelerator: config.accelerator,
      memoryMib: isTarget ? 512 : config.memoryMib,
      cpus: config.cpus,
      append: config.append,
      runDir: dir,
      shareDir,
      tap: this.#tap(number),
      lun: isTarget ? undefined : { url: lunUrl(number), initiator: initiatorName(number) },
      virtioDisk: isTarget ? this.#diskImage() : scratch,
    });
    const id = this.#startInNetns(this.#netns(), dir, "qemu-system-x86_64", args);
    const problem = (what: string) =>
      new LabError(
        `${name}: ${what}\nqemu: ${tail(join(dir, "log"), 2000)}\nconsole: ${tail(consolePath(dir), 2000)}`,
      );
    const deadline = Date.now() + BOOT_TIMEOUT_MS * patience();
    // QEMU makes its sockets before it runs the guest; the first command then waits for the guest's agent.
    while (!existsSync(join(dir, "qmp"))) {
      if (processState(id) === "gone") throw problem("QEMU did not start");
      if (Date.now() > deadline) throw problem("QEMU does not come up");
      await delay(20);
    }
    for (;;) {
      try {
        const ready = await this.exec(number, ["true"], { timeoutMs: BOOT_TIMEOUT_MS });
        if (ready.status !== 0) throw problem(`the first command failed: ${ready.stderr}`);
        break;
      } catch (error) {
        if (!(error instanceof GuestGoneError)) throw error;
        if (processState(id) === "gone") throw problem("the guest died while it booted");
        if (Date.now() > deadline)
          throw problem(`the guest is not up after ${(BOOT_TIMEOUT_MS * patience()) / 1000} s`);
        if (tail(consolePath(dir), 2000).includes("GUEST-FAILED")) throw problem("the guest's set-up failed");
      }
    }
    this.#log(`${name} is up`);
  }
}
