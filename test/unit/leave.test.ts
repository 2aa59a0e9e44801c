// SPDX-License-Identifier: GPL-2.0-only
/** Proves that a program's last words all arrive before it exits, and that it exits when nobody wants them. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "uvu";
import * as assert from "uvu/assert";

const LENGTH = 1_000_000;

function speaker(): ChildProcess {
  const leave = new URL("../../src/main/leave.js", import.meta.url).href;
  const program = `
    const { leave } = await import(${JSON.stringify(leave)});
    process.stdout.write("x".repeat(${LENGTH}));
    process.stderr.write("about to leave");
    await leave(3);`;
  return spawn(process.execPath, ["--input-type=module", "-e", program], {
    stdio: ["ignore", "pipe", "pipe"],
  });
}

test("a reader that comes late gets every byte, and the status is the one that was asked for", async () => {
  const child = speaker();
  const closed = once(child, "close");
  assert.ok(child.stdout && child.stderr);
  // Nothing is read before all has been said.
  await once(child.stderr, "data");
  let length = 0;
  child.stdout.on("data", (piece: Buffer) => {
    length += piece.length;
  });
  const [status] = await closed;
  assert.is(length, LENGTH);
  assert.is(status, 3);
});

test("a reader that has gone away does not keep the program", async () => {
  const child = speaker();
  const closed = once(child, "close");
  child.stdout?.destroy();
  child.stderr?.resume();
  const [status] = await closed;
  assert.is(status, 3);
});

test.run();
