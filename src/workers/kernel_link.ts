// SPDX-License-Identifier: GPL-2.0-only
//
// Sending to the kernel, from any thread, over the mount's one genetlink socket (sendmsg on it is thread-safe,
// and the sender's port is then the bound one). The kernel's refusals come back to the netlink worker.
//
// The kernel only checks and queues, so a send never blocks for long; EAGAIN and ENOBUFS are retried by the kernel's
// own wait, and anything else that is thrown here ends the daemon.

import { GenlSocket, isNativeError } from "../../native/index.js";
import { MXFS_LOCK_ENTRY_SIZE, MXFS_NL_LOCKS_MAX } from "../wire/abi.js";
import { encodeToKernel, NLM_F_REQUEST, type ToKernel } from "../wire/netlink.js";
import type { KernelSetup } from "./protocol.js";

type Unaddressed<T> = T extends { readonly mountId: number } ? Omit<T, "mountId" | "session"> : never;
/** A command without the address of the mount. */
export type KernelCommand = Unaddressed<ToKernel>;

export class KernelLink {
  readonly #socket: GenlSocket;
  #seq: number;

  /** @param thread a number of its own for each thread (1 to 15): it keeps the sequence numbers apart. */
  constructor(
    readonly setup: KernelSetup,
    thread: number,
  ) {
    this.#socket = GenlSocket.attach(setup.socket);
    this.#seq = thread * 0x1000_0000;
  }

  /**
   * Sends one command. Returns its netlink sequence number.
   * @returns 0 when the mount is gone (the kernel let go of it: nobody is left to tell).
   */
  send(command: KernelCommand): number {
    this.#seq = (this.#seq & 0xf000_0000) + (((this.#seq & 0x0fff_ffff) + 1) & 0x0fff_ffff);
    const seq = this.#seq >>> 0;
    const { mountId, session, familyId } = this.setup;
    // The spread loses the tie between `cmd` and its attributes; the codec checks them again.
    const message = { ...command, mountId, session } as ToKernel;
    const bytes = encodeToKernel(message, { familyId, flags: NLM_F_REQUEST, seq, portId: 0 });
    for (;;) {
      try {
        this.#socket.send(bytes);
        return seq;
      } catch (error) {
        if (isNativeError(error) && error.code === "EINTR") {
          continue;
        }
        throw error;
      }
    }
  }

  /** Sends lock entries, as many messages as it takes. */
  sendLocks(cmd: "LOCK_GRANT" | "LOCK_DENY" | "BAST", entries: Uint8Array): void {
    const step = MXFS_NL_LOCKS_MAX * MXFS_LOCK_ENTRY_SIZE;
    for (let at = 0; at < entries.length; at += step) {
      this.send({ cmd, locks: entries.subarray(at, at + step) });
    }
  }
}
