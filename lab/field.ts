// SPDX-License-Identifier: GPL-2.0-only
//
// A volume under load, and what may happen to its nodes: the faults that the fault tests and lab:chaos have in common.
// Each fault ends when the nodes that must survive it have answered every worker again, and says how long the longest
// of them waited. Then `bringBack` makes the field whole, whatever the fault has left.
//
// Who may be thrown out by a fault is said by the fault; anybody else who is fenced, and any operation that fails on a
// node that is not, is an error.
//
// Weakness: one fault at a time, but for those that are made of two.

import { setTimeout as delay } from "node:timers/promises";
import type { CutKind } from "./lab.js";
import { Load, type LoadOptions } from "./load.js";
import { DEVICE, until, type Volume, VolumeError } from "./volume.js";

/** From a fault until the survivors work again: node timeout, lease, fencing, a daemon's start, and slow machines. */
const SURVIVE_MS = 150_000;

export interface FieldOptions extends LoadOptions {
  readonly mountOptions?: string;
  readonly log?: (line: string) => void;
}

export class Field {
  readonly volume: Volume;
  readonly load: Load;
  readonly #mountOptions: string;
  readonly #log: (line: string) => void;
  /** Nodes that a fault has thrown out although it need not have. */
  evictions = 0;

  constructor(volume: Volume, options: FieldOptions = {}) {
    this.volume = volume;
    this.load = new Load(volume, options);
    this.#mountOptions = options.mountOptions ?? "";
    this.#log = options.log ?? (() => undefined);
  }

  get nodes(): readonly number[] {
    return this.volume.nodes;
  }

