// SPDX-License-Identifier: GPL-2.0-only
//
// The lock service without a mount, on this host: two real daemons in two network namespaces over one loop device,
// driven by real mxfs_lock processes.

import { type ChildProcess, spawn } from "node:child_process";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { run } from "../../lab/host.js";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "..");
const MXFSD = join(ROOT, "dist", "daemon", "mxfsd.js");
const MXFS_LOCK = join(ROOT, "dist", "daemon", "mxfs_lock.js");
const NODES = ["a", "b"] as const;
type Node = (typeof NODES)[number];

interface Ended {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

class Process {
  stdout = "";
  stderr = "";
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;
  #wake: (() => void)[] = [];

  constructor(program: string, args: readonly string[]) {
    this.#child = spawn(program, args, { stdio: ["pipe", "pipe", "pipe"] });
    // A program that ends without reading is no error here.
    this.#child.stdin?.on("error", () => undefined);
    const note = (): void => {
      for (const wake of this.#wake.splice(0)) {
        wake();
      }
    };
    this.#child.stdout?.on("data", (chunk: Buffer) => {
      this.stdout += chunk.toString();
      note();
    });
    this.#child.stderr?.on("data", (chunk: Buffer) => {
      this.stderr += chunk.toString();
      note();
    });
    this.ended = new Promise((resolve) => {
      this.#child.on("close", (status) => {
        resolve({ status, stdout: this.stdout, stderr: this.stderr });
        note();
      });
    });
  }

  async until(text: string): Promise<void> {
    while (!this.stdout.includes(text) && !this.stderr.includes(text)) {
      const over = await Promise.race([
        this.ended.then(() => true),
        new Promise<boolean>((resolve) => this.#wake.push(() => resolve(false))),
      ]);
      if (over && !this.stdout.includes(text) && !this.stderr.includes(text)) {
        throw new Error(`ended before it said "${text}":\n${this.stdout}${this.stderr}`);
      }
    }
  }

  /** Writes a line to its standard input; resolves with the first line of its output that matches, from now on. */
  async ask(line: string, answer: RegExp): Promise<string> {
    const from = this.stdout.length;
    this.#child.stdin?.write(`${line}\n`);
    return await this.line(answer, from);
  }

  /** The first whole line of the output behind `from` that matches. */
  async line(answer: RegExp, from = 0): Promise<string> {
    for (;;) {
      const found = this.stdout
        .slice(from)
        .split("\n")
        .slice(0, -1)
        .find((each) => answer.test(each));
      if (found !== undefined) {
        return found;
      }
      const over = await Promise.race([
        this.ended.then(() => true),
        new Promise<boolean>((resolve) => this.#wake.push(() => resolve(false))),
      ]);
      if (over) {
        throw new Error(`ended before it said ${answer}:\n${this.stdout}${this.stderr}`);
      }
    }
  }

  endInput(): void {
    this.#child.stdin?.end();
  }

  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }
}

class Service {
  readonly dir = mkdtempSync("/tmp/mxfs-service-");
  readonly tag = `mxs${process.pid}`;
  readonly daemons = new Map<Node, Process>();
  device = "";

  open(): void {
    const image = join(this.dir, "image");
    run("truncate", ["-s", "320M", image]);
    run("mkfs.xfs", ["-q", "-f", image]);
    this.device = run("losetup", ["-f", "--show", image]).trim();
    for (const node of NODES) {
      run("ip", ["netns", "add", `${this.tag}${node}`]);
    }
    run("ip", [
      "link",
      "add",
      "mx0",
      "netns",
      `${this.tag}a`,
      "type",
      "veth",
      "peer",
      "name",
      "mx0",
      "netns",
      `${this.tag}b`,
    ]);
    NODES.forEach((node, index) => {
      const ns = `${this.tag}${node}`;
      run("ip", ["-n", ns, "addr", "add", `10.99.0.${index + 1}/24`, "dev", "mx0"]);
      run("ip", ["-n", ns, "link", "set", "mx0", "up"]);
      run("ip", ["-n", ns, "link", "set", "lo", "up"]);
      const home = this.home(node);
      mkdirSync(join(home, "run"), { recursive: true });
      writeFileSync(
        join(home, "conf"),
        `[node]\niface = mx0\nuuid_file = ${home}/uuid\nincarnation_file = ${home}/incarnation\n[timing]\nheartbeat_ms = 500\nrenew_ms = 500\nlease_ms = 2500\nnode_timeout_ms = 6000\n[logging]\nfile = ${home}/log\nsyslog = no\n`,
      );
    });
  }

