// SPDX-License-Identifier: GPL-2.0-only
import { test } from "uvu";
import * as assert from "uvu/assert";
import { CONFIG_DEFAULT, ConfigError, parseConfig, reloadable } from "../../src/main/config.js";

function refusal(source: string): string {
  try {
    parseConfig(source, "mxfs.conf");
  } catch (error) {
    assert.instance(error, ConfigError);
    return error instanceof Error ? error.message : "";
  }
  assert.unreachable(`accepted: ${source}`);
  return "";
}

test("an empty file is the default configuration", () => {
  assert.equal(parseConfig("", "f"), CONFIG_DEFAULT);
});

test("every section and key is read", () => {
  const config = parseConfig(
    `# comment
[node]
iface = eth1
port = 7700
multicast = none
broadcast = 10.0.0.255
[peer a]
address = 10.0.0.2
[peer b]
address = host.example
port = 9000
[volume data]
device = /dev/sdb
persist = all
[timing]
heartbeat_ms = 500
renew_ms = 500
lease_ms = 1500
node_timeout_ms = 4000
[logging]
level = debug
file = none
syslog = no
`,
    "f",
  );
  assert.is(config.node.iface, "eth1");
  assert.is(config.node.multicast, null);
  assert.is(config.node.broadcast, "10.0.0.255");
  assert.equal(config.peers, [
    { address: "10.0.0.2", port: 7700 },
    { address: "host.example", port: 9000 },
  ]);
  assert.equal(config.volumes, [{ name: "data", device: "/dev/sdb", persist: "all" }]);
  assert.is(config.timing.leaseMs, 1500);
  assert.is(config.timing.startupMs, CONFIG_DEFAULT.timing.startupMs);
  assert.equal(config.logging, { level: "debug", file: null, syslog: false });
});

const MISTAKES: readonly (readonly [string, RegExp])[] = [
  ["[nod]", /mxfs\.conf:1: unknown section \[nod\]: expected \[node\]/],
  ["\nport = 1", /mxfs\.conf:2: .*before the first section/],
  ["[node]\nprot = 1", /:2: unknown key "prot" in \[node\]: expected iface, port/],
  ["[node]\nport = 70000", /:2: port = "70000".*integer from 1 to 65535/],
  ["[node]\nport = -1", /:2: port/],
  ["[node]\nport", /:2: .*neither a section nor/],
  ["[node]\nport = 1\nport = 2", /:3: port is set twice/],
  ["[node]\n[node]", /:2: section \[node\] stands in line 1/],
  ["[node x]", /:1: \[node\] takes no name/],
  ["[node]\nmulticast = 10.0.0.1", /:2: .*multicast address/],
  ["[node]\nmulticast = 239.1.2.999", /:2: .*IPv4/],
  ["[node]\niface = a/b", /:2: .*interface name/],
  ["[peer x]", /:1: \[peer x\] has no address/],
  ["[volume v]\ndevice = sdb", /:2: .*absolute path/],
  ["[volume v]\ndevice = /dev/a\n[volume w]\ndevice = /dev/a", /:3: .*listed twice/],
  ["[logging]\nlevel = loud", /:2: .*one of error, warn, info, debug/],
  ["[logging]\nsyslog = perhaps", /:2: .*yes or no/],
  ["[timing]\nrenew_ms = 1000", /heartbeat_ms 2000 is above renew_ms 1000/],
  ["[timing]\nlease_ms = 2000", /renew_ms 2000 is not below lease_ms 2000/],
  ["[timing]\nnode_timeout_ms = 5500", /lease_ms 5000 plus 10 %/],
  ["[node]\nconstructor = 1", /unknown key "constructor"/],
  ["[constructor]", /unknown section/],
];
for (const [source, expected] of MISTAKES) {
  test(`refused with file, line and key: ${JSON.stringify(source)}`, () => {
    assert.match(refusal(source), expected);
  });
}

test("random bytes never do anything but parse or be refused as ConfigError", () => {
  let state = 12345;
  const random = (): number => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return state >>> 8;
  };
  const alphabet = "[]=\n #;nodeportivlaugm0123456789_-/.\u0000é";
  for (let round = 0; round < 3000; round++) {
    const source = Array.from({ length: random() % 80 }, () => alphabet[random() % alphabet.length]).join("");
    try {
      parseConfig(source, "fuzz");
    } catch (error) {
      assert.instance(error, ConfigError);
    }
  }
});

test("a reload says what it applied and what needs a restart", () => {
  const after = parseConfig("[logging]\nlevel = debug\n[node]\nport = 9\n[peer a]\naddress = x\n", "f");
  assert.equal(reloadable(CONFIG_DEFAULT, after), { applied: ["logging", "peer"], needRestart: ["node"] });
});

test.run();
