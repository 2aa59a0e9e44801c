// SPDX-License-Identifier: GPL-2.0-only
//
// The first words between a daemon and its mount: MXFS_CMD_DAEMON_ATTACH, before any worker runs.

import { GenlSocket, isNativeError, RECV_TIMEOUT, resolveFamily } from "../../native/index.js";
import { MXFS_ABI_VERSION } from "../wire/abi.js";
import {
  decodeDatagram,
  encodeToKernel,
  NETLINK_MESSAGE_MAX,
  NLM_F_REQUEST,
  type ToDaemon,
} from "../wire/netlink.js";
import type { KernelSetup } from "../workers/protocol.js";

const BUFFER_BYTES = 4 * 1024 * 1024;
const ANSWER_MS = 10_000;

export class AttachError extends Error {
  override readonly name = "AttachError";
}

export interface Attached {
  readonly setup: KernelSetup;
  readonly answer: Extract<ToDaemon, { readonly cmd: "DAEMON_ATTACH" }>;
}

/**
 * Binds this process to a mount.
 * @throws AttachError when the module is not loaded, there is no such mount, or another daemon serves it.
 */
export function attach(mountId: number): Attached {
  let familyId: number;
  try {
    familyId = resolveFamily("mxfs").id;
  } catch (error) {
    throw new AttachError(
      `the kernel has no generic netlink family "mxfs" (${isNativeError(error) ? error.code : String(error)}): is the mxfs module loaded?`,
    );
  }
  const socket = GenlSocket.open({ receiveBufferBytes: BUFFER_BYTES, sendBufferBytes: BUFFER_BYTES });
  const seq = 1;
  socket.send(
    encodeToKernel(
      { cmd: "DAEMON_ATTACH", mountId, abiVersion: MXFS_ABI_VERSION, pid: process.pid },
      { familyId, flags: NLM_F_REQUEST, seq, portId: 0 },
    ),
  );
  const buffer = new Uint8Array(NETLINK_MESSAGE_MAX);
  const lengths = new Int32Array(1);
  const count = socket.recvBatch(buffer, NETLINK_MESSAGE_MAX, lengths, null, ANSWER_MS);
  if (count === RECV_TIMEOUT) {
    throw new AttachError(`the kernel did not answer ATTACH for mount ${mountId} within ${ANSWER_MS} ms`);
  }
  for (const event of decodeDatagram(buffer.subarray(0, lengths[0] ?? 0), familyId)) {
    if (event.kind === "ack" && event.error !== 0) {
      throw new AttachError(
        `the kernel refused ATTACH for mount ${mountId}: errno ${event.error} ${event.message ?? ""}`,
      );
    }
    if (event.kind === "message" && event.message.cmd === "DAEMON_ATTACH") {
      return {
        setup: { socket: socket.handle, familyId, mountId, session: event.message.session },
        answer: event.message,
      };
    }
  }
  throw new AttachError(`the kernel answered ATTACH for mount ${mountId} with something else`);
}
