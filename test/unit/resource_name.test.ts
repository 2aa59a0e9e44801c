// SPDX-License-Identifier: GPL-2.0-only
//
// Names of resources, as mxfs_lock takes and prints them.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { formatResource, NameError, parseResource } from "../../src/main/resource_name.js";
import { MXFS_RES_INODE, MXFS_RES_OPEN, MXFS_RES_USER } from "../../src/wire/abi.js";

test("A lock of the kernel on an inode is named by number and generation", () => {
  assert.equal(parseResource("inode:133:7"), { type: MXFS_RES_INODE, ino: 133n, offset: 0n, ag: 7 });
  assert.equal(parseResource("open:133:4294967295"), {
    type: MXFS_RES_OPEN,
    ino: 133n,
    offset: 0n,
    ag: 0xffffffff,
  });
  assert.equal(parseResource("inode:133"), { type: MXFS_RES_INODE, ino: 133n, offset: 0n, ag: 0 });
});

test("What is printed is read back as the same resource", () => {
  for (const name of [
    "inode:133:7",
    "inode:133",
    "open:1:2",
    "flock:5",
    "user:9",
    "extent:3:4096",
    "extent:3:4096:77",
    "super:1",
    "ag:2",
  ])
    assert.is(formatResource(parseResource(name)), name);
  assert.is(formatResource(parseResource("inode:0x10:0x10")), "inode:16:16");
  assert.is(parseResource("backup").type, MXFS_RES_USER);
});

test("What is no resource is refused with what is expected", () => {
  const wrong = [
    "",
    "inode:",
    "inode:x",
    "inode:1:",
    "inode:1:4294967296",
    "inode:1:2:3",
    "flock:1:2",
    "super:1:2",
  ];
  for (const name of wrong) {
    assert.throws(
      () => parseResource(name),
      (error: unknown) => error instanceof NameError,
      name,
    );
  }
});

test.run();
