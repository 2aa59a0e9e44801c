// SPDX-License-Identifier: GPL-2.0-only
//
// The configuration file (/etc/mxfs/mxfs.conf) and what it means.
//
// Responsible for: the INI syntax, the list of keys that exist, their types and limits, and errors that name
// file, line and key. Command line and mount options override the file; that is `src/main/options.ts`'s work.
//
//   # comment, or ; comment
//   [node]                 this host
//   iface = eth1           network interface for peers and discovery
//   [peer storage2]        one section for each peer that discovery cannot find
//   address = 10.0.0.2
//   [volume data]          what `mxfsd start --config` serves
//   device = /dev/sdb
//   [timing]               milliseconds
//   [logging]
//
// Known weakness: no includes, no continuation lines; values are taken literally (no quotes, no escapes).

import type { PersistChoice } from "../disk/lock_persister.js";
import {
  MXFS_BAST_MS_DEFAULT,
  MXFS_DRAIN_MS_DEFAULT,
  MXFS_HEARTBEAT_MS_DEFAULT,
  MXFS_LEASE_MS_DEFAULT,
  MXFS_LEASE_RENEW_MS_DEFAULT,
  MXFS_LOCK_WAIT_MS_DEFAULT,
  MXFS_MULTICAST_DEFAULT,
  MXFS_NODE_TIMEOUT_MS_DEFAULT,
  MXFS_PORT_DEFAULT,
  MXFS_STARTUP_MS_DEFAULT,
} from "../wire/abi.js";
import type { LogLevel } from "../workers/protocol.js";

/** A mistake in the configuration: the message says where, what was found, and what is allowed. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly code = "EINVAL";
}

export const LOG_LEVELS: readonly LogLevel[] = ["error", "warn", "info", "debug"];

export interface PeerAddress {
  /** IPv4 or IPv6 address, or a host name. */
  readonly address: string;
  readonly port: number;
}

export interface NodeConfig {
  /** Interface that peer connections and discovery are bound to (SO_BINDTODEVICE); null: any. */
  readonly iface: string | null;
  /** TCP and UDP port. */
  readonly port: number;
  /** Discovery group; null: no multicast. */
  readonly multicast: string | null;
  /** Broadcast address for discovery; null: none. */
  readonly broadcast: string | null;
  /** Connections to peers are sealed (one side that asks for it is enough). */
  readonly encrypt: boolean;
  /** Where the node's UUID (version 4) is kept. */
  readonly uuidFile: string;
  /** Where the incarnation counter is kept. */
  readonly incarnationFile: string;
}

/** Milliseconds, all of them. */
export interface TimingConfig {
  readonly heartbeatMs: number;
  readonly renewMs: number;
  readonly leaseMs: number;
  readonly nodeTimeoutMs: number;
  readonly lockWaitMs: number;
  readonly bastMs: number;
  readonly startupMs: number;
  readonly drainMs: number;
}

export interface VolumeConfig {
  readonly name: string;
  readonly device: string;
  /** Which modes' grants are in the lock records before they are told; null: not said. */
  readonly persist: PersistChoice | null;
}

export interface LoggingConfig {
  readonly level: LogLevel;
  /** Log file; null: none. */
  readonly file: string | null;
  readonly syslog: boolean;
}

export interface Config {
  readonly node: NodeConfig;
  readonly peers: readonly PeerAddress[];
  readonly volumes: readonly VolumeConfig[];
  readonly timing: TimingConfig;
  readonly logging: LoggingConfig;
}

export const CONFIG_DEFAULT: Config = {
  node: {
    iface: null,
    port: MXFS_PORT_DEFAULT,
    multicast: MXFS_MULTICAST_DEFAULT,
    broadcast: null,
    encrypt: false,
    uuidFile: "/etc/mxfs/node.uuid",
    incarnationFile: "/etc/mxfs/incarnation",
  },
  peers: [],
  volumes: [],
  timing: {
    heartbeatMs: MXFS_HEARTBEAT_MS_DEFAULT,
    renewMs: MXFS_LEASE_RENEW_MS_DEFAULT,
    leaseMs: MXFS_LEASE_MS_DEFAULT,
    nodeTimeoutMs: MXFS_NODE_TIMEOUT_MS_DEFAULT,
    lockWaitMs: MXFS_LOCK_WAIT_MS_DEFAULT,
    bastMs: MXFS_BAST_MS_DEFAULT,
    startupMs: MXFS_STARTUP_MS_DEFAULT,
    drainMs: MXFS_DRAIN_MS_DEFAULT,
  },
  logging: { level: "info", file: "/var/log/mxfsd.log", syslog: true },
};

