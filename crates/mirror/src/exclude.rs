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

/// Longer patterns are refused: matching is quadratic in the worst case.
const PATTERN_BYTES_MAX: usize = 4096;

impl Exclusions {
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Exclusions, ExclusionError> {
        let check = |pattern: &S| {
            let pattern = pattern.as_ref();
            let refuse = |reason| Err(ExclusionError { pattern: pattern.to_owned(), reason });
            match pattern {
                "/" => refuse("it would leave out everything"),
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

/// Plain recursive glob; depth is bounded by the length of the pattern.
fn glob(pattern: &[u8], path: &[u8]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((b'*', rest)) if rest.first() == Some(&b'*') => {
            let rest = rest.strip_prefix(b"*").unwrap_or(rest);
            (0..=path.len()).any(|at| glob(rest, &path[at..]))
        }
        Some((b'*', rest)) => {
            let stop = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
            (0..=stop).any(|at| glob(rest, &path[at..]))
        }
        Some((b'?', rest)) => path.split_first().is_some_and(|(b, tail)| *b != b'/' && glob(rest, tail)),
        Some((byte, rest)) => path.split_first().is_some_and(|(b, tail)| b == byte && glob(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(Exclusions::new(&["/"]).is_err());
    }
}
