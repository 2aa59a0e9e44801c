// SPDX-License-Identifier: GPL-2.0-only
//
// What a guest is made of: Debian's kernel as an uncompressed ELF (booted by PVH, twice as fast as a vmlinuz
// under emulation), an initramfs of static busybox, a dozen modules and the lab's agent, and QEMU's command
// line. scripts/setup.sh has unpacked the kernel into .lab/cache/kernel-RELEASE.
//
// File systems in a guest: the host's root, read-only, under a tmpfs overlay (9p, cache=loose: a change on the
// host during a run may stay unseen); the project's tree at its own path and at /mxfs, read-only and uncached,
// so what is built during a run is seen at once (but for node_modules); /share, writable, one directory per
// guest on the host, which outlives the guest and carries /etc/mxfs.
//
// MXFS_KERNEL=debug takes the kernel of scripts/debug-kernel.sh, which reports the module's bugs and is several times
// slower: guests get more memory, and everybody who waits multiplies by `patience`.
//
// Hardware virtualisation is used only where a guest was seen to boot with it: /dev/kvm opens on machines on
// which guests then hang. The answer of that probe is kept in .lab/cache, per host kernel.
//
// Weakness: the probe takes up to KVM_PROBE_MS once, and a host whose KVM breaks later is not noticed.

import { createHash } from "node:crypto";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { release } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { EXEC_PORT_COUNT } from "./channel.js";
import { endProcess, LabError, processState, removeFile, run, sleepSync, startDaemon } from "./host.js";

/** The project's directory: this file runs from dist/lab/. */
export const PROJECT_DIR = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
export const CACHE_DIR = join(PROJECT_DIR, ".lab", "cache");

/** Where scripts/debug-kernel.sh puts its kernel. */
const DEBUG_KERNEL_DIR = process.env.MXFS_DEBUG_KERNEL ?? join(CACHE_DIR, "debug-kernel");
/** The module for it, in the project. */
const DEBUG_MODULE = ".lab/debug-module/kernel/mxfs.ko";
/** Parsing ACPI tables under KASAN would take two minutes of every boot; every report counts, not the first alone. */
const DEBUG_APPEND = "pci=noacpi acpi=noirq kasan_multi_shot";
/** By how much time limits grow with it. */
const DEBUG_PATIENCE = 6;
const KVM_PROBE_MS = 12_000;
const BUSYBOX = "/bin/busybox";

/** Loaded by the initramfs, with all they depend on; anything else comes by modprobe from /lib/modules. */
const BOOT_MODULES = [
  "virtio_pci",
  "virtio_console",
  "9p",
  "9pnet_virtio",
  "overlay",
  "virtio_blk",
  "virtio_net",
  "virtio_scsi",
  "sd_mod",
  "configfs",
];

export interface Kernel {
  /** For example 6.1.0-56-amd64. */
  release: string;
  /** Where the package is unpacked: holds vmlinux, lib/modules/RELEASE. */
  dir: string;
  /** mxfs.ko for it, seen from the project's directory, where that is not kernel/mxfs.ko. */
  module?: string;
  /** Words that it wants on its command line. */
  append?: string;
}

/** Whether the guests run the debug kernel. */
export function wantsDebugKernel(): boolean {
  const wanted = process.env.MXFS_KERNEL ?? "";
  if (wanted !== "" && wanted !== "debug")
    throw new LabError(`MXFS_KERNEL=${wanted}: expected debug, or nothing`);
  return wanted === "debug";
}

/** By how much everything takes longer in the guests than on Debian's kernel: time limits are multiplied by it. */
export function patience(): number {
  return wantsDebugKernel() ? DEBUG_PATIENCE : 1;
}

/** Also brings the module for it up to date. */
function findDebugKernel(): Kernel {
  const script = join(PROJECT_DIR, "scripts/debug-kernel.sh");
  run("bash", [script, "module"], { MXFS_DEBUG_KERNEL: DEBUG_KERNEL_DIR });
  return { ...findKernel(DEBUG_KERNEL_DIR), module: DEBUG_MODULE, append: DEBUG_APPEND };
}

