/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * Names and attributes: one kprobe on `fsnotify` (after success, under the parent's lock), one on `__fsnotify_parent` (attributes of files
 * whose parent nobody watches), and stashes at the entry of the calls for what those two are not told.
 */
#pragma once
#include "emit.h"

enum {
	FS_MODIFY = 0x2,
	FS_ATTRIB = 0x4,
	FS_CLOSE_WRITE = 0x8,
	FS_MOVED_TO = 0x80,
	FS_CREATE = 0x100,
	FS_DELETE = 0x200,
	FS_DELETE_SELF = 0x400,
	FS_RENAME = 0x10000000,
	FS_ISDIR = 0x40000000,
};

struct named {
	struct record record;
	u8 name[NAME_BYTES];
};

INLINE int emit_named(u32 kind, u32 mask, struct inode *directory, struct inode *inode, const u8 *name, u32 device, u32 is)
{
	struct named *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		mark_lost_inode(directory, device, is);
		mark_lost_inode(inode, device, is);
		return 0;
	}
	fill_head(&r->record, kind, device, NAME_BYTES);
	r->record.flags = mask & FS_ISDIR ? FLAG_DIRECTORY : 0;
	fill_node(&r->record.parent, directory, is);
	fill_attributes(&r->record, inode, is);
	if (kind == RECORD_CREATE)
		r->record.extra = belongings(inode, is);
	r->name[0] = 0;
	bpf_probe_read_kernel_str(r->name, NAME_BYTES, name);
	bpf_ringbuf_submit(r, 0);
	return 0;
}

INLINE int emit_plain(u32 kind, struct inode *inode, u32 device, u32 is)
{
	struct record *r = begin(kind, inode, device, is);
	if (r)
		bpf_ringbuf_submit(r, 0);
	return 0;
}

INLINE int emit_change(u32 mask, struct inode *inode)
{
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	if (mask & FS_MODIFY)
		emit_plain(RECORD_MODIFY, inode, device, is);
	if (mask & FS_ATTRIB)
		emit_plain(RECORD_ATTRIBUTES, inode, device, is);
	return 0;
}

/* int fsnotify(mask, data, data_type, dir, file_name, inode, cookie) */
SEC("kprobe") int name_fsnotify(struct pt_regs *regs)
{
	u32 mask = ARG1(regs), type = ARG3(regs), device;
	if (!(mask & (FS_MODIFY | FS_ATTRIB | FS_MOVED_TO | FS_CREATE | FS_DELETE | FS_DELETE_SELF | FS_RENAME)))
		return 0;
	struct inode *directory = (void *)ARG4(regs);
	struct qstr *q = (void *)ARG5(regs);
	struct inode *inode = 0;
	if (type == event_inode)
		inode = (void *)ARG2(regs);
	else if (type == event_dentry)
		inode = READ((struct dentry *)ARG2(regs), d_inode);
	if (!inode)
		return 0;
	if (mask & (FS_CREATE | FS_DELETE | FS_RENAME)) {
		u32 is = wanted(directory, &device);
		u32 kind = mask & FS_DELETE ? RECORD_DELETE : mask & FS_RENAME ? RECORD_RENAME : type == event_inode ? RECORD_LINK : RECORD_CREATE;
		return is ? emit_named(kind, mask, directory, inode, READ(q, name), device, is) : 0;
	}
	if (mask & FS_MOVED_TO) {
		/* Right behind FS_RENAME: the only place that shows the new directory's time after the call. */
		u32 is = wanted(directory, &device);
		return is ? emit_plain(RECORD_MOVED_TO, directory, device, is) : 0;
	}
	if (mask & FS_DELETE_SELF) {
		u32 is = wanted(inode, &device);
		return is ? emit_plain(RECORD_GONE, inode, device, is) : 0;
	}
	/* With a directory this repeats what __fsnotify_parent said; inode data is a change of the link count only. */
	return directory || type != event_dentry ? 0 : emit_change(mask, inode);
}

/* int __fsnotify_parent(dentry, mask, data, data_type) */
SEC("kprobe") int name_fsnotify_parent(struct pt_regs *regs)
{
	u32 mask = ARG2(regs), type = ARG4(regs), device;
	if (mask & FS_CLOSE_WRITE) {
		/* The last word on a written file's time: a write may move it behind its data, or without any. */
		struct inode *inode = READ((struct dentry *)ARG1(regs), d_inode);
		u32 is = wanted(inode, &device);
		return is ? emit_plain(RECORD_CLOSE, inode, device, is) : 0;
	}
	/* Dentry data: from notify_change or an xattr call. Path data: the write calls, which data.h sees. */
	if (type != event_dentry || !(mask & (FS_MODIFY | FS_ATTRIB)))
		return 0;
	return emit_change(mask, READ((struct dentry *)ARG1(regs), d_inode));
}

struct rename_entered {
	struct record record;
	struct node new_parent;
	struct node victim;
	u8 name[NAME_BYTES];
	u8 new_name[NAME_BYTES];
};

