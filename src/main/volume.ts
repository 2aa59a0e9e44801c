// SPDX-License-Identifier: GPL-2.0-only
//
// The volumes this process serves: what is known of each, looked up by id and by device.
//
// One mxfsd serves one volume; the registry exists because `status`, the control sockets and a configuration
// file with several [volume] sections all speak of volumes, and it is the one place that refuses a device or an
// XFS twice.
//
// Known weakness: two paths to one LUN are told apart by name only; the volume id catches the second one.

import { realpathSync } from "node:fs";
import { readSuperblock } from "../disk/xfs.js";
import { XfsFormatError } from "../disk/xfs_types.js";
import { RawDevice } from "../workers/disk_io.js";
import { ConfigError } from "./config.js";

export type VolumeState = "starting" | "running" | "stopping" | "failed";

export interface Volume {
  /** FNV-1a-64 of the XFS UUID. */
  readonly id: bigint;
  readonly uuid: string;
  readonly device: string;
  /** Resolved, so that /dev/disk/by-id/... and /dev/sdb are one. */
  readonly realDevice: string;
  readonly mountpoint: string | null;
  readonly sizeBytes: number;
  readonly label: string;
  state: VolumeState;
}

export const VOLUMES_MAX = 64;

export class VolumeRegistry {
  readonly #volumes = new Map<bigint, Volume>();

  /** @throws ConfigError when the volume or its device is there already, or there are too many. */
  add(volume: Volume): void {
    const twin = this.#volumes.get(volume.id) ?? this.byDevice(volume.device);
    if (twin !== null && twin !== undefined) {
      throw new ConfigError(`${volume.device}: XFS ${volume.uuid} is served already, as ${twin.device}`);
    }
    if (this.#volumes.size >= VOLUMES_MAX) {
      throw new ConfigError(`${volume.device}: ${VOLUMES_MAX} volumes are served already`);
    }
    this.#volumes.set(volume.id, volume);
  }

  byId(id: bigint): Volume | null {
    return this.#volumes.get(id) ?? null;
  }

  byDevice(device: string): Volume | null {
    for (const volume of this.#volumes.values()) {
      if (volume.device === device || volume.realDevice === device) {
        return volume;
      }
    }
    return null;
  }

  remove(id: bigint): void {
    this.#volumes.delete(id);
  }

  all(): readonly Volume[] {
    return Array.from(this.#volumes.values());
  }
}

/** Lower case with dashes. */
export function formatUuid(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString("hex");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/**
 * Reads the superblock of a device.
 * @param expectedUuid what the kernel saw; null: anything.
 * @throws ConfigError when it is no XFS, one that MXFS cannot share, or another one than expected.
 */
export async function probeVolume(
  device: string,
  mountpoint: string | null,
  expectedUuid: string | null,
): Promise<Volume> {
  let raw: RawDevice;
  try {
    raw = new RawDevice(device, false);
  } catch (error) {
    throw new ConfigError(
      `${device}: cannot be opened as a block device: ${error instanceof Error ? error.message : error}`,
    );
  }
  try {
    const sb = await readSuperblock(raw);
    const uuid = formatUuid(sb.uuid);
    if (expectedUuid !== null && expectedUuid.toLowerCase() !== uuid) {
      throw new ConfigError(
        `${device} carries XFS ${uuid}, expected ${expectedUuid}: is it the right device?`,
      );
    }
    if (sb.externalLog || sb.realtimeDevice) {
      throw new ConfigError(
        `${device}: XFS ${uuid} has ${sb.externalLog ? "an external log" : "a realtime device"}: MXFS shares one device; make it without (mkfs.xfs ${device})`,
      );
    }
    return {
      id: sb.volumeId,
      uuid,
      device,
      realDevice: realpathSync(device),
      mountpoint,
      sizeBytes: raw.sizeBytes,
      label: sb.label,
      state: "starting",
    };
  } catch (error) {
    if (error instanceof XfsFormatError) {
      throw new ConfigError(`${device}: ${error.message}`);
    }
    throw error;
  } finally {
    raw.close();
  }
}
