// SPDX-License-Identifier: GPL-2.0-only
//
// What a file system has to do, done on one node and looked at from the other, with holder and member in either
// place.
//
// Weakness: a sample of POSIX, not a conformance suite; what a local file system and MXFS do alike is taken as right.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { MOUNTPOINT, Suite } from "./mxfs_suite.js";

const suite = new Suite("mxfs-posix", { mounted: true });
const NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups";

interface Side {
  readonly node: number;
  readonly role: string;
  /** Runs a script in the test's directory; its output, or the failure. */
  sh(script: string): Promise<string>;
  /** Expects a script to fail with a message. */
  fails(script: string, why: RegExp): Promise<void>;
}

function side(node: number, role: string, dir: string): Side {
  return {
    node,
    role,
    sh: (script) => suite.lab.run(node, `set -e; cd ${dir}; ${script}`, { timeoutMs: 180_000 }),
    fails: async (script, why) => {
      const result = await suite.lab.exec(node, `cd ${dir}; ${script}`, { timeoutMs: 180_000 });
      assert.is.not(result.status, 0, `${role}: expected "${script}" to fail`);
      assert.match(result.stderr, why, `${role}: ${script}`);
    },
  };
}

let testNumber = 0;

/** The body runs twice: acting on the holder and watching on the member, then the other way round. */
function seenFromTheOther(sentence: string, body: (here: Side, there: Side) => Promise<void>): void {
  const number = ++testNumber;
  suite.proves(sentence, async () => {
    const { holder, member } = await suite.volume.roles();
    for (const [here, there] of [
      [holder, member],
      [member, holder],
    ] as const) {
      const dir = `${MOUNTPOINT}/t${number}-${here}`;
      await suite.lab.run(here, ["mkdir", dir]);
      const role = (node: number): string => (node === holder ? "holder" : "member");
      await body(side(here, role(here), dir), side(there, role(there), dir));
    }
  });
}

seenFromTheOther(
  "Files, directories, links and special files are what they are on both nodes",
  async (here, there) => {
    await here.sh(`echo text >file; mkdir -p a/b/c; ln file hard; ln -s file soft; ln -s /nowhere dangling
    mknod pipe p; mknod null c 1 3; mknod disk b 7 200`);
    const listing =
      "for f in file a hard soft dangling pipe null disk; do stat -c '%n %F %h %a %u %g %s %t %T %i' $f; done";
    const seen = await there.sh(listing);
    assert.is(seen, await here.sh(listing));
    assert.match(seen, /^hard regular file 2 /m);
    assert.match(seen, /^null character special file .* 1 3 /m);
    assert.is(await there.sh("readlink soft dangling; cat soft; cat hard"), "file\n/nowhere\ntext\ntext\n");
    assert.is(await there.sh("echo data >null; stat -c %s null"), "0\n");
    await there.fails("mkdir a", /File exists/);
    await there.fails("cat dangling", /No such file/);
    await there.fails("ln file hard", /File exists/);
    await there.fails("ln a alink", /hard link not allowed|Operation not permitted/);
  },
);

seenFromTheOther("What is removed on one node is gone on the other at once", async (here, there) => {
  await here.sh("echo 1 >file; ln file second; mkdir -p dir/sub; ln -s x soft");
  await there.sh("stat file second dir dir/sub; cat file; ls -R . >/dev/null");
  await here.fails("rmdir dir", /not empty/);
  await here.fails("unlink dir", /Is a directory/);
  await here.fails("rmdir file", /Not a directory/);
  await here.sh("rm file; rmdir dir/sub; rmdir dir; rm soft");
  for (const name of ["file", "dir", "dir/sub", "soft"]) {
    await there.fails(`stat ${name}`, /No such file/);
  }
  assert.is(await there.sh("stat -c %h second; ls -A"), "1\nsecond\n");
  // A name that was looked for in vain, too, is not remembered wrongly.
  await here.sh("echo again >file");
  assert.is(await there.sh("cat file"), "again\n");
});

