// SPDX-License-Identifier: GPL-2.0-only
/**
 * A small assembler for WebAssembly: programs are written as TypeScript that builds them, and become the bytes of a
 * module (https://webassembly.github.io/spec/core/binary/, threads proposal for the atomic instructions).
 *
 *   const module = new WasmModule();
 *   module.func("double", ["i32"], "i32", (code, [n]) => code.ret(n.mul(i32(2))));
 *   const bytes = module.encode();
 *
 * Protocol: an `Expr` is *code* that leaves one value, not the value: used twice it runs twice. `code.let` runs it
 * once, now, and gives a local variable, which may be read as often as one likes. A TypeScript function that takes
 * the `Code` and emits into it is a macro: it costs no call. Operands run from left to right.
 * Types are checked by the TypeScript compiler (Expr<"i32"> and Expr<"i64">), the rest by the engine's validation.
 *
 * One module has one imported, shared memory ("env" "memory"); addresses are bytes.
 * Known weakness: only the instructions that lock_path.ts needs; no floats, no calls between functions, no tables.
 */

export type WasmType = "i32" | "i64";

const TYPE_CODE = { i32: 0x7f, i64: 0x7e } as const;
const NO_RESULT = 0x40;

const OP = {
  block: 0x02,
  loop: 0x03,
  if: 0x04,
  else: 0x05,
  end: 0x0b,
  br: 0x0c,
  br_if: 0x0d,
  return: 0x0f,
  drop: 0x1a,
  select: 0x1b,
  local_get: 0x20,
  local_set: 0x21,
  i32_wrap_i64: 0xa7,
  i64_extend_i32_u: 0xad,
  atomic: 0xfe,
} as const;

/** Behind OP.atomic. */
const ATOMIC = { notify: 0x00, i32_load: 0x10, i32_store: 0x17, i32_xchg: 0x41, i32_cmpxchg: 0x48 } as const;

const CONST = { i32: 0x41, i64: 0x42 } as const;
const EQZ = { i32: 0x45, i64: 0x50 } as const;

/** Two operands of one type, a result of that type. */
const BINARY = {
  i32: {
    add: 0x6a,
    sub: 0x6b,
    mul: 0x6c,
    rem_u: 0x70,
    and: 0x71,
    or: 0x72,
    xor: 0x73,
    shl: 0x74,
    shr_u: 0x76,
  },
  i64: {
    add: 0x7c,
    sub: 0x7d,
    mul: 0x7e,
    rem_u: 0x82,
    and: 0x83,
    or: 0x84,
    xor: 0x85,
    shl: 0x86,
    shr_u: 0x88,
  },
} as const;
/** Two operands of one type, an i32 result. */
const COMPARE = {
  i32: { eq: 0x46, ne: 0x47, lt_u: 0x49, gt_u: 0x4b, ge_u: 0x4f },
  i64: { eq: 0x51, ne: 0x52, lt_u: 0x54, gt_u: 0x56, ge_u: 0x5a },
} as const;

/** Opcode and the logarithm of the alignment: plain accesses claim none, atomic ones must be aligned. */
const LOAD = { i32: 0x28, i64: 0x29, u8: 0x2d, u16: 0x2f } as const;
const STORE = { i32: 0x36, i64: 0x37, u8: 0x3a, u16: 0x3b } as const;
const ALIGN_32 = 2;

/** Unsigned LEB128. @throws RangeError */
export function unsignedLeb(value: number): number[] {
  if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff) {
    throw new RangeError(`wasm: ${value}: expected an unsigned 32-bit integer`);
  }
  const bytes: number[] = [];
  let rest = value;
  for (;;) {
    const low = rest % 128;
    rest = Math.floor(rest / 128);
    if (rest === 0) return [...bytes, low];
    bytes.push(low | 0x80);
  }
}

/** Signed LEB128 of 32 bits: the usual case, without a bigint. */
function signedLeb32(value: number): number[] {
  const bytes: number[] = [];
  for (let rest = value | 0; ; rest >>= 7) {
    const low = rest & 0x7f;
    if (rest >> 6 === 0 || rest >> 6 === -1) return [...bytes, low];
    bytes.push(low | 0x80);
  }
}

