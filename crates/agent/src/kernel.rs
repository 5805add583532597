//! What this server's kernel offers to capture: said at the agent's start, and to whoever asks with `standin-agent kernel`.
//!
//! About the file systems that are mounted: another's driver may not be loaded, and then its types cannot be read. Nothing here loads or attaches
//! anything; a start of capture compares again, and proves itself by a write.

use standin_capture::facts::{self, Offer};
use standin_capture::{CaptureError, mounts};
use standin_model::FileSystem;
use std::fmt::Write;

/// The kinds of file systems that are mounted and can be protected, each once.
fn mounted() -> Vec<FileSystem> {
    let kinds = [FileSystem::Ext4, FileSystem::Xfs, FileSystem::Btrfs];
    let mounts = mounts::read().unwrap_or_default();
    kinds.into_iter().filter(|kind| mounts.iter().any(|mount| mount.file_system == kind.as_str())).collect()
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// One line for each file system; a warning where something that is needed is missing, with all of it.
pub fn tell() {
    match facts::offers(&mounted()) {
        Ok(offers) => offers.iter().for_each(tell_offer),
        Err(error) => tracing::warn!(kernel = release(), code = error.code(), %error, "nothing can be captured on this kernel"),
    }
}

fn tell_offer(offer: &Offer) {
    let programs = offer.hooks.iter().map(|(_, program)| *program).collect::<Vec<_>>().join(" ");
    match reason(offer) {
        None => tracing::info!(kernel = release(), %offer, programs, "capture's hooks are all there"),
        Some(error) => {
            tracing::warn!(kernel = release(), code = error.code(), %offer, programs, "this file system cannot be captured on this kernel")
        }
    }
}

fn reason(offer: &Offer) -> Option<&CaptureError> {
    offer.missing.iter().map(|(_, error)| error).chain(&offer.obstacle).next()
}

/// The same for a person, hook by hook; false when something is missing.
pub fn describe() -> (String, bool) {
    let mut text = format!("kernel {}\n", release());
    let offers = match facts::offers(&mounted()) {
        Ok(offers) => offers,
        Err(error) => {
            let _ = writeln!(text, "{}: {error}", error.code());
            return (text, false);
        }
    };
    for offer in &offers {
        // Writing to a text cannot fail.
        let _ = describe_offer(&mut text, offer);
    }
    (text, offers.iter().all(|offer| reason(offer).is_none()))
}

fn describe_offer(text: &mut String, offer: &Offer) -> std::fmt::Result {
    let (offered, needed) = (offer.hooks.len(), offer.hooks.len() + offer.missing.len());
    writeln!(text, "{}: {offered} of {needed} hooks", offer.file_system.as_str())?;
    for (function, program) in &offer.hooks {
        writeln!(text, "  {function:<28} {program}")?;
    }
    for (function, error) in &offer.missing {
        writeln!(text, "  {function:<28} missing: {}: {error}", error.code())?;
    }
    offer.obstacle.iter().try_for_each(|error| writeln!(text, "  {}: {error}", error.code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_stands_with_its_code_and_reason() {
        let reason = || CaptureError::Unsupported { file_system: "xfs", reason: "it has no function iomap_write_end".into() };
        let offer = Offer {
            file_system: FileSystem::Xfs,
            hooks: vec![("vfs_rename", "name_vfs_rename")],
            missing: vec![("iomap_write_end", reason())],
            obstacle: None,
        };
        let mut text = String::new();
        describe_offer(&mut text, &offer).unwrap();
        assert!(text.starts_with("xfs: 1 of 2 hooks\n") && text.contains("name_vfs_rename\n"), "{text}");
        assert!(text.contains("missing: STANDIN-E6006") && text.contains("no function iomap_write_end"), "{text}");
        assert_eq!(super::reason(&offer).map(CaptureError::code), Some("STANDIN-E6006"));
    }
}
