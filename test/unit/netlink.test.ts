// SPDX-License-Identifier: GPL-2.0-only
/** Proves the netlink codec: bytes as the kernel has them, several messages in a datagram, and nothing bad gets through. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { AttrId, Cmd } from "../../src/wire/abi.js";
import { WireError } from "../../src/wire/error.js";
import { encodeLockEntries } from "../../src/wire/lock_entry.js";
import {
  decodeDatagram,
  decodeToDaemon,
  decodeToKernel,
  encodeGetFamily,
  encodeToDaemon,
  encodeToKernel,
  GENL_ID_CTRL,
  type NetlinkEnvelope,
  NLM_F_ACK,
  NLM_F_REQUEST,
  NLMSG_DONE,
  NLMSG_ERROR,
  NLMSG_NOOP,
  NLMSG_OVERRUN,
  splitMessages,
  type ToDaemon,
  type ToKernel,
} from "../../src/wire/netlink.js";
import { codeOfError } from "../support/code_of.js";
import { entryOf } from "../support/locks.js";
import { Random } from "../support/random.js";

const FAMILY = 0x21;
const ENVELOPE: NetlinkEnvelope = { familyId: FAMILY, flags: NLM_F_REQUEST | NLM_F_ACK, seq: 5, portId: 99 };
const LOCKS = encodeLockEntries([entryOf({ mode: 3 }), entryOf({ mode: 5, lockId: 2n })]);
const FSOP = {
  mountId: 1,
  fsopId: 9n,
  node: 4,
  fsopOffset: 0,
  fsopTotal: 3,
  fsopData: Uint8Array.of(1, 2, 3),
};
const BIG = 0xffffffffffffffffn;

/** One of each command, with every optional attribute. */
const TO_KERNEL: readonly ToKernel[] = [
  { cmd: "DAEMON_ATTACH", mountId: 1, abiVersion: 1, pid: 4000 },
  {
    cmd: "DAEMON_READY",
    mountId: 1,
    session: BIG,
    role: 1,
    epoch: 3n,
    holder: 7,
    incarnation: 2,
    leaseUntil: 123456n,
  },
  { cmd: "DAEMON_READY", mountId: 1, session: 2n, error: 5, message: "no disk: ä" },
  {
    cmd: "ROLE_CHANGE",
    mountId: 1,
    reqId: 8n,
    role: 2,
    node: 4294967295,
    incarnation: 3,
    holder: 7,
    epoch: 9n,
    session: 1n,
    lockstateSize: 35651584n,
  },
  { cmd: "GATE", mountId: 1, reqId: 8n, gateOpen: 0, session: 1n, reason: "hand-over", force: 1 },
  { cmd: "LEASE", mountId: 1, leaseUntil: BIG, epoch: 1n },
  { cmd: "LOCK_DUMP", mountId: 1, reqId: 1n, epoch: 2n },
  { cmd: "VIEW", mountId: 1, epoch: 2n, holder: 3, incarnation: 9, resend: 1 },
  { cmd: "LOCK_GRANT", mountId: 1, locks: LOCKS, session: 5n },
  { cmd: "LOCK_DENY", mountId: 1, locks: LOCKS },
  { cmd: "BAST", mountId: 1, locks: LOCKS },
  { cmd: "CACHE_INVALIDATE", mountId: 1, ino: 131n },
  { cmd: "NODE_STATUS", mountId: 1, node: 2, incarnation: 3, nodeState: 4 },
  { cmd: "RECOVERY_START", mountId: 1, node: 2, epoch: 3n },
  { cmd: "RECOVERY_DONE", mountId: 1, node: 2, epoch: 3n },
  { cmd: "FSOP_REQUEST", ...FSOP, session: 4n },
  { cmd: "FSOP_REPLY", ...FSOP },
  { cmd: "FSOP_SOCKET", mountId: 1, node: 3, incarnation: 4, fd: 17, session: 5n },
  { cmd: "FENCED", mountId: 1, message: "reservation conflict" },
  { cmd: "STATUS", mountId: 1 },
  { cmd: "DONE", mountId: 1, reqId: 3n, error: 0 },
  { cmd: "VOLUME_MOUNT" },
];

