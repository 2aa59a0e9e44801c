// SPDX-License-Identifier: GPL-2.0-only
//
// The control socket: how mxfs_lock, scripts and tests talk to a running mxfsd.
//
// A Unix stream socket (mode 0600), one JSON object a line in both directions. A request is {id, op, ...}, its
// answer {id, ok: true, ...} or {id, ok: false, errno, error}. Requests of one connection run side by side; a
// lock belongs to the connection that took it and is released when that closes. Events come without id:
// {event: "bast", lock, mode} (somebody waits for the lock), {event: "released", lock} (told by `unlock`),
// {event: "lost", lock, error} (the daemon cannot vouch for it any more).
//
// Limits: CONNECTIONS_MAX connections (further ones are told EBUSY and closed), LINE_MAX bytes a line (the
// connection is closed with an error), REQUESTS_MAX unanswered requests a connection (EBUSY).
//
// Known weakness: u64 values travel as decimal strings; no pagination of dumps (they are streamed in chunks).

import { chmodSync, mkdirSync, rmSync } from "node:fs";
import { connect, createServer, type Server, type Socket } from "node:net";
import { dirname } from "node:path";

export const CONNECTIONS_MAX = 256;
export const REQUESTS_MAX = 1024;
export const LINE_MAX = 64 * 1024;

export type Json = string | number | boolean | null | readonly Json[] | { readonly [name: string]: Json };
export type JsonObject = { readonly [name: string]: Json };

/** A refusal that the client sees: errno name and a sentence. */
export class ControlError extends Error {
  override readonly name = "ControlError";
  constructor(
    readonly errno: string,
    message: string,
  ) {
    super(message);
  }
}

/** One connected client, as the service sees it. */
export interface ControlClient {
  readonly id: number;
  /** Sends an event; ignored when the client is gone. */
  event(event: JsonObject): void;
}

/** What answers the requests; every method may throw or reject with ControlError. */
export interface ControlService {
  request(client: ControlClient, op: string, body: JsonObject): Promise<JsonObject>;
  /** The client's connection is closed: release what it holds. */
  gone(client: ControlClient): void;
}

/** Not null, no list. */
export function isObject(value: unknown): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Splits a byte stream into lines of at most LINE_MAX bytes. */
export class LineReader {
  #rest = "";

  /** @throws ControlError EMSGSIZE when a line is too long. */
  push(chunk: string): string[] {
    const lines = (this.#rest + chunk).split("\n");
    this.#rest = lines.pop() ?? "";
    if (this.#rest.length > LINE_MAX || lines.some((line) => line.length > LINE_MAX)) {
      throw new ControlError("EMSGSIZE", `a line is longer than ${LINE_MAX} bytes`);
    }
    return lines.filter((line) => line.trim() !== "");
  }
}

export class ControlServer {
  readonly #service: ControlService;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  #nextClient = 1;

  private constructor(service: ControlService) {
    this.#service = service;
    this.#server = createServer((socket) => this.#accept(socket));
  }

