// SPDX-License-Identifier: GPL-2.0-only
//
// Discovery over UDP: signed announcements by multicast, broadcast, or straight to configured peers.
//
// Protocol: an announcement every period and on change; a query is answered by an announcement to its sender.
// With peers configured, packets go to them alone ("--peer skips discovery"). Nothing is decided here: a packet only
// says whom to dial. A packet that is not signed with the cluster key, comes again, or is malformed is dropped,
// counted, and logged once per source and minute.
//
// Known weakness: IPv4 only.

import { createSocket, type Socket } from "node:dgram";
import { setBindToDevice, socketFd } from "../../native/index.js";
import type { Discovered } from "../cluster/ports.js";
import type { Role } from "../wire/abi.js";
import { type DiscoveryPacket, decodeDiscovery, encodeDiscovery, ReplayGuard } from "../wire/discovery.js";
import { WireError } from "../wire/error.js";
import { interfaceAddress } from "../workers/peer_net.js";
import type { LogFields, LogLevel } from "../workers/protocol.js";
import type { PeerAddress } from "./config.js";

const SOURCES_MAX = 1024;
const REPORT_MS = 60_000;

export interface DiscoveryOptions {
  readonly volume: bigint;
  readonly self: number;
  readonly incarnation: number;
  readonly uuid: Uint8Array;
  /** The TCP port that is announced. */
  readonly port: number;
  /** Address announced; null: receivers take the packet's source. */
  readonly address: string | null;
  readonly iface: string | null;
  readonly multicast: string | null;
  readonly broadcast: string | null;
  readonly peers: readonly PeerAddress[];
  readonly periodMs: number;
  readonly log: (level: LogLevel, text: string, fields: LogFields) => void;
  readonly found: (packet: Discovered) => void;
}

export class Discovery {
  readonly #options: DiscoveryOptions;
  readonly #guard = new ReplayGuard();
  readonly #reported = new Map<string, number>();
  #socket: Socket | null = null;
  #timer: NodeJS.Timeout | null = null;
  #key: Uint8Array | null = null;
  #epoch = 0n;
  #port = 0;
  #role: Role = 0;
  #counter: bigint;
  droppedCount = 0;

  constructor(options: DiscoveryOptions) {
    this.#options = options;
    // Rises over restarts of the daemon within one incarnation.
    this.#counter = BigInt(Date.now()) << 10n;
  }

  /** Binds the UDP port, which all volumes of a host share. Failing multicast (no route, say) is reported and the rest goes on. */
  async open(port: number): Promise<void> {
    const { iface, multicast, broadcast, log } = this.#options;
    this.#port = port;
    const socket = createSocket({ type: "udp4", reuseAddr: true });
    this.#socket = socket;
    await new Promise<void>((resolve, reject) => {
      socket.once("error", reject);
      socket.bind(port, () => {
        socket.off("error", reject);
        resolve();
      });
    });
    socket.on("error", (error) => log("warn", "discovery socket", { error: error.message }));
    if (iface !== null) {
      setBindToDevice(socketFd(socket), iface);
    }
    if (multicast !== null) {
      try {
        const local = iface === null ? null : interfaceAddress(iface);
        if (local === null) {
          socket.addMembership(multicast);
        } else {
          socket.addMembership(multicast, local);
          socket.setMulticastInterface(local);
        }
        socket.setMulticastTTL(4);
        socket.setMulticastLoopback(false);
      } catch (error) {
        log("warn", "no multicast: peers are found by broadcast, by --peer, or from the disk", {
          group: multicast,
          error: String(error),
        });
      }
    }
    if (broadcast !== null) {
      socket.setBroadcast(true);
    }
    socket.on("message", (bytes, source) => this.#receive(bytes, source.address, source.port));
  }

  /** What is announced from now on; at once, and then every period. */
  announce(key: Uint8Array, epoch: bigint, role: Role): void {
    this.#key = key;
    this.#epoch = epoch;
    this.#role = role;
    this.#spread("announce");
    this.#timer ??= setInterval(() => this.#spread("announce"), this.#options.periodMs);
  }

  /** Asks who is there. Without a key nothing can be asked. */
  query(): void {
    this.#spread("query");
  }

  async close(): Promise<void> {
    if (this.#timer !== null) {
      clearInterval(this.#timer);
    }
    const socket = this.#socket;
    this.#socket = null;
    if (socket !== null) {
      await new Promise<void>((resolve) => socket.close(() => resolve()));
    }
  }

  #packet(type: DiscoveryPacket["type"], key: Uint8Array): Uint8Array {
    const { volume, self, incarnation, uuid, port, address } = this.#options;
    this.#counter += 1n;
    return encodeDiscovery(
      {
        type,
        volume,
        node: self,
        incarnation,
        role: this.#role,
        port,
        address,
        epoch: this.#epoch,
        counter: this.#counter,
        uuid,
      },
      key,
    );
  }

  #spread(type: DiscoveryPacket["type"]): void {
    const { multicast, broadcast, peers } = this.#options;
    const port = this.#port;
    if (this.#key === null) {
      return;
    }
    const bytes = this.#packet(type, this.#key);
    if (peers.length > 0) {
      for (const peer of peers) {
        this.#send(bytes, peer.port, peer.address);
      }
      return;
    }
    for (const address of [multicast, broadcast]) {
      if (address !== null) {
        this.#send(bytes, port, address);
      }
    }
  }

  #send(bytes: Uint8Array, port: number, address: string): void {
    this.#socket?.send(bytes, port, address, (error) => {
      if (error !== null && error !== undefined) {
        this.#report(address, `cannot send: ${error.message}`);
      }
    });
  }

  #receive(bytes: Uint8Array, source: string, port: number): void {
    const key = this.#key;
    if (key === null) {
      return;
    }
    try {
      const packet = decodeDiscovery(bytes, key);
      if (packet.volume !== this.#options.volume || packet.node === this.#options.self) {
        return;
      }
      if (!this.#guard.accept(packet)) {
        this.#report(source, "a packet came again, or out of order");
        return;
      }
      const { node, incarnation, role, epoch } = packet;
      this.#options.found({
        node,
        incarnation,
        role,
        epoch,
        port: packet.port,
        address: packet.address ?? source,
      });
      if (packet.type === "query") {
        this.#send(this.#packet("announce", key), port, source);
      }
    } catch (error) {
      if (!(error instanceof WireError)) {
        throw error;
      }
      // Another volume's packets on the same port are signed with another key: that is no incident.
      this.#report(source, error.message, error.code === "WIRE_MAC" ? "debug" : "warn");
    }
  }

  #report(source: string, problem: string, level: LogLevel = "debug"): void {
    this.droppedCount++;
    const now = performance.now();
    const last = this.#reported.get(source);
    if (last !== undefined && now - last < REPORT_MS) {
      return;
    }
    if (this.#reported.size >= SOURCES_MAX) {
      this.#reported.clear();
    }
    this.#reported.set(source, now);
    this.#options.log(level, `discovery: ${problem}`, { source, dropped: this.droppedCount });
  }
}
