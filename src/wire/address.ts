// SPDX-License-Identifier: GPL-2.0-only
/**
 * IP addresses as text and as the 16-byte field of discovery packets and heartbeat records: family 4 (in the
 * first four bytes, the rest zero) or 6, network byte order; family 0 means none.
 * Fact from: RFC 4291 2.2 (text forms), RFC 5952 4 (how IPv6 is written).
 * Known weakness: no zone ids ("%eth0"), so link-local IPv6 addresses cannot be advertised.
 */

export const ADDRESS_SIZE = 16;

export interface WireAddress {
  readonly family: 4 | 6;
  /** 16 bytes. */
  readonly bytes: Uint8Array;
}

/** @returns null when the text is no IPv4 or IPv6 address. */
export function parseAddress(text: string): WireAddress | null {
  if (text.length > 45) return null;
  const bytes = new Uint8Array(ADDRESS_SIZE);
  if (!text.includes(":")) {
    return parseIpv4(text, bytes, 0) ? { family: 4, bytes } : null;
  }
  const halves = text.split("::");
  if (halves.length > 2) return null;
  const head = parseGroups(halves[0] as string, halves.length === 1);
  const tail = halves.length === 2 ? parseGroups(halves[1] as string, true) : [];
  if (head === null || tail === null) return null;
  const count = head.length + tail.length;
  if (halves.length === 1 ? count !== 8 : count > 7) return null;
  const groups = [...head, ...new Array<number>(8 - count).fill(0), ...tail];
  groups.forEach((group, index) => {
    bytes[2 * index] = group >>> 8;
    bytes[2 * index + 1] = group & 0xff;
  });
  return { family: 6, bytes };
}

function parseIpv4(text: string, into: Uint8Array, at: number): boolean {
  const parts = text.split(".");
  if (parts.length !== 4) return false;
  for (let i = 0; i < 4; i++) {
    const part = parts[i] as string;
    if (!/^(0|[1-9][0-9]{0,2})$/.test(part) || Number(part) > 255) return false;
    into[at + i] = Number(part);
  }
  return true;
}

/** The 16-bit groups of one side of "::". @param last whether an IPv4 tail is allowed. */
function parseGroups(text: string, last: boolean): number[] | null {
  if (text === "") return [];
  const parts = text.split(":");
  const groups: number[] = [];
  for (let i = 0; i < parts.length; i++) {
    const part = parts[i] as string;
    if (last && i === parts.length - 1 && part.includes(".")) {
      const four = new Uint8Array(4);
      if (!parseIpv4(part, four, 0)) return null;
      groups.push(((four[0] as number) << 8) | (four[1] as number));
      groups.push(((four[2] as number) << 8) | (four[3] as number));
    } else if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      groups.push(Number.parseInt(part, 16));
    } else {
      return null;
    }
  }
  return groups;
}

/** @returns the text form, or null for family 0 or one that is not known. */
export function formatAddress(family: number, bytes: Uint8Array): string | null {
  if (bytes.length < ADDRESS_SIZE) throw new RangeError(`address: expected 16 bytes, found ${bytes.length}`);
  if (family === 4) return bytes.subarray(0, 4).join(".");
  if (family !== 6) return null;
  const groups = Array.from({ length: 8 }, (_, i) =>
    (((bytes[2 * i] as number) << 8) | (bytes[2 * i + 1] as number)).toString(16),
  );
  // The longest run of two or more zero groups becomes "::", the first of several.
  let start = -1;
  let longest = 1;
  for (let i = 0; i < 8; i++) {
    let end = i;
    while (end < 8 && groups[end] === "0") end++;
    if (end - i > longest) {
      longest = end - i;
      start = i;
    }
  }
  if (start < 0) return groups.join(":");
  return `${groups.slice(0, start).join(":")}::${groups.slice(start + longest).join(":")}`;
}
