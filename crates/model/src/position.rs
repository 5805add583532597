//! Positions and sizes as newtypes: an offset in a file is never added to an offset in the journal.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! position {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

position!(
    /// Place of an item in the one total order of a job's stream. The first item is 1; 0 means "before everything".
    OpSeq
);
position!(
    /// Byte position in the journal of a job, counted from its very first segment.
    JournalOffset
);
position!(
    /// Byte position in a file.
    ByteOffset
);
position!(
    /// A length in bytes.
    ByteLen
);

impl OpSeq {
    pub const ZERO: OpSeq = OpSeq(0);
    /// The position behind this one. An order of 2^64 items cannot be reached, so running over is a bug.
    pub fn next(self) -> OpSeq {
        OpSeq(self.0.checked_add(1).expect("operation order exhausted"))
    }
}

impl ByteOffset {
    /// End of a range that starts here, or `None` when it runs over.
    pub fn checked_add(self, len: ByteLen) -> Option<ByteOffset> {
        self.0.checked_add(len.0).map(ByteOffset)
    }
}
