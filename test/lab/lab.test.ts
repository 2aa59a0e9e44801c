// SPDX-License-Identifier: GPL-2.0-only
//
// The lab itself, on real guests: the command channel, the shared disk and its reservations, the network, every
// fault, and that nothing is left. Runs alone: node dist/test/lab/lab.test.js

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { type Command, GuestGoneError, Lab, LabError, PROJECT_DIR } from "../../lab/lab.js";

const NAME = `test-${process.pid}`;
const CLI = join(PROJECT_DIR, "dist/lab/cli.js");

/** Whatever of a lab is still on this machine, one line each. */
function remains(name: string): string[] {
  const found: string[] = [];
  for (const pid of readdirSync("/proc").filter((entry) => /^[0-9]+$/.test(entry))) {
    if (Number(pid) === process.pid) continue;
    let words: string;
    try {
      words = readFileSync(`/proc/${pid}/cmdline`, "utf8") + readFileSync(`/proc/${pid}/environ`, "utf8");
    } catch {
      continue; // ended meanwhile
    }
    if (words.includes(`mxfs-lab/${name}/`) || words.includes(`mxfs-${name}`)) found.push(`process ${pid}`);
  }
  const places = [`/run/mxfs-lab/${name}`, join(PROJECT_DIR, ".lab/run", name)];
  for (const space of [`mxfs-${name}`, `mxfs-${name}.tgt`]) places.push(`/run/netns/${space}`);
  return [...found, ...places.filter((place) => existsSync(place))];
}

async function rejection(action: () => Promise<unknown>): Promise<Error> {
  try {
    await action();
  } catch (error) {
    if (error instanceof Error) return error;
  }
  return assert.unreachable("expected a rejection") as never;
}

/** Resolves when the command has printed `text`. */
async function printed(command: Command, text: string): Promise<void> {
  let said = "";
  while (!said.includes(text)) {
    const piece = await Promise.race([
      once(command, "stdout").then(([data]) => String(data)),
      command.done.then((end) => {
        throw new Error(`ended with ${end.status} before it printed ${text}`);
      }),
    ]);
    said += piece;
  }
}

const DIRECT_WRITE = "dd if=/dev/zero of=/dev/sda bs=4096 count=1 seek=64 oflag=direct,dsync";
const DIRECT_READ = "dd if=/dev/sda of=/dev/null bs=4096 count=1 skip=64 iflag=direct";

const test = suite<{ lab: Lab }>("lab");

test.before(async (context) => {
  context.lab = await Lab.up({ name: NAME, nodes: 2, scratchBytes: 2 ** 30, ephemeral: true });
});

test.after((context) => {
  context.lab.down();
  assert.equal(remains(NAME), [], "down leaves no process, namespace or file");
});

test("exit status, stdout and stderr of a command come back apart", async ({ lab }) => {
  const result = await lab.exec("node1", "echo out; echo err >&2; exit 7");
  assert.equal(result, { status: 7, stdout: "out\n", stderr: "err\n" });
  assert.is((await lab.exec(1, ["/bin/sh", "-c", "kill -9 $$"])).status, 137);
  const missing = await lab.exec(1, ["no-such-program"]);
  assert.is(missing.status, 127);
  assert.match(missing.stderr, /no-such-program: No such file/);
});

test("the command line passes status and streams through", async () => {
  const argv = [CLI, "exec", "node2", "--", "sh", "-c", "cat; echo err >&2; exit 3"];
  const child = spawn(process.execPath, argv, { env: { ...process.env, MXFS_LAB: NAME } });
  let out = "";
  let err = "";
  child.stdout.on("data", (data: Buffer) => {
    out += data.toString();
  });
  child.stderr.on("data", (data: Buffer) => {
    err += data.toString();
  });
  child.stdin.end("given\n");
  const [status] = await once(child, "close");
  assert.equal([status, out, err], [3, "given\n", "err\n"]);
});

