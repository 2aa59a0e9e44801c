// SPDX-License-Identifier: GPL-2.0-only
/**
 * Proves the XFS reader on images of mkfs.xfs in many geometries, with xfs_db as the independent judge, on one
 * fixture with btree maps and scattered directory blocks, and on damage.
 *
 * Fuzz invariants: damaged metadata gives the true answer or an XfsFormatError, never anything else, within a bounded
 * number of reads; with a CRC that does not match, never a false answer.
 */
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import {
  type BlockReader,
  findPath,
  locateFile,
  mapFileRange,
  parseSuperblock,
  readSuperblock,
  type XfsErrorCode,
  type XfsFile,
  XfsFormatError,
  type XfsSuperblock,
} from "../../src/disk/xfs.js";
import { crc32cExcept } from "../../src/wire/crc32c.js";
import { FileReader, ImageDirectory, type ImageFile, judge, xfsDb } from "../support/xfs_image.js";

const MIB = 1024 * 1024;
/** Sparse. Room for a 64 MiB log in one of several allocation groups. */
const IMAGE_BYTES = 1024 * MIB;
const LOCKSTATE_PATH = [".mxfs", "lockstate"] as const;

/** The project's root, from dist/test/unit. */
const FIXTURE = join(
  dirname(fileURLToPath(import.meta.url)),
  "../../../test/fixtures/xfs_fragmented.metadump.br",
);

const images = new ImageDirectory();
test.after(() => images.remove());

function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 8;
  };
}

function pattern(length: number): Uint8Array {
  const next = generator(length);
  return Uint8Array.from({ length }, () => next() & 0xff);
}

const CONTENT = pattern(300_001);
const MXFS_DIR: ImageFile = {
  name: ".mxfs",
  content: null,
  children: [{ name: "lockstate", content: CONTENT }],
};
const fillers = (count: number, prefix: string): ImageFile[] =>
  Array.from({ length: count }, (_, i) => ({ name: `${prefix}${i}`, content: null }));

async function failsWith(code: XfsErrorCode, action: () => unknown): Promise<XfsFormatError> {
  try {
    await action();
  } catch (error) {
    if (!(error instanceof XfsFormatError)) throw error;
    assert.is(error.code, code, error.message);
    return error;
  }
  throw new Error(`expected XfsFormatError ${code}, and nothing failed`);
}

/** Finds lockstate, compares it with xfs_db, and its raw bytes with what was put in. */
async function proveFound(
  image: string,
  deviceSectorSize = 512,
  content: Uint8Array | null = CONTENT,
): Promise<{ sb: XfsSuperblock; file: XfsFile }> {
  const reader = new FileReader(image, deviceSectorSize);
  try {
    const sb = await readSuperblock(reader);
    const file = await findPath(reader, sb, LOCKSTATE_PATH);
    const truth = judge(image, "/.mxfs/lockstate");
    assert.is(file.ino, truth.ino);
    assert.is(file.generation, truth.generation);
    assert.is(file.size, truth.size);
    assert.is(file.kind, "file");
    assert.equal(file.extents, truth.extents);
    if (content !== null) {
      const parts: Uint8Array[] = [];
      for (const run of mapFileRange(sb, file, 0, file.size)) {
        const whole = Math.ceil(run.lengthBytes / deviceSectorSize) * deviceSectorSize;
        parts.push((await reader.read(run.startByte, whole)).subarray(0, run.lengthBytes));
      }
      assert.ok(Buffer.from(content).equals(Buffer.concat(parts)), "the raw bytes are the file's contents");
    }
    return { sb, file };
  } finally {
    reader.close();
  }
}

// ---- Geometries ----------------------------------------------------------------------------------------------

const GEOMETRIES: readonly {
  readonly options: string;
  readonly names: number;
  readonly sectorSize?: number;
}[] = [
  { options: "", names: 0 },
  { options: "-b size=1024 -m finobt=0,rmapbt=0,reflink=0,inobtcount=0,bigtime=0", names: 60 },
  { options: "-b size=1024 -i size=512 -n size=16384", names: 700 },
  { options: "-s size=4096 -m rmapbt=1,inobtcount=1 -i size=1024", names: 300, sectorSize: 4096 },
  { options: "-b size=16384 -i size=2048,nrext64=1", names: 100 },
  { options: "-b size=65536 -i sparse=0", names: 2500 },
  { options: "-n size=65536 -d agcount=7", names: 4000 },
  { options: "-d agsize=150m -i maxpct=50", names: 20 },
];

/** Allocation groups in which lockstate's inode was found. */
const groupsSeen = new Set<number>();

for (const { options, names, sectorSize } of GEOMETRIES) {
  test(`lockstate is found as xfs_db sees it (mkfs.xfs ${options || "defaults"}, ${names} other names)`, async () => {
    const files = [...fillers(names, "a-name-of-some-length-"), MXFS_DIR];
    const image = images.makeXfs(IMAGE_BYTES, options.split(" ").filter(Boolean), files);
    const { sb, file } = await proveFound(image, sectorSize);
    groupsSeen.add(Number(file.ino >> BigInt(sb.agBlockLog + sb.inodesPerBlockLog)));
  });
}

