// SPDX-License-Identifier: GPL-2.0-only
//
// File data on holder and member: straight to the disk, through the holder, direct, buffered and mapped, with every
// operation that moves blocks; each from both sides, each verified by the other.
//
// Weakness: races are found by repetition (MXFS_ROUNDS); a member that lost its disk path alone cannot be made in this
// lab, where a cut disk hangs and never fails.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { FSX, until } from "../../lab/volume.js";
import { fio } from "../../perf/figures.js";
import { MOUNTPOINT, rounds, Suite } from "./mxfs_suite.js";

const suite = new Suite("mxfs-data", { mounted: true });
const SLOW = { timeoutMs: 300_000 };
/** Operations of mxfs-fsx in one turn of a node. */
const OPERATIONS = 60;

let roles: { holder: number; member: number } | undefined;
async function sides(): Promise<{ holder: number; member: number }> {
  roles ??= await suite.volume.roles();
  return roles;
}

async function checksum(node: number, file: string): Promise<string> {
  return (await suite.lab.run(node, `md5sum <${file}`, SLOW)).slice(0, 32);
}

/** What fio wrote is what the other node reads, and what it reads again without its cache. */
async function writeThereReadHere(
  writer: number,
  reader: number,
  file: string,
  words: readonly string[],
): Promise<void> {
  const base = [`--filename=${file}`, "--verify=crc32c", "--verify_fatal=1", ...words];
  await fio(suite.lab, writer, [...base, "--rw=write", "--end_fsync=1", "--do_verify=0"]);
  await fio(suite.lab, reader, [...base, "--rw=write", "--verify_only"]);
  await fio(suite.lab, writer, [...base, "--rw=write", "--verify_only"]);
}

for (const direct of [0, 1]) {
  suite.proves(
    `What one node writes ${direct ? "with O_DIRECT" : "buffered"} in large pieces the other reads, both ways`,
    async () => {
      const { holder, member } = await sides();
      for (const [writer, reader] of [
        [holder, member],
        [member, holder],
      ] as const) {
        const file = `${MOUNTPOINT}/large-${direct}-${writer}`;
        await writeThereReadHere(writer, reader, file, ["--size=12m", "--bs=256k", `--direct=${direct}`]);
      }
    },
  );
}

suite.proves("A member's data goes to the disk and not through the holder", async () => {
  const { member } = await sides();
  const before = {
    disk: await suite.volume.counter(member, "disk_write"),
    holder: await suite.volume.counter(member, "holder_write"),
    read: await suite.volume.counter(member, "disk_read"),
    holderRead: await suite.volume.counter(member, "holder_read"),
  };
  const file = `${MOUNTPOINT}/straight`;
  await suite.lab.run(member, `dd if=/dev/urandom of=${file} bs=1M count=8 conv=fsync status=none`, SLOW);
  await suite.lab.run(member, `echo 3 >/proc/sys/vm/drop_caches; cat ${file} >/dev/null`, SLOW);
  const pages = (8 << 20) / 4096;
  assert.ok(
    (await suite.volume.counter(member, "disk_write")) - before.disk >= pages,
    "pages written to the disk",
  );
  assert.is((await suite.volume.counter(member, "holder_write")) - before.holder, 0);
  assert.ok(
    (await suite.volume.counter(member, "disk_read")) - before.read >= pages,
    "pages read from the disk",
  );
  assert.is((await suite.volume.counter(member, "holder_read")) - before.holderRead, 0);
});

