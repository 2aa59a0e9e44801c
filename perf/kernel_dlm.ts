// SPDX-License-Identifier: GPL-2.0-only
//
// The kernel's own dlm in two guests, as a comparator: corosync and dlm_controld as they come from Debian, without encryption,
// and without fencing, so that it is faster, and less safe, than it may be run in earnest.
//
// Weakness: nothing is stopped again; the guests are thrown away.

import { type Lab, until } from "../lab/volume.js";

const START_MS = 120_000;
const SEEN_MS = 60_000;

// Corosync reads one setting a line. There is no udev in a guest, and dlm_controld looks for /dev/misc.
const START = (cluster: string): string => `set -e
mkdir -p /etc/corosync /etc/dlm /var/lib/corosync /run/corosync /dev/misc
cat >/etc/corosync/corosync.conf <<END
totem {
  version: 2
  cluster_name: ${cluster}
  transport: knet
  crypto_cipher: none
  crypto_hash: none
}
nodelist {
  node {
    ring0_addr: 10.77.0.1
    name: node1
    nodeid: 1
  }
  node {
    ring0_addr: 10.77.0.2
    name: node2
    nodeid: 2
  }
}
quorum {
  provider: corosync_votequorum
  two_node: 1
  wait_for_all: 0
}
logging {
  to_stderr: no
  to_syslog: no
  to_logfile: yes
  logfile: /var/log/corosync.log
}
END
echo enable_fencing=0 >/etc/dlm/dlm.conf
modprobe -a configfs dlm
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
awk '$2 ~ /^dlm/ { print $2, $1 }' /proc/misc | while read -r name minor; do
  [ -e "/dev/misc/$name" ] || mknod "/dev/misc/$name" c 10 "$minor"
done
corosync`;

/** @throws LabError, VolumeError when one of its parts does not start, or the nodes do not find each other. */
export async function startKernelDlm(lab: Lab, cluster: string): Promise<void> {
  const both = (script: string): Promise<unknown> =>
    Promise.all([1, 2].map((node) => lab.run(node, script, { timeoutMs: START_MS })));
  await both(START(cluster));
  await until("corosync sees both nodes", SEEN_MS, async () => {
    const seen = await Promise.all([1, 2].map((node) => lab.exec(node, "corosync-quorumtool -s")));
    return seen.every((it) => /^Nodes:\s+2$/m.test(it.stdout)) ? true : undefined;
  });
  await both("dlm_controld");
  await until("dlm_controld answers on both nodes", SEEN_MS, async () => {
    const seen = await Promise.all([1, 2].map((node) => lab.exec(node, "dlm_tool status")));
    return seen.every((it) => it.status === 0) ? true : undefined;
  });
}
