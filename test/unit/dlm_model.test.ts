// SPDX-License-Identifier: GPL-2.0-only
/**
 * Compares the lock engine with a simple model under random traffic, message by message: the same outcomes in the
 * same order, the same table, and after every step:
 *   1. no two granted locks of one resource are incompatible;
 *   2. whoever waits has been asked for: each granted lock in the way has a BAST that rules its mode out;
 *   3. the first in line waits for a reason;
 *   4. the table's links and counts agree.
 * A failing seed is named in the message; run it alone with MXFS_TEST_SEED=n.
 */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { OUTCOME } from "../../src/dlm/outbox.js";
import { LockMode, MXFS_LKF_CANCEL, MXFS_LKF_CONVERT, MXFS_LKF_NOQUEUE } from "../../src/wire/abi.js";
import type { LockEntry } from "../../src/wire/lock_entry.js";
import { Desk, describeOutcome, entryOf, type ModeName } from "../support/locks.js";
import { Random } from "../support/random.js";

const NODES = [1, 2, 3, 4];
const NAMES: readonly ModeName[] = ["NL", "CR", "CW", "PR", "PW", "EX"];

/** The VMS matrix once more, written independently of src/dlm/modes.ts. */
const FITS: Record<ModeName, readonly ModeName[]> = {
  NL: ["NL", "CR", "CW", "PR", "PW", "EX"],
  CR: ["NL", "CR", "CW", "PR", "PW"],
  CW: ["NL", "CR", "CW"],
  PR: ["NL", "CR", "PR"],
  PW: ["NL", "CR"],
  EX: ["NL"],
};
const fits = (a: ModeName, b: ModeName): boolean => FITS[a].includes(b);
const isDown = (from: ModeName, to: ModeName): boolean => FITS[from].every((mode) => FITS[to].includes(mode));

interface ModelLock {
  readonly node: number;
  readonly id: number;
  queue: "granted" | "convert" | "wait";
  held: ModeName;
  wanted: ModeName;
  seq: number;
  grantedSeq: number;
  /** Modes it was asked to make room for since its owner's last word. */
  told: ModeName[];
}

/** One resource, as a list of locks in the order of their queues' ends. */
class Model {
  locks: ModelLock[] = [];
  said: string[] = [];

