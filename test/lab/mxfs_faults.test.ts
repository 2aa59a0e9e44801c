// SPDX-License-Identifier: GPL-2.0-only
//
// The holder dies, hangs, leaves, comes back; two nodes under load, a checker outside of the guests. What a survivor has
// in hand goes on: open files, locks, current directories, unlinked files, mappings, processes that wait.
//
// Weakness: timings are shorter than the defaults (TIMINGS); the demo and lab:chaos use the defaults.

import * as assert from "uvu/assert";
import type { Field } from "../../lab/field.js";
import { type Holding, until } from "../../lab/volume.js";
import { FaultSuite } from "./mxfs_faults_suite.js";
import { MOUNTPOINT } from "./mxfs_suite.js";

const faults = new FaultSuite("mxfs-faults", 2);
const { suite } = faults;

interface Hands {
  readonly letGo: () => Promise<void>;
}

/** A shell in a guest: says "ready" after `before`, and does `after` when it is let go. */
function inShell(node: number, before: string, after: string): Holding {
  return suite.volume.hold(node, [
    "sh",
    "-c",
    `set -e; ${before}; echo ready; read -r line || true; ${after}`,
  ]);
}

/** Everything that a process can have in hand on a mount, taken on `node`; `other` unlinks one of the files. */
async function takeInHand(node: number, other: number, dir: string): Promise<Hands> {
  const { lab, volume } = suite;
  await lab.run(
    node,
    `mkdir -p ${dir}/cwd/below && cd ${dir} && echo 1 >open && echo gone >unlinked && echo x >there`,
  );
  await lab.run(
    node,
    `truncate -s 8192 ${dir}/mapped; : >${dir}/flocked; : >${dir}/fcntled; : >${dir}/waited`,
  );
  const waited = volume.hold(other, ["mxfs-work", "hold", `${dir}/waited`, "flock"]);
  const mine = [
    inShell(
      node,
      `exec 3>>${dir}/open; echo 2 >&3`,
      `echo 3 >&3; cat ${dir}/open | tr '\\n' ' ' | grep '^1 2 3 $'`,
    ),
    inShell(node, `cd ${dir}/cwd/below`, "echo here >file; ls | grep '^file$'; cd ..; ls | grep '^below$'"),
    volume.hold(node, ["mxfs-work", "open-unlinked", `${dir}/unlinked`]),
    volume.hold(node, ["mxfs-work", "hold", `${dir}/flocked`, "flock"]),
    volume.hold(node, ["mxfs-work", "hold", `${dir}/fcntled`, "fcntl"]),
  ];
  const said = await Promise.all([...mine.map((it) => it.first), waited.first]);
  assert.equal(said, ["ready", "ready", "open", "held", "held", "held"]);
  await lab.run(other, `rm ${dir}/unlinked && cat ${dir}/there`);
  const waits = volume.work(node, ["locked-add", `${dir}/waited`, "flock", 1]);
  const sees = volume.work(node, ["mmap-wait", `${dir}/mapped`, 4104, 4711, 150]);
  const later = Promise.all([waits, sees]);
  later.catch(() => undefined); // awaited below
  return {
    async letGo() {
      for (const kind of ["flock", "fcntl"]) {
        const held = await volume.work(node, ["try-lock", `${dir}/${kind}ed`, kind]);
        assert.match(held, /^busy/, `${kind} of the survivor`);
      }
      await volume.work(node, ["mmap-set", `${dir}/mapped`, 4104, 4711]);
      await later;
      for (const it of mine) assert.is(await it.letGo(), 0);
      for (const kind of ["flock", "fcntl"]) {
        assert.is(await volume.work(node, ["try-lock", `${dir}/${kind}ed`, kind]), "free\n");
      }
    },
  };
}

async function holderAndMember(field: Field): Promise<{ holder: number; member: number }> {
  const holder = await field.holder();
  return { holder, member: holder === 1 ? 2 : 1 };
}

faults.proves(
  "The holder's power is cut under load: the survivor takes over, and all that it has in hand goes on",
  async (field, directory) => {
    const { holder, member } = await holderAndMember(field);
    const hands = await takeInHand(member, holder, `${directory}-hands`);
    await field.kill(holder);
    assert.is(await field.holder(), member);
    await hands.letGo();
    assert.equal(field.load.failuresOf([member]), []);
    await field.keysAre([member]);
    await field.bringBack();
    assert.is(await field.holder(), member);
  },
);

/** How many operations of members this holder has executed. */
async function executed(holder: number): Promise<number> {
  const said = await suite.volume.work(holder, ["counters"]);
  return Number(/^fsop_executed (\d+)$/m.exec(said)?.[1]);
}

/**
 * What `from` has to say does not reach `to` any more; that it has heard does. Without the acknowledgements (an IP packet below 64
 * bytes) TCP at the other end would send nothing new after a few tenths of a second.
 */
async function muteTowards(from: number, to: number): Promise<void> {
  const address = `10.77.0.${to}/32`;
  await suite.lab.run(
    from,
    `dev=$(ip -o route get ${address} | sed 's/.* dev \\([^ ]*\\).*/\\1/')
    tc qdisc add dev $dev root handle 1: prio
    tc filter add dev $dev parent 1: protocol ip pref 1 u32 match ip dst ${address} match u16 0 0xffc0 at 2 action ok
    tc filter add dev $dev parent 1: protocol ip pref 2 u32 match ip dst ${address} action drop`,
  );
}

