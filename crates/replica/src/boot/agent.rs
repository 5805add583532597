//! Makes sure that a launched replica never acts as its source's agent.
//!
//! The replica is a copy of a server on which the agent is enabled and enrolled. Started again it would call the appliance under the source's name. So the
//! links that start the unit are removed, and the identity is set aside; nothing is deleted, and either alone would be enough.

use super::profile::BootRepairReport;
use super::{BootError, GuestRoot};

/// The unit that `standin source add` installs and enables.
const UNIT: &str = "standin-agent.service";
const UNIT_HOMES: [&str; 4] = ["/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];
/// Where the agent keeps its identity unless its unit says otherwise.
const STATE_DIRECTORY: &str = "/var/lib/standin-agent";
/// Appended to the name of a state directory that was set aside; a second one gets a number.
const ASIDE: &str = "standin-source";
const ASIDE_MAX: u32 = 1000;

/// Applies both halves. What is not there is not missed.
pub fn disable(guest: &GuestRoot, report: &mut BootRepairReport) -> Result<(), BootError> {
    let mut directories = vec![STATE_DIRECTORY.to_owned()];
    for home in UNIT_HOMES {
        directories.extend(guest.text(&format!("{home}/{UNIT}")).iter().flat_map(|unit| state_directories(unit)));
        for wanting in guest.list(home).iter().filter(|name| name.ends_with(".wants") || name.ends_with(".requires")) {
            let link = format!("{home}/{wanting}/{UNIT}");
            if guest.unlink(&link)? {
                report.change(link, "removed", "a launched replica must not start the source's agent");
            }
        }
    }
    directories.sort();
    directories.dedup();
    for directory in directories {
        set_aside(guest, &directory, report);
    }
    Ok(())
}

/// A directory that cannot be renamed (a volume of its own) is warned of: without its links the unit does not start, and the appliance refuses it.
fn set_aside(guest: &GuestRoot, directory: &str, report: &mut BootRepairReport) {
    // The stream leaves the agent's own state out, so that the directory is there and empty as a rule.
    if guest.list(directory).is_empty() {
        return;
    }
    let name = directory.rsplit('/').next().unwrap_or_default();
    let parent = directory.strip_suffix(name).unwrap_or_default();
    let candidates = (1..ASIDE_MAX).map(|number| if number == 1 { format!("{name}.{ASIDE}") } else { format!("{name}.{ASIDE}.{number}") });
    let free = candidates.into_iter().find(|candidate| !guest.exists(&format!("{parent}{candidate}")));
    let renamed = free.map(|aside| guest.rename(directory, &aside).map(|()| aside));
    match renamed {
        Some(Ok(aside)) => {
            report.change(directory, format!("set aside as {aside}"), "a replica must not have the identity of the source's agent");
        }
        Some(Err(error)) => report.warnings.push(format!("the identity of the source's agent stays in {directory}: {error}")),
        None => report.warnings.push(format!("the identity of the source's agent stays in {directory}: too many were set aside before")),
    }
}

/// State directories that a unit's command line names. Only plain absolute paths below a directory: the text comes from the source.
pub(super) fn state_directories(unit: &str) -> Vec<String> {
    let commands = unit.lines().filter_map(|line| line.trim().strip_prefix("ExecStart"));
    let words: Vec<&str> = commands.flat_map(|command| command.split_whitespace()).collect();
    let after = words.windows(2).filter(|pair| pair[0] == "--state-dir").map(|pair| pair[1]);
    let within = words.iter().filter_map(|word| word.strip_prefix("--state-dir="));
    let plain = |path: &&str| {
        let path = path.trim_end_matches('/');
        path.starts_with('/') && path.matches('/').count() >= 2 && !path.split('/').any(|part| part == "." || part == "..")
    };
    let found = after.chain(within).map(|path| path.trim_matches(['"', '\''])).filter(plain);
    found.map(|path| path.trim_end_matches('/').to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// The very unit that `standin source add` installs.
    const INSTALLED: &str = include_str!("../../../cli/src/command/standin-agent.service");

    fn guest(dir: &std::path::Path, unit: &str, state: &str) -> GuestRoot {
        let system = dir.join("etc/systemd/system");
        std::fs::create_dir_all(system.join("multi-user.target.wants")).unwrap();
        std::fs::create_dir_all(dir.join(state)).unwrap();
        std::fs::write(system.join(UNIT), unit).unwrap();
        symlink(format!("/etc/systemd/system/{UNIT}"), system.join("multi-user.target.wants").join(UNIT)).unwrap();
        symlink("/lib/systemd/system/cron.service", system.join("multi-user.target.wants/cron.service")).unwrap();
        GuestRoot::open(dir).unwrap()
    }

    #[test]
    fn the_installed_unit_is_disabled_and_its_identity_set_aside_once() {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest(dir.path(), INSTALLED, "var/lib/standin-agent");
        std::fs::write(dir.path().join("var/lib/standin-agent/agent.pem"), "identity").unwrap();
        let mut report = BootRepairReport::default();
        disable(&guest, &mut report).unwrap();
        let changed: Vec<_> = report.changes.iter().map(|change| change.path.as_str()).collect();
        assert_eq!(changed, ["/etc/systemd/system/multi-user.target.wants/standin-agent.service", "/var/lib/standin-agent"]);
        let wants = dir.path().join("etc/systemd/system/multi-user.target.wants");
        assert!(!wants.join(UNIT).is_symlink() && wants.join("cron.service").is_symlink());
        assert!(dir.path().join("var/lib/standin-agent.standin-source/agent.pem").exists());
        assert!(!dir.path().join("var/lib/standin-agent").exists());

        let mut again = BootRepairReport::default();
        disable(&guest, &mut again).unwrap();
        assert!(again.changes.is_empty(), "{:?}", again.changes);
    }

    #[test]
    fn another_state_directory_is_found_in_the_unit() {
        let dir = tempfile::tempdir().unwrap();
        let guest = guest(dir.path(), "[Service]\nExecStart=/opt/standin-agent run --state-dir=/srv/agent/\n", "srv/agent");
        std::fs::write(dir.path().join("srv/agent/agent.pem"), "identity").unwrap();
        std::fs::create_dir(dir.path().join("srv/agent.standin-source")).unwrap();
        disable(&guest, &mut BootRepairReport::default()).unwrap();
        assert!(dir.path().join("srv/agent.standin-source.2/agent.pem").exists());
    }

    #[test]
    fn what_a_hostile_unit_names_stays_alone() {
        for path in ["/etc", "/", "relative", "/var/../etc", "/var/./x"] {
            assert!(state_directories(&format!("ExecStart=x --state-dir {path}\n")).is_empty(), "{path}");
        }
        assert_eq!(state_directories("ExecStart=x --state-dir \"/var/lib/y\"\n"), ["/var/lib/y"]);
        assert!(state_directories("# --state-dir /var/lib/y\n").is_empty());
    }
}
