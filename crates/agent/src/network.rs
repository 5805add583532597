//! Which way the connection to the appliance goes, when the one that was ordered does not work.
//!
//! An order of the appliance may name an interface that this server does not have, or a proxy that refuses: the agent must not be cut off by it. So the
//! last way that worked is kept beside the one that is wanted. A wanted way is tried a few times, then in turn with the one that works, and the appliance is told.

use serde::{Deserialize, Serialize};
use standin_model::NetworkPath;
use standin_wire::Refusal;
use std::path::{Path, PathBuf};

const FILE: &str = "network.json";
/// Tries of a wanted way before the other one has its turn.
const TRIES: u32 = 3;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// Ordered by the appliance; `None` where it never ordered anything.
    wanted: Option<NetworkPath>,
    /// The last one that led to a welcome.
    proven: Option<NetworkPath>,
}

/// For an agent that is enrolled anew: what the appliance before has ordered means nothing any more.
pub fn forget(directory: &Path) {
    let _ = std::fs::remove_file(directory.join(FILE));
}

#[derive(Debug, Default)]
pub struct Ways {
    file: PathBuf,
    kept: Kept,
    /// Failures of the wanted way since it was ordered, or since this program began.
    failures: u32,
    /// What is being tried, or in use.
    tried: Option<NetworkPath>,
    trouble: Option<Refusal>,
}

impl Ways {
    /// What cannot be read is as if nothing had been ordered; the appliance orders it again.
    pub fn load(directory: &Path) -> Ways {
        let file = directory.join(FILE);
        let parse = |text: Vec<u8>| serde_json::from_slice::<Kept>(&text).inspect_err(|error| tracing::warn!(%error, "{FILE} is damaged"));
        let sound = |path: &NetworkPath| path.check().is_ok();
        let kept = std::fs::read(&file).ok().and_then(|text| parse(text).ok()).unwrap_or_default();
        let kept = Kept { wanted: kept.wanted.filter(sound), proven: kept.proven.filter(sound) };
        Ways { file, kept, ..Ways::default() }
    }

    fn save(&self) {
        let written = serde_json::to_vec_pretty(&self.kept).map_err(std::io::Error::other).and_then(|text| {
            standin_journal::durable::write_atomically(&self.file, &text).map_err(std::io::Error::other)?;
            // A proxy's password may be in it.
            std::fs::set_permissions(&self.file, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        });
        if let Err(error) = written {
            tracing::warn!(%error, "the way to the appliance cannot be kept; after a restart the one before is tried");
        }
    }

    /// The way for the next connection; `settings` is that of the enrolment.
    pub fn next(&mut self, settings: &NetworkPath) -> NetworkPath {
        let wanted = self.kept.wanted.as_ref().unwrap_or(settings);
        let proven = self.kept.proven.as_ref().unwrap_or(settings);
        let turn = self.failures >= TRIES && (self.failures - TRIES).is_multiple_of(2);
        let way = if turn { proven } else { wanted }.clone();
        self.tried = Some(way.clone());
        way
    }

    fn is_wanted(&self) -> bool {
        self.kept.wanted.is_none() || self.tried == self.kept.wanted
    }

    /// The way that was tried last led to a welcome.
    pub fn worked(&mut self) {
        if self.is_wanted() {
            (self.failures, self.trouble) = (0, None);
        }
        if self.kept.proven != self.tried {
            self.kept.proven = self.tried.clone();
            self.save();
        }
    }

    /// It did not.
    pub fn failed(&mut self, cause: &str) {
        // Where both are the same there is nothing to fall back to, and nothing to tell.
        if self.kept.wanted.is_none() || self.kept.wanted == self.kept.proven {
            return;
        }
        if self.is_wanted() && self.failures + 1 >= TRIES {
            let way = self.tried.as_ref().map(|way| serde_json::to_string(&way.redacted()).unwrap_or_default()).unwrap_or_default();
            let cause = format!("the way {way} does not lead to the appliance: {cause}");
            tracing::warn!(cause, code = "STANDIN-E1020", "back to the way before, and in turns");
            self.trouble = Some(Refusal::new("STANDIN-E1020", cause));
        }
        self.failures = self.failures.saturating_add(1);
    }

    /// The appliance's order. True when the connection has to be made again for it.
    pub fn order(&mut self, path: NetworkPath) -> bool {
        if let Err(error) = path.check() {
            self.trouble = Some(Refusal::new("STANDIN-E4104", error.to_string()));
            return false;
        }
        if self.kept.wanted.as_ref() == Some(&path) {
            // It is in use, or has just failed; then it has its turn when this connection ends.
            return false;
        }
        let same = self.tried.as_ref() == Some(&path);
        self.kept.wanted = Some(path);
        (self.failures, self.trouble) = (0, None);
        self.save();
        !same
    }

    pub fn trouble(&self) -> Option<Refusal> {
        self.trouble.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(source: &str) -> NetworkPath {
        NetworkPath { source: Some(source.into()), ..NetworkPath::default() }
    }

    #[test]
    fn a_way_that_does_not_work_is_left_told_and_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let settings = NetworkPath::default();
        let mut ways = Ways::load(directory.path());
        assert_eq!(ways.next(&settings), settings);
        ways.worked();
        assert!(!ways.order(settings.clone()), "that is the one in use");
        assert!(ways.order(from("eth9")));
        for _ in 0..TRIES {
            assert_eq!((ways.next(&settings), ways.trouble()), (from("eth9"), None));
            ways.failed("no such device");
        }
        // In turns now, and the appliance hears why.
        assert_eq!(ways.next(&settings), settings);
        ways.worked();
        let trouble = ways.trouble().unwrap();
        assert!(trouble.code == "STANDIN-E1020" && trouble.cause.contains("eth9") && trouble.cause.contains("no such device"));
        assert!(!ways.order(from("eth9")), "the same order again changes nothing");
        // A restart tries the wanted one first; when it works at last, all is well.
        let mut ways = Ways::load(directory.path());
        assert_eq!(ways.next(&settings), from("eth9"));
        ways.worked();
        assert_eq!((ways.trouble(), Ways::load(directory.path()).kept.proven), (None, Some(from("eth9"))));
    }

    #[test]
    fn both_ways_have_their_turn_while_the_link_is_down() {
        let directory = tempfile::tempdir().unwrap();
        let settings = NetworkPath::default();
        let mut ways = Ways::load(directory.path());
        ways.next(&settings);
        ways.worked();
        ways.order(from("eth1"));
        let tried: Vec<bool> = (0..9)
            .map(|_| {
                let wanted = ways.next(&settings) == from("eth1");
                ways.failed("down");
                wanted
            })
            .collect();
        assert_eq!(tried, [true, true, true, false, true, false, true, false, true]);
    }

    #[test]
    fn orders_that_mean_nothing_are_refused_and_broken_files_ignored() {
        let directory = tempfile::tempdir().unwrap();
        let mut ways = Ways::load(directory.path());
        assert!(!ways.order(from("not an interface")));
        assert_eq!(ways.trouble().unwrap().code, "STANDIN-E4104");
        std::fs::write(directory.path().join(FILE), "{").unwrap();
        assert_eq!(Ways::load(directory.path()).kept, Kept::default());
        std::fs::write(directory.path().join(FILE), r#"{"wanted":{"source":"a b"},"proven":{}}"#).unwrap();
        let kept = Ways::load(directory.path()).kept;
        assert_eq!((kept.wanted, kept.proven), (None, Some(NetworkPath::default())));
    }
}
