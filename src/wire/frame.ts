// SPDX-License-Identifier: GPL-2.0-only
/**
 * Frames of the peer protocol (include/mxfs/wire.h): a 40-byte header and a body of at most MXFS_WIRE_BODY_MAX.
 *
 * Protocol: FrameWriter numbers what one side sends on one connection from 1 without gaps; FrameParser takes
 * the bytes of the other direction in pieces of any size, checks every header before it keeps one body byte,
 * and hands out whole frames. A body that lies whole in a piece is a view of it, any other is collected in a
 * buffer of its own, so every byte is copied at most once. After an error the parser stays broken: the
 * connection must be closed.
 * Known weakness: bodies share memory with the piece they came in, which a reader may use again.
 */
import {
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_WIRE_BODY_MAX,
  MXFS_WIRE_HEADER_SIZE,
  MXFS_WIRE_MAGIC,
  MXFS_WIRE_VERSION,
  WireType,
  WireTypeName,
} from "./abi.js";
import { assertU32, viewOf, WireError } from "./error.js";

const AT = {
  magic: 0,
  version: 4,
  type: 6,
  length: 8,
  flags: 12,
  seq: 16,
  sender: 24,
  target: 28,
  epoch: 32,
};

const NO_BODY = new Uint8Array(0);

export interface FrameHeader {
  readonly type: WireType;
  /** Bytes of the body. */
  readonly length: number;
  readonly seq: bigint;
  readonly sender: number;
  readonly target: number;
  readonly epoch: bigint;
}

export interface Frame extends FrameHeader {
  /** A view of where it lies; made anew for each who asks. */
  readonly body: Uint8Array;
  /** Where it lies: bytes[bodyAt .. bodyAt + length), for who reads small bodies faster than a view is made. */
  readonly bytes: Uint8Array;
  readonly bodyAt: number;
}

/** Writes a header into the first 40 bytes. @throws RangeError when a field does not fit. */
export function encodeFrameHeader(header: FrameHeader, into: Uint8Array): void {
  if (header.length > MXFS_WIRE_BODY_MAX) {
    throw new RangeError(`frame body: at most ${MXFS_WIRE_BODY_MAX} bytes, found ${header.length}: split it`);
  }
  const view = viewOf(into);
  view.setUint32(AT.magic, MXFS_WIRE_MAGIC, true);
  view.setUint16(AT.version, MXFS_WIRE_VERSION, true);
  view.setUint16(AT.type, header.type, true);
  view.setUint32(AT.length, header.length, true);
  view.setUint32(AT.flags, 0, true);
  view.setBigUint64(AT.seq, header.seq, true);
  view.setUint32(AT.sender, assertU32(header.sender, "sender"), true);
  view.setUint32(AT.target, assertU32(header.target, "target"), true);
  view.setBigUint64(AT.epoch, header.epoch, true);
}

/** Reads and checks a header (magic, version, type, length, flags). @throws WireError */
export function decodeFrameHeader(bytes: Uint8Array): FrameHeader {
  if (bytes.length < MXFS_WIRE_HEADER_SIZE) {
    throw new WireError("WIRE_TRUNCATED", `frame header: expected 40 bytes, found ${bytes.length}`);
  }
  const { type, length, seq, sender, target, epoch } = decodeHeaderAt(viewOf(bytes), 0);
  return { type, length, seq, sender, target, epoch };
}

/** A frame as the parser hands it out: its 64-bit numbers become bigints only for who asks. */
class ParsedFrame implements Frame {
  bytes: Uint8Array = NO_BODY;
  bodyAt = 0;

  constructor(
    readonly type: WireType,
    readonly length: number,
    readonly sender: number,
    readonly target: number,
    readonly seqLow: number,
    readonly seqHigh: number,
    readonly epochLow: number,
    readonly epochHigh: number,
  ) {}

