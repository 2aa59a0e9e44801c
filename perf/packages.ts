// SPDX-License-Identifier: GPL-2.0-only
//
// The programs of the peers (mkfs.gfs2, corosync, rpc.nfsd, ...). Where the host has them, the guests see them. Else
// apt fetches the packages and all they need, and they are unpacked into one archive in .lab/cache/peers, which a
// guest puts over its own root: the host keeps its packages and its services as they are.
//
// Weakness: the packages' own installation scripts do not run; what they would have set up, systems.ts does.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { PROJECT_DIR } from "../lab/lab.js";

const CACHE = join(".lab", "cache", "peers");
/** Debian's directories that are links into /usr. */
const MERGED = ["bin", "sbin", "lib", "lib64"];

/** Packages that could not be had; the message says what to do. */
export class PackageError extends Error {
  override name = "PackageError";
}

function run(program: string, args: readonly string[]): void {
  execFileSync(program, args, {
    env: { ...process.env, DEBIAN_FRONTEND: "noninteractive", LC_ALL: "C" },
    stdio: ["ignore", "ignore", "pipe"],
    maxBuffer: 16 << 20,
  });
}

function reason(error: unknown): string {
  const said = (error as { stderr?: Buffer }).stderr?.toString().trim().split("\n").slice(-2).join("; ");
  return said !== undefined && said !== "" ? said : error instanceof Error ? error.message : String(error);
}

/** Nothing is installed, and no lock of apt's is taken. */
function download(into: string, packages: readonly string[]): void {
  mkdirSync(join(into, "partial"), { recursive: true });
  const options = [
    `Dir::Cache::archives=${into}`,
    "APT::Sandbox::User=root",
    "Debug::NoLocking=1",
    "Acquire::Retries=3",
  ].flatMap((it) => ["-o", it]);
  const words = [
    "install",
    "--download-only",
    "--no-install-recommends",
    "-y",
    "-q",
    ...options,
    ...packages,
  ];
  try {
    run("apt-get", words);
  } catch {
    // Most likely the lists are missing or old.
    run("apt-get", ["update", "-q", "-o", "Acquire::Retries=3"]);
    run("apt-get", words);
  }
}

function unpack(debs: string, root: string): void {
  mkdirSync(root);
  for (const name of readdirSync(debs).filter((it) => it.endsWith(".deb"))) {
    run("dpkg-deb", ["-x", join(debs, name), root]);
  }
  for (const dir of MERGED.map((it) => join(root, it)).filter((it) => existsSync(it))) {
    cpSync(dir, join(root, "usr", dir.slice(root.length + 1)), { recursive: true, verbatimSymlinks: true });
    rmSync(dir, { recursive: true });
  }
  for (const dir of ["doc", "man", "lintian", "locale"]) {
    rmSync(join(root, "usr", "share", dir), { recursive: true, force: true });
  }
}

/**
 * Makes sure that guests can have `programs` (absolute paths), which `packages` bring.
 * @returns the archive to unpack over a guest's root, relative to the project; null: the host has them all.
 * @throws PackageError
 */
export function providePrograms(packages: readonly string[], programs: readonly string[]): string | null {
  if (programs.every((it) => existsSync(it))) {
    return null;
  }
  const key = createHash("sha256").update(packages.join(" ")).digest("hex").slice(0, 12);
  const archive = join(CACHE, `${key}.tar`);
  if (existsSync(join(PROJECT_DIR, archive))) {
    return archive;
  }
  mkdirSync(join(PROJECT_DIR, CACHE), { recursive: true });
  const work = mkdtempSync(join(PROJECT_DIR, CACHE, "new-"));
  try {
    const root = join(work, "root");
    download(join(work, "debs"), packages);
    unpack(join(work, "debs"), root);
    const missing = programs.filter((it) => !existsSync(it) && !existsSync(join(root, it)));
    if (missing.length > 0) {
      throw new PackageError(
        `${packages.join(" ")}: expected ${missing.join(", ")} in them, found no such file`,
      );
    }
    run("tar", ["-C", root, "--owner=0", "--group=0", "-cf", join(work, "tar"), "."]);
    renameSync(join(work, "tar"), join(PROJECT_DIR, archive));
  } catch (error) {
    if (error instanceof PackageError) {
      throw error;
    }
    throw new PackageError(
      `packages ${packages.join(" ")} cannot be fetched (${reason(error)}): ` +
        "check the network and apt's sources, or install them by hand",
    );
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return archive;
}
