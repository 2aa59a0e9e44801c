// SPDX-License-Identifier: GPL-2.0-only
//
// Names of resources and modes, as people type and read them.
//
//   NAME               any word: type USER, ino = FNV-1a-64 of its UTF-8 bytes
//   user:NUMBER        type USER with that number
//   inode:INO:GENERATION  open:INO:GENERATION  (without GENERATION: 0)
//   flock:INO  extent:INO:OFFSET[:GENERATION]  ag:NUMBER  super:NUMBER  journal:SLOT
//
// Numbers are decimal or 0x hexadecimal, below 2^64 (AG: 2^32).
// Known weakness: two names with one FNV-1a-64 are one lock (odds 2^-64 a pair).

import {
  MXFS_RES_AG,
  MXFS_RES_EXTENT,
  MXFS_RES_FLOCK,
  MXFS_RES_INODE,
  MXFS_RES_JOURNAL,
  MXFS_RES_OPEN,
  MXFS_RES_SUPER,
  MXFS_RES_USER,
} from "../wire/abi.js";
import { fnv1a64 } from "../wire/fnv.js";

/** A resource without its volume: u64s as bigint. */
export interface ResourceName {
  readonly type: number;
  readonly ino: bigint;
  readonly offset: bigint;
  readonly ag: number;
}

export class NameError extends Error {
  override readonly name = "NameError";
}

export const MODE_NAMES: readonly string[] = ["NL", "CR", "CW", "PR", "PW", "EX"];

/** A mode by name (any case) or number 0 to 5. @throws NameError */
export function parseMode(input: string): number {
  const byName = MODE_NAMES.indexOf(input.toUpperCase());
  if (byName >= 0) {
    return byName;
  }
  if (/^[0-5]$/.test(input)) {
    return Number(input);
  }
  throw new NameError(`mode "${input}": expected ${MODE_NAMES.join(", ")} or a number from 0 to 5`);
}

function parseU64(input: string, limit: bigint): bigint {
  if (!/^(0x[0-9a-fA-F]{1,16}|[0-9]{1,20})$/.test(input) || BigInt(input) >= limit) {
    throw new NameError(`"${input}": expected a number below ${limit}`);
  }
  return BigInt(input);
}

const U64 = 1n << 64n;
const U32 = 1n << 32n;
const BY_INO: Readonly<Record<string, number>> = {
  user: MXFS_RES_USER,
  inode: MXFS_RES_INODE,
  open: MXFS_RES_OPEN,
  flock: MXFS_RES_FLOCK,
};
/** Inode numbers come again: the kernel's locks on an inode name its generation. */
const WITH_GENERATION: readonly string[] = ["inode", "open"];
const BY_OFFSET: Readonly<Record<string, number>> = { super: MXFS_RES_SUPER, journal: MXFS_RES_JOURNAL };

/** @throws NameError saying what is allowed. */
export function parseResource(input: string): ResourceName {
  if (input === "" || Buffer.byteLength(input) > 255) {
    throw new NameError("a resource's name has 1 to 255 bytes");
  }
  const [kind = "", first = "", second, ...rest] = input.split(":");
  if (!input.includes(":")) {
    return { type: MXFS_RES_USER, ino: fnv1a64(new TextEncoder().encode(input)), offset: 0n, ag: 0 };
  }
  if (rest.length <= 1 && kind === "extent" && second !== undefined) {
    const ag = rest[0] === undefined ? 0 : Number(parseU64(rest[0], U32));
    return { type: MXFS_RES_EXTENT, ino: parseU64(first, U64), offset: parseU64(second, U64), ag };
  }
  const generation = rest.length === 0 && WITH_GENERATION.includes(kind) ? second : undefined;
  if (Object.hasOwn(BY_INO, kind) && second === generation) {
    const ag = generation === undefined ? 0 : Number(parseU64(generation, U32));
    return { type: BY_INO[kind] ?? 0, ino: parseU64(first, U64), offset: 0n, ag };
  }
  if (second === undefined && Object.hasOwn(BY_OFFSET, kind)) {
    return { type: BY_OFFSET[kind] ?? 0, ino: 0n, offset: parseU64(first, U64), ag: 0 };
  }
  if (second === undefined && kind === "ag") {
    return { type: MXFS_RES_AG, ino: 0n, offset: 0n, ag: Number(parseU64(first, U32)) };
  }
  throw new NameError(
    `resource "${input}": expected a name without colons, or user:N, inode:INO:GENERATION, open:INO:GENERATION, flock:INO, extent:INO:OFFSET:GENERATION, ag:N, super:N, journal:N`,
  );
}

/** The form that parseResource reads back. */
export function formatResource(resource: ResourceName): string {
  switch (resource.type) {
    case MXFS_RES_EXTENT:
      return `extent:${resource.ino}:${resource.offset}${resource.ag !== 0 ? `:${resource.ag}` : ""}`;
    case MXFS_RES_AG:
      return `ag:${resource.ag}`;
    case MXFS_RES_SUPER:
      return `super:${resource.offset}`;
    case MXFS_RES_JOURNAL:
      return `journal:${resource.offset}`;
    default: {
      const kind =
        Object.entries(BY_INO).find(([, type]) => type === resource.type)?.[0] ?? `type${resource.type}`;
      const generation = WITH_GENERATION.includes(kind) && resource.ag !== 0 ? `:${resource.ag}` : "";
      return `${kind}:${resource.ino}${generation}`;
    }
  }
}