/* int vfs_rename(renamedata) */
SEC("kprobe") int name_vfs_rename(struct pt_regs *regs)
{
	struct renamedata *d = (void *)ARG1(regs);
	struct inode *from = READ(d, old_dir), *to = READ(d, new_dir);
	u32 device, is = wanted(from, &device);
	if (!is)
		return 0;
	struct dentry *old = READ(d, old_dentry), *new = READ(d, new_dentry);
	struct inode *inode = READ(old, d_inode), *victim = READ(new, d_inode);
	struct rename_entered *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		mark_lost_inode(from, device, is);
		mark_lost_inode(to, device, is);
		mark_lost_inode(inode, device, is);
		mark_lost_inode(victim, device, is);
		return 0;
	}
	fill_head(&r->record, RECORD_RENAME_ENTER, device, sizeof(*r) - sizeof(r->record));
	r->record.extra = READ(d, flags);
	fill_attributes(&r->record, inode, is);
	fill_node(&r->record.parent, from, is);
	fill_node(&r->new_parent, to, is);
	__builtin_memset(&r->victim, 0, sizeof(r->victim));
	if (victim)
		fill_node(&r->victim, victim, is);
	r->name[0] = r->new_name[0] = 0;
	bpf_probe_read_kernel_str(r->name, NAME_BYTES, READ(old, d_name.name));
	bpf_probe_read_kernel_str(r->new_name, NAME_BYTES, READ(new, d_name.name));
	bpf_ringbuf_submit(r, 0);
	return 0;
}

struct text_entered {
	struct record record;
	u8 text[4096];
};

/* int vfs_symlink(idmap, dir, dentry, oldname) */
SEC("kprobe") int name_vfs_symlink(struct pt_regs *regs)
{
	struct inode *directory = (void *)ARG2(regs);
	u32 device, is = wanted(directory, &device);
	if (!is)
		return 0;
	struct text_entered *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		mark_lost_inode(directory, device, is);
		return 0;
	}
	fill_head(&r->record, RECORD_SYMLINK_ENTER, device, 4096);
	fill_node(&r->record.parent, directory, is);
	r->text[0] = 0;
	bpf_probe_read_kernel_str(r->text, 4096, (void *)ARG4(regs));
	bpf_ringbuf_submit(r, 0);
	return 0;
}

/* PREFIX bytes are written by the caller before SIZE bytes from ADDRESS. */
#define EMIT_XATTR(CLASS, PREFIX, SIZE, ADDRESS, FILL)                                                    \
	do {                                                                                              \
		u64 bytes = (SIZE);                                                                       \
		struct named *r = bpf_ringbuf_reserve(&ring, sizeof(*r) + (PREFIX) + (CLASS), 0);         \
		if (!r) {                                                                                 \
			mark_lost_inode(inode, device, is);                                               \
			return 0;                                                                         \
		}                                                                                         \
		fill_head(&r->record, RECORD_XATTR_ENTER, device, NAME_BYTES + (PREFIX) + (CLASS));       \
		fill_attributes(&r->record, inode, is);                                                   \
		r->record.length = (PREFIX) + bytes;                                                      \
		FILL;                                                                                     \
		asm volatile("" : "+r"(bytes));                                                           \
		/* An empty value has no address, and reading nothing from there fails. */                \
		if (bytes <= (CLASS) && bpf_probe_read_kernel((char *)r + sizeof(*r) + (PREFIX), bytes, (void *)(ADDRESS)) && bytes) \
			r->record.flags = FLAG_UNREAD;                                                    \
		bpf_ringbuf_submit(r, 0);                                                                 \
		return 0;                                                                                 \
	} while (0)
#define NAME_OF_VALUE                                                                                     \
	({                                                                                                \
		r->name[0] = 0;                                                                           \
		bpf_probe_read_kernel_str(r->name, NAME_BYTES, (void *)ARG3(regs));                       \
	})

/* int __vfs_setxattr_noperm(idmap, dentry, name, value, size, flags) */
SEC("kprobe") int name_vfs_setxattr(struct pt_regs *regs)
{
	struct inode *inode = READ((struct dentry *)ARG2(regs), d_inode);
	u32 device, is = wanted(inode, &device);
	u64 size = ARG5(regs);
	if (!is)
		return 0;
	if (size <= 256)
		EMIT_XATTR(256, 0, size, ARG4(regs), NAME_OF_VALUE);
	else if (size <= 4096)
		EMIT_XATTR(4096, 0, size, ARG4(regs), NAME_OF_VALUE);
	else if (size <= 65536)
		EMIT_XATTR(65536, 0, size, ARG4(regs), NAME_OF_VALUE);
	return 0;
}