  /**
   * Listens at `path`. A socket file of a daemon that is gone is replaced.
   * @throws ControlError EADDRINUSE when a living daemon listens there.
   */
  static async listen(path: string, service: ControlService): Promise<ControlServer> {
    mkdirSync(dirname(path), { recursive: true, mode: 0o755 });
    if (await answers(path)) {
      throw new ControlError("EADDRINUSE", `${path}: another mxfsd listens there`);
    }
    rmSync(path, { force: true });
    const control = new ControlServer(service);
    await new Promise<void>((resolve, reject) => {
      control.#server.once("error", reject);
      control.#server.listen(path, () => {
        control.#server.off("error", reject);
        resolve();
      });
    });
    chmodSync(path, 0o600);
    return control;
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) {
      socket.destroy();
    }
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #accept(socket: Socket): void {
    if (this.#sockets.size >= CONNECTIONS_MAX) {
      socket.end(
        `${JSON.stringify({ id: null, ok: false, errno: "EBUSY", error: `${CONNECTIONS_MAX} control clients are connected already` })}\n`,
      );
      return;
    }
    this.#sockets.add(socket);
    socket.setEncoding("utf8");
    const send = (message: JsonObject): void => {
      if (!socket.destroyed) {
        socket.write(`${JSON.stringify(message)}\n`);
      }
    };
    const client: ControlClient = { id: this.#nextClient++, event: send };
    const reader = new LineReader();
    const pending = { count: 0 };
    socket.on("data", (chunk: string) => {
      try {
        for (const line of reader.push(chunk)) {
          this.#request(client, pending, line, send);
        }
      } catch (error) {
        send(refusal(null, error));
        socket.destroySoon();
      }
    });
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      this.#sockets.delete(socket);
      this.#service.gone(client);
    });
  }

  #request(
    client: ControlClient,
    pending: { count: number },
    line: string,
    send: (message: JsonObject) => void,
  ): void {
    let body: unknown;
    try {
      body = JSON.parse(line);
    } catch {
      throw new ControlError("EBADMSG", "a request is one JSON object a line");
    }
    if (!isObject(body) || typeof body.op !== "string" || typeof body.id !== "number") {
      throw new ControlError("EBADMSG", 'a request needs "id" (number) and "op" (string)');
    }
    const { id, op } = body;
    if (pending.count >= REQUESTS_MAX) {
      send(refusal(id, new ControlError("EBUSY", `${REQUESTS_MAX} requests are unanswered already`)));
      return;
    }
    pending.count++;
    this.#service
      .request(client, op, body)
      .then((answer) => send({ ...answer, id, ok: true }))
      .catch((error: unknown) => send(refusal(id, error)))
      .finally(() => {
        pending.count--;
      });
  }
}

function refusal(id: number | null, error: unknown): JsonObject {
  const errno = error instanceof ControlError ? error.errno : "EIO";
  return { id, ok: false, errno, error: error instanceof Error ? error.message : String(error) };
}

/** Whether somebody accepts connections at a socket path. */
export function answers(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path);
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", () => resolve(false));
  });
}

/** The client's side. */
export class ControlConnection {
  readonly #socket: Socket;
  readonly #waiting = new Map<
    number,
    { resolve: (body: JsonObject) => void; reject: (error: Error) => void }
  >();
  #nextId = 1;
  /** Called for every event; and with {event: "closed"} when the daemon is gone. */
  onEvent: (event: JsonObject) => void = () => undefined;

  private constructor(socket: Socket) {
    this.#socket = socket;
    const reader = new LineReader();
    socket.setEncoding("utf8");
    socket.on("data", (chunk: string) => {
      try {
        for (const line of reader.push(chunk)) {
          this.#receive(line);
        }
      } catch (error) {
        socket.destroy(error instanceof Error ? error : new Error(String(error)));
      }
    });
    socket.on("error", () => socket.destroy());
    socket.on("close", () => {
      for (const waiter of this.#waiting.values()) {
        waiter.reject(new ControlError("ECONNRESET", "mxfsd closed the connection"));
      }
      this.#waiting.clear();
      this.onEvent({ event: "closed" });
    });
  }

  /** @throws ControlError ECONNREFUSED when no daemon listens at `path`. */
  static connect(path: string): Promise<ControlConnection> {
    return new Promise((resolve, reject) => {
      const socket = connect(path);
      socket.once("connect", () => resolve(new ControlConnection(socket)));
      socket.once("error", (error) =>
        reject(
          new ControlError(
            "ECONNREFUSED",
            `no mxfsd answers at ${path} (${error.message}): is a volume mounted?`,
          ),
        ),
      );
    });
  }

  request(op: string, body: JsonObject = {}): Promise<JsonObject> {
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#socket.write(`${JSON.stringify({ ...body, id, op })}\n`);
    });
  }

  close(): void {
    this.#socket.end();
  }

  #receive(line: string): void {
    const message: unknown = JSON.parse(line);
    if (!isObject(message)) {
      throw new ControlError("EBADMSG", "mxfsd answered something that is no JSON object");
    }
    if (typeof message.event === "string") {
      this.onEvent(message);
      return;
    }
    const waiter = typeof message.id === "number" ? this.#waiting.get(message.id) : undefined;
    if (waiter === undefined || typeof message.id !== "number") {
      throw new ControlError(
        String(message.errno ?? "EBADMSG"),
        String(message.error ?? "answer without a request"),
      );
    }
    this.#waiting.delete(message.id);
    if (message.ok === true) {
      waiter.resolve(message);
    } else {
      waiter.reject(new ControlError(String(message.errno), String(message.error)));
    }
  }
}
