#!/bin/sh
# The first and only process of the small guest: every case on every file system, told on the console, then off.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t debugfs debug /sys/kernel/debug
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
for module in virtio_pci virtio_blk loop ext4 xfs btrfs overlay nfsd nfsv4; do modprobe -q $module; done
ln -sf /proc/self/mounts /etc/mtab
ip link set lo up
echo "standin: kernel $(uname -r)"
echo "standin: preemption $(cat /sys/kernel/debug/sched/preempt)"

# Says what it does between two marks, and how it ended.
case_of() {
    echo "standin: begin $1"
    timeout -k 10 600 sh -c "$2" 2>&1
    echo "standin: end $1 $?"
}

probe=/standin/standin-capture-probe
case_of all/hooks "$probe offers"

# One NFS server for all of them, of version 4 only: that needs no port mapper. Nobody has locks to reclaim.
mkdir -p /run/rpc_pipefs /var/lib/nfs/v4recovery
mount -t rpc_pipefs rpc /run/rpc_pipefs
mount -t nfsd nfsd /proc/fs/nfsd
echo 10 > /proc/fs/nfsd/nfsv4leasetime
echo 10 > /proc/fs/nfsd/nfsv4gracetime
rpc.nfsd -N 3 2
rpc.mountd -N 3
echo Y > /proc/fs/nfsd/v4_end_grace

number=0
for disk in ext4:vda xfs:vdb btrfs:vdc; do
    kind=${disk%:*} device=/dev/${disk#*:} point=/mnt/${disk%:*} number=$((number + 1))
    case " $(sed -n 's/.*standin.only=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ') " in "  " | *" $kind "*) ;; *) continue ;; esac
    mkdir -p $point
    # The tools are older than exchanges of ranges, which 6.12 has.
    options= exchange=
    case $kind in ext4) options="-O project,verity" ;; esac
    case $kind:$(uname -r) in xfs:6.1.*) ;; xfs:*) exchange=exchange ;; esac
    mkfs.$kind -q $options $device >/dev/null
    [ -z "$exchange" ] || $probe allow-exchange $device
    mount $device $point || { echo "standin: cannot make $kind"; continue; }
    exportfs -o rw,async,no_root_squash,no_subtree_check,insecure,fsid=$number 127.0.0.1:$point
    case_of $kind/writers "$probe capture $point sh /standin/writers.sh $point"
    case_of $kind/containers "DECLARED=1 $probe capture $point sh /standin/writers.sh $point containers"
    exportfs -u 127.0.0.1:$point
    exportfs -f
    case_of $kind/unseen "DECLARED=1 $probe capture $point sh /standin/writers.sh $point unseen $exchange"
    sh /standin/housekeeping.sh prepare $kind $point
    case_of $kind/housekeeping "$probe housekeep $point sh /standin/housekeeping.sh do $kind $point"
done
echo "standin: done"
sync
echo o > /proc/sysrq-trigger
sleep 60
