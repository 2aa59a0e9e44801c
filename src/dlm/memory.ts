// SPDX-License-Identifier: GPL-2.0-only
/**
 * Shared memory that grows: a shared WebAssembly.Memory, no code behind it. Post the object itself to other threads.
 *
 * Protocol: `grow` by one thread at a time (the table's allocator lock); any view taken before stays valid for the
 * length it was taken with.
 * Known weakness: `maximum` is reserved as address space (not as memory) when it is made; Node has no types for it.
 */

/** What is used of WebAssembly.Memory (https://webassembly.github.io/spec/js-api/#memories). */
export interface SharedMemory {
  /** A new object after a growth; its length never changes. */
  readonly buffer: SharedArrayBuffer;
  /** Adds pages of 64 KiB. @returns how many there were. @throws RangeError when refused */
  grow(pages: number): number;
}

interface WithMemory {
  readonly WebAssembly: {
    readonly Memory: new (limits: { initial: number; maximum: number; shared: true }) => SharedMemory;
  };
}

/** @param initial pages of 64 KiB. @throws RangeError when the system has not that much. */
export function createSharedMemory(initial: number, maximum: number): SharedMemory {
  const { Memory } = (globalThis as unknown as WithMemory).WebAssembly;
  return new Memory({ initial, maximum, shared: true });
}