test("the geometries above had lockstate in the first allocation group and in others", () => {
  assert.ok(groupsSeen.has(0) && groupsSeen.size > 1, `seen in groups ${[...groupsSeen].join(", ")}`);
});

test("lockstate is found in root directories of every form, from short form to node form with 20,000 names", async () => {
  const forms = new Set<string>();
  for (const names of [0, 40, 300, 20_000]) {
    const image = images.makeXfs(IMAGE_BYTES, ["-m", "finobt=0"], [...fillers(names, "name"), MXFS_DIR]);
    await proveFound(image);
    const root = judge(image, "/");
    const index = root.extents.filter((extent) => extent.fileOffsetBlocks * 4096 >= 2 ** 35);
    const index_blocks = index.reduce((sum, extent) => sum + extent.lengthBytes / 4096, 0);
    forms.add(
      root.extents.length === 0
        ? "short"
        : index_blocks === 0
          ? "block"
          : index_blocks === 1
            ? "leaf"
            : "node",
    );
  }
  assert.equal([...forms], ["short", "block", "leaf", "node"]);
});

test("btree maps, holes, unwritten extents and scattered directory blocks are read as xfs_db reads them", async () => {
  const image = images.restore(FIXTURE);
  const { sb, file } = await proveFound(image, 512, null);
  assert.is(file.format, "btree");
  assert.ok(sb.hasNrext64);
  assert.match(xfsDb(image, ["path /.mxfs/lockstate", "p u3.bmbt.level"]), /= 2/);
  assert.ok(file.extents.some((extent) => extent.unwritten));

  const reader = new FileReader(image);
  const root = await findPath(reader, sb, []);
  assert.is(root.kind, "directory");
  assert.is(root.format, "btree");
  const truth = judge(image, "/");
  assert.equal(root.extents, truth.extents);
  assert.ok(
    truth.extents.filter((extent) => extent.lengthBytes < sb.dirBlockSize).length > 50,
    "blocks are scattered",
  );

  // Every name that xfs_db lists is found, with its inode; the removed ones are not.
  const names = [
    ".mxfs",
    "s",
    "xx",
    "entry-with-a-rather-longer-name-than-usual-00007",
    "entry-with-a-rather-longer-name-than-usual-01199",
  ];
  for (const name of names) {
    assert.is((await findPath(reader, sb, [name])).ino, judge(image, `/${name}`).ino, name);
  }
  await failsWith("NOT_FOUND", () =>
    findPath(reader, sb, ["entry-with-a-rather-longer-name-than-usual-00150"]),
  );
  reader.close();

  // Raw use: whole where it is written, refused where it is not.
  assert.equal(mapFileRange(sb, file, 100, 800), [
    { startByte: (file.extents[0]?.startByte ?? 0) + 100, lengthBytes: 800 },
  ]);
  await failsWith("UNSUPPORTED", () => mapFileRange(sb, file, 0, file.size));
  const unwritten = file.extents.find((extent) => extent.unwritten);
  const hole = file.extents.find(
    (extent, i) => i > 0 && extent.fileOffsetBlocks > (file.extents[i - 1]?.fileOffsetBlocks ?? 0) + 1,
  );
  if (unwritten === undefined || hole === undefined)
    throw new Error("the fixture lacks an unwritten extent or a hole");
  assert.match(
    (await failsWith("UNSUPPORTED", () => mapFileRange(sb, file, unwritten.fileOffsetBlocks * 1024, 1024)))
      .message,
    /unwritten/,
  );
  assert.match(
    (await failsWith("UNSUPPORTED", () => mapFileRange(sb, file, (hole.fileOffsetBlocks - 1) * 1024, 1024)))
      .message,
    /hole/,
  );
  for (const [offset, length] of [
    [-1, 1],
    [0, file.size + 1],
    [file.size, 1],
    [0.5, 1],
  ] as const) {
    await failsWith("UNSUPPORTED", () => mapFileRange(sb, file, offset, length));
  }
});

// ---- The superblock ------------------------------------------------------------------------------------------

const plain = images.makeXfs(
  IMAGE_BYTES,
  ["-L", "shared", "-m", "uuid=01234567-89ab-cdef-0123-456789abcdef"],
  [MXFS_DIR],
);
const firstBytes = (image: string): Uint8Array => {
  const bytes = new Uint8Array(4096);
  const fd = openSync(image, "r");
  readSync(fd, bytes, 0, bytes.length, 0);
  closeSync(fd);
  return bytes;
};
const plainSuperblock = firstBytes(plain);

function withField(offset: number, value: readonly number[], fixCrc = true): Uint8Array {
  const bytes = plainSuperblock.slice();
  bytes.set(value, offset);
  if (fixCrc) new DataView(bytes.buffer).setUint32(224, crc32cExcept(bytes.subarray(0, 512), 224), true);
  return bytes;
}