const TO_DAEMON: readonly ToDaemon[] = [
  {
    cmd: "DAEMON_ATTACH",
    mountId: 1,
    session: 77n,
    volume: BIG,
    state: 1,
    role: 0,
    epoch: 0n,
    node: 0,
    incarnation: 0,
    fenced: 0,
  },
  { cmd: "LOCK_DUMP", mountId: 1, locks: LOCKS },
  { cmd: "LOCK_REQUEST", mountId: 1, locks: LOCKS },
  { cmd: "LOCK_CONVERT", mountId: 1, locks: LOCKS },
  { cmd: "LOCK_RELEASE", mountId: 1, locks: LOCKS },
  { cmd: "FSOP_REQUEST", ...FSOP },
  { cmd: "FSOP_REPLY", ...FSOP },
  { cmd: "VOLUME_UNMOUNT", mountId: 1, reqId: 3n },
  { cmd: "STATUS", mountId: 1, state: 2, role: 1, counters: "grants 5\nwaits 0\n", epoch: 4n },
  {
    cmd: "DONE",
    mountId: 1,
    reqId: 8n,
    error: 0,
    message: "",
    ino: 132n,
    generation: 5,
    size: 35651584n,
    created: 1,
  },
  { cmd: "VOLUME_ERROR", mountId: 1, error: 5, message: "XFS shut down" },
  { cmd: "VOLUME_MOUNT", mountId: 1, state: 2, role: 1, device: "/dev/sda", volume: 3n, pid: 400 },
];

const codeOf = codeOfError(WireError, "accepted");

const payloadOf = (bytes: Uint8Array): Uint8Array => {
  const message = splitMessages(bytes)[0];
  if (message === undefined) throw new Error("no message");
  return message.payload;
};

/** An attribute by hand. */
function attr(id: number, payload: readonly number[], length = payload.length + 4): number[] {
  const padding = new Array<number>((4 - (payload.length % 4)) % 4).fill(0);
  return [length & 0xff, length >> 8, id & 0xff, id >> 8, ...payload, ...padding];
}

/** A message by hand. */
function message(type: number, payload: readonly number[], flags = 0, seq = 5): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(16 + ((payload.length + 3) & ~3));
  const view = new DataView(bytes.buffer);
  view.setUint32(0, 16 + payload.length, true);
  view.setUint16(4, type, true);
  view.setUint16(6, flags, true);
  view.setUint32(8, seq, true);
  bytes.set(payload, 16);
  return bytes;
}

test("every command is read as it was written, in both directions", () => {
  for (const sent of TO_KERNEL) {
    assert.equal(decodeToKernel(payloadOf(encodeToKernel(sent, ENVELOPE))), sent);
  }
  for (const sent of TO_DAEMON) {
    assert.equal(decodeToDaemon(payloadOf(encodeToDaemon(sent, ENVELOPE))), sent);
  }
  const commands = new Set<string>([...TO_KERNEL, ...TO_DAEMON].map(({ cmd }) => cmd));
  const missing = Object.keys(Cmd).filter((cmd) => cmd !== "UNSPEC" && !commands.has(cmd));
  assert.equal(missing, [], "commands that go no way at all");
});

test("a message lies in memory as linux/netlink.h and linux/genetlink.h say", () => {
  const bytes = encodeToKernel(
    { cmd: "GATE", mountId: 0x01020304, reqId: 9n, gateOpen: 1, reason: "ab" },
    ENVELOPE,
  );
  assert.equal(
    [...bytes],
    [
      ...[56, 0, 0, 0, FAMILY, 0, 5, 0, 5, 0, 0, 0, 99, 0, 0, 0],
      ...[4, 1, 0, 0],
      ...[8, 0, 1, 0, 4, 3, 2, 1],
      ...[12, 0, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0],
      ...[8, 0, 17, 0, 1, 0, 0, 0],
      ...[7, 0, 18, 0, 97, 98, 0, 0],
    ],
  );
});

test("a datagram of several messages gives each of them, acknowledgements and ends of dumps included", () => {
  const parts = [
    encodeToDaemon({ cmd: "VOLUME_UNMOUNT", mountId: 1, reqId: 3n }, { ...ENVELOPE, seq: 0 }),
    message(NLMSG_NOOP, []),
    message(NLMSG_ERROR, [0, 0, 0, 0, ...new Array<number>(16).fill(0)], 0x100, 7),
    encodeToDaemon({ cmd: "LOCK_REQUEST", mountId: 1, locks: LOCKS }, { ...ENVELOPE, seq: 0 }),
    message(NLMSG_DONE, [0, 0, 0, 0], 2, 8),
  ];
  const datagram = Uint8Array.from(parts.flatMap((part) => [...part]));
  const events = decodeDatagram(datagram, FAMILY);
  assert.equal(
    events.map((event) => [event.kind, event.seq]),
    [
      ["message", 0],
      ["ack", 7],
      ["message", 0],
      ["done", 8],
    ],
  );
  const locks = events[2];
  assert.ok(locks?.kind === "message" && locks.message.cmd === "LOCK_REQUEST");
  if (locks?.kind === "message" && locks.message.cmd === "LOCK_REQUEST") {
    assert.equal([...locks.message.locks], [...LOCKS]);
    assert.is(locks.message.locks.buffer, datagram.buffer, "a view, no copy");
  }
});