/** Most bytes, lines and repeated sections of a configuration file. */
const FILE_BYTES_MAX = 256 * 1024;
const SECTIONS_MAX = 256;

type ValueParser = (value: string) => string | number | boolean | null;

interface KeyRule {
  readonly field: string;
  readonly parse: ValueParser;
}

class ValueProblem extends Error {}

function text(maxLength: number): ValueParser {
  return (value) => {
    if (value === "" || value.length > maxLength) {
      throw new ValueProblem(`expected 1 to ${maxLength} characters`);
    }
    return value;
  };
}

function path(value: string): string {
  if (!value.startsWith("/") || value.includes("\0") || value.length > 4096) {
    throw new ValueProblem("expected an absolute path");
  }
  return value;
}

function orNone(parse: ValueParser): ValueParser {
  return (value) => (value === "none" ? null : parse(value));
}

/** An integer within bounds, decimal only. */
export function parseInteger(value: string, min: number, max: number): number {
  if (!/^[0-9]{1,10}$/.test(value) || Number(value) < min || Number(value) > max) {
    throw new ValueProblem(`expected an integer from ${min} to ${max}`);
  }
  return Number(value);
}

function integer(min: number, max: number): ValueParser {
  return (value) => parseInteger(value, min, max);
}

function ipv4(value: string): string {
  const parts = value.split(".");
  if (parts.length !== 4 || !parts.every((part) => /^[0-9]{1,3}$/.test(part) && Number(part) <= 255)) {
    throw new ValueProblem("expected an IPv4 address, four numbers from 0 to 255");
  }
  return parts.map(Number).join(".");
}

function multicastAddress(value: string): string {
  const address = ipv4(value);
  const first = Number(address.split(".")[0]);
  if (first < 224 || first > 239) {
    throw new ValueProblem("expected a multicast address, 224.0.0.0 to 239.255.255.255");
  }
  return address;
}

function interfaceName(value: string): string {
  if (!/^[^\s/:]{1,15}$/.test(value)) {
    throw new ValueProblem("expected an interface name of 1 to 15 characters");
  }
  return value;
}

function boolean(value: string): boolean {
  if (["yes", "true", "on", "1"].includes(value)) {
    return true;
  }
  if (["no", "false", "off", "0"].includes(value)) {
    return false;
  }
  throw new ValueProblem("expected yes or no");
}

function persistChoice(value: string): string {
  if (value !== "writing" && value !== "all") {
    throw new ValueProblem(
      "expected writing (locks that allow writing, the default) or all (reading ones as well)",
    );
  }
  return value;
}

function level(value: string): string {
  if (!LOG_LEVELS.some((known) => known === value)) {
    throw new ValueProblem(`expected one of ${LOG_LEVELS.join(", ")}`);
  }
  return value;
}

const MS_MAX = 3_600_000;

