// SPDX-License-Identifier: GPL-2.0-only
//
// What one daemon is to do, put together from its command line over the configuration file over the defaults.
//
// The kernel's form (src docs/interfaces.md, section 3):
//   mxfsd --device DEV --mountpoint DIR --uuid UUID --mount-id N [options]
// and a lock service without a mount:
//   mxfsd start DEVICE [options] [--foreground]     mxfsd start --config FILE

import { existsSync, readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import type { PersistChoice } from "../disk/lock_persister.js";
import {
  CONFIG_DEFAULT,
  type Config,
  ConfigError,
  checkTiming,
  type PeerAddress,
  parseConfig,
  type TimingConfig,
} from "./config.js";

export const CONFIG_FILE_DEFAULT = "/etc/mxfs/mxfs.conf";

export type FenceChoice = "scsi" | "none";
export const PERSIST_CHOICES: readonly PersistChoice[] = ["writing", "all"];

/** Everything a daemon needs to know at its start. */
export interface DaemonOptions {
  readonly device: string;
  readonly mountpoint: string | null;
  /** XFS UUID as the kernel read it; null: read from the superblock. */
  readonly uuid: string | null;
  /** The kernel's number of the mount; null: a lock service without a mount. */
  readonly mountId: number | null;
  readonly fence: FenceChoice;
  /** Which modes' grants are in the lock records before they are told. */
  readonly persist: PersistChoice;
  /** Lock records on disk, chosen when lockstate is created. */
  readonly lockRecords: number | null;
  readonly foreground: boolean;
  readonly configFile: string | null;
  readonly config: Config;
}

/** Command line values; undefined where not given. */
export interface GivenOptions {
  readonly device: string;
  readonly mountpoint?: string | undefined;
  readonly uuid?: string | undefined;
  readonly "mount-id"?: number | undefined;
  readonly iface?: string | undefined;
  readonly port?: number | undefined;
  readonly multicast?: string | undefined;
  readonly broadcast?: string | undefined;
  readonly peer?: readonly string[] | undefined;
  readonly encrypt?: string | undefined;
  readonly fence?: string | undefined;
  readonly persist?: string | undefined;
  readonly config?: string | undefined;
  readonly foreground?: boolean | undefined;
  readonly "lock-records"?: number | undefined;
  readonly "heartbeat-ms"?: number | undefined;
  readonly "renew-ms"?: number | undefined;
  readonly "lease-ms"?: number | undefined;
  readonly "node-timeout-ms"?: number | undefined;
  readonly "lock-wait-ms"?: number | undefined;
  readonly "bast-ms"?: number | undefined;
  readonly "startup-ms"?: number | undefined;
  readonly "drain-ms"?: number | undefined;
}

/** What may be said on the command line, for yargs and for the kernel's form. */
export const OPTIONS = {
  iface: { type: "string", alias: "i", describe: "network interface for peers and discovery" },
  port: { type: "number", alias: "p", describe: "TCP and UDP port" },
  multicast: { type: "string", alias: "m", describe: "discovery group, or none" },
  broadcast: { type: "string", alias: "b", describe: "broadcast address for discovery" },
  peer: { type: "string", array: true, alias: "P", describe: "HOST[:PORT]: no discovery, these peers" },
  encrypt: { type: "string", choices: ["on", "off"], describe: "seal the connections to peers" },
  fence: { type: "string", choices: ["scsi", "none"], describe: "how dead nodes are kept from writing" },
  persist: {
    type: "string",
    describe: "grants in the lock records before they are told: writing (default) or all",
  },
  config: { type: "string", alias: "c", describe: "configuration file" },
  "lock-records": { type: "number", describe: "lock records on disk, when lockstate is created" },
  "heartbeat-ms": { type: "number" },
  "renew-ms": { type: "number" },
  "lease-ms": { type: "number" },
  "node-timeout-ms": { type: "number" },
  "lock-wait-ms": { type: "number" },
  "bast-ms": { type: "number" },
  "startup-ms": { type: "number" },
  "drain-ms": { type: "number" },
} as const;

/** Options of the kernel's form alone; all of them must be there. */
const KERNEL_OPTIONS = ["device", "mountpoint", "uuid", "mount-id"] as const;

/**
 * The form in which the kernel starts the daemon: long options only, "-" for an empty value, no command.
 * @returns null when it is another form (no --mount-id).
 * @throws ConfigError for what is missing or not known.
 */
export function kernelForm(words: readonly string[]): GivenOptions | null {
  if (!words.some((word) => word === "--mount-id" || word.startsWith("--mount-id="))) {
    return null;
  }
  const names = [...KERNEL_OPTIONS, ...Object.keys(OPTIONS)];
  let values: Readonly<Record<string, unknown>>;
  try {
    ({ values } = parseArgs({
      args: [...words],
      options: Object.fromEntries(
        names.map((name) => [name, { type: "string" as const, multiple: name === "peer" }]),
      ),
    }));
  } catch (error) {
    throw new ConfigError(error instanceof Error ? error.message : String(error));
  }
  const missing = KERNEL_OPTIONS.filter((name) => values[name] === undefined);
  if (missing.length > 0) {
    throw new ConfigError(`--mount-id needs ${missing.map((name) => `--${name}`).join(", ")} beside it`);
  }
  const numeric = (name: string): boolean =>
    name === "mount-id" ||
    Object.entries(OPTIONS).some(([key, { type }]) => key === name && type === "number");
  const given = Object.fromEntries(
    Object.entries(values).map(([name, value]) => [name, numeric(name) ? wholeNumber(name, value) : value]),
  );
  return given as unknown as GivenOptions;
}

function wholeNumber(name: string, value: unknown): number {
  if (typeof value !== "string" || !/^[0-9]{1,15}$/.test(value)) {
    throw new ConfigError(`--${name} ${String(value)}: expected a whole number`);
  }
  return Number(value);
}

/** HOST, HOST:PORT or [IPv6]:PORT. @throws ConfigError */
export function parsePeer(input: string, portDefault: number): PeerAddress {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^\s:[\]]+))(?::([0-9]{1,5}))?$/.exec(input);
  const address = match?.[1] ?? match?.[2];
  const port = match?.[3] === undefined ? portDefault : Number(match[3]);
  if (address === undefined || port < 1 || port > 65535) {
    throw new ConfigError(`--peer ${input}: expected HOST, HOST:PORT or [IPv6]:PORT`);
  }
  return { address, port };
}

