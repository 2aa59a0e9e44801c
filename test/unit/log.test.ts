// SPDX-License-Identifier: GPL-2.0-only
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { formatRecord, Log } from "../../src/main/log.js";

test("a record is one line, whatever is in it", () => {
  const line = formatRecord({
    timeMs: 0,
    level: "warn",
    part: "peer",
    text: "bad\nname \u001b[31m",
    fields: { node: 7, ms: 15005.505831999995, path: "a b", big: 12345678901234567890n },
  });
  assert.is(
    line,
    '1970-01-01T00:00:00.000Z warn peer: bad\\nname \\u001b[31m node=7 ms=15005.5 path="a b" big=12345678901234567890',
  );
});

test("the level decides, and a reload opens the file anew", async () => {
  const dir = mkdtempSync(join(tmpdir(), "mxfs-log-"));
  const file = join(dir, "mxfsd.log");
  const log = new Log({ level: "info", file, syslog: false }, "mxfsd", false);
  log.log("debug", "main", "unheard");
  log.log("info", "main", "heard");
  rmSync(file);
  log.reload({ level: "debug", file, syslog: false });
  log.log("debug", "main", "after");
  await log.close();
  const text = readFileSync(file, "utf8");
  assert.match(text, /debug main: after\n$/);
  assert.not.match(text, /heard/);
  rmSync(dir, { recursive: true });
});

test.run();