suite.proves(
  "A member's small append and its fsync are one message, and the holder keeps its time",
  async () => {
    const { lab, volume } = suite;
    const { holder, member } = await sides();
    const file = `${MOUNTPOINT}/appends`;
    const count = 40;
    await lab.run(member, `: >${file}; sync ${file}`);
    const moved = await volume.moved(member, () =>
      lab.run(
        member,
        `dd if=/dev/urandom of=${file} bs=4k count=${count} oflag=sync,append conv=notrunc status=none`,
        SLOW,
      ),
    );
    assert.ok(moved("holder_write") >= count / 2, `${moved("holder_write")} pages through the holder`);
    assert.ok(moved("fsop_sent") <= count + 10, `${moved("fsop_sent")} messages for ${count} appends`);
    const show = `stat -c '%s %h %y %z' ${file}`;
    const seen = await lab.run(member, show);
    assert.is(await lab.run(holder, show), seen);
    assert.is(await checksum(holder, file), await checksum(member, file));
    // What is changed behind it goes its own way.
    await lab.run(member, `echo more >>${file}; touch -d @1000000000.5 ${file}; sync ${file}`);
    assert.is(await lab.run(holder, `stat -c '%s %.1Y' ${file}`), `${count * 4096 + 5} 1000000000.5\n`);
  },
);

suite.proves(
  "Random operations of every kind, in turns of both nodes on one file, agree with a model",
  async () => {
    const { lab } = suite;
    const turns = 3 * rounds(2);
    for (let turn = 0; turn < turns; turn++) {
      for (const node of [1, 2]) {
        const seed = turn * 2 + node;
        await lab.run(
          node,
          [FSX, `${MOUNTPOINT}/fsx`, "/share/fsx.model", String(seed), String(OPERATIONS)],
          SLOW,
        );
        const other = 3 - node;
        await lab.put(other, `${lab.shareDir(node)}/fsx.model`, "/share/");
      }
    }
  },
);

suite.proves(
  "Random operations with clones, dedupe and unsharing, in turns, agree with a model; what is shared is not mapped",
  async () => {
    const { lab } = suite;
    const { member } = await sides();
    const before = await suite.volume.counter(member, "holder_read");
    for (let turn = 0; turn < rounds(2); turn++) {
      for (const node of [1, 2]) {
        await lab.run(
          node,
          [
            FSX,
            `${MOUNTPOINT}/cloned`,
            "/share/clone.model",
            String(100 + turn * 2 + node),
            "40",
            "krwRWmMtpydkuueez",
          ],
          SLOW,
        );
        await lab.put(3 - node, `${lab.shareDir(node)}/clone.model`, "/share/");
      }
    }
    assert.ok(
      (await suite.volume.counter(member, "holder_read")) > before,
      "the member reads shared blocks through the holder",
    );
  },
);

suite.proves("Both nodes work at once in their own parts of one file, buffered and direct", async () => {
  const file = `${MOUNTPOINT}/parts`;
  await suite.lab.run(1, ["truncate", "-s", "1m", file]);
  for (let round = 0; round < rounds(2); round++) {
    await Promise.all(
      [1, 2].map((node) =>
        suite.lab.run(
          node,
          [FSX, "region", file, String((node - 1) * 524288), "524288", String(node + 10 * round), "30"],
          SLOW,
        ),
      ),
    );
  }
});

suite.proves("Holes read as zeros and are found by SEEK_HOLE, on both nodes, whoever made them", async () => {
  const { lab } = suite;
  for (const [here, there] of [
    [1, 2],
    [2, 1],
  ] as const) {
    const file = `${MOUNTPOINT}/sparse-${here}`;
    await lab.run(
      here,
      `truncate -s 8m ${file}; dd if=/dev/urandom of=${file} bs=64k count=4 seek=40 conv=notrunc status=none`,
    );
    assert.is(await checksum(there, file), await checksum(here, file));
    const found = await lab.run(there, [
      "python3",
      "-c",
      `import os
f = os.open("${file}", os.O_RDONLY)
d = os.lseek(f, 0, os.SEEK_DATA)
h = os.lseek(f, d, os.SEEK_HOLE)
print(d, h, os.lseek(f, 0, os.SEEK_HOLE))`,
    ]);
    assert.is(found, `${40 * 65536} ${44 * 65536} 0\n`);
  }
});

