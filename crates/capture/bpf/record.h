/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * What the programs write into the ring; docs/formats/capture-ring.md describes it and src/record.rs reads it.
 */
#pragma once
#include "kernel.h"

enum record_kind {
	RECORD_DATA = 1,
	RECORD_DIRECT = 2,
	RECORD_DIRECT_END = 3,
	RECORD_MAPPED = 4,
	RECORD_MARK = 5,
	RECORD_CREATE = 6,
	RECORD_LINK = 7,
	RECORD_DELETE = 8,
	RECORD_RENAME = 9,
	RECORD_RENAME_ENTER = 10,
	RECORD_SYMLINK_ENTER = 11,
	RECORD_ATTRIBUTES = 12,
	RECORD_MODIFY = 13,
	RECORD_GONE = 14,
	RECORD_XATTR_ENTER = 15,
	RECORD_XATTR_REMOVE_ENTER = 16,
	RECORD_UNNAMED = 17,
	RECORD_FALLOCATE_ENTER = 18,
	RECORD_ORDER = 19,
	RECORD_CALL_EXIT = 20,
	RECORD_COPY_ENTER = 21,
	RECORD_CLONE_ENTER = 22,
	RECORD_FLAGS = 23,
	RECORD_ATIME_ENTER = 24,
	RECORD_DIRTY = 25,
	RECORD_MOVED_TO = 26,
	RECORD_CLOSE = 27,
	RECORD_OPAQUE_ENTER = 28,
	RECORD_DIRECT_DONE = 29,
};

enum record_flag {
	/* The content could not be read: the range is lost. */
	FLAG_UNREAD = 1,
	FLAG_DIRECTORY = 2,
};

struct node {
	u64 inode;
	u64 root;
	u32 generation;
	u32 mode;
	s64 mtime;
};

struct record {
	u16 kind;
	u16 flags;
	u32 payload;
	u32 device;
	u32 tid;
	u64 time;
	struct node node;
	struct node parent;
	u64 size;
	u32 nlink;
	u32 rdev;
	u32 uid;
	u32 gid;
	u64 offset;
	u64 length;
	u64 extra;
};
_Static_assert(sizeof(struct record) == 136, "the layout is read byte by byte by src/record.rs");

#define NAME_BYTES 256
