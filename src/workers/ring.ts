// SPDX-License-Identifier: GPL-2.0-only
/**
 * A bounded ring of byte messages in shared memory, from any number of threads to one: six times as fast as
 * postMessage in batches, and the receiver may sleep in Atomics.wait or live in its event loop.
 *
 *   words  0..15   control (R)               data: capacity bytes, a power of two
 *   data   [length u32][tag u32][a u32][b u32] bytes, padded to 16 ...   length FFFFFFFFh: go on at the start
 *          ▲ head: the receiver's             ▲ tail: the senders', under the senders' lock
 *
 * Protocol: positions count bytes, modulo 2^32. A sender copies its message behind the tail under the lock, then
 * publishes the tail; so the receiver, who looks at the tail first, only sees whole messages, and messages of one
 * sender in their order. The receiver marks itself SLEEPING before it looks for the last time, senders clear the
 * mark and wake it.
 * Full: `send` waits for room, at most as long as it was told, then throws RING_FULL: over its limit a queue is
 * an error that ends the daemon, never a loss. `trySend` returns false instead.
 * Known weakness: a sender's event loop stands still while it waits for room; two threads that fill each other's
 * rings wait until the time-out. A pending `onReadable` does not keep a thread alive by itself.
 */

export type RingErrorCode =
  /** No room within the time given. */
  | "RING_FULL"
  /** The message can never fit. */
  | "RING_TOO_LARGE"
  | "RING_CLOSED"
  /** A sender died in the midst of a message. */
  | "RING_STALLED"
  /** The shared memory is no ring. */
  | "RING_FOREIGN";

export class RingError extends Error {
  override readonly name = "RingError";
  constructor(
    readonly code: RingErrorCode,
    message: string,
  ) {
    super(message);
  }
}

/** Control words. */
const R = {
  MAGIC: 0,
  CAPACITY: 1,
  /** Where the receiver is; senders that want room wait on it. */
  HEAD: 2,
  /** Behind the last whole message. */
  TAIL: 3,
  /** Senders' lock: 0 free, 1 taken, 2 taken and somebody waits. */
  LOCK: 4,
  CLOSED: 5,
  /** 1: the receiver sleeps, or is about to. */
  SLEEPING: 6,
  /** Rises when a sleeping receiver is woken, and at the end; the receiver waits on it. */
  EVENT: 10,
  /** Senders that wait for room. */
  WANT_ROOM: 7,
  /** Messages sent, modulo 2^32. */
  SENT: 8,
  /** Sends that found the ring full, modulo 2^32. */
  FULL: 9,
} as const;

const MAGIC = 0x4d585247;
const CONTROL_WORDS = 16;
const HEADER_SIZE = 16;
const SKIP = -1;
const LOCK_WAIT_MS = 10_000;
const SPIN_COUNT = 200;
const CAPACITY_MAX = 1 << 28;

/** `bytes` is a view of the ring: use or copy it before returning. */
export type OnRingMessage = (tag: number, a: number, b: number, bytes: Uint8Array) => void;

export class Ring {
  readonly #words: Int32Array<SharedArrayBuffer>;
  readonly #bytes: Uint8Array<SharedArrayBuffer>;
  readonly #mask: number;

