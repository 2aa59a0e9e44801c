// SPDX-License-Identifier: GPL-2.0-only
//
// The path to the disk is lost; all nodes die at once; lockstate is wiped or damaged, mounted and not. Two nodes under
// load, a checker outside of the guests. The damage is done from outside as well, in the image of the shared disk.
//
// Weakness: timings are shorter than the defaults (TIMINGS).

import { closeSync, fsyncSync, openSync, writeSync } from "node:fs";
import * as assert from "uvu/assert";
import type { LockstateLocation } from "../../src/disk/lockstate.js";
import { dumpDisk, ImageFile } from "../../src/main/disk_dump.js";
import { MXFS_DISK_LOCK_OFFSET } from "../../src/wire/abi.js";
import { locateLockstate } from "../../src/workers/disk_io.js";
import { FaultSuite } from "./mxfs_faults_suite.js";

const faults = new FaultSuite("mxfs-faults-disk", 2);
const { suite } = faults;

for (const who of ["member", "holder"] as const) {
  faults.proves(
    `The ${who} loses its path to the disk: it is thrown out, the other goes on, and may be mounted again once healed`,
    async (field) => {
      const holder = await field.holder();
      const victim = who === "holder" ? holder : 3 - holder;
      await field.cutUntilFenced(victim, "disk");
      assert.is(await field.holder(), 3 - victim);
      assert.equal(field.load.failuresOf([3 - victim]), []);
      await field.bringBack();
    },
  );
}

faults.proves(
  "Both nodes die at once and come back together: one of them replays the log, nothing synced is lost",
  async (field) => {
    await field.killAll();
    const roles = await Promise.all([1, 2].map((node) => suite.volume.role(node)));
    assert.equal([...roles].sort(), ["holder", "member"]);
    await field.bringBack();
  },
);

/** Overwrites lockstate, or the begin of it, in the image of the disk. */
async function damage(bytes: number, fill: (buffer: Buffer) => void): Promise<void> {
  const image = suite.lab.diskImage;
  const device = new ImageFile(image);
  let location: LockstateLocation;
  try {
    const located = await locateLockstate(device);
    if (located.kind !== "found") throw new Error(`lockstate in ${image}: ${located.kind}`);
    location = located.location;
  } finally {
    device.close();
  }
  const fd = openSync(image, "r+");
  try {
    for (const extent of location.extents) {
      const length = Math.min(extent.length, bytes - extent.fileOffset);
      if (length <= 0) continue;
      const buffer = Buffer.alloc(length);
      fill(buffer);
      writeSync(fd, buffer, 0, length, extent.deviceOffset);
    }
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

const garbage = (buffer: Buffer): void => {
  for (let at = 0; at < buffer.length; at++) buffer[at] = (at * 167 + 13) & 0xff;
};

for (const [what, bytes, fill] of [
  ["wiped", Number.MAX_SAFE_INTEGER, (): void => undefined],
  ["damaged", MXFS_DISK_LOCK_OFFSET, garbage],
] as const) {
  faults.proves(
    `Lockstate is ${what} while nobody has it mounted: it is made anew, and all files are there`,
    async (field) => {
      await field.load.stopAll();
      await suite.volume.umountAll();
      await damage(bytes, fill);
      await field.bringBack();
      const dump = await dumpDisk(suite.lab.diskImage);
      const members = dump.header?.members;
      assert.is(Array.isArray(members) ? members.length : 0, 2, "members of a sound header");
    },
  );
}

faults.proves(
  "Lockstate is wiped under two nodes that work, and then the holder dies: the member takes over",
  async (field) => {
    const holder = await field.holder();
    await damage(Number.MAX_SAFE_INTEGER, () => undefined);
    await field.goOn([1, 2]);
    await field.kill(holder);
    assert.is(await field.holder(), 3 - holder);
    assert.equal(field.load.failuresOf([3 - holder]), []);
    await field.bringBack();
  },
);

faults.run();
