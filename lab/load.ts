// SPDX-License-Identifier: GPL-2.0-only
//
// Runs mxfs-load (lab/load.c) on the nodes of a lab, hears what it says, and keeps the ledger and the waiting times.
//
// A load belongs to one boot and one mount of its node: whoever cuts the power or unmounts says so (`lost`, `stop`),
// and starts another one afterwards.
//
// Weakness: the times are when this process heard of an answer, so they include the way out of the guest.

import { setTimeout as delay } from "node:timers/promises";
import type { Command } from "./lab.js";
import { type Found, Ledger, parseDump, WORKERS, type WorkerName } from "./ledger.js";
import { MOUNTPOINT, type Volume, VolumeError } from "./volume.js";

export const LOAD = "/usr/local/bin/mxfs-load";
const STOP_MS = 120_000;

interface Worker {
  lastAnswerMs: number;
  answers: number;
  /** The longest time between two answers since `watch`. */
  longestMs: number;
  ended: boolean;
}

interface Running {
  readonly id: string;
  readonly command: Command;
  readonly workers: Map<WorkerName, Worker>;
  /** The node is a member, and stays one for now. */
  firm: boolean;
  over: boolean;
}

export interface LoadOptions {
  /** Between two operations of a worker; default 20. */
  readonly pauseMs?: number;
  readonly workers?: readonly WorkerName[];
  readonly directory?: string;
}

export class Load {
  readonly ledger = new Ledger();
  readonly volume: Volume;
  readonly #pauseMs: number;
  readonly #workers: readonly WorkerName[];
  readonly #directory: string;
  readonly #running = new Map<number, Running>();
  #starts = 0;
  #wake: (() => void)[] = [];

  constructor(volume: Volume, options: LoadOptions = {}) {
    this.volume = volume;
    this.#pauseMs = options.pauseMs ?? 20;
    this.#workers = options.workers ?? WORKERS;
    this.#directory = options.directory ?? `${MOUNTPOINT}/load`;
  }

  isRunning(node: number): boolean {
    return this.#running.has(node);
  }

  /** The node has it mounted. */
  async start(node: number): Promise<void> {
    if (this.#running.has(node)) throw new VolumeError(`node ${node}: a load runs already`);
    const id = `n${node}.${++this.#starts}`;
    await this.volume.lab.run(
      node,
      `install -m 755 /mxfs/.lab/bin/mxfs-load ${LOAD} && mkdir -p ${this.#directory}`,
    );
    const command = this.volume.lab.spawn(node, [
      LOAD,
      "run",
      this.#directory,
      id,
      String(this.#pauseMs),
      ...this.#workers,
    ]);
    const now = Date.now();
    const workers = new Map(
      this.#workers.map((name) => [name, { lastAnswerMs: now, answers: 0, longestMs: 0, ended: false }]),
    );
    const running: Running = { id, command, workers, firm: false, over: false };
    this.#running.set(node, running);
    let rest = "";
    command.on("stdout", (piece) => {
      const lines = (rest + piece.toString("latin1")).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#take(running, line);
    });
    const over = (): void => {
      running.over = true;
      this.#poke();
    };
    command.done.then(over, over);
  }

  #take(running: Running, line: string): void {
    const noted = this.ledger.note(running.id, line, running.firm);
    if (noted === null) {
      const worker = running.workers.get(line.split(" ")[0] as WorkerName);
      if (worker !== undefined) worker.ended = true;
      this.#poke();
      return;
    }
    const worker = running.workers.get(noted.worker);
    if (!noted.answered || worker === undefined) return;
    const now = Date.now();
    worker.longestMs = Math.max(worker.longestMs, now - worker.lastAnswerMs);
    worker.lastAnswerMs = now;
    worker.answers++;
    this.#poke();
  }

  #poke(): void {
    const wake = this.#wake;
    this.#wake = [];
    for (const one of wake) one();
  }