  get seq(): bigint {
    return (BigInt(this.seqHigh) << 32n) | BigInt(this.seqLow);
  }
  get epoch(): bigint {
    return (BigInt(this.epochHigh) << 32n) | BigInt(this.epochLow);
  }
  get body(): Uint8Array {
    // Cheaper than a Buffer's subarray.
    return new Uint8Array(this.bytes.buffer, this.bytes.byteOffset + this.bodyAt, this.length);
  }
}

function decodeHeaderAt(view: DataView, at: number): ParsedFrame {
  const magic = view.getUint32(at + AT.magic, true);
  if (magic !== MXFS_WIRE_MAGIC) {
    throw new WireError(
      "WIRE_MAGIC",
      `frame magic: expected ${MXFS_WIRE_MAGIC.toString(16)}, found ${magic.toString(16)}: not an MXFS peer`,
    );
  }
  const version = view.getUint16(at + AT.version, true);
  if (version !== MXFS_WIRE_VERSION) {
    throw new WireError(
      "WIRE_VERSION",
      `peer speaks wire version ${version}, this node ${MXFS_WIRE_VERSION}: install the same MXFS on both`,
    );
  }
  const type = view.getUint16(at + AT.type, true);
  if (WireTypeName[type] === undefined) throw new WireError("WIRE_TYPE", `frame type ${type} is not known`);
  const length = view.getUint32(at + AT.length, true);
  if (length > MXFS_WIRE_BODY_MAX) {
    throw new WireError(
      "WIRE_LENGTH",
      `frame body: at most ${MXFS_WIRE_BODY_MAX} bytes, announced ${length}`,
    );
  }
  const flags = view.getUint32(at + AT.flags, true);
  if (flags !== 0) throw new WireError("WIRE_FIELD", `frame flags: expected 0, found ${flags.toString(16)}`);
  return new ParsedFrame(
    type as WireType,
    length,
    view.getUint32(at + AT.sender, true),
    view.getUint32(at + AT.target, true),
    view.getUint32(at + AT.seq, true),
    view.getUint32(at + AT.seq + 4, true),
    view.getUint32(at + AT.epoch, true),
    view.getUint32(at + AT.epoch + 4, true),
  );
}

/** Numbers and builds the frames of one direction of one connection. */
export class FrameWriter {
  #seq = 0n;

  /** @param target the peer's node id; 0 as long as it is not known (HELLO of the side that dials). */
  constructor(
    readonly sender: number,
    public target: number,
  ) {}

  /** Number of the last frame built; 0 before the first. */
  get seq(): bigint {
    return this.#seq;
  }

  /** One frame, header and body in one buffer. It must be sent: its number is used up. */
  encode(type: WireType, epoch: bigint, body: Uint8Array): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(MXFS_WIRE_HEADER_SIZE + body.length);
    this.encodeInto(type, epoch, body, bytes);
    return bytes;
  }

  /** As `encode`, into the first bytes of `into`. @throws RangeError when it does not fit, or a field does not */
  encodeInto(type: WireType, epoch: bigint, body: Uint8Array, into: Uint8Array): void {
    encodeFrameHeader(
      { type, length: body.length, seq: this.#seq + 1n, sender: this.sender, target: this.target, epoch },
      into,
    );
    into.set(body, MXFS_WIRE_HEADER_SIZE);
    this.#seq += 1n;
  }
}

/** Who must be at both ends, once HELLO has said it. */
export interface FrameEndpoints {
  readonly sender: number;
  readonly target: number;
}

/**
 * Takes what most frames bring, lock messages, without a Frame being made of each: `count` entries and values of 64 bytes,
 * words[at .. at + 16 * count), which may be looked at until it returns. Everything that the parser checks has been.
 * @returns false: not taken; it comes as a frame.
 */
export type OnLocks = (type: WireType, words: Int32Array, at: number, count: number) => boolean;

/** The header's second word of the frames that go to OnLocks: version, and type above it. */
const versionWord = (type: WireType): number => MXFS_WIRE_VERSION | (type << 16);
const REQUEST_WORD = versionWord(WireType.LOCK_REQUEST);
const CONVERT_WORD = versionWord(WireType.LOCK_CONVERT);
const RELEASE_WORD = versionWord(WireType.LOCK_RELEASE);
const ENTRY_SHIFT = Math.log2(MXFS_LOCK_ENTRY_SIZE);

