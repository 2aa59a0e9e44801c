// SPDX-License-Identifier: GPL-2.0-only
//
// What a load (lab/load.c) was promised, kept outside of the guests, and compared with what is found in the end.
//
// Every worker works in order, so one number says it all: `begun`, `acked`, `synced`, each the highest operation of
// which that is true. What must be there at the end:
//   synced                                     always
//   acked                                      unless the node that was told has died since
//   a name acked while the node was a member   even then: it was made at the holder. The node's data is another matter:
//                                              what it has written and not synced dies with it (rule 6)
// and what may be there is what has begun, nothing else. Files that are there are whole; appended records are whole, in
// order, none twice; a number counted up under a lock is given out once.
//
// Weakness: contents of files that a dead node had not synced are compared only when they have their full size.

import { fnv1a32 } from "../src/wire/fnv.js";

const FILE_BYTES_MAX = 8192;
const RECORD_BYTES = 64;
const BLOCK_BYTES = 4096;
const BLOCK_COUNT = 64;

export const WORKERS = ["file", "lazy", "append", "direct", "fcntl", "flock"] as const;
export type WorkerName = (typeof WORKERS)[number];

/** One worker of one start of a load. Numbers are of operations; -1: none. */
export interface Account {
  readonly id: string;
  readonly worker: WorkerName;
  begun: number;
  acked: number;
  synced: number;
  /** Acknowledged while its node was a member, and nothing was about to make it the holder. Counts for names. */
  firm: number;
  readonly removing: Set<number>;
  readonly removed: Set<number>;
  /** The node has lost its memory since. */
  lost: boolean;
}

export interface Failure {
  readonly id: string;
  readonly worker: string;
  readonly number: number;
  readonly what: string;
  readonly errno: string;
}

/** What a line said that counts as progress: an answered operation. */
export type Noted = { readonly worker: WorkerName; readonly answered: boolean } | null;

/** What `mxfs-load dump` printed, and the contents of the files that are read. */
export interface Found {
  readonly names: ReadonlyMap<string, { readonly size: number; readonly hash: string } | "directory">;
  readonly unreadable: readonly string[];
}

export function parseDump(text: string): Found {
  const names = new Map<string, { size: number; hash: string } | "directory">();
  const unreadable: string[] = [];
  for (const line of text.split("\n")) {
    const [kind, path = "", size = "", hash = ""] = line.split(" ");
    if (kind === "d") names.set(path, "directory");
    else if (kind === "f") names.set(path, { size: Number(size), hash });
    else if (line !== "") unreadable.push(line);
  }
  return { names, unreadable };
}

/** The same bytes as bytes_of() of lab/load.c. */
export function contentsOf(id: string, number: number): Uint8Array {
  let state = (fnv1a32(new TextEncoder().encode(id)) + Math.imul(number, 2654435761)) >>> 0;
  const bytes = new Uint8Array(1 + ((state >>> 8) % FILE_BYTES_MAX));
  for (let at = 0; at < bytes.length; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[at] = state >>> 24;
  }
  return bytes;
}

function expectedFile(id: string, number: number): { size: number; hash: string } {
  const bytes = contentsOf(id, number);
  return { size: bytes.length, hash: fnv1a32(bytes).toString(16).padStart(8, "0") };
}

export class Ledger {
  readonly #accounts = new Map<string, Account>();
  readonly failures: Failure[] = [];
  /** Number given out under a lock, and who got it. */
  readonly #counted = new Map<string, string>();
  readonly #problems: string[] = [];
  operations = 0;

