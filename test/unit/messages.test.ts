// SPDX-License-Identifier: GPL-2.0-only
/** Proves the bodies of frames: what is written is read again, and every field is checked where it comes in. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { MXFS_LOCK_ENTRY_SIZE, WireType } from "../../src/wire/abi.js";
import { formatAddress, parseAddress } from "../../src/wire/address.js";
import { WireError } from "../../src/wire/error.js";
import {
  checkLockEntries,
  decodeLockEntries,
  encodeLockEntries,
  type LockEntry,
  lockClientAt,
} from "../../src/wire/lock_entry.js";
import {
  type ClusterMessage,
  clusterType,
  decodeAuth,
  decodeClusterMessage,
  decodeError,
  decodeFsopPart,
  decodeHello,
  encodeClusterMessage,
  encodeError,
  encodeFsopPart,
  encodeHello,
  isClusterType,
} from "../../src/wire/messages.js";
import { codeOfError } from "../support/code_of.js";
import { Random } from "../support/random.js";

const U64_MAX = 0xffffffffffffffffn;
const member = { node: 7, incarnation: 2, slot: 3, address: "10.1.2.3", port: 7601, role: 2 } as const;
const other = { node: 8, incarnation: 9, slot: 0, address: "fe80::1", port: 1, role: 1 } as const;

/** One of each kind. */
const MESSAGES: readonly ClusterMessage[] = [
  {
    kind: "JOIN",
    incarnation: 4294967295,
    uuid: "0f0e0d0c-0b0a-4908-8706-050403020100",
    address: "::1",
    port: 65535,
    hostname: "node-ä",
    rejoin: true,
    wireVersion: 1,
  },
  { kind: "JOIN_REFUSED", errno: 16, reason: "two hosts with one UUID" },
  { kind: "PREPARE", epoch: U64_MAX, holder: 7, reason: "join", members: [member, other] },
  { kind: "PREPARED", epoch: 0n, seen: 9n, refused: true, unreachable: [8] },
  { kind: "REBUILD", epoch: 9007199254740993n },
  { kind: "REBUILD_SENT", epoch: 3n },
  { kind: "REBUILT", epoch: 3n },
  { kind: "COMMIT", epoch: 3n, resend: false, holder: 1 },
  { kind: "COMMITTED", epoch: 3n },
  { kind: "LEAVE" },
  { kind: "LEFT", epoch: 4n },
  { kind: "GATE_SHUT", reason: "hand-over" },
  { kind: "GATE_IS_SHUT" },
  { kind: "TAKE_OVER", epoch: 4n, members: [member], oldKey: 0xfffffffe00000007n },
  { kind: "TAKEN_OVER" },
  { kind: "LEASE_RENEW", seq: 12n, unreachable: [1, 4294967295] },
  { kind: "LEASE_ACK", seq: 12n },
  { kind: "RESYNC", reason: "" },
];

const textOf = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

const codeOf = codeOfError(WireError, "accepted");

test("every cluster message is read as it was written", () => {
  for (const message of MESSAGES) {
    const type = clusterType(message);
    assert.is(isClusterType(type), true);
    assert.equal(decodeClusterMessage(type, encodeClusterMessage(message)), message);
  }
  const kinds = new Set(MESSAGES.map((message) => message.kind));
  const clusterTypes = Object.values(WireType).filter((type) => isClusterType(type));
  assert.is(kinds.size, clusterTypes.length, "a kind is missing from this test");
  assert.is(clusterTypes.length, 18);
});

test("64-bit numbers travel as decimal strings", () => {
  const body = JSON.parse(textOf(encodeClusterMessage({ kind: "REBUILT", epoch: 9007199254740993n })));
  assert.equal(body, { epoch: "9007199254740993" });
});

test("a message without one of its fields, or with null in it, is refused and the field is named", () => {
  for (const message of MESSAGES) {
    const plain = JSON.parse(textOf(encodeClusterMessage(message))) as Record<string, unknown>;
    for (const field of Object.keys(plain)) {
      const without: Record<string, unknown> = { ...plain };
      delete without[field];
      for (const broken of [without, { ...plain, [field]: null }]) {
        assert.throws(
          () => decodeClusterMessage(clusterType(message), bytesOf(JSON.stringify(broken))),
          (error: unknown) =>
            error instanceof WireError && error.code === "WIRE_FIELD" && error.message.includes(`.${field}`),
          `${message.kind}.${field}`,
        );
      }
    }
  }
});