  private constructor(readonly buffer: SharedArrayBuffer) {
    this.#words = new Int32Array(buffer);
    if (this.#words[R.MAGIC] !== MAGIC)
      throw new RingError("RING_FOREIGN", "this shared memory holds no ring");
    this.#bytes = new Uint8Array(buffer, CONTROL_WORDS * 4);
    this.#mask = (this.#words[R.CAPACITY] as number) - 1;
  }

  /** @param capacity bytes for messages: a power of two from 64 to 2^28. @throws RangeError */
  static create(capacity: number): Ring {
    if (!Number.isInteger(Math.log2(capacity)) || capacity < 64 || capacity > CAPACITY_MAX) {
      throw new RangeError(`ring of ${capacity} bytes: expected a power of two from 64 to ${CAPACITY_MAX}`);
    }
    const buffer = new SharedArrayBuffer(CONTROL_WORDS * 4 + capacity);
    const words = new Int32Array(buffer);
    words[R.MAGIC] = MAGIC;
    words[R.CAPACITY] = capacity;
    return new Ring(buffer);
  }

  /** The same ring in another thread, from its `buffer`. @throws RingError RING_FOREIGN */
  static attach(buffer: SharedArrayBuffer): Ring {
    return new Ring(buffer);
  }

  /** Most bytes of one message: half of the ring without the header, so that it fits wherever the tail is. */
  get messageMax(): number {
    return (this.#mask + 1) / 2 - HEADER_SIZE;
  }
  get closed(): boolean {
    return Atomics.load(this.#words, R.CLOSED) !== 0;
  }
  /** Bytes in the ring, headers and padding included. */
  get used(): number {
    return (Atomics.load(this.#words, R.TAIL) - Atomics.load(this.#words, R.HEAD)) >>> 0;
  }
  get sent(): number {
    return Atomics.load(this.#words, R.SENT) >>> 0;
  }
  /** How often a send found no room. */
  get fullCount(): number {
    return Atomics.load(this.#words, R.FULL) >>> 0;
  }

  // ---- senders ----------------------------------------------------------------------------------------------

  /** Sends, or returns false when there is no room. @throws RingError RING_CLOSED, RING_TOO_LARGE, RING_STALLED */
  trySend(tag: number, a: number, b: number, bytes: Uint8Array): boolean {
    if (bytes.length > this.messageMax) {
      throw new RingError("RING_TOO_LARGE", `message of ${bytes.length} bytes: at most ${this.messageMax}`);
    }
    this.#lock();
    let fits: boolean;
    try {
      fits = this.#put(tag, a, b, bytes);
    } finally {
      this.#unlock();
    }
    if (fits) this.#ring();
    return fits;
  }

  /** Sends; waits for room up to `timeoutMs`. @throws RingError RING_FULL too */
  send(tag: number, a: number, b: number, bytes: Uint8Array, timeoutMs: number): void {
    const words = this.#words;
    let head = Atomics.load(words, R.HEAD);
    if (this.trySend(tag, a, b, bytes)) return;
    Atomics.add(words, R.FULL, 1);
    Atomics.add(words, R.WANT_ROOM, 1);
    try {
      for (let waitedMs = 0; ; ) {
        // The head was read before the try: if it has moved since, the wait returns at once.
        if (
          Atomics.wait(words, R.HEAD, head, Math.min(timeoutMs - waitedMs, WAIT_SLICE_MS)) === "timed-out"
        ) {
          waitedMs += Math.min(timeoutMs - waitedMs, WAIT_SLICE_MS);
        }
        head = Atomics.load(words, R.HEAD);
        if (this.trySend(tag, a, b, bytes)) return;
        if (waitedMs >= timeoutMs) break;
      }
    } finally {
      Atomics.sub(words, R.WANT_ROOM, 1);
    }
    throw new RingError(
      "RING_FULL",
      `no room for ${bytes.length} bytes within ${timeoutMs} ms: the receiver is stuck`,
    );
  }

  /** No more messages: senders get RING_CLOSED, the receiver reads what is there and is told. */
  close(): void {
    // Under the lock: no message comes behind the end.
    this.#lock();
    Atomics.store(this.#words, R.CLOSED, 1);
    this.#unlock();
    Atomics.notify(this.#words, R.HEAD);
    this.#wake();
  }

  #put(tag: number, a: number, b: number, bytes: Uint8Array): boolean {
    const words = this.#words;
    if (words[R.CLOSED] !== 0)
      throw new RingError("RING_CLOSED", "the ring is closed: its receiver has ended");
    const capacity = this.#mask + 1;
    const size = (HEADER_SIZE + bytes.length + 15) & ~15;
    const tail = words[R.TAIL] as number;
    const free = capacity - ((tail - Atomics.load(words, R.HEAD)) >>> 0);
    const at = tail & this.#mask;
    const skipped = at + size > capacity ? capacity - at : 0;
    if (skipped + size > free) return false;
    if (skipped > 0) words[CONTROL_WORDS + at / 4] = SKIP;
    const to = skipped > 0 ? 0 : at;
    const word = CONTROL_WORDS + to / 4;
    words[word] = bytes.length;
    words[word + 1] = tag;
    words[word + 2] = a;
    words[word + 3] = b;
    this.#bytes.set(bytes, to + HEADER_SIZE);
    Atomics.add(words, R.SENT, 1);
    Atomics.store(words, R.TAIL, (tail + skipped + size) | 0);
    return true;
  }

  /** Wakes the receiver if it sleeps. */
  #ring(): void {
    if (Atomics.load(this.#words, R.SLEEPING) === 1 && Atomics.exchange(this.#words, R.SLEEPING, 0) === 1) {
      this.#wake();
    }
  }

  #wake(): void {
    Atomics.add(this.#words, R.EVENT, 1);
    Atomics.notify(this.#words, R.EVENT);
  }

  #lock(): void {
    const words = this.#words;
    for (let spin = 0; spin < SPIN_COUNT; spin++) {
      if (Atomics.compareExchange(words, R.LOCK, 0, 1) === 0) return;
    }
    let waitedMs = 0;
    while (Atomics.exchange(words, R.LOCK, 2) !== 0) {
      if (Atomics.wait(words, R.LOCK, 2, WAIT_SLICE_MS) === "timed-out") waitedMs += WAIT_SLICE_MS;
      if (waitedMs >= LOCK_WAIT_MS) {
        throw new RingError(
          "RING_STALLED",
          `a sender has held the ring for ${LOCK_WAIT_MS} ms: dead or stuck`,
        );
      }
    }
  }

  #unlock(): void {
    if (Atomics.exchange(this.#words, R.LOCK, 0) === 2) Atomics.notify(this.#words, R.LOCK, 1);
  }

  // ---- the receiver -----------------------------------------------------------------------------------------

  /**
   * Takes up to `countMax` messages, in order. @returns how many; 0 when there was none. What `onMessage` throws
   * passes through; that message counts as taken.
   */
  receive(countMax: number, onMessage: OnRingMessage): number {
    const words = this.#words;
    const tail = Atomics.load(words, R.TAIL);
    let head = words[R.HEAD] as number;
    let count = 0;
    try {
      while (head !== tail && count < countMax) {
        const at = head & this.#mask;
        const word = CONTROL_WORDS + at / 4;
        const length = words[word] as number;
        if (length === SKIP) {
          head = (head + (this.#mask + 1 - at)) | 0;
          continue;
        }
        head = (head + ((HEADER_SIZE + length + 15) & ~15)) | 0;
        count++;
        onMessage(
          (words[word + 1] as number) >>> 0,
          (words[word + 2] as number) >>> 0,
          (words[word + 3] as number) >>> 0,
          this.#bytes.subarray(at + HEADER_SIZE, at + HEADER_SIZE + length),
        );
      }
    } finally {
      Atomics.store(words, R.HEAD, head);
      if (Atomics.load(words, R.WANT_ROOM) > 0) Atomics.notify(words, R.HEAD);
    }
    return count;
  }

  /** Sleeps until there is a message. @returns false when the time ran out, or the ring is closed and empty. */
  wait(timeoutMs: number): boolean {
    const words = this.#words;
    // First the event, then the mark, then the look: whoever sends behind the look changes the event.
    const event = Atomics.load(words, R.EVENT);
    Atomics.store(words, R.SLEEPING, 1);
    if (!this.closed && this.used === 0) Atomics.wait(words, R.EVENT, event, timeoutMs);
    Atomics.store(words, R.SLEEPING, 0);
    return this.used > 0;
  }

  /**
   * The same for a receiver with an event loop. Resolves true when there is a message, false when the ring is
   * closed and empty. Keep the thread alive otherwise (a socket, a parent port): this does not.
   */
  async readable(): Promise<boolean> {
    const words = this.#words;
    for (;;) {
      const event = Atomics.load(words, R.EVENT);
      Atomics.store(words, R.SLEEPING, 1);
      const closed = this.closed;
      if (this.used > 0) break;
      if (closed) return false;
      const waiting = Atomics.waitAsync(words, R.EVENT, event);
      if (waiting.async) await waiting.value;
    }
    Atomics.store(words, R.SLEEPING, 0);
    return true;
  }

  /**
   * Delivers every message to `onMessage` from the event loop, `batchMax` at most before other events get their
   * turn. Resolves when the ring is closed and empty; rejects with what `onMessage` throws.
   */
  async consume(batchMax: number, onMessage: OnRingMessage): Promise<void> {
    while (await this.readable()) {
      while (this.receive(batchMax, onMessage) === batchMax) {
        // A full batch: there may be more, but sockets and timers come first.
        await new Promise<void>((resolve) => {
          setImmediate(resolve);
        });
      }
    }
  }
}

const WAIT_SLICE_MS = 100;