  home(node: Node): string {
    return join(this.dir, node);
  }

  start(node: Node): Process {
    // /run is the node's own, so that both control sockets have their usual names.
    const script = `mount --bind ${this.home(node)}/run /run && exec ${process.execPath} ${MXFSD} start ${this.device} --config ${this.home(node)}/conf --foreground`;
    const daemon = new Process("nsenter", [
      `--net=/run/netns/${this.tag}${node}`,
      "unshare",
      "-m",
      "sh",
      "-c",
      script,
    ]);
    this.daemons.set(node, daemon);
    return daemon;
  }

  socket(node: Node): string {
    const folder = join(this.home(node), "run", "mxfs");
    return join(folder, readdirSync(folder).find((name) => name.endsWith(".sock")) ?? "missing");
  }

  lock(node: Node, ...args: string[]): Process {
    return new Process(process.execPath, [MXFS_LOCK, "--socket", this.socket(node), ...args]);
  }

  session(node: Node): Process {
    return this.lock(node, "session");
  }

  close(): void {
    for (const daemon of this.daemons.values()) {
      daemon.signal("SIGKILL");
    }
    for (const node of NODES) {
      if (existsSync(`/run/netns/${this.tag}${node}`)) {
        run("ip", ["netns", "del", `${this.tag}${node}`]);
      }
    }
    if (this.device !== "") {
      run("losetup", ["-d", this.device]);
    }
    rmSync(this.dir, { recursive: true, force: true });
  }
}

const test = suite<{ service: Service }>("lock service without a mount");
test.before((context) => {
  context.service = new Service();
  try {
    context.service.open();
  } catch (error) {
    context.service.close();
    throw error;
  }
});
test.after((context) => context.service.close());

test("two daemons that start at once find each other: one coordinator, one member", async ({ service }) => {
  const daemons = NODES.map((node) => service.start(node));
  await Promise.all(daemons.map((daemon) => daemon.until("started role=")));
  const roles = daemons.map((daemon) => /started role=(\w+)/.exec(daemon.stderr)?.[1]).sort();
  assert.equal(roles, ["holder", "member"]);
});

test("a lock held on one node keeps the other out, and passes when it is released", async ({ service }) => {
  const holder = service.lock("a", "lock", "alpha", "EX");
  await holder.until("granted EX alpha");
  const refused = await service.lock("b", "lock", "alpha", "EX", "--noqueue").ended;
  assert.is(refused.status, 1);
  assert.match(refused.stderr, /held by somebody else/);
  const late = await service.lock("b", "lock", "alpha", "PR", "--timeout", "0.3").ended;
  assert.is(late.status, 1);
  assert.match(late.stderr, /not granted in time/);
  const waiter = service.lock("b", "lock", "alpha", "EX", "--", "echo", "through");
  await holder.until("somebody waits for alpha in EX");
  const released = await service.lock("a", "unlock", "alpha").ended;
  assert.is(released.status, 0, released.stderr);
  assert.is((await holder.ended).status, 0);
  const passed = await waiter.ended;
  assert.is(passed.status, 0);
  assert.match(passed.stdout, /through/);
});

test("readers share, and the exit status of a command under a lock is the command's", async ({ service }) => {
  const reader = service.lock("a", "lock", "beta", "PR");
  await reader.until("granted PR");
  assert.is((await service.lock("b", "lock", "beta", "3", "-n", "--", "sh", "-c", "exit 7").ended).status, 7);
  reader.signal("SIGTERM");
  assert.is((await reader.ended).status, 0);
});

test("a client that is killed loses its lock to who waits", async ({ service }) => {
  const victim = service.lock("a", "lock", "gamma", "EX");
  await victim.until("granted");
  const waiter = service.lock("b", "lock", "gamma", "EX", "--", "true");
  await victim.until("somebody waits");
  victim.signal("SIGKILL");
  assert.is((await waiter.ended).status, 0);
});

