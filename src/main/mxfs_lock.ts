#!/usr/bin/env node
// SPDX-License-Identifier: GPL-2.0-only
//
// mxfs_lock: take cluster locks from the command line, and look at a volume's lock service.
//
//   mxfs_lock lock RESOURCE [MODE] [--noqueue] [--timeout S] [--value V] [--show-value] [-- COMMAND...]
//   mxfs_lock unlock RESOURCE [--all]
//   mxfs_lock session              lock, convert, unlock, value: commands from standard input (lock_session.ts)
//   mxfs_lock status [--json]      mxfs_lock dump [--resource RESOURCE] [--queues] [--contended] [--json]
//
// `lock` holds the lock until it is told to let go (`mxfs_lock unlock` on this node), is interrupted, or the
// COMMAND given behind `--` ends. The lock belongs to this process: however it dies, the lock is released. A value
// (text, or 0x and hexadecimal digits; at most 32 bytes) is written as EX or PW is let go in order.
//
// Exit status: 0 done · 1 not granted (busy with --noqueue, or the time ran out) · 2 wrong usage · 3 no daemon ·
// 4 deadlock · 5 the lock was lost while held (daemon or cluster failure) · 6 refused for another reason ·
// 128+n interrupted by signal n while waiting · with COMMAND: its exit status once it has been started.

import { spawn } from "node:child_process";
import { constants } from "node:os";
import { createInterface } from "node:readline";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { ControlConnection, ControlError, isObject, type Json, type JsonObject } from "./control.js";
import { leave } from "./leave.js";
import { formatValue, LockSession, parseValue } from "./lock_session.js";
import { MODE_NAMES, NameError, parseMode, parseResource } from "./resource_name.js";

const EXIT = { done: 0, notGranted: 1, usage: 2, noDaemon: 3, deadlock: 4, lost: 5, refused: 6 } as const;
const SOCKET_DEFAULT = "/var/run/mxfsd.sock";

function exitStatus(error: unknown): number {
  if (error instanceof NameError) {
    return EXIT.usage;
  }
  switch (error instanceof ControlError ? error.errno : "") {
    case "EAGAIN":
    case "ETIMEDOUT":
      return EXIT.notGranted;
    case "ECONNREFUSED":
      return EXIT.noDaemon;
    case "EDEADLK":
      return EXIT.deadlock;
    case "ECONNRESET":
      return EXIT.lost;
    case "EINVAL":
      return EXIT.usage;
    default:
      return EXIT.refused;
  }
}

interface Common {
  readonly socket: string;
  readonly volume: string | undefined;
}

function socketOf(argv: Common): string {
  return argv.volume === undefined ? argv.socket : `/run/mxfs/${argv.volume}.sock`;
}

function signalNumber(signal: NodeJS.Signals): number {
  return constants.signals[signal];
}

interface LockArguments extends Common {
  readonly resource: string;
  readonly mode: string;
  readonly noqueue: boolean;
  readonly timeout: number | undefined;
  readonly quiet: boolean;
  readonly value: string | undefined;
  readonly showValue: boolean;
  readonly command: readonly string[];
}

async function lock(argv: LockArguments): Promise<number> {
  const mode = parseMode(argv.mode);
  parseResource(argv.resource);
  const value = argv.value === undefined ? null : parseValue(argv.value);
  const connection = await ControlConnection.connect(socketOf(argv));
  let granted = false;
  const end = new Promise<number>((resolve) => {
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
      process.on(signal, () => resolve(granted ? EXIT.done : 128 + signalNumber(signal)));
    }
    connection.onEvent = (event) => {
      if (event.event === "bast" && !argv.quiet) {
        process.stderr.write(
          `somebody waits for ${argv.resource} in ${MODE_NAMES[Number(event.mode)] ?? "?"}\n`,
        );
      } else if (event.event === "released") {
        resolve(EXIT.done);
      } else if (event.event === "lost" || event.event === "closed") {
        process.stderr.write(
          `mxfs_lock: the lock on ${argv.resource} is lost: ${String(event.error ?? "mxfsd is gone")}\n`,
        );
        resolve(EXIT.lost);
      }
    };
  });
  const answer = connection.request("lock", {
    resource: argv.resource,
    mode,
    noqueue: argv.noqueue,
    timeoutMs: argv.timeout === undefined ? null : Math.round(argv.timeout * 1000),
  });
  // A signal while waiting ends the process; closing the connection withdraws the request.
  const first = await Promise.race([answer.then((body) => ({ body })), end.then((status) => ({ status }))]);
  if ("status" in first) {
    answer.catch(() => undefined);
    connection.close();
    return first.status;
  }
  granted = true;
  if (argv.showValue) {
    process.stdout.write(`value ${formatValue(first.body.value)}\n`);
  }
  if (argv.command.length === 0 && !argv.quiet) {
    process.stdout.write(`granted ${MODE_NAMES[Number(first.body.mode)] ?? "?"} ${argv.resource}\n`);
  }
  let told = false;
  const over = end.then((status) => {
    told = true;
    return status;
  });
  const status = await (argv.command.length > 0 ? Promise.race([runCommand(argv.command), over]) : over);
  if (!told || status === EXIT.done) {
    await letGo(connection, String(first.body.lock), value);
  }
  connection.close();
  return status;
}

