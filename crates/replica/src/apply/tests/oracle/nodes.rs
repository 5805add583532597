//! The oracle's operations on a node's content and attributes, in the plainest way: content is one vector of bytes.

use super::{BLOCK, FILE_BYTES_MAX, Oracle};
use standin_model::*;

impl Oracle {
    pub(super) fn content(&mut self, out: &mut Vec<Operation>) -> Option<()> {
        let node = self.of_kind(|node| node.kind == NodeKind::File)?;
        let old = self.node(node).content.len() as u64;
        let offset = self.random.below(FILE_BYTES_MAX);
        let len = 1 + self.random.below(2 * BLOCK);
        let keep_size = self.random.below(2) == 0;
        let (at, length) = (ByteOffset(offset), ByteLen(len));
        let operation = match self.random.below(20) {
            0..7 if self.makes_patches && old > 0 => self.patch(node, offset % old, len),
            0..10 => {
                let byte = self.random.below(255) as u8 + 1;
                Operation::Write { node, offset: at, data: vec![byte; len as usize] }
            }
            10..13 => Operation::Truncate { node, size: ByteLen(offset) },
            13 | 14 => Operation::Punch { node, offset: at, len: length },
            15 => Operation::Zero { node, offset: at, len: length, keep_size },
            16 => Operation::Allocate { node, offset: at, len: length, keep_size },
            17 if old > 2 * BLOCK && self.can_shift => Operation::Collapse { node, offset: ByteOffset(BLOCK), len: ByteLen(BLOCK) },
            18 if old > BLOCK && old < 2 * FILE_BYTES_MAX && self.can_shift => {
                Operation::Insert { node, offset: ByteOffset(BLOCK), len: ByteLen(BLOCK) }
            }
            19 => {
                let origin = self.of_kind(|node| node.kind == NodeKind::File && node.content.len() as u64 > BLOCK)?;
                if origin == node {
                    return None;
                }
                Operation::CloneRange { origin, origin_offset: ByteOffset(0), node, offset: at, len: ByteLen(BLOCK) }
            }
            _ => return None,
        };
        self.execute_content(&operation);
        self.touch(node);
        out.push(operation);
        Some(())
    }

    /// A rewrite of what is there, maybe beyond its end, with a few bytes changed. It keeps to pages most of the time, as databases do.
    fn patch(&mut self, node: NodeId, offset: u64, len: u64) -> Operation {
        let (offset, len) = if self.random.below(8) > 0 { (offset / BLOCK * BLOCK, BLOCK) } else { (offset, len) };
        let old = self.node(node).content.clone();
        let from = offset as usize;
        let mut data: Vec<u8> = (from..from + len as usize).map(|at| old.get(at).copied().unwrap_or(0)).collect();
        for _ in 0..self.random.below(4) {
            let at = self.random.below(len) as usize;
            data[at] = self.random.below(256) as u8;
        }
        let mut parts: Vec<PatchPart> = Vec::new();
        for (at, block) in data.chunks(64).enumerate().map(|(index, block)| (index * 64, block)) {
            let is_there = old.get(from + at..from + at + block.len()) == Some(block);
            match parts.last_mut() {
                _ if is_there => {}
                Some(part) if part.end() == at as u64 => part.data.extend_from_slice(block),
                _ => parts.push(PatchPart { at: at as u32, data: block.to_vec() }),
            }
        }
        let checksum = standin_model::patch::checksum_of(&data);
        Operation::Patch { node, offset: ByteOffset(offset), len: ByteLen(len), parts, checksum }
    }

    fn execute_content(&mut self, operation: &Operation) {
        use Operation::*;
        let fill = |content: &mut Vec<u8>, offset: usize, data: &[u8], grow: bool| {
            let end = offset + data.len();
            if grow && content.len() < end {
                content.resize(end, 0);
            }
            let end = end.min(content.len());
            if offset < end {
                content[offset..end].copy_from_slice(&data[..end - offset]);
            }
        };
        let origin = match operation {
            CloneRange { origin, len, .. } => self.node(*origin).content[..len.0 as usize].to_vec(),
            _ => Vec::new(),
        };
        let content = &mut self.node(operation.node().expect("content has a node")).content;
        match operation {
            Write { offset, data, .. } => fill(content, offset.0 as usize, data, true),
            Patch { offset, parts, .. } => {
                parts.iter().for_each(|part| fill(content, offset.0 as usize + part.at as usize, &part.data, true));
            }
            Truncate { size, .. } => content.resize(size.0 as usize, 0),
            Punch { offset, len, .. } => fill(content, offset.0 as usize, &vec![0; len.0 as usize], false),
            Zero { offset, len, keep_size, .. } => fill(content, offset.0 as usize, &vec![0; len.0 as usize], !keep_size),
            Allocate { offset, len, keep_size: false, .. } => content.resize(content.len().max((offset.0 + len.0) as usize), 0),
            Collapse { offset, len, .. } => drop(content.drain(offset.0 as usize..(offset.0 + len.0) as usize)),
            Insert { offset, len, .. } => {
                content.splice(offset.0 as usize..offset.0 as usize, vec![0; len.0 as usize]);
            }
            CloneRange { offset, .. } => fill(content, offset.0 as usize, &origin, true),
            _ => {}
        }
    }

    pub(super) fn attribute(&mut self, out: &mut Vec<Operation>) -> Option<()> {
        let node = self.of_kind(|node| !node.whiteout)?;
        let is_symlink = self.node(node).kind == NodeKind::Symlink;
        let value = self.random.below(1000);
        let name = [b"trusted.a".to_vec(), b"trusted.b".to_vec(), b"security.standin".to_vec()][self.random.below(3) as usize].clone();
        let found = self.node(node);
        let operation = match value % 5 {
            0 if !is_symlink => {
                found.attributes.mode = [0o640, 0o4711, 0o2775, 0o000][value as usize % 4];
                Operation::SetMode { node, mode: found.attributes.mode }
            }
            1 => {
                (found.attributes.owner, found.attributes.group) = (value as u32, value as u32 + 1);
                Operation::SetOwner { node, owner: value as u32, group: value as u32 + 1 }
            }
            2 | 3 => {
                found.xattrs.insert(name.clone(), value.to_le_bytes().to_vec());
                Operation::SetXattr { node, name, value: value.to_le_bytes().to_vec() }
            }
            _ => {
                found.xattrs.remove(&name)?;
                Operation::RemoveXattr { node, name }
            }
        };
        out.push(operation);
        Some(())
    }
}
