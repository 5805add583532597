//! How far a job's mirror is and when it will be over, from what the agent's status says every second.

use crate::job::SourceStatus;
use serde_json::{Value, json};
use standin_model::Timestamp;
use standin_protection::{Estimator, Work};
use standin_wire::{MirrorProgress, VolumeProgress};
use std::collections::BTreeMap;

/// A source has a few volumes; what a hostile one claims has a bound.
const VOLUMES_MAX: usize = 64;

/// The speeds of one mirror.
#[derive(Clone, Debug, Default)]
pub struct MirrorSpeed {
    all: Estimator,
    volumes: BTreeMap<String, Estimator>,
}

impl MirrorSpeed {
    /// A resync goes through all nodes, and reads few: only nodes are work. Nothing is remembered of a mirror that is over.
    pub fn note(&mut self, at: Timestamp, mirror: Option<&MirrorProgress>, is_resync: bool) {
        let Some(mirror) = mirror else { return *self = MirrorSpeed::default() };
        let work = |bytes, nodes| Work::new(if is_resync { (0, 0) } else { bytes }, nodes);
        self.all.note(at, work((mirror.bytes_done, mirror.bytes_total), (mirror.nodes_done, mirror.nodes_total_estimate)));
        self.volumes.retain(|at, _| mirror.volumes.iter().any(|volume| volume.mount_point == *at));
        for volume in mirror.volumes.iter().take(VOLUMES_MAX) {
            let done = work((volume.bytes_done, volume.bytes_total), (volume.nodes_done, volume.nodes_total));
            self.volumes.entry(volume.mount_point.clone()).or_default().note(at, done);
        }
    }

    /// What an operator sees: `expected` are bytes and nodes by the protection summary, for an agent that does not know.
    pub fn view(&self, source: &SourceStatus, expected: (u64, u64)) -> Value {
        let Some(mirror) = &source.mirror else {
            return json!({"running": false, "bytes": 0, "nodes": 0, "bytes_expected": expected.0, "nodes_expected": expected.1, "left": null, "volumes": []});
        };
        let known = |total: u64, expected: u64| if total == 0 { expected } else { total };
        let volume = |volume: &VolumeProgress| {
            json!({
                "mount_point": volume.mount_point,
                "bytes": volume.bytes_done, "nodes": volume.nodes_done,
                "bytes_expected": volume.bytes_total, "nodes_expected": volume.nodes_total,
                "left": self.volumes.get(&volume.mount_point).and_then(Estimator::estimate),
            })
        };
        json!({
            "running": true, "bytes": mirror.bytes_done, "nodes": mirror.nodes_done,
            "bytes_expected": known(mirror.bytes_total, expected.0),
            "nodes_expected": known(mirror.nodes_total_estimate, expected.1),
            "left": self.all.estimate(),
            "volumes": mirror.volumes.iter().take(VOLUMES_MAX).map(volume).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use standin_wire::MirrorPhase;

    fn progress(done: u64) -> MirrorProgress {
        let volume = |mount_point: &str, done, total| VolumeProgress {
            mount_point: mount_point.into(),
            nodes_done: 0,
            nodes_total: 0,
            bytes_done: done,
            bytes_total: total,
        };
        let volumes = vec![volume("/", done / 2, 5_000_000), volume("/data", done / 2, 1_000_000)];
        MirrorProgress {
            phase: MirrorPhase::Content,
            nodes_done: 0,
            nodes_total_estimate: 0,
            bytes_done: done,
            bytes_total: 6_000_000,
            volumes,
        }
    }

    #[test]
    fn a_mirror_and_each_of_its_volumes_have_a_time_left() {
        let mut speed = MirrorSpeed::default();
        let mut source = SourceStatus::default();
        for second in 0..61u64 {
            let mirror = progress(second * 10_000);
            speed.note(Timestamp(second as i64 * 1_000_000_000), Some(&mirror), false);
            source.mirror = Some(mirror);
        }
        let view = speed.view(&source, (7, 8));
        assert_eq!(view["left"]["likely"], 540);
        assert_eq!(view["volumes"][0]["left"]["likely"], 940);
        assert_eq!(view["volumes"][1]["left"]["likely"], 140);
        assert_eq!((&view["bytes_expected"], &view["nodes_expected"]), (&json!(6_000_000), &json!(8)));
        speed.note(Timestamp(0), None, false);
        source.mirror = None;
        assert_eq!(speed.view(&source, (7, 8))["left"], Value::Null);
    }
}