test("the superblock gives UUID, label, volume id and geometry", () => {
  const sb = parseSuperblock(plainSuperblock);
  assert.is(Buffer.from(sb.uuid).toString("hex"), "0123456789abcdef0123456789abcdef");
  assert.is(sb.label, "shared");
  let fnv = 0xcbf29ce484222325n;
  for (const byte of Buffer.from("0123456789abcdef0123456789abcdef", "hex"))
    fnv = ((fnv ^ BigInt(byte)) * 0x100000001b3n) % 2n ** 64n;
  assert.is(sb.volumeId, fnv);
  assert.is(sb.blockSize, 4096);
  assert.is(sb.dataBlocks * sb.blockSize, IMAGE_BYTES);
  assert.not.ok(sb.externalLog);
  assert.not.ok(sb.realtimeDevice);
});

test("a changed UUID keeps metadata readable, because blocks carry the first one (META_UUID)", async () => {
  const image = images.makeXfs(IMAGE_BYTES, [], [...fillers(300, "n"), MXFS_DIR]);
  xfsDb(image, ["uuid 99999999-89ab-4def-8123-456789abcdef"], true);
  const { sb } = await proveFound(image);
  assert.is(Buffer.from(sb.uuid).toString("hex"), "9999999989ab4def8123456789abcdef");
  assert.not.equal(sb.metaUuid, sb.uuid);
});

test("version 4 is refused with what to do", async () => {
  const image = images.makeXfs(IMAGE_BYTES, ["-m", "crc=0"], []);
  const error = await failsWith("UNSUPPORTED", () => parseSuperblock(firstBytes(image)));
  assert.match(error.message, /crc=1/);
});

test("an external log and a realtime device are flagged", () => {
  const log = images.sparse(128 * MIB);
  const external = images.makeXfs(IMAGE_BYTES, ["-l", `logdev=${log},size=64m`], []);
  assert.ok(parseSuperblock(firstBytes(external)).externalLog);
  const rt = images.sparse(128 * MIB);
  const realtime = images.makeXfs(IMAGE_BYTES, ["-r", `rtdev=${rt}`, "-m", "reflink=0,rmapbt=0"], []);
  assert.ok(parseSuperblock(firstBytes(realtime)).realtimeDevice);
});

test("no XFS, too little of it, and an unfinished one are told apart", async () => {
  await failsWith("NOT_XFS", () => parseSuperblock(new Uint8Array(4096)));
  await failsWith("NOT_XFS", () => parseSuperblock(plainSuperblock.subarray(0, 511)));
  await failsWith("UNSUPPORTED", () => parseSuperblock(withField(126, [1])));
  const sectors4k = images.makeXfs(IMAGE_BYTES, ["-s", "size=4096"], []);
  parseSuperblock(firstBytes(sectors4k));
  await failsWith("CORRUPT", () => parseSuperblock(firstBytes(sectors4k).subarray(0, 2048)));
});

test("feature bits that the reader does not know are refused and named", async () => {
  const incompat = [...plainSuperblock.subarray(216, 220)];
  const error = await failsWith("UNSUPPORTED", () =>
    parseSuperblock(withField(216, [0x40, incompat[1] ?? 0, incompat[2] ?? 0, incompat[3] ?? 0])),
  );
  assert.match(error.message, /0x40000000/);
  assert.match(
    (await failsWith("UNSUPPORTED", () => parseSuperblock(withField(212, [0, 0, 1, 0])))).message,
    /0x100/,
  );
  const needs_repair = withField(219, [(incompat[3] ?? 0) | 0x10]);
  assert.match((await failsWith("UNSUPPORTED", () => parseSuperblock(needs_repair))).message, /xfs_repair/);
});

test("any flipped bit of the superblock's sector is noticed", async () => {
  for (let bit = 0; bit < 512 * 8; bit += 7) {
    const bytes = plainSuperblock.slice();
    bytes[bit >> 3] = (bytes[bit >> 3] ?? 0) ^ (1 << (bit & 7));
    try {
      parseSuperblock(bytes);
      assert.unreachable(`bit ${bit} was not noticed`);
    } catch (error) {
      if (!(error instanceof XfsFormatError)) throw error;
    }
  }
});

test("geometry that contradicts itself is refused although the CRC is right", async () => {
  const wrong: readonly (readonly [number, readonly number[]])[] = [
    [4, [0, 0, 0x20, 0]], // block size
    [120, [31]], // its log
    [84, [0, 0, 0, 0]], // agBlocks
    [88, [0xff, 0xff, 0xff, 0xff]], // agCount
    [88, [0, 0, 0, 0]],
    [124, [60]], // agBlockLog
    [104, [0x40, 0]], // inode size
    [106, [0, 3]], // inodes per block
    [121, [12]], // sector log
    [192, [200]], // dirblklog
    [8, [0, 0, 0, 0, 0, 0, 0, 1]], // dataBlocks
    [8, [0xff, 0, 0, 0, 0, 0, 0, 1]],
  ];
  for (const [offset, value] of wrong)
    await failsWith("CORRUPT", () => parseSuperblock(withField(offset, value)));
  await failsWith("CORRUPT", () => parseSuperblock(withField(102, [0x12, 0x34])));

  const edited = (edit: (view: DataView) => void, sector_bytes = 512): Uint8Array => {
    const bytes = new Uint8Array(Math.max(4096, sector_bytes));
    bytes.set(plainSuperblock.subarray(0, 512));
    edit(new DataView(bytes.buffer));
    new DataView(bytes.buffer).setUint32(224, crc32cExcept(bytes.subarray(0, sector_bytes), 224), true);
    return bytes;
  };
  const inodes_of_4096 = edited((view) => {
    view.setUint16(104, 4096);
    view.setUint16(106, 1);
    view.setUint8(122, 12);
    view.setUint8(123, 0);
  });
  assert.match(
    (await failsWith("CORRUPT", () => parseSuperblock(inodes_of_4096))).message,
    /inode size 4096/,
  );
  const sectors_of_8192 = edited((view) => {
    view.setUint16(102, 8192);
    view.setUint8(121, 13);
  }, 8192);
  assert.match(
    (await failsWith("CORRUPT", () => parseSuperblock(sectors_of_8192))).message,
    /smaller than the sector size/,
  );
  const beyond_numbers = edited((view) => {
    view.setUint32(88, 0xffffffff);
    view.setBigUint64(8, 0xffffffffn * BigInt(view.getUint32(84)));
  });
  assert.match(
    (await failsWith("CORRUPT", () => parseSuperblock(beyond_numbers))).message,
    /beyond 2\^53 bytes/,
  );
});

