// SPDX-License-Identifier: GPL-2.0-only
//
// What the lab tests of MXFS share: one lab for a file, a fresh volume after a test that failed, and the kernel logs
// of all nodes read at the end of every test.
//
// Weakness: a test that leaves the volume in another state than it found it says so itself, with `leaves`.

import { test } from "uvu";
import { wantsDebugKernel } from "../../lab/guest.js";
import { Lab, type LabOptions } from "../../lab/lab.js";
import { MOUNTPOINT, Volume } from "../../lab/volume.js";

export { MOUNTPOINT };

/** Mount options: shorter than the defaults, so that a death costs less; long enough for slow machines. */
export const TIMINGS = "heartbeat=1000,renew=1000,lease=3500,node_timeout=10000,startup=180000";

export interface SuiteOptions extends LabOptions {
  /** Mount options of the volume. */
  readonly mountOptions?: string;
  /** Whether tests find the volume mounted on all nodes. */
  readonly mounted: boolean;
}

export interface ProofOptions {
  /** Lines of the kernel logs that belong to what the test does. */
  readonly expected?: readonly RegExp[];
  /** The next test starts on rebooted nodes and a new volume. */
  readonly leavesDamage?: boolean;
}

export class Suite {
  readonly #options: SuiteOptions;
  #volume: Volume | undefined;
  #dirty = false;

  /** @param name of the lab; MXFS_LAB makes it another one. MXFS_TARGET=lio takes the other target. */
  constructor(name: string, options: SuiteOptions) {
    const suffix = process.env.MXFS_LAB === undefined ? "" : `${process.env.MXFS_LAB}-`;
    const target = process.env.MXFS_TARGET === "lio" ? "lio" : "tgt";
    this.#options = {
      ephemeral: true,
      replace: true,
      nodes: 2,
      target,
      ...options,
      name: `${suffix}${name}`,
    };
    test.before(async () => {
      try {
        await this.#up();
      } catch (error) {
        // uvu keeps what a hook throws to itself, and counts no failure.
        process.stderr.write(
          `the lab did not come up: ${error instanceof Error ? error.stack : String(error)}\n`,
        );
        process.exit(1);
      }
    });
    test.after(async () => {
      try {
        if (wantsDebugKernel() && !this.#dirty) await this.#end();
      } catch (error) {
        process.stderr.write(`--- at the end: ${error instanceof Error ? error.message : String(error)}\n`);
        process.on("exit", () => process.exit(1)); // uvu sets the status behind us
      }
      this.#volume?.lab.down();
    });
  }

  get volume(): Volume {
    if (this.#volume === undefined) throw new Error("the lab is not up");
    return this.#volume;
  }

  get lab(): Lab {
    return this.volume.lab;
  }

  async #up(): Promise<void> {
    const lab = await Lab.up(this.#options);
    this.#volume = new Volume(lab);
    await this.#volume.prepareAll();
    await this.#volume.mkfs();
    if (this.#options.mounted) await this.#volume.mountAll(this.#options.mountOptions);
  }

  /** What only the debug kernel can tell: whether the module leaves anything behind. */
  async #end(): Promise<void> {
    this.volume.markKernelLogs();
    await this.volume.umountAll();
    await this.volume.checkLeaks();
    this.volume.checkKernelLogs();
    process.stderr.write("  kmemleak: nothing of mxfs is left\n");
  }

  /** A test named by the sentence that it proves. */
  proves(sentence: string, body: () => Promise<void>, options: ProofOptions = {}): void {
    const wanted = process.env.MXFS_TEST;
    if (wanted !== undefined && !sentence.includes(wanted)) return;
    test(sentence, async () => {
      if (this.#dirty) await this.#reset();
      this.volume.markKernelLogs();
      this.#dirty = true;
      const began = Date.now();
      try {
        await body();
        this.volume.checkKernelLogs(options.expected);
      } catch (error) {
        process.stderr.write(`--- ${sentence}: ${error instanceof Error ? error.message : String(error)}\n`);
        await this.#tellMore(options.expected);
        throw error;
      } finally {
        process.stderr.write(`  [${((Date.now() - began) / 1000).toFixed(1)} s] ${sentence}\n`);
      }
      this.#dirty = options.leavesDamage === true;
    });
  }

  async #reset(): Promise<void> {
    const { mounted, mountOptions } = this.#options;
    if (mounted) {
      await this.volume.reset(mountOptions);
      return;
    }
    for (const node of this.volume.nodes) {
      this.lab.heal(node);
      this.lab.kill(node);
    }
    await Promise.all(this.volume.nodes.map((node) => this.lab.start(node)));
    await this.volume.prepareAll();
    await this.volume.clearKeys(1);
    await this.volume.mkfs();
  }

  /** For who reads why a test failed. */
  async #tellMore(expected: readonly RegExp[] = []): Promise<void> {
    for (const node of this.volume.nodes) {
      const log = await this.volume.daemonLog(node, 25).catch((error: unknown) => String(error));
      const console = this.volume.kernelStory(node, expected);
      process.stderr.write(`--- node${node}: mxfsd.log ends\n${log}\n--- node${node}: console\n${console}\n`);
    }
  }
}

/** A number from the environment, so that somebody with time can ask for more rounds. */
export function rounds(otherwise: number): number {
  const text = process.env.MXFS_ROUNDS;
  if (text === undefined) return otherwise;
  if (!/^[1-9][0-9]{0,3}$/.test(text)) throw new Error(`MXFS_ROUNDS=${text}: expected 1 to 9999`);
  return Number(text);
}
