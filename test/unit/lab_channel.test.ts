// SPDX-License-Identifier: GPL-2.0-only
//
// The host's decoder of the lab's exec channel: it reads a port that an earlier client may have left in the
// middle of a frame.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { encodeFrame, FrameReader } from "../../lab/channel.js";

function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

test("frames come out whole, however the bytes are cut", () => {
  const next = random(7);
  for (let round = 0; round < 200; round++) {
    const sent = Array.from({ length: 1 + Math.floor(next() * 6) }, (_, i) => ({
      type: 6,
      session: round + 1,
      payload: Buffer.alloc(Math.floor(next() * 300), i),
    }));
    const bytes = Buffer.concat(sent.map((frame) => encodeFrame(frame.type, frame.session, frame.payload)));
    const reader = new FrameReader();
    const got = [];
    for (let at = 0; at < bytes.length; ) {
      const end = Math.min(bytes.length, at + 1 + Math.floor(next() * 40));
      got.push(...reader.push(bytes.subarray(at, end)));
      at = end;
    }
    assert.is(got.length, sent.length);
    for (const [i, frame] of sent.entries()) {
      assert.is(got[i]?.session, frame.session);
      assert.ok(got[i]?.payload.equals(frame.payload));
    }
  }
});

test("rubbish before a frame is skipped, and does not swallow the frame", () => {
  const next = random(11);
  for (let round = 0; round < 200; round++) {
    const rubbish = Buffer.from(
      Array.from({ length: Math.floor(next() * 100) }, () => Math.floor(next() * 256)),
    );
    const frames = new FrameReader().push(Buffer.concat([rubbish, encodeFrame(1, 42)]));
    assert.is(frames.at(-1)?.session, 42);
  }
});

test("a length beyond the largest payload is not waited for", () => {
  const bad = encodeFrame(6, 1);
  bad.writeUInt32LE(0x7fffffff, 12);
  const frames = new FrameReader().push(Buffer.concat([bad, encodeFrame(8, 2, Buffer.alloc(8))]));
  assert.equal(
    frames.map((frame) => frame.session),
    [2],
  );
});

test.run();