/** Signed LEB128 of at most 64 bits. */
export function signedLeb(value: bigint): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (;;) {
    const low = Number(rest & 0x7fn);
    rest >>= 7n;
    if ((rest === 0n && (low & 0x40) === 0) || (rest === -1n && (low & 0x40) !== 0)) return [...bytes, low];
    bytes.push(low | 0x80);
  }
}

function sized(bytes: readonly number[]): number[] {
  return [...unsignedLeb(bytes.length), ...bytes];
}

function text(name: string): number[] {
  return sized([...new TextEncoder().encode(name)]);
}

/** Code that leaves one value of type `T`. */
export class Expr<T extends WasmType> {
  constructor(
    readonly type: T,
    readonly code: readonly number[],
  ) {}

  #binary(op: keyof (typeof BINARY)["i32"], other: Expr<T>): Expr<T> {
    return new Expr(this.type, [...this.code, ...other.code, BINARY[this.type][op]]);
  }
  #compare(op: keyof (typeof COMPARE)["i32"], other: Expr<T>): Expr<"i32"> {
    return new Expr("i32", [...this.code, ...other.code, COMPARE[this.type][op]]);
  }

  add(other: Expr<T>): Expr<T> {
    return this.#binary("add", other);
  }
  sub(other: Expr<T>): Expr<T> {
    return this.#binary("sub", other);
  }
  mul(other: Expr<T>): Expr<T> {
    return this.#binary("mul", other);
  }
  /** Unsigned remainder; traps for 0. */
  rem(other: Expr<T>): Expr<T> {
    return this.#binary("rem_u", other);
  }
  and(other: Expr<T>): Expr<T> {
    return this.#binary("and", other);
  }
  or(other: Expr<T>): Expr<T> {
    return this.#binary("or", other);
  }
  xor(other: Expr<T>): Expr<T> {
    return this.#binary("xor", other);
  }
  shl(other: Expr<T>): Expr<T> {
    return this.#binary("shl", other);
  }
  /** Logical shift. */
  shr(other: Expr<T>): Expr<T> {
    return this.#binary("shr_u", other);
  }

  eq(other: Expr<T>): Expr<"i32"> {
    return this.#compare("eq", other);
  }
  ne(other: Expr<T>): Expr<"i32"> {
    return this.#compare("ne", other);
  }
  /** Unsigned, as are the next two. */
  lt(other: Expr<T>): Expr<"i32"> {
    return this.#compare("lt_u", other);
  }
  gt(other: Expr<T>): Expr<"i32"> {
    return this.#compare("gt_u", other);
  }
  ge(other: Expr<T>): Expr<"i32"> {
    return this.#compare("ge_u", other);
  }
  isZero(): Expr<"i32"> {
    return new Expr("i32", [...this.code, EQZ[this.type]]);
  }
}

/** A local variable or parameter. */
export class Var<T extends WasmType> extends Expr<T> {
  constructor(
    type: T,
    readonly index: number,
  ) {
    super(type, [OP.local_get, ...unsignedLeb(index)]);
  }
}

/** Any 32-bit pattern, signed or not. */
export function i32(value: number): Expr<"i32"> {
  return new Expr("i32", [CONST.i32, ...signedLeb32(value)]);
}

export function i64(value: bigint): Expr<"i64"> {
  return new Expr("i64", [CONST.i64, ...signedLeb(BigInt.asIntN(64, value))]);
}

/** The low half. */
export function wrap(value: Expr<"i64">): Expr<"i32"> {
  return new Expr("i32", [...value.code, OP.i32_wrap_i64]);
}

/** With zeros above. */
export function extend(value: Expr<"i32">): Expr<"i64"> {
  return new Expr("i64", [...value.code, OP.i64_extend_i32_u]);
}

/** `yes` if the condition is not 0, else `no`; both run. */
export function select<T extends WasmType>(yes: Expr<T>, no: Expr<T>, condition: Expr<"i32">): Expr<T> {
  return new Expr(yes.type, [...yes.code, ...no.code, ...condition.code, OP.select]);
}

function access(opcode: number, align: number, offset: number): number[] {
  return [opcode, align, ...unsignedLeb(offset)];
}

