// SPDX-License-Identifier: GPL-2.0-only
//
// How each file system is brought up on the lab's two nodes, made new on the shared disk and mounted at MOUNTPOINT,
// with its default options:
//
//   raw    XFS on node 1 alone
//   mxfs   node 1 holds, node 2 is a member
//   nfs    node 1 serves its XFS by NFSv4.2 (8 threads, export "sync") and works on it itself; node 2 is the client
//   gfs2   dlm over corosync, no fencing (so it is faster, and less safe, than it may be run in earnest)
//   ocfs2  o2cb with its local heartbeat on the same disk
//
// raw, mxfs and nfs are taken down again; after gfs2 and ocfs2, and after anything that failed, both nodes are
// switched off and on: nothing that one leaves in a kernel is there for the next.
//
// Weakness: two nodes only; node 1 and node 2 are taken to be equally fast.

import { DEVICE, MOUNTPOINT, type Volume, VolumeError } from "../lab/volume.js";
import { startKernelDlm } from "./kernel_dlm.js";
import { providePrograms } from "./packages.js";
import type { SystemKey } from "./rows.js";

export const LOAD = "/usr/local/bin/mxfs-perf";
const CLUSTER = "perf";
const UP_TIMEOUT_MS = 120_000;

interface System {
  readonly packages: readonly string[];
  readonly programs: readonly string[];
  up(volume: Volume): Promise<void>;
  /** null: by power cut. */
  readonly down: ((volume: Volume) => Promise<void>) | null;
}

const raw: System = {
  packages: [],
  programs: [],
  async up(volume) {
    await volume.mkfs(1);
    await volume.lab.run(1, `mount -t xfs ${DEVICE} ${MOUNTPOINT}`);
  },
  async down(volume) {
    await volume.lab.run(1, `umount ${MOUNTPOINT}`);
  },
};

const mxfs: System = {
  packages: [],
  programs: [],
  async up(volume) {
    await volume.mkfs(1);
    await volume.mount(1);
    await volume.mount(2);
    const { holder } = await volume.roles();
    if (holder !== 1) {
      throw new VolumeError(`expected node1 as the holder, found node${holder}`);
    }
  },
  async down(volume) {
    await volume.umountAll();
  },
};

const NFS_SERVER = `set -e
mkfs.xfs -f -q -K ${DEVICE}
mount -t xfs ${DEVICE} ${MOUNTPOINT}
modprobe nfsd
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
mkdir -p /var/lib/nfs/nfsdcld /var/lib/nfs/rpc_pipefs
for file in etab rmtab state; do : >/var/lib/nfs/$file; done
mountpoint -q /var/lib/nfs/rpc_pipefs || mount -t rpc_pipefs rpc_pipefs /var/lib/nfs/rpc_pipefs
echo '${MOUNTPOINT} 10.77.0.0/24(rw,sync,no_root_squash,no_subtree_check,fsid=0)' >/etc/exports
pidof nfsdcld >/dev/null || nfsdcld
exportfs -r
pidof rpc.mountd >/dev/null || rpc.mountd -N 2 -N 3
rpc.nfsd -N 3 -V 4.2 8`;

const nfs: System = {
  packages: ["nfs-kernel-server", "nfs-common"],
  programs: ["/usr/sbin/rpc.nfsd", "/usr/sbin/rpc.mountd", "/usr/sbin/nfsdcld", "/usr/sbin/mount.nfs"],
  async up({ lab }) {
    await lab.run(1, NFS_SERVER, { timeoutMs: UP_TIMEOUT_MS });
    await lab.run(2, `modprobe nfsv4 && mount -t nfs4 -o vers=4.2 node1:/ ${MOUNTPOINT}`, {
      timeoutMs: UP_TIMEOUT_MS,
    });
  },
  async down({ lab }) {
    await lab.run(2, `umount ${MOUNTPOINT}`, { timeoutMs: UP_TIMEOUT_MS });
    await lab.run(1, `exportfs -ua && rpc.nfsd 0 && umount ${MOUNTPOINT}`, { timeoutMs: UP_TIMEOUT_MS });
  },
};

