// SPDX-License-Identifier: GPL-2.0-only
//
// The host's end of the exec channel: runs one command in a guest over one of its virtio-serial ports, which
// QEMU shows here as unix sockets. The other end, and the frame format, is lab/agent.c.
//
// A port serves one command at a time, and QEMU one client at a time. Who uses a port first binds an abstract
// unix socket named after it: the kernel makes that atomic between all processes, and undoes it when the
// owner dies. When all ports of a guest are taken, a command waits for one.
//
// A HELLO that stays unanswered is sent again behind padding, in case a client that died here in the middle
// of a frame left the guest waiting for the rest of it; after HELLO_TRIES the guest counts as unreachable.
//
// Weakness: abstract sockets belong to the network namespace, so all users of one lab must share theirs.

import { randomInt } from "node:crypto";
import { EventEmitter, once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import { LabError } from "./host.js";

export const EXEC_PORT_COUNT = 16;

const FRAME_MAGIC = 0x424c584d; // "MXLB"
const HEADER_BYTES = 16;
const PAYLOAD_BYTES_MAX = 16384;
const HELLO_TRIES = 6;
const HELLO_WAIT_MS = 2_500;
const PORT_WAIT_MS = 60_000;

const FRAME = {
  HELLO: 1,
  ARGS: 2,
  GO: 3,
  STDIN: 4,
  SIGNAL: 5,
  STDOUT: 6,
  STDERR: 7,
  EXIT: 8,
  ERROR: 9,
} as const;

/** A guest died, was cut off from us, or never answered: whether the command ran on is unknown. */
export class GuestGoneError extends LabError {
  override name = "GuestGoneError";
}

export interface CommandSpec {
  argv: readonly string[];
  cwd: string;
  env: Readonly<Record<string, string>>;
}

export interface CommandEnd {
  /** Exit status; 128 + signal number when a signal ended the command, 127 when it could not be started. */
  status: number;
  /** The signal that ended it, or 0. */
  signal: number;
}

interface Frame {
  type: number;
  session: number;
  payload: Buffer;
}

export function encodeFrame(type: number, session: number, payload: Buffer = Buffer.alloc(0)): Buffer {
  const head = Buffer.alloc(HEADER_BYTES);
  head.writeUInt32LE(FRAME_MAGIC, 0);
  head.writeUInt8(type, 4);
  head.writeUInt32LE(session, 8);
  head.writeUInt32LE(payload.length, 12);
  return Buffer.concat([head, payload]);
}

/** Finds frames in a byte stream that may start in the middle of somebody else's. */
export class FrameReader {
  #parts: Buffer[] = [];
  #bytes = 0;

  push(chunk: Buffer): Frame[] {
    this.#parts.push(chunk);
    this.#bytes += chunk.length;
    const frames: Frame[] = [];
    if (this.#bytes < HEADER_BYTES) return frames;
    let data = this.#parts.length === 1 ? chunk : Buffer.concat(this.#parts);
    while (data.length >= HEADER_BYTES) {
      const length = data.readUInt32LE(12);
      if (data.readUInt32LE(0) !== FRAME_MAGIC || length > PAYLOAD_BYTES_MAX) {
        data = data.subarray(1);
        continue;
      }
      if (data.length < HEADER_BYTES + length) break;
      frames.push({
        type: data.readUInt8(4),
        session: data.readUInt32LE(8),
        payload: data.subarray(HEADER_BYTES, HEADER_BYTES + length),
      });
      data = data.subarray(HEADER_BYTES + length);
    }
    this.#parts = data.length === 0 ? [] : [data];
    this.#bytes = data.length;
    return frames;
  }
}

function encodeArgs(spec: CommandSpec): Buffer {
  const env = Object.entries(spec.env).map(([key, value]) => `${key}=${value}`);
  const strings = [spec.cwd, String(env.length), ...env, ...spec.argv];
  for (const text of strings) {
    if (text.includes("\0"))
      throw new LabError(`a command argument holds a NUL byte: ${JSON.stringify(text)}`);
  }
  return Buffer.from(strings.map((text) => `${text}\0`).join(""));
}

async function tryLock(name: string): Promise<Server | undefined> {
  const server = createServer();
  server.listen(`\0${name}`);
  try {
    await once(server, "listening");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EADDRINUSE") return undefined;
    throw error;
  }
  return server;
}

async function takePort(lockPrefix: string, node: string): Promise<{ port: number; lock: Server }> {
  const deadline = Date.now() + PORT_WAIT_MS;
  const first = randomInt(EXEC_PORT_COUNT);
  for (;;) {
    for (let i = 0; i < EXEC_PORT_COUNT; i++) {
      const port = (first + i) % EXEC_PORT_COUNT;
      const lock = await tryLock(`${lockPrefix}/${port}`);
      if (lock !== undefined) return { port, lock };
    }
    if (Date.now() > deadline) {
      throw new LabError(`${node}: all ${EXEC_PORT_COUNT} exec ports are busy for ${PORT_WAIT_MS / 1000} s`);
    }
    await delay(50); // locks of other processes: there is no event to wait for
  }
}

export interface ChannelTarget {
  /** For messages: "node1". */
  node: string;
  /** Path of the unix socket of a port. */
  socketPath(port: number): string;
  /** Prefix of the names of the locks, unique per lab and node. */
  lockPrefix: string;
  /** False once the guest's QEMU is gone. */
  alive(): boolean;
}

interface CommandEvents {
  stdout: [Buffer];
  stderr: [Buffer];
}

/**
 * One command in a guest. Events `stdout` and `stderr` carry Buffers as they arrive; `done` resolves when the
 * command has ended, and rejects with GuestGoneError when its guest dies first.
 */
export class Command extends EventEmitter<CommandEvents> {
  readonly done: Promise<CommandEnd>;
  readonly #session = randomInt(1, 0xffffffff);
  #socket: Socket | undefined;
  #stdin: Promise<void>;
  #abort: ((error: Error) => void) | undefined;
  #abandoned: Error | undefined;

  constructor(target: ChannelTarget, spec: CommandSpec) {
    super();
    let ready: () => void = () => {};
    this.#stdin = new Promise((resolve) => {
      ready = resolve;
    });
    this.done = this.#run(target, spec, ready);
    this.done.catch(ready); // a writer must not wait for a guest that never came
  }

  async #run(target: ChannelTarget, spec: CommandSpec, ready: () => void): Promise<CommandEnd> {
    if (spec.argv.length === 0) throw new LabError(`${target.node}: exec needs a command`);
    const args = encodeArgs(spec);
    const { port, lock } = await takePort(target.lockPrefix, target.node);
    try {
      return await this.#talk(target, target.socketPath(port), args, ready);
    } finally {
      this.#socket?.destroy();
      this.#socket = undefined;
      lock.close();
    }
  }

  #talk(target: ChannelTarget, path: string, args: Buffer, ready: () => void): Promise<CommandEnd> {
    return new Promise<CommandEnd>((resolve, reject) => {
      const gone = (why: string) => new GuestGoneError(`${target.node}: ${why}`);
      const socket = connect(path);
      const reader = new FrameReader();
      let greeted = false;
      let tries = 0;
      this.#socket = socket;
      this.#abort = reject;
      if (this.#abandoned !== undefined) return reject(this.#abandoned);

      const hello = () => {
        if (!target.alive()) return reject(gone("the guest is not running"));
        if (tries++ === HELLO_TRIES) {
          return reject(
            gone(`the guest does not answer on its exec port for ${(HELLO_TRIES * HELLO_WAIT_MS) / 1000} s`),
          );
        }
        if (tries > 1) socket.write(Buffer.alloc(PAYLOAD_BYTES_MAX));
        socket.write(encodeFrame(FRAME.HELLO, this.#session));
        timer.refresh();
      };
      const timer = setTimeout(hello, HELLO_WAIT_MS);
      const begin = () => {
        greeted = true;
        clearTimeout(timer);
        for (let at = 0; at < args.length; at += PAYLOAD_BYTES_MAX) {
          socket.write(encodeFrame(FRAME.ARGS, this.#session, args.subarray(at, at + PAYLOAD_BYTES_MAX)));
        }
        socket.write(encodeFrame(FRAME.GO, this.#session));
        ready();
      };

      socket.on("connect", hello);
      socket.on("data", (chunk) => {
        for (const frame of reader.push(chunk)) {
          if (frame.session !== this.#session) continue; // left over from an earlier client
          if (frame.type === FRAME.HELLO) {
            if (!greeted) begin();
          } else if (frame.type === FRAME.STDOUT) this.emit("stdout", frame.payload);
          else if (frame.type === FRAME.STDERR) this.emit("stderr", frame.payload);
          else if (frame.type === FRAME.EXIT) {
            resolve({ status: frame.payload.readInt32LE(0), signal: frame.payload.readInt32LE(4) });
          } else if (frame.type === FRAME.ERROR) {
            this.emit("stderr", Buffer.from(`${target.node}: ${frame.payload.toString()}\n`));
            resolve({ status: 127, signal: 0 });
          } else reject(gone(`unknown frame type ${frame.type} from the agent`));
        }
      });
      const lost = (why: string) => {
        clearTimeout(timer);
        reject(gone(`the guest died while the command ran (${why})`));
      };
      socket.on("error", (error) => lost(error.message));
      socket.on("close", () => lost("its exec port closed"));
    });
  }

  /** Writes to the command's stdin; resolves when the guest has room for more. */
  async write(data: Buffer): Promise<void> {
    await this.#stdin;
    for (let at = 0; at < data.length; at += PAYLOAD_BYTES_MAX) {
      const socket = this.#socket;
      if (socket === undefined || socket.destroyed) return; // the command has ended
      const frame = encodeFrame(FRAME.STDIN, this.#session, data.subarray(at, at + PAYLOAD_BYTES_MAX));
      if (!socket.write(frame)) await Promise.race([once(socket, "drain"), this.#settled()]);
    }
  }

  /** End of the command's stdin. */
  async end(): Promise<void> {
    await this.#stdin;
    this.#socket?.write(encodeFrame(FRAME.STDIN, this.#session));
  }

  /** Sends a signal to the command's process group. */
  async signal(number: number): Promise<void> {
    await this.#stdin;
    const payload = Buffer.alloc(4);
    payload.writeUInt32LE(number);
    this.#socket?.write(encodeFrame(FRAME.SIGNAL, this.#session, payload));
  }

  /** Hangs up: the guest kills the command's process group, and `done` rejects with `error`. */
  abandon(error: Error): void {
    this.#abandoned = error;
    this.#abort?.(error);
    this.#socket?.destroy();
  }

  async #settled(): Promise<void> {
    await this.done.catch(() => undefined);
  }
}
