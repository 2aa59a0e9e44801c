// SPDX-License-Identifier: GPL-2.0-only
//
// TCP between the nodes of a volume: one authenticated connection per pair of nodes.
//
// Responsible for: listening, dialling with retries, HELLO and AUTH, choosing one connection when both sides
// dialled, frame numbering, limits on what waits to be sent. It knows nothing of what the frames mean.
//
//   dial / accept ──HELLO──► hello ──AUTH──► ready ──PING from the arbiter──► up ──► lost
//                                              └─ for the kernels ──PING from who was dialled──► given away
//
// When a connection is up and not sealed, who dialled its node dials another one for the kernels (MXFS_HELLO_FSOP): fsops
// travel by it without the daemons. It is given away at both ends, and not known here any more; if that fails, fsops go by
// the daemons.
//
// Of each pair the node with the lower id is the arbiter. When a connection is authenticated on both sides the
// arbiter selects it by sending PING, unless it has a selected one: then that one is probed by a PING, and the new
// one is selected only if the old one does not answer within PROBE_MS or breaks. The other side takes a connection as up
// when PING comes, answers PONG, and drops every other connection to that node.
//
// Limits: HANDSHAKE_MS from connect to ready; PENDING_MAX connections that are not up (older ones are
// dropped); silenceMs without a byte from the peer, asked for by PING after half of that, since TCP by itself keeps a
// connection with unanswered data open for a quarter of an hour (keep-alive is for idle ones); WRITE_BYTES_MAX waiting
// bytes per peer: beyond it the connection is closed (the peer does not read; a view change follows). Refused handshakes
// are logged once per source and minute, and counted.
//
// Speed: each connection reads into one buffer, and writes past Node's stream as long as that has nothing to write.
//
// Known weakness: a dialled socket is bound to the interface's address, not to the device (Node gives no fd
// before connect).

import { randomBytes } from "node:crypto";
import { createServer, connect as dial, type Server, Socket } from "node:net";
import { networkInterfaces } from "node:os";
import { dupFd, sendNow, setBindToDevice, socketFd, stopReading } from "../../native/index.js";
import {
  MXFS_HANDSHAKE_BODY_MAX,
  MXFS_HELLO_ENCRYPT,
  MXFS_HELLO_FSOP,
  MXFS_SEAL_PLAIN_MAX,
  MXFS_WIRE_BODY_MAX,
  MXFS_WIRE_HEADER_SIZE,
  MXFS_WIRE_NONCE_SIZE,
  WireType,
} from "../wire/abi.js";
import { type AuthContext, authCode, verifyAuth } from "../wire/auth.js";
import { WireError } from "../wire/error.js";
import { type Frame, FrameParser, FrameWriter, type OnLocks } from "../wire/frame.js";
import {
  decodeAuth,
  decodeError,
  decodeHello,
  encodeError,
  encodeHello,
  type Hello,
} from "../wire/messages.js";
import { Opener, Sealer, SealKey } from "../wire/seal.js";

const HANDSHAKE_MS = 10_000;
const PROBE_MS = 3_000;
const RETRY_MIN_MS = 100;
const RETRY_MAX_MS = 2_000;
const PENDING_MAX = 128;
const WRITE_BYTES_MAX = 64 * 1024 * 1024;
const REFUSAL_LOG_MS = 60_000;
/** Looks at the silence of peers within silenceMs. */
const SILENCE_LOOKS = 4;
const NO_BODY = new Uint8Array(0);
const OUT_BYTES_MIN = 4096;
const READ_BYTES = 65_536;

export interface PeerNetOptions {
  readonly self: number;
  readonly incarnation: number;
  readonly volume: bigint;
  readonly port: number;
  readonly iface: string | null;
  /** Connections are sealed. If only one side asks for it, they are, too. */
  readonly encrypt: boolean;
  /** A connection on which nothing has come for so long is closed; in milliseconds. */
  readonly silenceMs: number;
  /** Gives a connection to the kernel, which takes a reference of its own on the descriptor. null: there is no kernel. */
  readonly fsops: ((node: number, incarnation: number, fd: number) => void) | null;
}

