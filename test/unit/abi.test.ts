// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves that the TypeScript side of the shared headers is up to date, and that structures lie where the codecs
 * and the headers' comments say: by asking the C compiler.
 */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  CmdName,
  MXFS_CMD_MAX,
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_NAME_LEN_MAX,
  MXFS_RESOURCE_SIZE,
  WireType,
  WireTypeName,
} from "../../src/wire/abi.js";
import { LOCK_ENTRY } from "../../src/wire/lock_entry.js";

// This file runs as dist/test/unit/abi.test.js.
const ROOT = fileURLToPath(new URL("../../../", import.meta.url));

interface Generator {
  readonly generate: (sources: readonly (readonly [string, string])[]) => string;
  readonly readHeaders: () => (readonly [string, string])[];
}
const generator = (await import(pathToFileURL(join(ROOT, "scripts/gen-abi.mjs")).href)) as Generator;

test("src/wire/abi.ts is what the headers give now", () => {
  const expected = generator.generate(generator.readHeaders());
  const found = readFileSync(join(ROOT, "src/wire/abi.ts"), "utf8");
  assert.is(found === expected, true, "run node scripts/gen-abi.mjs");
});

test("numbers and names of an enum lead to each other", () => {
  assert.is(WireType.LOCK_GRANT, 20);
  assert.is(WireTypeName[20], "LOCK_GRANT");
  assert.is(WireTypeName[21 + 1000], undefined);
  assert.is(Object.keys(CmdName).length, MXFS_CMD_MAX + 1);
});

test("the generator refuses what it does not understand, and never skips it", () => {
  const refuses = (text: string, why: RegExp): void => {
    assert.throws(() => generator.generate([["x.h", text]]), why);
  };
  refuses("#define MXFS_X (1 << 3)\n", /decimal or hexadecimal/);
  refuses("#define MXFS_X 010\n", /decimal or hexadecimal/);
  refuses("#define MXFS_X(a) 1\n", /takes arguments/);
  refuses("#define MXFS_X\n", /no value/);
  refuses("enum mxfs_e { MXFS_A, MXFS_B = 2 };\n", /NAME = NUMBER/);
  refuses("enum mxfs_e { MXFS_E_A = 1, MXFS_E_B = 1 };\n", /comes twice/);
  refuses("#define MXFS_X 1\n#define MXFS_X 2\n", /again/);
  refuses("#define MXFS_X 0x20000000000001\n", /does not fit/);
  const text = generator.generate([
    ["x.h", '#ifndef X_H\n#define X_H\n#define A 0x10 /* 3 */\n#define B "b"\n'],
  ]);
  assert.match(text, /export const A = 16;\nexport const B = "b";/);
});

/** Structures of a header: name, body, and the size that the comment before them states, if any. */
function structures(source: string): { name: string; body: string; stated: number | null }[] {
  const found = [];
  const pattern = /(\/\*(?:(?!\*\/)[\s\S])*\*\/\s*)?struct (\w+) \{([\s\S]*?)\n\};/g;
  for (const [, comment, name, body] of source.matchAll(pattern)) {
    const stated = /(\d+) bytes/.exec(comment ?? "");
    found.push({
      name: name as string,
      body: body as string,
      stated: stated === null ? null : Number(stated[1]),
    });
  }
  return found;
}

interface Layout {
  readonly size: number;
  readonly offsets: Record<string, number>;
}

/** Compiles a program that prints sizes and offsets. -Wpadded makes hidden holes an error. */
function askCompiler(): { layouts: Record<string, Layout>; stated: Map<string, number> } {
  const dir = mkdtempSync(join(tmpdir(), "mxfs-abi-"));
  try {
    const lines: string[] = [];
    const stated = new Map<string, number>();
    for (const [, source] of generator.readHeaders()) {
      for (const { name, body, stated: size } of structures(source)) {
        if (size !== null) stated.set(name, size);
        lines.push(`printf("${name} - %zu\\n", sizeof(struct ${name}));`);
        const plain = body.replace(/\/\*[\s\S]*?\*\//g, "");
        for (const [, field] of plain.matchAll(/(\w+)(?:\[\w+\])?;/g)) {
          lines.push(`printf("${name} ${field} %zu\\n", offsetof(struct ${name}, ${field}));`);
        }
      }
    }
    const headers = generator.readHeaders().map(([file]) => `#include <mxfs/${file}>`);
    const program = join(dir, "abi.c");
    writeFileSync(
      program,
      `#include <stddef.h>\n#include <stdio.h>\n${headers.join("\n")}\nint main(void)\n{\n${lines.join("\n")}\nreturn 0;\n}\n`,
    );
    const binary = join(dir, "abi");
    execFileSync("gcc", [
      "-Wall",
      "-Wextra",
      "-Wpadded",
      "-Werror",
      "-I",
      join(ROOT, "include"),
      "-o",
      binary,
      program,
    ]);
    const layouts: Record<string, { size: number; offsets: Record<string, number> }> = {};
    for (const line of execFileSync(binary, { encoding: "utf8" }).trim().split("\n")) {
      const [name, field, value] = line.split(" ") as [string, string, string];
      layouts[name] ??= { size: 0, offsets: {} };
      const layout = layouts[name];
      if (field === "-") layout.size = Number(value);
      else layout.offsets[field] = Number(value);
    }
    return { layouts, stated };
  } finally {
    rmSync(dir, { recursive: true });
  }
}

const { layouts, stated } = askCompiler();

test("a lock entry lies in C as the TypeScript codec reads it", () => {
  const resource = layouts.mxfs_resource as Layout;
  const entry = layouts.mxfs_lock_entry as Layout;
  assert.is(resource.size, MXFS_RESOURCE_SIZE);
  assert.is(entry.size, MXFS_LOCK_ENTRY_SIZE);
  assert.equal(resource.offsets, {
    volume: LOCK_ENTRY.volume,
    ino: LOCK_ENTRY.ino,
    offset: LOCK_ENTRY.offset,
    ag: LOCK_ENTRY.ag,
    type: LOCK_ENTRY.type,
  });
  assert.equal(entry.offsets, {
    resource: 0,
    lock_id: LOCK_ENTRY.lockId,
    epoch: LOCK_ENTRY.epoch,
    seq: LOCK_ENTRY.seq,
    mode: LOCK_ENTRY.mode,
    granted: LOCK_ENTRY.granted,
    flags: LOCK_ENTRY.flags,
    node: LOCK_ENTRY.node,
    status: LOCK_ENTRY.status,
  });
  assert.is(MXFS_NAME_LEN_MAX, 255);
});

test("every size stated in a header's comment is the compiler's", () => {
  assert.ok(stated.size >= 5, `only ${stated.size} structures state their size`);
  for (const [name, size] of stated) assert.is(layouts[name]?.size, size, `struct ${name}`);
});

test("every shared structure is a multiple of 8 bytes, so that arrays of them stay aligned", () => {
  const names = Object.keys(layouts);
  assert.ok(names.includes("mxfs_fsop_request") && names.includes("mxfs_wire_attr"));
  for (const name of names) assert.is((layouts[name] as Layout).size % 8, 0, name);
});

test.run();