test("wrong usage is refused with status 2, an unknown lock with 6, no daemon with 3", async ({
  service,
}) => {
  assert.is((await service.lock("a", "lock", "x", "ZZ").ended).status, 2);
  assert.is((await service.lock("a", "lock", "inode:x").ended).status, 2);
  assert.is((await service.lock("a", "frobnicate").ended).status, 2);
  assert.is((await service.lock("a", "unlock", "nobody-has-it").ended).status, 6);
  const nobody = new Process(process.execPath, [MXFS_LOCK, "--socket", join(service.dir, "none"), "status"]);
  assert.is((await nobody.ended).status, 3);
});

test("status and dump show view and locks", async ({ service }) => {
  const holder = service.lock("a", "lock", "delta", "PW");
  await holder.until("granted");
  const status: unknown = JSON.parse((await service.lock("b", "status", "--json").ended).stdout);
  assert.ok(typeof status === "object" && status !== null && "members" in status);
  assert.is((status as { members: unknown[] }).members.length, 2);
  const dumps = await Promise.all(NODES.map(async (node) => (await service.lock(node, "dump").ended).stdout));
  assert.match(dumps.join(""), /granted PW/);
  holder.signal("SIGINT");
  assert.is((await holder.ended).status, 0);
});

test("a session converts and writes values, and the other node's clients see them", async ({ service }) => {
  const [a, b] = NODES.map((node) => service.session(node));
  if (a === undefined || b === undefined) {
    throw new Error("two nodes");
  }
  assert.is(await a.ask("lock eta EX", /^ok lock/), "ok lock eta EX value valid 0x");
  assert.is(
    await a.ask("convert eta PR value=first", /^ok/),
    'ok convert eta PR value valid 0x6669727374 "first"',
  );
  assert.is(await b.ask("lock eta PR", /^ok/), 'ok lock eta PR value valid 0x6669727374 "first"');
  const refused = await b.ask("convert eta EX noqueue", /^(ok|error)/);
  assert.match(refused, /^error EAGAIN/);
  assert.match(await b.ask("convert eta NL value=forged", /^(ok|error)/), /^error EINVAL .*PW or EX/);
  assert.is(await b.ask("convert eta NL", /^ok/), 'ok convert eta NL value valid 0x6669727374 "first"');
  assert.is(await a.ask("convert eta PW", /^ok/), 'ok convert eta PW value valid 0x6669727374 "first"');
  assert.is(await a.ask("unlock eta value=0x00ff", /^ok/), "ok unlock eta");
  assert.is(await b.ask("convert eta EX", /^ok/), "ok convert eta EX value valid 0x00ff");
  b.endInput();
  assert.is((await b.ended).status, 2, "the status of the last command that failed");
  a.endInput();
  assert.is((await a.ended).status, 0);
});

test("a value that its writer may have changed as it died is invalid, and --value heals it", async ({
  service,
}) => {
  const keeper = service.session("a");
  await keeper.ask("lock theta NL", /^ok/);
  const first = await service.lock("b", "lock", "theta", "EX", "--value", "whole", "--", "true").ended;
  assert.is(first.status, 0, first.stderr);
  const victim = service.lock("b", "lock", "theta", "EX", "--show-value");
  await victim.until("granted");
  assert.match(victim.stdout, /^value valid 0x77686f6c65 "whole"$/m);
  victim.signal("SIGKILL");
  assert.is(
    await keeper.ask("convert theta PR", /^ok/),
    'ok convert theta PR value invalid 0x77686f6c65 "whole"',
  );
  await keeper.ask("convert theta NL", /^ok/);
  await service.lock("b", "lock", "theta", "EX", "--value", "healed", "-q", "--", "true").ended;
  assert.is(
    await keeper.ask("convert theta PR", /^ok/),
    'ok convert theta PR value valid 0x6865616c6564 "healed"',
  );
  keeper.endInput();
  assert.is((await keeper.ended).status, 0);
});