export interface PeerNetEvents {
  up(node: number, incarnation: number): void;
  lost(node: number, reason: string): void;
  /** What the frame's body lies in is used again when this returns. */
  frame(node: number, frame: Frame): void;
  /** Where it is given, lock messages come here first; as OnLocks. */
  locks?(node: number, ...locks: Parameters<OnLocks>): boolean;
  log(
    level: "error" | "warn" | "info" | "debug",
    text: string,
    fields: Record<string, string | number>,
  ): void;
}

type State = "hello" | "auth" | "ready" | "up" | "closed";

interface Target {
  readonly node: number;
  readonly address: string;
  readonly port: number;
  retryMs: number;
  timer: NodeJS.Timeout | null;
  dialling: Connection | null;
}

/** IPv4 address of an interface, or null. */
export function interfaceAddress(name: string): string | null {
  return networkInterfaces()[name]?.find((entry) => entry.family === "IPv4")?.address ?? null;
}

/** One buffer for all that a socket reads: to make one for every read costs as much as to read. */
class Reader {
  connection: Connection | null = null;
  readonly options = {
    onread: {
      buffer: new Uint8Array(READ_BYTES),
      callback: (length: number, buffer: Uint8Array): boolean => {
        this.connection?.data(buffer.subarray(0, length));
        return true;
      },
    },
  };
}

class Connection {
  state: State = "hello";
  peer: Hello | null = null;
  /** Our AUTH is sent, the peer's was right. */
  #sentAuth = false;
  #provedPeer = false;
  #flushing = false;
  probe: NodeJS.Timeout | null = null;
  /** Bytes have come since the last look; and when that look was (performance.now()). */
  heard = true;
  heardAt = performance.now();
  readonly #nonce = new Uint8Array(randomBytes(MXFS_WIRE_NONCE_SIZE));
  readonly #writer: FrameWriter;
  readonly #parser = new FrameParser();
  /** Sealed connections: each from AUTH on. */
  #sealer: Sealer | null = null;
  #opener: Opener | null = null;
  /** Frames of this turn of the event loop: out[0 .. fill). */
  #out: Uint8Array = NO_BODY;
  #fill = 0;
  #fd = -1;
  readonly #timer: NodeJS.Timeout;

