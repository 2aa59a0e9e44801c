// SPDX-License-Identifier: GPL-2.0-only
//
// The house: folders are floors, imports run downward only, without circles; and the repository's own rules.

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");
const FLOORS = ["native", "src/wire", "src/dlm", "src/disk", "src/cluster", "src/workers", "src/main"];
const CORES = ["src/wire", "src/dlm", "src/disk", "src/cluster"];

function sources(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith(".ts") && !entry.parentPath.includes("build"))
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)));
}

function importsOf(file: string): string[] {
  const text = readFileSync(join(ROOT, file), "utf8");
  return Array.from(
    text.matchAll(/^\s*(?:import|export)\s[^;]*?from\s+"([^"]+)"/gms),
    (match) => match[1] ?? "",
  );
}

function target(file: string, specifier: string): string {
  return relative(ROOT, resolve(join(ROOT, dirname(file)), specifier)).replace(/\.js$/, ".ts");
}

function floorOf(file: string): number {
  return FLOORS.findIndex((floor) => file.startsWith(`${floor}/`));
}

const files = FLOORS.flatMap(sources);

test("imports run downward only", () => {
  const wrong = files.flatMap((file) =>
    importsOf(file)
      .filter((specifier) => specifier.startsWith("."))
      .map((specifier) => target(file, specifier))
      .filter((imported) => floorOf(imported) > floorOf(file))
      .map((imported) => `${file} imports ${imported}`),
  );
  assert.equal(wrong, []);
});

test("no circle among the files", () => {
  const done = new Set<string>();
  const visit = (file: string, path: readonly string[]): void => {
    assert.not.ok(path.includes(file), `circle: ${[...path, file].join(" -> ")}`);
    if (done.has(file)) {
      return;
    }
    for (const specifier of importsOf(file)) {
      if (specifier.startsWith(".")) {
        const next = target(file, specifier);
        if (files.includes(next)) {
          visit(next, [...path, file]);
        }
      }
    }
    done.add(file);
  };
  for (const file of files) {
    visit(file, []);
  }
});

test("cores import no worker, socket, file system or native addon", () => {
  const allowed = new Set(["node:crypto", "node:buffer"]);
  const wrong = files
    .filter((file) => CORES.some((core) => file.startsWith(`${core}/`)))
    .flatMap((file) =>
      importsOf(file)
        .filter((specifier) =>
          specifier.startsWith(".") ? target(file, specifier).startsWith("native/") : !allowed.has(specifier),
        )
        .map((specifier) => `${file} imports ${specifier}`),
    );
  assert.equal(wrong, []);
});

test("every source file names its licence", () => {
  const all = [
    ...files,
    ...["lab", "perf", "test"].flatMap(sources),
    ...readdirSync(join(ROOT, "kernel"))
      .filter((name) => /\.[ch]$/.test(name))
      .map((name) => `kernel/${name}`),
    ...readdirSync(join(ROOT, "include/mxfs")).map((name) => `include/mxfs/${name}`),
  ];
  const missing = all.filter(
    (file) =>
      !/\.mod\.c$/.test(file) &&
      !readFileSync(join(ROOT, file), "utf8").slice(0, 200).includes("SPDX-License-Identifier: GPL-2.0-only"),
  );
  assert.equal(missing, []);
});

test("package-lock.json names no registry host", () => {
  assert.not.match(readFileSync(join(ROOT, "package-lock.json"), "utf8"), /"resolved"|https?:\/\/registry/);
});

test.run();
