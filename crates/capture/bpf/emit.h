/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Maps, the filter that every program begins with, node ids, and the one way into the ring.
 *
 * When the ring is full nothing waits: the node goes into `lost`, and when that is full too, a counter says "everything".
 */
#pragma once
#include "record.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 32 << 20); /* set by the loader */
} ring SEC(".maps");

struct lost_key {
	u64 inode;
	u64 root;
	u32 generation;
	u32 device;
};
struct lost_range {
	u64 start;
	u64 end;
	u64 count;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct lost_key);
	__type(value, struct lost_range);
} lost SEC(".maps");

/* Read by user space through memory, without system calls. */
enum counter {
	COUNT_LOST,
	COUNT_LOST_EVERYTHING,
	COUNT_UNREAD,
	COUNT_MARKS,
	COUNT_MARKS_FULL,
	/* Written by user space: counts the requests for writeback, see mark(). */
	EPOCH,
	COUNTERS,
};
struct counters {
	u64 values[8];
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct counters);
} counters SEC(".maps");

/* Set by the loader before the programs are loaded, so that the verifier sees constants. */
#define DEVICES_MAX 16
enum file_system {
	IS_EXT4 = 1,
	IS_BTRFS = 2,
	IS_XFS = 3,
};
struct device {
	u32 device;
	u32 is;
};
const volatile struct device devices[DEVICES_MAX] = {};
const volatile u32 excluded_tgid = 0;
const volatile u64 vmemmap_base_address = 0;
const volatile u64 page_offset_base_address = 0;
const volatile u32 ext4_inode_vfs_offset = 0;
const volatile u32 ext4_inode_flags_offset = 0;
const volatile u32 ext4_inode_project_offset = 0;
const volatile u32 xfs_inode_vfs_offset = 0;
const volatile u32 xfs_inode_flags_offset = 0;
const volatile u32 xfs_inode_project_offset = 0;
const volatile u32 xfs_exchange_file1_offset = 0;
const volatile u32 xfs_exchange_file2_offset = 0;
const volatile u32 btrfs_inode_vfs_offset = 0;
const volatile u32 btrfs_inode_flags_offset = 0;
const volatile u32 btrfs_inode_root_offset = 0;
const volatile u32 btrfs_root_objectid_offset = 0;
const volatile u32 event_inode = 2;
const volatile u32 event_dentry = 3;
const volatile u32 page_head_bit = 16;
const volatile u32 page_uptodate_bit = 2;

INLINE void count(u32 which, u64 by)
{
	u32 zero = 0;
	struct counters *c = bpf_map_lookup_elem(&counters, &zero);
	if (c && which < COUNTERS)
		__sync_fetch_and_add(&c->values[which], by);
}

/* 0 where it is not protected, else which file system it is. */
INLINE u32 protected_device(u32 device)
{
#pragma unroll
	for (int i = 0; i < DEVICES_MAX; i++) {
		u32 d = devices[i].device;
		if (!d)
			return 0;
		if (d == device)
			return devices[i].is;
	}
	return 0;
}

INLINE u32 device_of(struct inode *inode)
{
	struct super_block *sb = READ(inode, i_sb);
	return READ(sb, s_dev);
}

INLINE bool is_own(void)
{
	return (u32)(bpf_get_current_pid_tgid() >> 32) == excluded_tgid;
}

/* The filter: nonzero for an inode of a protected volume that is not touched by the agent itself. */
INLINE u32 wanted(struct inode *inode, u32 *device)
{
	if (!inode)
		return 0;
	*device = device_of(inode);
	u32 is = protected_device(*device);
	return is && !is_own() ? is : 0;
}

INLINE s64 mtime_of(struct inode *inode)
{
	struct inode___renamed *renamed = (void *)inode;
	struct inode___split *split = (void *)inode;
	if (FIELD_EXISTS(split, i_mtime_sec))
		return READ(split, i_mtime_sec) * 1000000000LL + READ(split, i_mtime_nsec);
	if (FIELD_EXISTS(renamed, __i_mtime))
		return READ(renamed, __i_mtime.tv_sec) * 1000000000LL + READ(renamed, __i_mtime.tv_nsec);
	return READ(inode, i_mtime.tv_sec) * 1000000000LL + READ(inode, i_mtime.tv_nsec);
}

INLINE void fill_node(struct node *node, struct inode *inode, u32 is)
{
	node->inode = READ(inode, i_ino);
	node->generation = READ(inode, i_generation);
	node->mode = READ(inode, i_mode);
	node->mtime = mtime_of(inode);
	node->root = 0;
	if (is == IS_BTRFS) {
		u64 root = 0, id = 0;
		bpf_probe_read_kernel(&root, 8, (char *)inode - btrfs_inode_vfs_offset + btrfs_inode_root_offset);
		bpf_probe_read_kernel(&id, 8, (char *)root + btrfs_root_objectid_offset);
		node->root = id;
	}
}

