/* SPDX-License-Identifier: MIT OR GPL-2.0-only
 *
 * File content: from the page cache with the folio locked, from the bio of a direct write, and at writeback for mapped pages.
 *
 * kprobes only: fentry is skipped silently under full preemption.
 */
#pragma once
#include "emit.h"

#define PAGE_BYTES 4096ULL
#define PAGE_STRUCT_BYTES 64 /* the loader refuses kernels where it differs */

INLINE u64 page_address_of(u64 page)
{
	u64 vmemmap = 0, direct = 0;
	bpf_probe_read_kernel(&vmemmap, 8, (void *)vmemmap_base_address);
	bpf_probe_read_kernel(&direct, 8, (void *)page_offset_base_address);
	return direct + (page - vmemmap) / PAGE_STRUCT_BYTES * PAGE_BYTES;
}

/* A run of bytes of one node on its way into the ring. */
struct run {
	struct node node;
	u64 size;
	u64 offset;
	u64 address;
	u64 extra;
	u32 device;
	u32 kind;
	u64 length;
};

#define EMIT(CLASS)                                                                            \
	do {                                                                                   \
		struct record *r = bpf_ringbuf_reserve(&ring, sizeof(struct record) + (CLASS), 0); \
		u64 length = run->length;                                                      \
		long failed = -1;                                                              \
		if (!r)                                                                        \
			goto lost;                                                             \
		fill_head(r, run->kind, run->device, length);                                  \
		r->node = run->node;                                                           \
		r->size = run->size;                                                           \
		r->offset = run->offset;                                                       \
		r->length = length;                                                            \
		r->extra = run->extra;                                                         \
		asm volatile("" : "+r"(length));                                               \
		if (length <= (CLASS))                                                         \
			failed = bpf_probe_read_kernel((char *)r + sizeof(*r), length, (void *)run->address); \
		if (failed) {                                                                  \
			r->flags = FLAG_UNREAD;                                                \
			count(COUNT_UNREAD, 1);                                                \
		}                                                                              \
		bpf_ringbuf_submit(r, 0);                                                      \
		return 0;                                                                      \
	} while (0)

/* At most one page. Constant size classes, because a reservation's size must be known to the verifier. */
GLOBAL int emit_run(struct run *run)
{
	if (!run)
		return 0;
	u64 total = run->length;
	if (!total)
		return 0;
	if (total <= 256)
		EMIT(256);
	else if (total <= 1024)
		EMIT(1024);
	else if (total <= PAGE_BYTES)
		EMIT(4096);
lost:
	mark_lost(&run->node, run->device, run->offset, run->offset + run->length);
	return 0;
}

INLINE void fill_run(struct run *run, u32 kind, struct inode *inode, u32 device, u32 is)
{
	fill_node(&run->node, inode, is);
	run->size = READ(inode, i_size);
	run->device = device;
	run->kind = kind;
}

struct walk {
	struct run run;
	u64 left;
	u64 pages;
	u64 vectors;
	u32 vector;
	u32 vector_count;
	u64 done;
};

static long walk_linear(u32 i, struct walk *w)
{
	u64 n = w->left;
	if (!n)
		return 1;
	if (n > PAGE_BYTES)
		n = PAGE_BYTES;
	w->run.length = n;
	emit_run(&w->run);
	w->run.address += n;
	w->run.offset += n;
	w->left -= n;
	return 0;
}

static long walk_pages(u32 i, struct walk *w)
{
	u64 page = 0, within = w->run.offset & (PAGE_BYTES - 1), n = PAGE_BYTES - within;
	if (!w->left)
		return 1;
	if (n > w->left)
		n = w->left;
	bpf_probe_read_kernel(&page, 8, (void *)(w->pages + 8 * (u64)i));
	w->run.address = page_address_of(page) + within;
	w->run.length = n;
	emit_run(&w->run);
	w->run.offset += n;
	w->left -= n;
	return 0;
}