  async mount(node: number): Promise<void> {
    await this.volume.mount(node, this.#mountOptions);
  }

  /** Mounts on these nodes, the first one first, and starts their loads. */
  async begin(nodes: readonly number[] = this.nodes): Promise<void> {
    const [first = 1, ...rest] = nodes;
    await this.mount(first);
    await Promise.all(rest.map((node) => this.mount(node)));
    for (const node of nodes) await this.load.start(node);
    await this.load.progress(nodes, SURVIVE_MS);
    await this.settle();
  }

  async holder(): Promise<number> {
    for (const node of this.nodes) {
      if (this.volume.lab.state(node) !== "running") continue;
      const state = await this.volume.kernelState(node);
      if (state?.role === "holder" && state.state !== "fenced") return node;
    }
    throw new VolumeError("no node is the holder");
  }

  /** Running, mounted, not fenced. */
  async serving(): Promise<number[]> {
    const found: number[] = [];
    for (const node of this.nodes) {
      if (this.volume.lab.state(node) !== "running") continue;
      const state = await this.volume.kernelState(node);
      if (state !== undefined && state.state !== "fenced") found.push(node);
    }
    return found;
  }

  /** Nothing moves: what members are told from now on survives them. */
  async settle(): Promise<void> {
    const holder = await this.holder();
    this.load.setFirm((await this.serving()).filter((node) => node !== holder));
  }

  /** A fault begins. */
  begins(): void {
    this.load.setFirm([]);
    this.load.watch();
  }

  /** These nodes go on. Returns how long their longest wait was, in milliseconds. */
  async goOn(nodes: readonly number[], timeoutMs = SURVIVE_MS): Promise<number> {
    await this.load.progress(nodes, timeoutMs);
    const waited = this.load.longestWait(nodes);
    this.#log(`node ${nodes.join(", ")} went on; longest wait ${(waited / 1000).toFixed(1)} s`);
    return waited;
  }

  others(node: number): number[] {
    return this.nodes.filter((other) => other !== node && this.load.isRunning(other));
  }

  async isThrownOut(node: number): Promise<void> {
    await until(`node ${node} knows that it is fenced`, SURVIVE_MS, async () =>
      (await this.volume.isFenced(node)) ? true : undefined,
    );
    this.load.lost(node);
  }

  // ---- faults -----------------------------------------------------------------------------------------------

  /** Power cut. The survivors' longest wait in ms, as for all of these. */
  async kill(node: number): Promise<number> {
    const survivors = this.others(node);
    this.begins();
    this.volume.lab.kill(node);
    this.load.gone(node);
    return await this.goOn(survivors);
  }

  /** The machine hangs until the others have thrown it out, and wakes up. */
  async freezeUntilFenced(node: number): Promise<number> {
    const survivors = this.others(node);
    this.begins();
    this.volume.lab.freeze(node);
    try {
      const waited = await this.goOn(survivors);
      await this.keysAre(survivors);
      return waited;
    } finally {
      this.volume.lab.thaw(node);
      await this.isThrownOut(node);
    }
  }

  /** Its network or its path to the disk is cut until somebody was thrown out. */
  async cutUntilFenced(node: number, what: CutKind, survivors = this.others(node)): Promise<number> {
    const thrown_out = this.nodes.filter((one) => this.load.isRunning(one) && !survivors.includes(one));
    this.begins();
    this.volume.lab.cut(node, what);
    let waited: number;
    try {
      waited = await this.goOn(survivors);
      await this.keysAre(survivors);
    } finally {
      this.volume.lab.heal(node, what);
    }
    for (const one of thrown_out) await this.isThrownOut(one);
    return waited;
  }

  /** Two members cannot reach each other. Returns who was thrown out, too. */
  async cutPairUntilFenced(one: number, other: number): Promise<{ waitedMs: number; victim: number }> {
    const { lab } = this.volume;
    this.begins();
    lab.cutPair(one, other);
    try {
      const victim = await until(`node ${one} or node ${other} is fenced`, SURVIVE_MS, async () => {
        for (const node of [one, other]) if (await this.volume.isFenced(node)) return node;
        return undefined;
      });
      this.load.lost(victim);
      return { waitedMs: await this.goOn(this.others(victim)), victim };
    } finally {
      lab.healPair(one, other);
    }
  }

  /** Something so short that nobody is thrown out. */
  async blink(node: number, what: CutKind | "freeze", ms: number): Promise<number> {
    const { lab } = this.volume;
    const running = this.nodes.filter((one) => this.load.isRunning(one));
    this.begins();
    if (what === "freeze") lab.freeze(node);
    else lab.cut(node, what);
    await delay(ms);
    if (what === "freeze") lab.thaw(node);
    else lab.heal(node, what);
    return await this.goOn(running);
  }

  /** Sends a signal to the daemon of a node; returns its pid. */
  async signalDaemon(node: number, signal: "KILL" | "STOP" | "CONT", pid?: number): Promise<number> {
    const target = pid ?? (await this.volume.kernelState(node))?.pid ?? 0;
    if (target === 0) throw new VolumeError(`node ${node}: no daemon to send SIG${signal} to`);
    await this.volume.lab.run(node, `kill -${signal} ${target}`);
    return target;
  }

  /** The daemon dies; the kernel starts another. Where that takes longer than the node timeout the node is evicted. */
  async killDaemon(node: number): Promise<number> {
    const running = this.nodes.filter((one) => this.load.isRunning(one));
    this.begins();
    await this.signalDaemon(node, "KILL");
    const waited = await this.goOn(running.filter((one) => one !== node));
    const outcome = await until(`node ${node} goes on or is evicted`, SURVIVE_MS, async () => {
      if (await this.volume.isFenced(node)) return "evicted";
      const state = await this.volume.kernelState(node);
      return state?.state === "running" ? "running" : undefined;
    });
    if (outcome === "evicted") {
      this.evictions++;
      this.load.lost(node);
      return waited;
    }
    return await this.goOn(running);
  }

  /** The daemon hangs while its kernel lives, until the others have thrown the node out. */
  async stopDaemonUntilFenced(node: number): Promise<number> {
    const survivors = this.others(node);
    this.begins();
    const pid = await this.signalDaemon(node, "STOP");
    let waited: number;
    try {
      waited = await this.goOn(survivors);
      await this.keysAre(survivors);
    } finally {
      await this.signalDaemon(node, "CONT", pid);
    }
    await this.isThrownOut(node);
    return waited;
  }

  /** Unmounts in good order. */
  async leave(node: number): Promise<number> {
    const survivors = this.others(node);
    await this.load.stop(node);
    this.begins();
    await this.volume.umount(node);
    return survivors.length === 0 ? 0 : await this.goOn(survivors);
  }

  /** All at once; and they come back together. */
  async killAll(): Promise<void> {
    const { lab } = this.volume;
    this.begins();
    for (const node of this.nodes) {
      lab.kill(node);
      this.load.gone(node);
    }
    this.load.ledger.allLost();
    await Promise.all(this.nodes.map((node) => lab.start(node)));
    await this.volume.prepareAll();
    await Promise.all(this.nodes.map((node) => this.mount(node)));
  }

  /** Only the survivors' keys are registered. */
  async keysAre(survivors: readonly number[]): Promise<void> {
    const [node = 1] = survivors;
    await until(`only ${survivors.length} keys are registered`, SURVIVE_MS, async () =>
      new Set(await this.volume.keys(node)).size === survivors.length ? true : undefined,
    );
  }

  // ---- afterwards -------------------------------------------------------------------------------------------

  /** Every node is up, mounted and under load again. */
  async bringBack(): Promise<void> {
    this.#log("bringing everybody back");
    const away = await Promise.all(this.nodes.map((node) => this.#prepared(node)));
    const missing = this.nodes.filter((_, i) => away[i]);
    // Of nodes that all come back the first is the holder, so that a seed tells a story that can be repeated.
    if (missing.length === this.nodes.length) await this.mount(missing.shift() ?? 1);
    await Promise.all(missing.map((node) => this.mount(node)));
    this.#log("everybody has it mounted");
    for (const node of this.nodes) if (!this.load.isRunning(node)) await this.load.start(node);
    await this.load.progress(this.nodes, SURVIVE_MS);
    await this.settle();
    this.#log("everybody works");
  }

  /** Running, and what was thrown out unmounted. True: to be mounted. */
  async #prepared(node: number): Promise<boolean> {
    const { lab } = this.volume;
    if (lab.state(node) === "off") {
      await lab.start(node);
      await this.volume.prepare(node);
    }
    const state = await this.volume.kernelState(node);
    if (state?.state === "fenced") {
      this.load.lost(node);
      await this.load.stop(node);
      await this.volume.umount(node);
    }
    return state === undefined || state.state === "fenced";
  }

  /** Everything stopped, compared, unmounted, and the XFS checked. */
  async end(): Promise<void> {
    this.load.setFirm([]);
    await this.load.stopAll();
    const nodes = await this.serving();
    const found = await this.load.verify(nodes);
    this.#log(`${found.names.size} names agree on ${nodes.length} nodes with what was promised`);
    await this.volume.umountAll();
    const keys = await this.volume.keys(1);
    if (keys.length > 0) {
      throw new VolumeError(`${DEVICE}: everybody has unmounted, and keys are left: ${keys.join(", ")}`);
    }
    await this.volume.checkXfs(1);
  }
}
