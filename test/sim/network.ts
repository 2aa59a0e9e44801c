// SPDX-License-Identifier: GPL-2.0-only
/**
 * The simulated network: one connection per pair of hosts, FIFO with random delays, established when either side
 * wants it and both have the cluster key; links can be cut, which both sides notice only after a while.
 */
import type { ClusterMessage } from "../../src/wire/messages.js";
import type { Cluster } from "./cluster.js";
import type { Daemon, Host } from "./host.js";

export interface Side {
  readonly host: Host;
  readonly daemon: Daemon;
  /** The core was told that it is up, and not yet that it is lost. */
  up: boolean;
  /** Nothing more comes here, though what is said here still gets out. */
  deaf: boolean;
  lastArrivalAt: number;
}

interface Connection {
  readonly sides: readonly [Side, Side];
  /** Nothing passes any more. */
  broken: boolean;
}

export class Network {
  readonly #connections = new Map<string, Connection>();
  readonly #cut = new Set<string>();
  readonly #dialling = new Set<string>();

  constructor(readonly cluster: Cluster) {}

  cut(a: Host, b: Host): void {
    this.#cut.add(pair(a, b));
    const connection = this.#connections.get(pair(a, b));
    if (connection !== undefined) this.break(connection, 200, 4000);
  }

  /** What `from` says does not reach `to` any more; the other way all is well, until both give up. */
  cutOneWay(from: Host, to: Host): void {
    this.#cut.add(pair(from, to));
    const connection = this.#connections.get(pair(from, to));
    if (connection === undefined || connection.broken) return;
    for (const side of connection.sides) if (side.host === to) side.deaf = true;
    const { time, random } = this.cluster;
    time.at(random.int(1000, 12_000), () => this.break(connection, 0, 2000));
  }

  healAll(): void {
    this.#cut.clear();
    for (const host of this.cluster.hosts) this.dialAll(host);
  }

  /** The daemon is gone: its peers see a reset soon, or, when the host is dead, silence. */
  daemonGone(host: Host): void {
    for (const connection of [...this.#connections.values()]) {
      if (!connection.sides.some((side) => side.host === host)) continue;
      if (host.powered) this.break(connection, 1, 40);
      else this.break(connection, 2000, 5000);
    }
  }

  /** Its peers see silence, and then a broken connection; itself when it thaws. */
  hostFrozen(host: Host): void {
    for (const connection of [...this.#connections.values()]) {
      if (connection.sides.some((side) => side.host === host)) this.break(connection, 2000, 5000);
    }
  }

  close(host: Host, node: number): void {
    const other = this.cluster.hostOf(node);
    const connection = other === undefined ? undefined : this.#connections.get(pair(host, other));
    // What was queued still arrives: the break comes behind it.
    if (connection !== undefined) this.cluster.time.at(60, () => this.break(connection, 0, 20));
  }

  dialAll(host: Host): void {
    for (const other of this.cluster.hosts) {
      if (other === host) continue;
      if (host.daemon?.wanted.has(other.node)) this.dial(host, other.node);
      if (other.daemon?.wanted.has(host.node)) this.dial(other, host.node);
    }
  }

  /** Keeps trying as long as the connection is wanted. */
  dial(host: Host, node: number): void {
    const other = this.cluster.hostOf(node);
    if (other === undefined) return;
    const name = `${host.index}>${other.index}`;
    if (this.#dialling.has(name)) return;
    const { time, random } = this.cluster;
    this.#dialling.add(name);
    time.at(random.int(2, 30), () => {
      this.#dialling.delete(name);
      const wanted = host.daemon?.wanted.has(node) ?? false;
      if (!wanted || this.#connections.has(pair(host, other))) return;
      if (!this.connect(host, other)) {
        this.#dialling.add(name);
        time.at(300, () => {
          this.#dialling.delete(name);
          this.dial(host, node);
        });
      }
    });
  }

  private connect(a: Host, b: Host): boolean {
    const { daemon: da } = a;
    const { daemon: db } = b;
    if (a.frozen || b.frozen) return false;
    if (da === null || db === null || !a.powered || !b.powered || this.#cut.has(pair(a, b))) return false;
    if (da.clusterKey === null || da.clusterKey !== db.clusterKey) return false;
    const now = this.cluster.time.now;
    const sides: [Side, Side] = [
      { host: a, daemon: da, up: true, deaf: false, lastArrivalAt: now },
      { host: b, daemon: db, up: true, deaf: false, lastArrivalAt: now },
    ];
    this.#connections.set(pair(a, b), { sides, broken: false });
    da.core?.peerConnected(b.node, b.kernel.incarnation);
    db.core?.peerConnected(a.node, a.kernel.incarnation);
    return true;
  }

  private break(connection: Connection, minMs: number, maxMs: number): void {
    if (connection.broken) return;
    connection.broken = true;
    const { time, random } = this.cluster;
    let told = 0;
    connection.sides.forEach((side, i) => {
      const other = connection.sides[1 - i] as Side;
      const delay = side.daemon.alive ? random.int(minMs, maxMs) : 0;
      const noticed = side.host.frozen ? side.host.frozenUntil - time.now : 0;
      time.at(Math.max(delay, noticed), () => {
        side.up = false;
        if (side.daemon.alive) side.daemon.core?.peerLost(other.host.node);
        if (++told < 2) return;
        this.#connections.delete(pair(side.host, other.host));
        this.dialAll(side.host);
        this.dialAll(other.host);
      });
    });
  }

  send(host: Host, node: number, message: ClusterMessage): void {
    this.post(host, node, (to) => {
      if (this.cluster.verbose > 1 && !message.kind.startsWith("LEASE")) {
        this.cluster.story(
          `${host.name} -> ${to.host.name} ${message.kind} ${"epoch" in message ? message.epoch : ""}`,
        );
      }
      to.daemon.core?.message(host.node, message);
    });
  }

  /** A frame: arrives behind all that was sent before on the same connection. */
  post(host: Host, node: number, deliver: (to: Side) => void, random = this.cluster.random): void {
    const other = this.cluster.hostOf(node);
    const connection = other === undefined ? undefined : this.#connections.get(pair(host, other));
    const to = connection?.sides.find((side) => side.host === other);
    if (connection === undefined || to === undefined || connection.broken || to.deaf) return;
    const { time } = this.cluster;
    const slow = random.chance(0.01) ? random.int(0, 1500) : 0;
    const arrival = Math.max(to.lastArrivalAt, time.now + random.int(1, 15) + slow);
    to.lastArrivalAt = arrival;
    const arrive = (): void => {
      if (to.host.frozen && !connection.broken) {
        time.at(to.host.frozenUntil - time.now, arrive);
        return;
      }
      if (connection.broken || to.deaf || !to.daemon.alive) return;
      deliver(to);
    };
    time.at(arrival - time.now, arrive);
  }
}

function pair(a: Host, b: Host): string {
  return a.index < b.index ? `${a.index}-${b.index}` : `${b.index}-${a.index}`;
}