test("values outside their range are refused", () => {
  const decode = (kind: "COMMIT" | "LEASE_RENEW" | "PREPARE" | "JOIN", body: unknown): string =>
    codeOf(() => decodeClusterMessage(WireType[kind], bytesOf(JSON.stringify(body))));
  const commit = { epoch: "1", resend: true, holder: 1 };
  assert.is(decode("COMMIT", commit), "accepted");
  for (const epoch of [1, "-1", "01", "1.0", "18446744073709551616", "", "0x1", " 1", ["1"]]) {
    assert.is(decode("COMMIT", { ...commit, epoch }), "WIRE_FIELD", String(epoch));
  }
  for (const holder of [-1, 4294967296, 1.5, "1", true]) {
    assert.is(decode("COMMIT", { ...commit, holder }), "WIRE_FIELD", String(holder));
  }
  assert.is(decode("COMMIT", { ...commit, resend: 1 }), "WIRE_FIELD");
  assert.is(decode("LEASE_RENEW", { seq: "1", unreachable: Array(65).fill(1) }), "WIRE_FIELD");
  const prepare = { epoch: "1", holder: 7, reason: "", members: [member] };
  assert.is(decode("PREPARE", prepare), "accepted");
  for (const members of [
    [],
    [member, member],
    [member, { ...other, slot: 3 }],
    [{ ...member, slot: 64 }],
    [{ ...member, port: 0 }],
    [{ ...member, role: 3 }],
    [{ ...member, address: "1.2.3.4.5" }],
    [null],
    "x",
    {},
  ]) {
    assert.is(decode("PREPARE", { ...prepare, members }), "WIRE_FIELD", JSON.stringify(members));
  }
  assert.is(decode("PREPARE", { ...prepare, reason: "a\nb" }), "WIRE_FIELD");
  assert.is(decode("PREPARE", { ...prepare, reason: "x".repeat(256) }), "WIRE_FIELD");
});

test("what is no JSON object, no UTF-8, or no cluster message is refused", () => {
  assert.is(
    codeOf(() => decodeClusterMessage(WireType.LEAVE, bytesOf("{"))),
    "WIRE_JSON",
  );
  assert.is(
    codeOf(() => decodeClusterMessage(WireType.LEAVE, bytesOf(""))),
    "WIRE_JSON",
  );
  for (const text of ["[]", "1", "null", '"x"']) {
    assert.is(
      codeOf(() => decodeClusterMessage(WireType.LEAVE, bytesOf(text))),
      "WIRE_FIELD",
      text,
    );
  }
  assert.is(
    codeOf(() => decodeClusterMessage(WireType.LEAVE, Uint8Array.of(0xff, 0xfe))),
    "WIRE_FIELD",
  );
  assert.is(
    codeOf(() => decodeClusterMessage(WireType.HELLO, bytesOf("{}"))),
    "WIRE_TYPE",
  );
  assert.is(
    codeOf(() => decodeClusterMessage(9999, bytesOf("{}"))),
    "WIRE_TYPE",
  );
});

test("unknown fields, and the fields of every object, do no harm", () => {
  const body = bytesOf('{"epoch":"5","__proto__":{"x":1},"kind":"LEAVE","later":[1]}');
  assert.equal(decodeClusterMessage(WireType.REBUILT, body), { kind: "REBUILT", epoch: 5n });
  assert.is(
    codeOf(() => decodeClusterMessage(WireType.GATE_SHUT, bytesOf('{"__proto__":{"reason":"x"}}'))),
    "WIRE_FIELD",
  );
});

test("a message that the receiver would refuse is not sent", () => {
  const send = (message: ClusterMessage) => () => encodeClusterMessage(message);
  assert.throws(send({ kind: "COMMIT", epoch: -1n, resend: true, holder: 1 }), RangeError);
  assert.throws(send({ kind: "COMMIT", epoch: 1n, resend: true, holder: 2 ** 32 }), RangeError);
  assert.throws(send({ kind: "RESYNC", reason: "a\0b" }), RangeError);
  assert.throws(send({ kind: "PREPARE", epoch: 1n, holder: 1, reason: "", members: [] }), RangeError);
});

test("HELLO, AUTH, ERROR and fsop parts are read as they were written, and not in any other length", () => {
  const hello = { volume: U64_MAX, node: 5, incarnation: 6, nonce: new Random(1).bytes(32), flags: 1 };
  const helloBytes = encodeHello(hello);
  assert.equal(decodeHello(helloBytes), hello);
  assert.is(
    codeOf(() => decodeHello(helloBytes.subarray(1))),
    "WIRE_LENGTH",
  );
  helloBytes[4] = 4;
  assert.is(
    codeOf(() => decodeHello(helloBytes)),
    "WIRE_FIELD",
  );
  helloBytes[0] = 2;
  assert.is(
    codeOf(() => decodeHello(helloBytes)),
    "WIRE_VERSION",
  );
  assert.is(decodeAuth(new Uint8Array(32)).length, 32);
  assert.is(
    codeOf(() => decodeAuth(new Uint8Array(31))),
    "WIRE_LENGTH",
  );

  assert.equal(decodeError(encodeError({ errno: 71, message: "ä" })), { errno: 71, message: "ä" });
  const long = decodeError(encodeError({ errno: 1, message: "ä".repeat(5000) }));
  assert.is(long.message, "ä".repeat(512));
  assert.is(
    codeOf(() => decodeError(new Uint8Array(3))),
    "WIRE_TRUNCATED",
  );
  assert.is(
    codeOf(() => decodeError(new Uint8Array(2000))),
    "WIRE_LENGTH",
  );

  const part = { id: 77n, offset: 32768, total: 40000, data: new Random(2).bytes(7232) };
  assert.equal(decodeFsopPart(encodeFsopPart(part)), part);
  assert.is(
    codeOf(() => decodeFsopPart(new Uint8Array(15))),
    "WIRE_TRUNCATED",
  );
  assert.is(
    codeOf(() => decodeFsopPart(new Uint8Array(16))),
    "WIRE_LENGTH",
  );
  const bytes = encodeFsopPart({ ...part, offset: 0 });
  new DataView(bytes.buffer).setUint32(12, 7231, true);
  assert.is(
    codeOf(() => decodeFsopPart(bytes)),
    "WIRE_LENGTH",
  );
  new DataView(bytes.buffer).setUint32(12, 147457, true);
  assert.is(
    codeOf(() => decodeFsopPart(bytes)),
    "WIRE_LENGTH",
  );
  assert.throws(
    () => encodeFsopPart({ ...part, data: new Uint8Array(32769), total: 100000, offset: 0 }),
    RangeError,
  );
});

