//! A reader of the kernel's own type information (BTF), just enough to compare prototypes and find fields.
//!
//! A kprobe checks nothing: a changed argument list attaches cleanly and yields wrong data. So every attach is preceded by a comparison of
//! the prototype that the running kernel (or module) declares with those that the programs were written for.
//! Format: Documentation/bpf/btf.rst of the kernel.

use std::{collections::HashMap, fs, io, path::Path, sync::Arc};

const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// The kernel's own bound (KSYM_NAME_LEN); without one, a string section that never ends would be copied once for each type.
const NAME_BYTES_MAX: usize = 512;
/// Members looked at for one question. The largest structures have some hundreds, and a few of them nest.
const MEMBERS_MAX: u32 = 100_000;

/// Type information of the kernel, or of a module on top of the kernel's.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    /// Byte position of each own type.
    types: Vec<usize>,
    strings: (usize, usize),
    functions: HashMap<String, u32>,
    structs: HashMap<String, u32>,
    base: Option<Arc<Btf>>,
    first_type: u32,
    first_string: u32,
}

impl Btf {
    /// Reads `/sys/kernel/btf/<name>`; modules need the kernel's as `base`.
    pub fn of_kernel(name: &str, base: Option<Arc<Btf>>) -> io::Result<Btf> {
        let bytes = fs::read(Path::new("/sys/kernel/btf").join(name))?;
        Btf::parse(bytes, base).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not BTF"))
    }

    pub fn parse(data: Vec<u8>, base: Option<Arc<Btf>>) -> Option<Btf> {
        if data.get(0..2)? != [0x9f, 0xeb] {
            return None;
        }
        let at = |position: usize| word(&data, position).map(|value| value as usize);
        let head = at(4)?;
        let (type_start, type_bytes) = (head.checked_add(at(8)?)?, at(12)?);
        let strings = (head.checked_add(at(16)?)?, at(20)?);
        let type_end = type_start.checked_add(type_bytes)?;
        let (first_type, first_string) = match &base {
            Some(base) => {
                let types = base.first_type.checked_add(u32::try_from(base.types.len()).ok()?)?;
                (types, base.first_string.checked_add(u32::try_from(base.strings.1).ok()?)?)
            }
            None => (1, 0),
        };
        let mut btf =
            Btf { data, types: Vec::new(), strings, functions: HashMap::new(), structs: HashMap::new(), base, first_type, first_string };
        let mut position = type_start;
        while position < type_end {
            let info = word(&btf.data, position.checked_add(4)?)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            let id = first_type + btf.types.len() as u32;
            btf.types.push(position);
            if kind == KIND_FUNC || kind == KIND_STRUCT {
                let name = btf.string(word(&btf.data, position)?)?.to_owned();
                let index = if kind == KIND_FUNC { &mut btf.functions } else { &mut btf.structs };
                index.insert(name, id);
            }
            let tail = match kind {
                KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => count * 12,
                KIND_ENUM | KIND_FUNC_PROTO => count * 8,
                _ => 0,
            };
            position = position.checked_add(12 + tail)?;
        }
        Some(btf)
    }

    fn string(&self, offset: u32) -> Option<&str> {
        if offset < self.first_string {
            return self.base.as_ref()?.string(offset);
        }
        let start = self.strings.0.checked_add((offset - self.first_string) as usize)?;
        let bytes = self.data.get(start..self.strings.0.checked_add(self.strings.1)?)?;
        let head = bytes.get(..NAME_BYTES_MAX).unwrap_or(bytes);
        let end = head.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(head.get(..end)?).ok()
    }

    /// (name, info, size or type, position of what follows, whose bytes)
    fn entry(&self, id: u32) -> Option<(&str, u32, u32, usize, &Btf)> {
        if id < self.first_type {
            return self.base.as_ref()?.entry(id);
        }
        let position = *self.types.get((id - self.first_type) as usize)?;
        let name = self.string(word(&self.data, position)?)?;
        Some((name, word(&self.data, position + 4)?, word(&self.data, position + 8)?, position + 12, self))
    }

    /// A type as it would be written, without `const`, `struct` and the like: `inode*`, `loff_t`.
    fn type_name(&self, id: u32, depth: u32) -> Option<String> {
        if id == 0 {
            return Some("void".into());
        }
        if depth > 8 {
            return None;
        }
        let (name, info, inner, _, _) = self.entry(id)?;
        Some(match info >> 24 & 0x1f {
            KIND_PTR => self.type_name(inner, depth + 1)? + "*",
            KIND_VOLATILE | KIND_CONST | KIND_RESTRICT => self.type_name(inner, depth + 1)?,
            _ => name.to_owned(),
        })
    }