/* 6.12's verifier wants functions that loops call to be global; it then checks them once, alone. */
GLOBAL int mark_lost(struct node *node, u32 device, u64 start, u64 end)
{
	if (!node)
		return 0;
	struct lost_key key = { .inode = node->inode, .root = node->root, .generation = node->generation, .device = device };
	struct lost_range fresh = { .start = start, .end = end, .count = 1 }, *have;
	have = bpf_map_lookup_elem(&lost, &key);
	if (!have) {
		if (!bpf_map_update_elem(&lost, &key, &fresh, BPF_NOEXIST))
			goto counted;
		have = bpf_map_lookup_elem(&lost, &key);
		if (!have) {
			count(COUNT_LOST_EVERYTHING, 1);
			return 0;
		}
	}
	/* Racing wideners could undo each other; the compare-and-swap loops below give up into "everything" instead. */
#pragma unroll
	for (int i = 0; i < 4; i++) {
		u64 old = have->start;
		if (old <= start || __sync_val_compare_and_swap(&have->start, old, start) == old)
			break;
		if (i == 3)
			count(COUNT_LOST_EVERYTHING, 1);
	}
#pragma unroll
	for (int i = 0; i < 4; i++) {
		u64 old = have->end;
		if (old >= end || __sync_val_compare_and_swap(&have->end, old, end) == old)
			break;
		if (i == 3)
			count(COUNT_LOST_EVERYTHING, 1);
	}
	__sync_fetch_and_add(&have->count, 1);
counted:
	/* Last, so that whoever sees the counter move finds the entry. */
	count(COUNT_LOST, 1);
	return 0;
}

INLINE void mark_lost_inode(struct inode *inode, u32 device, u32 is)
{
	struct node node;
	if (!inode)
		return;
	fill_node(&node, inode, is);
	mark_lost(&node, device, 0, ~0ULL);
}

#define PROJECT_INHERIT 0x20000000

/* Flags as FS_IOC_GETFLAGS tells them, and above them the project. Of xfs and btrfs only those flags that a new inode can have from its directory. */
INLINE u64 belongings(struct inode *inode, u32 is)
{
	char *own = (char *)inode;
	u64 flags = 0;
	u32 project = 0;
	if (is == IS_EXT4) {
		own -= ext4_inode_vfs_offset;
		bpf_probe_read_kernel(&flags, 8, own + ext4_inode_flags_offset);
		bpf_probe_read_kernel(&project, 4, own + ext4_inode_project_offset);
		flags &= 0x725bdfff; /* EXT4_FL_USER_VISIBLE */
	} else if (is == IS_XFS) {
		u16 raw = 0; /* XFS_DIFLAG_* */
		own -= xfs_inode_vfs_offset;
		bpf_probe_read_kernel(&raw, 2, own + xfs_inode_flags_offset);
		bpf_probe_read_kernel(&project, 4, own + xfs_inode_project_offset);
		flags = (raw & 0x20 ? 0x8 : 0) | (raw & 0x40 ? 0x80 : 0) | (raw & 0x80 ? 0x40 : 0) | (raw & 0x200 ? PROJECT_INHERIT : 0);
	} else {
		u32 raw = 0; /* BTRFS_INODE_NODATACOW; compression goes by an attribute */
		bpf_probe_read_kernel(&raw, 4, own - btrfs_inode_vfs_offset + btrfs_inode_flags_offset);
		flags = raw & 2 ? 0x800000 : 0;
	}
	return flags | (u64)project << 32;
}

INLINE void fill_head(struct record *r, u32 kind, u32 device, u32 payload)
{
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = kind;
	r->payload = payload;
	r->device = device;
	r->tid = (u32)bpf_get_current_pid_tgid();
	r->time = bpf_ktime_get_ns();
}

INLINE void fill_attributes(struct record *r, struct inode *inode, u32 is)
{
	fill_node(&r->node, inode, is);
	r->size = READ(inode, i_size);
	r->nlink = READ(inode, i_nlink);
	r->rdev = READ(inode, i_rdev);
	r->uid = READ(inode, i_uid.val);
	r->gid = READ(inode, i_gid.val);
}

/* A record without payload about one inode; null when the ring is full, and then the node is marked. */
INLINE struct record *begin(u32 kind, struct inode *inode, u32 device, u32 is)
{
	struct record *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		mark_lost_inode(inode, device, is);
		return 0;
	}
	fill_head(r, kind, device, 0);
	fill_attributes(r, inode, is);
	return r;
}