/** What lies at address + offset (bytes). */
export function load32(address: Expr<"i32">, offset = 0): Expr<"i32"> {
  return new Expr("i32", [...address.code, ...access(LOAD.i32, 0, offset)]);
}
export function load64(address: Expr<"i32">, offset = 0): Expr<"i64"> {
  return new Expr("i64", [...address.code, ...access(LOAD.i64, 0, offset)]);
}
export function load8(address: Expr<"i32">, offset = 0): Expr<"i32"> {
  return new Expr("i32", [...address.code, ...access(LOAD.u8, 0, offset)]);
}
export function load16(address: Expr<"i32">, offset = 0): Expr<"i32"> {
  return new Expr("i32", [...address.code, ...access(LOAD.u16, 0, offset)]);
}

/** Sequentially consistent, as Atomics.load of the aligned word. */
export function atomicLoad32(address: Expr<"i32">, offset = 0): Expr<"i32"> {
  return new Expr("i32", [...address.code, OP.atomic, ...access(ATOMIC.i32_load, ALIGN_32, offset)]);
}
/** As Atomics.exchange. */
export function atomicExchange32(address: Expr<"i32">, value: Expr<"i32">): Expr<"i32"> {
  return new Expr("i32", [
    ...address.code,
    ...value.code,
    OP.atomic,
    ...access(ATOMIC.i32_xchg, ALIGN_32, 0),
  ]);
}
/** As Atomics.compareExchange. */
export function atomicCompareExchange32(
  address: Expr<"i32">,
  expected: Expr<"i32">,
  value: Expr<"i32">,
): Expr<"i32"> {
  const operands = [...address.code, ...expected.code, ...value.code];
  return new Expr("i32", [...operands, OP.atomic, ...access(ATOMIC.i32_cmpxchg, ALIGN_32, 0)]);
}
/** As Atomics.notify. */
export function atomicNotify(address: Expr<"i32">, count: Expr<"i32">): Expr<"i32"> {
  return new Expr("i32", [...address.code, ...count.code, OP.atomic, ...access(ATOMIC.notify, ALIGN_32, 0)]);
}

/** A place that `Code.leave` or `Code.again` jumps to. */
export class Label {
  constructor(readonly depth: number) {}
}

/** The body of a function, written from top to bottom. */
export class Code {
  readonly #bytes: number[] = [];
  readonly #locals: WasmType[] = [];
  readonly #parameterCount: number;
  #depth = 0;

  constructor(parameterCount: number) {
    this.#parameterCount = parameterCount;
  }

  /** A new variable with this value. */
  let<T extends WasmType>(value: Expr<T>): Var<T> {
    const variable = new Var(value.type, this.#parameterCount + this.#locals.length);
    this.#locals.push(value.type);
    this.set(variable, value);
    return variable;
  }

  set<T extends WasmType>(variable: Var<T>, value: Expr<T>): void {
    this.#bytes.push(...value.code, OP.local_set, ...unsignedLeb(variable.index));
  }

  store32(address: Expr<"i32">, offset: number, value: Expr<"i32">): void {
    this.#store(STORE.i32, address, offset, value);
  }
  store64(address: Expr<"i32">, offset: number, value: Expr<"i64">): void {
    this.#store(STORE.i64, address, offset, value);
  }
  store8(address: Expr<"i32">, offset: number, value: Expr<"i32">): void {
    this.#store(STORE.u8, address, offset, value);
  }
  store16(address: Expr<"i32">, offset: number, value: Expr<"i32">): void {
    this.#store(STORE.u16, address, offset, value);
  }
  #store(opcode: number, address: Expr<"i32">, offset: number, value: Expr<WasmType>): void {
    this.#bytes.push(...address.code, ...value.code, ...access(opcode, 0, offset));
  }
  /** As Atomics.store. */
  atomicStore32(address: Expr<"i32">, offset: number, value: Expr<"i32">): void {
    const at = access(ATOMIC.i32_store, ALIGN_32, offset);
    this.#bytes.push(...address.code, ...value.code, OP.atomic, ...at);
  }

  /** Runs it for what it does besides its value. */
  run(value: Expr<WasmType>): void {
    this.#bytes.push(...value.code, OP.drop);
  }