static long walk_vectors(u32 i, struct walk *w)
{
	struct bio_vec v = {};
	if (w->vector >= w->vector_count || !w->left)
		return 1;
	struct bio_vec *from = (void *)(w->vectors + (u64)w->vector * 16);
	v.bv_page = READ(from, bv_page);
	v.bv_len = READ(from, bv_len);
	v.bv_offset = READ(from, bv_offset);
	u64 address = page_address_of((u64)v.bv_page) + v.bv_offset + w->done;
	u64 n = PAGE_BYTES - (address & (PAGE_BYTES - 1));
	if (n > v.bv_len - w->done)
		n = v.bv_len - w->done;
	if (n > w->left)
		n = w->left;
	w->run.address = address;
	w->run.length = n;
	emit_run(&w->run);
	w->run.offset += n;
	w->done += n;
	w->left -= n;
	if (w->done >= v.bv_len) {
		w->vector++;
		w->done = 0;
	}
	return 0;
}

INLINE void lost_rest(struct walk *w)
{
	if (w->left)
		mark_lost(&w->run.node, w->run.device, w->run.offset, w->run.offset + w->left);
}

/* A short copy into a page that is not up to date is thrown away by the kernel and done again. */
INLINE bool is_discarded(u64 page, u64 length, u64 copied)
{
	return copied < length && !(READ((struct page *)page, flags) & (1UL << page_uptodate_bit));
}

/* int ext4_*_write_end(file, mapping, pos, len, copied, page, fsdata) */
INLINE int ext4_write_end_entry(struct pt_regs *regs)
{
	struct address_space *mapping = (void *)ARG2(regs);
	u64 pos = ARG3(regs), length = (u32)ARG4(regs), copied = (u32)ARG5(regs), page = ARG6(regs);
	struct inode *inode = READ(mapping, host);
	u32 device, is = wanted(inode, &device);
	if (!is || is_discarded(page, length, copied))
		return 0;
	struct run run = {};
	fill_run(&run, RECORD_DATA, inode, device, is);
	run.offset = pos;
	run.length = copied;
	run.address = page_address_of(page) + (pos & (PAGE_BYTES - 1));
	emit_run(&run);
	return 0;
}
SEC("kprobe") int data_ext4_da_write_end(struct pt_regs *regs) { return ext4_write_end_entry(regs); }
SEC("kprobe") int data_ext4_write_end(struct pt_regs *regs) { return ext4_write_end_entry(regs); }
SEC("kprobe") int data_ext4_journalled_write_end(struct pt_regs *regs) { return ext4_write_end_entry(regs); }

#define IOMAP_ZERO (1 << 1)

/* size_t iomap_write_end(iter, pos, len, copied, folio); since 6.10 its result is a bool, and since 6.11 zeroing makes no file longer: what it puts
 * behind the end is none of the content, and stays none where the call fails for which it was done. */
INLINE int iomap_write_end_entry(struct pt_regs *regs, bool zeroing_keeps_size)
{
	struct iomap_iter *iter = (void *)ARG1(regs);
	u64 pos = ARG2(regs), length = ARG3(regs), copied = ARG4(regs), folio = ARG5(regs);
	struct inode *inode = READ(iter, inode);
	u32 device, is = wanted(inode, &device);
	if (!is || is_discarded(folio, length, copied))
		return 0;
	struct walk w = {};
	fill_run(&w.run, RECORD_DATA, inode, device, is);
	if (zeroing_keeps_size && READ(iter, flags) & IOMAP_ZERO) {
		u64 room = pos < w.run.size ? w.run.size - pos : 0;
		if (copied > room)
			copied = room;
	}
	w.run.offset = pos;
	w.run.address = page_address_of(folio) + (pos - READ((struct folio *)folio, index) * PAGE_BYTES);
	w.left = copied;
	bpf_loop(2048, walk_linear, &w, 0);
	lost_rest(&w);
	return 0;
}
SEC("kprobe") int data_iomap_write_end(struct pt_regs *regs) { return iomap_write_end_entry(regs, 0); }
SEC("kprobe") int data_iomap_write_end_bool(struct pt_regs *regs) { return iomap_write_end_entry(regs, 1); }

/* int btrfs_dirty_pages(inode, pages, num_pages, pos, write_bytes, cached, noreserve) */
SEC("kprobe") int data_btrfs_dirty_pages(struct pt_regs *regs)
{
	struct inode *inode = (void *)(ARG1(regs) + btrfs_inode_vfs_offset);
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	struct walk w = {};
	fill_run(&w.run, RECORD_DATA, inode, device, is);
	w.run.offset = ARG4(regs);
	w.pages = ARG2(regs);
	w.left = ARG5(regs);
	bpf_loop(2048, walk_pages, &w, 0);
	lost_rest(&w);
	return 0;
}

