//! Exclusion rules: globs of absolute source paths, decided once per node while walking and when a node is created.
//!
//! A rule that matches a directory keeps the directory and leaves out its contents; a rule that matches anything else leaves out the name.
//! `*` and `?` do not cross a slash; `**` does, and `/**/` is any number of directories, also none.

use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("exclusion {pattern:?} is not usable: {reason}")]
pub struct ExclusionError {
    pub pattern: String,
    pub reason: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    globs: Vec<Glob>,
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
                p => Ok(Glob::new(p.trim_end_matches('/').as_bytes())),
            }
        };
        Ok(Exclusions { globs: patterns.iter().map(check).collect::<Result<_, _>>()? })
    }

    pub fn is_empty(&self) -> bool {
        self.globs.is_empty()
    }

    pub fn matches(&self, path: &[u8]) -> bool {
        self.find(path).is_some()
    }

    /// The first rule that matches, by its place in the list.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        self.globs.iter().position(|glob| glob.matches(path))
    }

    /// Whether the rules say the same of one directory as of the other, and of what is below it, whatever that is.
    pub fn agree(&self, one: &[u8], other: &[u8]) -> bool {
        let places = |glob: &Glob, path: &[u8]| glob.places(&[path, b"/"].concat());
        self.globs.iter().all(|glob| glob.matches(one) == glob.matches(other) && places(glob, one) == places(glob, other))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Some,
    /// `**`
    Any,
    /// `**/` behind a slash: nothing, or what ends with a slash.
    Directories,
}

/// Most paths part from a pattern before its first star, and need no list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Glob {
    literal: Vec<u8>,
    tokens: Vec<Token>,
}

impl Glob {
    fn new(pattern: &[u8]) -> Glob {
        let plain = pattern.iter().position(|byte| matches!(byte, b'*' | b'?')).unwrap_or(pattern.len());
        let (literal, mut rest) = pattern.split_at(plain);
        let mut tokens = Vec::new();
        let mut before = literal.last().copied();
        while let Some((first, tail)) = rest.split_first() {
            let (token, len) = match (first, tail) {
                (b'*', [b'*', b'/', ..]) if before == Some(b'/') => (Token::Directories, 3),
                (b'*', [b'*', ..]) => (Token::Any, 2),
                (b'*', _) => (Token::Some, 1),
                (b'?', _) => (Token::One, 1),
                (byte, _) => (Token::Byte(*byte), 1),
            };
            tokens.push(token);
            before = rest.get(len - 1).copied();
            rest = rest.get(len..).unwrap_or_default();
        }
        Glob { literal: literal.to_vec(), tokens }
    }

    fn matches(&self, path: &[u8]) -> bool {
        let Some(path) = path.strip_prefix(self.literal.as_slice()) else { return false };
        let mut reached = start(path);
        self.tokens.iter().for_each(|token| advance(*token, path, &mut reached));
        reached[path.len()]
    }

    /// Every place of the pattern to which this beginning of a path can have led: what follows is decided by these alone.
    fn places(&self, beginning: &[u8]) -> Vec<bool> {
        let literal = self.literal.iter().map(|byte| Token::Byte(*byte));
        let mut reached = start(beginning);
        let place = |token: Token| {
            advance(token, beginning, &mut reached);
            reached[beginning.len()]
        };
        literal.chain(self.tokens.iter().copied()).map(place).collect()
    }
}

/// `reached[at]`: the pattern so far, which is nothing, matches the first `at` bytes.
fn start(path: &[u8]) -> Vec<bool> {
    let mut reached = vec![false; path.len() + 1];
    reached[0] = true;
    reached
}

/// Walks the pattern once, with all places of the path that the pattern so far can have come to: time is the product of both lengths, however many
/// stars there are.
fn advance(token: Token, path: &[u8], reached: &mut [bool]) {
    match token {
        Token::Some | Token::Any => {
            for (at, byte) in path.iter().enumerate() {
                reached[at + 1] |= reached[at] && (token == Token::Any || *byte != b'/');
            }
        }
        Token::Directories => {
            let mut begun = false;
            for (at, byte) in path.iter().enumerate() {
                begun |= reached[at];
                reached[at + 1] |= begun && *byte == b'/';
            }
        }
        Token::Byte(_) | Token::One => {
            for (at, byte) in path.iter().enumerate().rev() {
                let fits = if let Token::Byte(wanted) = token { *byte == wanted } else { *byte != b'/' };
                reached[at + 1] = reached[at] && fits;
            }
            reached[0] = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_fuzz::{Script, TIME, check, within};

    /// The rule as it reads, without regard to time: for patterns so short that this does not matter.
    fn reads(pattern: &[u8], path: &[u8]) -> bool {
        match (pattern, path) {
            ([b'/', b'*', b'*', b'/', ..], [b'/', ..]) => (0..path.len()).any(|at| path[at] == b'/' && reads(&pattern[3..], &path[at..])),
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
            assert_eq!(Glob::new(&pattern).matches(&path), reads(&pattern, &path), "{} on {}", pattern.escape_ascii(), path.escape_ascii());
            // Long ones only have to end: 500 stars meet 2,000 letters.
            let (pattern, path) = ([&pattern[..], &b"*a".repeat(500), b"b"].concat(), [&path[..], &[b'a'; 2000]].concat());
            let _ = within(8192, || Glob::new(&pattern).matches(&path));
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
        check("/srv/**/tmp", "/srv/tmp", true);
        check("/srv/**/tmp", "/srvtmp", false);
        check("/srv/**/tmp", "/srv/atmp", false);
        check("/**/x", "/x", true);
        check("/**/x", "/a/b/x", true);
        check("/**/x", "/a/yx", false);
        check("/a**/x", "/ab/c/x", true);
        check("/srv/**", "/srv/a/b", true);
        check("/srv/**", "/srv", false);
        check("/var/log/*.?z", "/var/log/syslog.gz", true);
    }

    #[test]
    fn useless_patterns_are_refused() {
        assert!(Exclusions::new(&["relative"]).is_err());
        assert!(Exclusions::new(&["/"]).is_err() && Exclusions::new(&["//"]).is_err() && Exclusions::new(&[""]).is_err());
    }

    /// Against the dumb question: whether any short path is decided differently below the two.
    #[test]
    fn rules_that_agree_about_two_directories_decide_alike_there() {
        check!(name = "exclusion_agreement").with_test_time(TIME).for_each(|bytes| {
            let mut script = Script::new(bytes);
            let letters = b"ab/*?*";
            let mut text = |len: usize, of: usize| {
                let letter = |byte: &u8| letters[usize::from(*byte) % of];
                [vec![b'/'], script.bytes(len).iter().map(letter).collect()].concat()
            };
            let (pattern, one, other, tail) = (text(8, letters.len()), text(4, 3), text(4, 3), text(4, 3));
            let Ok(rules) = Exclusions::new(&[String::from_utf8_lossy(&pattern)]) else { return };
            let decide = |directory: &[u8]| rules.matches(&[directory, &tail].concat());
            assert!(!rules.agree(&one, &other) || decide(&one) == decide(&other), "{}", pattern.escape_ascii());
        });
        let agree = |rule: &str, one: &str, other: &str| Exclusions::new(&[rule]).unwrap().agree(one.as_bytes(), other.as_bytes());
        assert!(agree("/var/cache", "/home", "/srv") && agree("/**/x", "/home", "/srv/deep"));
        assert!(!agree("/var/cache", "/home", "/var") && !agree("/srv/*/cache", "/srv/a", "/data/a"));
    }
}