suite.proves("cp --reflink and plain copies by either node are whole on the other", async () => {
  const { lab } = suite;
  for (const [here, there] of [
    [1, 2],
    [2, 1],
  ] as const) {
    const file = `${MOUNTPOINT}/origin-${here}`;
    await lab.run(here, `dd if=/dev/urandom of=${file} bs=100k count=13 status=none`);
    await lab.run(
      there,
      `cp --reflink=always ${file} ${file}.clone && cp --reflink=never ${file} ${file}.copy`,
      SLOW,
    );
    await lab.run(here, `dd if=/dev/zero of=${file} bs=4k count=20 seek=3 conv=notrunc status=none`);
    const sums = await Promise.all([
      checksum(here, `${file}.clone`),
      checksum(there, `${file}.copy`),
      checksum(here, `${file}.copy`),
      checksum(there, `${file}.clone`),
    ]);
    assert.is(new Set(sums).size, 1, "clone and copy are what the file was");
    assert.is(await checksum(there, file), await checksum(here, file));
    assert.is.not(await checksum(there, file), sums[0]);
  }
});

suite.proves(
  "A full volume is told at write or fsync, and nothing is lost that was acknowledged",
  async () => {
    const { lab } = suite;
    const { member } = await sides();
    const avail = Number((await lab.run(member, `stat -f -c '%a' ${MOUNTPOINT}`)).trim());
    const keep = 12 << 20;
    // All but a few MiB, by one preallocated file.
    await lab.run(member, `fallocate -l ${avail * 4096 - keep} ${MOUNTPOINT}/filler`, SLOW);
    const result = await lab.exec(
      member,
      `dd if=/dev/zero of=${MOUNTPOINT}/overflow bs=1M count=64 conv=fsync`,
      SLOW,
    );
    assert.is.not(result.status, 0);
    assert.match(result.stderr, /No space left on device/);
    const direct = await lab.exec(
      member,
      `dd if=/dev/zero of=${MOUNTPOINT}/overflow2 bs=1M count=64 oflag=direct`,
      SLOW,
    );
    assert.match(direct.stderr, /No space left on device/);
    await lab.run(member, `rm ${MOUNTPOINT}/overflow ${MOUNTPOINT}/overflow2 ${MOUNTPOINT}/filler`);
    await lab.run(member, `dd if=/dev/urandom of=${MOUNTPOINT}/after bs=1M count=4 conv=fsync status=none`);
    const { holder } = await sides();
    assert.is(await checksum(holder, `${MOUNTPOINT}/after`), await checksum(member, `${MOUNTPOINT}/after`));
  },
  { expected: [/write-back of .* failed with -28/] },
);

suite.proves(
  "A member's power is cut while it writes: what fsync had acknowledged is there for the survivor",
  async () => {
    const { lab, volume } = suite;
    const { holder, member } = await sides();
    const file = `${MOUNTPOINT}/power`;
    const writing = lab.spawn(member, [FSX, "power", file, "120"]);
    const end = writing.done.catch(() => undefined); // it dies with its guest
    let said = "";
    writing.on("stdout", (chunk: Buffer) => {
      said += chunk.toString();
    });
    const acknowledged = (): number => said.split("\n").length - 1;
    await until("some rounds are acknowledged", 90_000, async () => (acknowledged() >= 4 ? true : undefined));
    lab.kill(member);
    await end;
    // Waits for the eviction, by the member's locks.
    await lab.run(holder, [FSX, "power-check", file, String(acknowledged())], { timeoutMs: 150_000 });
    await lab.start(member);
    await volume.prepare(member);
    await volume.mount(member);
    await lab.run(member, [FSX, "power-check", file, String(acknowledged())], SLOW);
  },
  { expected: [/mxfs: .*(fenc|evict|lease|reservation|key|error)/i, /reservation conflict/i] },
);