test("commands on one node run at the same time, more of them than there are ports", async ({ lab }) => {
  const began = Date.now();
  const results = await Promise.all(Array.from({ length: 20 }, (_, i) => lab.run(1, `sleep 2; echo ${i}`)));
  assert.equal(
    results,
    Array.from({ length: 20 }, (_, i) => `${i}\n`),
  );
  assert.ok(Date.now() - began < 20 * 2000, "they took less than one after the other");
});

test("megabytes go through stdin and stdout unchanged", async ({ lab }) => {
  const data = Buffer.alloc(3_000_000);
  for (let at = 0; at < data.length; at += 4) data.writeUInt32LE((at * 2654435761) >>> 0, at);
  const text = data.toString("hex");
  const result = await lab.exec(1, ["cat"], { stdin: text });
  assert.is(result.status, 0);
  assert.ok(result.stdout === text);
});

test("put copies a file with its mode", async ({ lab }) => {
  const dir = mkdtempSync(join(tmpdir(), "mxfs-lab-test-"));
  const file = join(dir, "tool");
  writeFileSync(file, "#!/bin/sh\necho put works\n", { mode: 0o755 });
  await lab.put(2, file, "/tmp/");
  assert.is(await lab.run(2, ["/tmp/tool"]), "put works\n");
  rmSync(dir, { recursive: true });
});

test("a command that takes too long is killed", async ({ lab }) => {
  const error = await rejection(() => lab.exec(1, "sleep 4321", { timeoutMs: 500 }));
  assert.match(error.message, /node1: no end of "sleep 4321" within 500 ms/);
  await lab.run(
    1,
    "for i in 1 2 3 4 5 6 7 8 9 10; do pgrep -x sleep >/dev/null || exit 0; sleep 0.2; done; exit 1",
  );
});

test("an unknown node is refused by name", ({ lab }) => {
  assert.throws(
    () => lab.spawn("node3", ["true"]),
    (error: Error) => error instanceof LabError && /no node "node3"/.test(error.message),
  );
});

test("every node has its own name, address and private disk", async ({ lab }) => {
  for (const number of [1, 2]) {
    const said = await lab.run(
      number,
      "hostname; ip -o -4 addr show eth0; lsblk -bno SIZE /dev/vda; uname -r",
    );
    assert.match(said, new RegExp(`^node${number}\n.*10\\.77\\.0\\.${number}/24.*\n1073741824\n6\\.`));
  }
});

test("a file of the project that changes during the run is seen at once", async ({ lab }) => {
  const file = join(PROJECT_DIR, ".lab", `fresh-${process.pid}`);
  try {
    for (const text of ["first", "second, longer", "3rd"]) {
      writeFileSync(file, text);
      assert.is(await lab.run(1, ["cat", file]), text);
      assert.is(await lab.run(2, `cat /mxfs/.lab/fresh-${process.pid}`), text);
    }
  } finally {
    rmSync(file);
  }
});

test("the guests' own kernel modules load, and the daemon's launcher is in place", async ({ lab }) => {
  await lab.run(1, "modprobe xfs && modprobe libcrc32c && grep -w xfs /proc/filesystems");
  await lab.run(1, "test -x /usr/sbin/mxfsd && test -x /usr/sbin/mxfs_lock");
});

test("both nodes write one disk and read each other's data", async ({ lab }) => {
  await lab.run(1, "echo written by node1 | dd of=/dev/sda bs=512 conv=sync oflag=direct,dsync");
  assert.match(
    await lab.run(2, "dd if=/dev/sda bs=512 count=1 iflag=direct | tr -d '\\0'"),
    /^written by node1/,
  );
});

