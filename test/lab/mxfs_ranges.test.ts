// SPDX-License-Identifier: GPL-2.0-only
//
// O_DIRECT of two nodes in one file at the same time: under EXTENT locks where they keep to what is written already, and
// right as well where they do not.
//
// Weakness: races are found by repetition (MXFS_ROUNDS).

import { test } from "uvu";
import * as assert from "uvu/assert";
import { until } from "../../lab/volume.js";
import { fio } from "../../perf/figures.js";
import { MOUNTPOINT, rounds, Suite } from "./mxfs_suite.js";

const suite = new Suite("mxfs-ranges", { mounted: true });
const SLOW = { timeoutMs: 300_000 };
const HALF = 8 << 20;

/** A file of two halves, all of it written. */
async function prepare(name: string): Promise<string> {
  const file = `${MOUNTPOINT}/${name}`;
  await suite.lab.run(
    1,
    `dd if=/dev/zero of=${file} bs=1M count=16 oflag=direct conv=fsync status=none`,
    SLOW,
  );
  return file;
}

/** fio's words for the half of `node`: the same random blocks whoever runs it. */
function half(file: string, node: number, bytes = "2m"): string[] {
  return [
    `--filename=${file}`,
    "--rw=randwrite",
    "--bs=4k",
    "--direct=1",
    `--offset=${(node - 1) * HALF}`,
    `--size=${HALF}`,
    `--io_size=${bytes}`,
    "--verify=crc32c",
    "--verify_fatal=1",
    `--randseed=${node}`,
  ];
}

function writeHalves(file: string, bytes?: string): Promise<unknown> {
  return Promise.all(
    [1, 2].map((node) => fio(suite.lab, node, [...half(file, node, bytes), "--do_verify=0"])),
  );
}

async function verifyHalves(file: string, bytes?: string): Promise<void> {
  for (const part of [1, 2]) {
    for (const reader of [1, 2]) await fio(suite.lab, reader, [...half(file, part, bytes), "--verify_only"]);
  }
}

suite.proves(
  "Both nodes write their halves of one file at once, and take the locks for them once",
  async () => {
    const file = await prepare("halves");
    const counted = (): Promise<readonly { readonly io: number; readonly asked: number }[]> =>
      Promise.all(
        [1, 2].map(async (node) => ({
          io: await suite.volume.counter(node, "range_io"),
          asked: await suite.volume.counter(node, "lock_ask"),
        })),
      );
    /** When both have written `more` under EXTENT locks since `from`; who is alone has the whole file meanwhile. */
    const further = async (from: Awaited<ReturnType<typeof counted>>, more: number) =>
      await until(`both have written ${more} more under EXTENT locks`, 300_000, async () => {
        const now = await counted();
        return now.every((it, at) => it.io >= (from[at]?.io ?? 0) + more) ? now : undefined;
      });
    const writers = [1, 2].map((node) => {
      const words = [
        `--name=half${node}`,
        ...half(file, node),
        "--do_verify=0",
        "--time_based",
        "--runtime=900",
      ];
      return suite.volume.hold(node, [
        "sh",
        "-c",
        `fio ${words.join(" ")} >/dev/null 2>&1 </dev/null & writer=$!; cat >/dev/null; kill -INT $writer; wait $writer`,
      ]);
    });
    // Whoever comes second takes the file away from the first: from then on both use ranges.
    const before = await further(await counted(), 20);
    const after = await further(before, 200);
    for (const [at, { io, asked }] of after.entries()) {
      const took = asked - (before[at]?.asked ?? 0);
      const wrote = io - (before[at]?.io ?? 0);
      assert.ok(took <= wrote / 4, `node${at + 1}: asked for ${took} locks, for ${wrote} writes`);
    }
    for (const writer of writers) await writer.letGo();
    await writeHalves(file, "1m");
    await verifyHalves(file, "1m");
  },
);

suite.proves(
  "Sixteen operations of one process are at the disk at once, on each node, and none is lost",
  async () => {
    const words = ["--ioengine=libaio", "--iodepth=16", "--direct=1", "--bs=4k", "--io_size=2m"];
    const file = await prepare("async");
    const before = await Promise.all([1, 2].map((node) => suite.volume.counter(node, "direct_async")));
    await Promise.all(
      [1, 2].map(async (node) => {
        const own = `${MOUNTPOINT}/async-${node}`;
        await suite.lab.run(node, `dd if=/dev/zero of=${own} bs=1M count=4 oflag=direct status=none`, SLOW);
        const base = [`--filename=${own}`, "--size=4m", "--verify=crc32c", "--verify_fatal=1", ...words];
        await fio(suite.lab, node, [...base, "--rw=randwrite"]);
        await fio(suite.lab, node, [...base, "--rw=randrw", "--do_verify=0"]);
        await fio(suite.lab, node, [...half(file, node), ...words, "--do_verify=0"]);
      }),
    );
    await verifyHalves(file);
    for (const node of [1, 2]) {
      const started = (await suite.volume.counter(node, "direct_async")) - (before[node - 1] ?? 0);
      assert.ok(started >= 500, `node${node}: ${started} operations were not waited for`);
    }
  },
);

