// SPDX-License-Identifier: GPL-2.0-only
//
// Responsible for: ending a command line program with a status, after everything it said has been taken.
//
// process.exit() alone loses what a pipe had no room for: Node writes to pipes without blocking, and keeps the rest
// (beyond 64 KiB) in memory. Waiting for the event loop to empty does not do either, since signal handlers and open
// connections keep a finished program alive.
//
// Known weakness: a reader that neither reads nor closes holds the program up for good, as it does any other program.

function flushed(stream: NodeJS.WriteStream): Promise<void> {
  return new Promise((resolve) => {
    // Whoever has closed the other end wants to hear no more; without a listener its EPIPE would be thrown.
    stream.once("error", () => resolve());
    stream.write("", () => resolve());
  });
}

/** Exits with `status` once standard output and standard error are written out, or nobody reads them any more. */
export async function leave(status: number): Promise<never> {
  await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
  process.exit(status);
}