  get accounts(): readonly Account[] {
    return [...this.#accounts.values()];
  }

  /** A line of a load. `firm`: its node is a member, and stays one. */
  note(id: string, line: string, firm: boolean): Noted {
    const [name = "", kind = "", text = "", what = "", errno = ""] = line.split(" ");
    const worker = WORKERS.find((known) => known === name);
    const number = Number(text);
    if (worker === undefined || !"basude".includes(kind) || kind === "" || !Number.isInteger(number)) {
      this.#problems.push(`${id}: said "${line}", which no load says`);
      return null;
    }
    const account = this.#account(id, worker);
    switch (kind) {
      case "b":
        account.begun = Math.max(account.begun, number);
        return { worker, answered: false };
      case "u":
        account.removing.add(number);
        return { worker, answered: false };
      case "d":
        account.removed.add(number);
        return { worker, answered: true };
      case "e":
        this.failures.push({ id, worker, number, what, errno });
        return null;
      default:
        account.acked = Math.max(account.acked, number);
        if (firm) account.firm = Math.max(account.firm, number);
        if (kind === "s") account.synced = Math.max(account.synced, number);
        this.operations++;
        if (worker === "fcntl" || worker === "flock") this.#count(worker, number, id);
        return { worker, answered: true };
    }
  }

  /** The node of this load has died, or was thrown out. */
  lost(id: string): void {
    for (const account of this.#accounts.values()) if (account.id === id) account.lost = true;
  }

  /** All nodes at once: what was only acknowledged may be gone. */
  allLost(): void {
    for (const account of this.#accounts.values()) {
      account.lost = true;
      account.firm = -1;
    }
  }

  #account(id: string, worker: WorkerName): Account {
    const key = `${id} ${worker}`;
    const known = this.#accounts.get(key);
    if (known !== undefined) return known;
    const account: Account = {
      id,
      worker,
      begun: -1,
      acked: -1,
      synced: -1,
      firm: -1,
      removing: new Set(),
      removed: new Set(),
      lost: false,
    };
    this.#accounts.set(key, account);
    return account;
  }

  #count(worker: string, number: number, id: string): void {
    const key = `${worker} ${number}`;
    const before = this.#counted.get(key);
    if (before !== undefined) {
      this.#problems.push(
        `${worker}: number ${number} was given to ${before} and to ${id}: two had the lock`,
      );
    }
    this.#counted.set(key, id);
  }

  /** What does not agree with what was promised. `read` gets the contents of a file. */
  async compare(found: Found, read: (path: string) => Promise<Buffer>): Promise<string[]> {
    const problems = [...this.#problems];
    for (const line of found.unreadable) problems.push(`cannot be read: ${line}`);
    const known = new Set<string>(["files", "appended", "count-fcntl", "count-flock"]);
    for (const account of this.#accounts.values()) {
      if (account.worker === "file") this.#compareFiles(account, found, known, problems);
      if (account.worker === "lazy") this.#compareLazy(account, found, known, problems);
      if (account.worker === "direct") await this.#compareDirect(account, found, known, read, problems);
    }
    for (const path of found.names.keys()) {
      if (!known.has(path)) problems.push(`${path}: nobody has made it, or it was removed`);
    }
    await this.#compareAppended(found, read, problems);
    for (const worker of ["fcntl", "flock"] as const) await this.#compareCount(worker, found, read, problems);
    return problems;
  }

  /** The last operation that must be there. A member's names are at the holder when it is answered, its data may not be. */
  #must(account: Account): number {
    if (!account.lost) return account.acked;
    return account.worker === "lazy" ? Math.max(account.synced, account.firm) : account.synced;
  }

  #compareFiles(account: Account, found: Found, known: Set<string>, problems: string[]): void {
    const { id } = account;
    for (let n = 0; n <= account.begun; n++) {
      const path = `files/${id}-${n}`;
      const safe = n <= account.synced;
      if (!safe) known.add(`${path}.tmp`);
      if (account.removed.has(n)) continue;
      known.add(path);
      const there = found.names.get(path);
      if (there === undefined) {
        if (safe && !account.removing.has(n)) problems.push(`${path}: synced, and not there`);
        continue;
      }
      const expected = expectedFile(id, n);
      if (there === "directory" || there.size !== expected.size || there.hash !== expected.hash) {
        problems.push(`${path}: torn: expected ${describe(expected)}, found ${describe(there)}`);
      }
    }
  }

  #compareLazy(account: Account, found: Found, known: Set<string>, problems: string[]): void {
    const { id, begun } = account;
    const directory = `lazy-${id}`;
    known.add(directory);
    const must = this.#must(account);
    let gap: string | null = null;
    for (let n = 0; n <= begun; n++) {
      const path = `${directory}/${n}`;
      known.add(path);
      if (n > must) known.add(`${path}.new`);
      const there = found.names.get(path);
      if (there === undefined) {
        if (n <= must) problems.push(`${path}: acknowledged, and not there`);
        gap ??= path;
        continue;
      }
      if (gap !== null) problems.push(`${path} is there, and ${gap}, which was made before it, is not`);
      const expected = expectedFile(id, n);
      const short = there !== "directory" && account.lost && there.size < expected.size;
      if (!short && (there === "directory" || there.size !== expected.size || there.hash !== expected.hash)) {
        problems.push(`${path}: torn: expected ${describe(expected)}, found ${describe(there)}`);
      }
    }
  }

  async #compareDirect(
    account: Account,
    found: Found,
    known: Set<string>,
    read: (path: string) => Promise<Buffer>,
    problems: string[],
  ): Promise<void> {
    const { id, begun, synced } = account;
    const path = `direct-${id}`;
    known.add(path);
    const there = found.names.get(path);
    if (there === undefined || there === "directory") {
      if (synced >= 0) problems.push(`${path}: synced, and not there`);
      return;
    }
    const data = await read(path);
    for (let block = 0; block < BLOCK_COUNT; block++) {
      const must = synced - ((((synced - block) % BLOCK_COUNT) + BLOCK_COUNT) % BLOCK_COUNT);
      const bytes = data.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
      const blank = bytes.every((byte) => byte === 0);
      if (blank) {
        if (must >= 0) problems.push(`${path}: block ${block}: number ${must} was synced, found nothing`);
        continue;
      }
      const records = bytes.toString("latin1").match(/.{1,63}\n?/gs) ?? [];
      const match = /^(\S+) (\d+) \.*\n$/.exec(records[0] ?? "");
      const number = Number(match?.[2]);
      const whole = bytes.length === BLOCK_BYTES && records.every((record) => record === records[0]);
      if (match === null || match[1] !== id || !whole) {
        problems.push(`${path}: block ${block}: torn, or not its own: ${JSON.stringify(records[0])}`);
      } else if (number < must || number > begun || number % BLOCK_COUNT !== block) {
        problems.push(`${path}: block ${block}: expected number ${must} to ${begun}, found ${number}`);
      }
    }
  }

  async #compareAppended(
    found: Found,
    read: (path: string) => Promise<Buffer>,
    problems: string[],
  ): Promise<void> {
    const accounts = [...this.#accounts.values()].filter((it) => it.worker === "append");
    const data = found.names.has("appended") ? await read("appended") : Buffer.alloc(0);
    const next = new Map<string, number>(accounts.map((it) => [it.id, 0]));
    if (data.length % RECORD_BYTES !== 0) problems.push(`appended: ${data.length} bytes: its end is torn`);
    for (let at = 0; at + RECORD_BYTES <= data.length; at += RECORD_BYTES) {
      const record = data.toString("latin1", at, at + RECORD_BYTES);
      const match = /^(\S+) (\d+) \.*\n$/.exec(record);
      const expected = match === null ? undefined : next.get(match[1] ?? "");
      if (match === null || expected === undefined) {
        problems.push(`appended: record at ${at} is torn, or nobody's: ${JSON.stringify(record)}`);
        continue;
      }
      if (Number(match[2]) !== expected) {
        problems.push(`appended: at ${at}: ${match[1]} ${match[2]}, expected its number ${expected}`);
      }
      next.set(match[1] ?? "", Number(match[2]) + 1);
    }
    for (const account of accounts) {
      const last = (next.get(account.id) ?? 0) - 1;
      const must = this.#must(account);
      if (last < must || last > account.begun) {
        problems.push(
          `appended: records of ${account.id} end with ${last}, expected ${must} to ${account.begun}`,
        );
      }
    }
  }

  async #compareCount(
    worker: WorkerName,
    found: Found,
    read: (path: string) => Promise<Buffer>,
    problems: string[],
  ): Promise<void> {
    const accounts = [...this.#accounts.values()].filter((it) => it.worker === worker);
    const must = Math.max(0, ...accounts.map((it) => it.synced));
    const may = Math.max(0, ...accounts.map((it) => it.begun));
    const path = `count-${worker}`;
    const value = found.names.has(path) ? Number((await read(path)).toString("latin1")) : 0;
    if (!(value >= must && value <= may)) problems.push(`${path}: is ${value}, expected ${must} to ${may}`);
  }
}

function describe(file: { size: number; hash: string } | "directory"): string {
  return file === "directory" ? "a directory" : `${file.size} bytes, sum ${file.hash}`;
}