suite.proves(
  "A writer that does not wait goes on when the holder's power is cut",
  async () => {
    const { lab, volume } = suite;
    const { holder, member } = await volume.roles();
    const file = `${MOUNTPOINT}/async-taken`;
    await lab.run(
      member,
      `dd if=/dev/zero of=${file} bs=1M count=4 oflag=direct conv=fsync status=none`,
      SLOW,
    );
    const base = [
      `--filename=${file}`,
      "--size=4m",
      "--rw=randwrite",
      "--bs=4k",
      "--direct=1",
      "--verify=crc32c",
      "--verify_fatal=1",
    ];
    const writing = fio(lab, member, [
      ...base,
      "--ioengine=libaio",
      "--iodepth=16",
      "--loops=40",
      "--do_verify=0",
    ]);
    await until("it writes", 60_000, async () =>
      (await suite.volume.counter(member, "direct_async")) > 3000 ? true : undefined,
    );
    lab.kill(holder);
    await writing;
    await fio(lab, member, [...base, "--verify_only"]);
    await lab.start(holder);
    await volume.prepare(holder);
    await volume.mount(holder);
    await fio(lab, holder, [...base, "--verify_only"]);
  },
  { expected: [/mxfs: .*(fenc|evict|lease|reservation|key|error)/i, /reservation conflict/i] },
);

/** Adds one to the number in the first block, under a fcntl lock, with O_DIRECT. */
function increments(file: string, count: number): string[] {
  return [
    "python3",
    "-c",
    `import fcntl, mmap, os
page = mmap.mmap(-1, 4096)
fd = os.open("${file}", os.O_RDWR | os.O_DIRECT)
for _ in range(${count}):
    fcntl.lockf(fd, fcntl.LOCK_EX)
    assert os.preadv(fd, [page], 0) == 4096
    page[:8] = (int.from_bytes(page[:8], "little") + 1).to_bytes(8, "little")
    assert os.pwritev(fd, [page], 0) == 4096
    fcntl.lockf(fd, fcntl.LOCK_UN)`,
  ];
}

suite.proves("A number that both nodes count up with O_DIRECT under a lock is exact", async () => {
  const file = await prepare("count");
  await writeHalves(file);
  await suite.lab.run(1, `dd if=/dev/zero of=${file} bs=4k count=1 conv=notrunc oflag=direct status=none`);
  const count = 40 * rounds(1);
  await Promise.all([1, 2].map((node) => suite.lab.run(node, increments(file, count), SLOW)));
  for (const node of [1, 2]) {
    const found = await suite.lab.run(node, `od -A n -t u8 -N 8 ${file}`);
    assert.is(Number(found.trim()), 2 * count);
  }
});

suite.proves(
  "Growing, stat and buffered reading go on beside writers of ranges, and all of it is right",
  async () => {
    const file = await prepare("grows");
    await writeHalves(file);
    const line = 1000;
    const grow = (node: number): Promise<string> =>
      suite.lab.run(
        node,
        `for i in $(seq 10); do head -c ${line} /dev/zero | tr '\\0' ${node} >>${file}; stat -c %s ${file} >/dev/null; head -c 100000 ${file} | md5sum >/dev/null; done`,
        SLOW,
      );
    await Promise.all([writeHalves(file), grow(1), grow(2)]);
    await verifyHalves(file);
    for (const node of [1, 2]) {
      assert.is(
        (await suite.lab.run(node, `tail -c +${2 * HALF + 1} ${file} | tr -d -c 12 | wc -c`)).trim(),
        String(20 * line),
      );
      for (const digit of [1, 2]) {
        assert.is(
          (await suite.lab.run(node, `tail -c +${2 * HALF + 1} ${file} | tr -d -c ${digit} | wc -c`)).trim(),
          String(10 * line),
        );
      }
    }
  },
);

suite.proves("Parts that have no blocks yet are filled from both sides at once", async () => {
  const file = `${MOUNTPOINT}/sparse`;
  await suite.lab.run(1, ["truncate", "-s", String(2 * HALF), file]);
  // Each of these takes the whole file: few.
  await writeHalves(file, "160k");
  await verifyHalves(file, "160k");
  const [one, two] = await Promise.all(
    [1, 2].map(async (node) => (await suite.lab.run(node, `md5sum <${file}`, SLOW)).slice(0, 32)),
  );
  assert.is(one, two);
});

suite.proves(
  "A time that was kept during writes of ranges is the same on both nodes in the end",
  async () => {
    const file = await prepare("times");
    const before = Number(await suite.lab.run(1, ["stat", "-c", "%Y", file]));
    await writeHalves(file);
    const [one, two] = await Promise.all(
      [1, 2].map((node) => suite.lab.run(node, ["stat", "-c", "%Y", file])),
    );
    assert.is(one, two);
    assert.ok(Number(one) >= before);
  },
);

suite.proves("After all of this the XFS is clean", async () => {
  await suite.volume.umountAll();
  await suite.volume.checkXfs(1);
});

test.run();
