#!/bin/sh
# Writers of every kind on the file system at $1; each works in a folder of its own. What fails is said, and fails the case.
point=$1
probe=/standin/standin-capture-probe
failed=0

try() {
    "$@" || { echo "  writers: '$*' failed"; failed=1; }
}

# A file system in a file, as a virtual machine has it: through the page cache, and around it.
loops() {
    for direct in off on; do
        image=$1/image-$direct
        try truncate -s 48M $image
        device=$(losetup --find --show --direct-io=$direct $image) || { echo "  writers: no loop device"; failed=1; return; }
        try mkfs.ext4 -q $device
        mkdir -p /tmp/inside
        try mount $device /tmp/inside
        try $probe write-simple /tmp/inside/files
        rm -r /tmp/inside/files/large
        # Given back to the file below, as holes.
        try fstrim /tmp/inside
        try umount /tmp/inside
        try losetup -d $device
    done
}

# A client on the same machine; the server's threads are the writers.
nfs() {
    mkdir -p /tmp/client
    try mount -t nfs4 -o vers=4.2,soft,timeo=100 127.0.0.1:$point /tmp/client
    here=/tmp/client/through-nfs
    try mkdir $here
    try $probe write-simple $here/files
    try cp $here/files/large $here/copy
    try fallocate -p -o 8192 -l 40000 $here/copy
    try fallocate -o 9000000 -l 40000 $here/copy
    try truncate -s 7654321 $here/copy
    try chmod 4711 $here/copy
    try chown 12:34 $here/copy
    try ln $here/copy $here/linked
    try mv $here/copy $here/moved
    try ln -s nowhere $here/symlink
    try mkfifo $here/fifo
    try mkdir $here/folder
    try mv $here/moved $here/folder/moved
    try rm -r $here/files
    try umount /tmp/client
}

# What a container engine does: image layers below, the container's own above, all on the same file system.
containers() {
    here=$1
    try mkdir -p $here/lower/etc $here/lower/gone $here/upper $here/work /tmp/merged
    for name in one two three four; do try sh -c "seq 1 30000 > $here/lower/etc/$name"; done
    try sh -c "echo old > $here/lower/gone/file"
    try mount -t overlay -o lowerdir=$here/lower,upperdir=$here/upper,workdir=$here/work overlay /tmp/merged
    try sh -c 'echo appended >> /tmp/merged/etc/one'
    try chmod 600 /tmp/merged/etc/two
    try sh -c 'echo new > /tmp/merged/etc/new'
    try mv /tmp/merged/etc/three /tmp/merged/etc/renamed
    try rm /tmp/merged/etc/four
    try rm -r /tmp/merged/gone
    try mkdir /tmp/merged/gone
    try setfattr -n user.layer -v upper /tmp/merged/etc/new
    try setfacl -m u:5:r /tmp/merged/etc/new
    try $probe write /tmp/merged/files
    try umount /tmp/merged
}

# What no record tells: its nodes must have been declared lost.
unseen() {
    here=$1
    try $probe write-unseen $here $2
    case $(stat -f -c %T $point) in
    xfs) swapped $here ;;
    btrfs) subvolumes $here ;;
    esac
}

# A snapshot comes with all that is in it.
subvolumes() {
    for name in own gone; do
        try btrfs subvolume create $1/$name > /dev/null
        try sh -c "echo inside > $1/$name/file"
    done
    try btrfs subvolume snapshot $1/own $1/snapshot > /dev/null
    try sh -c "echo more >> $1/snapshot/file; echo new > $1/snapshot/new"
    try btrfs subvolume delete $1/gone > /dev/null
}

# Extents of two files that both have names.
swapped() {
    here=$1
    try sh -c "yes one | head -c 65536 > $here/swapped; yes two | head -c 65536 > $here/with; sync"
    try xfs_io -c "swapext $here/with" $here/swapped
    try sh -c "head -c 3 $here/swapped | grep -q two"
}

if [ "$2" = unseen ]; then
    unseen $point/unseen $3
    exit $failed
fi
if [ "$2" = containers ]; then
    mkdir $point/containers
    containers $point/containers
    exit $failed
fi
for kind in plain loop; do mkdir $point/$kind; done
try $probe write $point/plain
loops $point/loop
nfs
exit $failed
