// SPDX-License-Identifier: GPL-2.0-only
//
// The C launcher (native/build/mxfsd-launch) as the kernel starts it: with an empty environment and closed
// stdio. A small script stands in for the daemon and tells what kind of process it finds itself in.
//
// Known weakness: /etc/mxfs/launcher.conf is tried in a mount namespace of its own (the host's is left alone), which
// needs root; the other tests read the host's, should there be one.

import { execFileSync, spawnSync } from "node:child_process";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";

const LAUNCHER = fileURLToPath(new URL("../../../native/build/mxfsd-launch", import.meta.url));

/** Writes what it sees to $MXFS_TEST_REPORT, and exits with 7. */
const DAEMON = `
import { readFileSync, readdirSync, readlinkSync, writeFileSync } from "node:fs";
const stat = readFileSync("/proc/self/stat", "utf8").replace(/.*\\) /s, "").split(" ");
writeFileSync(process.env.MXFS_TEST_REPORT, JSON.stringify({
  argv: process.argv, execArgv: process.execArgv, execPath: process.execPath, pid: process.pid, session: Number(stat[3]),
  path: process.env.PATH, home: process.env.HOME,
  stdio: [0, 1, 2].map((fd) => readlinkSync("/proc/self/fd/" + fd)),
  files: readdirSync("/proc/self/fd").flatMap((fd) => {
    try { return [readlinkSync("/proc/self/fd/" + fd)]; } catch { return []; }
  }),
  oomScoreAdj: Number(readFileSync("/proc/self/oom_score_adj", "utf8")),
}));
process.exit(7);
`;

interface DaemonReport {
  readonly argv: readonly string[];
  readonly execArgv: readonly string[];
  readonly execPath: string;
  readonly pid: number;
  readonly session: number;
  readonly path: string;
  readonly home: string;
  readonly stdio: readonly string[];
  readonly files: readonly string[];
  readonly oomScoreAdj: number;
}

interface Context {
  home: string;
}

const test = suite<Context>("mxfsd-launch", { home: "" });

test.before.each((context) => {
  context.home = mkdtempSync(`${tmpdir()}/mxfs-launch-`);
  mkdirSync(`${context.home}/dist/daemon`, { recursive: true });
  mkdirSync(`${context.home}/native/build`, { recursive: true });
  writeFileSync(`${context.home}/package.json`, '{"type":"module"}');
  writeFileSync(`${context.home}/dist/daemon/mxfsd.js`, DAEMON);
});

test.after.each((context) => {
  rmSync(context.home, { recursive: true });
});

function readReport(context: Context): DaemonReport {
  return JSON.parse(readFileSync(`${context.home}/report`, "utf8")) as DaemonReport;
}

/** The environment that the launcher gets: nothing that is not listed. */
function environment(context: Context, more: Readonly<Record<string, string>>): Record<string, string> {
  return { MXFS_TEST_REPORT: `${context.home}/report`, MXFS_NODE: process.execPath, ...more };
}

test("it runs the daemon of MXFS_HOME with all arguments and passes its exit status on", (context) => {
  const run = spawnSync(LAUNCHER, ["--volume", "a b", ""], {
    env: environment(context, { MXFS_HOME: context.home }),
    encoding: "utf8",
  });
  assert.is(run.status, 7, run.stderr);
  const report = readReport(context);
  assert.equal(report.argv.slice(2), ["--volume", "a b", ""]);
  assert.is(report.argv[1], `${context.home}/dist/daemon/mxfsd.js`);
  assert.is(report.execPath, process.execPath);
  assert.match(report.path, /\/usr\/sbin:\/usr\/bin/);
  assert.is(report.home, "/");
});

test("it finds the project from its own real path through a symbolic link", (context) => {
  copyFileSync(LAUNCHER, `${context.home}/native/build/mxfsd-launch`);
  symlinkSync(`${context.home}/native/build/mxfsd-launch`, `${context.home}/mxfsd`);
  const run = spawnSync(`${context.home}/mxfsd`, [], { env: environment(context, {}), encoding: "utf8" });
  assert.is(run.status, 7, run.stderr);
  assert.is(readReport(context).argv[1], `${context.home}/dist/daemon/mxfsd.js`);
});

