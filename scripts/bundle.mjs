// SPDX-License-Identifier: GPL-2.0-only
//
// Bundles the programs that start often into one file each: a daemon starts with every mount, and resolving some
// hundred modules costs more than running them. The bundles lie two levels below the root, as dist/native does, so
// that paths relative to import.meta.url stay right; workers lie where daemon.ts looks for them. piscina stays outside:
// it finds its own files beside itself, and is only loaded when the lock table is large.

import { build } from "esbuild";

const banner = {
  js: 'import { createRequire as bundleRequire } from "node:module"; const require = bundleRequire(import.meta.url);',
};
const common = {
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  logLevel: "warning",
  external: ["piscina"],
  banner,
};

const results = await Promise.all([
  ...["mxfsd", "mxfs_lock"].map((name) =>
    build({ ...common, entryPoints: [`dist/src/main/${name}.js`], outfile: `dist/daemon/${name}.js` }),
  ),
  ...["netlink", "peer", "lease", "heartbeat", "bulk_task"].map((name) =>
    build({ ...common, entryPoints: [`dist/src/workers/${name}.js`], outfile: `dist/workers/${name}.js` }),
  ),
]);
process.exitCode = results.some((result) => result.warnings.length > 0) ? 1 : 0;
