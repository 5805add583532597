/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Calls that change a node, or two, in a way that no record tells: content that is exchanged between files or written as it will lie on the disk,
 * attributes that are set by file handle, and verity.
 *
 * They are rare. Their nodes count as lost when the call ends; from its beginning everything about them waits, so that nobody reads them for good
 * before the effect. What keeps a file system in order by the same calls is told apart, because it changes no content.
 */
#pragma once
#include "calls.h"

INLINE int enter_opaque(struct inode *inode, struct inode *other)
{
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	enter(inode, other, device, is);
	struct record *r = begin(RECORD_OPAQUE_ENTER, inode, device, is);
	if (!r) {
		mark_lost_inode(other, device, is);
		return 0;
	}
	if (other)
		fill_node(&r->parent, other, is);
	bpf_ringbuf_submit(r, 0);
	return 0;
}

/* A file that nobody can ever find by a name again. */
INLINE bool is_nameless(struct inode *inode)
{
	return !READ(inode, i_nlink);
}

/* xfs_fsr gives a file the blocks of a nameless one into which it has copied it. */
INLINE bool is_xfs_fsr(void)
{
	u64 name[2] = {};
	bpf_get_current_comm(name, sizeof(name));
	return name[0] == 0x7273665f736678ULL; /* "xfs_fsr" */
}

INLINE int exchange(struct inode *one, struct inode *two)
{
	if (is_nameless(one) || is_nameless(two)) {
		if (is_xfs_fsr())
			return 0;
		if (is_nameless(two))
			return enter_opaque(one, 0);
		return enter_opaque(two, 0);
	}
	return enter_opaque(one, two);
}

/* int xfs_swap_extents(ip, tip, swapext) */
SEC("kprobe") int call_xfs_swap_extents(struct pt_regs *regs)
{
	return exchange((struct inode *)(ARG1(regs) + xfs_inode_vfs_offset), (struct inode *)(ARG2(regs) + xfs_inode_vfs_offset));
}
SEC("kretprobe") int return_xfs_swap_extents(struct pt_regs *regs) { return leave_returned((s32)regs->ax); }

/* int xfs_exchange_range(exchrange), since 6.10 */
SEC("kprobe") int call_xfs_exchange_range(struct pt_regs *regs)
{
	u64 one = 0, two = 0;
	bpf_probe_read_kernel(&one, 8, (void *)(ARG1(regs) + xfs_exchange_file1_offset));
	bpf_probe_read_kernel(&two, 8, (void *)(ARG1(regs) + xfs_exchange_file2_offset));
	return exchange(READ((struct file *)one, f_inode), READ((struct file *)two, f_inode));
}
SEC("kretprobe") int return_xfs_exchange_range(struct pt_regs *regs) { return leave_returned((s32)regs->ax); }

/* int xfs_ioc_attrmulti_one(file, inode, opcode, name, value, len, flags): by handle, past everybody who would tell of it. */
SEC("kprobe") int call_xfs_ioc_attrmulti_one(struct pt_regs *regs)
{
	/* 1 gets, 2 sets, 3 removes */
	return (u32)ARG3(regs) == 1 ? 0 : enter_opaque((struct inode *)ARG2(regs), 0);
}
SEC("kretprobe") int return_xfs_ioc_attrmulti_one(struct pt_regs *regs) { return leave_returned((s32)regs->ax); }

/* int ext4_move_extents(orig, donor, …): the first keeps its content, in the blocks of the other, which gets what was in its own. */
SEC("kprobe") int call_ext4_move_extents(struct pt_regs *regs)
{
	struct inode *donor = READ((struct file *)ARG2(regs), f_inode);
	return is_nameless(donor) ? 0 : enter_opaque(donor, 0);
}
SEC("kretprobe") int return_ext4_move_extents(struct pt_regs *regs) { return leave_returned((s32)regs->ax); }

/* ssize_t btrfs_do_encoded_write(iocb, from, encoded) */
SEC("kprobe") int call_btrfs_do_encoded_write(struct pt_regs *regs)
{
	struct file *file = READ((struct kiocb *)ARG1(regs), ki_filp);
	return enter_opaque(READ(file, f_inode), 0);
}
SEC("kretprobe") int return_btrfs_do_encoded_write(struct pt_regs *regs) { return leave_returned(regs->ax); }

/* int fsverity_ioctl_enable(file, argument): its hashes are written behind the end of the file, as if they were content. */
SEC("kprobe") int call_fsverity_ioctl_enable(struct pt_regs *regs) { return enter_opaque(READ((struct file *)ARG1(regs), f_inode), 0); }
SEC("kretprobe") int return_fsverity_ioctl_enable(struct pt_regs *regs) { return leave_returned((s32)regs->ax); }
