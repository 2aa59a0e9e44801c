// SPDX-License-Identifier: GPL-2.0-only
//
// lab:chaos: nodes under load, and one fault after the other: power cuts, frozen machines, cut cables, lost disks,
// killed and hanging daemons, unmounts, everything off at once. What happens when comes from the seed.
//
//   npm run lab:chaos -- --seed N --minutes M [--nodes 2|3] [--target tgt|lio] [--mount-options O] [--faults F,F]
//   npm run lab:chaos -- --short          the fixed campaign of `npm test`
//
// All the time: operations of nodes that no fault has touched do not fail, and go on after every fault. At the end:
//   nothing acknowledged is missing, nothing is there that nobody made (lab/ledger.ts, outside of the guests)
//   no torn file, record or block; nothing was executed twice
//   names, sizes and contents are the same on all nodes
//   everybody can unmount; no reservation key is left; xfs_repair -n is clean
//   no kernel has warned
// The last line has the figures. Exit status: 0 all of that held, 1 not, 2 wrong usage.
//
// Weakness: the seed decides on faults and pauses, not on the order in which machines work: a failing seed makes a
// failure likely, not certain.

import { setTimeout as delay } from "node:timers/promises";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { Field } from "./field.js";
import { Lab, type TargetKind } from "./lab.js";
import { FENCING_SAYS, Volume, VolumeError } from "./volume.js";

/** Longest pause of a blink: below every lease. */
const BLINK_MS = 1_500;
const PAUSE_MS = 8_000;

interface Campaign {
  readonly field: Field;
  readonly random: Random;
}

interface Fault {
  readonly name: string;
  readonly weight: number;
  readonly nodesMin: number;
  /** Who, and how long the longest wait of a survivor was in ms. */
  run(campaign: Campaign): Promise<{ readonly who: string; readonly waitedMs: number }>;
}

/** Numbers from a seed (mulberry32). */
class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  /** 0 to below `limit`. */
  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(this.#state ^ (this.#state >>> 15), this.#state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % limit;
  }
  pick<T>(from: readonly T[]): T {
    const one = from[this.below(from.length)];
    if (one === undefined) throw new Error("nothing to pick from");
    return one;
  }
}

async function aMember({ field, random }: Campaign): Promise<number> {
  const holder = await field.holder();
  return random.pick(field.nodes.filter((node) => node !== holder));
}

function anybody({ field, random }: Campaign): number {
  return random.pick(field.nodes);
}

function simple(
  name: string,
  weight: number,
  who: (campaign: Campaign) => number | Promise<number>,
  what: (campaign: Campaign, node: number) => Promise<number>,
  nodesMin = 2,
): Fault {
  return {
    name,
    weight,
    nodesMin,
    async run(campaign) {
      const node = await who(campaign);
      return { who: `node${node}`, waitedMs: await what(campaign, node) };
    },
  };
}

const theHolder = ({ field }: Campaign): Promise<number> => field.holder();

/** Of two nodes it is always the member that goes; of three it is the one who is alone. */
async function cutNetwork(campaign: Campaign, node: number): Promise<number> {
  const { field } = campaign;
  const survivors = field.nodes.length > 2 ? field.others(node) : [await field.holder()];
  return await field.cutUntilFenced(node, "network", survivors);
}

/** A third node mounts while a dead holder is taken over. */
async function joinInRecovery({ field, random }: Campaign): Promise<{ who: string; waitedMs: number }> {
  const holder = await field.holder();
  const joiner = random.pick(field.nodes.filter((node) => node !== holder));
  await field.leave(joiner);
  await delay(random.below(PAUSE_MS));
  const killed = field.kill(holder);
  const [waitedMs] = await Promise.all([killed, field.mount(joiner)]);
  return { who: `node${holder} dies, node${joiner} joins`, waitedMs };
}

