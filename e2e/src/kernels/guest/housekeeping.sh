#!/bin/sh
# What a server's timers do to a file system of kind $2 at $3: it moves content and changes none.
kind=$2 point=$3
case $1 in
prepare)
    # Files that lie in pieces: each gets a bit in turn.
    mkdir $point/pieces
    for part in 1 2 3 4 5 6 7 8; do
        for file in a b c d; do
            dd if=/dev/urandom of=$point/pieces/$file bs=64k count=1 oflag=append conv=notrunc,fsync status=none
        done
    done
    sync
    ;;
do)
    failed=0
    try() {
        "$@" > /tmp/said 2>&1 || { echo "  housekeeping: '$*' failed: $(tail -n 3 /tmp/said)"; failed=1; }
    }
    case $kind in
    ext4) try e4defrag $point/pieces ;;
    xfs) try xfs_fsr -v $point/pieces/a; try xfs_fsr -v $point/pieces/b ;;
    btrfs) try btrfs filesystem defragment -r -f $point/pieces; try btrfs balance start --full-balance $point ;;
    esac
    tail -n 2 /tmp/said
    try fstrim $point
    sync
    exit $failed
    ;;
esac