const TIMINGS: readonly (readonly [keyof GivenOptions & string, keyof TimingConfig])[] = [
  ["heartbeat-ms", "heartbeatMs"],
  ["renew-ms", "renewMs"],
  ["lease-ms", "leaseMs"],
  ["node-timeout-ms", "nodeTimeoutMs"],
  ["lock-wait-ms", "lockWaitMs"],
  ["bast-ms", "bastMs"],
  ["startup-ms", "startupMs"],
  ["drain-ms", "drainMs"],
];

/** Reads the configuration file. The default one may be missing; a named one must be there. */
export function readConfig(file: string | null): Config {
  const path = file ?? CONFIG_FILE_DEFAULT;
  if (file === null && !existsSync(path)) {
    return CONFIG_DEFAULT;
  }
  let source: string;
  try {
    source = readFileSync(path, "utf8");
  } catch (error) {
    throw new ConfigError(`configuration ${path}: ${error instanceof Error ? error.message : String(error)}`);
  }
  return parseConfig(source, path);
}

/** @throws ConfigError with what is wrong and what is allowed. */
export function resolveOptions(given: GivenOptions): DaemonOptions {
  const configFile = given.config ?? null;
  const base = readConfig(configFile);
  const port = given.port ?? base.node.port;
  if (!Number.isInteger(port) || port < 1 || port > 65535) {
    throw new ConfigError(`--port ${port}: expected 1 to 65535`);
  }
  const timing: { -readonly [K in keyof TimingConfig]: number } = { ...base.timing };
  for (const [option, field] of TIMINGS) {
    const value = given[option];
    if (value !== undefined) {
      if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || value > 3_600_000) {
        throw new ConfigError(`--${option} ${String(value)}: expected milliseconds from 0 to 3600000`);
      }
      timing[field] = value;
    }
  }
  checkTiming(timing);
  const fence = given.fence ?? "scsi";
  if (fence !== "scsi" && fence !== "none") {
    throw new ConfigError(`--fence ${fence}: expected scsi (persistent reservations) or none (tests only)`);
  }
  const encrypt = given.encrypt ?? (base.node.encrypt ? "on" : "off");
  if (encrypt !== "on" && encrypt !== "off") {
    throw new ConfigError(`--encrypt ${encrypt}: expected on or off`);
  }
  const persist =
    given.persist ?? base.volumes.find((volume) => volume.device === given.device)?.persist ?? "writing";
  if (persist !== "writing" && persist !== "all") {
    throw new ConfigError(
      `--persist ${persist}: expected writing (locks that allow writing, the default) or all (reading ones as well)`,
    );
  }
  const none = (value: string | undefined, otherwise: string | null): string | null =>
    value === undefined ? otherwise : value === "none" ? null : value;
  const peers =
    given.peer === undefined
      ? base.peers
      : given.peer.flatMap((list) => list.split(",")).map((peer) => parsePeer(peer, port));
  return {
    device: given.device,
    mountpoint: given.mountpoint === undefined || given.mountpoint === "-" ? null : given.mountpoint,
    uuid: given.uuid ?? null,
    mountId: given["mount-id"] ?? null,
    fence,
    persist,
    lockRecords: given["lock-records"] ?? null,
    foreground: given.foreground ?? false,
    configFile,
    config: {
      ...base,
      node: {
        ...base.node,
        port,
        iface: none(given.iface, base.node.iface),
        multicast: none(given.multicast, base.node.multicast),
        broadcast: none(given.broadcast, base.node.broadcast),
        encrypt: encrypt === "on",
      },
      peers,
      timing,
    },
  };
}
