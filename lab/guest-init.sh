#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# A guest's first program, run from the initramfs by static busybox: loads the modules, builds the root
# (the host's own root, read-only over 9p, under a tmpfs overlay), makes the node's identity, and hands over
# to the lab's agent as process 1. lab/lab.ts fills in the kernel command line:
#   mxfs.node=N  mxfs.project=DIR  mxfs.nodejs=FILE  mxfs.ports=COUNT  mxfs.kernel=DIR  mxfs.role=node|target
#   [mxfs.module=FILE]  (in the project, shown as kernel/mxfs.ko: built for another kernel than Debian's)
# Weakness: what is installed on the host during a run may stay unseen (cache=loose); the project's own tree
# does not have that (cache=none).
export PATH=/bin
fail() { echo "mxfs-lab: guest set-up failed: $*"; echo "mxfs-lab: GUEST-FAILED $*" >/dev/kmsg; while :; do sleep 3600; done; }

/bin/busybox --install -s /bin
mount -t proc proc /proc || fail "mount /proc"
mount -t sysfs sys /sys || fail "mount /sys"
mount -t devtmpfs dev /dev || fail "mount /dev"
for file in $(cat /modules/order); do
  insmod "/modules/$file" || fail "insmod $file"
done

for word in $(cat /proc/cmdline); do
  case $word in
    mxfs.node=*) node=${word#*=} ;;
    mxfs.project=*) project=${word#*=} ;;
    mxfs.nodejs=*) nodejs=${word#*=} ;;
    mxfs.ports=*) ports=${word#*=} ;;
    mxfs.kernel=*) kernel=${word#*=} ;;
    mxfs.role=*) role=${word#*=} ;;
    mxfs.module=*) module=${word#*=} ;;
  esac
done
release=$(uname -r)

mkdir -p /lower /tmpfs /root
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,ro,msize=512000 root /lower || fail "mount the host's root"
mount -t tmpfs -o size=75% tmpfs /tmpfs || fail "mount tmpfs"
mkdir -p /tmpfs/upper /tmpfs/work
mount -t overlay -o lowerdir=/lower,upperdir=/tmpfs/upper,workdir=/tmpfs/work overlay /root || fail "mount overlay"

# Before the project, which may be a clone somewhere in /tmp.
mount -t tmpfs tmpfs /root/tmp && chmod 1777 /root/tmp
mount -t tmpfs tmpfs /root/run
mount -t tmpfs tmpfs /root/var/log
mkdir -p /root/run/lock

# Modules of the guest's kernel, before the project is mounted over its own (slower) place.
mkdir -p "/root/lib/modules/$release"
mount --bind "/lower$kernel/lib/modules/$release" "/root/lib/modules/$release" || fail "bind the kernel's modules"

mkdir -p "/root$project"
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,ro,msize=512000 project "/root$project" || fail "mount the project"
# Except node_modules: hundreds of small files that do not change, and node opens them at every start.
if [ -d "/root$project/node_modules" ]; then
  mount --bind "/lower$project/node_modules" "/root$project/node_modules" || fail "bind node_modules"
fi
if [ -n "$module" ]; then
  mount --bind "/root$project/$module" "/root$project/kernel/mxfs.ko" || fail "bind $module"
fi
mkdir -p /root/mxfs /root/share /root/etc/mxfs /root/mnt
mount --rbind "/root$project" /root/mxfs || fail "bind /mxfs"
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize=512000 share /root/share || fail "mount /share"
mkdir -p /root/share/etc-mxfs
mount --bind /root/share/etc-mxfs /root/etc/mxfs || fail "bind /etc/mxfs"

mount --move /dev /root/dev
mount --move /proc /root/proc
mount --move /sys /root/sys
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
ln -sf /proc/self/fd /root/dev/fd
ln -sf /proc/self/fd/0 /root/dev/stdin
ln -sf /proc/self/fd/1 /root/dev/stdout
ln -sf /proc/self/fd/2 /root/dev/stderr
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t tracefs tracefs /root/sys/kernel/tracing
mount -t configfs configfs /root/sys/kernel/config

if [ "$role" = target ]; then name=target; else name=node$node; fi
hostname "$name"
echo "$name" >/root/etc/hostname
{
  echo "127.0.0.1 localhost"
  for n in 1 2 3 4 5 6 7 8; do echo "10.77.0.$n node$n"; done
  echo "10.77.0.100 target"
} >/root/etc/hosts

ip link set lo up
ip addr add "10.77.0.$node/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.254 dev eth0

# The kernel starts mxfsd with a bare environment: absolute paths, and a PATH for what node starts.
launcher=$project/native/build/mxfsd-launch
for tool in mxfsd mxfs_lock; do
  cat >"/root/usr/sbin/$tool" <<END
#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root MXFS_NODE=$nodejs
[ $tool = mxfsd ] && [ -x "$launcher" ] && exec "$launcher" "\$@"
exec "$nodejs" "$project/dist/daemon/$tool.js" "\$@"
END
  chmod 755 "/root/usr/sbin/$tool"
done

# An oops leaves the guest up, so that dmesg can be read; from here on everything also goes to the console.
echo 7 >/root/proc/sys/kernel/printk
mkdir -p /root/lab
cp /agent /root/lab/agent
exec switch_root /root /lab/agent "$ports"
