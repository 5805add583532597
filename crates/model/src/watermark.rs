//! Watermarks: how far the stream has come, with one name everywhere (code, metrics, console).
//!
//! ```text
//! source: captured ≥ queued ≥ sent        target: received ≥ durable ≥ applied
//! ```

use crate::OpSeq;
use serde::{Deserialize, Serialize};
use thiserror::Error;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceWatermarks {
    /// Last item that has a place in the order.
    pub captured: OpSeq,
    /// Last item in a sealed segment of the queue.
    pub queued: OpSeq,
    /// Last item handed to the connection.
    pub sent: OpSeq,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetWatermarks {
    /// Last item that arrived whole.
    pub received: OpSeq,
    /// Last item that survives a power cut; only this is acknowledged.
    pub durable: OpSeq,
    /// Last item whose effect is in the replica.
    pub applied: OpSeq,
}

#[derive(Debug, Error, PartialEq, Eq)]
#[error("watermark {low_name}={low} is ahead of {high_name}={high}")]
pub struct WatermarkError {
    high_name: &'static str,
    high: OpSeq,
    low_name: &'static str,
    low: OpSeq,
}

fn ordered(high_name: &'static str, high: OpSeq, low_name: &'static str, low: OpSeq) -> Result<(), WatermarkError> {
    if high >= low { Ok(()) } else { Err(WatermarkError { high_name, high, low_name, low }) }
}

impl SourceWatermarks {
    pub fn check(&self) -> Result<(), WatermarkError> {
        ordered("captured", self.captured, "queued", self.queued)?;
        ordered("queued", self.queued, "sent", self.sent)
    }
}

impl TargetWatermarks {
    pub fn check(&self) -> Result<(), WatermarkError> {
        ordered("received", self.received, "durable", self.durable)?;
        ordered("durable", self.durable, "applied", self.applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_checked() {
        let good = TargetWatermarks { received: OpSeq(9), durable: OpSeq(9), applied: OpSeq(3) };
        assert_eq!(good.check(), Ok(()));
        let bad = TargetWatermarks { applied: OpSeq(10), ..good };
        assert_eq!(bad.check().unwrap_err().to_string(), "watermark applied=10 is ahead of durable=9");
        assert!(SourceWatermarks { captured: OpSeq(1), queued: OpSeq(2), sent: OpSeq(0) }.check().is_err());
    }
}
