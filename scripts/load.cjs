#!/usr/bin/env node
// SPDX-License-Identifier: GPL-2.0-only
//
// Runs the bundle beside it with its code cache (scripts/bundle.mjs, which copies this file under the program's name).

"use strict";
const { existsSync, readFileSync } = require("node:fs");
const { Script } = require("node:vm");

const base = __filename.slice(0, -".js".length);
const filename = `${base}.code.js`;
const cache = `${base}.code.bin`;
const script = new Script(readFileSync(filename, "latin1"), {
  filename,
  cachedData: existsSync(cache) ? readFileSync(cache) : undefined,
});
script.runInThisContext()(exports, require, module, __filename, __dirname);