/** Releases in order, so that nobody takes this process for one that died. A lock that is gone already is fine. */
async function letGo(connection: ControlConnection, lock: string, value: string | null): Promise<void> {
  try {
    await connection.request("release", { lock, value });
  } catch (error) {
    if (value !== null || !(error instanceof ControlError)) {
      throw error;
    }
  }
}

function runCommand(command: readonly string[]): Promise<number> {
  return new Promise((resolve) => {
    const [program = "", ...rest] = command;
    const child = spawn(program, rest, { stdio: "inherit" });
    child.on("error", (error) => {
      process.stderr.write(`mxfs_lock: ${program}: ${error.message}\n`);
      resolve(127);
    });
    child.on("exit", (code, signal) => resolve(signal === null ? (code ?? 0) : 128 + signalNumber(signal)));
  });
}

async function unlock(argv: Common & { readonly resource: string; readonly all: boolean }): Promise<number> {
  parseResource(argv.resource);
  const connection = await ControlConnection.connect(socketOf(argv));
  const answer = await connection.request("unlock", { resource: argv.resource, all: argv.all });
  process.stdout.write(`released ${String(answer.count)}\n`);
  connection.close();
  return EXIT.done;
}

function text(value: Json | undefined): string {
  return value === undefined || value === null
    ? "-"
    : typeof value === "object"
      ? JSON.stringify(value)
      : String(value);
}

async function status(argv: Common & { readonly json: boolean }): Promise<number> {
  const connection = await ControlConnection.connect(socketOf(argv));
  const answer = await connection.request("status");
  connection.close();
  const body = answer.status;
  if (argv.json || !isObject(body)) {
    process.stdout.write(`${JSON.stringify(body, null, 2)}\n`);
    return EXIT.done;
  }
  for (const [name, value] of Object.entries(body)) {
    if (Array.isArray(value)) {
      process.stdout.write(`${name}:\n`);
      for (const row of value) {
        const line = isObject(row)
          ? Object.entries(row)
              .map(([key, cell]) => `${key}=${text(cell)}`)
              .join(" ")
          : text(row);
        process.stdout.write(`  ${line}\n`);
      }
    } else if (isObject(value)) {
      process.stdout.write(`${name}:\n`);
      for (const [key, cell] of Object.entries(value)) {
        process.stdout.write(`  ${key}: ${text(cell)}\n`);
      }
    } else {
      process.stdout.write(`${name}: ${text(value)}\n`);
    }
  }
  return EXIT.done;
}

interface DumpArguments extends Common {
  readonly resource: string | undefined;
  readonly queues: boolean;
  readonly contended: boolean;
  readonly json: boolean;
}

/** The rows of one resource stand together in the daemon's answer: a head line for each, its queues below. */
function printQueues(rows: readonly JsonObject[]): void {
  let key = "";
  for (const row of rows) {
    if (text(row.key) !== key) {
      key = text(row.key);
      const value = row.value === null ? "" : ` value ${formatValue(row.value)}`;
      process.stdout.write(`${text(row.resource)} (${key})${value}\n`);
    }
    const held = MODE_NAMES[Number(row.granted)] ?? "?";
    const wanted = MODE_NAMES[Number(row.mode)] ?? "?";
    const modes = row.state === "granted" ? held : row.state === "wait" ? wanted : `${held}->${wanted}`;
    const asked = row.blocking === true ? " asked to give way" : "";
    process.stdout.write(
      `  ${text(row.state).padEnd(7)} ${modes} node ${text(row.node)} lock ${text(row.lock)}${asked}\n`,
    );
  }
}

/** What the volume itself says, without a daemon. */
async function dumpOffline(device: string, asJson: boolean): Promise<number> {
  // Loaded only here: it brings the raw device with it.
  const { dumpDisk, formatDump } = await import("./disk_dump.js");
  const found = await dumpDisk(device);
  process.stdout.write(asJson ? `${JSON.stringify(found)}\n` : formatDump(found));
  return found.problems.length === 0 ? EXIT.done : EXIT.refused;
}

async function dump(argv: DumpArguments): Promise<number> {
  const connection = await ControlConnection.connect(socketOf(argv));
  let after = 0;
  for (;;) {
    const answer = await connection.request("dump", {
      resource: argv.resource ?? null,
      contended: argv.contended,
      after,
    });
    const rows: readonly Json[] = Array.isArray(answer.locks) ? answer.locks : [];
    if (argv.queues && !argv.json) {
      printQueues(rows.filter(isObject));
    } else {
      printRows(rows, argv.json);
    }
    if (typeof answer.next !== "number") {
      break;
    }
    after = answer.next;
  }
  connection.close();
  return EXIT.done;
}

