/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Calls whose effect is not in the page cache: fallocate, clone, copy_file_range, inode flags and projects; what moves content between files is in
 * opaque.h.
 *
 * Three records make one operation: the entry (what is asked), `file_modified` on the same task (its place in the order, under the inode's
 * lock), and the exit (whether it happened). A missed exit makes user space declare the node lost after a while, and an exit of which the entry
 * was missed does so at once: a loss that is told at the entry alone is told before the effect.
 */
#pragma once
#include "emit.h"

/* What a call is about, for an exit that is told only the result: the caller has both open. */
struct call {
	u64 inode;
	u64 other;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct call);
} calls SEC(".maps");

INLINE void enter(struct inode *inode, struct inode *other, u32 device, u32 is)
{
	u64 task = bpf_get_current_pid_tgid();
	struct call call = { .inode = (u64)inode, .other = (u64)other };
	if (bpf_map_update_elem(&calls, &task, &call, 0)) {
		mark_lost_inode(inode, device, is);
		mark_lost_inode(other, device, is);
	}
}

/* long ext4_fallocate(file, mode, offset, len), and those of xfs and btrfs: a loop device calls them without vfs_fallocate. */
INLINE int fallocate(struct pt_regs *regs)
{
	struct inode *inode = READ((struct file *)ARG1(regs), f_inode);
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	enter(inode, 0, device, is);
	struct record *r = begin(RECORD_FALLOCATE_ENTER, inode, device, is);
	if (!r)
		return 0;
	r->extra = (u32)ARG2(regs);
	r->offset = ARG3(regs);
	r->length = ARG4(regs);
	bpf_ringbuf_submit(r, 0);
	return 0;
}

SEC("kprobe") int call_ext4_fallocate(struct pt_regs *regs) { return fallocate(regs); }
SEC("kprobe") int call_xfs_file_fallocate(struct pt_regs *regs) { return fallocate(regs); }
SEC("kprobe") int call_btrfs_fallocate(struct pt_regs *regs) { return fallocate(regs); }

INLINE int two_files(u32 kind, struct pt_regs *regs)
{
	struct inode *from = READ((struct file *)ARG1(regs), f_inode), *to = READ((struct file *)ARG3(regs), f_inode);
	u32 device, is = wanted(to, &device);
	if (!is)
		return 0;
	enter(to, 0, device, is);
	struct record *r = begin(kind, to, device, is);
	if (!r)
		return 0;
	if (device_of(from) == device)
		fill_node(&r->parent, from, is);
	r->extra = ARG2(regs);
	r->offset = ARG4(regs);
	r->length = ARG5(regs);
	bpf_ringbuf_submit(r, 0);
	return 0;
}
/* (file_in, pos_in, file_out, pos_out, len, flags) */
SEC("kprobe") int call_vfs_copy_file_range(struct pt_regs *regs) { return two_files(RECORD_COPY_ENTER, regs); }
SEC("kprobe") int call_clone_file_range(struct pt_regs *regs) { return two_files(RECORD_CLONE_ENTER, regs); }
SEC("kprobe") int call_do_clone_file_range(struct pt_regs *regs) { return two_files(RECORD_CLONE_ENTER, regs); }

/* int file_modified(file) */
SEC("kprobe") int call_file_modified(struct pt_regs *regs)
{
	u64 task = bpf_get_current_pid_tgid();
	if (!bpf_map_lookup_elem(&calls, &task))
		return 0;
	struct inode *inode = READ((struct file *)ARG1(regs), f_inode);
	u32 device, is = wanted(inode, &device);
	struct record *r = is ? begin(RECORD_ORDER, inode, device, is) : 0;
	if (r)
		bpf_ringbuf_submit(r, 0);
	return 0;
}

INLINE int leave(struct inode *inode, struct inode *other, s64 result)
{
	u64 task = bpf_get_current_pid_tgid();
	bpf_map_delete_elem(&calls, &task);
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	struct record *r = begin(RECORD_CALL_EXIT, inode, device, is);
	if (!r) {
		mark_lost_inode(other, device, is);
		return 0;
	}
	if (other)
		fill_node(&r->parent, other, is);
	r->extra = result;
	bpf_ringbuf_submit(r, 0);
	return 0;
}
/* Return probes, because a module's functions have no trampolines for us. There are only so many of them at once; one that is missed is a missed exit. */
INLINE int leave_returned(s64 result)
{
	u64 task = bpf_get_current_pid_tgid();
	struct call *call = bpf_map_lookup_elem(&calls, &task);
	return call ? leave((struct inode *)call->inode, (struct inode *)call->other, result) : 0;
}
SEC("kretprobe") int return_ext4_fallocate(struct pt_regs *regs) { return leave_returned(regs->ax); }
SEC("kretprobe") int return_xfs_file_fallocate(struct pt_regs *regs) { return leave_returned(regs->ax); }
SEC("kretprobe") int return_btrfs_fallocate(struct pt_regs *regs) { return leave_returned(regs->ax); }
/* fexit programs get the arguments as an array, and the result behind them. */
#define LEAVE_TWO_FILES(args) leave(READ((struct file *)(args)[2], f_inode), 0, (args)[6])
SEC("fexit/vfs_copy_file_range") int exit_vfs_copy_file_range(u64 *args) { return LEAVE_TWO_FILES(args); }
SEC("fexit/vfs_clone_file_range") int exit_clone_file_range(u64 *args) { return LEAVE_TWO_FILES(args); }
SEC("fexit/do_clone_file_range") int exit_do_clone_file_range(u64 *args) { return LEAVE_TWO_FILES(args); }
SEC("fexit/vfs_fileattr_set") int exit_vfs_fileattr_set(u64 *args)
{
	struct inode *inode = READ((struct dentry *)args[1], d_inode);
	u32 device, is = wanted(inode, &device);
	/* ext4 sets the flags and then the project: one that fails may have done the first. */
	if (!is || ((s32)args[3] && is != IS_EXT4))
		return 0;
	struct record *r = begin(RECORD_FLAGS, inode, device, is);
	if (!r)
		return 0;
	/* The call has filled in what was not asked for. */
	struct fileattr *attributes = (void *)args[2];
	r->extra = is == IS_EXT4 ? belongings(inode, is) : READ(attributes, flags) | (u64)READ(attributes, fsx_projid) << 32;
	bpf_ringbuf_submit(r, 0);
	return 0;
}
