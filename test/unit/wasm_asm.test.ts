// SPDX-License-Identifier: GPL-2.0-only
/** Proves that what the assembler writes is what WebAssembly does, against the same in JavaScript. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { createSharedMemory, runOn } from "../../src/dlm/memory.js";
import {
  atomicCompareExchange32,
  atomicExchange32,
  atomicLoad32,
  atomicNotify,
  type Code,
  type Expr,
  extend,
  i32,
  i64,
  load8,
  load16,
  load32,
  load64,
  select,
  signedLeb,
  unsignedLeb,
  type Var,
  WasmModule,
  wrap,
} from "../../src/dlm/wasm_asm.js";
import { Random } from "../support/random.js";

type Two = (a: number, b: number) => number;
type Wide = (a: bigint, b: bigint) => bigint;

function module(): { memory: ReturnType<typeof createSharedMemory>; words: Int32Array } {
  const memory = createSharedMemory(1, 2);
  return { memory, words: new Int32Array(memory.buffer) };
}

function two(write: (code: Code, a: Var<"i32">, b: Var<"i32">) => void, memory = module().memory): Two {
  const program = new WasmModule();
  program.func("f", ["i32", "i32"], "i32", (code, [a, b]) => write(code, a, b));
  return (runOn(memory, program.encode()) as { f: Two }).f;
}

test("LEB128 numbers are those of the specification", () => {
  assert.equal(unsignedLeb(0), [0]);
  assert.equal(unsignedLeb(127), [0x7f]);
  assert.equal(unsignedLeb(624_485), [0xe5, 0x8e, 0x26]);
  assert.equal(unsignedLeb(0xffff_ffff), [0xff, 0xff, 0xff, 0xff, 0x0f]);
  assert.equal(signedLeb(-123_456n), [0xc0, 0xbb, 0x78]);
  assert.equal(signedLeb(64n), [0xc0, 0x00]);
  assert.equal(signedLeb(-64n), [0x40]);
  assert.throws(() => unsignedLeb(-1), RangeError);
  assert.throws(() => unsignedLeb(2 ** 32), RangeError);
});

test("every 32-bit operation gives what JavaScript gives", () => {
  const truth = (is: boolean): number => (is ? 1 : 0);
  const cases: [string, (a: Expr<"i32">, b: Expr<"i32">) => Expr<"i32">, Two][] = [
    ["add", (a, b) => a.add(b), (a, b) => (a + b) | 0],
    ["sub", (a, b) => a.sub(b), (a, b) => (a - b) | 0],
    ["mul", (a, b) => a.mul(b), Math.imul],
    ["and", (a, b) => a.and(b), (a, b) => a & b],
    ["or", (a, b) => a.or(b), (a, b) => a | b],
    ["xor", (a, b) => a.xor(b), (a, b) => a ^ b],
    ["shl", (a, b) => a.shl(b), (a, b) => a << b],
    ["shr", (a, b) => a.shr(b), (a, b) => (a >>> b) | 0],
    ["eq", (a, b) => a.eq(b), (a, b) => truth(a === b)],
    ["ne", (a, b) => a.ne(b), (a, b) => truth(a !== b)],
    ["lt", (a, b) => a.lt(b), (a, b) => truth(a >>> 0 < b >>> 0)],
    ["gt", (a, b) => a.gt(b), (a, b) => truth(a >>> 0 > b >>> 0)],
    ["ge", (a, b) => a.ge(b), (a, b) => truth(a >>> 0 >= b >>> 0)],
    ["rem", (a, b) => a.rem(b), (a, b) => ((a >>> 0) % (b >>> 0)) | 0],
    ["isZero", (a) => a.isZero(), (a) => truth(a === 0)],
    ["select", (a, b) => select(a, b, a.lt(b)), (a, b) => (a >>> 0 < b >>> 0 ? a : b)],
    ["wrap and extend", (a, b) => wrap(extend(a).add(extend(b))), (a, b) => (a + b) | 0],
  ];
  const random = new Random(7);
  const values = [0, 1, -1, 2 ** 31 - 1, -(2 ** 31), 127, 128, -64, -65];
  for (let count = 0; count < 20; count++) values.push(random.below(2 ** 31) | 0);
  for (const [name, write, expected] of cases) {
    const f = two((code, a, b) => code.ret(write(a, b)));
    const constant = (a: number, b: number): number => two((code) => code.ret(write(i32(a), i32(b))))(0, 0);
    for (const a of values) {
      for (const b of values) {
        if (name === "rem" && b === 0) {
          assert.throws(() => f(a, b));
          continue;
        }
        assert.is(f(a, b), expected(a, b), `${name} of ${a} and ${b}`);
      }
      assert.is(constant(a, 5), expected(a, 5), `${name} of the constants ${a} and 5`);
    }
  }
});

test("64-bit operations are those of BigInt.asIntN", () => {
  const program = new WasmModule();
  const cases: [(a: Expr<"i64">, b: Expr<"i64">) => Expr<"i64">, Wide][] = [
    [(a, b) => a.add(b), (a, b) => a + b],
    [(a, b) => a.mul(b), (a, b) => a * b],
    [(a, b) => a.xor(b).or(i64(1n)), (a, b) => (a ^ b) | 1n],
    [(a, b) => a.and(b).sub(i64(-5n)), (a, b) => (a & b) + 5n],
    [(a) => a.shr(i64(33n)), (a) => BigInt.asUintN(64, a) >> 33n],
    [(a, b) => extend(a.eq(b).or(a.ne(b).shl(i32(1)))), (a, b) => (a === b ? 1n : 2n)],
    [(a, b) => select(a, b, a.isZero()), (a, b) => (a === 0n ? a : b)],
  ];
  cases.forEach(([write], index) => {
    program.func(`f${index}`, ["i64", "i64"], "i64", (code, [a, b]) => code.ret(write(a, b)));
  });
  const exported = runOn(module().memory, program.encode()) as Record<string, Wide>;
  const values = [0n, 1n, -1n, 2n ** 63n - 1n, -(2n ** 63n), 0x1234_5678_9abc_def0n];
  cases.forEach(([, expected], index) => {
    for (const a of values) {
      for (const b of values) {
        assert.is((exported[`f${index}`] as Wide)(a, b), BigInt.asIntN(64, expected(a, b)), `case ${index}`);
      }
    }
  });
});

test("loads and stores of each size, aligned or not, read and write only their own bytes", () => {
  const { memory } = module();
  const bytes = new Uint8Array(memory.buffer);
  const f = two((code, at, value) => {
    code.store32(at, 0, value);
    code.store16(at, 4, value);
    code.store8(at, 6, value);
    code.store64(at, 8, extend(value).shl(i64(8n)));
    const sum = load8(at, 6)
      .add(load16(at, 4))
      .add(load32(at))
      .add(wrap(load64(at, 8).shr(i64(8n))));
    code.ret(sum);
  }, memory);
  assert.is(f(101, 0x0102_0304), 0x04 + 0x0304 + 2 * 0x0102_0304);
  assert.equal([...bytes.subarray(100, 118)], [0, 4, 3, 2, 1, 4, 3, 4, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0]);
  assert.throws(() => f(65_533, 1), /out of bounds/);
});

test("loops, blocks and branches: the greatest common divisor", () => {
  const gcd = two((code, a, b) => {
    code.loop((again) => {
      code.if(b.isZero(), () => code.ret(a));
      const rest = code.let(a.rem(b));
      code.set(a, b);
      code.set(b, rest);
      code.again(again);
    });
  });
  assert.is(gcd(1071, 462), 21);
  assert.is(gcd(17, 0), 17);
  const which = two((code, a, b) => {
    const found = code.let(i32(0));
    code.block((outer) => {
      code.block((inner) => {
        code.leave(inner, a.eq(i32(1)));
        code.if(
          b,
          () => code.leave(outer),
          () => code.set(found, i32(2)),
        );
        code.leave(outer);
      });
      code.set(found, i32(1));
    });
    code.ret(found);
  });
  assert.equal([which(1, 0), which(0, 0), which(0, 9)], [1, 2, 0]);
});

test("atomic instructions and Atomics see each other's words", () => {
  const { memory, words } = module();
  const swap = two((code, to, expected) => {
    const before = code.let(atomicCompareExchange32(i32(8), expected, to));
    code.if(before.ne(expected), () => code.atomicStore32(i32(8), 4, atomicLoad32(i32(8))));
    code.run(atomicExchange32(i32(16), before));
    code.ret(atomicNotify(i32(8), i32(1)));
  }, memory);
  Atomics.store(words, 2, 5);
  assert.is(swap(7, 5), 0);
  assert.is(Atomics.load(words, 2), 7);
  assert.is(words[3], 0);
  swap(1, 6);
  assert.equal([words[2], words[3], words[4]], [7, 7, 7]);
  const waiting = Atomics.waitAsync(words, 2, 7);
  assert.ok(waiting.async);
  assert.is(swap(9, 7), 1, "one was woken");
});

test("a jump to a block that is over is refused when it is written", () => {
  assert.throws(
    () =>
      two((code) => {
        let label = null as Parameters<typeof code.leave>[0] | null;
        code.block((inner) => {
          label = inner;
        });
        if (label !== null) code.leave(label);
      }),
    /block is over/,
  );
});

test.run();