/* void iomap_dio_submit_bio(iter, dio, bio, pos) */
SEC("kprobe") int data_iomap_dio_submit_bio(struct pt_regs *regs)
{
	struct iomap_iter *iter = (void *)ARG1(regs);
	struct bio *bio = (void *)ARG3(regs);
	struct inode *inode = READ(iter, inode);
	u32 device, is = wanted(inode, &device);
	if (!is || (READ(bio, bi_opf) & 0xff) != 1 /* REQ_OP_WRITE */)
		return 0;
	struct walk w = {};
	fill_run(&w.run, RECORD_DIRECT, inode, device, is);
	w.run.offset = ARG4(regs);
	w.run.extra = ARG2(regs);
	w.vectors = (u64)READ(bio, bi_io_vec);
	w.vector_count = READ(bio, bi_vcnt);
	/* A bio on somebody else's vectors (a registered buffer, a loop device) begins and ends inside them. */
	w.vector = READ(bio, bi_iter.bi_idx);
	w.done = READ(bio, bi_iter.bi_bvec_done);
	w.left = READ(bio, bi_iter.bi_size);
	bpf_loop(4096, walk_vectors, &w, 0);
	lost_rest(&w);
	return 0;
}

/* Completions under way, by task: at the return the request is freed. */
struct completion {
	u64 dio;
	u64 inode;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct completion);
} completions SEC(".maps");

/* ssize_t iomap_dio_complete(dio): its entry is before whoever waits for the write (a punch) goes on, so it is the write's place in the order. Behind it
 * the file system makes the blocks count as written and the size what it is, and cached pages go: before the return, a reader may see what was there before. */
SEC("kprobe") int data_iomap_dio_complete(struct pt_regs *regs)
{
	struct iomap_dio *dio = (void *)ARG1(regs);
	if (!(READ(dio, flags) & (1 << 30) /* IOMAP_DIO_WRITE */))
		return 0;
	struct kiocb *iocb = READ(dio, iocb);
	struct file *file = READ(iocb, ki_filp);
	struct inode *inode = READ(file, f_inode);
	u32 device, is = wanted(inode, &device);
	if (!is)
		return 0;
	u64 task = bpf_get_current_pid_tgid();
	struct completion completion = { .dio = ARG1(regs), .inode = (u64)inode };
	/* Where it does not fit, the return is missed: then the node is lost after a while. */
	bpf_map_update_elem(&completions, &task, &completion, 0);
	struct record *r = begin(RECORD_DIRECT_END, inode, device, is);
	if (!r)
		return 0;
	r->extra = ARG1(regs);
	r->offset = READ(iocb, ki_pos);
	s32 error = READ(dio, error);
	r->length = error ? (s64)error : READ(dio, size);
	bpf_ringbuf_submit(r, 0);
	return 0;
}

SEC("fexit/iomap_dio_complete") int exit_iomap_dio_complete(u64 *args)
{
	u64 task = bpf_get_current_pid_tgid();
	struct completion *found = bpf_map_lookup_elem(&completions, &task);
	if (!found)
		return 0;
	struct completion completion = *found;
	bpf_map_delete_elem(&completions, &task);
	struct inode *inode = (void *)completion.inode;
	u32 device, is = wanted(inode, &device);
	struct record *r = is ? begin(RECORD_DIRECT_DONE, inode, device, is) : 0;
	if (!r)
		return 0;
	r->extra = completion.dio;
	bpf_ringbuf_submit(r, 0);
	return 0;
}

/* Pages that were made writable in some mapping since they were last captured. By inode address: a stale mark of a freed inode can at
 * worst capture a page once more than needed. */
struct page_key {
	u64 inode;
	u64 index;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 18);
	__type(key, struct page_key);
	__type(value, u8);
} marks SEC(".maps");
struct node_mark {
	u64 epoch;
};
struct {
	/* Forgetting a node only tells of it once more. */
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 16);
	__type(key, u64);
	__type(value, struct node_mark);
} marked_nodes SEC(".maps");