/** The kernel in `dir`, or the debug kernel if wanted, or the newest that setup.sh has unpacked. Throws when there is none. */
export function findKernel(dir?: string): Kernel {
  if (dir === undefined && wantsDebugKernel()) return findDebugKernel();
  if (dir !== undefined) {
    const modules = join(dir, "lib/modules");
    const releases = existsSync(modules) ? readdirSync(modules) : [];
    if (!existsSync(join(dir, "vmlinux")) || releases[0] === undefined || releases.length > 1) {
      throw new LabError(`kernel ${dir}: expected vmlinux and one lib/modules/RELEASE in it`);
    }
    return { release: releases[0], dir: resolve(dir) };
  }
  const names = existsSync(CACHE_DIR) ? readdirSync(CACHE_DIR) : [];
  const ready = names
    .filter((name) => name.startsWith("kernel-") && existsSync(join(CACHE_DIR, name, "complete")))
    .sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  const newest = ready.at(-1);
  if (newest === undefined) {
    throw new LabError(`no guest kernel in ${CACHE_DIR}: expected kernel-RELEASE/, run scripts/setup.sh`);
  }
  return { release: newest.slice("kernel-".length), dir: join(CACHE_DIR, newest) };
}

function readModuleDependencies(kernel: Kernel): Map<string, string[]> {
  const text = readFileSync(join(kernel.dir, "lib/modules", kernel.release, "modules.dep"), "utf8");
  const map = new Map<string, string[]>();
  for (const line of text.split("\n")) {
    const [file, rest] = line.split(":");
    if (file !== undefined && rest !== undefined) map.set(file, rest.trim().split(" ").filter(Boolean));
  }
  return map;
}

/** Files to insmod, dependencies first. */
function moduleOrder(kernel: Kernel): string[] {
  const dependencies = readModuleDependencies(kernel);
  const byName = new Map([...dependencies.keys()].map((file) => [basename(file, ".ko"), file]));
  const order: string[] = [];
  const add = (file: string) => {
    if (order.includes(file)) return;
    for (const needed of dependencies.get(file) ?? []) add(needed);
    order.push(file);
  };
  const builtin = readFileSync(join(kernel.dir, "lib/modules", kernel.release, "modules.builtin"), "utf8");
  for (const name of BOOT_MODULES) {
    const file = byName.get(name);
    if (file !== undefined) add(file);
    else if (!builtin.includes(`/${name}.ko`)) {
      throw new LabError(`kernel ${kernel.dir} has no ${name}, neither as a module nor built in`);
    }
  }
  return order;
}