test("multicast goes from node to node", async ({ lab }) => {
  const receive = [
    "import socket,struct",
    "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)",
    "s.bind(('',7601))",
    "m=struct.pack('4s4s',socket.inet_aton('239.66.83.1'),socket.inet_aton('10.77.0.2'))",
    "s.setsockopt(socket.IPPROTO_IP,socket.IP_ADD_MEMBERSHIP,m)",
    "print('ready',flush=True)",
    "data,peer=s.recvfrom(1500)",
    "print(data.decode(),peer[0],flush=True)",
  ].join("\n");
  const send = [
    "import socket",
    "s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)",
    "s.setsockopt(socket.IPPROTO_IP,socket.IP_MULTICAST_IF,socket.inet_aton('10.77.0.1'))",
    "s.sendto(b'hello',('239.66.83.1',7601))",
  ].join("\n");
  const receiver = lab.spawn(2, ["timeout", "30", "python3", "-c", receive]);
  let said = "";
  receiver.on("stdout", (data) => {
    said += data.toString();
  });
  await printed(receiver, "ready");
  await lab.run(1, ["python3", "-c", send]);
  assert.is((await receiver.done).status, 0);
  assert.match(said, /hello 10\.77\.0\.1/);
});

test("a node preempted at the disk can read but no longer write", async ({ lab }) => {
  await lab.run(1, "sg_persist -n -o -G -S 0x11 /dev/sda");
  await lab.run(2, "sg_persist -n -o -G -S 0x22 /dev/sda");
  const keys = await lab.run(1, "sg_persist -n -i -k /dev/sda");
  assert.match(keys, /0x11/);
  assert.match(keys, /0x22/);
  await lab.run(1, "sg_persist -n -o -R -K 0x11 -T 5 /dev/sda");
  assert.is(
    (await lab.exec(2, "sg_persist -n -o -R -K 0x22 -T 5 /dev/sda")).status,
    24,
    "one reservation only",
  );
  await lab.run(2, DIRECT_WRITE);
  await lab.run(1, "sg_persist -n -o -P -K 0x11 -S 0x22 -T 5 /dev/sda");
  const fenced = await lab.exec(2, DIRECT_WRITE);
  assert.is(fenced.status, 1);
  assert.match(fenced.stderr, /Invalid exchange/);
  await lab.run(2, DIRECT_READ);
  await lab.run(1, DIRECT_WRITE);
  await lab.run(1, "sg_persist -n -o -C -K 0x11 /dev/sda");
  await lab.exec(2, DIRECT_READ); // takes the unit attention
  await lab.run(2, DIRECT_WRITE);
});

test("a node with its network cut still runs commands, and reaches its peer again once healed", async ({
  lab,
}) => {
  const ping = "busybox ping -c 1 -W 2 node2";
  await lab.run(1, ping);
  lab.cut(2, "network");
  assert.is(lab.status().nodes[1]?.network, "cut");
  assert.is((await lab.exec(1, ping)).status, 1);
  assert.is(await lab.run(2, "echo here"), "here\n");
  await lab.run(2, DIRECT_READ);
  lab.heal(2);
  await lab.run(1, "for i in 1 2 3 4 5; do busybox ping -c 1 -W 2 node2 && exit 0; done; exit 1");
});

test("I/O of a node with its disk cut hangs, and completes in the same session once healed", async ({
  lab,
}) => {
  await lab.run(1, "sg_persist -n -o -G -S 0x11 /dev/sda; sg_persist -n -o -R -K 0x11 -T 5 /dev/sda");
  lab.cut(1, "disk");
  assert.is(lab.status().nodes[0]?.disk, "cut");
  let ended = false;
  const write = lab.exec(1, DIRECT_WRITE).finally(() => {
    ended = true;
  });
  await lab.run(2, DIRECT_READ);
  await delay(3000);
  assert.is(ended, false, "the write hangs");
  lab.heal(1, "disk");
  assert.is((await write).status, 0, "still registered, so the write is let through");
  await lab.run(1, "sg_persist -n -o -C -K 0x11 /dev/sda");
});