seenFromTheOther(
  "Rename moves, replaces, exchanges, refuses, and never makes a loop",
  async (here, there) => {
    await here.sh("echo one >one; echo two >two; mkdir -p d1/inner d2 full; echo x >full/x; mkdir empty");
    await there.sh("cat one two >/dev/null; ls -R >/dev/null");
    await here.sh("mv one d1/moved");
    assert.is(await there.sh("cat d1/moved; test ! -e one && echo gone"), "one\ngone\n");
    await here.sh("mv -T two d1/moved");
    assert.is(await there.sh("cat d1/moved; test ! -e two && echo gone"), "two\ngone\n");
    await here.sh("echo three >three; mxfs-work rename three d1/moved exchange");
    assert.is(await there.sh("cat three d1/moved"), "two\nthree\n");
    await here.fails("mxfs-work rename three d1/moved noreplace", /File exists/);
    await here.sh("mxfs-work rename three four noreplace");
    assert.is(await there.sh("cat four"), "two\n");
    await there.sh("mv d1/inner d2/inner; mv d2 d1/d2");
    assert.is(await here.sh("stat -c '%h %F' d1/d2/inner d1"), "2 directory\n3 directory\n");
    await here.fails("mxfs-work rename d1 d1/d2/inner/loop 0", /Invalid argument/);
    // XFS says EEXIST, others ENOTEMPTY; POSIX allows both.
    await here.fails("mxfs-work rename empty full 0", /not empty|File exists/);
    await here.fails("mxfs-work rename empty four 0", /Not a directory/);
    await here.sh("mxfs-work rename d1/d2 empty 0");
    assert.is(await there.sh("ls -A empty; stat -c %h d1"), "inner\n2\n");
  },
);

seenFromTheOther(
  "Mode, owner, times and size that one node sets are what the other shows next",
  async (here, there) => {
    await here.sh("echo 0123456789 >f; mkdir d");
    for (const [change, show, expected] of [
      ["chmod 2751 d; chmod 4640 f", "stat -c %a d f", "2751\n4640\n"],
      ["chown 1234:5678 f d", "stat -c %u:%g f d", "1234:5678\n1234:5678\n"],
      [
        "touch -m -d @1000000000.123456789 f; touch -a -d @1100000000 f",
        "stat -c '%.9Y %X' f",
        "1000000000.123456789 1100000000\n",
      ],
      ["truncate -s 4 f", "cat f", "0123"],
      ["truncate -s 6 f", "od -An -c f", "   0   1   2   3  \\0  \\0\n"],
      ["truncate -s 5000000000 f", "stat -c %s f", "5000000000\n"],
      [": >f", "stat -c %s f", "0\n"],
    ] as const) {
      await here.sh(change);
      assert.is(await there.sh(show), expected, `${here.role}: ${change}`);
    }
  },
);

seenFromTheOther("Permissions are judged for the caller, wherever he is", async (here, there) => {
  await here.sh(`echo secret >root; chmod 600 root; echo open >open; chmod 644 open
    mkdir closed; echo x >closed/x; chmod 700 closed; mkdir sticky; chmod 1777 sticky; echo r >sticky/root
    mkdir own; chown 65534:65534 own; echo g >group; chown 0:65534 group; chmod 060 group`);
  for (const it of [here, there]) {
    await it.fails(`${NOBODY} cat root`, /Permission denied/);
    await it.fails(`${NOBODY} sh -c 'echo x >open'`, /Permission denied/);
    await it.fails(`${NOBODY} cat closed/x`, /Permission denied/);
    await it.fails(`${NOBODY} rm -f sticky/root`, /not permitted/);
    await it.fails(`${NOBODY} chmod 777 open`, /not permitted/);
    await it.fails(`${NOBODY} touch here`, /Permission denied/);
    await it.sh(
      `${NOBODY} sh -c 'cat open group; umask 027; echo mine >own/${it.node}; mkdir own/d${it.node}'`,
    );
  }
  assert.is(
    await there.sh(`stat -c '%u %g %a' own/${here.node} own/d${here.node} own/${there.node}`),
    "65534 65534 640\n65534 65534 750\n65534 65534 640\n",
  );
  await here.sh("chmod 604 root");
  assert.is(await there.sh(`${NOBODY} cat root`), "secret\n");
  await here.sh("chmod 600 root");
  await there.fails(`${NOBODY} cat root`, /Permission denied/);
});