const entry: LockEntry = {
  volume: 1n,
  ino: 131n,
  offset: U64_MAX,
  ag: 4,
  type: 4,
  lockId: 0x1000000000000005n,
  epoch: 9n,
  seq: 4294967295,
  mode: 5,
  granted: 3,
  flags: 31,
  node: 0xfffffffe,
  status: 11,
};

test("lock entries are read as they were written, and bad ones refused", () => {
  const bytes = encodeLockEntries([entry, { ...entry, lockId: 2n }]);
  assert.equal(decodeLockEntries(bytes, 2), [entry, { ...entry, lockId: 2n }]);
  assert.is(lockClientAt(bytes, 0), 1);
  assert.is(lockClientAt(bytes, MXFS_LOCK_ENTRY_SIZE), 0);
  assert.is(
    codeOf(() => checkLockEntries(bytes, 1)),
    "WIRE_LENGTH",
  );
  assert.is(
    codeOf(() => checkLockEntries(bytes.subarray(1), 9)),
    "WIRE_LENGTH",
  );
  assert.is(
    codeOf(() => checkLockEntries(new Uint8Array(0), 9)),
    "WIRE_LENGTH",
  );
  for (const [at, value] of [
    [28, 0],
    [28, 9],
    [31, 1],
    [52, 6],
    [53, 255],
    [54, 32],
    [55, 1],
    [63, 1],
  ] as const) {
    const broken = bytes.slice();
    broken[MXFS_LOCK_ENTRY_SIZE + at] = value;
    assert.is(
      codeOf(() => checkLockEntries(broken, 9)),
      "WIRE_FIELD",
      `byte ${at}`,
    );
  }
});

test("addresses are read in every usual form and written in one", () => {
  const round = (text: string): string | null => {
    const parsed = parseAddress(text);
    return parsed === null ? null : formatAddress(parsed.family, parsed.bytes);
  };
  for (const [text, expected] of [
    ["10.0.0.255", "10.0.0.255"],
    ["::", "::"],
    ["0:0:0:0:0:0:0:1", "::1"],
    ["2001:DB8::0:1", "2001:db8::1"],
    ["1:0:0:2:0:0:0:3", "1:0:0:2::3"],
    ["1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:0"],
    ["::ffff:1.2.3.4", "::ffff:102:304"],
  ] as const) {
    assert.is(round(text), expected, text);
  }
  for (const text of [
    "",
    ":",
    "1",
    "1.2.3",
    "1.2.3.256",
    "01.2.3.4",
    "1:2",
    ":::",
    "1::2::3",
    "1:2:3:4:5:6:7:8:9",
    "1::%eth0",
    "g::",
  ]) {
    assert.is(parseAddress(text), null, text);
  }
});

test("damaged bodies are refused with a WireError or accepted, and never anything else (seeds 1 to 4000)", () => {
  const decoders: [Uint8Array, (bytes: Uint8Array) => unknown][] = [
    [encodeHello({ volume: 1n, node: 1, incarnation: 1, nonce: new Uint8Array(32), flags: 0 }), decodeHello],
    [encodeError({ errno: 5, message: "lost" }), decodeError],
    [encodeFsopPart({ id: 1n, offset: 0, total: 9, data: new Uint8Array(9) }), decodeFsopPart],
    [encodeLockEntries([entry, entry]), (bytes) => decodeLockEntries(bytes, 64)],
    ...MESSAGES.map((message): [Uint8Array, (bytes: Uint8Array) => unknown] => [
      encodeClusterMessage(message),
      (bytes) => decodeClusterMessage(clusterType(message), bytes),
    ]),
  ];
  let refused = 0;
  for (let seed = 1; seed <= 4000; seed++) {
    const random = new Random(seed);
    const [bytes, decode] = random.pick(decoders);
    if (codeOf(() => decode(random.damaged(bytes))) !== "accepted") refused++;
  }
  assert.ok(refused > 1000, `only ${refused} refused: the fuzz does not bite`);
});

test.run();