/** Takes one direction of one connection apart. */
export class FrameParser {
  readonly #headerBytes = new Uint8Array(MXFS_WIRE_HEADER_SIZE);
  #headerFill = 0;
  #header: ParsedFrame | null = null;
  #body: Uint8Array | null = null;
  #bodyFill = 0;
  /** A number: no connection sees 2^53 frames. */
  #lastSeq = 0;
  #endpoints: FrameEndpoints | null = null;
  #stopping = false;
  /** Longest body that is taken, bytes. */
  bodyMax: number = MXFS_WIRE_BODY_MAX;
  #broken: WireError | null = null;

  /** Number of the last frame accepted. */
  get seq(): bigint {
    return BigInt(this.#lastSeq);
  }

  /** From the next frame on sender and target are checked. Callable from within `onFrame`. */
  expect(endpoints: FrameEndpoints): void {
    this.#endpoints = endpoints;
  }

  /** From within `onFrame`: `push` returns behind this frame, since what follows is not for this parser as it is. */
  stop(): void {
    this.#stopping = true;
  }

  /** Whether bytes of an unfinished frame are held (an end of the stream now is a truncation). */
  get partial(): boolean {
    return this.#headerFill > 0 || this.#header !== null;
  }

  /**
   * Takes the next bytes of the stream; calls `onFrame` for each frame they complete, in order.
   * A body that lies whole in `chunk` is as long-lived as what is in it. What `onFrame` throws passes through and breaks the parser, for
   * the rest of the piece is lost with it.
   * @param onLocks is asked first for lock messages that lie whole, and on a word's boundary, in the piece.
   * @returns how many bytes were taken: all, unless `stop` was called.
   * @throws WireError, and the same one again on every later call.
   */
  push(chunk: Uint8Array, onFrame: (frame: Frame) => void, onLocks?: OnLocks): number {
    if (this.#broken !== null) throw this.#broken;
    let at = 0;
    const view = viewOf(chunk);
    const words =
      onLocks === undefined ? null : new Int32Array(chunk.buffer, 0, chunk.buffer.byteLength >>> 2);
    const begin = chunk.byteOffset;
    while (at < chunk.length || (this.#header !== null && this.#header.length === 0)) {
      if (words !== null && onLocks !== undefined && this.#header === null && this.#headerFill === 0) {
        const taken = this.#takeLocks(words, begin + at, chunk.length - at, onLocks);
        at += taken;
        if (taken > 0) continue;
      }
      if (this.#header === null && this.#headerFill === 0 && chunk.length - at >= MXFS_WIRE_HEADER_SIZE) {
        const header = this.#accept(view, at);
        at += MXFS_WIRE_HEADER_SIZE;
        if (chunk.length - at >= header.length) {
          header.bytes = chunk;
          header.bodyAt = at;
          at += header.length;
          if (this.#deliver(header, onFrame)) return at;
          continue;
        }
        this.#header = header;
      } else if (this.#header === null) {
        const taken = Math.min(MXFS_WIRE_HEADER_SIZE - this.#headerFill, chunk.length - at);
        this.#headerBytes.set(chunk.subarray(at, at + taken), this.#headerFill);
        this.#headerFill += taken;
        at += taken;
        if (this.#headerFill < MXFS_WIRE_HEADER_SIZE) return at;
        this.#headerFill = 0;
        this.#header = this.#accept(viewOf(this.#headerBytes), 0);
      }
      const header: ParsedFrame = this.#header;
      if (this.#body === null && chunk.length - at >= header.length) {
        header.bytes = chunk;
        header.bodyAt = at;
        at += header.length;
      } else {
        this.#body ??= new Uint8Array(header.length);
        const taken = Math.min(header.length - this.#bodyFill, chunk.length - at);
        this.#body.set(chunk.subarray(at, at + taken), this.#bodyFill);
        this.#bodyFill += taken;
        at += taken;
        if (this.#bodyFill < header.length) return at;
        header.bytes = this.#body;
      }
      this.#header = null;
      this.#body = null;
      this.#bodyFill = 0;
      if (this.#deliver(header, onFrame)) return at;
    }
    return at;
  }

  /**
   * One frame at a byte of the piece's buffer, if it is one for `onLocks`, with nothing wrong about it.
   * @param left bytes of the piece from there on. @returns how many were taken, 0: none.
   */
  #takeLocks(words: Int32Array, begin: number, left: number, onLocks: OnLocks): number {
    const ends = this.#endpoints;
    if (left < MXFS_WIRE_HEADER_SIZE || (begin & 3) !== 0 || ends === null) return 0;
    const at = begin >>> 2;
    const version = words[at + AT.version / 4] as number;
    const length = (words[at + AT.length / 4] as number) >>> 0;
    const seq = this.#lastSeq + 1;
    if (
      words[at] !== MXFS_WIRE_MAGIC ||
      (version !== REQUEST_WORD && version !== RELEASE_WORD && version !== CONVERT_WORD) ||
      length === 0 ||
      (length & (MXFS_LOCK_ENTRY_SIZE - 1)) !== 0 ||
      length > this.bodyMax ||
      length > left - MXFS_WIRE_HEADER_SIZE ||
      words[at + AT.flags / 4] !== 0 ||
      words[at + AT.seq / 4] !== (seq | 0) ||
      words[at + AT.seq / 4 + 1] !== Math.floor(seq / 2 ** 32) ||
      words[at + AT.sender / 4] !== (ends.sender | 0) ||
      words[at + AT.target / 4] !== (ends.target | 0)
    ) {
      return 0;
    }
    let taken = false;
    try {
      const type = (version >>> 16) as WireType;
      taken = onLocks(type, words, at + MXFS_WIRE_HEADER_SIZE / 4, length >>> ENTRY_SHIFT);
    } catch (error) {
      this.#failed(error, seq);
      throw error;
    }
    if (!taken) return 0;
    this.#lastSeq = seq;
    return MXFS_WIRE_HEADER_SIZE + length;
  }

  #failed(error: unknown, seq: number | bigint): void {
    this.#broken =
      error instanceof WireError
        ? error
        : new WireError("WIRE_SEQ", `frame ${seq} was not taken (${error}): the connection is over`);
  }

  /** @returns whether `stop` was called. */
  #deliver(frame: ParsedFrame, onFrame: (frame: Frame) => void): boolean {
    try {
      onFrame(frame);
    } catch (error) {
      this.#failed(error, frame.seq);
      throw error;
    }
    const stopped = this.#stopping;
    this.#stopping = false;
    return stopped;
  }

  #accept(view: DataView, at: number): ParsedFrame {
    try {
      const header = decodeHeaderAt(view, at);
      if (header.length > this.bodyMax) {
        throw new WireError(
          "WIRE_LENGTH",
          `frame body: at most ${this.bodyMax} bytes here, announced ${header.length}`,
        );
      }
      const seq = header.seqHigh * 2 ** 32 + header.seqLow;
      if (seq !== this.#lastSeq + 1) {
        throw new WireError("WIRE_SEQ", `frame seq: expected ${this.#lastSeq + 1}, found ${header.seq}`);
      }
      const ends = this.#endpoints;
      if (ends !== null && (header.sender !== ends.sender || header.target !== ends.target)) {
        throw new WireError(
          "WIRE_ENDPOINT",
          `frame from ${header.sender.toString(16)} to ${header.target.toString(16)}: expected from ` +
            `${ends.sender.toString(16)} to ${ends.target.toString(16)}`,
        );
      }
      this.#lastSeq = seq;
      return header;
    } catch (error) {
      if (error instanceof WireError) this.#broken = error;
      throw error;
    }
  }
}