  #line(queue: ModelLock["queue"]): ModelLock[] {
    return this.locks.filter((lock) => lock.queue === queue);
  }

  #tell(type: number, lock: ModelLock, mode: ModeName, status = 0): void {
    const fields = {
      node: lock.node,
      lockId: BigInt(lock.id),
      mode: LockMode[mode],
      granted: LockMode[lock.held],
    };
    this.said.push(describeOutcome(type, entryOf({ ...fields, status })));
  }

  #deny(node: number, id: number, mode: ModeName, status: number): void {
    this.said.push(
      describeOutcome(OUTCOME.DENY, entryOf({ node, lockId: BigInt(id), mode: LockMode[mode], status })),
    );
  }

  #possible(lock: ModelLock): boolean {
    return this.locks.every(
      (other) => other === lock || other.queue === "wait" || fits(lock.wanted, other.held),
    );
  }

  #toEnd(lock: ModelLock, queue: ModelLock["queue"]): void {
    this.locks = [...this.locks.filter((other) => other !== lock), lock];
    lock.queue = queue;
  }

  #grant(lock: ModelLock): void {
    lock.held = lock.wanted;
    lock.grantedSeq = lock.seq;
    lock.told = [];
    this.#toEnd(lock, "granted");
    this.#tell(OUTCOME.GRANT, lock, lock.held);
  }

  #settle(): void {
    for (const queue of ["convert", "wait"] as const) {
      for (;;) {
        const first = this.#line(queue)[0];
        if (first === undefined) break;
        if (!this.#possible(first)) {
          this.#ask();
          return;
        }
        this.#grant(first);
      }
    }
    this.#ask();
  }

  #ask(): void {
    const wanted = this.locks.filter((lock) => lock.queue !== "granted").map((lock) => lock.wanted);
    for (const holder of this.#line("granted")) {
      for (const mode of [...NAMES].reverse()) {
        if (!wanted.includes(mode) || fits(mode, holder.held)) continue;
        const stillFine = NAMES.filter((kept) => holder.told.every((told) => fits(told, kept)));
        if (stillFine.every((kept) => fits(mode, kept))) continue;
        holder.told.push(mode);
        this.#tell(OUTCOME.BAST, holder, mode);
      }
    }
  }

  find(node: number, id: number): ModelLock | undefined {
    return this.locks.find((lock) => lock.node === node && lock.id === id);
  }

  request(node: number, id: number, mode: ModeName, seq: number, noqueue: boolean): void {
    const known = this.find(node, id);
    if (known !== undefined) {
      if (known.queue !== "wait" || known.seq !== seq) this.#deny(node, id, mode, 22);
      return;
    }
    const lock: ModelLock = {
      node,
      id,
      queue: "wait",
      held: "NL",
      wanted: mode,
      seq,
      grantedSeq: seq,
      told: [],
    };
    const line = this.locks.filter((other) => other.queue !== "granted");
    const now = this.#possible(lock) && (line.length === 0 || mode === "NL");
    if (!now && noqueue) {
      this.#deny(node, id, mode, 11);
      return;
    }
    this.locks.push(lock);
    if (now) this.#grant(lock);
    else this.#ask();
  }

  convert(node: number, id: number, from: ModeName, mode: ModeName, seq: number, noqueue: boolean): void {
    const lock = this.find(node, id);
    if (lock === undefined) {
      if (!isDown(from, mode)) this.#deny(node, id, mode, 22);
      return;
    }
    if (lock.queue !== "wait" && isDown(lock.held, mode)) {
      lock.held = mode;
      lock.grantedSeq = seq;
      lock.told = [];
      if (lock.queue === "granted") {
        lock.wanted = mode;
        lock.seq = seq;
      }
      this.#settle();
      return;
    }
    if (lock.queue !== "granted") {
      if (lock.seq !== seq || lock.wanted !== mode) this.#deny(node, id, mode, 22);
      return;
    }
    const before = this.#line("convert");
    const trial = { ...lock, wanted: mode };
    const others = this.locks.filter((other) => other !== lock && other.queue !== "wait");
    if (before.length === 0 && others.every((other) => fits(trial.wanted, other.held))) {
      lock.wanted = mode;
      lock.seq = seq;
      this.#grant(lock);
      this.#settle();
      return;
    }
    if (noqueue) {
      this.#deny(node, id, mode, 11);
    } else if (before.some((other) => !fits(other.wanted, lock.held))) {
      this.#deny(node, id, mode, 35);
    } else {
      lock.wanted = mode;
      lock.seq = seq;
      this.#toEnd(lock, "convert");
      this.#ask();
    }
  }

  release(node: number, id: number): void {
    if (this.find(node, id) === undefined) return;
    this.locks = this.locks.filter((lock) => lock.node !== node || lock.id !== id);
    this.#settle();
  }

  cancel(node: number, id: number, seq: number): void {
    const lock = this.find(node, id);
    if (lock === undefined || lock.queue === "granted" || lock.seq !== seq) return;
    this.#deny(node, id, lock.wanted, 125);
    if (lock.queue === "convert") {
      lock.wanted = lock.held;
      lock.seq = lock.grantedSeq;
      this.#toEnd(lock, "granted");
    } else {
      this.locks = this.locks.filter((other) => other !== lock);
    }
    this.#settle();
  }

  purge(node: number): void {
    if (this.locks.every((lock) => lock.node !== node)) return;
    this.locks = this.locks.filter((lock) => lock.node !== node);
    this.#settle();
  }

  table(): string[] {
    return this.locks
      .map(({ node, id, queue, held, wanted }) => {
        const modes = queue === "granted" ? held : queue === "wait" ? wanted : `${held}->${wanted}`;
        return `n${node} #${id} ${queue} ${modes}`;
      })
      .sort();
  }
}