/** Builds the initramfs unless one of the same ingredients is there. Returns its path. */
export function buildInitramfs(kernel: Kernel): string {
  const agentSource = join(PROJECT_DIR, "lab", "agent.c");
  const initScript = join(PROJECT_DIR, "lab", "guest-init.sh");
  const hash = createHash("sha256");
  const { mtimeMs } = statSync(join(kernel.dir, "vmlinux"));
  hash.update(`${kernel.dir} ${kernel.release} ${mtimeMs} ${BOOT_MODULES.join()}`);
  for (const file of [agentSource, initScript, BUSYBOX]) {
    if (!existsSync(file)) throw new LabError(`${file} is missing; run scripts/setup.sh`);
    hash.update(readFileSync(file));
  }
  const image = join(CACHE_DIR, `initramfs-${hash.digest("hex").slice(0, 16)}.cpio`);
  if (existsSync(image)) return image;

  const work = mkdtempSync(join(CACHE_DIR, "initramfs-"));
  try {
    const root = join(work, "root");
    for (const dir of ["bin", "dev", "proc", "sys", "modules"])
      mkdirSync(join(root, dir), { recursive: true });
    copyFileSync(BUSYBOX, join(root, "bin/busybox"));
    copyFileSync(initScript, join(root, "init"));
    run("chmod", ["755", join(root, "init"), join(root, "bin/busybox")]);
    run("gcc", [
      "-O2",
      "-Wall",
      "-Wextra",
      "-Werror",
      "-static",
      "-s",
      "-o",
      join(root, "agent"),
      agentSource,
    ]);
    const order = moduleOrder(kernel);
    for (const file of order) {
      const from = join(kernel.dir, "lib/modules", kernel.release, file);
      run("strip", ["--strip-debug", "-o", join(root, "modules", basename(file)), from]);
    }
    writeFileSync(join(root, "modules/order"), `${order.map((file) => basename(file)).join("\n")}\n`);
    const made = join(work, "image");
    run("sh", ["-ec", `cd "$1" && find . | cpio -o -H newc --quiet -R 0:0 >"$2"`, "sh", root, made]);
    renameSync(made, image);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  return image;
}

export type Accelerator = "tcg" | "kvm";

/** Boots a kernel under KVM without a root: its panic on the console proves that guests run here. */
function probeKvm(kernel: Kernel): boolean {
  if (!existsSync("/dev/kvm")) return false;
  const work = mkdtempSync(join(CACHE_DIR, "kvm-probe-"));
  const console = join(work, "console");
  writeFileSync(console, "");
  try {
    const args = ["-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config"];
    args.push("-display", "none", "-kernel", join(kernel.dir, "vmlinux"), "-serial", `file:${console}`);
    args.push("-append", "console=ttyS0 panic=-1", "-no-reboot");
    const qemu = startDaemon("qemu-system-x86_64", args, join(work, "log"));
    const deadline = Date.now() + KVM_PROBE_MS;
    while (Date.now() < deadline && processState(qemu) !== "gone") {
      if (readFileSync(console, "utf8").includes("Unable to mount root fs")) break;
      sleepSync(50);
    }
    endProcess(qemu);
    return readFileSync(console, "utf8").includes("Unable to mount root fs");
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** MXFS_LAB_ACCEL=tcg|kvm decides; else the probe, or what it said last time on this host kernel. */
export function chooseAccelerator(kernel: Kernel): Accelerator {
  const wanted = process.env.MXFS_LAB_ACCEL;
  if (wanted === "tcg" || wanted === "kvm") return wanted;
  if (wanted !== undefined) throw new LabError(`MXFS_LAB_ACCEL=${wanted}: expected tcg or kvm`);
  const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const key = `${release()} ${bootId}`;
  const cached = join(CACHE_DIR, "accelerator");
  if (existsSync(cached)) {
    const [chosen, ...rest] = readFileSync(cached, "utf8").trim().split(" ");
    if (rest.join(" ") === key && (chosen === "tcg" || chosen === "kvm")) return chosen;
  }
  const chosen = probeKvm(kernel) ? "kvm" : "tcg";
  writeFileSync(`${cached}.${process.pid}`, `${chosen} ${key}\n`);
  renameSync(`${cached}.${process.pid}`, cached);
  return chosen;
}

export interface GuestSpec {
  name: string;
  role: "node" | "target";
  /** Last byte of its addresses: 10.77.0.N. */
  number: number;
  kernel: Kernel;
  initramfs: string;
  accelerator: Accelerator;
  memoryMib: number;
  cpus: number;
  /** Extra words for the kernel's command line. */
  append: string;
  /** Sockets, console log. */
  runDir: string;
  shareDir: string;
  tap: string;
  /** iscsi:// URL of the shared LUN and the initiator's name; absent for the target guest. */
  lun: { url: string; initiator: string } | undefined;
  /** Raw image shown as /dev/vda. */
  virtioDisk: string | undefined;
}

export function execSocketPath(runDir: string, port: number): string {
  return join(runDir, `exec.${port}`);
}

export function consolePath(runDir: string): string {
  return join(runDir, "console");
}

/** Measures the time stamp counter against the clock, in kHz. */
const TSC_SOURCE = `
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>
static void sample(double *ns, unsigned long long *ticks)
{
	unsigned long long best = ~0ULL;
	for (int i = 0; i < 1000; i++) {
		struct timespec ts;
		unsigned long long before = __rdtsc(), after;
		clock_gettime(CLOCK_MONOTONIC, &ts);
		after = __rdtsc();
		if (after - before < best) {
			best = after - before;
			*ns = ts.tv_sec * 1e9 + ts.tv_nsec;
			*ticks = before + best / 2;
		}
	}
}
int main(void)
{
	double from, to;
	unsigned long long first, last;
	sample(&from, &first);
	usleep(200000);
	sample(&to, &last);
	printf("%.0f\\n", (double)(last - first) / (to - from) * 1e6);
	return 0;
}
`;

/**
 * The rate of the time stamp counter, which an emulated guest sees as the host has it. Told to the guest's kernel:
 * measuring it by itself on a busy host it can be wrong by several times, and so would all its clocks be.
 */
function tscKhz(): string {
  const bootId = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
  const cached = join(CACHE_DIR, "tsc-khz");
  if (existsSync(cached)) {
    const [khz = "", boot] = readFileSync(cached, "utf8").trim().split(" ");
    if (boot === bootId && /^[1-9][0-9]{4,7}$/.test(khz)) return khz;
  }
  const work = mkdtempSync(join(CACHE_DIR, "tsc-"));
  try {
    writeFileSync(join(work, "tsc.c"), TSC_SOURCE);
    run("gcc", ["-O2", "-o", join(work, "tsc"), join(work, "tsc.c")]);
    const khz = run(join(work, "tsc"), []).trim();
    if (!/^[1-9][0-9]{4,7}$/.test(khz)) throw new LabError(`time stamp counter: ${khz} kHz cannot be`);
    writeFileSync(join(work, "khz"), `${khz} ${bootId}\n`);
    renameSync(join(work, "khz"), cached);
    return khz;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

export function qemuArguments(spec: GuestSpec): string[] {
  const append = [
    "console=ttyS0 loglevel=5 rdinit=/init no_timer_check tsc=reliable random.trust_cpu=on net.ifnames=0",
    spec.accelerator === "tcg" ? `tsc_early_khz=${tscKhz()}` : "",
    // A guest that was frozen on purpose finds its processors "stuck" for that long when it is thawed.
    "softlockup_panic=0 panic=0 rcupdate.rcu_cpu_stall_timeout=120 watchdog_thresh=60",
    `mxfs.role=${spec.role} mxfs.node=${spec.number} mxfs.ports=${EXEC_PORT_COUNT}`,
    `mxfs.project=${PROJECT_DIR} mxfs.kernel=${spec.kernel.dir} mxfs.nodejs=${process.execPath}`,
    spec.kernel.module === undefined ? "" : `mxfs.module=${spec.kernel.module}`,
    spec.kernel.append ?? "",
    spec.append,
  ].join(" ");
  const args = ["-name", spec.name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"];
  if (spec.accelerator === "kvm") args.push("-M", "q35,accel=kvm", "-cpu", "host");
  else args.push("-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max");
  args.push("-m", String(spec.memoryMib), "-smp", String(spec.cpus));
  args.push("-kernel", join(spec.kernel.dir, "vmlinux"), "-initrd", spec.initramfs, "-append", append);
  args.push(
    "-chardev",
    `file,id=console,path=${consolePath(spec.runDir)},append=on`,
    "-serial",
    "chardev:console",
  );
  args.push("-qmp", `unix:${join(spec.runDir, "qmp")},server=on,wait=off`);

  const share = (tag: string, path: string, options: string) =>
    args.push(
      "-fsdev",
      `local,id=fs-${tag},path=${path},security_model=none,${options}`,
      "-device",
      `virtio-9p-pci,fsdev=fs-${tag},mount_tag=${tag}`,
    );
  share("root", "/", "readonly=on,multidevs=remap");
  share("project", PROJECT_DIR, "readonly=on,multidevs=remap");
  share("share", spec.shareDir, "multidevs=remap");

  args.push("-device", "virtio-serial-pci,max_ports=31");
  for (let port = 0; port < EXEC_PORT_COUNT; port++) {
    const path = execSocketPath(spec.runDir, port);
    args.push("-chardev", `socket,id=exec${port},path=${path},server=on,wait=off`);
    args.push("-device", `virtserialport,chardev=exec${port},name=exec.${port},nr=${port + 1}`);
  }

  const mac = `52:54:00:77:00:${spec.number.toString(16).padStart(2, "0")}`;
  args.push("-netdev", `tap,id=net0,ifname=${spec.tap},script=no,downscript=no`);
  args.push("-device", `virtio-net-pci,netdev=net0,mac=${mac},romfile=`);

  if (spec.lun !== undefined) {
    args.push("-device", "virtio-scsi-pci,id=scsi0");
    args.push("-drive");
    args.push(
      `file=${spec.lun.url},if=none,format=raw,id=lun,cache=none,file.initiator-name=${spec.lun.initiator}`,
    );
    args.push("-device", "scsi-block,drive=lun,bus=scsi0.0");
  }
  if (spec.virtioDisk !== undefined) {
    args.push("-drive", `file=${spec.virtioDisk},if=none,format=raw,id=vda,cache=none,discard=unmap`);
    args.push("-device", "virtio-blk-pci,drive=vda,serial=scratch");
  }
  return args;
}

/** Removes what a dead guest leaves in its run directory, so that a new QEMU can bind its sockets. */
export function clearSockets(runDir: string): void {
  for (let port = 0; port < EXEC_PORT_COUNT; port++) removeFile(execSocketPath(runDir, port));
  removeFile(join(runDir, "qmp"));
}
