// SPDX-License-Identifier: GPL-2.0-only
//
// The checker of the fault tests and of lab:chaos: it accepts what a load really leaves behind, and sees every kind of
// damage. The load runs natively, in a directory of its own.

import { spawn, spawnSync } from "node:child_process";
import {
  appendFileSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { PROJECT_DIR } from "../../lab/lab.js";
import { Ledger, parseDump } from "../../lab/ledger.js";

const LOAD = join(PROJECT_DIR, ".lab", "bin", "mxfs-load");
const ANSWERS = 200;
/** On a busy machine one worker may be far behind the others: here its 64 blocks have been written again by then. */
const DIRECT_ANSWERS = 130;

const root = mkdtempSync(join(tmpdir(), "mxfs-ledger-"));
const made = join(root, "made");
const lines: string[] = [];

test.before(async () => {
  mkdirSync(made);
  const child = spawn(LOAD, ["run", made, "n1.1", "1"], { stdio: ["pipe", "pipe", "inherit"] });
  let rest = "";
  let direct = 0;
  child.stdout.on("data", (piece: Buffer) => {
    const parts = (rest + piece.toString("latin1")).split("\n");
    rest = parts.pop() ?? "";
    lines.push(...parts);
    direct += parts.filter((line) => line.startsWith("direct ")).length;
    if (lines.length > ANSWERS * 6 && direct >= DIRECT_ANSWERS) child.stdin.end();
  });
  await new Promise((resolve) => child.on("close", resolve));
});

test.after(() => rmSync(root, { recursive: true, force: true }));

function ledgerOf(words: readonly string[], firm = true): Ledger {
  const ledger = new Ledger();
  for (const line of words) ledger.note("n1.1", line, firm);
  return ledger;
}

/** A copy that may be damaged, and what the checker says of it. */
async function judged(damage: (directory: string) => void, ledger = ledgerOf(lines)): Promise<string[]> {
  const directory = mkdtempSync(join(root, "copy-"));
  cpSync(made, directory, { recursive: true });
  damage(directory);
  const dump = spawnSync(LOAD, ["dump", directory], { encoding: "utf8" });
  assert.is(dump.status, 0, dump.stderr);
  return await ledger.compare(parseDump(dump.stdout), async (path) => readFileSync(join(directory, path)));
}

function first(directory: string, pattern: RegExp): string {
  const name = readdirSync(directory).find((it) => pattern.test(it));
  assert.ok(name, `no ${pattern} in ${directory}`);
  return join(directory, String(name));
}

test("what a load leaves behind is accepted", async () => {
  assert.equal(await judged(() => undefined), []);
  for (const worker of ["file", "lazy", "append", "direct", "fcntl", "flock"]) {
    assert.ok(
      lines.some((line) => new RegExp(`^${worker} [as] `).test(line)),
      `no answer of ${worker}`,
    );
  }
});

const DAMAGES: readonly (readonly [string, (directory: string) => void, RegExp])[] = [
  ["a synced file is missing", (it) => unlinkSync(first(join(it, "files"), /-0$/)), /synced, and not there/],
  ["a removed file is back", (it) => writeFileSync(join(it, "files", "n1.1-1"), "x"), /nobody has made it/],
  ["a rename was undone", (it) => writeFileSync(join(it, "files", "n1.1-0.tmp"), "x"), /nobody has made it/],
  ["a file is cut short", (it) => truncateSync(first(join(it, "files"), /-0$/), 1), /torn/],
  ["a file has other bytes", (it) => appendFileSync(first(join(it, "lazy-n1.1"), /^3$/), "x"), /torn/],
  [
    "an acknowledged file is missing",
    (it) => unlinkSync(join(it, "lazy-n1.1", "4")),
    /acknowledged, and not/,
  ],
  ["a name nobody made", (it) => writeFileSync(join(it, "stray"), ""), /nobody has made it/],
  [
    "a record is there twice",
    (it) => appendFileSync(join(it, "appended"), readFileSync(join(it, "appended")).subarray(0, 64)),
    /expected its number/,
  ],
  [
    "the end of the records is missing",
    (it) => truncateSync(join(it, "appended"), 64),
    /records of n1.1 end/,
  ],
  ["a record is torn", (it) => truncateSync(join(it, "appended"), 100), /torn/],
  [
    "a hole among the records",
    (it) => {
      const data = readFileSync(join(it, "appended"));
      writeFileSync(join(it, "appended"), data.fill(0, 128, 192));
    },
    /torn/,
  ],
  [
    "a block is torn",
    (it) => {
      const data = readFileSync(join(it, "direct-n1.1"));
      writeFileSync(join(it, "direct-n1.1"), data.fill(0x41, 512, 1024));
    },
    /block 0: torn/,
  ],
  [
    "a block is an old one",
    (it) => {
      const data = readFileSync(join(it, "direct-n1.1"));
      const old = Buffer.from(`n1.1 0 ${".".repeat(64)}`.slice(0, 63).concat("\n"), "latin1");
      writeFileSync(join(it, "direct-n1.1"), data.fill(old, 0, 4096));
    },
    /block 0: expected number/,
  ],
  [
    "the counter went back",
    (it) => writeFileSync(join(it, "count-fcntl"), "00000000000000000001\n"),
    /count-fcntl/,
  ],
];

for (const [what, damage, said] of DAMAGES) {
  test(`the checker sees that ${what}`, async () => {
    const problems = await judged(damage);
    assert.ok(
      problems.some((problem) => said.test(problem)),
      `expected ${said}, found ${JSON.stringify(problems)}`,
    );
  });
}

test("the checker sees that a number was given out twice", async () => {
  const ledger = ledgerOf(lines);
  ledger.note("n2.1", "fcntl s 3", true);
  const problems = await judged(() => undefined, ledger);
  assert.ok(problems.some((problem) => /two had the lock/.test(problem)));
});

test("a node that died may lose the end of what it had not synced as the holder, but nothing in the middle", async () => {
  const last = Math.max(...readdirSync(join(made, "lazy-n1.1")).map(Number));
  const dead = (firm: boolean): Ledger => {
    const ledger = ledgerOf(lines, firm);
    ledger.lost("n1.1");
    return ledger;
  };
  const cut = (directory: string): void => unlinkSync(join(directory, "lazy-n1.1", String(last)));
  assert.equal(await judged(cut, dead(false)), []);
  assert.match((await judged(cut, dead(true))).join(), /acknowledged, and not there/);
  const hole = (directory: string): void => unlinkSync(join(directory, "lazy-n1.1", "2"));
  assert.match((await judged(hole, dead(false))).join(), /was made before it, is not/);
});

test("appended records that a member had not synced may die with it, what it had synced and what others had may not", async () => {
  // Every fourth record is synced; the load is cut behind one that is not.
  const synced = Math.max(
    ...lines.filter((it) => it.startsWith("append s ")).map((it) => Number(it.split(" ")[2])),
  );
  const until = lines.indexOf(`append s ${synced}`);
  const unsynced = [...lines.slice(0, until + 1), `append b ${synced + 1}`, `append a ${synced + 1}`];
  const ledger = (dies: boolean): Ledger => {
    const made_of = ledgerOf(unsynced.filter((it) => it.startsWith("append")));
    if (dies) made_of.lost("n1.1");
    return made_of;
  };
  const cut = (records: number) => (directory: string) =>
    truncateSync(join(directory, "appended"), 64 * records);
  const told = async (records: number, dies: boolean): Promise<string[]> =>
    (await judged(cut(records), ledger(dies))).filter((problem) => problem.startsWith("appended"));
  assert.equal(await told(synced + 1, true), []);
  assert.match((await told(synced + 1, false)).join(), /records of n1.1 end/);
  assert.match((await told(synced, true)).join(), /records of n1.1 end/);
});

test.run();
