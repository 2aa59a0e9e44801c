// SPDX-License-Identifier: GPL-2.0-only
/**
 * Discovery packets (UDP, 112 bytes, include/mxfs/wire.h): "here I am", and "who is there?".
 *
 * Protocol: every packet is signed with the cluster key; its counter rises within an incarnation, so a packet
 * that was recorded and sent again is dropped (ReplayGuard). Nothing is decided by discovery alone: it only
 * says whom to dial, and the connection authenticates itself.
 * Known weakness: a node that hears of another for the first time cannot tell a replay from the real thing.
 */
import {
  MXFS_DISCOVERY_ANNOUNCE,
  MXFS_DISCOVERY_QUERY,
  MXFS_DISCOVERY_SIZE,
  MXFS_WIRE_MAGIC,
  MXFS_WIRE_VERSION,
  type Role,
  RoleName,
} from "./abi.js";
import { formatAddress, parseAddress } from "./address.js";
import { hmac, macEquals } from "./auth.js";
import { assertU32, assertU64, viewOf, WireError } from "./error.js";

export interface DiscoveryPacket {
  readonly type: "announce" | "query";
  readonly volume: bigint;
  readonly node: number;
  readonly incarnation: number;
  readonly role: Role;
  /** TCP port to dial. */
  readonly port: number;
  /** Where to dial, or null: the packet's own source address. */
  readonly address: string | null;
  readonly epoch: bigint;
  /** Rises with every packet of an incarnation. */
  readonly counter: bigint;
  /** 16 bytes. */
  readonly uuid: Uint8Array;
}

const MAC_AT = 80;

/** Builds and signs a packet. @throws RangeError when a field does not fit. */
export function encodeDiscovery(packet: DiscoveryPacket, key: Uint8Array): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(MXFS_DISCOVERY_SIZE);
  const view = viewOf(bytes);
  const address = packet.address === null ? null : parseAddress(packet.address);
  if (packet.address !== null && address === null) {
    throw new RangeError(`discovery address: expected an IP address, found ${packet.address}`);
  }
  if (packet.uuid.length !== 16)
    throw new RangeError(`node uuid: expected 16 bytes, found ${packet.uuid.length}`);
  if (!Number.isInteger(packet.port) || packet.port < 1 || packet.port > 65535) {
    throw new RangeError(`discovery port: expected 1 to 65535, found ${packet.port}`);
  }
  view.setUint32(0, MXFS_WIRE_MAGIC, true);
  view.setUint16(4, MXFS_WIRE_VERSION, true);
  view.setUint16(6, packet.type === "announce" ? MXFS_DISCOVERY_ANNOUNCE : MXFS_DISCOVERY_QUERY, true);
  view.setBigUint64(8, assertU64(packet.volume, "volume"), true);
  view.setUint32(16, assertU32(packet.node, "node"), true);
  view.setUint32(20, assertU32(packet.incarnation, "incarnation"), true);
  view.setUint32(24, packet.role, true);
  view.setUint16(28, packet.port, true);
  view.setUint16(30, address === null ? 0 : address.family, true);
  if (address !== null) bytes.set(address.bytes, 32);
  view.setBigUint64(48, assertU64(packet.epoch, "epoch"), true);
  view.setBigUint64(56, assertU64(packet.counter, "counter"), true);
  bytes.set(packet.uuid, 64);
  bytes.set(hmac(key, bytes.subarray(0, MAC_AT)), MAC_AT);
  return bytes;
}

/**
 * Reads and verifies a packet; the signature is checked before any other field but magic and version.
 * @throws WireError WIRE_LENGTH, WIRE_MAGIC, WIRE_VERSION, WIRE_MAC (another cluster, or an enemy), WIRE_FIELD
 */
export function decodeDiscovery(bytes: Uint8Array, key: Uint8Array): DiscoveryPacket {
  if (bytes.length !== MXFS_DISCOVERY_SIZE) {
    throw new WireError("WIRE_LENGTH", `discovery packet: expected 112 bytes, found ${bytes.length}`);
  }
  const view = viewOf(bytes);
  const magic = view.getUint32(0, true);
  if (magic !== MXFS_WIRE_MAGIC) {
    throw new WireError("WIRE_MAGIC", `discovery packet: magic ${magic.toString(16)} is not MXFS's`);
  }
  const version = view.getUint16(4, true);
  if (version !== MXFS_WIRE_VERSION) {
    throw new WireError(
      "WIRE_VERSION",
      `discovery packet: version ${version}, expected ${MXFS_WIRE_VERSION}`,
    );
  }
  if (!macEquals(hmac(key, bytes.slice(0, MAC_AT)), bytes.slice(MAC_AT))) {
    throw new WireError("WIRE_MAC", "discovery packet: signature wrong: not of this cluster");
  }
  const type = view.getUint16(6, true);
  if (type !== MXFS_DISCOVERY_ANNOUNCE && type !== MXFS_DISCOVERY_QUERY) {
    throw new WireError("WIRE_TYPE", `discovery packet: type ${type} is not known`);
  }
  const role = view.getUint32(24, true);
  if (RoleName[role] === undefined) throw new WireError("WIRE_FIELD", `discovery packet: role ${role}`);
  const port = view.getUint16(28, true);
  if (port === 0) throw new WireError("WIRE_FIELD", "discovery packet: port 0");
  const family = view.getUint16(30, true);
  const address = formatAddress(family, bytes.subarray(32, 48));
  if (address === null && family !== 0) {
    throw new WireError("WIRE_FIELD", `discovery packet: address family ${family}`);
  }
  return {
    type: type === MXFS_DISCOVERY_ANNOUNCE ? "announce" : "query",
    volume: view.getBigUint64(8, true),
    node: view.getUint32(16, true),
    incarnation: view.getUint32(20, true),
    role: role as Role,
    port,
    address,
    epoch: view.getBigUint64(48, true),
    counter: view.getBigUint64(56, true),
    uuid: bytes.slice(64, 80),
  };
}

/** Remembers how far each node's counter has come. */
export class ReplayGuard {
  readonly #seen = new Map<number, { incarnation: number; counter: bigint }>();

  /** @param nodeCountMax beyond it the node not heard of for longest is forgotten. */
  constructor(readonly nodeCountMax = 256) {}

  /** Whether the packet is newer than every one accepted from that node; remembers it if so. */
  accept(packet: Pick<DiscoveryPacket, "node" | "incarnation" | "counter">): boolean {
    const last = this.#seen.get(packet.node);
    if (last !== undefined) {
      if (packet.incarnation < last.incarnation) return false;
      if (packet.incarnation === last.incarnation && packet.counter <= last.counter) return false;
      this.#seen.delete(packet.node);
    } else if (this.#seen.size >= this.nodeCountMax) {
      const oldest = this.#seen.keys().next();
      if (!oldest.done) this.#seen.delete(oldest.value);
    }
    this.#seen.set(packet.node, { incarnation: packet.incarnation, counter: packet.counter });
    return true;
  }

  get size(): number {
    return this.#seen.size;
  }
}
