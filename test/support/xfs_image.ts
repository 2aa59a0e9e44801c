// SPDX-License-Identifier: GPL-2.0-only
/**
 * XFS images for tests, without mounting: mkfs.xfs with a prototype file puts files in, xfs_db is the independent
 * judge of where they lie. Needs xfsprogs (6.1 or later); where it lacks, every use fails and says so.
 *
 * Known weakness: parses the text output of xfs_db, which is not a promised interface.
 */
import { execFileSync } from "node:child_process";
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliDecompressSync } from "node:zlib";
import type { BlockReader } from "../../src/disk/xfs.js";

export interface ImageFile {
  readonly name: string;
  /** null: a directory with `children`. */
  readonly content: Uint8Array | null;
  readonly children?: readonly ImageFile[];
}

/** One directory below /tmp for all images of a test file; remove() at its end. */
export class ImageDirectory {
  readonly path = mkdtempSync(join(tmpdir(), "mxfs-xfs-"));
  #files = 0;

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }

  file(bytes: Uint8Array = new Uint8Array(0)): string {
    const path = join(this.path, `file${this.#files++}`);
    writeFileSync(path, bytes);
    return path;
  }

  /** A sparse file of that size. */
  sparse(sizeBytes: number): string {
    const path = this.file();
    const fd = openSync(path, "r+");
    ftruncateSync(fd, sizeBytes);
    closeSync(fd);
    return path;
  }

  /** A new XFS with these files in its root. */
  makeXfs(sizeBytes: number, options: readonly string[], files: readonly ImageFile[]): string {
    const image = this.sparse(sizeBytes);
    const proto = this.file(new TextEncoder().encode(this.#prototype(files)));
    run("mkfs.xfs", ["-q", "-f", "-p", proto, ...options, image]);
    return image;
  }

  /** The image inside a compressed metadump (data blocks are zeros). */
  restore(fixture: string): string {
    const dump = this.file(brotliDecompressSync(readFileSync(fixture)));
    const image = this.file();
    run("xfs_mdrestore", [dump, image]);
    rmSync(dump);
    return image;
  }

  /** The prototype file of mkfs.xfs(8) -p: boot file, sizes, then the tree; "$" ends a directory. */
  #prototype(files: readonly ImageFile[]): string {
    const lines = ["/dev/null", "0 0", "d--755 0 0"];
    const walk = (entries: readonly ImageFile[]): void => {
      for (const entry of entries) {
        if (entry.content === null) {
          lines.push(`${entry.name} d--755 0 0`);
          walk(entry.children ?? []);
          lines.push("$");
        } else {
          lines.push(`${entry.name} ---644 0 0 ${this.file(entry.content)}`);
        }
      }
    };
    walk(files);
    lines.push("$", "");
    return lines.join("\n");
  }
}

function run(program: string, args: readonly string[]): string {
  try {
    return execFileSync(program, args, {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "pipe"],
      maxBuffer: 1 << 28,
    });
  } catch (error) {
    const detail = error instanceof Error && "stderr" in error ? String(error.stderr) : "";
    throw new Error(
      `${program} ${args.join(" ")} failed: ${detail || String(error)}; is xfsprogs 6.1 or later installed?`,
    );
  }
}

/** Runs xfs_db on an image, reading only unless a command writes. */
export function xfsDb(image: string, commands: readonly string[], write = false): string {
  return run("xfs_db", [write ? "-x" : "-r", ...commands.flatMap((command) => ["-c", command]), image]);
}

export interface JudgedExtent {
  readonly fileOffsetBlocks: number;
  readonly startByte: number;
  readonly lengthBytes: number;
  readonly unwritten: boolean;
}

export interface JudgedFile {
  readonly ino: bigint;
  readonly generation: number;
  readonly size: number;
  readonly extents: readonly JudgedExtent[];
}

/** What xfs_db says of a path. */
export function judge(image: string, path: string): JudgedFile {
  const fields = new Map<string, string>();
  const geometry = xfsDb(image, ["sb 0", "p agblocks", "p blocksize"]);
  for (const match of geometry.matchAll(/^(\S+) = (\S+)/gm)) fields.set(match[1] ?? "", match[2] ?? "");
  const inode = xfsDb(image, [`path ${path}`, "p v3.inumber", "p core.gen", "p core.size"]);
  for (const match of inode.matchAll(/^(\S+) = (\S+)/gm)) fields.set(match[1] ?? "", match[2] ?? "");
  const field = (name: string): number => {
    const value = fields.get(name);
    if (value === undefined) throw new Error(`xfs_db printed no ${name} for ${path}`);
    return Number(value);
  };
  const block_bytes = field("blocksize");
  const extents: JudgedExtent[] = [];
  const map = xfsDb(image, [`path ${path}`, "bmap"]);
  for (const match of map.matchAll(
    /data offset (\d+) startblock \d+ \((\d+)\/(\d+)\) count (\d+) flag (\d)/g,
  )) {
    const [offset, ag, block, count, flag] = match.slice(1).map(Number) as [
      number,
      number,
      number,
      number,
      number,
    ];
    extents.push({
      fileOffsetBlocks: offset,
      startByte: (ag * field("agblocks") + block) * block_bytes,
      lengthBytes: count * block_bytes,
      unwritten: flag !== 0,
    });
  }
  return {
    ino: BigInt(fields.get("v3.inumber") ?? "0"),
    generation: field("core.gen"),
    size: field("core.size"),
    extents,
  };
}

/** Reads an image as a block device with sectors of `sectorSize`, and refuses what such a device would refuse. */
export class FileReader implements BlockReader {
  readonly sizeBytes: number;
  reads = 0;
  readonly #fd: number;
  constructor(
    path: string,
    readonly sectorSize = 512,
  ) {
    this.#fd = openSync(path, "r");
    this.sizeBytes = statSync(path).size;
  }
  close(): void {
    closeSync(this.#fd);
  }
  read(offsetBytes: number, lengthBytes: number): Promise<Uint8Array> {
    this.reads++;
    if (offsetBytes % this.sectorSize !== 0 || lengthBytes % this.sectorSize !== 0) {
      return Promise.reject(
        new Error(
          `EINVAL: ${lengthBytes} bytes at ${offsetBytes} are not whole sectors of ${this.sectorSize}`,
        ),
      );
    }
    const bytes = new Uint8Array(lengthBytes);
    const got = readSync(this.#fd, bytes, 0, lengthBytes, offsetBytes);
    return Promise.resolve(bytes.subarray(0, got));
  }
}