test("the daemon leads its own session, inherits no descriptor, and has /dev/null where stdio was closed", (context) => {
  // "; exit" keeps the shell from exec'ing the launcher in its own place: a forked child leads no group.
  const env = environment(context, { MXFS_HOME: context.home });
  const run = spawnSync("/bin/sh", ["-c", `"${LAUNCHER}" 9</etc/passwd 0<&- 2>&-; exit $?`], { env });
  assert.is(run.status, 7);
  const report = readReport(context);
  assert.is(report.session, report.pid);
  assert.not(report.files.includes("/etc/passwd"));
  assert.is(report.stdio[0], "/dev/null");
  assert.is(report.stdio[2], "/dev/null");
  assert.is.not(report.stdio[1], "/dev/null");
});

test("protection from memory pressure is set, or its refusal reported and survived", (context) => {
  const status = readFileSync("/proc/self/status", "utf8");
  const capabilities = BigInt(`0x${/^CapEff:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? ""}`);
  const capable = ((capabilities >> 24n) & 1n) === 1n; // CAP_SYS_RESOURCE
  const run = spawnSync(LAUNCHER, [], {
    env: environment(context, { MXFS_HOME: context.home }),
    encoding: "utf8",
  });
  assert.is(run.status, 7, run.stderr);
  if (capable) {
    assert.is(readReport(context).oomScoreAdj, -1000);
    assert.is(run.stderr, "");
  } else {
    assert.match(run.stderr, /PR_SET_IO_FLUSHER refused: Operation not permitted/);
    assert.match(run.stderr, /oom_score_adj -1000 refused: Permission denied/);
  }
});

test("without node it exits with 127 and says so on stderr", (context) => {
  const run = spawnSync(LAUNCHER, [], {
    env: environment(context, { MXFS_HOME: context.home, MXFS_NODE: "/no/such/node" }),
    encoding: "utf8",
  });
  assert.is(run.status, 127);
  assert.match(run.stderr, /no node at \/no\/such\/node: install Node\.js 20/);
});

test("without the daemon's script it exits with 127 and names where it looked", (context) => {
  const run = spawnSync(LAUNCHER, [], {
    env: environment(context, { MXFS_HOME: `${context.home}/nowhere` }),
    encoding: "utf8",
  });
  assert.is(run.status, 127);
  assert.match(run.stderr, /no dist\/daemon\/mxfsd\.js under .*\/nowhere: build the project/);
});

/** Runs the launcher where /etc holds nothing but this /etc/mxfs/launcher.conf. */
function launchWithConfig(context: Context, config: string) {
  writeFileSync(`${context.home}/launcher.conf`, config);
  const script = `mount -t tmpfs none /etc && mkdir /etc/mxfs &&
    cp "${context.home}/launcher.conf" /etc/mxfs/ && exec "${LAUNCHER}" argument`;
  const env = { MXFS_TEST_REPORT: `${context.home}/report`, PATH: process.env.PATH ?? "" };
  return spawnSync("unshare", ["--mount", "/bin/sh", "-c", script], { env, encoding: "utf8" });
}

test("launcher.conf names node, the project, and flags for node before the script", (context) => {
  const run = launchWithConfig(
    context,
    `# comment\n\nnode=${process.execPath}\nhome=${context.home}\nnode_flag=--title=mxfsd\nnode_flag=--no-warnings\n`,
  );
  assert.is(run.status, 7, run.stderr);
  const report = readReport(context);
  assert.equal(report.argv.slice(1), [`${context.home}/dist/daemon/mxfsd.js`, "argument"]);
  assert.equal(report.execArgv, ["--title=mxfsd", "--no-warnings"]);
});

test("an unknown line of launcher.conf is refused by number, not skipped", (context) => {
  const run = launchWithConfig(context, "# comment\nnodes=/usr/bin/node\n");
  assert.is(run.status, 127);
  assert.match(
    run.stderr,
    /launcher\.conf line 2: "nodes=\/usr\/bin\/node": expected node=, home= or node_flag=/,
  );
});

test("it is a small program of its own that needs libc alone", () => {
  const needed = execFileSync("ldd", [LAUNCHER], { encoding: "utf8" });
  assert.not.match(needed, /libstdc\+\+|libnode/);
});

test.run();
