//! Damage by script: the fuzzer's bytes say what happens to a valid encoding. Random bytes alone never get past a checksum or a magic number.

/// Takes numbers from the front of the fuzzer's bytes; zeroes when they are used up.
#[derive(Clone, Debug)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    pub fn new(bytes: &'a [u8]) -> Script<'a> {
        Script { rest: bytes }
    }

    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let [byte] = self.array();
        byte
    }

    pub fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, or 0 where there is none. Takes three bytes, so that a small change of the input is a small change here.
    pub fn below(&mut self, end: usize) -> usize {
        let [a, b, c] = self.array();
        (u32::from_le_bytes([a, b, c, 0]) as usize).checked_rem(end).unwrap_or(0)
    }

    /// At most `len` of the bytes that are left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Numbers at the edges of integers and lengths, where parsers miscalculate.
    pub fn edge(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            0x7fff_ffff_ffff_ffff,
            0x8000_0000_0000_0000,
            u64::MAX - 1,
            u64::MAX,
        ];
        EDGES.get(usize::from(self.byte()) % (EDGES.len() + 2)).copied().unwrap_or_else(|| self.number())
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }
}

/// Up to four changes of a valid encoding.
pub fn edited(valid: &[u8], script: &mut Script) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for _ in 0..script.byte() % 5 {
        edit(&mut bytes, script);
    }
    bytes
}

fn edit(bytes: &mut Vec<u8>, script: &mut Script) {
    let kind = script.byte() % 8;
    let at = script.below(bytes.len() + 1);
    let behind = bytes.len() - at;
    match kind {
        0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (script.byte() % 8)),
        1 => {
            let width = [1, 2, 4, 8][usize::from(script.byte() % 4)];
            let mut edge = script.edge().to_le_bytes();
            if script.byte().is_multiple_of(4) {
                edge[..width].reverse();
            }
            bytes.iter_mut().skip(at).zip(edge.into_iter().take(width)).for_each(|(byte, new)| *byte = new);
        }
        2 => bytes.truncate(at),
        3 => {
            let len = usize::from(script.byte() % 32);
            let new = script.bytes(len).to_vec();
            bytes.splice(at..at, new);
        }
        4 => drop(bytes.drain(at..at + script.below(behind + 1))),
        5 => {
            // What stands elsewhere, once more.
            let piece = bytes[at..at + script.below(behind + 1)].to_vec();
            let to = script.below(bytes.len() + 1);
            bytes.splice(to..to, piece);
        }
        6 => {
            let len = script.below(behind + 1);
            let fill = script.byte();
            bytes[at..at + len].fill(fill);
        }
        _ => {
            let len = usize::from(script.byte() % 16);
            let new = script.bytes(len).to_vec();
            bytes.iter_mut().skip(at).zip(new).for_each(|(byte, new)| *byte = new);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_script_changes_nothing() {
        assert_eq!(edited(b"valid", &mut Script::new(&[])), b"valid");
    }

    #[test]
    fn every_kind_of_edit_stays_inside() {
        for kind in 0..8 {
            for at in 0..=8 {
                let script = [4, kind, at, 0, 0, 255, 255, 255, 9, 1, 2, 3, kind, 7, 0, 0, 5, 5, 5, 5];
                for valid in [&b""[..], b"x", b"eight by"] {
                    let _ = edited(valid, &mut Script::new(&script));
                }
            }
        }
    }

    #[test]
    fn numbers_end_with_the_bytes() {
        let mut script = Script::new(&[7]);
        assert_eq!((script.byte(), script.number(), script.below(5), script.is_over()), (7, 0, 0, true));
    }
}
