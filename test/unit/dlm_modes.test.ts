// SPDX-License-Identifier: GPL-2.0-only
/** Proves the tables of lock modes cell by cell, against matrices written down independently. */
import { test } from "uvu";
import * as assert from "uvu/assert";
import { isDownConversion, modeAfterBast, modeCovers, modesCompatible } from "../../src/dlm/modes.js";
import { LockMode, LockModeName } from "../../src/wire/abi.js";

const MODES = Object.values(LockMode);

/** Rights of each mode, in words: what it lets its owner do, and what it lets others do beside it. */
const OTHERS_MAY: Record<string, { readonly read: boolean; readonly write: boolean }> = {
  NL: { read: true, write: true },
  CR: { read: true, write: true },
  CW: { read: true, write: true },
  PR: { read: true, write: false },
  PW: { read: true, write: false },
  EX: { read: false, write: false },
};
const OWNER_MAY: Record<string, { readonly read: boolean; readonly write: boolean; readonly calm: boolean }> =
  {
    NL: { read: false, write: false, calm: false },
    CR: { read: true, write: false, calm: false },
    CW: { read: true, write: true, calm: false },
    PR: { read: true, write: false, calm: true },
    PW: { read: true, write: true, calm: true },
    EX: { read: true, write: true, calm: true },
  };

test("modes are compatible exactly where neither owner does what the other does not suffer", () => {
  for (const a of MODES) {
    for (const b of MODES) {
      const nameA = LockModeName[a] as string;
      const nameB = LockModeName[b] as string;
      const suffers = (others: string, owner: string): boolean =>
        (!OWNER_MAY[owner]?.read || OTHERS_MAY[others]?.read === true) &&
        (!OWNER_MAY[owner]?.write || OTHERS_MAY[others]?.write === true);
      assert.is(
        modesCompatible(a, b),
        suffers(nameA, nameB) && suffers(nameB, nameA),
        `${nameA} beside ${nameB}`,
      );
    }
  }
});

test("the compatibility matrix is the one of VMS, drawn out", () => {
  const drawn = ["111111", "111110", "111000", "110100", "110000", "100000"];
  for (const a of MODES) {
    for (const b of MODES) assert.is(modesCompatible(a, b), drawn[a]?.[b] === "1", `${a} ${b}`);
  }
});

test("a conversion is a statement exactly when nothing compatible becomes incompatible", () => {
  for (const held of MODES) {
    for (const wanted of MODES) {
      const only = MODES.every((other) => !modesCompatible(held, other) || modesCompatible(wanted, other));
      assert.is(isDownConversion(held, wanted), only, `${held} to ${wanted}`);
      assert.is(modeCovers(held, wanted), only);
    }
  }
  assert.is(isDownConversion(LockMode.PR, LockMode.CW), false);
  assert.is(isDownConversion(LockMode.CW, LockMode.PR), false);
  assert.is(isDownConversion(LockMode.EX, LockMode.PR), true);
});

test("who is asked to give way goes down no further than needed", () => {
  for (const held of MODES) {
    for (const wanted of MODES) {
      const after = modeAfterBast(held, wanted);
      const possible = MODES.filter((mode) => modesCompatible(mode, wanted) && isDownConversion(held, mode));
      assert.ok(possible.includes(after), `${held} for ${wanted}: ${after}`);
      for (const mode of possible) {
        const stronger = isDownConversion(mode, after) && mode !== after;
        assert.not(stronger, `${held} for ${wanted}: ${mode} would have done, not ${after}`);
      }
    }
  }
  assert.is(modeAfterBast(LockMode.EX, LockMode.PR), LockMode.PR);
  assert.is(modeAfterBast(LockMode.EX, LockMode.EX), LockMode.NL);
});

test.run();
