//! A capture source that plays what a test wrote down.

use crate::{CaptureEvent, CaptureSource, CaptureStats, Sink};
use std::{collections::VecDeque, io, time::Duration};

/// Events in order; `barrier` and `drain` hand out everything that was pushed so far.
#[derive(Debug, Default)]
pub struct ScriptedCapture {
    events: VecDeque<CaptureEvent>,
    stats: CaptureStats,
}

impl ScriptedCapture {
    pub fn push(&mut self, event: CaptureEvent) {
        self.events.push_back(event);
    }
}

impl CaptureSource for ScriptedCapture {
    fn drain(&mut self, sink: Sink<'_>) {
        while let Some(event) = self.events.pop_front() {
            self.stats.records += 1;
            self.stats.operations += u64::from(matches!(event, CaptureEvent::Operation { .. }));
            sink(event);
        }
    }
    fn barrier(&mut self, sink: Sink<'_>) {
        self.drain(sink);
    }
    fn wait(&mut self, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }
    fn stats(&self) -> CaptureStats {
        self.stats.clone()
    }
    fn pending_mapped(&self) -> usize {
        0
    }
    fn flush_mapped(&mut self, _older_than: Duration) -> usize {
        0
    }
}
