//! What the agent takes from its server besides the file systems: what the server is made of, and the capture of its changes.
//!
//! The product has one, [`LiveHost`]. The lab has another, for machines whose kernel cannot capture: it measures everything behind the ring.

use crate::driver;
use crate::settings::Driver;
use anyhow::Result;
use standin_capture::{CaptureConfig, CaptureSource};
use standin_model::Inventory;

pub trait Host: Send {
    fn inventory(&self) -> Result<Inventory>;
    /// Starts capture; when this returns, every change from here on is seen.
    fn capture(&self, config: &CaptureConfig, driver: Driver) -> Result<Box<dyn CaptureSource + Send>>;
}

/// This server, captured in its kernel.
pub struct LiveHost;

impl Host for LiveHost {
    fn inventory(&self) -> Result<Inventory> {
        crate::inventory::read()
    }

    fn capture(&self, config: &CaptureConfig, driver: Driver) -> Result<Box<dyn CaptureSource + Send>> {
        Ok(driver::start(config, driver)?)
    }
}