seenFromTheOther("A write by somebody else takes the set-id bits away", async (here, there) => {
  await here.sh("echo x >f; chmod 6777 f");
  assert.is(await there.sh("stat -c %a f"), "6777\n");
  await there.sh(`${NOBODY} sh -c 'echo more >>f'`);
  assert.is(await here.sh("stat -c %a f; cat f"), "777\nx\nmore\n");
});

seenFromTheOther(
  "A directory of 600 names is listed completely, once each, on both nodes",
  async (here, there) => {
    await here.sh("mkdir big; mxfs-work names big n 600");
    assert.is(await there.sh("ls -U big | wc -l; ls -U big | sort -u | wc -l"), "600\n600\n");
    assert.is(await there.sh("ls -A big | md5sum"), await here.sh("ls -A big | md5sum"));
    await there.sh("rm big/n0?0?");
    assert.is(await here.sh("ls -U big | wc -l"), "540\n");
    await here.sh("rm -r big");
    await there.fails("ls big", /No such file/);
  },
);

seenFromTheOther("Extended attributes and ACLs are shared, and ACLs are obeyed", async (here, there) => {
  await here.sh(
    "echo x >f; chmod 600 f; mkdir d; setfattr -n user.colour -v green f; setfattr -n user.second -v 2 f",
  );
  assert.is(await there.sh("getfattr --only-values -n user.colour f"), "green");
  await there.sh("setfattr -n user.colour -v blue f; setfattr -x user.second f");
  assert.is(await here.sh("getfattr -d f | grep user"), 'user.colour="blue"\n');
  await here.fails("getfattr -n user.second f", /No such attribute/);
  await here.sh(
    "setfattr -n trusted.t -v root f; head -c 3000 /dev/zero | tr '\\0' a >/tmp/v; setfattr -n user.long -v $(cat /tmp/v) f",
  );
  assert.is(
    await there.sh("getfattr --only-values -n user.long f | wc -c; getfattr --only-values -n trusted.t f"),
    "3000\nroot",
  );
  await here.sh("setfacl -m u:65534:r f; setfacl -d -m u:65534:rwx d");
  assert.match(await there.sh("getfacl -n f"), /^user:65534:r--$/m);
  assert.is(await there.sh(`${NOBODY} cat f`), "x\n");
  await there.fails(`${NOBODY} sh -c 'echo y >>f'`, /Permission denied/);
  await there.sh("echo z >d/inherits");
  assert.match(await here.sh("getfacl -n d/inherits"), /^user:65534:rwx/m);
  await there.sh("setfacl -b f");
  await here.fails(`${NOBODY} cat f`, /Permission denied/);
});

seenFromTheOther("Both nodes see the same size and free space", async (here, there) => {
  const show = "stat -f -c '%T %s %S %b %l' . ";
  assert.is(await there.sh(show.replace("%T ", "")), await here.sh(show.replace("%T ", "")));
  const before = Number(await there.sh("stat -f -c %f ."));
  await here.sh("head -c 20000000 /dev/urandom >filler; sync filler");
  const after = Number(await there.sh("stat -f -c %f ."));
  assert.ok(
    before - after >= 4000,
    `free blocks on the ${there.role}: ${before} before, ${after} after 20 MB`,
  );
  await here.sh("rm filler");
});

seenFromTheOther(
  "What was written is read on the other node, in every size and at every place",
  async (here, there) => {
    await here.sh(`head -c 3000001 /dev/urandom >f; sync f; md5sum <f >sum
    dd if=/dev/urandom of=holes bs=4096 count=3 seek=50 status=none
    printf abc | dd of=f bs=1 seek=4094 conv=notrunc status=none; md5sum <f >sum`);
    assert.is(await there.sh("md5sum <f"), await here.sh("cat sum"));
    assert.is(
      await there.sh("md5sum <holes; stat -c %s holes"),
      await here.sh("md5sum <holes; stat -c %s holes"),
    );
    await there.sh("printf XYZ | dd of=f bs=1 seek=4095 conv=notrunc,fsync status=none");
    assert.is(await here.sh("dd if=f bs=1 skip=4094 count=4 status=none"), "aXYZ");
  },
);