test("a device smaller than its XFS, or with larger sectors than its blocks, is refused", async () => {
  const reader = new FileReader(plain);
  const cut: BlockReader = {
    sectorSize: 512,
    sizeBytes: BigInt(IMAGE_BYTES - 512),
    read: (o, l) => reader.read(o, l),
  };
  await failsWith("CORRUPT", () => readSuperblock(cut));
  await failsWith("NOT_XFS", () => readSuperblock({ ...cut, sizeBytes: 100 }));
  await failsWith("UNSUPPORTED", () =>
    readSuperblock({ sectorSize: 8192, sizeBytes: IMAGE_BYTES, read: (o, l) => reader.read(o, l) }),
  );
  reader.close();
});

// ---- Paths and reader errors ---------------------------------------------------------------------------------

test("what does not exist is NOT_FOUND, and says where it was missed", async () => {
  const reader = new FileReader(plain);
  const sb = await readSuperblock(reader);
  assert.match(
    (await failsWith("NOT_FOUND", () => findPath(reader, sb, ["nothing"]))).message,
    /"nothing" in \/ /,
  );
  assert.match(
    (await failsWith("NOT_FOUND", () => findPath(reader, sb, [".mxfs", "lockstat"]))).message,
    /in \/\.mxfs /,
  );
  await failsWith("NOT_FOUND", () => findPath(reader, sb, [".mxfs", "lockstate", "below"]));
  await failsWith("NOT_FOUND", () => findPath(reader, sb, [""]));
  await failsWith("UNSUPPORTED", () => findPath(reader, sb, new Array<string>(65).fill("d")));
  assert.is((await findPath(reader, sb, [".mxfs"])).kind, "directory");
  reader.close();
});

test("a reader that fails or gives too little is an IO error with its cause", async () => {
  const file = new FileReader(plain);
  const sb = await readSuperblock(file);
  const cause = new Error("EIO");
  const failing: BlockReader = { sectorSize: 512, sizeBytes: IMAGE_BYTES, read: () => Promise.reject(cause) };
  assert.is((await failsWith("IO", () => findPath(failing, sb, LOCKSTATE_PATH))).cause, cause);
  const short: BlockReader = {
    sectorSize: 512,
    sizeBytes: IMAGE_BYTES,
    read: async (o, l) => (await file.read(o, l)).subarray(1),
  };
  await failsWith("IO", () => findPath(short, sb, LOCKSTATE_PATH));
  file.close();
});

// ---- Damage --------------------------------------------------------------------------------------------------

const READS_MAX = 20_000;

/** A device in memory over an image: keeps every block that was read, and can be damaged there. */
class Overlay implements BlockReader {
  readonly sectorSize = 512;
  readonly sizeBytes: number;
  readonly pieces = new Map<string, { offset: number; bytes: Uint8Array }>();
  damaged: { offset: number; bytes: Uint8Array } | null = null;
  reads = 0;
  constructor(readonly file: FileReader) {
    this.sizeBytes = file.sizeBytes;
  }
  async read(offset: number, length: number): Promise<Uint8Array> {
    if (++this.reads > READS_MAX) throw new Error(`more than ${READS_MAX} reads: the reader does not end`);
    const key = `${offset}+${length}`;
    let piece = this.pieces.get(key);
    if (piece === undefined) {
      piece = { offset, bytes: await this.file.read(offset, length) };
      if (this.damaged === null) this.pieces.set(key, piece);
    }
    const bytes = piece.bytes.slice();
    const damage = this.damaged;
    if (damage !== null) {
      const from = Math.max(offset, damage.offset);
      const to = Math.min(offset + length, damage.offset + damage.bytes.length);
      if (from < to)
        bytes.set(damage.bytes.subarray(from - damage.offset, to - damage.offset), from - offset);
    }
    return bytes;
  }
}

/** One structure with a CRC of its own within a block that was read. */
interface Structure {
  readonly name: string;
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly crcOffset: number;
}