function checkRules(model: Model, what: string): void {
  const holding = model.locks.filter((lock) => lock.queue !== "wait");
  for (const a of holding) {
    for (const b of holding)
      assert.ok(a === b || fits(a.held, b.held), `${what}: ${a.held} beside ${b.held}`);
  }
  const waiting = model.locks.filter((lock) => lock.queue !== "granted");
  for (const waiter of waiting) {
    for (const holder of model.locks.filter((lock) => lock.queue === "granted")) {
      if (fits(waiter.wanted, holder.held)) continue;
      const asked = NAMES.every((mode) =>
        holder.told.every((told) => fits(told, mode)) ? fits(waiter.wanted, mode) : true,
      );
      assert.ok(
        asked,
        `${what}: nobody asked #${holder.id} (${holder.held}) to make room for ${waiter.wanted}`,
      );
    }
  }
  const first =
    model.locks.find((lock) => lock.queue === "convert") ?? model.locks.find((lock) => lock.queue === "wait");
  if (first !== undefined) {
    const blocked = holding.some((other) => other !== first && !fits(first.wanted, other.held));
    assert.ok(blocked, `${what}: #${first.id} waits for nothing`);
  }
}

function run(seed: number, steps: number): number {
  const random = new Random(seed);
  const desk = new Desk(NODES);
  const inos = [desk.ino(0), desk.ino(1)];
  const models = new Map(inos.map((ino) => [ino, new Model()]));
  const favourites = random.pick([NAMES, ["PR", "EX"], ["CR", "PR", "EX"], ["PR", "CW", "NL"]] as const);
  let nextId = 1;
  let outcomes = 0;
  for (let step = 0; step < steps; step++) {
    const ino = random.pick(inos);
    const model = models.get(ino) as Model;
    const lock = model.locks.length > 0 && random.chance(70) ? random.pick(model.locks) : undefined;
    const mode = random.pick(favourites);
    const noqueue = random.chance(20);
    const flags = noqueue ? MXFS_LKF_NOQUEUE : 0;
    const fields: Partial<LockEntry> = { ino, seq: 1 + random.below(3) + step };
    const seq = fields.seq as number;
    if (random.chance(1)) {
      const node = random.pick(NODES);
      for (const each of models.values()) each.purge(node);
      desk.engine.purgeNode(node, desk.out);
      desk.collect();
      // Which resource comes first is the table's own affair.
      const expected = [...models.values()].flatMap((each) => each.said.splice(0));
      assert.equal(desk.said().sort(), expected.sort(), `seed ${seed}, step ${step}: purge`);
      continue;
    }
    if (lock === undefined || model.locks.length < 2) {
      const node = random.pick(NODES);
      const id = nextId++;
      desk.request(node, id, mode, { ...fields, flags });
      model.request(node, id, mode, seq, noqueue);
    } else if (random.chance(40)) {
      desk.release(lock.node, lock.id, fields);
      model.release(lock.node, lock.id);
    } else if (random.chance(60)) {
      const again = random.chance(15) ? { ino, seq: lock.seq } : fields;
      const from = lock.held;
      desk.convert(lock.node, lock.id, from, mode, { ...again, flags: flags | MXFS_LKF_CONVERT });
      model.convert(lock.node, lock.id, from, mode, again.seq as number, noqueue);
    } else if (random.chance(80)) {
      const which = random.chance(80) ? lock.seq : seq;
      desk.cancel(lock.node, lock.id, which, { ino, flags: MXFS_LKF_CANCEL });
      model.cancel(lock.node, lock.id, which);
    } else {
      const which = random.chance(50) ? lock.seq : seq;
      desk.request(lock.node, lock.id, mode, { ino, seq: which });
      model.request(lock.node, lock.id, mode, which, false);
    }
    const what = `seed ${seed}, step ${step}`;
    const said = desk.said();
    outcomes += said.length;
    assert.equal(said, model.said.splice(0), what);
    assert.equal(desk.table(), [...models.values()].flatMap((each) => each.table()).sort(), what);
    checkRules(model, what);
  }
  desk.check();
  return outcomes;
}

test("engine and model say the same under random traffic", () => {
  const only = process.env.MXFS_TEST_SEED;
  if (only !== undefined) {
    run(Number(only), 400);
    return;
  }
  let outcomes = 0;
  for (let seed = 1; seed <= 60; seed++) outcomes += run(seed, 200);
  assert.ok(outcomes > 5000, `only ${outcomes} outcomes: the traffic does not bite`);
});

test.run();
