// SPDX-License-Identifier: GPL-2.0-only
//
// The lab's command line: `npm run -s lab -- COMMAND`. What it does is lab/lab.ts; here are only arguments,
// output and exit statuses: 0 done, 1 failed (one line on stderr says why), and for `exec` the command's own.
//
// Weakness: none known.

import { writeSync } from "node:fs";
import yargs from "yargs";
import { chooseAccelerator, findKernel } from "./guest.js";
import { type CutKind, defaultLabName, Lab, LabError, type TargetKind } from "./lab.js";

/** "4G", "512M", "1048576" to bytes. */
export function parseSize(text: string): number {
  const match = /^([1-9][0-9]*)([KMGT]?)$/i.exec(text);
  if (match === null) throw new LabError(`size "${text}": expected a number, then nothing, K, M, G or T`);
  const power = " KMGT".indexOf((match[2] ?? "").toUpperCase() || " ");
  return Number(match[1]) * 1024 ** power;
}

function say(line: string): void {
  writeSync(2, `${line}\n`);
}

function writeAll(fd: number, data: Buffer): void {
  for (let at = 0; at < data.length; ) {
    try {
      at += writeSync(fd, data, at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
    }
  }
}

async function execCommand(node: string, argv: string[], timeoutSeconds: number): Promise<number> {
  const command = Lab.open().spawn(node, argv);
  command.on("stdout", (piece) => writeAll(1, piece));
  command.on("stderr", (piece) => writeAll(2, piece));
  const timer =
    timeoutSeconds > 0
      ? setTimeout(
          () => command.abandon(new LabError(`${node}: no end within ${timeoutSeconds} s`)),
          timeoutSeconds * 1000,
        )
      : undefined;
  const feed = async () => {
    if (!process.stdin.isTTY) for await (const piece of process.stdin) await command.write(piece as Buffer);
    await command.end();
  };
  const fed = feed();
  fed.catch(() => undefined); // a stdin that cannot be read is an empty one
  const end = await command.done;
  clearTimeout(timer);
  return end.status;
}

function showStatus(): void {
  const status = Lab.open().status();
  console.log(`lab ${status.name}: target ${status.target} ${status.targetState}, ${status.accelerator}`);
  for (const node of status.nodes) {
    const pid = node.pid === undefined ? "" : ` pid ${node.pid}`;
    console.log(`${node.node}: ${node.state}, network ${node.network}, disk ${node.disk}${pid}`);
  }
}

const NODE = { type: "string", demandOption: true, describe: "node1, or just 1" } as const;

async function main(args: string[]): Promise<number> {
  let status = 0;
  // yargs would eat options of the guest's command: cut it off first.
  const dashes = args.indexOf("--");
  const own = dashes < 0 ? args : args.slice(0, dashes);
  const guestArgv = dashes < 0 ? [] : args.slice(dashes + 1);
  const timed = async (what: string, action: () => Promise<void> | void) => {
    const began = Date.now();
    await action();
    say(`${what} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
  };

  await yargs(own)
    .scriptName("lab")
    .usage("$0 COMMAND  (MXFS_LAB=name chooses the lab)")
    .command(
      "up",
      "bring the lab up",
      (y) =>
        y
          .option("nodes", { type: "number", default: 2 })
          .option("target", { choices: ["tgt", "lio"] as const, default: "tgt" as TargetKind })
          .option("disk-size", { type: "string", default: "4G" })
          .option("scratch", {
            type: "string",
            describe: "private /dev/vda per node, 1G when no size is given",
          })
          .option("memory", { type: "number", default: 1024, describe: "MiB per guest" })
          .option("cpus", { type: "number", default: 1 })
          .option("append", { type: "string", default: "", describe: "more kernel command line" })
          .option("kernel", {
            type: "string",
            describe:
              "debug (see scripts/debug-kernel.sh), or a directory with vmlinux and lib/modules/RELEASE",
          })
          .option("replace", {
            type: "boolean",
            default: false,
            describe: "take an existing lab down first",
          }),
      async (a) => {
        // Interrupted half-way: nothing is left of it.
        for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
          process.once(signal, () => {
            Lab.down();
            process.exit(130);
          });
        }
        if (a.kernel === "debug") process.env.MXFS_KERNEL = "debug";
        await Lab.up({
          nodes: a.nodes,
          target: a.target,
          diskBytes: parseSize(a["disk-size"]),
          scratchBytes: a.scratch === undefined ? 0 : parseSize(a.scratch || "1G"),
          memoryMib: a.memory,
          cpus: a.cpus,
          append: a.append,
          ...(a.kernel === undefined || a.kernel === "debug" ? {} : { kernelDir: a.kernel }),
          replace: a.replace,
          log: say,
        });
      },
    )
    .command(
      "exec <node>",
      "run a command: exec NODE -- CMD...",
      (y) =>
        y.positional("node", NODE).option("timeout", { type: "number", default: 0, describe: "seconds" }),
      async (a) => {
        status = await execCommand(a.node, guestArgv, a.timeout);
      },
    )
    .command(
      "kill <node>",
      "power cut",
      (y) => y.positional("node", NODE),
      (a) => Lab.open().kill(a.node),
    )
    .command(
      "start <node>",
      "switch a killed node on",
      (y) => y.positional("node", NODE),
      (a) => timed(`${a.node} is up`, () => Lab.open().start(a.node)),
    )
    .command(
      "freeze <node>",
      "stop a node where it is",
      (y) => y.positional("node", NODE),
      (a) => Lab.open().freeze(a.node),
    )
    .command(
      "thaw <node>",
      "let a frozen node go on",
      (y) => y.positional("node", NODE),
      (a) => Lab.open().thaw(a.node),
    )
    .command(
      "cut <node> <what>",
      "pull the network cable, or the path to the shared disk",
      (y) =>
        y
          .positional("node", NODE)
          .positional("what", { choices: ["network", "disk"] as const, demandOption: true }),
      (a) => Lab.open().cut(a.node, a.what as CutKind),
    )
    .command(
      "heal <node> [what]",
      "undo cut",
      (y) => y.positional("node", NODE).positional("what", { choices: ["network", "disk"] as const }),
      (a) => Lab.open().heal(a.node, a.what as CutKind | undefined),
    )
    .command(
      "put <node> <file> <dest>",
      "copy a file into a guest",
      (y) =>
        y
          .positional("node", NODE)
          .positional("file", { type: "string", demandOption: true })
          .positional("dest", { type: "string", demandOption: true }),
      (a) => Lab.open().put(a.node, a.file, a.dest),
    )
    .command(
      "console <node>",
      "print a node's console log",
      (y) => y.positional("node", NODE),
      (a) => writeAll(1, Buffer.from(Lab.open().console(a.node))),
    )
    .command("status", "what runs, what is cut", (y) => y, showStatus)
    .command(
      "down",
      "end the lab, leave nothing",
      (y) => y,
      () => timed(`lab "${defaultLabName()}" is down`, () => Lab.down()),
    )
    .command(
      "list",
      "names of all labs on this machine",
      (y) => y,
      () => console.log(Lab.list().join("\n")),
    )
    .command(
      "probe",
      "find out whether KVM works here",
      (y) => y,
      () => console.log(chooseAccelerator(findKernel())),
    )
    .demandCommand(1, "which command?")
    .strict()
    .help()
    .fail((message, error) => {
      throw error ?? new LabError(`${message} (see --help)`);
    })
    .parseAsync();
  return status;
}

main(process.argv.slice(2)).then(
  (status) => process.exit(status),
  (error: unknown) => {
    say(
      `lab: ${error instanceof LabError ? error.message : error instanceof Error ? error.stack : String(error)}`,
    );
    process.exit(1);
  },
);