function structuresOf(sb: XfsSuperblock, offset: number, bytes: Uint8Array): Structure[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = view.getUint32(0);
  if (offset === 0)
    return [{ name: "superblock", offset, bytes: bytes.subarray(0, sb.sectorSize), crcOffset: 224 }];
  if (magic === 0x424d4133) return [{ name: "bmbt", offset, bytes, crcOffset: 64 }];
  const found: Structure[] = [];
  if (magic === 0x58444233 || magic === 0x58444433) {
    for (let at = 0; at < bytes.length; at += sb.dirBlockSize) {
      const block = bytes.subarray(at, at + sb.dirBlockSize);
      if (block.length === sb.dirBlockSize)
        found.push({ name: "directory", offset: offset + at, bytes: block, crcOffset: 4 });
    }
  } else if (view.getUint16(0) === 0x494e) {
    for (let at = 0; at < bytes.length; at += sb.inodeSize) {
      found.push({
        name: "inode",
        offset: offset + at,
        bytes: bytes.subarray(at, at + sb.inodeSize),
        crcOffset: 100,
      });
    }
  }
  return found;
}

/** Offsets where numbers that steer the reader lie; the fuzz hits them more often than the rest. */
const STEERING: Readonly<Record<string, readonly number[]>> = {
  superblock: [4, 8, 11, 56, 63, 84, 87, 88, 91, 101, 102, 104, 107, 120, 121, 122, 123, 124, 192, 216, 219],
  inode: [
    2, 4, 5, 24, 31, 56, 60, 63, 76, 79, 82, 90, 91, 120, 127, 152, 176, 177, 178, 179, 180, 183, 184, 188,
    191,
  ],
  directory: [0, 8, 15, 24, 40, 47, 64, 71, 72, 73, 80, 96, 97, 98, 99],
  bmbt: [4, 5, 6, 7, 24, 40, 63, 72, 79, 80, 84, 87, 576, 580, 583],
};

async function fuzz(image: string, rounds: number, seed: number): Promise<Record<string, number>> {
  const file = new FileReader(image);
  const overlay = new Overlay(file);
  const sb = await readSuperblock(overlay);
  const truth = await findPath(overlay, sb, LOCKSTATE_PATH);
  const structures = [...overlay.pieces.values()].flatMap(({ offset, bytes }) =>
    structuresOf(sb, offset, bytes),
  );
  const kinds = [...new Set(structures.map((structure) => structure.name))];
  const next = generator(seed);
  const outcomes: Record<string, number> = {};
  for (let round = 0; round < rounds; round++) {
    const of_kind = structures.filter((structure) => structure.name === kinds[round % kinds.length]);
    const victim = of_kind[next() % of_kind.length];
    if (victim === undefined) throw new Error("nothing to damage");
    const bytes = victim.bytes.slice();
    const fix_crc = next() % 4 !== 0;
    const steering = STEERING[victim.name] ?? [];
    for (let i = 1 + (next() % 3); i > 0; i--) {
      const at = next() % 2 === 0 ? (steering[next() % steering.length] ?? 0) : next() % bytes.length;
      if (at >= bytes.length || (fix_crc && at >= victim.crcOffset && at < victim.crcOffset + 4)) continue;
      const choices = [0x00, 0xff, 0x7f, 0x80, 0x01, next() & 0xff, (bytes[at] ?? 0) ^ (1 << (next() & 7))];
      bytes[at] = choices[next() % choices.length] ?? 0;
    }
    const changed = !Buffer.from(bytes).equals(victim.bytes);
    if (fix_crc)
      new DataView(bytes.buffer).setUint32(victim.crcOffset, crc32cExcept(bytes, victim.crcOffset), true);
    overlay.damaged = { offset: victim.offset, bytes };
    overlay.reads = 0;
    let outcome: string;
    try {
      const found = await findPath(overlay, await readSuperblock(overlay), LOCKSTATE_PATH);
      outcome = "found";
      if (!fix_crc && changed)
        assert.equal(
          found,
          truth,
          `round ${round}: a false answer from damage in ${victim.name} at ${victim.offset}`,
        );
    } catch (error) {
      if (!(error instanceof XfsFormatError)) throw error;
      assert.is.not(error.code, "IO", `round ${round}: ${error.message}`);
      if (!fix_crc)
        assert.is.not(error.code, "NOT_FOUND", `round ${round}: damage passed for absence: ${error.message}`);
      outcome = error.code;
    }
    outcomes[outcome] = (outcomes[outcome] ?? 0) + 1;
  }
  file.close();
  return outcomes;
}

test("random damage gives an XfsFormatError or the answer, in bounded reads (short form and block directories)", async () => {
  const image = images.makeXfs(
    IMAGE_BYTES,
    ["-b", "size=1024", "-i", "size=512"],
    [...fillers(30, "n"), MXFS_DIR],
  );
  const outcomes = await fuzz(image, 6000, 1);
  for (const expected of ["found", "BAD_CRC", "CORRUPT", "NOT_FOUND", "UNSUPPORTED"]) {
    assert.ok((outcomes[expected] ?? 0) > 0, `no round ended in ${expected}: ${JSON.stringify(outcomes)}`);
  }
});

