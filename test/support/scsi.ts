// SPDX-License-Identifier: GPL-2.0-only
//
// What tests of reservations share: an action that must fail, and with which code.
//
// Weakness: says nothing of the message; whoever means it looks at the error that is returned.

import * as assert from "uvu/assert";
import { ScsiError, type ScsiErrorCode } from "../../src/disk/reservation.js";

/** @returns the error. @throws what else the action throws, and AssertionError for another code. */
export async function failsWith(code: ScsiErrorCode, action: () => Promise<unknown>): Promise<ScsiError> {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof ScsiError)) throw error;
    assert.is(error.code, code, error.message);
    return error;
  }
  throw new Error(`expected ScsiError ${code}, and nothing failed`);
}
