/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Calls whose effect is not in the page cache: fallocate, clone, copy_file_range, inode flags.
 *
 * Three records make one operation: the entry (what is asked), `file_modified` on the same task (its place in the order, under the inode's
 * lock), and the exit (whether it happened). A missed exit makes user space declare the node lost after a while, and an exit of which the entry
 * was missed does so at once: a loss that is told at the entry alone is told before the effect.
 */
#pragma once
#include "emit.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, u64); /* the file, for an exit that is told only the result */
} calls SEC(".maps");

INLINE void enter(u64 file, struct inode *inode, u32 device, u32 is)
{
	u64 task = bpf_get_current_pid_tgid();
	if (bpf_map_update_elem(&calls, &task, &file, 0))
		mark_lost_inode(inode, device, is);
}

/* long ext4_fallocate(file, mode, offset, len), and those of xfs and btrfs: a loop device calls them without vfs_fallocate. */
INLINE int fallocate(struct pt_regs *regs)
{
	struct inode *inode = READ((struct file *)ARG1(regs), f_inode);
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	enter(ARG1(regs), inode, device, is);
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
	enter(ARG3(regs), to, device, is);
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

INLINE int leave(u64 file, s64 result)
{
	u64 task = bpf_get_current_pid_tgid();
	bpf_map_delete_elem(&calls, &task);
	struct inode *inode = READ((struct file *)file, f_inode);
	u32 device, is = wanted(inode, &device);
	struct record *r = is ? begin(RECORD_CALL_EXIT, inode, device, is) : 0;
	if (!r)
		return 0;
	r->extra = result;
	bpf_ringbuf_submit(r, 0);
	return 0;
}
/* Return probes, because a module's functions have no trampolines for us. There are only so many of them at once; one that is missed is a missed exit. */
INLINE int leave_fallocate(struct pt_regs *regs)
{
	u64 task = bpf_get_current_pid_tgid(), *file = bpf_map_lookup_elem(&calls, &task);
	return file ? leave(*file, regs->ax) : 0;
}
SEC("kretprobe") int return_ext4_fallocate(struct pt_regs *regs) { return leave_fallocate(regs); }
SEC("kretprobe") int return_xfs_file_fallocate(struct pt_regs *regs) { return leave_fallocate(regs); }
SEC("kretprobe") int return_btrfs_fallocate(struct pt_regs *regs) { return leave_fallocate(regs); }
/* fexit programs get the arguments as an array, and the result behind them. */
SEC("fexit/vfs_copy_file_range") int exit_vfs_copy_file_range(u64 *args) { return leave(args[2], args[6]); }
SEC("fexit/vfs_clone_file_range") int exit_clone_file_range(u64 *args) { return leave(args[2], args[6]); }
SEC("fexit/do_clone_file_range") int exit_do_clone_file_range(u64 *args) { return leave(args[2], args[6]); }
SEC("fexit/vfs_fileattr_set") int exit_vfs_fileattr_set(u64 *args)
{
	struct inode *inode = READ((struct dentry *)args[1], d_inode);
	u32 device, is = wanted(inode, &device);
	if (!is || (s32)args[3])
		return 0;
	struct record *r = begin(RECORD_FLAGS, inode, device, is);
	if (!r)
		return 0;
	r->extra = READ((struct fileattr *)args[2], flags);
	bpf_ringbuf_submit(r, 0);
	return 0;
}