  /** The nodes that are members now, and stay so: what is acknowledged there survives them. */
  setFirm(nodes: readonly number[]): void {
    for (const [node, running] of this.#running) running.firm = nodes.includes(node);
  }

  /** From here on the waiting times count. */
  watch(): void {
    const now = Date.now();
    for (const { workers } of this.#running.values()) {
      for (const worker of workers.values()) worker.longestMs = now - worker.lastAnswerMs;
    }
  }

  /** The longest wait of any worker of these nodes since `watch`, one that still lasts included; in milliseconds. */
  longestWait(nodes: readonly number[]): number {
    const now = Date.now();
    let longest = 0;
    for (const node of nodes) {
      for (const worker of this.#running.get(node)?.workers.values() ?? []) {
        longest = Math.max(longest, worker.longestMs, now - worker.lastAnswerMs);
      }
    }
    return longest;
  }

  /**
   * Until every worker of these nodes has had `answers` more answers.
   * @throws VolumeError naming who has not, or whose operation failed.
   */
  async progress(nodes: readonly number[], timeoutMs: number, answers = 2): Promise<void> {
    const wanted = new Map<Worker, { name: string; answers: number }>();
    for (const node of nodes) {
      const running = this.#running.get(node);
      if (running === undefined) throw new VolumeError(`node ${node}: no load runs`);
      for (const [name, worker] of running.workers) {
        wanted.set(worker, { name: `${running.id} ${name}`, answers: worker.answers + answers });
      }
    }
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const late = [...wanted].filter(([worker, want]) => worker.answers < want.answers);
      if (late.length === 0) return;
      const failed = late.filter(([worker]) => worker.ended);
      if (failed.length > 0 || Date.now() >= deadline) {
        const names = (failed.length > 0 ? failed : late).map(([, want]) => want.name);
        throw new VolumeError(
          failed.length > 0
            ? `operations failed: ${this.failuresOf(nodes).join("; ")} (${names.join(", ")})`
            : `no answer within ${timeoutMs / 1000} s: ${names.join(", ")}`,
        );
      }
      const heard = new Promise<void>((resolve) => this.#wake.push(resolve));
      await Promise.race([heard, delay(Math.min(1000, deadline - Date.now()))]);
    }
  }

  /** The operations of the loads that run on these nodes now that failed. */
  failuresOf(nodes: readonly number[]): string[] {
    const ids = nodes.map((node) => this.#running.get(node)?.id);
    return this.ledger.failures
      .filter((it) => ids.includes(it.id))
      .map((it) => `${it.id} ${it.worker} ${it.number} ${it.what} ${it.errno}`);
  }

  /** The node's power is cut, or it was thrown out: what it was promised without a sync may be gone. */
  lost(node: number): void {
    const running = this.#running.get(node);
    if (running !== undefined) this.ledger.lost(running.id);
  }

  /** Forgets the load of a node that is switched off. */
  gone(node: number): void {
    this.lost(node);
    this.#running.delete(node);
  }

  /** Ends a load after the operations under way; they may fail. @throws VolumeError when they do not end. */
  async stop(node: number): Promise<void> {
    const running = this.#running.get(node);
    if (running === undefined) return;
    await running.command.end().catch(() => undefined); // over already
    const ended = await Promise.race([
      running.command.done.then(
        () => true,
        () => true,
      ),
      delay(STOP_MS, false, { ref: false }),
    ]);
    if (!ended) throw new VolumeError(`node ${node}: its load does not end within ${STOP_MS / 1000} s`);
    this.#running.delete(node);
  }

  async stopAll(): Promise<void> {
    await Promise.all([...this.#running.keys()].map((node) => this.stop(node)));
  }

  async dump(node: number): Promise<string> {
    return await this.volume.lab.run(node, [LOAD, "dump", this.#directory], { timeoutMs: 300_000 });
  }

  /**
   * All loads are stopped: the nodes see the same, and it is what was promised.
   * @throws VolumeError with what differs.
   */
  async verify(nodes: readonly number[]): Promise<Found> {
    const dumps: string[] = [];
    for (const node of nodes) dumps.push(await this.dump(node));
    const problems: string[] = [];
    const [first = "", ...others] = dumps;
    for (const [i, other] of others.entries()) {
      if (other === first) continue;
      const lines = new Set(other.split("\n"));
      const here = new Set(first.split("\n"));
      const differ = [
        ...[...here].filter((line) => !lines.has(line)).map((line) => `only node ${nodes[0]}: ${line}`),
        ...[...lines].filter((line) => !here.has(line)).map((line) => `only node ${nodes[i + 1]}: ${line}`),
      ];
      problems.push(...differ.slice(0, 10));
    }
    const found = parseDump(first);
    const [reader = 1] = nodes;
    problems.push(...(await this.ledger.compare(found, (path) => this.#read(reader, path))));
    if (problems.length > 0) {
      throw new VolumeError(
        `the checker found ${problems.length} differences:\n${problems.slice(0, 20).join("\n")}`,
      );
    }
    return found;
  }

  async #read(node: number, path: string): Promise<Buffer> {
    const pieces: Buffer[] = [];
    const result = await this.volume.lab.exec(node, ["cat", `${this.#directory}/${path}`], {
      timeoutMs: 120_000,
      onOutput: (piece, stream) => {
        if (stream === "stdout") pieces.push(Buffer.from(piece));
      },
    });
    if (result.status !== 0) throw new VolumeError(`node ${node}: cat ${path}: ${result.stderr}`);
    return Buffer.concat(pieces);
  }
}
