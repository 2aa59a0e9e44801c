// SPDX-License-Identifier: GPL-2.0-only
/** Proves the framing of peer connections: whole frames out of pieces of any size, and nothing bad gets through. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  MXFS_LOCK_ENTRY_SIZE,
  MXFS_WIRE_BODY_MAX,
  MXFS_WIRE_HEADER_SIZE,
  WireType,
} from "../../src/wire/abi.js";
import { WireError } from "../../src/wire/error.js";
import {
  decodeFrameHeader,
  type Frame,
  FrameParser,
  FrameWriter,
  type OnLocks,
} from "../../src/wire/frame.js";
import { codeOfError } from "../support/code_of.js";
import { Random } from "../support/random.js";

function collect(parser: FrameParser, chunks: readonly Uint8Array[]): Frame[] {
  const frames: Frame[] = [];
  for (const chunk of chunks) {
    parser.push(chunk, (frame) => {
      frames.push({ ...frame, seq: frame.seq, epoch: frame.epoch, body: frame.body.slice() });
    });
  }
  return frames;
}

function joined(parts: readonly Uint8Array[]): Uint8Array {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

const codeOf = codeOfError(WireError, "accepted");

const patched = (bytes: Uint8Array, at: number, value: number): Uint8Array => {
  const copy = bytes.slice();
  copy[at] = value;
  return copy;
};

test("a header lies on the wire as wire.h says", () => {
  const bytes = new FrameWriter(0x11223344, 0x55667788).encode(
    WireType.LOCK_GRANT,
    0x0102030405060708n,
    new Uint8Array(3),
  );
  const hex = [...bytes.subarray(0, MXFS_WIRE_HEADER_SIZE)]
    .map((byte) => byte.toString(16).padStart(2, "0"))
    .join("");
  const expected = `5346584d01001400030000000000000001000000000000004433221188776655${"0807060504030201"}`;
  assert.is(hex, expected);
  assert.equal(decodeFrameHeader(bytes), {
    type: WireType.LOCK_GRANT,
    length: 3,
    seq: 1n,
    sender: 0x11223344,
    target: 0x55667788,
    epoch: 0x0102030405060708n,
  });
});

test("any cutting of the stream gives the same frames in the same order", () => {
  for (let seed = 1; seed <= 60; seed++) {
    const random = new Random(seed);
    const writer = new FrameWriter(1, 2);
    const bodies = Array.from({ length: 1 + random.below(8) }, () =>
      random.bytes(random.pick([0, 1, 39, 40, 41, 500])),
    );
    const stream = joined(bodies.map((body) => writer.encode(WireType.PING, 7n, body)));
    const chunks: Uint8Array[] = [];
    for (let at = 0; at < stream.length; ) {
      const size = 1 + random.below(random.pick([1, 3, 50, 1000]));
      chunks.push(stream.slice(at, at + size));
      at += size;
    }
    const parser = new FrameParser();
    const frames = collect(parser, chunks);
    assert.is(frames.length, bodies.length, `seed ${seed}`);
    frames.forEach((frame, index) => {
      assert.equal([...frame.body], [...(bodies[index] as Uint8Array)], `seed ${seed}`);
      assert.is(frame.seq, BigInt(index + 1));
    });
    assert.is(parser.partial, false);
  }
});

test("a frame of the largest size passes, one byte more does not even start", () => {
  const bytes = new FrameWriter(1, 2).encode(WireType.PING, 0n, new Uint8Array(MXFS_WIRE_BODY_MAX));
  assert.is(collect(new FrameParser(), [bytes.slice(0, 100), bytes.slice(100)]).length, 1);
  assert.throws(
    () => new FrameWriter(1, 2).encode(WireType.PING, 0n, new Uint8Array(MXFS_WIRE_BODY_MAX + 1)),
    RangeError,
  );
  const header = bytes.slice(0, MXFS_WIRE_HEADER_SIZE);
  new DataView(header.buffer).setUint32(8, MXFS_WIRE_BODY_MAX + 1, true);
  assert.is(
    codeOf(() => collect(new FrameParser(), [header])),
    "WIRE_LENGTH",
  );
});

test("each wrong header field has its own error, and the parser stays broken", () => {
  const good = new FrameWriter(1, 2).encode(WireType.PING, 0n, new Uint8Array(0));
  const cases: [number, number, string][] = [
    [0, 0xff, "WIRE_MAGIC"],
    [4, 9, "WIRE_VERSION"],
    [6, 0, "WIRE_TYPE"],
    [7, 0xff, "WIRE_TYPE"],
    [11, 0xff, "WIRE_LENGTH"],
    [12, 1, "WIRE_FIELD"],
    [16, 2, "WIRE_SEQ"],
    [16, 0, "WIRE_SEQ"],
  ];
  for (const [at, value, code] of cases) {
    const parser = new FrameParser();
    assert.is(
      codeOf(() => collect(parser, [patched(good, at, value)])),
      code,
      `byte ${at}`,
    );
    assert.is(
      codeOf(() => collect(parser, [good])),
      code,
      "a broken parser must not recover",
    );
  }
});

test("a gap and a repetition in the sequence are refused", () => {
  const writer = new FrameWriter(1, 2);
  const [first, second, third] = [1, 2, 3].map(() => writer.encode(WireType.PING, 0n, new Uint8Array(1)));
  const send = (...frames: (Uint8Array | undefined)[]): string =>
    codeOf(() => collect(new FrameParser(), frames as Uint8Array[]));
  assert.is(send(first, second, third), "accepted");
  assert.is(send(first, third), "WIRE_SEQ");
  assert.is(send(first, second, second), "WIRE_SEQ");
  assert.is(send(second), "WIRE_SEQ");
});

test("once the ends are known, a frame from or to somebody else is refused", () => {
  for (const [sender, target, code] of [
    [1, 2, "accepted"],
    [3, 2, "WIRE_ENDPOINT"],
    [1, 3, "WIRE_ENDPOINT"],
  ] as const) {
    const parser = new FrameParser();
    parser.expect({ sender: 1, target: 2 });
    const bytes = new FrameWriter(sender, target).encode(WireType.PING, 0n, new Uint8Array(0));
    assert.is(
      codeOf(() => collect(parser, [bytes])),
      code,
    );
  }
});

test("a piece is not copied when a frame lies whole in it, and the collecting buffer is bounded by the frame", () => {
  const bytes = new FrameWriter(1, 2).encode(WireType.PING, 0n, new Uint8Array(100));
  new FrameParser().push(bytes, (frame) => {
    assert.is(frame.body.buffer, bytes.buffer);
  });
  const parser = new FrameParser();
  parser.push(bytes.slice(0, 60), () => assert.unreachable());
  assert.is(parser.partial, true);
  parser.push(bytes.slice(60), (frame) => {
    assert.is(frame.body.buffer.byteLength, 100);
  });
});

test("a handler that throws ends the connection: the parser takes nothing more", () => {
  const parser = new FrameParser();
  const bytes = new FrameWriter(1, 2).encode(WireType.PING, 0n, new Uint8Array(0));
  assert.throws(() => {
    parser.push(bytes, () => {
      throw new Error("handler");
    });
  }, /handler/);
  assert.is(
    codeOf(() => collect(parser, [bytes])),
    "WIRE_SEQ",
  );
});

test("damaged streams are refused with a WireError or give frames, and never anything else (seeds 1 to 3000)", () => {
  let refused = 0;
  for (let seed = 1; seed <= 3000; seed++) {
    const random = new Random(seed);
    const writer = new FrameWriter(1, 2);
    const stream = joined(
      [1, 2, 3].map(() => writer.encode(WireType.PING, 5n, random.bytes(random.below(60)))),
    );
    if (codeOf(() => collect(new FrameParser(), [random.damaged(stream)])) !== "accepted") refused++;
  }
  assert.ok(refused > 1000, `only ${refused} refused: the fuzz does not bite`);
});

test("taken as words or as frames: the same messages pass, and the same damage is refused (seeds 1 to 3000)", () => {
  let refused = 0;
  let asWords = 0;
  const types = [
    WireType.LOCK_REQUEST,
    WireType.LOCK_RELEASE,
    WireType.LOCK_CONVERT,
    WireType.LOCK_GRANT,
    WireType.PING,
  ];
  const read = (stream: Uint8Array, cut: number, words: boolean): string => {
    const parser = new FrameParser();
    parser.expect({ sender: 0xf0000001, target: 2 });
    const seen: string[] = [];
    const onLocks: OnLocks = (type, from, at, count) => {
      asWords++;
      const bytes = new Uint8Array(from.buffer, 4 * at, MXFS_LOCK_ENTRY_SIZE * count);
      seen.push(`${type} ${Buffer.from(bytes).toString("hex")}`);
      return true;
    };
    const how = codeOf(() => {
      for (const piece of [stream.subarray(0, cut), stream.subarray(cut)]) {
        parser.push(
          piece,
          (frame) => seen.push(`${frame.type} ${Buffer.from(frame.body).toString("hex")}`),
          words ? onLocks : undefined,
        );
      }
    });
    return `${seen.join("\n")}\n${how} ${parser.seq}`;
  };
  for (let seed = 1; seed <= 3000; seed++) {
    const random = new Random(seed);
    const writer = new FrameWriter(0xf0000001, 2);
    const whole = joined(
      Array.from({ length: 4 }, () =>
        writer.encode(
          random.pick(types),
          5n,
          random.bytes(MXFS_LOCK_ENTRY_SIZE * random.below(3) + (random.chance(20) ? 4 : 0)),
        ),
      ),
    );
    const stream = random.chance(50) ? whole : random.damaged(whole);
    const cut = random.below(stream.length + 1);
    const expected = read(stream, cut, false);
    assert.is(read(stream, cut, true), expected, `seed ${seed}`);
    if (!expected.includes("accepted")) refused++;
  }
  assert.ok(refused > 500, `only ${refused} refused: the fuzz does not bite`);
  assert.ok(asWords > 1000, `only ${asWords} taken as words`);
});

test("a frame that its taker refuses comes again as a frame; what the taker throws ends the connection", () => {
  const writer = new FrameWriter(1, 2);
  const body = new Uint8Array(MXFS_LOCK_ENTRY_SIZE);
  const bytes = joined([1, 2].map(() => writer.encode(WireType.LOCK_REQUEST, 5n, body)));
  const parser = new FrameParser();
  parser.expect({ sender: 1, target: 2 });
  let frames = 0;
  assert.is(
    parser.push(
      bytes,
      () => frames++,
      () => false,
    ),
    bytes.length,
  );
  assert.is(frames, 2);
  const broken = new FrameParser();
  broken.expect({ sender: 1, target: 2 });
  const push = (): number =>
    broken.push(
      bytes,
      () => assert.unreachable(),
      () => {
        throw new Error("no");
      },
    );
  assert.throws(push, /no/);
  assert.is(codeOf(push), "WIRE_SEQ");
});

test.run();
