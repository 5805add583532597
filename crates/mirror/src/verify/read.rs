//! What one task reads: attributes and names of a node, content of a file.

use super::*;

/// Content of a block; fewer bytes where the file ends.
struct OneBlock {
    bytes: Vec<u8>,
    /// Where the hole ends that it consists of, if it does.
    hole_until: Option<u64>,
}

impl Verify {
    pub(super) fn look(
        &mut self,
        node: NodeId,
        chain: bool,
        tries: u8,
        mirror: &Mirror,
        reader: &mut impl SourceReader,
        now: Timestamp,
    ) -> Result<(), ReadError> {
        self.cost += 4096;
        // To the replica a node whose names are all excluded is one without a name. Of a directory none is counted: what is remembered is from before it was met.
        let is_out = |facts: &NodeFacts| facts.kind != NodeKind::Directory && mirror.is_all_excluded(node, facts.links);
        let is_named = |facts: &NodeFacts| facts.named && !is_out(facts);
        let Some(mut facts) = reader.look(node)?.filter(is_named) else { return Ok(()) };
        if facts.kind != NodeKind::Directory && facts.links > 1 && tries == 0 && !self.linked.insert(node) {
            return Ok(());
        }
        let mut digest = NodeDigest {
            attributes: Digest::of_attributes(facts.kind, &facts.attributes, facts.size),
            xattrs: Digest::of_xattrs(&mut facts.xattrs),
            content: Digest::default(),
        };
        let mut held = Read::Node { digest, content: 0, chain };
        match facts.kind {
            NodeKind::Directory => {
                let Some(names) = self.names(node, mirror, reader)? else { return Ok(()) };
                digest.content = names;
                held = Read::Node { digest, content: 0, chain };
            }
            NodeKind::File if facts.size.0 <= BLOCK_BYTES => {
                let Some(content) = self.small(node, &facts, reader)? else { return Ok(()) };
                digest.content = content;
                held = Read::Node { digest, content: facts.size.0, chain };
            }
            NodeKind::File if chain => {
                self.tasks.push_front(Task::Content { node, offset: 0 });
                held = Read::Node { digest, content: 0, chain: false };
            }
            _ => {}
        }
        self.keep(node, held, tries, now);
        Ok(())
    }

    /// Digest of a directory's names as the replica has to have them; in the first pass its entries become tasks.
    fn names(&mut self, node: NodeId, mirror: &Mirror, reader: &mut impl SourceReader) -> Result<Option<Digest>, ReadError> {
        let mut entries = Vec::new();
        if !mirror.hollow.contains(&node) {
            let Some(listed) = reader.list(node)? else { return Ok(None) };
            let left_out = |entry: &DirectoryEntry| {
                entry.kind != NodeKind::Directory && mirror.is_named_by_a_rule(node, &entry.name) || mirror.excluded.contains(&entry.node)
            };
            entries.extend(listed.into_iter().map(|listed| listed.entry).filter(|entry| !left_out(entry)));
        }
        if self.pass == 1 && self.listed.insert(node) {
            for entry in &entries {
                let task = Task::Node { node: entry.node, chain: true };
                if entry.kind == NodeKind::Directory { self.tasks.push_back(task) } else { self.tasks.push_front(task) }
            }
        }
        self.cost += 64 * entries.len() as u64;
        Ok(Some(Digest::of_names(&mut entries)))
    }

    fn small(&mut self, node: NodeId, facts: &NodeFacts, reader: &mut impl SourceReader) -> Result<Option<Digest>, ReadError> {
        if facts.size.0 == 0 {
            return Ok(Some(Digest::of_content(&[])));
        }
        let Some(OneBlock { bytes, .. }) = self.read_block(node, 0, reader)? else { return Ok(None) };
        Ok(Some(Digest::of_content(&bytes)))
    }

    fn read_block(&mut self, node: NodeId, offset: u64, reader: &mut impl SourceReader) -> Result<Option<OneBlock>, ReadError> {
        let end = offset.saturating_add(BLOCK_BYTES);
        let (mut bytes, mut at, mut hole, mut data_behind) = (Vec::new(), offset, true, None);
        while at < end {
            let budget = READ_BYTES.min((end - at) as usize);
            let Some(content) = reader.read(node, at, budget)? else { return Ok(None) };
            for chunk in &content.chunks {
                if let Chunk::Data { offset: from, data } = chunk {
                    if *from < end {
                        hole = false;
                    } else {
                        data_behind = data_behind.or(Some(*from));
                    }
                    self.cost += data.len() as u64;
                    self.end.bytes += data.len() as u64;
                    put(&mut bytes, offset, *from, data);
                }
            }
            let stuck = content.next <= at;
            at = content.next;
            if content.end || stuck {
                break;
            }
        }
        bytes.resize(at.clamp(offset, end).saturating_sub(offset) as usize, 0);
        Ok(Some(OneBlock { bytes, hole_until: hole.then_some(data_behind.unwrap_or(at)) }))
    }

    pub(super) fn block(
        &mut self,
        node: NodeId,
        offset: u64,
        chain: bool,
        tries: u8,
        reader: &mut impl SourceReader,
        now: Timestamp,
    ) -> Result<(), ReadError> {
        self.cost += 4096;
        let Some(OneBlock { bytes, hole_until }) = self.read_block(node, offset, reader)? else { return Ok(()) };
        if bytes.is_empty() {
            return Ok(());
        }
        let read = match hole_until {
            Some(end) => {
                let len = (end - offset).min(ZEROS_BYTES_MAX);
                // Whole blocks, so that the next ones stay where they are.
                let whole = if len > BLOCK_BYTES { len / BLOCK_BYTES * BLOCK_BYTES } else { len };
                Read::Zeros { offset, len: if chain { whole } else { whole.min(BLOCK_BYTES) } }
            }
            None => Read::Block { offset, len: bytes.len() as u64, digest: Digest::of_content(&bytes) },
        };
        let len = match read {
            Read::Zeros { len, .. } | Read::Block { len, .. } => len,
            Read::Node { .. } => 0,
        };
        if chain && len >= BLOCK_BYTES {
            self.tasks.push_front(Task::Content { node, offset: offset + len });
        }
        self.keep(node, read, tries, now);
        Ok(())
    }
}

/// Puts data into a block that begins at `base`, as far as it lies in it.
fn put(bytes: &mut Vec<u8>, base: u64, from: u64, data: &[u8]) {
    let start = usize::try_from(from.saturating_sub(base)).unwrap_or(usize::MAX);
    let room = (BLOCK_BYTES as usize).saturating_sub(start);
    let data = &data[..data.len().min(room)];
    if data.is_empty() {
        return;
    }
    if bytes.len() < start + data.len() {
        bytes.resize(start + data.len(), 0);
    }
    bytes[start..start + data.len()].copy_from_slice(data);
}
