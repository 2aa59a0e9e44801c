// SPDX-License-Identifier: GPL-2.0-only
//
// Bundles the programs that start often into one file each, with V8's code cache beside it: a daemon starts with every
// mount, and finding, parsing and compiling some hundred modules in five threads costs more than running them.
//
//   dist/daemon/mxfsd.js        what node is started with: reads the two below and runs them (scripts/load.cjs)
//   dist/daemon/mxfsd.code.js   the program, a CommonJS function
//   dist/daemon/mxfsd.code.bin  bytecode of all its functions; a node of another version or with other V8 flags
//                               refuses it, and compiles as it goes
//
// The bundles lie two levels below the root, as dist/native does, so that paths relative to import.meta.url stay right;
// workers lie where daemon.ts looks for them. piscina stays outside: it finds its own files beside itself, and is only
// loaded when the lock table is large. mxfsd_cli is the part of mxfsd that people use (yargs): loaded when they do.
//
// Weakness: the cache is for the node that runs this script.

import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { setFlagsFromString } from "node:v8";
import { Script } from "node:vm";
import { build } from "esbuild";

const WRAPPER = ["(function (exports, require, module, __filename, __dirname) {", "\n})"];
const PROGRAMS = [
  ...["mxfsd", "mxfs_lock"].map((name) => ({ from: `dist/src/main/${name}.js`, to: `dist/daemon/${name}` })),
  ...["netlink", "peer", "lease", "heartbeat", "records", "bulk_task"].map((name) => ({
    from: `dist/src/workers/${name}.js`,
    to: `dist/workers/${name}`,
  })),
];
const common = {
  bundle: true,
  platform: "node",
  format: "cjs",
  target: "node20",
  logLevel: "warning",
  charset: "ascii",
  external: ["piscina", "./mxfsd_cli.js"],
  // A script with a code cache has no loader for import(): what is loaded on demand is required.
  supported: { "dynamic-import": false },
  define: { "import.meta.url": "bundleUrl" },
  banner: { js: 'const bundleUrl = require("node:url").pathToFileURL(__filename).href;' },
};

/** Bytecode of every function, also of those that are usually compiled when they are first called. */
function codeCache(source, filename) {
  // The cache carries a hash of the flags: they are set back before it is made.
  setFlagsFromString("--no-lazy");
  const script = new Script(source, { filename });
  setFlagsFromString("--lazy");
  return script.createCachedData();
}

async function program({ from, to }) {
  const { outputFiles, warnings } = await build({ ...common, entryPoints: [from], write: false });
  const source = WRAPPER.join(outputFiles[0].text.replace(/^#!.*/, ""));
  writeFileSync(`${to}.code.js`, source);
  writeFileSync(`${to}.code.bin`, codeCache(source, `${to}.code.js`));
  copyFileSync("scripts/load.cjs", `${to}.js`);
  return warnings.length;
}

async function commandLine() {
  const { warnings } = await build({
    ...common,
    entryPoints: ["dist/src/main/mxfsd_cli.js"],
    outfile: "dist/daemon/mxfsd_cli.js",
  });
  return warnings.length;
}

for (const folder of ["dist/daemon", "dist/workers"]) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(`${folder}/package.json`, '{ "type": "commonjs" }\n');
}
const counts = await Promise.all([commandLine(), ...PROGRAMS.map(program)]);
process.exitCode = counts.some((count) => count > 0) ? 1 : 0;