test("a frozen node refuses commands, and goes on where it was once thawed", async ({ lab }) => {
  const counting = lab.spawn(2, "echo begun; read line; echo got $line");
  await printed(counting, "begun");
  lab.freeze(2);
  assert.is(lab.state(2), "frozen");
  assert.match((await rejection(() => lab.exec(2, "true"))).message, /node2 is frozen/);
  lab.thaw(2);
  const answer = once(counting, "stdout");
  await counting.write(Buffer.from("data\n"));
  assert.is(String((await answer)[0]), "got data\n");
  assert.is((await counting.done).status, 0);
});

test("a power cut ends running commands with an error, and /etc/mxfs outlives it", async ({ lab }) => {
  await lab.run(2, "echo 1234 >/etc/mxfs/node.uuid; echo lost >/root/file; sync");
  const bootId = await lab.run(2, "cat /proc/sys/kernel/random/boot_id");
  const running = lab.spawn(2, "echo begun; sleep 1000");
  await printed(running, "begun");
  lab.kill(2);
  const error = await rejection(() => running.done);
  assert.instance(error, GuestGoneError);
  assert.match(error.message, /node2: the guest died/);
  assert.is(lab.state(2), "off");
  assert.match((await rejection(() => lab.exec(2, "true"))).message, /node2 is off/);
  await lab.start(2);
  assert.is.not(await lab.run(2, "cat /proc/sys/kernel/random/boot_id"), bootId);
  assert.is(await lab.run(2, "cat /etc/mxfs/node.uuid"), "1234\n");
  assert.is((await lab.exec(2, "test -e /root/file")).status, 1);
  assert.match((await rejection(() => lab.start(2))).message, /running already/);
});

test("the console shows what the kernel says, over a power cut", async ({ lab }) => {
  await lab.run(1, "echo 'mxfs-lab: said before' >/dev/kmsg");
  for (let tries = 0; !lab.console(1).includes("said before"); tries++) {
    assert.ok(tries < 50, "the line reaches the console log");
    await delay(100);
  }
});

test("another process sees the same lab, and a second up of it is refused", async ({ lab }) => {
  assert.is(await Lab.open(lab.name).run(1, "hostname"), "node1\n");
  assert.match((await rejection(() => Lab.up({ name: lab.name }))).message, /is up already/);
});

test("a lab whose maker crashed half-way is removed whole", async () => {
  const name = `${NAME}-crash`;
  const child = spawn(process.execPath, [CLI, "up", "--nodes", "1"], {
    env: { ...process.env, MXFS_LAB: name },
    stdio: "ignore",
  });
  const exited = once(child, "exit");
  const pidFile = `/run/mxfs-lab/${name}/node1/pid`;
  while (!existsSync(pidFile)) await delay(20);
  child.kill("SIGKILL");
  await exited;
  assert.ok(remains(name).length > 0, "a crash leaves a guest");
  assert.match((await rejection(async () => Lab.open(name))).message, /half-built/);
  Lab.down(name);
  assert.equal(remains(name), []);
});

test("the lio target aborts on preempt, and its path can be cut and healed", async () => {
  const name = `${NAME}-lio`;
  const lab = await Lab.up({
    name,
    nodes: 2,
    target: "lio",
    memoryMib: 512,
    diskBytes: 2 ** 30,
    ephemeral: true,
  });
  try {
    await lab.run(1, "sg_persist -n -o -G -S 0x11 /dev/sda");
    await lab.run(2, "sg_persist -n -o -G -S 0x22 /dev/sda");
    await lab.run(1, "sg_persist -n -o -R -K 0x11 -T 5 /dev/sda");
    await lab.run(2, DIRECT_WRITE);
    await lab.run(1, "sg_persist -n -o -A -K 0x11 -S 0x22 -T 5 /dev/sda");
    assert.match((await lab.exec(2, DIRECT_WRITE)).stderr, /Invalid exchange/);
    lab.cut(1, "disk");
    const write = lab.exec(1, DIRECT_WRITE);
    await delay(2000);
    lab.heal(1);
    assert.is((await write).status, 0);
  } finally {
    lab.down();
  }
  assert.equal(remains(name), []);
});

test.run();
