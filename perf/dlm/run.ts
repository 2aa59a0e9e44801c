// SPDX-License-Identifier: GPL-2.0-only
//
// `npm run perf:dlm`: how fast the lock engine is, beside what people use as lock servers, in one run.
//
//   npm run perf:dlm -- [--rounds 5] [--seconds 1] [--quick] [--only PART...] [--lab] [--json FILE] [--no-install]
//
// Parts, and what they need:
////
// table   LockEngine (perf/dlm/table.ts) and a C++ unordered_map with striped mutexes (map.cc): lock+unlock pairs
// tcp     the daemon's own peer worker (server.ts) on loopback, Redis (SET NX, DEL) and etcd (transaction, delete),
//         all driven by one C client (client.c) with 1, 64 or 512 requests outstanding
// trip    a request and its grant over netlink, and over a socketpair, with a process in the kernel's place
//         (roundtrip.c; loop.ts is the netlink worker's loop, roundtrip.c echo the same in C)
// alone   memory of a resident lock; a view change with 100,000 held locks (one process: no network in it)
// service three daemons (service.ts): the same view change after one was killed, and a daemon's memory. Needs root; once
//         with --quick
//
// Every round runs every row once, ours and the comparator one after the other, in turns as to who is first; the
// table shows medians, and ratios of medians: above 1 is in our favour. Goals are those of the project's plan.
// Redis and etcd are installed from Debian when missing, started on private ports, without persistence that costs
// (Redis: none; etcd: its log in /dev/shm).
//
// lab     with --lab: the classic five operations beside the kernel's own dlm in two guests, and the daemon's memory
//         (lab.ts, locker.c); then only these rows
//
// Weakness: on a host that is busy with other things wall times waver; the tables' rows are by CPU time for that
// reason, except two threads, which is about wall time.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { loadavg, tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as pause } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { COMMAND, LockEngine } from "../../src/dlm/engine.js";
import { Outbox } from "../../src/dlm/outbox.js";
import { LockMode } from "../../src/wire/abi.js";
import { encodeLockEntries } from "../../src/wire/lock_entry.js";
import { LAB_ROWS, labRows } from "./lab.js";
import { serviceRows } from "./service.js";

const HERE = dirname(fileURLToPath(import.meta.url));
const SOURCES = join(HERE, "..", "..", "..", "perf", "dlm");
const KEY = "07".repeat(32);
const DEPTHS = [1, 64, 512] as const;
const START_MS = 10_000;
const ROUND_TRIPS = 10_000;
const TRIPS = ["netlink", "pair"] as const;
const PARTS = ["table", "tcp", "trip", "alone", "service"] as const;

const argv = await yargs(hideBin(process.argv))
  .scriptName("perf:dlm")
  .option("rounds", { type: "number", default: 5, describe: "rounds of everything" })
  .option("seconds", { type: "number", default: 1, describe: "length of one TCP measurement" })
  .option("quick", { type: "boolean", default: false, describe: "three short rounds: a minute" })
  .option("only", {
    array: true,
    choices: PARTS,
    default: PARTS,
    describe: "parts to measure",
  })
  .option("lab", {
    type: "boolean",
    default: false,
    describe: "the rows beside the kernel's dlm, in the lab",
  })
  .option("json", { type: "string", default: ".lab/perf-dlm.json", describe: "where the figures go" })
  .option("install", {
    type: "boolean",
    default: true,
    describe: "install redis-server and etcd-server if missing",
  })
  .strict()
  .parseAsync();
if (!Number.isInteger(argv.rounds) || argv.rounds < 1 || argv.rounds > 100 || !(argv.seconds > 0)) {
  throw new RangeError("--rounds: expected 1 to 100; --seconds: more than 0");
}

const rounds = argv.quick ? Math.min(argv.rounds, 3) : argv.rounds;
const seconds = argv.quick ? Math.min(argv.seconds, 0.3) : argv.seconds;
const share = argv.quick ? 4 : 1;

const say = (line: string): void => {
  process.stderr.write(`${line}\n`);
};

/** One figure of one row: ours or a comparator's, by round. */
const samples = new Map<string, number[]>();

function note(name: string, value: number): void {
  const list = samples.get(name) ?? [];
  list.push(value);
  samples.set(name, list);
}