const gfs2: System = {
  packages: ["gfs2-utils", "corosync", "dlm-controld"],
  programs: ["/usr/sbin/mkfs.gfs2", "/usr/sbin/corosync", "/usr/sbin/dlm_controld", "/usr/sbin/dlm_tool"],
  async up({ lab }) {
    await startKernelDlm(lab, CLUSTER);
    for (const node of [1, 2]) await lab.run(node, "modprobe gfs2", { timeoutMs: UP_TIMEOUT_MS });
    await lab.run(1, `mkfs.gfs2 -O -q -K -p lock_dlm -t ${CLUSTER}:mxfs -j 2 -J 32 ${DEVICE}`, {
      timeoutMs: UP_TIMEOUT_MS,
    });
    for (const node of [1, 2]) {
      await lab.run(node, `mount -t gfs2 ${DEVICE} ${MOUNTPOINT}`, { timeoutMs: UP_TIMEOUT_MS });
    }
  },
  down: null,
};

// Its parser wants a tab before each setting, and an empty line between stanzas.
const OCFS2_NODE = `set -e
mkdir -p /etc/ocfs2 /dlm
{
  printf 'cluster:\\n\\tnode_count = 2\\n\\tname = ${CLUSTER}\\n'
  for n in 1 2; do
    printf '\\nnode:\\n\\tip_port = 7777\\n\\tip_address = 10.77.0.%s\\n\\tnumber = %s\\n' $n $n
    printf '\\tname = node%s\\n\\tcluster = ${CLUSTER}\\n' $n
  done
} >/etc/ocfs2/cluster.conf
modprobe -a ocfs2_dlmfs ocfs2_stack_o2cb ocfs2
mount -t ocfs2_dlmfs ocfs2_dlmfs /dlm
echo o2cb >/sys/fs/ocfs2/cluster_stack
o2cb register-cluster ${CLUSTER}`;

const ocfs2: System = {
  packages: ["ocfs2-tools"],
  programs: ["/usr/sbin/mkfs.ocfs2", "/usr/sbin/mount.ocfs2", "/usr/sbin/o2cb", "/usr/sbin/ocfs2_hb_ctl"],
  async up({ lab }) {
    await Promise.all([1, 2].map((node) => lab.run(node, OCFS2_NODE, { timeoutMs: UP_TIMEOUT_MS })));
    await lab.run(
      1,
      `wipefs -a -q ${DEVICE}
      mkfs.ocfs2 -q -F -N 2 --cluster-stack=o2cb --cluster-name=${CLUSTER} ${DEVICE} </dev/null`,
      { timeoutMs: UP_TIMEOUT_MS },
    );
    await Promise.all(
      [1, 2].map((node) =>
        lab.run(node, `mount -t ocfs2 ${DEVICE} ${MOUNTPOINT}`, { timeoutMs: UP_TIMEOUT_MS }),
      ),
    );
  },
  down: null,
};

const SYSTEM: Readonly<Record<SystemKey, System>> = { raw, mxfs, nfs, gfs2, ocfs2 };

/** The nodes between visits: which file system they are fit for. */
export class Stage {
  readonly volume: Volume;
  readonly #say: (line: string) => void;
  #clean = false;

  /** The lab is up, and nothing has been done on it. */
  constructor(volume: Volume, say: (line: string) => void) {
    this.volume = volume;
    this.#say = say;
  }

  /** Brings a file system up. @throws PackageError, or what said why it does not come up; then the nodes are unfit. */
  async up(key: SystemKey): Promise<void> {
    const system = SYSTEM[key];
    const archive = providePrograms(system.packages, system.programs);
    if (!this.#clean) {
      await this.#prepare();
    }
    this.#clean = false;
    if (archive !== null) {
      const script = `tar -xf /mxfs/${archive} --no-overwrite-dir -C /`;
      await Promise.all(this.volume.nodes.map((node) => this.volume.lab.run(node, script)));
    }
    await system.up(this.volume);
  }

  /** Takes it down again, or switches the nodes off and on. */
  async down(key: SystemKey): Promise<void> {
    const { down } = SYSTEM[key];
    if (down !== null) {
      try {
        await down(this.volume);
        this.#clean = true;
        return;
      } catch (error) {
        this.#say(`${key} cannot be taken down: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    await this.reboot();
  }

  /** Whatever state they are in. */
  async reboot(): Promise<void> {
    const { lab, nodes } = this.volume;
    this.#say("both nodes are switched off and on");
    this.#clean = false;
    for (const node of nodes) {
      lab.kill(node);
    }
    await Promise.all(nodes.map((node) => lab.start(node)));
    await this.#prepare();
    await this.volume.clearKeys(1);
    this.#clean = true;
  }

  async #prepare(): Promise<void> {
    await this.volume.prepareAll();
    await Promise.all(
      this.volume.nodes.map((node) =>
        this.volume.lab.run(node, `install -m 755 /mxfs/.lab/bin/mxfs-perf ${LOAD}`),
      ),
    );
  }
}
