/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * The little of the kernel that the capture programs look at, declared here so that building needs no kernel or libbpf headers.
 *
 * Every structure carries `preserve_access_index`: the loader moves each access to where the running kernel has the field. Only fields
 * that are read are listed; their order here means nothing.
 */
#pragma once

#if !defined(__TARGET_ARCH_x86)
#error "capture programs are written for x86-64 registers"
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;
typedef long long s64;
typedef _Bool bool;

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define GLOBAL __attribute__((noinline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_NOEXIST = 1,
	BPF_F_MMAPABLE = 1 << 10,
};

/* Helper numbers are kernel ABI: include/uapi/linux/bpf.h, ___BPF_FUNC_MAPPER. */
static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*bpf_map_update_elem)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static u64 (*bpf_get_current_pid_tgid)(void) = (void *)14;
static long (*bpf_get_current_comm)(void *buffer, u32 size) = (void *)16;
static long (*bpf_probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;
static long (*bpf_probe_read_kernel_str)(void *dst, u32 size, const void *src) = (void *)115;
static void *(*bpf_ringbuf_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*bpf_ringbuf_submit)(void *data, u64 flags) = (void *)132;
static long (*bpf_loop)(u32 count, void *callback, void *context, u64 flags) = (void *)181;

/* Registers at the entry of a function; user ABI of kprobe programs, so not relocated. */
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#define ARG1(regs) ((regs)->di)
#define ARG2(regs) ((regs)->si)
#define ARG3(regs) ((regs)->dx)
#define ARG4(regs) ((regs)->cx)
#define ARG5(regs) ((regs)->r8)
#define ARG6(regs) ((regs)->r9)

#define KERNEL __attribute__((preserve_access_index))

struct timespec64 {
	s64 tv_sec;
	long tv_nsec;
} KERNEL;
struct super_block {
	u32 s_dev;
} KERNEL;
typedef struct {
	u32 val;
} kuid_t;
typedef struct {
	u32 val;
} kgid_t;
struct inode {
	u16 i_mode;
	kuid_t i_uid;
	kgid_t i_gid;
	struct super_block *i_sb;
	unsigned long i_ino;
	u32 i_nlink;
	u32 i_rdev;
	s64 i_size;
	u32 i_generation;
	struct timespec64 i_mtime;
} KERNEL;
/* 6.6 to 6.10, and from 6.11 on. */
struct inode___renamed {
	struct timespec64 __i_mtime;
} KERNEL;
struct inode___split {
	s64 i_mtime_sec;
	u32 i_mtime_nsec;
} KERNEL;
struct qstr {
	const u8 *name;
} KERNEL;
struct dentry {
	struct dentry *d_parent;
	struct qstr d_name;
	struct inode *d_inode;
} KERNEL;
struct address_space {
	struct inode *host;
} KERNEL;
struct page {
	unsigned long flags;
} KERNEL;
struct folio {
	unsigned long flags;
	struct address_space *mapping;
	unsigned long index;
	u32 _folio_nr_pages;
} KERNEL;
struct file {
	struct inode *f_inode;
} KERNEL;
struct kiocb {
	struct file *ki_filp;
	s64 ki_pos;
} KERNEL;
struct iomap_iter {
	struct inode *inode;
	u32 flags;
} KERNEL;
struct iomap_dio {
	struct kiocb *iocb;
	s64 size;
	u32 flags;
	s32 error;
} KERNEL;
struct bvec_iter {
	u32 bi_size;
	u32 bi_idx;
	u32 bi_bvec_done;
} KERNEL;
struct bio_vec {
	struct page *bv_page;
	u32 bv_len;
	u32 bv_offset;
} KERNEL;
struct bio {
	u32 bi_opf;
	struct bvec_iter bi_iter;
	u16 bi_vcnt;
	struct bio_vec *bi_io_vec;
} KERNEL;
struct vm_area_struct {
	struct file *vm_file;
} KERNEL;
struct vm_fault {
	struct vm_area_struct *vma;
	unsigned long pgoff;
} KERNEL;
struct renamedata {
	struct inode *old_dir;
	struct dentry *old_dentry;
	struct inode *new_dir;
	struct dentry *new_dentry;
	u32 flags;
} KERNEL;
struct iattr {
	u32 ia_valid;
	struct timespec64 ia_atime;
} KERNEL;
struct fileattr {
	u32 flags;
	u32 fsx_projid;
} KERNEL;

struct posix_acl_entry {
	short e_tag;
	u16 e_perm;
	kuid_t e_uid;
} KERNEL;
struct posix_acl {
	u32 a_count;
	struct posix_acl_entry a_entries[];
} KERNEL;

/* Reads one field through any pointer; faults read as zero. */
#define READ(from, field)                                                                              \
	({                                                                                             \
		typeof((from)->field) value_ = {};                                                     \
		bpf_probe_read_kernel(&value_, sizeof(value_), __builtin_preserve_access_index(&(from)->field)); \
		value_;                                                                                \
	})
#define FIELD_EXISTS(from, field) __builtin_preserve_field_info((from)->field, 2)
