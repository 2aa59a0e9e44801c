// SPDX-License-Identifier: GPL-2.0-only
//
// What the fault tests share: a field (volume under load, checker outside of the guests) for each test, and the end
// that all of them come to: the nodes see the same, all of it is what was acknowledged, the XFS is whole.
//
// Weakness: faults that the timings of TIMINGS make a node survive or not are not tried here, lab:chaos tries them.

import { test } from "uvu";
import { Field } from "../../lab/field.js";
import { FENCING_SAYS, until, VolumeError } from "../../lab/volume.js";
import { MOUNTPOINT, Suite, TIMINGS } from "./mxfs_suite.js";

/** Between two operations of a worker: faults are the subject, not the load. */
const PAUSE_MS = 80;
/** The last whole 4 KiB of the 4 GiB LUN: beyond every allocation group, or free space. */
const SPARE_BLOCK = 4 * 2 ** 30 - 4096;

export class FaultSuite {
  readonly suite: Suite;
  #tests = 0;

  constructor(name: string, nodes: number) {
    this.suite = new Suite(name, { mounted: false, nodes, memoryMib: 768, mountOptions: TIMINGS });
  }

  /** A test on a field with loads on all nodes. Afterwards everything is compared; the nodes stay mounted. */
  proves(sentence: string, body: (field: Field, loadDirectory: string) => Promise<void>): void {
    this.suite.proves(
      sentence,
      async () => {
        const directory = `${MOUNTPOINT}/load${++this.#tests}`;
        const began = Date.now();
        const log = (line: string): void => {
          process.stderr.write(`    ${((Date.now() - began) / 1000).toFixed(1).padStart(6)} s  ${line}\n`);
        };
        const field = new Field(this.suite.volume, {
          mountOptions: TIMINGS,
          directory,
          log,
          pauseMs: PAUSE_MS,
        });
        try {
          await field.bringBack();
          await body(field, directory);
          log("comparing");
          await field.load.stopAll();
          const found = await field.load.verify(await field.serving());
          log(`${found.names.size} names, ${field.load.ledger.operations} operations compared`);
        } catch (error) {
          await field.load.stopAll().catch(() => undefined);
          throw error;
        }
      },
      { expected: FENCING_SAYS },
    );
  }

  /** The last test of a file. */
  run(): void {
    this.suite.proves("Everybody unmounts, no key is left, and the XFS is whole", async () => {
      const { volume } = this.suite;
      await volume.umountAll();
      await until("no key is left", 10_000, async () =>
        (await volume.keys(1)).length === 0 ? true : undefined,
      );
      await volume.checkXfs(1);
    });
    test.run();
  }

  /** Whatever a node that was thrown out tries, nothing reaches the disk. */
  async cannotWrite(node: number): Promise<void> {
    const { volume, lab } = this.suite;
    const said = await volume.work(node, ["raw-write", "/dev/sda", SPARE_BLOCK]);
    if (!said.startsWith("refused "))
      throw new VolumeError(`node ${node}: a raw write: expected a refusal, found ${said}`);
    const result = await lab.exec(node, `echo too late >>${MOUNTPOINT}/too-late`);
    if (!/Input\/output error/.test(result.stderr)) {
      throw new VolumeError(
        `node ${node}: a write through the fenced mount: expected EIO, found status ${result.status} ${result.stderr}`,
      );
    }
  }
}
