// SPDX-License-Identifier: GPL-2.0-only
//
// `mxfs_lock session`: a client that takes several locks, and changes them, by commands from standard input.
//
//   lock NAME [MODE] [noqueue] [timeout=S]       take a lock (EX)
//   convert NAME MODE [noqueue] [timeout=S] [value=V]
//   unlock NAME [value=V]                        let it go; V becomes the resource's value (from EX or PW)
//   value NAME                                   the value as this lock knows it
//   list · help · quit
//
// Commands run one after the other; each is answered by one line: "ok ..." or "error ERRNO sentence". Somebody who
// waits for a lock is told in between: "bast NAME MODE". At the end of the input all locks are let go, in order; a
// session that is killed lets them go too, but a value it might have changed is invalid then.
//
// A value V is text, or 0x and hexadecimal digits; at most 32 bytes, zeros behind. It is printed as both.
// Known weakness: a name is locked once in a session.

import { type ControlConnection, ControlError, isObject, type Json, type JsonObject } from "./control.js";
import { MODE_NAMES, NameError, parseMode, parseResource } from "./resource_name.js";

const VALUE_BYTES_MAX = 32;
const HELP =
  "lock NAME [MODE] [noqueue] [timeout=S] · convert NAME MODE [noqueue] [timeout=S] [value=V] · unlock NAME [value=V] · value NAME · list · quit";

/** A value as people write it, as the daemon wants it: hexadecimal. @throws NameError */
export function parseValue(input: string): string {
  const hex = /^0x((?:[0-9a-fA-F]{2})*)$/.exec(input)?.[1]?.toLowerCase();
  const bytes = hex ?? Buffer.from(input, "utf8").toString("hex");
  if (bytes.length > 2 * VALUE_BYTES_MAX) {
    throw new NameError(`value: ${bytes.length / 2} bytes, at most ${VALUE_BYTES_MAX}`);
  }
  return bytes;
}

/** `valid 0x6869 "hi"`: the daemon's answer without the zeros behind. */
export function formatValue(value: Json | undefined): string {
  if (!isObject(value) || typeof value.hex !== "string") {
    return "none";
  }
  const hex = value.hex.replace(/(00)+$/, "");
  const bytes = Buffer.from(hex, "hex");
  const printable = bytes.toString("utf8");
  const text = /^[\x20-\x7e]+$/.test(printable) ? ` ${JSON.stringify(printable)}` : "";
  return `${value.valid === true ? "valid" : "invalid"} 0x${hex}${text}`;
}

interface Options {
  readonly noqueue: boolean;
  readonly timeoutMs: number | null;
  readonly value: string | null;
}

function parseOptions(words: readonly string[], allowed: readonly string[]): Options {
  let options: Options = { noqueue: false, timeoutMs: null, value: null };
  for (const word of words) {
    const [name = "", given] = word.split(/=(.*)/s);
    if (!allowed.includes(name)) {
      throw new NameError(`"${word}": expected ${allowed.join(", ") || "nothing more"}`);
    }
    if (name === "noqueue" && given === undefined) {
      options = { ...options, noqueue: true };
    } else if (
      name === "timeout" &&
      given !== undefined &&
      /^[0-9]+(\.[0-9]+)?$/.test(given) &&
      Number(given) <= 1e6
    ) {
      options = { ...options, timeoutMs: Math.round(Number(given) * 1000) };
    } else if (name === "value" && given !== undefined) {
      options = { ...options, value: parseValue(given) };
    } else {
      throw new NameError(`"${word}": expected noqueue, timeout=SECONDS or value=VALUE`);
    }
  }
  return options;
}

export class LockSession {
  readonly #connection: ControlConnection;
  readonly #print: (line: string) => void;
  /** Lock ids by name. */
  readonly #locks = new Map<string, string>();
  /** `quit` was read. */
  over = false;
  /** The daemon is gone, and the locks with it. */
  lost = false;
  onLost: () => void = () => undefined;

  constructor(connection: ControlConnection, print: (line: string) => void) {
    this.#connection = connection;
    this.#print = print;
    connection.onEvent = (event) => this.#event(event);
  }

