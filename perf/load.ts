// SPDX-License-Identifier: GPL-2.0-only
//
// mxfs-perf (perf/load.c) in guests: phases that begin on all nodes at the same time, and what it says of them.
//
// Weakness: "the same time" is one line to each guest, some milliseconds apart.

import { type Command, type Lab, LabError, type NodeName } from "../lab/lab.js";
import { LOAD } from "./systems.js";

/** What one phase did. */
export interface Phase {
  readonly phase: string;
  readonly ops: number;
  readonly seconds: number;
  readonly longest_ms: number;
  /** Turns only: the last value seen or written. */
  readonly last: number | null;
}

/** mxfs-perf failed, or said something that is not understood. */
export class LoadError extends Error {
  override name = "LoadError";
}

/** @throws LoadError */
export function parsePhase(line: string): Phase {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch {
    throw new LoadError(`mxfs-perf: expected a line of JSON, found "${line.slice(0, 200)}"`);
  }
  if (typeof value !== "object" || value === null) {
    throw new LoadError(`mxfs-perf: expected an object, found "${line.slice(0, 200)}"`);
  }
  const fields = value as Record<string, unknown>;
  const number = (key: string): number => {
    const found = fields[key];
    if (typeof found !== "number" || !Number.isFinite(found) || found < 0) {
      throw new LoadError(`mxfs-perf: ${key}: expected a number from 0, found "${line.slice(0, 200)}"`);
    }
    return found;
  };
  if (typeof fields.phase !== "string") {
    throw new LoadError(`mxfs-perf: phase: expected a name, found "${line.slice(0, 200)}"`);
  }
  return {
    phase: fields.phase,
    ops: number("ops"),
    seconds: number("seconds"),
    longest_ms: number("longest_ms"),
    last: fields.last === undefined ? null : number("last"),
  };
}

/** Operations per second of phases that ran at the same time. @throws LoadError when nothing was done. */
export function rateOf(phases: readonly Phase[]): number {
  const ops = phases.reduce((sum, it) => sum + it.ops, 0);
  const seconds = Math.max(0, ...phases.map((it) => it.seconds));
  if (ops === 0 || seconds === 0) {
    throw new LoadError(`mxfs-perf: ${phases[0]?.phase ?? "no phase"}: nothing was done within its time`);
  }
  return ops / seconds;
}

class Running {
  readonly node: NodeName;
  readonly #command: Command;
  #text = "";
  #complaints = "";
  #wanted: { resolve(line: string): void; reject(error: Error): void } | null = null;
  #end: Error | null = null;

  constructor(lab: Lab, node: NodeName, words: readonly string[]) {
    this.node = node;
    this.#command = lab.spawn(node, [LOAD, ...words]);
    this.#command.on("stdout", (piece) => {
      this.#text += piece.toString();
      this.#serve();
    });
    this.#command.on("stderr", (piece) => {
      this.#complaints = `${this.#complaints}${piece.toString()}`.slice(-1000);
    });
    this.#command.done.then(
      ({ status }) => {
        this.#end = new LoadError(
          `node${node}: ${this.#complaints.trim() || `mxfs-perf ended with ${status}`}`,
        );
        this.#serve();
      },
      (error: Error) => {
        this.#end = error;
        this.#serve();
      },
    );
  }

  #serve(): void {
    const at = this.#text.indexOf("\n");
    if (this.#wanted === null) return;
    if (at >= 0) {
      const line = this.#text.slice(0, at);
      this.#text = this.#text.slice(at + 1);
      this.#wanted.resolve(line);
    } else if (this.#end !== null) {
      this.#wanted.reject(this.#end);
    } else {
      return;
    }
    this.#wanted = null;
  }

  /** Its next line. One caller at a time. */
  async line(timeoutMs: number): Promise<string> {
    const next = new Promise<string>((resolve, reject) => {
      this.#wanted = { resolve, reject };
    });
    const timer = setTimeout(
      () => this.stop(new LabError(`node${this.node}: no word from mxfs-perf within ${timeoutMs / 1000} s`)),
      timeoutMs,
    );
    this.#serve();
    try {
      return await next;
    } finally {
      clearTimeout(timer);
    }
  }

  async ready(phase: string, timeoutMs: number): Promise<void> {
    const line = await this.line(timeoutMs);
    if (line !== `ready ${phase}`) {
      throw new LoadError(`node${this.node}: expected "ready ${phase}", found "${line.slice(0, 200)}"`);
    }
  }

  async go(): Promise<void> {
    await this.#command.write(Buffer.from("\n"));
  }

  stop(error: Error): void {
    this.#command.abandon(error);
  }

  /** Resolves when it has ended. @throws LoadError for another exit status than 0. */
  async done(): Promise<void> {
    const { status } = await this.#command.done;
    if (status !== 0) {
      throw new LoadError(`node${this.node}: ${this.#complaints.trim() || `mxfs-perf ended with ${status}`}`);
    }
  }
}

/**
 * Runs mxfs-perf on some nodes (`words` for each of `nodes`), its phases in step.
 * @param startInTurn each is ready before the next one is started.
 * @returns what it said, by phase, then by node. @throws LoadError; GuestGoneError; LabError when it hangs. Nothing
 * runs on then.
 */
export async function runLoad(
  lab: Lab,
  nodes: readonly NodeName[],
  words: (node: NodeName) => readonly string[],
  phases: readonly string[],
  timeoutMs: number,
  startInTurn = false,
): Promise<Phase[][]> {
  const running: Running[] = [];
  try {
    const [first = ""] = phases;
    for (const node of nodes) {
      const one = new Running(lab, node, words(node));
      running.push(one);
      if (startInTurn) await one.ready(first, timeoutMs);
    }
    const found: Phase[][] = [];
    for (const [i, phase] of phases.entries()) {
      if (i > 0 || !startInTurn) await Promise.all(running.map((it) => it.ready(phase, timeoutMs)));
      await Promise.all(running.map((it) => it.go()));
      const lines = await Promise.all(running.map((it) => it.line(timeoutMs)));
      found.push(lines.map(parsePhase));
    }
    await Promise.all(running.map((it) => it.done()));
    return found;
  } finally {
    for (const one of running) one.stop(new LoadError(`node${one.node}: mxfs-perf was stopped`));
  }
}