test("an error comes with the kernel's explanation, whether the request is repeated in it or capped", () => {
  const request = [...encodeToKernel({ cmd: "STATUS", mountId: 1 }, ENVELOPE)];
  const text = attr(1, [...new TextEncoder().encode("no such mount"), 0]);
  const errno = [0xfe, 0xff, 0xff, 0xff];
  const ack = (payload: readonly number[], flags: number): unknown =>
    decodeDatagram(message(NLMSG_ERROR, payload, flags), FAMILY)[0];
  const expected = { kind: "ack", seq: 5, error: 2, message: "no such mount" };
  assert.equal(ack([...errno, ...request, ...text], 0x200), expected);
  assert.equal(ack([...errno, ...request.slice(0, 16), ...text], 0x300), expected);
  assert.equal(ack([...errno, ...request.slice(0, 16)], 0x100), { ...expected, message: null });
  assert.equal(ack([0, 0, 0, 0, ...request.slice(0, 16)], 0x100), {
    kind: "ack",
    seq: 5,
    error: 0,
    message: null,
  });
  assert.is(
    codeOf(() => ack([0xff, 0xff, 0xff], 0)),
    "WIRE_TRUNCATED",
  );
  assert.is(
    codeOf(() => ack([...errno, ...request.slice(0, 16)], 0x200)),
    "WIRE_TRUNCATED",
  );
  assert.is(
    codeOf(() => ack([1, 0, 0, 0, ...request.slice(0, 16)], 0)),
    "WIRE_FIELD",
  );
});

test("unknown attributes, padding and flags in the type are passed over", () => {
  const payload = [
    ...[Cmd.VOLUME_ERROR, 1, 0, 0],
    ...attr(200, [1, 2, 3]),
    ...attr(AttrId.PAD, []),
    ...attr(AttrId.MOUNT_ID | 0x8000, [3, 0, 0, 0]),
    ...attr(AttrId.SESSION, [1]),
    ...attr(AttrId.ERROR, [5, 0, 0, 0]),
    0,
    0,
  ];
  assert.equal(decodeToDaemon(Uint8Array.from(payload)), { cmd: "VOLUME_ERROR", mountId: 3, error: 5 });
});

test("wrong lengths, doubles, missing and bad attributes are refused", () => {
  const head = [Cmd.VOLUME_ERROR, 1, 0, 0];
  const mount = attr(AttrId.MOUNT_ID, [3, 0, 0, 0]);
  const error = attr(AttrId.ERROR, [5, 0, 0, 0]);
  const decode = (...parts: number[][]): string =>
    codeOf(() => decodeToDaemon(Uint8Array.from(parts.flat())));
  assert.is(decode(head, mount, error), "accepted");
  assert.is(decode(head, mount), "WIRE_FIELD");
  assert.is(decode(head, mount, error, error), "WIRE_FIELD");
  assert.is(decode(head, mount, attr(AttrId.ERROR, [0, 0x10, 0, 0])), "WIRE_FIELD");
  assert.is(decode(head, mount, attr(AttrId.ERROR, [5, 0])), "WIRE_LENGTH");
  assert.is(decode(head, mount, attr(AttrId.ERROR, [5, 0, 0, 0], 3)), "WIRE_LENGTH");
  assert.is(decode(head, mount, attr(AttrId.ERROR, [5, 0, 0, 0], 9)), "WIRE_LENGTH");
  assert.is(decode([Cmd.VOLUME_ERROR, 2, 0, 0], mount, error), "WIRE_VERSION");
  assert.is(decode([Cmd.LEASE, 1, 0, 0], mount, error), "WIRE_TYPE");
  assert.is(decode([99, 1, 0, 0]), "WIRE_TYPE");
  assert.is(decode([1, 1]), "WIRE_TRUNCATED");
  const message511 = attr(AttrId.MESSAGE, [...new Array<number>(511).fill(97), 0]);
  assert.is(decode(head, mount, error, message511), "accepted");
  assert.is(decode(head, mount, error, attr(AttrId.MESSAGE, new Array<number>(512).fill(97))), "WIRE_FIELD");
  assert.is(decode(head, mount, error, attr(AttrId.MESSAGE, [97, 0, 98, 0])), "WIRE_FIELD");
  assert.is(decode(head, mount, error, attr(AttrId.MESSAGE, [0xff, 0])), "WIRE_FIELD");
  const request = [Cmd.LOCK_REQUEST, 1, 0, 0];
  assert.is(decode(request, mount, attr(AttrId.LOCKS, [...LOCKS])), "accepted");
  assert.is(decode(request, mount, attr(AttrId.LOCKS, [...LOCKS.subarray(1)])), "WIRE_LENGTH");
  assert.is(decode(request, mount, attr(AttrId.LOCKS, [])), "WIRE_LENGTH");
});