/* vm_fault_t fault_dirty_shared_page(vmf): runs under the folio's lock, so no writeback can come between. */
SEC("kprobe") int mark_fault_dirty_shared_page(struct pt_regs *regs)
{
	struct vm_fault *vmf = (void *)ARG1(regs);
	struct vm_area_struct *vma = READ(vmf, vma);
	struct file *file = READ(vma, vm_file);
	struct inode *inode = READ(file, f_inode);
	u32 device, is = wanted(inode, &device), zero = 0;
	if (!is)
		return 0;
	struct page_key key = { .inode = (u64)inode, .index = READ(vmf, pgoff) };
	u8 one = 1;
	count(COUNT_MARKS, 1);
	if (bpf_map_update_elem(&marks, &key, &one, 0)) {
		struct node node;
		fill_node(&node, inode, is);
		count(COUNT_MARKS_FULL, 1);
		mark_lost(&node, device, key.index * PAGE_BYTES, (key.index + 1) * PAGE_BYTES);
	}
	/* One record for a node's first mark in each epoch: user space asks for writeback of what it was told of. */
	struct counters *c = bpf_map_lookup_elem(&counters, &zero);
	struct node_mark now = { .epoch = c ? c->values[EPOCH] + 1 : 1 }, *have = bpf_map_lookup_elem(&marked_nodes, &key.inode);
	if (have && have->epoch == now.epoch)
		return 0;
	bpf_map_update_elem(&marked_nodes, &key.inode, &now, 0);
	struct record *r = begin(RECORD_MARK, inode, device, is);
	if (r)
		bpf_ringbuf_submit(r, 0);
	return 0;
}

struct folio_walk {
	struct run run;
	u64 inode;
	u64 base;
	u64 index;
	u32 pages;
};
static long walk_folio(u32 i, struct folio_walk *w)
{
	struct page_key key = { .inode = w->inode, .index = w->index + i };
	if (i >= w->pages)
		return 1;
	if (bpf_map_delete_elem(&marks, &key))
		return 0;
	u64 offset = key.index * PAGE_BYTES, n = PAGE_BYTES;
	if (offset >= w->run.size)
		return 0;
	if (n > w->run.size - offset)
		n = w->run.size - offset;
	w->run.offset = offset;
	w->run.length = n;
	w->run.address = w->base + (u64)i * PAGE_BYTES;
	emit_run(&w->run);
	return 0;
}

/* bool __folio_start_writeback(folio, keep_write): mappings are already write-protected. Runs in any task, also for the agent's. */
SEC("kprobe") int mapped_folio_start_writeback(struct pt_regs *regs)
{
	struct folio *folio = (void *)ARG1(regs);
	u64 mapping = (u64)READ(folio, mapping);
	if (!mapping || (mapping & 3))
		return 0;
	struct inode *inode = READ((struct address_space *)mapping, host);
	if (!inode)
		return 0;
	u32 device = device_of(inode), is = protected_device(device);
	if (!is)
		return 0;
	struct folio_walk w = {};
	w.pages = READ(folio, flags) & (1UL << page_head_bit) ? READ(folio, _folio_nr_pages) : 1;
	fill_run(&w.run, RECORD_MAPPED, inode, device, is);
	w.inode = (u64)inode;
	w.index = READ(folio, index);
	w.base = page_address_of((u64)folio);
	bpf_loop(w.pages, walk_folio, &w, 0);
	return 0;
}

static long drop_mark(u32 i, struct page_key *key)
{
	bpf_map_delete_elem(&marks, key);
	key->index++;
	return 0;
}

/* void __folio_cancel_dirty(folio): a dirty page is cut off or its file is gone, so no writeback will take its mark. */
SEC("kprobe") int mark_folio_cancel_dirty(struct pt_regs *regs)
{
	struct folio *folio = (void *)ARG1(regs);
	u64 mapping = (u64)READ(folio, mapping);
	if (!mapping || (mapping & 3))
		return 0;
	struct inode *inode = READ((struct address_space *)mapping, host);
	if (!inode || !protected_device(device_of(inode)))
		return 0;
	struct page_key key = { .inode = (u64)inode, .index = READ(folio, index) };
	u32 pages = READ(folio, flags) & (1UL << page_head_bit) ? READ(folio, _folio_nr_pages) : 1;
	bpf_loop(pages, drop_mark, &key, 0);
	return 0;
}
