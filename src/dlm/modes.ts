// SPDX-License-Identifier: GPL-2.0-only
/**
 * What the six lock modes mean to each other: const tables, and nothing that is worked out elsewhere.
 *
 *   held \ wanted   NL  CR  CW  PR  PW  EX
 *   NL               +   +   +   +   +   +
 *   CR               +   +   +   +   +   .
 *   CW               +   +   +   .   .   .
 *   PR               +   +   .   +   .   .
 *   PW               +   +   .   .   .   .
 *   EX               +   .   .   .   .   .
 *
 * Fact from: VMS distributed lock manager; Linux fs/dlm/lock.c __dlm_compat_matrix.
 * Known weakness: the numbers order the modes by strength except for CW and PR, of which neither is stronger.
 */
import { LockMode, MXFS_MODE_COUNT } from "../wire/abi.js";

const { NL, CR, CW, PR, PW, EX } = LockMode;
const bits = (...modes: readonly number[]): number => modes.reduce((mask, mode) => mask | (1 << mode), 0);

/** COMPATIBLE[mode]: bit mask of the modes that others may hold beside it. Symmetric. */
export const COMPATIBLE: readonly number[] = [
  bits(NL, CR, CW, PR, PW, EX),
  bits(NL, CR, CW, PR, PW),
  bits(NL, CR, CW),
  bits(NL, CR, PR),
  bits(NL, CR),
  bits(NL),
];

/** Every mode: what a lock may be held as that nobody has asked to give way. */
export const ALL_MODES = (1 << MXFS_MODE_COUNT) - 1;

/**
 * STATEMENT[held * 6 + wanted] is 1 where a conversion only gives up rights: no mode that was compatible becomes
 * incompatible. It is always possible, a statement that is not answered. The same mode counts as one.
 */
// biome-ignore format: one line per held mode
export const STATEMENT: Uint8Array = Uint8Array.from([
  // NL CR CW PR PW EX: wanted
  1, 0, 0, 0, 0, 0, // NL
  1, 1, 0, 0, 0, 0, // CR
  1, 1, 1, 0, 0, 0, // CW
  1, 1, 0, 1, 0, 0, // PR
  1, 1, 1, 1, 1, 0, // PW
  1, 1, 1, 1, 1, 1, // EX
]);

export function modesCompatible(a: number, b: number): boolean {
  return ((COMPATIBLE[a] as number) & (1 << b)) !== 0;
}

/** Whether converting `held` to `wanted` is a statement (see STATEMENT); any other conversion is answered. */
export function isDownConversion(held: number, wanted: number): boolean {
  return STATEMENT[held * MXFS_MODE_COUNT + wanted] === 1;
}

/**
 * Whether `held` gives every right that `wanted` gives, so that no conversion is needed: nothing that is
 * compatible with `held` is incompatible with `wanted`.
 */
export function modeCovers(held: number, wanted: number): boolean {
  return isDownConversion(held, wanted);
}

/** The strongest mode that may stay beside `wanted`, coming from `held`: what a holder converts down to. */
export function modeAfterBast(held: number, wanted: number): LockMode {
  for (let mode = held; mode > NL; mode--) {
    if (modesCompatible(mode, wanted) && isDownConversion(held, mode)) return mode as LockMode;
  }
  return NL;
}