function median(name: string): number | null {
  const sorted = [...(samples.get(name) ?? [])].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? null;
}

function run(program: string, ...args: (string | number)[]): number[] {
  const text = execFileSync(program, args.map(String), { encoding: "utf8" });
  const figures = text.trim().split(/\s+/).map(Number);
  if (figures.length === 0 || figures.some((figure) => !Number.isFinite(figure))) {
    throw new Error(`${program} ${args.join(" ")}: expected figures, found "${text}"`);
  }
  return figures;
}

// ---- what is needed -----------------------------------------------------------------------------------------

function installed(program: string): boolean {
  return ["/usr/bin", "/usr/local/bin", "/usr/sbin"].some((folder) => existsSync(join(folder, program)));
}

/** @returns whether the program is there (now). */
function need(program: string, name: string): boolean {
  if (installed(program) || !argv.install) {
    return installed(program);
  }
  say(`installing ${name}`);
  const policy = "/usr/sbin/policy-rc.d";
  const mine = !existsSync(policy);
  try {
    // Their own services are not wanted.
    if (mine) {
      writeFileSync(policy, "#!/bin/sh\nexit 101\n", { mode: 0o755 });
    }
    execFileSync("apt-get", ["install", "-y", "-q", "--no-install-recommends", name], { stdio: "ignore" });
  } catch (error) {
    say(`${name} cannot be installed, its rows stay empty: ${String(error)}`);
  } finally {
    if (mine) {
      rmSync(policy, { force: true });
    }
  }
  return installed(program);
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0));
    });
  });
}

const folder = mkdtempSync(join(tmpdir(), "mxfs-perf-dlm-"));
const etcdFolder = mkdtempSync("/dev/shm/mxfs-perf-etcd-");
const children: ChildProcess[] = [];
const map = join(folder, "map");
const client = join(folder, "client");
const roundtrip = join(folder, "roundtrip");
const memory = join(folder, "memory");
/** Comparators that are not on this machine. */
const missing: string[] = [];

function start(program: string, args: readonly string[]): ChildProcess {
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "ignore"] });
  children.push(child);
  return child;
}

/** Until a first lock is granted. */
async function answers(kind: string, port: number): Promise<void> {
  for (const end = Date.now() + START_MS; ; await pause(100)) {
    try {
      execFileSync(client, [kind, String(port), "1", "0.01"], { stdio: "ignore" });
      return;
    } catch (error) {
      if (Date.now() > end) {
        throw new Error(`${kind} does not answer on port ${port}: ${String(error)}`);
      }
    }
  }
}

// ---- rows ---------------------------------------------------------------------------------------------------

interface TableRow {
  readonly name: string;
  readonly resources: number;
  readonly resident: 0 | 1;
  readonly threads: number;
  readonly pairs: number;
  readonly goal: number;
}
const TABLE_ROWS: readonly TableRow[] = [
  {
    name: "table, 64 K resources, 1 thread",
    resources: 65_536,
    resident: 0,
    threads: 1,
    pairs: 2_000_000,
    goal: 1,
  },
  {
    name: "table, 16 hot resources, 1 thread",
    resources: 16,
    resident: 0,
    threads: 1,
    pairs: 2_000_000,
    goal: 4,
  },
  {
    name: "table, 1 M resident, batches",
    resources: 1_000_000,
    resident: 1,
    threads: 1,
    pairs: 1_000_000,
    goal: 1.6,
  },
];
const TWO: TableRow = { ...TABLE_ROWS[0], name: "two", threads: 2, pairs: 2_000_000 } as TableRow;
const BATCH = 128;

/** In turns, so that neither always runs on a warm cache. */
async function inTurns(
  round: number,
  ours: () => void | Promise<void>,
  theirs: () => void | Promise<void>,
): Promise<void> {
  for (const each of round % 2 === 0 ? [ours, theirs] : [theirs, ours]) {
    await each();
  }
}

function tableRow(row: TableRow): void {
  const [wall = 0, cpu = 0] = run(
    process.execPath,
    join(HERE, "table.js"),
    row.resources,
    row.resident,
    row.threads,
    row.pairs / share,
    BATCH,
  );
  note(`${row.name}:ours`, row.threads === 1 ? cpu : wall);
  note(`${row.name}:ours wall`, wall);
}

