#!/usr/bin/env node
// SPDX-License-Identifier: GPL-2.0-only
//
// mxfsd: the command line. `daemon.ts` does the work.
//
//   mxfsd --device DEV --mountpoint DIR --uuid UUID --mount-id N [options]    started by the kernel's mount
//   mxfsd start | stop | status                                               mxfsd_cli.ts, loaded when asked for
//
// Exit status: 0 done · 1 failed (the log says why) · 2 wrong usage or configuration · 3 no daemon to stop or ask.

import { appendFileSync } from "node:fs";
import { CONFIG_DEFAULT } from "./config.js";
import { runDaemon } from "./daemon.js";
import { tellFailure } from "./exit_status.js";
import { leave } from "./leave.js";
import { kernelForm, resolveOptions } from "./options.js";

async function main(words: readonly string[]): Promise<number> {
  const given = kernelForm(words);
  if (given !== null) {
    return await runDaemon(resolveOptions(given));
  }
  const { commandLine } = await import("./mxfsd_cli.js");
  const asked = await commandLine(words);
  return asked.kind === "done" ? asked.status : await runDaemon(resolveOptions(asked.given));
}

function fail(error: unknown): number {
  // Started by the kernel, with no log yet: the mount says that the log has the reason.
  const file = CONFIG_DEFAULT.logging.file;
  if (process.argv.some((word) => word.startsWith("--mount-id")) && file !== null) {
    const text = error instanceof Error ? error.message : String(error);
    appendFileSync(file, `${new Date().toISOString()} error main: mxfsd: ${text}\n`);
  }
  return tellFailure(error);
}

main(process.argv.slice(2)).catch(fail).then(leave);