/** Every key there is: section, key, the field it sets, and what it may be. */
const RULES: Readonly<Record<string, Readonly<Record<string, KeyRule>>>> = {
  node: {
    iface: { field: "iface", parse: orNone(interfaceName) },
    port: { field: "port", parse: integer(1, 65535) },
    multicast: { field: "multicast", parse: orNone(multicastAddress) },
    broadcast: { field: "broadcast", parse: orNone(ipv4) },
    encrypt: { field: "encrypt", parse: boolean },
    uuid_file: { field: "uuidFile", parse: path },
    incarnation_file: { field: "incarnationFile", parse: path },
  },
  peer: {
    address: { field: "address", parse: text(255) },
    port: { field: "port", parse: integer(1, 65535) },
  },
  volume: {
    device: { field: "device", parse: path },
    persist: { field: "persist", parse: persistChoice },
  },
  timing: {
    heartbeat_ms: { field: "heartbeatMs", parse: integer(50, MS_MAX) },
    renew_ms: { field: "renewMs", parse: integer(50, MS_MAX) },
    lease_ms: { field: "leaseMs", parse: integer(100, MS_MAX) },
    node_timeout_ms: { field: "nodeTimeoutMs", parse: integer(200, MS_MAX) },
    lock_wait_ms: { field: "lockWaitMs", parse: integer(0, MS_MAX) },
    bast_ms: { field: "bastMs", parse: integer(100, MS_MAX) },
    startup_ms: { field: "startupMs", parse: integer(1000, MS_MAX) },
    drain_ms: { field: "drainMs", parse: integer(100, MS_MAX) },
  },
  logging: {
    level: { field: "level", parse: level },
    file: { field: "file", parse: orNone(path) },
    syslog: { field: "syslog", parse: boolean },
  },
};
const REPEATED_SECTIONS: readonly string[] = ["peer", "volume"];

interface Section {
  readonly kind: string;
  readonly name: string;
  readonly line: number;
  readonly values: Map<string, string | number | boolean | null>;
}

/**
 * Checks the timings against each other: a node must stop serving before others take what it held.
 * @throws ConfigError with the rule that is broken and both values.
 */
export function checkTiming(timing: TimingConfig): void {
  if (timing.heartbeatMs > timing.renewMs) {
    throw new ConfigError(
      `heartbeat_ms ${timing.heartbeatMs} is above renew_ms ${timing.renewMs}: a lease is renewed only after a heartbeat was written; choose heartbeat_ms <= renew_ms`,
    );
  }
  if (timing.renewMs >= timing.leaseMs) {
    throw new ConfigError(
      `renew_ms ${timing.renewMs} is not below lease_ms ${timing.leaseMs}: the lease would run out between renewals; choose renew_ms < lease_ms`,
    );
  }
  if (timing.leaseMs * 1.1 >= timing.nodeTimeoutMs) {
    throw new ConfigError(
      `lease_ms ${timing.leaseMs} plus 10 % is not below node_timeout_ms ${timing.nodeTimeoutMs}: others would take over before the node has stopped serving; choose node_timeout_ms > lease_ms * 1.1`,
    );
  }
}

/**
 * Parses a configuration file.
 * @param source the file's text.
 * @param file its name, for messages.
 * @throws ConfigError naming file, line, key, what was found and what is allowed.
 */
export function parseConfig(source: string, file: string): Config {
  const sections = parseSections(source, file);
  const single = (kind: string): Record<string, unknown> => {
    const found = sections.find((section) => section.kind === kind);
    return found === undefined ? {} : Object.fromEntries(found.values);
  };
  const peers: PeerAddress[] = [];
  const volumes: VolumeConfig[] = [];
  const node = { ...CONFIG_DEFAULT.node, ...single("node") };
  for (const section of sections) {
    if (section.kind === "peer") {
      const address = section.values.get("address");
      const port = section.values.get("port") ?? node.port;
      if (typeof address !== "string" || typeof port !== "number") {
        throw new ConfigError(
          `${file}:${section.line}: [peer ${section.name}] has no address: add address = HOST`,
        );
      }
      peers.push({ address, port });
    } else if (section.kind === "volume") {
      const device = section.values.get("device");
      if (typeof device !== "string") {
        throw new ConfigError(
          `${file}:${section.line}: [volume ${section.name}] has no device: add device = /dev/...`,
        );
      }
      if (volumes.some((volume) => volume.device === device)) {
        throw new ConfigError(
          `${file}:${section.line}: [volume ${section.name}]: device ${device} is listed twice`,
        );
      }
      const persist = section.values.get("persist");
      volumes.push({
        name: section.name,
        device,
        persist: persist === "all" || persist === "writing" ? persist : null,
      });
    }
  }
  const timing = { ...CONFIG_DEFAULT.timing, ...single("timing") };
  try {
    checkTiming(timing);
  } catch (error) {
    throw new ConfigError(`${file}: [timing]: ${error instanceof Error ? error.message : String(error)}`);
  }
  return { node, peers, volumes, timing, logging: { ...CONFIG_DEFAULT.logging, ...single("logging") } };
}