function mapRow(row: TableRow): void {
  const [wall = 0, cpu = 0] = run(map, row.resources, row.resident, row.threads, row.pairs / share);
  note(`${row.name}:theirs`, row.threads === 1 ? cpu : wall);
  note(`${row.name}:theirs wall`, wall);
}

/** CPU time of a process so far, all threads, microseconds (proc(5): utime and stime, in ticks of 10 ms). */
function cpuUs(pid: number | undefined): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) * 10_000;
}

/** One run of the client against a server. */
function tcpRow(name: string, server: ChildProcess, ...args: (string | number)[]): void {
  const before = cpuUs(server.pid);
  const [pairs = 0, p50 = 0, p99 = 0] = run(client, ...args);
  note(`${name}:cpu`, (cpuUs(server.pid) - before) / (pairs * seconds));
  note(`${name}:pairs`, pairs);
  note(`${name}:p50`, p50);
  note(`${name}:p99`, p99);
}

/** A view change as the lock service sees it: 100,000 reading locks told anew, then service. */
function viewChange(): void {
  const count = 100_000;
  const engine = LockEngine.create(1, { resourceCountMax: 1 << 20, lockCountMax: 1 << 20 });
  const empty = engine.table.memoryBytes;
  const out = new Outbox();
  const bodies: Uint8Array[] = [];
  for (let from = 0; from < count; from += 1000) {
    bodies.push(
      encodeLockEntries(
        Array.from({ length: 1000 }, (_, index) => ({
          volume: 77n,
          ino: BigInt(from + index),
          offset: 0n,
          ag: 0,
          type: 4,
          lockId: BigInt(from + index + 1),
          epoch: 2n,
          seq: 1,
          mode: LockMode.PR,
          granted: LockMode.PR,
          flags: 16,
          node: 1,
          status: 0,
        })),
      ),
    );
  }
  engine.freezeAndClear(1n, [1]);
  engine.resume(1n, out);
  const began = performance.now();
  engine.freezeAndClear(2n, [1]);
  for (const body of bodies) {
    engine.submitAll(COMMAND.RECLAIM, body, 1, out);
  }
  engine.resume(2n, out);
  note("view change:ours", performance.now() - began);
  if (engine.table.locksUsed !== count) {
    throw new Error(`${engine.table.locksUsed} locks after the view change, expected ${count}`);
  }
  note("memory:ours", (engine.table.memoryBytes - empty) / count);
}

// ---- the table ----------------------------------------------------------------------------------------------

interface Line {
  readonly row: string;
  readonly ours: number | null;
  readonly theirs: number | null;
  readonly unit: string;
  readonly ratio: number | null;
  readonly goal: string;
}

/** @param more whether more is better. */
function line(
  row: string,
  ours: number | null,
  theirs: number | null,
  unit: string,
  more: boolean,
  goal: string,
): Line {
  const ratio = ours === null || theirs === null ? null : more ? ours / theirs : theirs / ours;
  return { row, ours, theirs, unit, ratio, goal };
}

