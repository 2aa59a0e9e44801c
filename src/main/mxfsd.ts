#!/usr/bin/env node
// SPDX-License-Identifier: GPL-2.0-only
//
// mxfsd: the command line. `daemon.ts` does the work.
//
//   mxfsd --device DEV --mountpoint DIR --uuid UUID --mount-id N [options]    started by the kernel's mount
//   mxfsd start DEVICE [options] [--foreground]                               a lock service without a mount
//   mxfsd start --config FILE
//   mxfsd stop [--volume ID]      mxfsd status [--volume ID]
//
// Exit status: 0 done · 1 failed (the log says why) · 2 wrong usage or configuration · 3 no daemon to stop or ask.

import { spawn } from "node:child_process";
import { appendFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { CONFIG_DEFAULT, ConfigError } from "./config.js";
import { ControlConnection, ControlError } from "./control.js";
import { runDaemon } from "./daemon.js";
import { type GivenOptions, readConfig, resolveOptions } from "./options.js";

const SOCKET_DEFAULT = "/var/run/mxfsd.sock";
const EXIT = { done: 0, failed: 1, usage: 2, noDaemon: 3 } as const;
const START_WAIT_MS = 120_000;

const OPTIONS = {
  iface: { type: "string", alias: "i", describe: "network interface for peers and discovery" },
  port: { type: "number", alias: "p", describe: "TCP and UDP port" },
  multicast: { type: "string", alias: "m", describe: "discovery group, or none" },
  broadcast: { type: "string", alias: "b", describe: "broadcast address for discovery" },
  peer: { type: "string", array: true, alias: "P", describe: "HOST[:PORT]: no discovery, these peers" },
  fence: { type: "string", choices: ["scsi", "none"], describe: "how dead nodes are kept from writing" },
  config: { type: "string", alias: "c", describe: "configuration file" },
  "lock-records": { type: "number", describe: "lock records on disk, when lockstate is created" },
  "heartbeat-ms": { type: "number" },
  "renew-ms": { type: "number" },
  "lease-ms": { type: "number" },
  "node-timeout-ms": { type: "number" },
  "lock-wait-ms": { type: "number" },
  "bast-ms": { type: "number" },
  "startup-ms": { type: "number" },
} as const;

async function serve(given: GivenOptions): Promise<number> {
  return await runDaemon(resolveOptions(given));
}

/** Starts the daemon in its own session, waits until it serves or has failed. */
async function background(given: GivenOptions): Promise<number> {
  resolveOptions(given); // mistakes are told here, where somebody reads them
  const child = spawn(
    process.execPath,
    [fileURLToPath(import.meta.url), ...process.argv.slice(2), "--foreground"],
    {
      detached: true,
      stdio: ["ignore", "ignore", "ignore", "ipc"],
    },
  );
  return await new Promise<number>((resolve) => {
    const timer = setTimeout(() => {
      process.stderr.write(`mxfsd: not ready after ${START_WAIT_MS / 1000} s: see the log\n`);
      resolve(EXIT.failed);
    }, START_WAIT_MS);
    const end = (status: number): void => {
      clearTimeout(timer);
      resolve(status);
    };
    child.once("message", (message) => {
      process.stdout.write(`mxfsd: serving, pid ${child.pid} (${String(message)})\n`);
      child.disconnect();
      child.unref();
      end(EXIT.done);
    });
    child.once("exit", (code, signal) => {
      process.stderr.write(`mxfsd: ended at start-up (${signal ?? `exit status ${code}`}): see the log\n`);
      end(code === EXIT.usage ? EXIT.usage : EXIT.failed);
    });
    child.once("error", (error) => {
      process.stderr.write(`mxfsd: ${error.message}\n`);
      end(EXIT.failed);
    });
  });
}

async function start(
  given: Omit<GivenOptions, "device"> & { readonly device?: string | undefined },
): Promise<number> {
  let device = given.device;
  if (device === undefined) {
    const volumes = readConfig(given.config ?? null).volumes;
    if (volumes.length !== 1) {
      throw new ConfigError(
        `the configuration lists ${volumes.length} volumes, expected one: give the DEVICE, or one configuration a volume`,
      );
    }
    device = volumes[0]?.device ?? "";
  }
  const complete = { ...given, device };
  return given.foreground === true ? await serve(complete) : await background(complete);
}

async function ask(op: "stop" | "status", volume: string | undefined): Promise<number> {
  const connection = await ControlConnection.connect(
    volume === undefined ? SOCKET_DEFAULT : `/run/mxfs/${volume}.sock`,
  );
  const closed = new Promise<void>((resolve) => {
    connection.onEvent = (event) => {
      if (event.event === "closed") {
        resolve();
      }
    };
  });
  const answer = await connection.request(op);
  if (op === "status") {
    process.stdout.write(`${JSON.stringify(answer.status, null, 2)}\n`);
    connection.close();
  } else {
    await closed;
  }
  return EXIT.done;
}

/** yargs takes a lone "-" for an argument of its own, not for the value of the option before it. */
function joinDashes(words: readonly string[]): string[] {
  return words.flatMap((word, at) => {
    if (word === "-" && at > 0) {
      return [];
    }
    return [words[at + 1] === "-" ? `${word}=-` : word];
  });
}

let result: Promise<number> | null = null;

await yargs(joinDashes(hideBin(process.argv)))
  .scriptName("mxfsd")
  .command(
    "start [device]",
    "serve locks for a device without mounting it",
    (y) =>
      y.positional("device", { type: "string" }).options(OPTIONS).option("foreground", {
        type: "boolean",
        default: false,
        describe: "stay, and log to standard error",
      }),
    (argv) => {
      result = start(argv);
    },
  )
  .command(
    "stop",
    "stop a daemon that was started by `start`",
    (y) => y.option("volume", { type: "string", describe: "volume id, hexadecimal" }),
    (argv) => {
      result = ask("stop", argv.volume);
    },
  )
  .command(
    "status",
    "what the daemon knows",
    (y) => y.option("volume", { type: "string", describe: "volume id, hexadecimal" }),
    (argv) => {
      result = ask("status", argv.volume);
    },
  )
  .command(
    "$0",
    "the kernel's form",
    (y) =>
      y
        .option("device", { type: "string", demandOption: true })
        .option("mountpoint", { type: "string", demandOption: true })
        .option("uuid", { type: "string", demandOption: true })
        .option("mount-id", { type: "number", demandOption: true })
        .options(OPTIONS),
    (argv) => {
      result = serve(argv);
    },
  )
  .strict()
  .fail((message, error) => {
    process.stderr.write(`mxfsd: ${message ?? error.message}\nTry 'mxfsd --help'.\n`);
    process.exit(EXIT.usage);
  })
  .parseAsync();

try {
  process.exitCode = (await result) ?? EXIT.usage;
} catch (error) {
  const line = `mxfsd: ${error instanceof Error ? error.message : String(error)}\n`;
  process.stderr.write(line);
  // Started by the kernel, with no log yet: the mount says that the log has the reason.
  const file = CONFIG_DEFAULT.logging.file;
  if (process.argv.includes("--mount-id") && file !== null) {
    appendFileSync(file, `${new Date().toISOString()} error main: ${line}`);
  }
  process.exitCode =
    error instanceof ConfigError
      ? EXIT.usage
      : error instanceof ControlError && error.errno === "ECONNREFUSED"
        ? EXIT.noDaemon
        : EXIT.failed;
}
process.exit();
