//! Labels of SELinux. The first label of a new file is set inside the kernel where no operation tells of it, so a replica's newest files may have
//! none, and its policy would not let services read them. The guest's own start-up sets all labels anew where it finds this file.

use super::profile::BootRepairReport;
use super::{BootError, GuestRoot};

const CONFIG: &str = "/etc/selinux/config";
/// Looked for by selinux-autorelabel on every distribution that enables SELinux.
const REQUEST: &str = "/.autorelabel";

/// Has the guest label its files at its next start, if it uses labels.
pub fn relabel(guest: &GuestRoot, report: &mut BootRepairReport) -> Result<(), BootError> {
    let enabled = guest.text(CONFIG).is_some_and(|config| is_enabled(&config));
    if enabled && !guest.exists(REQUEST) {
        guest.write(REQUEST, b"")?;
        report.change(REQUEST, "made", "SELinux sets the labels of all files anew; labels of new files are not replicated");
    }
    Ok(())
}

fn is_enabled(config: &str) -> bool {
    let modes = config.lines().filter_map(|line| line.trim().strip_prefix("SELINUX="));
    modes.last().is_some_and(|mode| matches!(mode.trim(), "enforcing" | "permissive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_with_selinux_labels_its_files_anew() {
        for (config, wanted) in [
            (Some("# SELINUX= can take one of\nSELINUX=enforcing\nSELINUXTYPE=targeted\n"), true),
            (Some("SELINUX=permissive"), true),
            (Some("SELINUX=disabled\n"), false),
            (Some("#SELINUX=enforcing\n"), false),
            (None, false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(dir.path().join("etc/selinux")).unwrap();
            if let Some(config) = config {
                std::fs::write(dir.path().join("etc/selinux/config"), config).unwrap();
            }
            let guest = GuestRoot::open(dir.path()).unwrap();
            let mut report = BootRepairReport::default();
            relabel(&guest, &mut report).unwrap();
            assert_eq!((dir.path().join(".autorelabel").exists(), report.changes.len()), (wanted, usize::from(wanted)), "{config:?}");
            relabel(&guest, &mut report).unwrap();
            assert_eq!(report.changes.len(), usize::from(wanted), "once is enough");
        }
    }
}
