// SPDX-License-Identifier: GPL-2.0-only
//
// The harness's arithmetic: medians, ranges, ratios, and how a figure is written. No I/O.
//
// Weakness: a handful of samples has no distribution: the range is all that is said about how far they lie apart.

/** The middle value, or the mean of the two in the middle. @throws Error for no values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle];
  const lower = sorted[sorted.length % 2 === 0 ? middle - 1 : middle];
  if (upper === undefined || lower === undefined) {
    throw new Error("median of nothing");
  }
  return (lower + upper) / 2;
}

export interface Summary {
  readonly median: number;
  readonly min: number;
  readonly max: number;
  readonly count: number;
}

/** @returns null for no values. */
export function summarize(values: readonly number[]): Summary | null {
  if (values.length === 0) {
    return null;
  }
  return {
    median: median(values),
    min: Math.min(...values),
    max: Math.max(...values),
    count: values.length,
  };
}

/** value / base; null where either is missing or base is not above 0. */
export function ratio(value: number | null, base: number | null): number | null {
  return value === null || base === null || !(base > 0) ? null : value / base;
}

/** Three significant digits, at least; no exponent; "-" for null. */
export function figure(value: number | null): string {
  if (value === null) {
    return "-";
  }
  if (value === 0) {
    return "0";
  }
  if (Math.abs(value) >= 99.95) {
    return Math.round(value).toString();
  }
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(digits, 4));
}

/** Two digits behind the point below 10; "-" for null. */
export function ratioText(value: number | null): string {
  if (value === null) {
    return "-";
  }
  return value >= 99.95 ? value.toFixed(0) : value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}