seenFromTheOther("fallocate reserves, keeps and punches, and the other node sees it", async (here, there) => {
  await here.sh("fallocate -l 1000000 f; printf data | dd of=f bs=1 seek=500000 conv=notrunc status=none");
  assert.is(await there.sh("stat -c %s f; dd if=f bs=1 skip=500000 count=4 status=none"), "1000000\ndata");
  await there.sh("fallocate -p -o 450000 -l 100000 f");
  assert.is(
    await here.sh("stat -c %s f; dd if=f bs=1 skip=500000 count=4 status=none | od -An -c"),
    "1000000\n  \\0  \\0  \\0  \\0\n",
  );
});

seenFromTheOther("O_APPEND and O_TRUNC do what they say across the nodes", async (here, there) => {
  await here.sh("echo 1 >f");
  await there.sh("echo 2 >>f");
  await here.sh("echo 3 >>f");
  assert.is(await there.sh("cat f"), "1\n2\n3\n");
  await there.sh("echo new >f");
  assert.is(await here.sh("cat f"), "new\n");
});

seenFromTheOther("Shared mappings reach the other node's reads, private ones never", async (here, there) => {
  await here.sh("echo some text that is longer than a word >f; mxfs-work mmap-private f");
  await there.sh("mxfs-work mmap-private f");
  const before = await there.sh("md5sum <f");
  assert.is(await here.sh("md5sum <f"), before);
  await here.sh("truncate -s 8192 g; mxfs-work mmap-set g 4096 77");
  assert.is((await there.sh("od -An -tu8 -j4096 -N8 g")).trim(), "77");
  await there.sh("mxfs-work mmap-set g 4096 78");
  assert.is((await here.sh("od -An -tu8 -j4096 -N8 g")).trim(), "78");
  await here.sh("printf '\\117\\0\\0\\0\\0\\0\\0\\0' | dd of=g bs=1 seek=4096 conv=notrunc status=none");
  await there.sh("mxfs-work mmap-wait g 4096 79 10");
});

seenFromTheOther(
  "A file unlinked on the other node goes on for who has it open, then is freed",
  async (here, there) => {
    const { volume } = suite;
    const path = (await here.sh("echo x >f; realpath f")).trim();
    const holding = volume.hold(here.node, ["mxfs-work", "open-unlinked", path]);
    assert.is(await holding.first, "open");
    await there.sh("rm f");
    await here.fails("stat f", /No such file/);
    assert.is(await holding.letGo(), 0, "the open file's own checks");
    // And when unlinker and opener share a node.
    await here.sh("echo y >g");
    const local = volume.hold(here.node, ["mxfs-work", "open-unlinked", path.replace(/f$/, "g")]);
    assert.is(await local.first, "open");
    await here.sh("rm g");
    assert.is(await local.letGo(), 0);
    await there.fails("stat g", /No such file/);
  },
);

seenFromTheOther("fsync returns when the data is safe, and sync -f, too", async (here, there) => {
  await here.sh("dd if=/dev/urandom of=f bs=64k count=8 conv=fsync status=none; sync -f .; sync -d f");
  assert.is(await there.sh("md5sum <f"), await here.sh("md5sum <f"));
});

suite.proves("The cluster's own directory is neither seen nor reached, on either node", async () => {
  const { lab } = suite;
  for (const node of [1, 2]) {
    assert.not.match(await lab.run(node, ["ls", "-a", MOUNTPOINT]), /\.mxfs/);
    for (const command of ["ls", "stat", "rm -rf", "rmdir"]) {
      const result = await lab.exec(node, `${command} ${MOUNTPOINT}/.mxfs/lockstate`);
      assert.ok(command === "rm -rf" || result.status !== 0, `${command} on node${node}`);
    }
    assert.is.not((await lab.exec(node, `mkdir ${MOUNTPOINT}/.mxfs`)).status, 0);
    assert.is.not((await lab.exec(node, `mv ${MOUNTPOINT}/.mxfs ${MOUNTPOINT}/moved`)).status, 0);
  }
});

suite.proves("After all of this the XFS is clean", async () => {
  await suite.volume.umountAll();
  await suite.volume.checkXfs(1);
});

test.run();
