// SPDX-License-Identifier: GPL-2.0-only
//
// What sealing the connections between daemons costs: `node dist/perf/dlm/encrypt.js [--rounds 7] [--seconds 1]`.
//
// Two daemons' peer workers (server.ts), one of them sealed; this process is the other node, with the daemon's own
// network code. Lock and unlock pairs, one frame each, over loopback, with 1 and 64 requests outstanding; in turns,
// medians, and ratios sealed / plain. Both ends seal and open, so the ratio is that of two real daemons.
//
// Weakness: both ends share the processors of one host, and loopback has no latency that would hide the cost.

import { type ChildProcess, spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import yargs from "yargs";
import { hideBin } from "yargs/helpers";
import { hashResource } from "../../src/dlm/resource.js";
import { masterOf } from "../../src/dlm/view.js";
import { LockMode, MXFS_RES_INODE, WireType } from "../../src/wire/abi.js";
import { decodeLockEntry, encodeLockEntries, type LockEntry } from "../../src/wire/lock_entry.js";
import { PeerNetwork } from "../../src/workers/peer_net.js";

const HERE = dirname(fileURLToPath(import.meta.url));
const KEY = "07".repeat(32);
const VOLUME = 77n;
/** Nobody is silent here for so long; in milliseconds. */
const SILENCE_MS = 60_000;
const SELF = 1;
const SERVER = 2;
const DEPTHS = [1, 64] as const;

const argv = await yargs(hideBin(process.argv))
  .option("rounds", { type: "number", default: 7 })
  .option("seconds", { type: "number", default: 1 })
  .strict()
  .parseAsync();

interface Figures {
  readonly pairsPerSecond: number;
  readonly p50Us: number;
}

class Client {
  readonly #net: PeerNetwork;
  readonly #server: ChildProcess;
  #onGrant: (entry: LockEntry) => void = () => undefined;
  #up: () => void = () => undefined;

  constructor(readonly encrypt: boolean) {
    this.#net = new PeerNetwork(
      {
        self: SELF,
        incarnation: 1,
        volume: VOLUME,
        port: 0,
        iface: null,
        encrypt,
        silenceMs: SILENCE_MS,
        fsops: null,
      },
      {
        up: () => this.#up(),
        lost: (_node, reason) => {
          throw new Error(reason);
        },
        frame: (_node, frame) => {
          for (let at = 0; at < frame.body.length; at += 64) this.#onGrant(decodeLockEntry(frame.body, at));
        },
        log: (level, text) => process.stderr.write(`${level} ${text}\n`),
      },
    );
    this.#net.key = new Uint8Array(Buffer.from(KEY, "hex"));
    const args = [join(HERE, "server.js"), KEY, ...(encrypt ? ["encrypt"] : [])];
    this.#server = spawn(process.execPath, args, { stdio: ["pipe", "pipe", "inherit"] });
  }

  async start(): Promise<void> {
    const up = new Promise<void>((resolve) => {
      this.#up = resolve;
    });
    for await (const line of createInterface({ input: this.#server.stdout as NodeJS.ReadableStream })) {
      const port = /^port (\d+)$/.exec(line)?.[1];
      if (port !== undefined) {
        this.#net.connect(SERVER, "127.0.0.1", Number(port));
        break;
      }
    }
    await up;
    if (this.#net.peers()[0]?.sealed !== this.encrypt)
      throw new Error("the connection is not as it should be");
  }

  end(): void {
    this.#server.stdin?.end();
    this.#server.kill();
  }

  #send(type: typeof WireType.LOCK_REQUEST | typeof WireType.LOCK_RELEASE, entry: LockEntry): void {
    this.#net.send(SERVER, type, 1n, encodeLockEntries([entry]));
  }

  async run(depth: number, seconds: number, inos: readonly bigint[]): Promise<Figures> {
    const times: number[] = [];
    const sentAt = new Map<bigint, number>();
    let lockId = BigInt(Math.floor(performance.now() * 1000)) << 16n;
    let outstanding = 0;
    const startedAt = performance.now();
    const endAt = startedAt + seconds * 1000;
    await new Promise<void>((resolve) => {
      const request = (slot: bigint): void => {
        lockId++;
        sentAt.set(lockId, performance.now());
        outstanding++;
        this.#send(WireType.LOCK_REQUEST, {
          volume: VOLUME,
          ino: slot,
          offset: 0n,
          ag: 0,
          type: MXFS_RES_INODE,
          lockId,
          epoch: 1n,
          seq: 1,
          mode: LockMode.EX,
          granted: LockMode.NL,
          flags: 0,
          node: SELF,
          status: 0,
        });
      };
      this.#onGrant = (entry) => {
        const now = performance.now();
        times.push(now - (sentAt.get(entry.lockId) ?? now));
        sentAt.delete(entry.lockId);
        outstanding--;
        this.#send(WireType.LOCK_RELEASE, { ...entry, mode: LockMode.NL, granted: LockMode.EX });
        if (now < endAt) request(entry.ino);
        else if (outstanding === 0) resolve();
      };
      for (let i = 0; i < depth; i++) request(inos[i] as bigint);
    });
    const elapsed = (performance.now() - startedAt) / 1000;
    times.sort((a, b) => a - b);
    return { pairsPerSecond: times.length / elapsed, p50Us: 1000 * (times[times.length >> 1] as number) };
  }
}

/** Inodes whose locks the server decides. */
function mastered(count: number): bigint[] {
  const found: bigint[] = [];
  for (let ino = 1n; found.length < count; ino++) {
    const hash = hashResource({ volume: VOLUME, ino, offset: 0n, ag: 0, type: MXFS_RES_INODE });
    if (masterOf([SELF, SERVER], hash) === SERVER) found.push(ino);
  }
  return found;
}

const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] as number;

const plain = new Client(false);
const sealed = new Client(true);
try {
  await Promise.all([plain.start(), sealed.start()]);
  const inos = mastered(64);
  for (const client of [plain, sealed]) await client.run(64, 0.5, inos);
  for (const depth of DEPTHS) {
    const found = new Map<Client, Figures[]>([
      [plain, []],
      [sealed, []],
    ]);
    for (let round = 0; round < argv.rounds; round++) {
      for (const client of round % 2 === 0 ? [plain, sealed] : [sealed, plain]) {
        found.get(client)?.push(await client.run(depth, argv.seconds, inos));
      }
    }
    const of = (client: Client, field: keyof Figures): number =>
      median((found.get(client) ?? []).map((figures) => figures[field]));
    const rate = of(sealed, "pairsPerSecond") / of(plain, "pairsPerSecond");
    const p50 = of(sealed, "p50Us") / of(plain, "p50Us");
    process.stdout.write(
      `depth ${depth}: plain ${Math.round(of(plain, "pairsPerSecond"))} pairs/s p50 ${of(plain, "p50Us").toFixed(1)} us, ` +
        `sealed ${Math.round(of(sealed, "pairsPerSecond"))} pairs/s p50 ${of(sealed, "p50Us").toFixed(1)} us: ` +
        `throughput ${rate.toFixed(3)}, p50 ${p50.toFixed(3)}\n`,
    );
  }
} finally {
  plain.end();
  sealed.end();
}
process.exit();