function printRows(rows: readonly Json[], asJson: boolean): void {
  for (const row of rows) {
    if (asJson || !isObject(row)) {
      process.stdout.write(`${JSON.stringify(row)}\n`);
    } else {
      process.stdout.write(
        `${text(row.resource)} ${text(row.state)} ${MODE_NAMES[Number(row.mode)] ?? "?"} node ${text(row.node)} lock ${text(row.lock)}\n`,
      );
    }
  }
}

/** Commands from standard input, one after the other. */
async function session(argv: Common): Promise<number> {
  const connection = await ControlConnection.connect(socketOf(argv));
  const run = new LockSession(connection, (line) => process.stdout.write(`${line}\n`));
  const lines = createInterface({ input: process.stdin, terminal: false });
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(signal, () => lines.close());
  }
  run.onLost = () => lines.close();
  let status: number = EXIT.done;
  for await (const line of lines) {
    const error = await run.execute(line);
    if (error !== null) {
      status = exitStatus(error);
    }
    if (run.over) {
      break;
    }
  }
  await run.end();
  connection.close();
  return run.lost ? EXIT.lost : status;
}

async function main(): Promise<number> {
  let result: Promise<number> = Promise.resolve(EXIT.usage);

  await yargs(hideBin(process.argv))
    .scriptName("mxfs_lock")
    .parserConfiguration({ "populate--": true })
    .option("socket", { type: "string", default: SOCKET_DEFAULT, describe: "control socket of mxfsd" })
    .option("volume", {
      type: "string",
      describe: "volume id (hexadecimal, see status): its own control socket",
    })
    .command(
      "lock <resource> [mode]",
      "take a lock and hold it until told, interrupted, or the command behind -- ends",
      (y) =>
        y
          .positional("resource", {
            type: "string",
            demandOption: true,
            describe: "a name, or inode:INO, user:N, ...",
          })
          .positional("mode", { type: "string", default: "EX", describe: "NL CR CW PR PW EX, or 0 to 5" })
          .option("noqueue", { type: "boolean", default: false, alias: "n", describe: "do not wait" })
          .option("timeout", { type: "number", alias: "t", describe: "seconds to wait at most" })
          .option("quiet", { type: "boolean", default: false, alias: "q" })
          .option("value", { type: "string", describe: "write this value when EX or PW is let go" })
          .option("show-value", { type: "boolean", default: false, describe: "print the resource's value" }),
      (argv) => {
        const rest: unknown = argv["--"];
        const command = Array.isArray(rest) ? rest.map(String) : [];
        result =
          argv.timeout !== undefined && !(argv.timeout >= 0 && argv.timeout <= 1e6)
            ? Promise.reject(new NameError("--timeout: expected seconds from 0 to 1000000"))
            : lock({
                ...argv,
                volume: argv.volume,
                timeout: argv.timeout,
                value: argv.value,
                showValue: argv.showValue,
                command,
              });
      },
    )
    .command(
      "unlock <resource>",
      "make the mxfs_lock processes of this node that hold the resource let go",
      (y) =>
        y
          .positional("resource", { type: "string", demandOption: true })
          .option("all", { type: "boolean", default: false, describe: "all of them, not just the oldest" }),
      (argv) => {
        result = unlock({ ...argv, volume: argv.volume });
      },
    )
    .command(
      "status",
      "role, view, lease, counters",
      (y) => y.option("json", { type: "boolean", default: false }),
      (argv) => {
        result = status({ ...argv, volume: argv.volume });
      },
    )
    .command(
      "dump",
      "the locks that this node is the master of",
      (y) =>
        y
          .option("resource", { type: "string" })
          .option("queues", {
            type: "boolean",
            default: false,
            describe: "by resource, with its queues and value",
          })
          .option("contended", { type: "boolean", default: false, describe: "only where somebody waits" })
          .option("disk", { type: "string", describe: "read this device's .mxfs/lockstate instead, offline" })
          .option("json", { type: "boolean", default: false }),
      (argv) => {
        result =
          argv.disk === undefined
            ? dump({ ...argv, volume: argv.volume, resource: argv.resource })
            : dumpOffline(argv.disk, argv.json);
      },
    )
    .command(
      "session",
      "commands from standard input: lock, convert, unlock, value, list, quit (help says how)",
      (y) => y,
      (argv) => {
        result = session({ socket: argv.socket, volume: argv.volume });
      },
    )
    .demandCommand(1, "name a command")
    .strict()
    .fail((message, error) => {
      process.stderr.write(`mxfs_lock: ${message ?? error.message}\nTry 'mxfs_lock --help'.\n`);
      process.exit(EXIT.usage);
    })
    .parseAsync();
  return await result;
}

function fail(error: unknown): number {
  process.stderr.write(`mxfs_lock: ${error instanceof Error ? error.message : String(error)}\n`);
  return exitStatus(error);
}

main()
  .catch(fail)
  // Signal handlers would keep a finished process alive.
  .then(leave);
