// SPDX-License-Identifier: GPL-2.0-only
//
// The bundles that a mount starts: their code caches are for this node, and the kernel's form of the command line is
// read without what people need.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { Script } from "node:vm";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { ConfigError } from "../../src/main/config.js";
import { kernelForm, resolveOptions } from "../../src/main/options.js";

const DIST = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const KERNEL = ["--device", "/dev/sdx", "--mountpoint", "-", "--uuid", "0-0", "--mount-id", "7"];

test("this node takes the code cache of every bundle", () => {
  let count = 0;
  for (const folder of ["daemon", "workers"]) {
    for (const name of readdirSync(join(DIST, folder)).filter((file) => file.endsWith(".code.js"))) {
      const filename = join(DIST, folder, name);
      const script = new Script(readFileSync(filename, "latin1"), {
        filename,
        cachedData: readFileSync(filename.replace(/\.js$/, ".bin")),
      });
      assert.is(script.cachedDataRejected, false, name);
      count++;
    }
  }
  assert.is(count, 8);
});

test("a code cache that does not fit is passed over, and the program runs", () => {
  // Another V8 flag: the cache's hash of them is wrong.
  const run = spawnSync(process.execPath, ["--no-opt", join(DIST, "daemon/mxfsd.js"), "--mount-id", "1"], {
    encoding: "utf8",
  });
  assert.match(run.stderr, /--mount-id needs --device, --mountpoint, --uuid beside it/);
  assert.is(run.status, 2);
});

test("the daemon's own bundle has no yargs in it", () => {
  assert.not.match(readFileSync(join(DIST, "daemon/mxfsd.code.js"), "utf8"), /node_modules\/yargs/);
  assert.match(readFileSync(join(DIST, "daemon/mxfsd_cli.js"), "utf8"), /node_modules\/yargs/);
});

test("the kernel's form gives the options that it names", () => {
  const given = kernelForm([
    ...KERNEL,
    ...["--iface", "eth1", "--port", "7700", "--peer", "10.0.0.1,10.0.0.2:7", "--lease-ms", "6000"],
    ...["--fence=none", "--peer", "10.0.0.3"],
  ]);
  assert.ok(given);
  const options = resolveOptions(given);
  assert.is(options.mountId, 7);
  assert.is(options.device, "/dev/sdx");
  assert.is(options.mountpoint, null);
  assert.is(options.fence, "none");
  assert.is(options.config.node.iface, "eth1");
  assert.is(options.config.node.port, 7700);
  assert.is(options.config.timing.leaseMs, 6000);
  assert.equal(options.config.peers, [
    { address: "10.0.0.1", port: 7700 },
    { address: "10.0.0.2", port: 7 },
    { address: "10.0.0.3", port: 7700 },
  ]);
});

test("persist= is writing unless said, by the mount or by its volume's section; anything else is refused, none too", () => {
  const of = (...words: string[]): string => {
    const given = kernelForm([...KERNEL, ...words]);
    assert.ok(given);
    return resolveOptions(given).persist;
  };
  assert.is(of(), "writing");
  assert.is(of("--persist", "all"), "all");
  for (const word of ["none", "some", ""]) {
    assert.throws(() => of(`--persist=${word}`), /--persist .*: expected writing .* or all/);
  }
  const folder = mkdtempSync(join(tmpdir(), "mxfs-persist-"));
  try {
    const file = join(folder, "mxfs.conf");
    writeFileSync(
      file,
      "[volume data]\ndevice = /dev/sdx\npersist = all\n[volume more]\ndevice = /dev/sdy\n",
    );
    assert.is(of("--config", file), "all");
    assert.is(of("--config", file, "--persist", "writing"), "writing");
    writeFileSync(file, "[volume data]\ndevice = /dev/sdx\npersist = none\n");
    assert.throws(() => of("--config", file), /mxfs.conf:3: .*expected writing .* or all/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("what is no kernel's form is left to the other one; what is wrong in it is said", () => {
  assert.is(kernelForm(["start", "/dev/sdx"]), null);
  assert.is(kernelForm([]), null);
  const throws = (words: readonly string[], expected: RegExp): void =>
    assert.throws(
      () => kernelForm(words),
      (error: unknown) => error instanceof ConfigError && expected.test(error.message),
    );
  throws(["--mount-id", "7"], /needs --device, --mountpoint, --uuid/);
  throws([...KERNEL, "--leese-ms", "5"], /leese-ms/);
  throws([...KERNEL, "--port", "7x"], /--port 7x: expected a whole number/);
  throws([...KERNEL, "extra"], /extra/);
  throws(KERNEL.with(-1, "-1"), /mount-id/);
});

test.run();