test("random damage gives an XfsFormatError or the answer, in bounded reads (btree maps, scattered blocks)", async () => {
  const outcomes = await fuzz(images.restore(FIXTURE), 1500, 2);
  for (const expected of ["found", "BAD_CRC", "CORRUPT"]) {
    assert.ok((outcomes[expected] ?? 0) > 0, `no round ended in ${expected}: ${JSON.stringify(outcomes)}`);
  }
});

test("a block of another file, of another place or of another file system is not believed", async () => {
  const image = images.makeXfs(IMAGE_BYTES, [], [...fillers(300, "n"), MXFS_DIR]);
  const root = judge(image, "/");
  const block = root.extents[0]?.startByte ?? 0;
  const cases: readonly (readonly [string, number, RegExp])[] = [
    ["owner", 47, /belongs to inode/],
    ["place", 15, /belongs at/],
    ["file system", 24, /belongs to file system/],
    ["magic", 3, /magic/],
  ];
  for (const [what, at, message] of cases) {
    const file = new FileReader(image);
    const overlay = new Overlay(file);
    const sb = await readSuperblock(file);
    const bytes = (await file.read(block, 4096)).slice();
    bytes[at] = (bytes[at] ?? 0) ^ 0x55;
    new DataView(bytes.buffer).setUint32(4, crc32cExcept(bytes, 4), true);
    overlay.damaged = { offset: block, bytes };
    const error = await failsWith("CORRUPT", () => findPath(overlay, sb, LOCKSTATE_PATH));
    assert.match(error.message, message, what);
    assert.ok(error.retriable);
    file.close();
  }
});

/** Where an inode's bytes lie on the device. */
function inodeByte(sb: XfsSuperblock, ino: bigint): number {
  const ag_log = BigInt(sb.agBlockLog + sb.inodesPerBlockLog);
  const ag_byte = Number(ino >> ag_log) * sb.agBlocks * sb.blockSize;
  return ag_byte + Number(ino & ((1n << ag_log) - 1n)) * sb.inodeSize;
}

interface Contradiction {
  readonly code?: XfsErrorCode;
  readonly message: RegExp;
  readonly edit: (bytes: Uint8Array, view: DataView) => void;
  readonly keepCrc?: boolean;
}

/** Applies each edit to one structure, makes its CRC right, and expects the reader to see through it. */
async function proveRefused(
  image: string,
  offset: number,
  length: number,
  crcOffset: number,
  cases: readonly Contradiction[],
): Promise<void> {
  const file = new FileReader(image);
  const sb = await readSuperblock(file);
  for (const { code = "CORRUPT", message, edit, keepCrc = false } of cases) {
    const first = Math.floor(offset / 512) * 512;
    const sectors = (await file.read(first, Math.ceil((offset + length - first) / 512) * 512)).slice();
    const bytes = sectors.subarray(offset - first, offset - first + length);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    edit(bytes, view);
    if (!keepCrc) view.setUint32(crcOffset, crc32cExcept(bytes, crcOffset), true);
    const overlay = new Overlay(file);
    overlay.damaged = { offset, bytes };
    const error = await failsWith(code, () => findPath(overlay, sb, LOCKSTATE_PATH));
    assert.match(error.message, message);
  }
  file.close();
}

test("an inode that contradicts itself is refused although its CRC is right", async () => {
  const reader = new FileReader(plain);
  const sb = await readSuperblock(reader);
  reader.close();
  const prove = (path: string, cases: readonly Contradiction[]): Promise<void> =>
    proveRefused(plain, inodeByte(sb, judge(plain, path).ino), sb.inodeSize, 100, cases);
  await prove("/.mxfs/lockstate", [
    { message: /magic is/, edit: (bytes) => bytes.fill(0, 0, 2) },
    { message: /version is 2/, edit: (bytes) => bytes.fill(2, 4, 5) },
    { message: /beyond 2\^53/, edit: (_, view) => view.setBigUint64(56, 1n << 60n) },
    { message: /attribute fork at/, edit: (_, view) => view.setUint8(82, 255) },
    {
      message: /large extent counters/,
      edit: (_, view) => view.setBigUint64(120, view.getBigUint64(120) | 0x10n),
    },
    { message: /limit is/, code: "UNSUPPORTED", edit: (_, view) => view.setUint32(76, 1_000_001) },
    { message: /do not fit its data fork/, edit: (_, view) => view.setUint32(76, 22) },
    {
      message: /is empty/,
      edit: (_, view) => view.setBigUint64(184, (view.getBigUint64(184) >> 21n) << 21n),
    },
    {
      message: /lie outside/,
      edit: (_, view) => view.setBigUint64(184, view.getBigUint64(184) | (0xffffffn << 40n)),
    },
    {
      message: /inside or before/,
      edit: (bytes, view) => {
        view.setUint32(76, 2);
        bytes.copyWithin(192, 176, 192);
      },
    },
    { message: /it announces 0/, edit: (_, view) => view.setBigUint64(64, 0n) },
    { message: /realtime/, code: "UNSUPPORTED", edit: (_, view) => view.setUint16(90, 1) },
    { message: /format 0/, code: "UNSUPPORTED", edit: (_, view) => view.setUint8(5, 0) },
    {
      message: /only 8 bytes/,
      edit: (_, view) => {
        view.setUint8(5, 3);
        view.setUint8(82, 1);
      },
    },
    { message: /level 0/, edit: (_, view) => view.setUint8(5, 3) },
  ]);
  await prove("/.mxfs", [
    { message: /does not fit its data fork/, edit: (_, view) => view.setBigUint64(56, 5n) },
    { message: /does not fit its data fork/, edit: (_, view) => view.setBigUint64(56, 400n) },
    { message: /entry 0 of 1/, edit: (_, view) => view.setUint8(182, 0) },
    { message: /entry 0 of 1/, edit: (_, view) => view.setUint8(182, 200) },
    { message: /0 entries end at/, edit: (_, view) => view.setUint8(176, 0) },
    { message: /is no directory/, code: "NOT_FOUND", edit: (_, view) => view.setUint16(2, 0o100644) },
  ]);
  await prove("/", [
    { message: /root inode .* is no directory/, edit: (_, view) => view.setUint16(2, 0o100644) },
  ]);
});

