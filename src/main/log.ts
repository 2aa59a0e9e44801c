// SPDX-License-Identifier: GPL-2.0-only
//
// The log: one line a record, to a file, to syslog, and to standard error when in the foreground.
//
//   2026-01-31T12:00:00.123Z warn lease: renewal late node=3735928559 late_ms=812
//
// Responsible for: levels, the line's form, the sinks. Other threads post LogRecords to main, which owns the
// Log. syslog is reached through one child `logger` (Node has no Unix datagram sockets), fed by its standard
// input with kernel-style <N> priorities.
//
// Limits: a message of at most 4 KiB; at most QUEUE_MAX lines wait for a slow syslog, further ones are counted
// and the count is logged; file writes are synchronous appends (a log line that is written is in the page
// cache even if the daemon dies in the next instant).
//
// Known weakness: no rotation of its own; SIGHUP opens the file anew, as logrotate expects.

import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, mkdirSync, openSync, writeSync } from "node:fs";
import { dirname } from "node:path";
import type { LogFields, LogLevel, LogRecord } from "../workers/protocol.js";
import type { LoggingConfig } from "./config.js";

const LEVEL_NUMBER: Readonly<Record<LogLevel, number>> = { error: 0, warn: 1, info: 2, debug: 3 };
/** syslog.h: LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG. */
const SYSLOG_PRIORITY: Readonly<Record<LogLevel, number>> = { error: 3, warn: 4, info: 6, debug: 7 };
const LINE_MAX = 4096;
const QUEUE_MAX = 1024;

function fieldText(value: LogFields[string]): string {
  // Times are fractions of milliseconds by nature; nobody reads more than a tenth.
  const plain = String(
    typeof value === "number" && !Number.isInteger(value) ? Math.round(value * 10) / 10 : value,
  );
  return /^[^\s"=]+$/.test(plain) ? plain : JSON.stringify(plain);
}

function escapeControl(line: string): string {
  return Array.from(line, (char) =>
    char < " " || char === "\x7f" ? JSON.stringify(char).slice(1, -1) : char,
  ).join("");
}

/** The line without its end. Control characters are escaped: one record is always one line. */
export function formatRecord(record: LogRecord): string {
  const fields = Object.entries(record.fields)
    .map(([name, value]) => ` ${name}=${fieldText(value)}`)
    .join("");
  const time = new Date(record.timeMs).toISOString();
  const line = `${time} ${record.level} ${record.part}: ${record.text}${fields}`;
  return escapeControl(line).slice(0, LINE_MAX);
}

export function levelEnabled(record: LogLevel, threshold: LogLevel): boolean {
  return LEVEL_NUMBER[record] <= LEVEL_NUMBER[threshold];
}

export class Log {
  #config: LoggingConfig;
  #fd: number | null = null;
  #logger: ChildProcess | null = null;
  #waiting = 0;
  #dropped = 0;
  readonly #tag: string;
  readonly #stderr: boolean;

  /** @param tag syslog's identifier. @param stderr whether lines also go to standard error. */
  constructor(config: LoggingConfig, tag: string, stderr: boolean) {
    this.#config = config;
    this.#tag = tag;
    this.#stderr = stderr;
    this.#open();
  }

  get level(): LogLevel {
    return this.#config.level;
  }

  /** Opens the sinks anew with a new configuration (SIGHUP). */
  reload(config: LoggingConfig): void {
    this.#closeSinks();
    this.#config = config;
    this.#open();
  }

  write(record: LogRecord): void {
    if (!levelEnabled(record.level, this.#config.level)) {
      return;
    }
    const line = formatRecord(record);
    if (this.#fd !== null) {
      try {
        writeSync(this.#fd, `${line}\n`);
      } catch (error) {
        process.stderr.write(`mxfsd: log file ${this.#config.file}: ${String(error)}: file logging stops\n`);
        closeSync(this.#fd);
        this.#fd = null;
      }
    }
    if (this.#stderr) {
      process.stderr.write(`${line}\n`);
    }
    this.#toSyslog(record.level, line);
  }

  log(level: LogLevel, part: string, text: string, fields: LogFields = {}): void {
    this.write({ timeMs: Date.now(), level, part, text, fields });
  }

  /** Flushes and closes; resolves when syslog's child has taken everything. */
  async close(): Promise<void> {
    const child = this.#closeSinks();
    if (child !== null && child.exitCode === null && child.signalCode === null) {
      await new Promise<void>((resolve) => child.once("close", () => resolve()));
    }
  }

  #open(): void {
    if (this.#config.file !== null) {
      try {
        mkdirSync(dirname(this.#config.file), { recursive: true });
        this.#fd = openSync(this.#config.file, "a", 0o640);
      } catch (error) {
        process.stderr.write(`mxfsd: cannot open log file ${this.#config.file}: ${String(error)}\n`);
      }
    }
    if (this.#config.syslog) {
      const child = spawn("logger", ["-t", this.#tag, "--prio-prefix", "-p", "daemon.info"], {
        stdio: ["pipe", "ignore", "ignore"],
      });
      const gone = (): void => {
        if (this.#logger === child) {
          this.#logger = null;
        }
      };
      child.on("error", gone);
      child.on("exit", gone);
      child.stdin?.on("error", gone);
      this.#logger = child;
    }
  }

  #toSyslog(level: LogLevel, line: string): void {
    const input = this.#logger?.stdin;
    if (input === undefined || input === null) {
      return;
    }
    if (this.#waiting >= QUEUE_MAX) {
      this.#dropped++;
      return;
    }
    const lost = this.#dropped > 0 ? `<4>${this.#dropped} lines were lost: syslog is too slow\n` : "";
    this.#dropped = 0;
    this.#waiting++;
    input.write(`${lost}<${SYSLOG_PRIORITY[level]}>${line}\n`, () => {
      this.#waiting--;
    });
  }

  #closeSinks(): ChildProcess | null {
    if (this.#fd !== null) {
      closeSync(this.#fd);
      this.#fd = null;
    }
    const child = this.#logger;
    this.#logger = null;
    child?.stdin?.end();
    return child;
  }
}
