// SPDX-License-Identifier: GPL-2.0-only
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { loadIdentity, nextIncarnation } from "../../src/main/identity.js";

const test = suite<{ dir: string }>("identity");
test.before.each((context) => {
  context.dir = mkdtempSync(join(tmpdir(), "mxfs-identity-"));
});
test.after.each((context) => {
  rmSync(context.dir, { recursive: true });
});

test("the UUID is version 4, made once and kept", ({ dir }) => {
  const file = join(dir, "etc", "node.uuid");
  const first = loadIdentity(file);
  assert.match(first.uuid, /^[0-9a-f-]{14}4/);
  assert.equal(loadIdentity(file), first);
  assert.is(readFileSync(file, "utf8"), `${first.uuid}\n`);
});

test("a damaged UUID file is refused and left alone", ({ dir }) => {
  const file = join(dir, "node.uuid");
  for (const contents of ["", "x", "00000000-0000-1000-8000-000000000000"]) {
    writeFileSync(file, contents);
    assert.throws(() => loadIdentity(file), /is not a version 4 UUID/);
    assert.is(readFileSync(file, "utf8"), contents);
  }
});

test("the incarnation rises with every call and a damaged counter is refused", ({ dir }) => {
  const file = join(dir, "incarnation");
  assert.is(nextIncarnation(file), 1);
  assert.is(nextIncarnation(file), 2);
  writeFileSync(file, "two");
  assert.throws(() => nextIncarnation(file), /is not a number/);
  writeFileSync(file, "4294967295");
  assert.throws(() => nextIncarnation(file), /used up/);
});

test.run();
