// SPDX-License-Identifier: GPL-2.0-only
//
// Reads what `fio --output-format=json` prints. fio may write warnings before the JSON, and cuts it short when it is
// killed; whatever is not as expected is an error that says what was found.
//
// Weakness: only the first job is read; the harness's job files have one each.

export class FioError extends Error {
  override name = "FioError";
}

/** One direction of a job. */
export interface FioSide {
  /** KiB per second. */
  readonly bw: number;
  readonly iops: number;
  readonly io_bytes: number;
  /** Milliseconds in which there was I/O of this direction. */
  readonly runtime: number;
}

export interface FioJob {
  readonly name: string;
  readonly read: FioSide;
  readonly write: FioSide;
}

function fields(value: unknown, what: string): Record<string, unknown> {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new FioError(`fio: ${what}: expected an object, found ${JSON.stringify(value) ?? "nothing"}`);
  }
  return value as Record<string, unknown>;
}

function numberOf(object: Record<string, unknown>, key: string, what: string): number {
  const value = object[key];
  if (typeof value !== "number" || !Number.isFinite(value) || value < 0) {
    throw new FioError(
      `fio: ${what}.${key}: expected a number from 0, found ${JSON.stringify(value) ?? "nothing"}`,
    );
  }
  return value;
}

function sideOf(job: Record<string, unknown>, key: "read" | "write"): FioSide {
  const side = fields(job[key], key);
  return {
    bw: numberOf(side, "bw", key),
    iops: numberOf(side, "iops", key),
    io_bytes: numberOf(side, "io_bytes", key),
    runtime: numberOf(side, "runtime", key),
  };
}

/** @throws FioError for output that is no fio JSON, is cut short, or tells of a failed job. */
export function parseFio(text: string): FioJob {
  const start = text.search(/^\{/m);
  const said = text.trim().slice(0, 300);
  if (start < 0) {
    throw new FioError(`fio: expected JSON, found ${said === "" ? "nothing" : `"${said}"`}`);
  }
  let parsed: unknown;
  try {
    parsed = JSON.parse(text.slice(start, text.lastIndexOf("}") + 1));
  } catch (error) {
    throw new FioError(
      `fio: its JSON is damaged or cut short (${error instanceof Error ? error.message : error})`,
    );
  }
  const { jobs } = fields(parsed, "output");
  if (!Array.isArray(jobs) || jobs.length === 0) {
    throw new FioError("fio: expected a job in its output, found none");
  }
  const job = fields(jobs[0], "job");
  const name = typeof job.jobname === "string" ? job.jobname : "?";
  const error = numberOf(job, "error", `job ${name}`);
  if (error !== 0) {
    throw new FioError(
      `fio: job ${name} failed with errno ${error}: ${text.slice(0, start).trim().slice(-300)}`,
    );
  }
  return { name, read: sideOf(job, "read"), write: sideOf(job, "write") };
}