  if(condition: Expr<"i32">, yes: () => void, no?: () => void): void {
    this.#bytes.push(...condition.code, OP.if, NO_RESULT);
    this.#depth++;
    yes();
    if (no !== undefined) {
      this.#bytes.push(OP.else);
      no();
    }
    this.#depth--;
    this.#bytes.push(OP.end);
  }

  /** Runs `body` once; `leave` of its label goes behind it. */
  block(body: (label: Label) => void): void {
    this.#nested(OP.block, body);
  }

  /** Runs `body` once, and again with every `again` of its label. */
  loop(body: (label: Label) => void): void {
    this.#nested(OP.loop, body);
  }

  #nested(opcode: number, body: (label: Label) => void): void {
    this.#bytes.push(opcode, NO_RESULT);
    this.#depth++;
    body(new Label(this.#depth));
    this.#depth--;
    this.#bytes.push(OP.end);
  }

  /** To the end of the label's block, if the condition (when given) is not 0. */
  leave(label: Label, condition?: Expr<"i32">): void {
    const up = this.#depth - label.depth;
    if (up < 0) throw new Error("wasm: this label's block is over");
    if (condition !== undefined) this.#bytes.push(...condition.code);
    this.#bytes.push(condition === undefined ? OP.br : OP.br_if, ...unsignedLeb(up));
  }

  /** To the start of the label's loop. */
  again(label: Label, condition?: Expr<"i32">): void {
    this.leave(label, condition);
  }

  ret(value: Expr<WasmType>): void {
    this.#bytes.push(...value.code, OP.return);
  }

  /** For WasmModule. A function that has a result ends with `ret`, which what stands behind it never sees. */
  encode(result: WasmType | null): number[] {
    const locals = this.#locals.map((type) => [1, TYPE_CODE[type]]);
    const tail = result === null ? [] : [CONST[result], 0];
    return sized([...unsignedLeb(locals.length), ...locals.flat(), ...this.#bytes, ...tail, OP.end]);
  }
}

type Parameters<T extends readonly WasmType[]> = { [K in keyof T]: Var<T[K] & WasmType> };

interface Func {
  readonly name: string;
  readonly type: readonly number[];
  readonly body: readonly number[];
}

const SECTION = { type: 1, import: 2, function: 3, export: 7, code: 10 } as const;
const SHARED_WITH_MAXIMUM = 3;
const IMPORT_MEMORY = 2;
const EXPORT_FUNCTION = 0;
const FUNCTION_TYPE = 0x60;
/** Any shared memory has fewer pages: 4 GiB. */
const PAGES_MAX = 65_536;

export class WasmModule {
  readonly #funcs: Func[] = [];

  /** An exported function. */
  func<const T extends readonly WasmType[]>(
    name: string,
    parameters: T,
    result: WasmType | null,
    write: (code: Code, parameters: Parameters<T>) => void,
  ): void {
    const code = new Code(parameters.length);
    const variables = parameters.map((type, index) => new Var(type, index));
    write(code, variables as unknown as Parameters<T>);
    const types = (list: readonly WasmType[]): number[] => sized(list.map((type) => TYPE_CODE[type]));
    this.#funcs.push({
      name,
      type: [FUNCTION_TYPE, ...types(parameters), ...types(result === null ? [] : [result])],
      body: code.encode(result),
    });
  }

  /** The module's bytes. */
  encode(): Uint8Array<ArrayBuffer> {
    const section = (id: number, items: readonly (readonly number[])[]): number[] => [
      id,
      ...sized([...unsignedLeb(items.length), ...items.flat()]),
    ];
    const limits = [SHARED_WITH_MAXIMUM, ...unsignedLeb(1), ...unsignedLeb(PAGES_MAX)];
    const funcs = this.#funcs;
    return Uint8Array.from([
      ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
      ...section(
        SECTION.type,
        funcs.map(({ type }) => type),
      ),
      ...section(SECTION.import, [[...text("env"), ...text("memory"), IMPORT_MEMORY, ...limits]]),
      ...section(
        SECTION.function,
        funcs.map((_, index) => unsignedLeb(index)),
      ),
      ...section(
        SECTION.export,
        funcs.map(({ name }, index) => [...text(name), EXPORT_FUNCTION, ...unsignedLeb(index)]),
      ),
      ...section(
        SECTION.code,
        funcs.map(({ body }) => body),
      ),
    ]);
  }
}
