// SPDX-License-Identifier: GPL-2.0-only
//
// mxfsd's command line for people: start, stop, status. A module of its own, loaded when it is needed: the kernel
// starts mxfsd with a form that needs no yargs (mxfsd.ts), and a daemon that is to be back soon does not wait for it.
//
//   mxfsd start DEVICE [options] [--foreground]                               a lock service without a mount
//   mxfsd start --config FILE
//   mxfsd stop [--volume ID]      mxfsd status [--volume ID]

import { spawn } from "node:child_process";
import yargs from "yargs";
import { ConfigError } from "./config.js";
import { ControlConnection } from "./control.js";
import { EXIT, tellFailure } from "./exit_status.js";
import { type GivenOptions, OPTIONS, readConfig, resolveOptions } from "./options.js";

const SOCKET_DEFAULT = "/var/run/mxfsd.sock";
const START_WAIT_MS = 120_000;

/** What was asked for: to serve here, or something that is done, with its exit status. */
export type Asked =
  | { readonly kind: "serve"; readonly given: GivenOptions }
  | { readonly kind: "done"; readonly status: number };

/** Starts the daemon in its own session, waits until it serves or has failed. */
async function background(given: GivenOptions): Promise<number> {
  resolveOptions(given); // mistakes are told here, where somebody reads them
  const child = spawn(process.execPath, [process.argv[1] ?? "", ...process.argv.slice(2), "--foreground"], {
    detached: true,
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });
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
): Promise<Asked> {
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
  return given.foreground === true
    ? { kind: "serve", given: complete }
    : { kind: "done", status: await background(complete) };
}

async function ask(op: "stop" | "status", volume: string | undefined): Promise<Asked> {
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
  return { kind: "done", status: EXIT.done };
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

/** Does what was asked for, or says what failed; ends the process for wrong usage. */
export async function commandLine(words: readonly string[]): Promise<Asked> {
  let result: Promise<Asked> | null = null;
  await yargs(joinDashes(words))
    .scriptName("mxfsd")
    .usage(
      "$0 --device DEV --mountpoint DIR --uuid UUID --mount-id N [options]   (the kernel's form)\n$0 COMMAND",
    )
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
    .demandCommand(1, "name a command, or --mount-id with --device, --mountpoint and --uuid")
    .strict()
    .fail((message, error) => {
      process.stderr.write(`mxfsd: ${message ?? error.message}\nTry 'mxfsd --help'.\n`);
      process.exit(EXIT.usage);
    })
    .parseAsync();
  try {
    return (await result) ?? { kind: "done", status: EXIT.usage };
  } catch (error) {
    return { kind: "done", status: tellFailure(error) };
  }
}
