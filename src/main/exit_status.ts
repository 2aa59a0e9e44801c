// SPDX-License-Identifier: GPL-2.0-only
//
// mxfsd's exit statuses, and how a failure is told.

import { ConfigError } from "./config.js";
import { ControlError } from "./control.js";

export const EXIT = { done: 0, failed: 1, usage: 2, noDaemon: 3 } as const;

/** Says on standard error what failed. @returns the exit status. */
export function tellFailure(error: unknown): number {
  process.stderr.write(`mxfsd: ${error instanceof Error ? error.message : String(error)}\n`);
  if (error instanceof ConfigError) {
    return EXIT.usage;
  }
  return error instanceof ControlError && error.errno === "ECONNREFUSED" ? EXIT.noDaemon : EXIT.failed;
}
