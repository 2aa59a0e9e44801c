// SPDX-License-Identifier: GPL-2.0-only
//
// What every worker thread starts with: its setup, its ports, a log that goes to main, and the end of the
// daemon when something is thrown that nobody caught.

import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from "node:worker_threads";
import type { LogFields, LogLevel, ToMain, WorkerPorts, WorkerSetup } from "./protocol.js";

export interface Shell {
  readonly setup: WorkerSetup;
  readonly parent: MessagePort;
  /** The port to another worker. @throws when main did not make one. */
  port(name: string): MessagePort;
  log(level: LogLevel, text: string, fields?: LogFields): void;
  toMain(message: ToMain): void;
  fatal(error: unknown): void;
}

interface StartData {
  readonly setup: WorkerSetup;
  readonly ports: WorkerPorts;
}

function isStartData(data: unknown): data is StartData {
  return typeof data === "object" && data !== null && "setup" in data && "ports" in data;
}

/** Call once, first thing in a worker's file. @throws outside of a worker thread. */
export function openShell(part: string): Shell {
  const parent = parentPort;
  const data: unknown = workerData;
  if (parent === null || !isStartData(data)) {
    throw new Error(`the ${part} worker is started by mxfsd only`);
  }
  const { setup, ports } = data;
  const toMain = (message: ToMain): void => parent.postMessage(message);
  const fatal = (error: unknown): void => {
    toMain({
      kind: "fatal",
      part,
      error: error instanceof Error ? (error.stack ?? error.message) : String(error),
    });
  };
  process.on("uncaughtException", fatal);
  process.on("unhandledRejection", fatal);
  return {
    setup,
    parent,
    toMain,
    fatal,
    port(name) {
      const port = ports[name];
      if (port === undefined) {
        throw new Error(`the ${part} worker has no port to ${name}`);
      }
      return port;
    },
    log(level, text, fields = {}) {
      toMain({ kind: "log", record: { timeMs: Date.now(), level, part, text, fields } });
    },
  };
}

/** Takes what has arrived on a port without going back to the event loop. */
export function drain<T>(port: MessagePort, take: (message: T) => void): number {
  let count = 0;
  for (;;) {
    const received: { message: T } | undefined = receiveMessageOnPort(port);
    if (received === undefined) {
      return count;
    }
    take(received.message);
    count++;
  }
}