function lines(): Line[] {
  const found = TABLE_ROWS.map((row) =>
    line(
      row.name,
      median(`${row.name}:ours`),
      median(`${row.name}:theirs`),
      "ns/pair",
      false,
      `>= ${row.goal}`,
    ),
  );
  const one = median(`${TABLE_ROWS[0]?.name}:ours wall`);
  found.push(
    line("table, 2 threads beside 1 (of ours, wall)", median("two:ours"), one, "ns/pair", false, ">= 1.6"),
  );
  const theirOne = median(`${TABLE_ROWS[0]?.name}:theirs wall`);
  found.push(line("  the same of C++", median("two:theirs"), theirOne, "ns/pair", false, ""));
  const goals: Record<number, string> = { 1: ">= 0.9", 64: ">= 1.3", 512: ">= 2" };
  for (const depth of DEPTHS) {
    for (const ours of ["mxfs", "mxfs, batched frames"]) {
      const name = `tcp depth ${depth}, ${ours} / redis`;
      const pairs = line(
        name,
        median(`${ours} ${depth}:pairs`),
        median(`redis ${depth}:pairs`),
        "pairs/s",
        true,
        goals[depth] ?? "",
      );
      const p50 = line(
        `${name}, p50`,
        median(`${ours} ${depth}:p50`),
        median(`redis ${depth}:p50`),
        "us",
        false,
        depth === 64 ? ">= 1.43" : "",
      );
      const cpu = line(
        `${name}, server CPU`,
        median(`${ours} ${depth}:cpu`),
        median(`redis ${depth}:cpu`),
        "us/pair",
        false,
        "",
      );
      found.push(pairs, p50, cpu);
    }
  }
  found.push(
    line("tcp depth 1, mxfs / etcd", median("mxfs 1:pairs"), median("etcd 1:pairs"), "pairs/s", true, ""),
  );
  for (const kind of TRIPS) {
    const [ours, theirs] = [median(`${kind}:ours`), median(`${kind}:theirs`)];
    const goal = kind === "netlink" ? ">= 0.87" : "";
    found.push(line(`round trip by ${kind}, netlink worker's loop / C`, ours, theirs, "us", false, goal));
  }
  found.push(
    line("view change, 100 K locks (one process)", median("view change:ours"), null, "ms", false, ""),
  );
  found.push(
    line("view change, 100 K locks, three daemons", median("view change:service"), null, "ms", false, ""),
    line("memory per lock above an empty table", median("memory:ours"), null, "bytes", false, "<= 128"),
    ...memoryLines("daemon of a lock service"),
  );
  // Parts that were not asked for.
  return found.filter(({ ours }) => ours !== null);
}

function figure(value: number | null): string {
  if (value === null) {
    return "-";
  }
  return value >= 1000 ? Math.round(value).toLocaleString("en-US") : value.toFixed(value >= 100 ? 0 : 2);
}

function print(table: readonly Line[]): void {
  const rows = [["", "ours", "comparator", "unit", "ratio", "goal"]];
  for (const each of table) {
    rows.push([each.row, figure(each.ours), figure(each.theirs), each.unit, figure(each.ratio), each.goal]);
  }
  const widths = rows[0]?.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0))) ?? [];
  for (const row of rows) {
    const cells = row.map((cell, column) => {
      const width = widths[column] ?? 0;
      return column === 0 || column === 3 ? cell.padEnd(width) : cell.padStart(width);
    });
    process.stdout.write(`${cells.join("  ").trimEnd()}\n`);
  }
}

// ---- the lab ----------------------------------------------------------------------------------------------

/** A daemon's memory: the goal is about what is not its lock table. */
function noteMemory(residentMib: number, tableMib: number): void {
  note("daemon:resident", residentMib);
  note("daemon:table", tableMib);
  note("daemon:rest", residentMib - tableMib);
}

function memoryLines(of: string): Line[] {
  const rest = line(
    `${of}, memory without its lock table`,
    median("daemon:rest"),
    null,
    "MiB",
    false,
    "<= 90",
  );
  const table = line("  its lock table, empty", median("daemon:table"), null, "MiB", false, "");
  return [rest, table];
}

/** Compiles a tool of this folder. */
function build(compiler: "gcc" | "g++", source: string, program: string): void {
  const words = ["-O2", "-Wall", "-Wextra", "-pthread", "-o", program, join(SOURCES, source)];
  execFileSync(compiler, words, { stdio: "inherit" });
}

async function labLines(): Promise<Line[]> {
  build("gcc", "memory.c", memory);
  const names = ["corosync", "dlm-controld"];
  missing.push(...names.filter((name) => !need(name.replace("-", "_"), name)));
  await labRows(rounds, missing.length === 0, folder, memory, {
    note: (row, system, us) => note(`${row}:${system}`, us),
    memory: noteMemory,
    say,
  });
  const found = LAB_ROWS.map((row) =>
    line(`${row}, mxfs / kernel's dlm`, median(`${row}:mxfs`), median(`${row}:dlm`), "us", false, ""),
  );
  return [...found, ...memoryLines("daemon of a mounted volume")];
}

// ---- the run ------------------------------------------------------------------------------------------------

async function hostLines(): Promise<Line[]> {
  build("g++", "map.cc", map);
  build("gcc", "client.c", client);
  build("gcc", "roundtrip.c", roundtrip);
  build("gcc", "memory.c", memory);
  const wants = (part: (typeof PARTS)[number]): boolean => argv.only.includes(part);
  if (wants("table") || wants("tcp") || wants("trip") || wants("alone")) {
    await rowsByRound(wants);
  }
  if (wants("service")) {
    await serviceRows(argv.quick ? 1 : Math.min(rounds, 3), memory, {
      memory: noteMemory,
      viewChange: (ms) => note("view change:service", ms),
      say,
    });
  }
  return lines();
}

