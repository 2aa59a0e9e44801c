// SPDX-License-Identifier: GPL-2.0-only
//
// What the lab asks of the machine it runs on: start a process that outlives us, know it again later, end it
// for certain, and call a tool with an error that says what failed.
//
// A process is known by (pid, start time), written down when it is started, so that a pid the kernel has given
// to somebody else since is never signalled. All of this is synchronous: `down` has to work from an exit
// handler too.
//
// Weakness: between reading the start time and sending the signal the pid could in theory be reused; the
// window is microseconds, and pids are handed out in rising order.

import { spawn, spawnSync } from "node:child_process";
import { closeSync, existsSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";

/** An expected failure of the lab, with a message that tells the user what to do. */
export class LabError extends Error {
  override name = "LabError";
}

/** Blocks this thread. Only for waiting on a process that has been killed, and in exit handlers. */
export function sleepSync(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}

/** Runs a tool to its end and returns its stdout. Throws LabError with its stderr when it fails. */
export function run(command: string, args: readonly string[], env?: Record<string, string>): string {
  const result = spawnSync(command, args, {
    encoding: "utf8",
    maxBuffer: 64 << 20,
    env: { ...process.env, ...env },
  });
  if (result.error !== undefined) {
    throw new LabError(`cannot run ${command}: ${result.error.message}; run scripts/setup.sh`);
  }
  if (result.status !== 0) {
    const why = result.stderr.trim() || `exit status ${result.status ?? result.signal}`;
    throw new LabError(`${command} ${args.join(" ")}: ${why}`);
  }
  return result.stdout;
}

/** A process that the lab started: pid, and its start time in clock ticks since boot (proc(5), field 22). */
export interface ProcessId {
  pid: number;
  startTime: string;
}

export type ProcessState = "running" | "stopped" | "gone";

function readStat(pid: number): { state: string; startTime: string } | undefined {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid}/stat`, "utf8");
  } catch {
    return undefined; // no such process
  }
  // The command name, in parentheses, may itself hold spaces and parentheses.
  const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
  return { state: fields[0] ?? "", startTime: fields[19] ?? "" };
}

/** A zombie counts as gone: it holds nothing any more but its entry. */
export function processState(id: ProcessId): ProcessState {
  const stat = readStat(id.pid);
  if (stat === undefined || stat.startTime !== id.startTime || stat.state === "Z" || stat.state === "X") {
    return "gone";
  }
  return stat.state === "T" || stat.state === "t" ? "stopped" : "running";
}

/** Starts a process in its own session that goes on without us; its output goes to `logFile`. */
export function startDaemon(
  command: string,
  args: readonly string[],
  logFile: string,
  env?: Record<string, string>,
): ProcessId {
  const log = openSync(logFile, "a");
  try {
    const child = spawn(command, args, {
      detached: true,
      stdio: ["ignore", log, log],
      env: { ...process.env, ...env },
    });
    child.on("error", () => {}); // reported below: no pid
    child.unref();
    const stat = child.pid === undefined ? undefined : readStat(child.pid);
    if (child.pid === undefined || stat === undefined) {
      throw new LabError(`cannot start ${command}; run scripts/setup.sh`);
    }
    return { pid: child.pid, startTime: stat.startTime };
  } finally {
    closeSync(log);
  }
}

export function signalProcess(id: ProcessId, signal: NodeJS.Signals): boolean {
  if (processState(id) === "gone") return false;
  try {
    process.kill(id.pid, signal);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ESRCH") return false;
    throw error;
  }
}

/** SIGKILL, then waits until the process is gone. Throws when it is not within `timeoutMs`. */
export function endProcess(id: ProcessId, timeoutMs = 10_000): void {
  if (!signalProcess(id, "SIGKILL")) return;
  const deadline = Date.now() + timeoutMs;
  while (processState(id) !== "gone") {
    if (Date.now() > deadline) {
      throw new LabError(`process ${id.pid} is still there ${timeoutMs} ms after SIGKILL`);
    }
    sleepSync(5);
  }
}

export function writePidFile(file: string, id: ProcessId): void {
  writeFileSync(file, `${id.pid} ${id.startTime}\n`);
}

export function readPidFile(file: string): ProcessId | undefined {
  if (!existsSync(file)) return undefined;
  const [pid, startTime] = readFileSync(file, "utf8").trim().split(" ");
  if (pid === undefined || startTime === undefined || !/^[1-9][0-9]*$/.test(pid)) return undefined;
  return { pid: Number(pid), startTime };
}

export function removeFile(file: string): void {
  rmSync(file, { force: true, recursive: true });
}
