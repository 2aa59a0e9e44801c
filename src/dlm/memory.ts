// SPDX-License-Identifier: GPL-2.0-only
/**
 * Shared memory that grows: a shared WebAssembly.Memory. Post the object itself to other threads. And programs that
 * run on it (wasm_asm.ts).
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
    readonly Module: new (bytes: Uint8Array<ArrayBuffer>) => object;
    readonly Instance: new (module: object, imports: object) => { readonly exports: unknown };
  };
}

/** @param initial pages of 64 KiB. @throws RangeError when the system has not that much. */
export function createSharedMemory(initial: number, maximum: number): SharedMemory {
  const { Memory } = (globalThis as unknown as WithMemory).WebAssembly;
  return new Memory({ initial, maximum, shared: true });
}

/**
 * Makes a module that imports "env" "memory" run on this memory, in this thread. @returns its exports.
 * @throws CompileError, LinkError: the program is wrong.
 */
export function runOn(memory: SharedMemory, bytes: Uint8Array<ArrayBuffer>): unknown {
  const { Module, Instance } = (globalThis as unknown as WithMemory).WebAssembly;
  return new Instance(new Module(bytes), { env: { memory } }).exports;
}