faults.proves(
  "What a holder has done, and dies before it could answer, is not done again by the member that takes over",
  async (field, directory) => {
    const { lab } = suite;
    const { holder, member } = await holderAndMember(field);
    const dir = `${directory}-unanswered`;
    // Each is the first on its directory that needs the holder, and nothing but that system call.
    const operations: Readonly<Record<string, string>> = {
      mkdir1: 'mkdir("new")',
      mkdir2: 'mkdir("new")',
      mkdir3: 'mkdir("new")',
      symlink: 'symlink("target", "new")',
      link: 'link("there", "new")',
      rename: 'rename("there", "new")',
      rmdir: 'rmdir("gone")',
    };
    const names = Object.keys(operations);
    await field.load.stop(member);
    await lab.run(
      member,
      `for d in ${names.join(" ")}; do
        mkdir -p ${dir}/$d/gone && cd ${dir}/$d && : >there && { stat new there gone >/dev/null 2>&1 || true; }
      done`,
    );
    // All are let go by one word, since the member's lease runs out soon when no answer comes any more.
    const each = names.map((name) => `start("${name}", sub { ${operations[name]} });`).join(" ");
    const waiting = suite.volume.hold(member, [
      "perl",
      "-e",
      `pipe(my $gate, my $key) or die;
      sub start {
        my ($name, $act) = @_;
        return if fork() // die;
        chdir("${dir}/$name") or die;
        close($key);
        <$gate>;
        $act->() or do { warn "$name: $!\n"; exit 1 };
        open(my $done, ">", "/tmp/answered-$name") or die;
        exit 0;
      }
      ${each}
      $| = 1; print "ready\n"; <STDIN>; close($key);
      my $failed = 0;
      while (wait() > 0) { $failed = 1 if $? }
      exit $failed;`,
    ]);
    assert.is(await waiting.first, "ready");
    const before = await executed(holder);
    field.begins();
    await muteTowards(holder, member);
    const result = waiting.letGo();
    result.catch(() => undefined); // awaited below
    // One that needs a lock first does not come so far; it is done by the next holder, once.
    await until("the holder has done most of it", 10_000, async () =>
      (await executed(holder)) >= before + names.length / 2 ? true : undefined,
    );
    await lab.run(holder, `sync -f ${MOUNTPOINT}`);
    const answered = await lab.run(member, "find /tmp -maxdepth 1 -name 'answered-*'");
    assert.is(answered, "", "the member was answered");
    lab.kill(holder);
    field.load.gone(holder);
    assert.is(await result, 0);
    assert.is(await field.holder(), member);
    const left = await lab.run(member, `cd ${dir} && ls -d */new */gone`);
    const rest = names.flatMap((name) => (name === "rmdir" ? [] : [`${name}/new`, `${name}/gone`]));
    assert.equal(left.trim().split("\n").sort(), rest.sort());
    await field.bringBack();
  },
);

faults.proves(
  "The holder leaves under load: no operation of the member fails, and all that it has in hand goes on",
  async (field, directory) => {
    const { holder, member } = await holderAndMember(field);
    const dir = `${directory}-hands`;
    await suite.lab.run(member, `mkdir -p ${dir}; : >${dir}/flocked; : >${dir}/fcntled`);
    const held = ["flock", "fcntl"].map((kind) =>
      suite.volume.hold(member, ["mxfs-work", "hold", `${dir}/${kind}ed`, kind]),
    );
    assert.equal(await Promise.all(held.map((it) => it.first)), ["held", "held"]);
    await field.leave(holder);
    assert.is(await field.holder(), member);
    assert.equal(field.load.failuresOf([member]), []);
    assert.is((await suite.volume.keys(member)).length, 1);
    await field.bringBack();
    for (const kind of ["flock", "fcntl"]) {
      assert.match(await suite.volume.work(holder, ["try-lock", `${dir}/${kind}ed`, kind]), /^busy/);
    }
    for (const it of held) assert.is(await it.letGo(), 0);
  },
);

faults.proves(
  "A frozen holder wakes up late, and its daemon is started anew: it stays thrown out, and cannot write",
  async (field) => {
    const { holder, member } = await holderAndMember(field);
    const daemon = (await suite.volume.kernelState(holder))?.pid ?? 0;
    await field.freezeUntilFenced(holder);
    assert.is(await field.holder(), member);
    await field.signalDaemon(holder, "KILL", daemon);
    await field.goOn([member]);
    await faults.cannotWrite(holder);
    await field.isThrownOut(holder);
    assert.is((await suite.volume.keys(member)).length, 1, "a restarted daemon must not register again");
    assert.equal(field.load.failuresOf([member]), []);
    await field.bringBack();
  },
);

faults.proves(
  "A holder that is switched off and on mounts again before anyone has noticed: the member takes over, it joins",
  async (field) => {
    const { holder, member } = await holderAndMember(field);
    field.begins();
    suite.lab.kill(holder);
    field.load.gone(holder);
    await suite.lab.start(holder);
    await suite.volume.prepare(holder);
    await Promise.all([field.mount(holder), field.goOn([member])]);
    assert.is(await field.holder(), member);
    assert.is(await suite.volume.role(holder), "member");
    assert.equal(field.load.failuresOf([member]), []);
    await field.bringBack();
  },
);

faults.run();
