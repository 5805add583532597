//! Kinded ids: one macro makes them, so that a job id can never be passed where a volume id is meant.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes an id from 8 random bytes that the caller provides (this crate has no randomness).
            pub fn from_random(bytes: [u8; 8]) -> Self {
                Self(format!("{}-{:016x}", $prefix, u64::from_be_bytes(bytes)))
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
            /// Parses the printed form; `None` when it is not one.
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.strip_prefix(concat!($prefix, "-"))?;
                let hex = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                hex.then(|| Self(text.to_owned()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text).ok_or_else(|| format!("not a {} id: {text:?}", $prefix))
            }
        }
        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

text_id!(
    /// One protected server on one replica.
    JobId,
    "job"
);
text_id!(
    /// One installed and enrolled agent; it is the common name of the agent's certificate.
    AgentId,
    "agent"
);

/// One protected file system of a job, numbered in the order of the job's volume list. Volume 0 holds `/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub u16);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vol{}", self.0)
    }
}

/// A file, directory, symlink, device, … of the source, independent of its names.
///
/// `subvolume` is the root id on btrfs, where inode numbers repeat per subvolume, and 0 elsewhere. `generation` tells reuses of an inode
/// number apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    pub volume: VolumeId,
    pub subvolume: u64,
    pub inode: u64,
    pub generation: u32,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.volume)?;
        if self.subvolume != 0 {
            write!(f, "{}/", self.subvolume)?;
        }
        write!(f, "{}.{:08x}", self.inode, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_their_printed_form() {
        let id = JobId::from_random([1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(id.to_string(), "job-0102030405060708");
        assert_eq!(JobId::parse(id.as_str()), Some(id));
    }

    #[test]
    fn an_id_of_another_kind_is_refused() {
        for text in ["agent-0102030405060708", "job-", "job-01020304050607ZZ", "job-../../etc/passwd", "job-01020304050607080"] {
            assert_eq!(JobId::parse(text), None, "{text}");
        }
        assert!(serde_json::from_str::<JobId>("\"job-x\"").is_err());
    }
}