function parseSections(source: string, file: string): Section[] {
  if (source.length > FILE_BYTES_MAX) {
    throw new ConfigError(
      `${file}: ${source.length} characters; a configuration has at most ${FILE_BYTES_MAX}`,
    );
  }
  const sections: Section[] = [];
  let current: Section | null = null;
  for (const [index, raw] of source.split(/\r?\n/).entries()) {
    const line = index + 1;
    const where = `${file}:${line}`;
    const trimmed = raw.trim();
    if (trimmed === "" || trimmed.startsWith("#") || trimmed.startsWith(";")) {
      continue;
    }
    if (trimmed.startsWith("[")) {
      current = openSection(sections, trimmed, line, where);
      sections.push(current);
      continue;
    }
    if (current === null) {
      throw new ConfigError(`${where}: "${trimmed}" stands before the first section: begin with [node], say`);
    }
    setValue(current, trimmed, where);
  }
  return sections;
}

function openSection(sections: readonly Section[], header: string, line: number, where: string): Section {
  const match = /^\[\s*([a-z]+)(?:\s+([^\]\s]+))?\s*\]$/.exec(header);
  const kind = match?.[1] ?? "";
  if (match === null || !Object.hasOwn(RULES, kind)) {
    throw new ConfigError(
      `${where}: unknown section ${header}: expected ${Object.keys(RULES)
        .map((known) => (REPEATED_SECTIONS.includes(known) ? `[${known} NAME]` : `[${known}]`))
        .join(", ")}`,
    );
  }
  const repeated = REPEATED_SECTIONS.includes(kind);
  const name = match[2] ?? (repeated ? String(sections.length) : "");
  if (!repeated && name !== "") {
    throw new ConfigError(`${where}: [${kind}] takes no name, found "${name}"`);
  }
  const twin = sections.find((section) => section.kind === kind && section.name === name);
  if (twin !== undefined) {
    throw new ConfigError(`${where}: section ${header} stands in line ${twin.line} already`);
  }
  if (sections.length >= SECTIONS_MAX) {
    throw new ConfigError(`${where}: more than ${SECTIONS_MAX} sections`);
  }
  return { kind, name, line, values: new Map() };
}

function setValue(section: Section, trimmed: string, where: string): void {
  const equals = trimmed.indexOf("=");
  if (equals < 1) {
    throw new ConfigError(`${where}: "${trimmed}" is neither a section nor "key = value"`);
  }
  const key = trimmed.slice(0, equals).trim();
  const value = trimmed.slice(equals + 1).trim();
  const rules = RULES[section.kind] ?? {};
  const rule = Object.hasOwn(rules, key) ? rules[key] : undefined;
  if (rule === undefined) {
    throw new ConfigError(
      `${where}: unknown key "${key}" in [${section.kind}]: expected ${Object.keys(rules).join(", ")}`,
    );
  }
  if (section.values.has(rule.field)) {
    throw new ConfigError(`${where}: ${key} is set twice in [${section.kind}]`);
  }
  try {
    section.values.set(rule.field, rule.parse(value));
  } catch (error) {
    if (error instanceof ValueProblem) {
      throw new ConfigError(`${where}: ${key} = "${value}" in [${section.kind}]: ${error.message}`);
    }
    throw error;
  }
}

/** What a reload (SIGHUP) changed, and which changes need a new mount or start. */
export function reloadable(before: Config, after: Config): { applied: string[]; needRestart: string[] } {
  const applied: string[] = [];
  const needRestart: string[] = [];
  const differs = (left: unknown, right: unknown): boolean => JSON.stringify(left) !== JSON.stringify(right);
  if (differs(before.logging, after.logging)) {
    applied.push("logging");
  }
  if (differs(before.peers, after.peers)) {
    applied.push("peer");
  }
  for (const section of ["node", "timing", "volumes"] as const) {
    if (differs(before[section], after[section])) {
      needRestart.push(section === "volumes" ? "volume" : section);
    }
  }
  return { applied, needRestart };
}