test("a directory that contradicts itself is refused although its CRC is right", async () => {
  const image = images.makeXfs(IMAGE_BYTES, [], [...fillers(40, "n"), MXFS_DIR]);
  const reader = new FileReader(image);
  const sb = await readSuperblock(reader);
  reader.close();
  const root = judge(image, "/");
  await proveRefused(image, inodeByte(sb, root.ino), sb.inodeSize, 100, [
    { message: /not whole directory blocks/, edit: (_, view) => view.setBigUint64(56, 4097n) },
    { message: /not whole directory blocks/, edit: (_, view) => view.setBigUint64(56, 0n) },
    { message: /not whole directory blocks/, edit: (_, view) => view.setBigUint64(56, 2n ** 36n) },
    { message: /do not end where/, edit: (_, view) => view.setBigUint64(56, 8192n) },
    { message: /is unwritten/, edit: (_, view) => view.setUint8(176, 0x80) },
  ]);
  await proveRefused(image, root.extents[0]?.startByte ?? 0, 4096, 4, [
    {
      message: /CRC32C/,
      code: "BAD_CRC",
      keepCrc: true,
      edit: (_, view) => view.setUint8(70, view.getUint8(70) ^ 1),
    },
    { message: /index entries do not fit/, edit: (_, view) => view.setUint32(4096 - 8, 0x20000000) },
    { message: /is tagged/, edit: (_, view) => view.setUint16(64 + 14, 72) },
    { message: /entry at 64 claims/, edit: (_, view) => view.setUint8(64 + 8, 0) },
    ...[0, 4, 12, 0xfff8].map(
      (length): Contradiction => ({
        message: /entry at 64 claims/,
        edit: (_, view) => view.setUint32(64, 0xffff0000 + length),
      }),
    ),
  ]);
});

test("a bmap btree that contradicts itself is refused although its CRC is right", async () => {
  const image = images.restore(FIXTURE);
  const file = new FileReader(image);
  const overlay = new Overlay(file);
  const sb = await readSuperblock(file);
  const truth = await findPath(overlay, sb, LOCKSTATE_PATH);
  await findPath(overlay, sb, []);
  const inode = inodeByte(sb, truth.ino);
  await proveRefused(image, inode, sb.inodeSize, 100, [
    { message: /holds more than/, edit: (_, view) => view.setBigUint64(24, view.getBigUint64(24) - 1n) },
    { message: /it announces/, edit: (_, view) => view.setBigUint64(24, view.getBigUint64(24) + 1n) },
  ]);
  const leaf_of = (ino: bigint): Structure => {
    const found = [...overlay.pieces.values()]
      .flatMap(({ offset, bytes }) => structuresOf(sb, offset, bytes))
      .find(({ name, bytes }) => {
        const view = new DataView(bytes.buffer, bytes.byteOffset);
        return name === "bmbt" && view.getUint16(4) === 0 && view.getBigUint64(56) === ino;
      });
    if (found === undefined) throw new Error(`no bmap btree leaf of inode ${ino} was read`);
    return found;
  };
  await proveRefused(image, leaf_of(truth.ino).offset, sb.blockSize, 64, [
    { message: /magic is/, edit: (_, view) => view.setUint32(0, 0x424d4150) },
    { message: /CRC32C/, code: "BAD_CRC", keepCrc: true, edit: (bytes) => bytes.fill(0x77, 1000, 1001) },
    { message: /belongs at/, edit: (_, view) => view.setBigUint64(24, 8n) },
    { message: /belongs to inode/, edit: (_, view) => view.setBigUint64(56, 128n) },
    { message: /belongs to file system/, edit: (bytes) => bytes.fill(9, 40, 48) },
    { message: /level 1 with/, edit: (_, view) => view.setUint16(4, 1) },
    { message: /with 0 records/, edit: (_, view) => view.setUint16(6, 0) },
    { message: /with 60 records/, edit: (_, view) => view.setUint16(6, 60) },
  ]);
  // In front of a hole, the last piece of a scattered directory block moves one block on.
  const pieces = (await findPath(file, sb, [])).extents;
  const gap = pieces.findIndex(
    (piece, i) =>
      piece.fileOffsetBlocks + piece.lengthBytes / sb.blockSize < (pieces[i + 1]?.fileOffsetBlocks ?? 0),
  );
  assert.ok(gap > 0 && gap < 50, `the fixture's root directory has a hole after extent ${gap}`);
  await proveRefused(image, leaf_of(sb.rootIno).offset, sb.blockSize, 64, [
    {
      message: /mapped in part/,
      edit: (_, view) => view.setBigUint64(72 + gap * 16, view.getBigUint64(72 + gap * 16) + (1n << 9n)),
    },
  ]);
  file.close();
});

