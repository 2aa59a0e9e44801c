// SPDX-License-Identifier: GPL-2.0-only
//
// The perf harness (`npm run perf`): the same jobs on raw XFS, on mxfs as the holder and on mxfs as a member, in the
// same guest and on the same LUN, in turns; medians, ratios, a table, and a JSON file.
//
//   npm run perf -- [--rounds 3] [--short] [--json FILE]
//
// Every round makes a new XFS: raw on node 1; then node 1 mounts mxfs first (holder) and node 2 joins; then the other
// way round, so that node 1 is the member.
//
// Weakness: see figures.ts; a guest without hardware virtualisation is about twelve times slower than a machine, so
// what costs CPU weighs too much.

import { writeFileSync } from "node:fs";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { Lab, MOUNTPOINT, Volume, VolumeError } from "../lab/volume.js";
import { type Figures, figureTable, measure, medians, SIZE_FULL, SIZE_SHORT } from "./figures.js";

const NODE = 1;
const OTHER = 2;

const argv = await yargs(hideBin(process.argv))
  .scriptName("perf")
  .option("rounds", { type: "number", default: 3, describe: "rounds of all three" })
  .option("short", { type: "boolean", default: false, describe: "small files: minutes instead of an hour" })
  .option("json", { type: "string", default: ".lab/perf.json", describe: "where the figures go" })
  .strict()
  .parseAsync();
if (!Number.isInteger(argv.rounds) || argv.rounds < 1 || argv.rounds > 100) {
  throw new VolumeError(`--rounds ${argv.rounds}: expected 1 to 100`);
}

const size = argv.short ? SIZE_SHORT : SIZE_FULL;
const say = (line: string): void => {
  process.stderr.write(`${line}\n`);
};
const lab = await Lab.up({ name: process.env.MXFS_LAB ?? "perf", nodes: 2, ephemeral: true, log: say });
try {
  const volume = new Volume(lab);
  await volume.prepareAll();
  const raw: Figures[] = [];
  const holder: Figures[] = [];
  const member: Figures[] = [];
  for (let round = 1; round <= argv.rounds; round++) {
    say(`round ${round} of ${argv.rounds}: raw XFS`);
    await volume.mkfs(NODE);
    await lab.run(NODE, `mount -t xfs /dev/sda ${MOUNTPOINT}`);
    raw.push(await measure(lab, NODE, MOUNTPOINT, size));
    await lab.run(NODE, `umount ${MOUNTPOINT}`);
    for (const [first, second, role, into] of [
      [NODE, OTHER, "holder", holder],
      [OTHER, NODE, "member", member],
    ] as const) {
      say(`round ${round} of ${argv.rounds}: mxfs, ${role}`);
      await volume.mkfs(NODE);
      await volume.mount(first);
      await volume.mount(second);
      const found = await volume.role(NODE);
      if (found !== role) {
        throw new VolumeError(`node ${NODE}: expected ${role}, found ${found}`);
      }
      into.push(await measure(lab, NODE, MOUNTPOINT, size));
      await volume.umountAll();
    }
  }
  const result = { size, raw: medians(raw), holder: medians(holder), member: medians(member) };
  process.stdout.write(
    `${figureTable(result.raw, [
      ["holder", result.holder],
      ["member", result.member],
    ])}\n`,
  );
  writeFileSync(
    argv.json,
    `${JSON.stringify({ ...result, rounds: { raw, holder, member }, lab: lab.status() }, null, 2)}\n`,
  );
  say(`medians of ${argv.rounds} rounds; all figures: ${argv.json}`);
  volume.checkKernelLogs();
} finally {
  lab.down();
}