/* int __vfs_removexattr_locked(idmap, dentry, name, delegated_inode) */
SEC("kprobe") int name_vfs_removexattr(struct pt_regs *regs)
{
	struct inode *inode = READ((struct dentry *)ARG2(regs), d_inode);
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	struct named *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		mark_lost_inode(inode, device, is);
		return 0;
	}
	fill_head(&r->record, RECORD_XATTR_REMOVE_ENTER, device, NAME_BYTES);
	fill_attributes(&r->record, inode, is);
	r->name[0] = 0;
	bpf_probe_read_kernel_str(r->name, NAME_BYTES, (void *)ARG3(regs));
	bpf_ringbuf_submit(r, 0);
	return 0;
}

#define ACL_TYPE_ACCESS 0x8000
#define ACL_VERSION 2 /* of the extended attribute: include/uapi/linux/posix_acl_xattr.h */

/* "system.posix_acl_access" or "system.posix_acl_default" as words: a text would be in a section of its own. */
INLINE void name_of_acl(struct named *r, u32 type)
{
	u64 *words = (u64 *)r->name;
	words[0] = 0x702e6d6574737973ULL;
	words[1] = 0x6c63615f7869736fULL;
	words[2] = type == ACL_TYPE_ACCESS ? 0x7373656363615fULL : 0x746c75616665645fULL;
	words[3] = 0;
}

#define HEAD_OF_ACL                                                                                       \
	({                                                                                                \
		name_of_acl(r, type);                                                                     \
		*(u32 *)((char *)r + sizeof(*r)) = ACL_VERSION;                                           \
	})

/*
 * The entries in the kernel are those of the attribute's value, except for the ids of entries that have none (user space mends those). Told like an
 * attribute that is set; the server of NFS sets no attribute and announces nothing, so the exit does.
 */
INLINE int enter_acl(struct inode *inode, u32 type, struct posix_acl *acl)
{
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	u64 size = acl ? (u64)READ(acl, a_count) * 8 : 0;
	char *entries = (char *)acl + __builtin_preserve_field_info(((struct posix_acl *)0)->a_entries, 0);
	if (!size) {
		struct named *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
		if (!r) {
			mark_lost_inode(inode, device, is);
			return 0;
		}
		fill_head(&r->record, RECORD_XATTR_REMOVE_ENTER, device, NAME_BYTES);
		fill_attributes(&r->record, inode, is);
		name_of_acl(r, type);
		bpf_ringbuf_submit(r, 0);
		return 0;
	}
	if (size <= 256)
		EMIT_XATTR(256, 4, size, entries, HEAD_OF_ACL);
	else if (size <= 4096)
		EMIT_XATTR(4096, 4, size, entries, HEAD_OF_ACL);
	else if (size <= 65536)
		EMIT_XATTR(65536, 4, size, entries, HEAD_OF_ACL);
	return 0;
}
INLINE int leave_acl(struct inode *inode, s32 result)
{
	u32 device, is = wanted(inode, &device);
	return is && !result ? emit_plain(RECORD_ATTRIBUTES, inode, device, is) : 0;
}
/* int set_posix_acl(user_ns, inode, type, acl), and since 6.2 (idmap, dentry, type, acl) */
SEC("kprobe") int name_set_posix_acl_inode(struct pt_regs *regs)
{
	return enter_acl((struct inode *)ARG2(regs), ARG3(regs), (struct posix_acl *)ARG4(regs));
}
SEC("kprobe") int name_set_posix_acl_dentry(struct pt_regs *regs)
{
	return enter_acl(READ((struct dentry *)ARG2(regs), d_inode), ARG3(regs), (struct posix_acl *)ARG4(regs));
}
SEC("fexit/set_posix_acl") int exit_set_posix_acl_inode(u64 *args) { return leave_acl((struct inode *)args[1], (s32)args[4]); }
SEC("fexit/set_posix_acl") int exit_set_posix_acl_dentry(u64 *args)
{
	return leave_acl(READ((struct dentry *)args[1], d_inode), (s32)args[4]);
}

/* int notify_change(idmap, dentry, attr, delegated_inode): only for access times that somebody sets. */
SEC("kprobe") int name_notify_change(struct pt_regs *regs)
{
	struct iattr *attr = (void *)ARG3(regs);
	if (!(READ(attr, ia_valid) & (1 << 7) /* ATTR_ATIME_SET */))
		return 0;
	struct inode *inode = READ((struct dentry *)ARG2(regs), d_inode);
	u32 device, is = wanted(inode, &device);
	struct record *r = is ? begin(RECORD_ATIME_ENTER, inode, device, is) : 0;
	if (!r)
		return 0;
	r->extra = READ(attr, ia_atime.tv_sec) * 1000000000LL + READ(attr, ia_atime.tv_nsec);
	bpf_ringbuf_submit(r, 0);
	return 0;
}

/* void d_tmpfile(file, inode) */
SEC("kprobe") int name_d_tmpfile(struct pt_regs *regs)
{
	struct inode *inode = (void *)ARG2(regs);
	u32 device, is = wanted(inode, &device);
	struct record *r = is ? begin(RECORD_UNNAMED, inode, device, is) : 0;
	if (!r)
		return 0;
	r->extra = belongings(inode, is);
	bpf_ringbuf_submit(r, 0);
	return 0;
}