test("a device that is smaller than the superblock says is not read beyond its end", async () => {
  const file = new FileReader(plain);
  const sb = await readSuperblock(file);
  const cut: BlockReader = {
    sectorSize: 512,
    sizeBytes: 65536,
    read: () => Promise.reject(new Error("read beyond the end")),
  };
  assert.match(
    (await failsWith("CORRUPT", () => findPath(cut, { ...sb, rootIno: sb.rootIno + 4096n }, LOCKSTATE_PATH)))
      .message,
    /outside of the device/,
  );
  await failsWith("CORRUPT", () => findPath(file, { ...sb, rootIno: 1n << 60n }, LOCKSTATE_PATH));
  file.close();
});

test("an inode that was moved from elsewhere, and one that is free, are not believed", async () => {
  const truth = judge(plain, "/.mxfs/lockstate");
  const reader = new FileReader(plain);
  const sb = await readSuperblock(reader);
  const ag_log = BigInt(sb.agBlockLog + sb.inodesPerBlockLog);
  const ag_byte = Number(truth.ino >> ag_log) * sb.agBlocks * sb.blockSize;
  const at = ag_byte + Number(truth.ino & ((1n << ag_log) - 1n)) * sb.inodeSize;
  const block = Math.floor(at / sb.blockSize) * sb.blockSize;
  for (const [offset, message] of [
    [159, /says that it is/],
    [167, /belongs to file system/],
    [2, /is free/],
  ] as const) {
    const bytes = (await reader.read(block, sb.blockSize)).slice();
    const inode = bytes.subarray(at - block, at - block + sb.inodeSize);
    if (offset === 2) inode.fill(0, 2, 4);
    else inode[offset] = (inode[offset] ?? 0) ^ 0x55;
    new DataView(inode.buffer, inode.byteOffset).setUint32(100, crc32cExcept(inode, 100), true);
    const overlay = new Overlay(reader);
    overlay.damaged = { offset: block, bytes };
    assert.match((await failsWith("CORRUPT", () => findPath(overlay, sb, LOCKSTATE_PATH))).message, message);
  }
  reader.close();
});

test("what is damaged for a moment is read again, what stays damaged is given up after the attempts", async () => {
  const file = new FileReader(plain);
  const overlay = new Overlay(file);
  const bytes = plainSuperblock.slice();
  bytes[300] = 1;
  overlay.damaged = { offset: 0, bytes };
  const pauses: number[] = [];
  const heal_after = (attempts: number) => (attempt: number) => {
    pauses.push(attempt);
    if (attempt === attempts) overlay.damaged = null;
    return Promise.resolve();
  };
  await failsWith("BAD_CRC", () => locateFile(overlay, LOCKSTATE_PATH, 3, heal_after(99)));
  assert.equal(pauses, [1, 2]);
  const { sb, file: found } = await locateFile(overlay, LOCKSTATE_PATH, 5, heal_after(2));
  assert.equal(pauses, [1, 2, 1, 2]);
  assert.equal(found, await findPath(file, sb, LOCKSTATE_PATH));
  await failsWith("NOT_FOUND", () => locateFile(overlay, ["nothing"], 5, heal_after(1)));
  assert.is(pauses.length, 4, "absence is not read again");
  file.close();
});

test("a reflinked lockstate is flagged and refused for raw use", async () => {
  const image = images.makeXfs(IMAGE_BYTES, ["-m", "reflink=1"], [MXFS_DIR]);
  xfsDb(image, ["path /.mxfs/lockstate", "write v3.reflink 1"], true);
  const reader = new FileReader(image);
  const sb = await readSuperblock(reader);
  const file = await findPath(reader, sb, LOCKSTATE_PATH);
  assert.ok(file.reflinked);
  assert.match((await failsWith("UNSUPPORTED", () => mapFileRange(sb, file, 0, 512))).message, /shared/);
  reader.close();
});

test("an image damaged on the disk itself is reported with the code of its damage", async () => {
  const image = images.makeXfs(IMAGE_BYTES, [], [MXFS_DIR]);
  const fd = openSync(image, "r+");
  const reader = new FileReader(image);
  const sb = await readSuperblock(reader);
  writeSync(fd, Uint8Array.from([0xee]), 0, 1, Number(sb.rootIno) * sb.inodeSize + 200);
  assert.ok((await failsWith("BAD_CRC", () => findPath(reader, sb, LOCKSTATE_PATH))).retriable);
  closeSync(fd);
  reader.close();
});

test.run();
