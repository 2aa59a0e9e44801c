// SPDX-License-Identifier: GPL-2.0-only
//
// One mxfs volume per LUN: a reservation covers the whole LUN, so a second volume on another partition of it would have
// its holder and the first one's fence each other. Found out before a key is registered, in two ways:
//
// - every other partition of the disk, and the disk itself, is looked at: an XFS with a lockstate whose header has
//   members (ACTIVE ones, or evicted ones that have not come back) is a volume in use, by whichever host;
// - each daemon holds a socket with the disk's number in its name, so that two mounts of one host at the same moment,
//   which neither has a header yet, cannot both go on.
//
// Known weakness: partitions are seen as this host's kernel knows them; a table that another host has just changed is
// read again by partprobe. Two hosts that mount two partitions for the first time in the same second are told apart by
// the reservation: the second one then finds the first one's header, or waits until it is there.

import { existsSync, readdirSync, realpathSync, statSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { readSuperblock } from "../disk/xfs.js";
import { XfsFormatError } from "../disk/xfs_types.js";
import { locateLockstate, RawDevice, readHeader } from "./disk_io.js";

/** A daemon that has just ended may keep its socket for a moment. */
const LOCK_TRIES = 50;
const LOCK_PAUSE_MS = 100;

/** /sys/... of a block device. */
export function sysfsPath(device: string): string {
  const { rdev } = statSync(device);
  // glibc's gnu_dev_major and gnu_dev_minor, for what fits in 32 bits.
  const major = (rdev >>> 8) & 0xfff;
  const minor = (rdev & 0xff) | ((rdev >>> 12) & 0xfff00);
  return realpathSync(`/sys/dev/block/${major}:${minor}`);
}

/** The whole disk's directory in /sys. */
function wholeDisk(device: string): string {
  const own = sysfsPath(device);
  return existsSync(`${own}/partition`) ? realpathSync(`${own}/..`) : own;
}

/** Device nodes of the same disk, other than this one. */
function siblings(device: string): string[] {
  const own = sysfsPath(device);
  const disk = wholeDisk(device);
  const parts = readdirSync(disk)
    .map((name) => `${disk}/${name}`)
    .filter((path) => existsSync(`${path}/partition`));
  return [disk, ...parts]
    .filter((path) => path !== own)
    .map((path) => `/dev/${path.slice(path.lastIndexOf("/") + 1).replaceAll("!", "/")}`);
}

/** Null: no mxfs volume that is in use. */
async function volumeInUse(node: string): Promise<string | null> {
  let raw: RawDevice;
  try {
    raw = new RawDevice(node, false);
  } catch {
    return null; // an extended partition, or one without a node: nothing can be mounted from it
  }
  try {
    const sb = await readSuperblock(raw);
    const located = await locateLockstate(raw);
    if (located.kind !== "found") return null;
    const header = await readHeader(raw, located.location, sb.volumeId);
    if (header.kind !== "found" || header.header.members.length === 0) return null;
    const members = header.header.members.map((member) => member.node.toString(16).padStart(8, "0"));
    return `${node} (XFS ${header.header.volumeUuid}, nodes ${members.join(", ")})`;
  } catch (error) {
    if (error instanceof XfsFormatError) return null; // something else is on it
    throw error;
  } finally {
    raw.close();
  }
}

/** Another volume in use on the LUN of `device`, as text; null: none. */
export async function otherVolumeOnLun(device: string): Promise<string | null> {
  for (const node of siblings(device)) {
    const found = await volumeInUse(node);
    if (found !== null) return found;
  }
  return null;
}

/** Holds the disk for this process; null: another daemon of this host has it. The socket ends with the process. */
export async function lockLun(device: string): Promise<Server | null> {
  const name = `\0mxfs-lun-${wholeDisk(device).split("/").at(-1)}`;
  for (let attempt = 1; attempt <= LOCK_TRIES; attempt++) {
    const server = createServer();
    const code = await new Promise<string | null>((resolve) => {
      server.once("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message));
      server.listen(name, () => resolve(null));
    });
    if (code === null) {
      server.unref();
      return server;
    }
    if (code !== "EADDRINUSE") throw new Error(`cannot bind the socket that holds ${device}: ${code}`);
    await pause(LOCK_PAUSE_MS);
  }
  return null;
}