suite.proves(
  "The holder's power is cut while a member writes straight to the disk: it goes on, and all it wrote is there",
  async () => {
    const { lab, volume } = suite;
    const { holder, member } = await sides();
    await lab.run(member, "dd if=/dev/urandom of=/tmp/source bs=1M count=6 status=none", SLOW);
    // New files all the time, so that maps are asked for and commits are sent at every moment.
    const writing = lab.spawn(
      member,
      `for i in $(seq 24); do
         test $((i % 2)) = 0 && how=oflag=direct || how=conv=fsync
         dd if=/tmp/source of=${MOUNTPOINT}/taken-$i bs=256k $how status=none || exit 1
         echo $i
       done`,
    );
    let said = "";
    writing.on("stdout", (chunk: Buffer) => {
      said += chunk.toString();
    });
    await until("some files are written", 90_000, async () =>
      said.split("\n").length > 4 ? true : undefined,
    );
    lab.kill(holder);
    const { status } = await writing.done;
    assert.is(status, 0, `written: ${said.replaceAll("\n", " ")}`);
    const check = `for i in $(seq 24); do md5sum <${MOUNTPOINT}/taken-$i; done | sort -u | wc -l`;
    assert.is((await lab.run(member, check, SLOW)).trim(), "1");
    assert.is(await checksum(member, `${MOUNTPOINT}/taken-1`), await checksum(member, "/tmp/source"));
    await lab.start(holder);
    await volume.prepare(holder);
    await volume.mount(holder);
    roles = undefined;
    assert.is((await lab.run(holder, check, SLOW)).trim(), "1");
    assert.is(await checksum(holder, `${MOUNTPOINT}/taken-24`), await checksum(member, "/tmp/source"));
  },
  { expected: [/mxfs: .*(fenc|evict|lease|reservation|key|error)/i, /reservation conflict/i] },
);

suite.proves(
  "Both nodes write new files at once: each in a directory of its own in its own allocation group, and large pieces in a shared one",
  async () => {
    const { lab, volume } = suite;
    await lab.run(1, `mkdir ${MOUNTPOINT}/ag`);
    await lab.run(1, `mkdir ${MOUNTPOINT}/ag/1`);
    await lab.run(2, `mkdir ${MOUNTPOINT}/ag/2`);
    await lab.run(1, `mkdir ${MOUNTPOINT}/ag/both`);
    const write = "bs=1M status=none conv=fsync";
    await Promise.all(
      [1, 2].map((node) =>
        lab.run(
          node,
          `cd ${MOUNTPOINT}/ag; for i in 1 2 3 4; do dd if=/dev/zero of=${node}/$i count=1 ${write}; done
           dd if=/dev/zero of=both/${node} count=16 ${write}`,
          SLOW,
        ),
      ),
    );
    await volume.umountAll();
    await lab.run(1, "mkdir -p /mnt/raw && mount -t xfs -o ro /dev/sda /mnt/raw");
    const extents = async (files: string): Promise<{ ags: Set<string>; count: number }> => {
      const text = await lab.run(1, `cd /mnt/raw/ag; for i in ${files}; do xfs_bmap -v $i; done`);
      // EXT: FILE-OFFSET BLOCK-RANGE AG AG-OFFSET TOTAL
      const lines = text.split("\n").filter((line) => /^ +\d+: .*\d+\.\.\d+ +\d+ +\(/.test(line));
      return {
        ags: new Set(lines.map((line) => /\.\.\d+ +(\d+) +\(/.exec(line)?.[1] ?? "?")),
        count: lines.length,
      };
    };
    const [first, second, shared] = [await extents("1/*"), await extents("2/*"), await extents("both/*")];
    await lab.run(1, "umount /mnt/raw");
    assert.ok(first.count >= 4 && second.count >= 4, `${first.count}, ${second.count} extents`);
    const common = [...first.ags].filter((ag) => second.ags.has(ag));
    assert.equal(common, [], `allocation groups of both: ${common}`);
    assert.ok(shared.count <= 16, `${shared.count} extents of two files of 16 MiB`);
  },
);

suite.proves("After all of this the XFS is clean", async () => {
  await suite.volume.umountAll();
  await suite.volume.checkXfs(1);
});

test.run();
