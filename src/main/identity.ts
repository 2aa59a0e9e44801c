// SPDX-License-Identifier: GPL-2.0-only
//
// Who this node is: the persistent UUID (version 4, RFC 9562) and the incarnation counter.
//
// The node id (FNV-1a-32 of the UUID's 16 bytes) and the incarnation make the persistent reservation key, so
// both files are written durably (fsync of file and directory) before they are used. A damaged file is an
// error, never replaced: a new identity would leave the old key registered.
//
// Known weakness: two hosts cloned from one image share the UUID file; the join notices (DESIGN: a moving
// heartbeat under one's own id) and refuses.

import { randomUUID } from "node:crypto";
import {
  closeSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  unlinkSync,
  writeSync,
} from "node:fs";
import { dirname } from "node:path";
import { fnv1a32 } from "../wire/fnv.js";
import { ConfigError } from "./config.js";

export interface NodeIdentity {
  /** Canonical text form, lower case. */
  readonly uuid: string;
  readonly uuidBytes: Uint8Array;
  /** FNV-1a-32 of the 16 bytes; never 0. */
  readonly node: number;
}

const UUID_V4 = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;

export function parseUuid(uuid: string): Uint8Array {
  return Uint8Array.from(Buffer.from(uuid.replaceAll("-", ""), "hex"));
}

function writeTemporary(file: string, contents: string): string {
  mkdirSync(dirname(file), { recursive: true });
  const temporary = `${file}.${process.pid}.tmp`;
  const fd = openSync(temporary, "w", 0o644);
  try {
    writeSync(fd, contents);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  return temporary;
}

function syncDirectory(file: string): void {
  const fd = openSync(dirname(file), "r");
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

function readOrNull(file: string): string | null {
  try {
    return readFileSync(file, "utf8").trim();
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") {
      return null;
    }
    throw error;
  }
}

/**
 * Reads the node's UUID, and makes one on the first call. Two daemons that start at once agree: the file
 * is linked into place, and whoever finds it there reads it.
 * @throws ConfigError when the file holds no version 4 UUID.
 */
export function loadIdentity(file: string): NodeIdentity {
  let uuid = readOrNull(file);
  if (uuid === null) {
    const temporary = writeTemporary(file, `${randomUUID()}\n`);
    try {
      linkSync(temporary, file);
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "EEXIST")) {
        throw error;
      }
    } finally {
      unlinkSync(temporary);
    }
    syncDirectory(file);
    uuid = readOrNull(file);
  }
  if (uuid === null || !UUID_V4.test(uuid)) {
    throw new ConfigError(
      `${file}: "${uuid ?? ""}" is not a version 4 UUID: restore the file from a backup, or remove it when no volume is mounted on this node`,
    );
  }
  const uuidBytes = parseUuid(uuid);
  const node = fnv1a32(uuidBytes);
  if (node === 0) {
    throw new ConfigError(
      `${file}: ${uuid} hashes to node id 0, which is reserved: remove the file to get another`,
    );
  }
  return { uuid, uuidBytes, node };
}

/**
 * Raises the incarnation counter of this host and returns the new value (1 to 2^32 - 1). Durable on return.
 * @throws ConfigError when the file holds no such number, or the counter is used up.
 */
export function nextIncarnation(file: string): number {
  const found = readOrNull(file);
  if (found !== null && !/^[0-9]{1,10}$/.test(found)) {
    throw new ConfigError(
      `${file}: "${found}" is not a number: write the highest incarnation ever used into it`,
    );
  }
  const next = Number(found ?? "0") + 1;
  if (next > 0xffffffff) {
    throw new ConfigError(
      `${file}: the incarnation counter is used up: remove ${file} and the node's UUID file`,
    );
  }
  renameSync(writeTemporary(file, `${next}\n`), file);
  syncDirectory(file);
  return next;
}