const FAULTS: readonly Fault[] = [
  simple("kill-holder", 4, theHolder, ({ field }, node) => field.kill(node)),
  simple("kill-member", 2, aMember, ({ field }, node) => field.kill(node)),
  simple("freeze-holder", 2, theHolder, ({ field }, node) => field.freezeUntilFenced(node)),
  simple("freeze-member", 1, aMember, ({ field }, node) => field.freezeUntilFenced(node)),
  simple("cut-network", 2, anybody, cutNetwork),
  simple("cut-disk-holder", 1, theHolder, ({ field }, node) => field.cutUntilFenced(node, "disk")),
  simple("cut-disk-member", 1, aMember, ({ field }, node) => field.cutUntilFenced(node, "disk")),
  simple("kill-daemon", 2, anybody, ({ field }, node) => field.killDaemon(node)),
  simple("stop-daemon", 1, anybody, ({ field }, node) => field.stopDaemonUntilFenced(node)),
  simple("leave-holder", 2, theHolder, ({ field }, node) => field.leave(node)),
  simple("leave-member", 1, aMember, ({ field }, node) => field.leave(node)),
  simple("blink-network", 2, anybody, ({ field, random }, node) =>
    field.blink(node, "network", random.below(BLINK_MS)),
  ),
  simple("blink-disk", 1, anybody, ({ field, random }, node) =>
    field.blink(node, "disk", random.below(BLINK_MS)),
  ),
  simple("blink-freeze", 1, anybody, ({ field, random }, node) =>
    field.blink(node, "freeze", random.below(BLINK_MS)),
  ),
  {
    name: "all-off",
    weight: 1,
    nodesMin: 2,
    async run({ field }) {
      await field.killAll();
      return { who: "all", waitedMs: 0 };
    },
  },
  { name: "join-in-recovery", weight: 1, nodesMin: 3, run: joinInRecovery },
  {
    name: "cut-pair",
    weight: 1,
    nodesMin: 3,
    async run({ field }) {
      const holder = await field.holder();
      const [one = 0, other = 0] = field.nodes.filter((node) => node !== holder);
      const { waitedMs, victim } = await field.cutPairUntilFenced(one, other);
      return { who: `node${one} and node${other}, node${victim} went`, waitedMs };
    },
  },
];

/** Every way of losing a node, once, in an order that moves the holder back and forth. */
const SHORT: readonly string[] = ["kill-holder", "cut-network", "kill-daemon"];
const SHORT_OPTIONS = "heartbeat=1000,renew=1000,lease=3500,node_timeout=10000,startup=180000";

interface Options {
  readonly seed: number;
  readonly minutes: number;
  readonly nodes: number;
  readonly target: TargetKind;
  readonly mountOptions: string;
  /** In this order, once each; empty: by the seed until the time is over. */
  readonly list: readonly string[];
  /** What the seed may choose from. */
  readonly choice: readonly string[];
}

function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

function choose(random: Random, faults: readonly Fault[]): Fault {
  const sum = faults.reduce((total, fault) => total + fault.weight, 0);
  let at = random.below(sum);
  for (const fault of faults) {
    if (at < fault.weight) return fault;
    at -= fault.weight;
  }
  throw new Error("no fault can be chosen");
}

function faultNamed(name: string): Fault {
  const fault = FAULTS.find((it) => it.name === name);
  if (fault === undefined) {
    throw new VolumeError(`no fault "${name}"; there are: ${FAULTS.map((it) => it.name).join(", ")}`);
  }
  return fault;
}

function* schedule(options: Options, random: Random, beganMs: number): Generator<Fault> {
  if (options.list.length > 0) {
    yield* options.list.map(faultNamed);
    return;
  }
  const allowed = (options.choice.length > 0 ? options.choice.map(faultNamed) : FAULTS).filter(
    (fault) => fault.nodesMin <= options.nodes,
  );
  while (Date.now() - beganMs < options.minutes * 60_000) yield choose(random, allowed);
}