async function rowsByRound(wants: (part: (typeof PARTS)[number]) => boolean): Promise<void> {
  const server = start(process.execPath, [join(HERE, "server.js"), KEY]);
  if (server.stdout === null) {
    throw new Error("the server has no output");
  }
  let port = "";
  for await (const text of createInterface({ input: server.stdout })) {
    port = text.replace("port ", "");
    break;
  }
  const redisPort = await freePort();
  let redis: ChildProcess | null = null;
  if (!wants("tcp")) {
    // Not needed.
  } else if (!need("redis-server", "redis-server")) {
    missing.push("redis-server");
  } else {
    redis = start("redis-server", [
      "--port",
      String(redisPort),
      "--save",
      "",
      "--appendonly",
      "no",
      "--dir",
      folder,
    ]);
    await answers("redis", redisPort);
  }
  const etcdPort = await freePort();
  let etcd: ChildProcess | null = null;
  if (!wants("tcp")) {
    // Not needed.
  } else if (!need("etcd", "etcd-server")) {
    missing.push("etcd-server");
  } else {
    const peers = `http://127.0.0.1:${await freePort()}`;
    const clients = `http://127.0.0.1:${etcdPort}`;
    const urls = [
      "--listen-client-urls",
      clients,
      "--advertise-client-urls",
      clients,
      "--listen-peer-urls",
      peers,
    ];
    const cluster = ["--initial-advertise-peer-urls", peers, "--initial-cluster", `default=${peers}`];
    etcd = start("etcd", [
      "--data-dir",
      etcdFolder,
      "--logger",
      "zap",
      "--log-level",
      "error",
      ...urls,
      ...cluster,
    ]);
    await answers("etcd", etcdPort);
  }

  for (let round = 0; round < rounds; round++) {
    say(`round ${round + 1} of ${rounds} (load ${loadavg()[0]?.toFixed(1)})`);
    for (const row of wants("table") ? [...TABLE_ROWS, TWO] : []) {
      await inTurns(
        round,
        () => tableRow(row),
        () => mapRow(row),
      );
    }
    for (const depth of wants("tcp") ? DEPTHS : []) {
      await inTurns(
        round,
        () => {
          tcpRow(`mxfs ${depth}`, server, "mxfs", port, depth, seconds, 0, KEY);
          tcpRow(`mxfs, batched frames ${depth}`, server, "mxfs", port, depth, seconds, 1, KEY);
        },
        () => {
          if (redis !== null) {
            tcpRow(`redis ${depth}`, redis, "redis", redisPort, depth, seconds);
          }
        },
      );
    }
    if (etcd !== null) {
      tcpRow("etcd 1", etcd, "etcd", etcdPort, 1, seconds);
    }
    for (const kind of wants("trip") ? TRIPS : []) {
      const trip = (...program: string[]): number =>
        run(roundtrip, kind, ROUND_TRIPS / share, ...program)[0] ?? 0;
      await inTurns(
        round,
        () => note(`${kind}:ours`, trip(process.execPath, join(HERE, "loop.js"))),
        () => note(`${kind}:theirs`, trip(roundtrip, "echo")),
      );
    }
    if (wants("alone")) {
      viewChange();
    }
  }
}

const cleanUp = (): void => {
  for (const child of children) {
    child.kill("SIGTERM");
  }
  rmSync(folder, { recursive: true, force: true });
  rmSync(etcdFolder, { recursive: true, force: true });
};
process.once("exit", cleanUp);
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => process.exit(1));
}
const table = argv.lab ? await labLines() : await hostLines();
print(table);
for (const name of missing) {
  process.stdout.write(`${name} is not installed on this machine: nothing to compare with\n`);
}
mkdirSync(dirname(argv.json), { recursive: true });
writeFileSync(
  argv.json,
  `${JSON.stringify({ rounds: rounds, load: loadavg(), table, samples: Object.fromEntries(samples) }, null, 2)}\n`,
);
say(`figures: ${argv.json}`);
process.exit();