test("an fsop part that does not fit its total is refused", () => {
  const bytes = encodeToDaemon({ cmd: "FSOP_REQUEST", ...FSOP, fsopTotal: 2 }, ENVELOPE);
  assert.is(
    codeOf(() => decodeDatagram(bytes, FAMILY)),
    "WIRE_LENGTH",
  );
});

test("what is no message of ours is refused, an overrun too", () => {
  assert.is(
    codeOf(() => decodeDatagram(message(NLMSG_OVERRUN, []), FAMILY)),
    "WIRE_TYPE",
  );
  assert.is(
    codeOf(() => decodeDatagram(message(FAMILY + 1, []), FAMILY)),
    "WIRE_TYPE",
  );
  assert.is(
    codeOf(() => decodeDatagram(new Uint8Array(7), FAMILY)),
    "WIRE_TRUNCATED",
  );
  for (const length of [0, 15, 17, 0xffffffff]) {
    const bytes = message(NLMSG_NOOP, []);
    new DataView(bytes.buffer).setUint32(0, length, true);
    assert.is(
      codeOf(() => decodeDatagram(bytes, FAMILY)),
      "WIRE_LENGTH",
      String(length),
    );
  }
});

test("too long a message is cut between characters, too large a number is refused", () => {
  const sent = encodeToKernel({ cmd: "FENCED", mountId: 1, message: "ä".repeat(400) }, ENVELOPE);
  const read = decodeToKernel(payloadOf(sent));
  assert.ok(read.cmd === "FENCED" && read.message === "ä".repeat(255));
  assert.throws(() => encodeToKernel({ cmd: "STATUS", mountId: 2 ** 32 }, ENVELOPE), RangeError);
  assert.throws(() => encodeToKernel({ cmd: "STATUS", mountId: -1 }, ENVELOPE), RangeError);
  assert.throws(
    () => encodeToKernel({ cmd: "LEASE", mountId: 1, leaseUntil: 1n << 64n, epoch: 0n }, ENVELOPE),
    RangeError,
  );
  assert.throws(
    () => encodeToKernel({ cmd: "FSOP_REPLY", ...FSOP, fsopData: new Uint8Array(32769) }, ENVELOPE),
    RangeError,
  );
});

test("the controller is asked for a family and its answer understood", () => {
  assert.equal(
    [...encodeGetFamily("mxfs", 3)],
    [
      ...[32, 0, 0, 0, 16, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0],
      ...[3, 2, 0, 0],
      ...[9, 0, 2, 0],
      ...[109, 120, 102, 115],
      0,
      0,
      0,
      0,
    ],
  );
  const answer = [
    1,
    2,
    0,
    0,
    ...attr(2, [109, 120, 102, 115, 0]),
    ...attr(1, [0x21, 0]),
    ...attr(3, [1, 0, 0, 0]),
  ];
  assert.equal(decodeDatagram(message(GENL_ID_CTRL, answer), FAMILY), [
    { kind: "family", seq: 5, family: { id: 0x21, name: "mxfs", version: 1 } },
  ]);
  assert.is(
    codeOf(() => decodeDatagram(message(GENL_ID_CTRL, answer.slice(0, 16)), FAMILY)),
    "WIRE_FIELD",
  );
});

test("damaged datagrams are refused with a WireError or accepted, and never anything else (seeds 1 to 4000)", () => {
  let refused = 0;
  for (let seed = 1; seed <= 4000; seed++) {
    const random = new Random(seed);
    const parts = [1, 2].map(() => encodeToDaemon(random.pick(TO_DAEMON), ENVELOPE));
    const datagram = random.damaged(Uint8Array.from(parts.flatMap((part) => [...part])));
    if (codeOf(() => decodeDatagram(datagram, FAMILY)) !== "accepted") refused++;
  }
  assert.ok(refused > 1000, `only ${refused} refused: the fuzz does not bite`);
});

test.run();