  constructor(
    readonly net: PeerNetwork,
    readonly socket: Socket,
    /** The node dialled, or null when accepted. */
    readonly dialled: number | null,
    readonly source: string,
    /** Dialled for the kernels. */
    readonly forKernel = false,
  ) {
    this.#writer = new FrameWriter(net.options.self, dialled ?? 0);
    this.#timer = setTimeout(() => this.close("handshake took too long", true), HANDSHAKE_MS);
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 5_000);
    this.#parser.bodyMax = MXFS_HANDSHAKE_BODY_MAX;
    socket.on("error", (error) => this.close(error.message, false));
    socket.on("close", () => this.close("connection closed", false));
  }

  /** What has arrived; the memory is used again when this returns. */
  data(chunk: Uint8Array): void {
    this.heard = true;
    try {
      this.#take(chunk);
    } catch (error) {
      this.refuse(
        error instanceof Error ? error.message : String(error),
        error instanceof WireError ? 71 : 5,
      );
    }
  }

  start(): void {
    const { volume, self, incarnation } = this.net.options;
    const nonce = this.#nonce;
    this.send(
      WireType.HELLO,
      0n,
      encodeHello({ volume, node: self, incarnation, nonce, flags: this.#flags }),
    );
  }

  get sealed(): boolean {
    return this.#sealer !== null;
  }

  get #flags(): number {
    return (this.net.options.encrypt ? MXFS_HELLO_ENCRYPT : 0) | (this.forKernel ? MXFS_HELLO_FSOP : 0);
  }

  readonly #onFrame = (frame: Frame): void => this.#receive(frame);
  readonly #onLocks: OnLocks = (type, words, at, count) =>
    this.state === "up" &&
    this.peer !== null &&
    (this.net.events.locks?.(this.peer.node, type, words, at, count) ?? false);

  #take(chunk: Uint8Array): void {
    let rest = chunk;
    if (this.#opener === null) {
      const taken = this.#parser.push(chunk, this.#onFrame, this.#onLocks);
      rest = chunk.subarray(taken);
    }
    // AUTH may have come with the first sealed record behind it.
    if (rest.length > 0) {
      this.#opener?.push(rest.slice(), (plain) => this.#parser.push(plain, this.#onFrame, this.#onLocks));
    }
  }

  send(type: (typeof WireType)[keyof typeof WireType], epoch: bigint, body: Uint8Array): boolean {
    if (this.state === "closed") {
      return false;
    }
    if (this.socket.writableLength + this.#fill > WRITE_BYTES_MAX) {
      this.close(`${this.socket.writableLength} bytes wait to be sent: the peer does not read`, false);
      return false;
    }
    // Frames of one turn of the event loop leave in one write.
    if (!this.#flushing) {
      this.#flushing = true;
      process.nextTick(this.#flushSoon);
    }
    const length = MXFS_WIRE_HEADER_SIZE + body.length;
    this.#writer.encodeInto(type, epoch, body, this.#room(length));
    this.#fill += length;
    return true;
  }

  readonly #flushSoon = (): void => {
    this.#flushing = false;
    this.#flush();
  };

  /** Room for a frame, which is never longer than a record, behind those that wait. */
  #room(length: number): Uint8Array {
    if (this.#fill + length > MXFS_SEAL_PLAIN_MAX) {
      this.#flush();
    }
    const fill = this.#fill + length;
    if (fill > this.#out.length) {
      const longer = new Uint8Array(Math.min(MXFS_SEAL_PLAIN_MAX, Math.max(OUT_BYTES_MIN, 2 * fill)));
      longer.set(this.#out.subarray(0, this.#fill));
      this.#out = longer;
    }
    return this.#out.subarray(this.#fill, fill);
  }

  /** What waits goes to the socket, in order: straight into the kernel where that has room. */
  #flush(): void {
    if (this.#fill === 0) {
      return;
    }
    const bytes = this.#out.subarray(0, this.#fill);
    this.#fill = 0;
    if (!this.socket.writable) {
      return;
    }
    if (this.#sealer !== null) {
      for (const piece of this.#sealer.seal(bytes)) {
        this.socket.write(piece);
      }
      return;
    }
    const free = this.socket.writableLength === 0 && !this.socket.connecting;
    const sent = free ? sendNow(this.#socketFd(), bytes) : 0;
    if (sent < bytes.length) {
      this.socket.write(bytes.slice(sent));
    }
  }

  /** Of a socket that can be written to. */
  #socketFd(): number {
    if (this.#fd < 0) {
      this.#fd = socketFd(this.socket);
    }
    return this.#fd;
  }

  /** Says why, then closes. */
  refuse(reason: string, errno: number): void {
    if (this.state !== "closed") {
      this.send(WireType.ERROR, 0n, encodeError({ errno, message: reason }));
      this.close(reason, true);
    }
  }

  close(reason: string, refused: boolean): void {
    if (this.state === "closed") {
      return;
    }
    const before = this.state;
    this.state = "closed";
    clearTimeout(this.#timer);
    if (this.probe !== null) {
      clearTimeout(this.probe);
    }
    this.#flush();
    this.socket.destroySoon();
    this.net.closed(this, before, reason, refused);
  }

  #receive(frame: Frame): void {
    if (this.state === "closed") {
      return;
    }
    switch (frame.type) {
      case WireType.ERROR: {
        const { message } = decodeError(frame.body);
        this.close(`the peer refused: ${message}`, false);
        return;
      }
      case WireType.HELLO:
        this.#hello(decodeHello(frame.body), frame);
        return;
      case WireType.AUTH:
        this.#auth(decodeAuth(frame.body));
        return;
      case WireType.PING:
        if (this.state === "ready" && this.forKernel) {
          this.#giveAway(false);
          return;
        }
        if (this.state === "ready" && !this.#peerIsForKernel) {
          this.net.selected(this);
        }
        if (this.state === "up") {
          this.send(WireType.PONG, 0n, NO_BODY);
        }
        return;
      case WireType.PONG:
        this.net.ponged(this);
        return;
      default:
        if (this.state !== "up" || this.peer === null) {
          throw new WireError("WIRE_TYPE", `frame of type ${frame.type} before the handshake is over`);
        }
        this.net.events.frame(this.peer.node, frame);
    }
  }

  #hello(hello: Hello, frame: Frame): void {
    const { volume, self, incarnation } = this.net.options;
    if (this.peer !== null) {
      throw new WireError("WIRE_TYPE", "a second HELLO");
    }
    if (hello.volume !== volume) {
      throw new WireError(
        "WIRE_FIELD",
        `volume ${hello.volume.toString(16)}: this port serves ${volume.toString(16)}`,
      );
    }
    if (hello.node === self) {
      throw new WireError(
        "WIRE_FIELD",
        "the peer has this node's own id: two hosts with one /etc/mxfs/node.uuid?",
      );
    }
    if (hello.node !== frame.sender || (this.dialled !== null && hello.node !== this.dialled)) {
      throw new WireError("WIRE_ENDPOINT", `node ${hello.node.toString(16)} answers in another's place`);
    }
    const key = this.net.key;
    if (key === null) {
      throw new WireError("WIRE_MAC", "this node does not know the cluster key yet: try again");
    }
    this.peer = hello;
    this.#writer.target = hello.node;
    this.#parser.expect({ sender: hello.node, target: self });
    this.state = "auth";
    const context: AuthContext = {
      volume,
      sender: self,
      target: hello.node,
      senderIncarnation: incarnation,
      targetIncarnation: hello.incarnation,
      senderNonce: this.#nonce,
      targetNonce: hello.nonce,
      senderFlags: this.#flags,
      targetFlags: hello.flags,
    };
    this.send(WireType.AUTH, 0n, authCode(key, context));
    if (this.#encrypts(hello)) {
      // What was said up to here is in the clear.
      this.#flush();
      this.#sealer = new Sealer(SealKey.derive(key, context));
    }
    this.#sentAuth = true;
  }

  /** One side is enough: who asked for it never talks in the clear. */
  #encrypts(peer: Hello): boolean {
    return ((this.#flags | peer.flags) & MXFS_HELLO_ENCRYPT) !== 0;
  }

  #auth(code: Uint8Array): void {
    const { peer } = this;
    const key = this.net.key;
    if (peer === null || key === null || !this.#sentAuth || this.#provedPeer) {
      throw new WireError("WIRE_TYPE", "AUTH out of turn");
    }
    const { volume, self, incarnation } = this.net.options;
    const context: AuthContext = {
      volume,
      sender: peer.node,
      target: self,
      senderIncarnation: peer.incarnation,
      targetIncarnation: incarnation,
      senderNonce: peer.nonce,
      targetNonce: this.#nonce,
      senderFlags: peer.flags,
      targetFlags: this.#flags,
    };
    const right = verifyAuth(key, context, code);
    if (!right) {
      throw new WireError("WIRE_MAC", "wrong cluster key");
    }
    this.#provedPeer = true;
    this.#parser.bodyMax = MXFS_WIRE_BODY_MAX;
    if (this.#encrypts(peer)) {
      this.#opener = new Opener(SealKey.derive(key, context));
      this.#parser.stop();
    }
    if (
      this.#peerIsForKernel &&
      (this.#encrypts(peer) || this.net.options.fsops === null || this.forKernel)
    ) {
      throw new WireError("WIRE_FIELD", "no connection for the kernels is wanted here");
    }
    this.state = "ready";
    if (this.#peerIsForKernel) {
      this.#giveAway(true);
    } else if (!this.forKernel) {
      clearTimeout(this.#timer);
      this.net.ready(this);
    }
  }

  get #peerIsForKernel(): boolean {
    return this.peer !== null && (this.peer.flags & MXFS_HELLO_FSOP) !== 0;
  }

  get isForKernels(): boolean {
    return this.forKernel || this.#peerIsForKernel;
  }

  /** From here on it is the kernel's. The other side's first word to ours comes behind our PING, so nothing of it is read here. */
  #giveAway(ping: boolean): void {
    const { peer, socket, net } = this;
    if (peer === null || net.options.fsops === null) {
      return;
    }
    clearTimeout(this.#timer);
    this.#flush();
    this.state = "closed";
    net.given(this);
    stopReading(socket);
    net.options.fsops(peer.node, peer.incarnation, socketFd(socket));
    // Closes the daemon's descriptor only: the connection lives with the kernel's.
    if (ping) {
      socket.write(this.#writer.encode(WireType.PING, 0n, NO_BODY), () => socket.destroy());
    } else {
      socket.destroy();
    }
  }
}

export class PeerNetwork {
  key: Uint8Array | null = null;
  readonly #targets = new Map<number, Target>();
  readonly #up = new Map<number, Connection>();
  readonly #standby = new Map<number, Connection>();
  readonly #pending = new Set<Connection>();
  readonly #refusals = new Map<string, { since: number; count: number }>();
  #server: Server | null = null;
  readonly #looking: NodeJS.Timeout;
  #lookedAt = performance.now();
  refusedCount = 0;

  constructor(
    readonly options: PeerNetOptions,
    readonly events: PeerNetEvents,
  ) {
    this.#looking = setInterval(() => this.#listenForSilence(), options.silenceMs / SILENCE_LOOKS);
  }

  /**
   * Starts to listen; resolves with the port. Where the port is taken (another volume's daemon on this host) the
   * system chooses another one: peers learn it from the heartbeat record and from discovery.
   */
  async listen(): Promise<number> {
    try {
      return await this.#listen(this.options.port);
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "EADDRINUSE")) {
        throw error;
      }
      this.events.log("info", "the port is taken, listening on another one", { port: this.options.port });
      return await this.#listen(0);
    }
  }

  #listen(port: number): Promise<number> {
    // Not read yet: that is the other socket's.
    const server = createServer({ pauseOnConnect: true }, (accepted) => this.#accepted(accepted));
    this.#server = server;
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen({ port, host: "0.0.0.0" }, () => {
        server.off("error", reject);
        server.on("error", (error) =>
          this.events.log("error", "listening socket failed", { error: error.message }),
        );
        try {
          if (this.options.iface !== null) {
            setBindToDevice(socketFd(server), this.options.iface);
          }
          const address = server.address();
          resolve(typeof address === "object" && address !== null ? address.port : this.options.port);
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  /** Takes a connection over with another socket of Node's on it, for only a new one may have `onread`. */
  #accepted(accepted: Socket): void {
    const source = accepted.remoteAddress ?? "unknown";
    try {
      const reader = new Reader();
      const fd = dupFd(socketFd(accepted));
      const socket = new Socket({ fd, readable: true, writable: true, ...reader.options });
      const connection = new Connection(this, socket, null, source);
      reader.connection = connection;
      this.#adopt(connection);
    } catch (error) {
      // No more file descriptors: the peer will try again.
      this.events.log("error", "a connection cannot be taken", {
        source,
        error: error instanceof Error ? error.message : String(error),
      });
    }
    accepted.destroy();
  }

  /** Keeps trying to be connected with `node` until `forget`. */
  connect(node: number, address: string, port: number): void {
    const known = this.#targets.get(node);
    if (known !== undefined && known.address === address && known.port === port) {
      this.#dialNow(known);
      return;
    }
    this.forget(node);
    const target: Target = { node, address, port, retryMs: RETRY_MIN_MS, timer: null, dialling: null };
    this.#targets.set(node, target);
    this.#dialNow(target);
  }

  /** No more dialling; an established connection stays until `disconnect`. */
  forget(node: number): void {
    const target = this.#targets.get(node);
    if (target?.timer) {
      clearTimeout(target.timer);
    }
    this.#targets.delete(node);
  }

  disconnect(node: number, reason: string): void {
    this.forget(node);
    this.#up.get(node)?.close(reason, false);
    this.#standby.get(node)?.close(reason, false);
  }

  /** False when there is no connection (the caller hears of it by `lost`, too). */
  send(
    node: number,
    type: (typeof WireType)[keyof typeof WireType],
    epoch: bigint,
    body: Uint8Array,
  ): boolean {
    return this.#up.get(node)?.send(type, epoch, body) ?? false;
  }

  isUp(node: number): boolean {
    return this.#up.has(node);
  }

  peers(): { node: number; address: string; queuedBytes: number; sealed: boolean }[] {
    return Array.from(this.#up, ([node, connection]) => ({
      node,
      address: connection.source,
      queuedBytes: connection.socket.writableLength,
      sealed: connection.sealed,
    }));
  }

  /** Closes what is silent, asks what has been for half as long. Silence that this process has slept through is none. */
  #listenForSilence(): void {
    const { silenceMs } = this.options;
    const now = performance.now();
    const slept = now - this.#lookedAt - silenceMs / SILENCE_LOOKS;
    this.#lookedAt = now;
    for (const connection of this.#up.values()) {
      if (connection.heard) connection.heardAt = now;
      else if (slept > silenceMs / SILENCE_LOOKS) connection.heardAt += slept;
      connection.heard = false;
      const silent = now - connection.heardAt;
      if (silent >= silenceMs) {
        connection.close(`silent for ${Math.round(silent)} ms`, false);
        connection.socket.destroy(); // what waits to be sent never goes
      } else if (silent >= silenceMs / 2) {
        connection.send(WireType.PING, 0n, NO_BODY);
      }
    }
  }

  async close(): Promise<void> {
    clearInterval(this.#looking);
    for (const node of Array.from(this.#targets.keys())) {
      this.forget(node);
    }
    for (const connection of [...this.#up.values(), ...this.#pending]) {
      connection.close("shutting down", false);
    }
    const server = this.#server;
    if (server !== null) {
      await new Promise<void>((resolve) => server.close(() => resolve()));
    }
  }

  // ---- called by Connection

  /** It was for the kernels, and is theirs. */
  given(connection: Connection): void {
    this.#pending.delete(connection);
  }

  ready(connection: Connection): void {
    const node = connection.peer?.node;
    if (node === undefined || this.options.self > node) {
      return; // the other side is the arbiter
    }
    const old = this.#up.get(node);
    if (old === undefined) {
      this.#select(connection, node);
      return;
    }
    this.#standby.get(node)?.close("replaced by a newer connection", false);
    this.#standby.set(node, connection);
    old.probe ??= setTimeout(
      () => old.close("does not answer while a new connection is offered", false),
      PROBE_MS,
    );
    old.send(WireType.PING, 0n, NO_BODY);
  }

  /** PING came on a connection that was ready: the arbiter chose it. */
  selected(connection: Connection): void {
    const node = connection.peer?.node;
    if (node === undefined || this.options.self < node) {
      return;
    }
    this.#up.get(node)?.close("replaced: the peer chose another connection", false);
    this.#markUp(connection, node);
  }

  /** The selected connection lives: a standby is superfluous. */
  ponged(connection: Connection): void {
    const node = connection.peer?.node;
    if (node === undefined || this.#up.get(node) !== connection) {
      return;
    }
    if (connection.probe !== null) {
      clearTimeout(connection.probe);
      connection.probe = null;
    }
    const standby = this.#standby.get(node);
    this.#standby.delete(node);
    standby?.close("superfluous: another connection is in use", false);
  }

  closed(connection: Connection, before: State, reason: string, refused: boolean): void {
    const node = connection.peer?.node ?? connection.dialled;
    this.#pending.delete(connection);
    if (refused) {
      this.#logRefusal(connection.source, reason);
    }
    if (connection.isForKernels) {
      this.events.log("info", `no connection for fsops: ${reason}`, { source: connection.source });
      return;
    }
    if (node === null) {
      return;
    }
    const target = this.#targets.get(node);
    if (target?.dialling === connection) {
      target.dialling = null;
    }
    if (this.#standby.get(node) === connection) {
      this.#standby.delete(node);
    }
    if (before === "up" && this.#up.get(node) === connection) {
      this.#up.delete(node);
      this.events.lost(node, reason);
      const standby = this.#standby.get(node);
      if (standby !== undefined) {
        this.#standby.delete(node);
        this.#select(standby, node);
      }
    }
    if (target !== undefined && !this.#up.has(node)) {
      this.#retry(target);
    }
  }

  // ---- inside

  #select(connection: Connection, node: number): void {
    connection.send(WireType.PING, 0n, NO_BODY);
    this.#markUp(connection, node);
  }

  #markUp(connection: Connection, node: number): void {
    this.#pending.delete(connection);
    connection.state = "up";
    this.#up.set(node, connection);
    const target = this.#targets.get(node);
    if (target !== undefined) {
      target.retryMs = RETRY_MIN_MS;
    }
    // The arbiter has the last word: what it did not choose is dropped here, at both ends.
    for (const other of Array.from(this.#pending)) {
      if (other.peer?.node === node && this.options.self > node && !other.isForKernels) {
        other.close("another connection was chosen", false);
      }
    }
    this.events.up(node, connection.peer?.incarnation ?? 0);
    if (target !== undefined && !connection.sealed && connection.dialled !== null) {
      this.#dialForKernel(target);
    }
  }

  #dialForKernel(target: Target): void {
    if (this.options.fsops === null) {
      return;
    }
    const reader = new Reader();
    const socket = this.#dial(target, reader);
    const connection = new Connection(this, socket, target.node, target.address, true);
    reader.connection = connection;
    this.#pending.add(connection);
    socket.once("connect", () => connection.start());
  }

  #adopt(connection: Connection): void {
    if (this.#pending.size >= PENDING_MAX) {
      const oldest = this.#pending.values().next();
      if (!oldest.done) {
        oldest.value.close("too many handshakes at once", true);
      }
    }
    this.#pending.add(connection);
    connection.start();
  }

  #dialNow(target: Target): void {
    if (target.dialling !== null || target.timer !== null || this.#up.has(target.node)) {
      return;
    }
    const reader = new Reader();
    const socket = this.#dial(target, reader);
    const connection = new Connection(this, socket, target.node, target.address);
    reader.connection = connection;
    target.dialling = connection;
    this.#pending.add(connection);
    socket.once("connect", () => connection.start());
  }

  #dial(target: Target, reader: Reader): Socket {
    const { iface } = this.options;
    const localAddress = iface === null ? null : interfaceAddress(iface);
    return dial({
      host: target.address,
      port: target.port,
      ...reader.options,
      ...(localAddress === null ? {} : { localAddress }),
    });
  }

  #retry(target: Target): void {
    if (target.timer !== null || this.#targets.get(target.node) !== target) {
      return;
    }
    target.timer = setTimeout(() => {
      target.timer = null;
      this.#dialNow(target);
    }, target.retryMs);
    target.retryMs = Math.min(target.retryMs * 2, RETRY_MAX_MS);
  }

  #logRefusal(source: string, reason: string): void {
    this.refusedCount++;
    const now = performance.now();
    const entry = this.#refusals.get(source);
    if (entry !== undefined && now - entry.since < REFUSAL_LOG_MS) {
      entry.count++;
      return;
    }
    if (this.#refusals.size > 1024) {
      this.#refusals.clear();
    }
    this.#refusals.set(source, { since: now, count: 0 });
    this.events.log("warn", `connection refused: ${reason}`, {
      source,
      more: entry?.count ?? 0,
      refused: this.refusedCount,
    });
  }
}