async function campaign(options: Options): Promise<number> {
  const beganMs = Date.now();
  const stamp = (): string => `${((Date.now() - beganMs) / 1000).toFixed(1).padStart(6)} s`;
  const random = new Random(options.seed);
  const { nodes, target, mountOptions } = options;
  say(`chaos: seed ${options.seed}, ${nodes} nodes, target ${target}, ${mountOptions || "default timings"}`);
  const name = `${process.env.MXFS_LAB === undefined ? "" : `${process.env.MXFS_LAB}-`}chaos`;
  const lab = await Lab.up({ name, nodes, target, ephemeral: true, replace: true, memoryMib: 768 });
  const volume = new Volume(lab);
  const field = new Field(volume, { mountOptions, log: (line) => say(`${stamp()}    ${line}`) });
  let faults = 0;
  let worstMs = 0;
  let worst = "none";
  let verdict = "well";
  let doing = "start";
  try {
    volume.markKernelLogs();
    await volume.prepareAll();
    await volume.mkfs();
    await field.begin();
    say(`${stamp()}  ${nodes} nodes under load`);
    for (const fault of schedule(options, random, Date.now())) {
      await delay(random.below(PAUSE_MS));
      doing = fault.name;
      const { who, waitedMs } = await fault.run({ field, random });
      faults++;
      say(`${stamp()}  ${fault.name} (${who}): longest wait ${(waitedMs / 1000).toFixed(1)} s`);
      if (waitedMs > worstMs) [worstMs, worst] = [waitedMs, fault.name];
      doing = `coming back after ${fault.name}`;
      await field.bringBack();
      volume.checkKernelLogs(FENCING_SAYS);
    }
    doing = "end";
    await field.end();
    volume.checkKernelLogs(FENCING_SAYS);
  } catch (error) {
    verdict = "FAILED";
    say(`${stamp()}  ${doing}: ${error instanceof Error ? error.message : String(error)}`);
    for (const node of volume.nodes) {
      const log = await volume.daemonLog(node, 30).catch((why: unknown) => String(why));
      const kernel = volume.kernelStory(node, FENCING_SAYS);
      say(`--- node${node}: mxfsd.log ends\n${log}\n--- node${node}: console\n${kernel}`);
    }
  } finally {
    lab.down();
  }
  say(
    `chaos: ${verdict}: seed ${options.seed}, ${nodes} nodes, ${target}: ${faults} faults, ` +
      `worst wait ${(worstMs / 1000).toFixed(1)} s (${worst}), ${field.load.ledger.operations} operations answered, ` +
      `${field.evictions} evicted for a slow daemon, ${((Date.now() - beganMs) / 1000).toFixed(0)} s`,
  );
  return verdict === "well" ? 0 : 1;
}

const words = (text: string): string[] => text.split(",").filter((word) => word !== "");

const argv = await yargs(hideBin(process.argv))
  .scriptName("lab:chaos")
  .option("seed", { type: "number", default: 1, describe: "decides on faults and pauses" })
  .option("minutes", { type: "number", default: 10, describe: "new faults for so long" })
  .option("nodes", { type: "number", choices: [2, 3] as const, default: 2 })
  .option("target", { choices: ["tgt", "lio"] as const, default: "tgt" as TargetKind })
  .option("mount-options", { type: "string", default: "", describe: "timings, say" })
  .option("faults", { type: "string", default: "", describe: "choose from these only, comma-separated" })
  .option("list", { type: "string", default: "", describe: "these, once each, in this order" })
  .option("short", { type: "boolean", default: false, describe: "the fixed campaign of npm test" })
  .epilogue(`faults: ${FAULTS.map((fault) => fault.name).join(", ")}`)
  .strict()
  .fail((message, error) => {
    process.stderr.write(`lab:chaos: ${message ?? error.message}\nTry --help.\n`);
    process.exit(2);
  })
  .parseAsync();

try {
  process.exitCode = await campaign({
    seed: argv.seed,
    minutes: argv.minutes,
    nodes: argv.nodes,
    target: argv.target,
    mountOptions: argv["mount-options"] || (argv.short ? SHORT_OPTIONS : ""),
    list: argv.short ? SHORT : words(argv.list),
    choice: words(argv.faults),
  });
} catch (error) {
  process.stderr.write(`lab:chaos: ${error instanceof Error ? error.message : String(error)}\n`);
  process.exitCode = 1;
}
// Commands that were given up hold their sockets open.
process.exit();