test("the queues of a resource are shown by its master, in order", async ({ service }) => {
  const holder = service.session("a");
  await holder.ask("lock iota PR", /^ok/);
  const waiters = NODES.map((node) => service.session(node));
  for (const waiter of waiters) {
    waiter.ask("lock iota EX", /^ok/).catch(() => undefined);
    await holder.line(/^bast iota EX/);
  }
  const shows = async (): Promise<string> =>
    (
      await Promise.all(
        NODES.map(
          async (node) =>
            (
              await service.lock(node, "dump", "--queues", "--contended", "--resource", "iota").ended
            ).stdout,
        ),
      )
    ).join("");
  // The second waiter's request is on its way when the first one's BAST has been seen.
  let shown = await shows();
  for (let tries = 0; tries < 50 && shown.split(" wait ").length < 3; tries++) {
    shown = await shows();
  }
  assert.match(shown, /iota|user:/);
  assert.match(
    shown,
    /granted PR node [0-9a-f]+ lock \d+ asked to give way\n {2}wait {4}EX .*\n {2}wait {4}EX /,
  );
  for (const waiter of waiters) {
    waiter.signal("SIGKILL");
    await waiter.ended;
  }
  holder.endInput();
  assert.is((await holder.ended).status, 0);
});

test("two sessions on two nodes that wait for each other: the younger is told EDEADLK, the older goes on", async ({
  service,
}) => {
  const [a, b] = NODES.map((node) => service.session(node));
  if (a === undefined || b === undefined) {
    throw new Error("two nodes");
  }
  await a.ask("lock kappa EX", /^ok/);
  await b.ask("lock lambda EX", /^ok/);
  const older = a.ask("lock lambda EX", /^(ok|error)/);
  await b.line(/^bast lambda EX/);
  const younger = await b.ask("lock kappa EX", /^(ok|error)/);
  assert.match(
    younger,
    /^error EDEADLK kappa: waiting would be a deadlock: .*waits for (kappa|lambda).*waits for/,
  );
  await b.ask("unlock lambda", /^ok unlock/);
  assert.match(await older, /^ok lock lambda EX/);
  b.endInput();
  assert.is((await b.ended).status, 4);
  a.endInput();
  assert.is((await a.ended).status, 0);
});

test("a client keeps its lock when the coordinator leaves, and the leaver ends with status 0", async ({
  service,
}) => {
  const holderNode = NODES.find((node) => service.daemons.get(node)?.stderr.includes("role=holder")) ?? "a";
  const other = holderNode === "a" ? "b" : "a";
  const client = service.lock(other, "lock", "epsilon", "EX");
  await client.until("granted");
  const writer = service.session(other);
  for (const [name, kept] of [
    ["omega", "PR"],
    ["sigma", "NL"],
  ]) {
    await writer.ask(`lock ${name} EX`, /^ok/);
    await writer.ask(`convert ${name} ${kept} value=${name}`, /^ok/);
  }
  const leaver = service.daemons.get(holderNode);
  leaver?.signal("SIGTERM");
  assert.is((await leaver?.ended)?.status, 0);
  // A lock that kept writers out vouches for its value; one that did not knows the last it heard of.
  const reader = service.session(other);
  assert.match(await reader.ask("lock omega PR", /^ok/), /value valid 0x[0-9a-f]+ "omega"$/);
  assert.match(await reader.ask("lock sigma PR", /^ok/), /value invalid 0x[0-9a-f]+ "sigma"$/);
  for (const session of [writer, reader]) {
    session.endInput();
    assert.is((await session.ended).status, 0);
  }
  const refused = await service.lock(other, "lock", "epsilon", "EX", "--noqueue").ended;
  assert.is(refused.status, 1, `${refused.stdout}${refused.stderr}`);
  client.signal("SIGTERM");
  assert.is((await client.ended).status, 0);
});

test("a client whose daemon is killed says that its lock is lost, with status 5", async ({ service }) => {
  const node =
    NODES.find(
      (name) => readFileSync(join(service.home(name), "log"), "utf8").split("mxfsd ends").length === 1,
    ) ?? "a";
  const client = service.lock(node, "lock", "zeta", "EX");
  await client.until("granted");
  service.daemons.get(node)?.signal("SIGKILL");
  const ended = await client.ended;
  assert.is(ended.status, 5);
  assert.match(ended.stderr, /is lost/);
});

test.run();
