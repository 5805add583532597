//! Exclusion rules: globs of absolute source paths, decided once per node while walking and when a node is created.
//!
//! A rule that matches a directory keeps the directory and leaves out its contents; a rule that matches anything else leaves out the name.
//! `*` and `?` do not cross a slash; `**` does.

use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("exclusion {pattern:?} is not usable: {reason}")]
pub struct ExclusionError {
    pub pattern: String,
    pub reason: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    patterns: Vec<Vec<u8>>,
}

/// Longer patterns are refused: matching takes the product of the lengths of pattern and path.
const PATTERN_BYTES_MAX: usize = 4096;

impl Exclusions {
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Exclusions, ExclusionError> {
        let check = |pattern: &S| {
            let pattern = pattern.as_ref();
            let refuse = |reason| Err(ExclusionError { pattern: pattern.to_owned(), reason });
            match pattern {
                p if !p.is_empty() && p.trim_end_matches('/').is_empty() => refuse("it would leave out everything"),
                p if !p.starts_with('/') => refuse("it must be an absolute path"),
                p if p.len() > PATTERN_BYTES_MAX => refuse("it is longer than 4096 bytes"),
                p => Ok(p.trim_end_matches('/').as_bytes().to_vec()),
            }
        };
        Ok(Exclusions { patterns: patterns.iter().map(check).collect::<Result<_, _>>()? })
    }

    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    pub fn matches(&self, path: &[u8]) -> bool {
        self.patterns.iter().any(|pattern| glob(pattern, path))
    }
}

/// Walks the pattern once, with all places of the path that the pattern so far can have come to: time is the product of both lengths, however many
/// stars there are.
fn glob(pattern: &[u8], path: &[u8]) -> bool {
    // Most paths part from a pattern before its first star, and need no list.
    let plain = pattern.iter().position(|byte| matches!(byte, b'*' | b'?')).unwrap_or(pattern.len());
    let (literal, mut pattern) = pattern.split_at(plain);
    let Some(path) = path.strip_prefix(literal) else { return false };
    // `reached[at]`: the pattern so far matches the first `at` bytes.
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    while let Some((first, rest)) = pattern.split_first() {
        pattern = rest;
        if *first == b'*' {
            let crosses = pattern.first() == Some(&b'*');
            pattern = pattern.strip_prefix(b"*").unwrap_or(pattern);
            for (at, byte) in path.iter().enumerate() {
                reached[at + 1] |= reached[at] && (crosses || *byte != b'/');
            }
        } else {
            for (at, byte) in path.iter().enumerate().rev() {
                let fits = if *first == b'?' { *byte != b'/' } else { byte == first };
                reached[at + 1] = reached[at] && fits;
            }
            reached[0] = false;
        }
    }
    reached[path.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_fuzz::{Script, TIME, check, within};

    /// The rule as it reads, without regard to time: for patterns so short that this does not matter.
    fn reads(pattern: &[u8], path: &[u8]) -> bool {
        match (pattern, path) {
            ([b'*', b'*', rest @ ..], _) => (0..=path.len()).any(|at| reads(rest, &path[at..])),
            ([b'*', rest @ ..], _) => {
                let stop = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
                (0..=stop).any(|at| reads(rest, &path[at..]))
            }
            ([b'?', rest @ ..], [byte, tail @ ..]) => *byte != b'/' && reads(rest, tail),
            ([one, rest @ ..], [other, tail @ ..]) => one == other && reads(rest, tail),
            ([], []) => true,
            _ => false,
        }
    }

    /// Patterns come from an operator, paths from whoever makes files: however they meet, the agent is not kept busy.
    #[test]
    fn exclusion() {
        check!(name = "exclusion").with_test_time(TIME).for_each(|bytes| {
            let mut script = Script::new(bytes);
            let letters = b"aab/*?*";
            let mut text = |len: usize, of: usize| {
                let letter = |byte: &u8| letters[usize::from(*byte) % of];
                [vec![b'/'], script.bytes(len).iter().map(letter).collect()].concat()
            };
            let (pattern, path) = (text(9, letters.len()), text(14, 4));
            assert_eq!(glob(&pattern, &path), reads(&pattern, &path), "{} on {}", pattern.escape_ascii(), path.escape_ascii());
            // Long ones only have to end: 500 stars meet 2,000 letters.
            let (pattern, path) = ([&pattern[..], &b"*a".repeat(500), b"b"].concat(), [&path[..], &[b'a'; 2000]].concat());
            let _ = within(8192, || glob(&pattern, &path));
            if let Ok(exclusions) = Exclusions::new(&[String::from_utf8_lossy(bytes)]) {
                assert!(!exclusions.matches(b""), "nothing leaves out the volume itself");
            }
        });
    }

    #[test]
    fn globs_match_as_people_expect() {
        let check = |pattern: &str, path: &str, expect: bool| {
            assert_eq!(Exclusions::new(&[pattern]).unwrap().matches(path.as_bytes()), expect, "{pattern} on {path}");
        };
        check("/swapfile", "/swapfile", true);
        check("/swapfile", "/swapfile2", false);
        check("/var/cache/", "/var/cache", true);
        check("/var/cache", "/var/cache/apt", false);
        check("/home/*/.cache", "/home/ada/.cache", true);
        check("/home/*/.cache", "/home/a/b/.cache", false);
        check("/srv/**/tmp", "/srv/a/b/tmp", true);
        check("/var/log/*.?z", "/var/log/syslog.gz", true);
    }

    #[test]
    fn useless_patterns_are_refused() {
        assert!(Exclusions::new(&["relative"]).is_err());
        assert!(Exclusions::new(&["/"]).is_err() && Exclusions::new(&["//"]).is_err() && Exclusions::new(&[""]).is_err());
    }
}