    /// `file*,loff_t,unsigned int` for a function that exists here.
    pub fn prototype(&self, function: &str) -> Option<String> {
        let Some(id) = self.functions.get(function) else { return self.base.as_ref()?.prototype(function) };
        let (_, _, prototype, _, _) = self.entry(*id)?;
        let (_, info, _, tail, owner) = self.entry(prototype)?;
        let mut names = Vec::new();
        for index in 0..(info & 0xffff) as usize {
            names.push(self.type_name(word(&owner.data, tail + index * 8 + 4)?, 0)?);
        }
        Some(names.join(","))
    }

    pub fn struct_bytes(&self, name: &str) -> Option<u32> {
        let Some(id) = self.structs.get(name) else { return self.base.as_ref()?.struct_bytes(name) };
        Some(self.entry(*id)?.2)
    }

    /// The type that a function returns.
    pub fn returns(&self, function: &str) -> Option<String> {
        let Some(id) = self.functions.get(function) else { return self.base.as_ref()?.returns(function) };
        let (_, _, prototype, _, _) = self.entry(*id)?;
        let (_, _, result, _, _) = self.entry(prototype)?;
        self.type_name(result, 0)
    }

    /// Byte offset of a member, also of one inside anonymous structures and unions.
    pub fn member_offset(&self, structure: &str, member: &str) -> Option<u32> {
        Some(self.member(structure, member)?.0)
    }

    /// Type of a member as [`Btf::prototype`] prints it, with the width where it is a bit field: `unsigned int:1`.
    pub fn member_type(&self, structure: &str, member: &str) -> Option<String> {
        Some(self.member(structure, member)?.1)
    }

    fn member(&self, structure: &str, member: &str) -> Option<(u32, String)> {
        let Some(id) = self.structs.get(structure) else { return self.base.as_ref()?.member(structure, member) };
        self.member_of(*id, member, 0, &mut { MEMBERS_MAX })
    }

    /// `left` is how many members may still be looked at: anonymous structures that lead to each other multiply.
    fn member_of(&self, id: u32, wanted: &str, depth: u32, left: &mut u32) -> Option<(u32, String)> {
        let (_, info, inner, tail, owner) = self.entry(id)?;
        match info >> 24 & 0x1f {
            _ if depth > 8 => return None,
            KIND_STRUCT | KIND_UNION => {}
            KIND_VOLATILE | KIND_CONST => return self.member_of(inner, wanted, depth + 1, left),
            _ => return None,
        }
        for index in 0..(info & 0xffff) as usize {
            *left = left.checked_sub(1)?;
            let at = tail.checked_add(index * 12)?;
            let (name, kind) = (owner.string(word(&owner.data, at)?)?, word(&owner.data, at.checked_add(4)?)?);
            let bits = word(&owner.data, at.checked_add(8)?)?;
            // With the kind flag set, the upper byte is a bit field's width.
            let (offset, width) = if info >> 31 == 1 { ((bits & 0xff_ffff) / 8, bits >> 24) } else { (bits / 8, 0) };
            if name == wanted {
                let name = self.type_name(kind, 0)?;
                return Some((offset, if width == 0 { name } else { format!("{name}:{width}") }));
            }
            if name.is_empty()
                && let Some((inner, kind)) = self.member_of(kind, wanted, depth + 1, left)
            {
                return Some((offset.checked_add(inner)?, kind));
            }
        }
        None
    }

    /// Value of an enumerator, wherever it is declared.
    pub fn enumerator(&self, name: &str) -> Option<u32> {
        for position in &self.types {
            let info = word(&self.data, position + 4)?;
            if info >> 24 & 0x1f != KIND_ENUM {
                continue;
            }
            for index in 0..(info & 0xffff) as usize {
                let at = position + 12 + index * 8;
                if self.string(word(&self.data, at)?)? == name {
                    return word(&self.data, at + 4);
                }
            }
        }
        None
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn garbage_is_refused() {
        assert!(Btf::parse(vec![], None).is_none());
        assert!(Btf::parse(vec![0x9f, 0xeb, 1, 0, 255, 255, 255, 255], None).is_none());
    }

    #[test]
    fn the_running_kernel_is_read() {
        let Ok(btf) = Btf::of_kernel("vmlinux", None) else {
            println!("skipped: this kernel has no BTF");
            return;
        };
        assert_eq!(btf.prototype("vfs_fallocate").as_deref(), Some("file*,int,loff_t,loff_t"));
        assert_eq!(btf.struct_bytes("page"), Some(64));
        assert!(btf.member_offset("inode", "i_sb").is_some());
    }
}