  #nameOf(id: Json | undefined): string | null {
    return Array.from(this.#locks).find(([, lock]) => lock === id)?.[0] ?? null;
  }

  #event(event: JsonObject): void {
    const name = this.#nameOf(event.lock);
    if (event.event === "bast") {
      this.#print(`bast ${name ?? "?"} ${MODE_NAMES[Number(event.mode)] ?? "?"}`);
    } else if (event.event === "released" && name !== null) {
      this.#locks.delete(name);
      this.#print(`released ${name}`);
    } else if (event.event === "lost" || event.event === "closed") {
      this.lost = !this.over;
      this.onLost();
    }
  }

  /** Runs one line and prints its answer. @returns what went wrong, or null. */
  async execute(line: string): Promise<Error | null> {
    const words = line.trim().split(/\s+/);
    if (words[0] === "" || words[0]?.startsWith("#") === true) {
      return null;
    }
    try {
      this.#print(`ok ${await this.#run(words)}`);
      return null;
    } catch (error) {
      const errno =
        error instanceof ControlError ? error.errno : error instanceof NameError ? "EINVAL" : null;
      if (errno === null || !(error instanceof Error)) {
        throw error;
      }
      this.#print(`error ${errno} ${error.message}`);
      return error;
    }
  }

  async #run([command, name, ...rest]: readonly string[]): Promise<string> {
    switch (command) {
      case "lock":
        return await this.#lock(this.#named(name), rest);
      case "convert":
        return await this.#convert(this.#named(name), rest);
      case "unlock": {
        const { value } = parseOptions(rest, ["value"]);
        const known = this.#named(name);
        await this.#connection.request("release", { lock: this.#held(known), value });
        this.#locks.delete(known);
        return `unlock ${known}`;
      }
      case "value": {
        const known = this.#named(name);
        const answer = await this.#connection.request("value", { lock: this.#held(known) });
        return `value ${known} ${formatValue(answer.value)}`;
      }
      case "list":
        return `list ${Array.from(this.#locks.keys()).join(" ")}`.trimEnd();
      case "help":
        return HELP;
      case "quit":
        this.over = true;
        return "quit";
      default:
        throw new NameError(`"${command ?? ""}": expected ${HELP}`);
    }
  }

  #named(name: string | undefined): string {
    parseResource(name ?? "");
    return name ?? "";
  }

  #held(name: string): string {
    const lock = this.#locks.get(name);
    if (lock === undefined) {
      throw new NameError(`${name} is not locked in this session`);
    }
    return lock;
  }

  async #lock(resource: string, words: readonly string[]): Promise<string> {
    if (this.#locks.has(resource)) {
      throw new NameError(`${resource} is locked in this session already: convert it`);
    }
    const given = words[0] !== undefined && /^([A-Za-z]{2}|[0-5])$/.test(words[0]) ? words[0] : null;
    const mode = parseMode(given ?? "EX");
    const { noqueue, timeoutMs } = parseOptions(words.slice(given === null ? 0 : 1), ["noqueue", "timeout"]);
    const answer = await this.#connection.request("lock", { resource, mode, noqueue, timeoutMs });
    this.#locks.set(resource, String(answer.lock));
    return `lock ${resource} ${MODE_NAMES[mode] ?? "?"} value ${formatValue(answer.value)}`;
  }

  async #convert(name: string, words: readonly string[]): Promise<string> {
    const lock = this.#held(name);
    const mode = parseMode(words[0] ?? "");
    const { noqueue, timeoutMs, value } = parseOptions(words.slice(1), ["noqueue", "timeout", "value"]);
    const answer = await this.#connection.request("convert", { lock, mode, noqueue, timeoutMs, value });
    return `convert ${name} ${MODE_NAMES[mode] ?? "?"} value ${formatValue(answer.value)}`;
  }

  /** Lets everything go, in order. */
  async end(): Promise<void> {
    this.over = true;
    if (this.lost) {
      return;
    }
    for (const lock of this.#locks.values()) {
      await this.#connection.request("release", { lock });
    }
    this.#locks.clear();
  }
}
