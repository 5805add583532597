//! Which QEMU emulates the lab's servers.
//!
//! Debian's 7.2 can keep the translation of code that another processor has just changed, because it locks a page only after translating it; later ones lock it
//! first. Linux changes its own code whenever probes come and go, and there such a server falls over now and then with a jump to 0:
//! `docs/design/2026-11-24-panic-under-emulation.md`. So where the system's QEMU is older, the lab takes Debian's back-ported one, unpacked into the
//! cache and not installed. Replicas are run by the product and have the system's.

use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::accel::{self, Accelerator};
use super::debian::{self, Archive};
use super::{cache, command};

const SYSTEM: &str = "qemu-system-x86_64";
/// Older ones are not used. The change is in 8.1; this one has seen its mends.
const GOOD: (u32, u32) = (8, 2);
const RELEASE: &str = "bookworm-backports";
/// The emulator, and what it loads beside it.
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
/// Raise it to ask Debian for a newer one.
const VERSION: u32 = 1;
const ASK_LIMIT: Duration = Duration::from_secs(30);

/// The program that runs a server.
pub fn program() -> Result<&'static str> {
    static CHOSEN: OnceLock<String> = OnceLock::new();
    let accelerator = accel::choose()?;
    Ok(CHOSEN.get_or_init(|| choose(accelerator)))
}

/// Without a newer one, servers run on the system's, and that is said.
fn choose(accelerator: Accelerator) -> String {
    if accelerator == Accelerator::Kvm || version(SYSTEM).is_ok_and(|version| version >= GOOD) {
        return SYSTEM.into();
    }
    fetched().unwrap_or_else(|error| {
        eprintln!("lab: no newer emulator ({error:#}); a server may fall over when probes come and go");
        SYSTEM.into()
    })
}

fn fetched() -> Result<String> {
    let key = cache::key(&format!("{VERSION} {RELEASE} {PACKAGES:?} {:?}", debian::SOURCES));
    let folder = cache::entry(&format!("emulator-{key}"), |partial| {
        eprintln!("lab: fetching QEMU of {RELEASE} (once)");
        let scratch = std::env::temp_dir().join(format!("standin-emulator-{}", std::process::id()));
        let done = unpack(&scratch, partial);
        std::fs::remove_dir_all(&scratch).ok();
        done
    })?;
    let program = folder.join("usr/bin").join(SYSTEM).display().to_string();
    let (major, minor) = version(&program)?;
    ensure!((major, minor) >= GOOD, "{RELEASE} has QEMU {major}.{minor}");
    Ok(program)
}

fn unpack(scratch: &Path, root: &Path) -> Result<()> {
    let named: Vec<String> = PACKAGES.iter().map(|package| format!("{package}/{RELEASE}")).collect();
    Archive::open(scratch)?.unpack(&named.iter().map(String::as_str).collect::<Vec<_>>(), root)
}

fn version(program: &str) -> Result<(u32, u32)> {
    let said = command::checked(&mut command::command(&[program, "--version"]), ASK_LIMIT)?;
    parse(&said).with_context(|| format!("{program} says of its version: {}", said.trim()))
}

fn parse(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.strip_prefix("QEMU emulator version ")?.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b2)\nCopyright (c) 2003-2022\n";
        assert_eq!(parse(debian), Some((7, 2)));
        assert!(parse("QEMU emulator version 10.0.2 (Debian)").is_some_and(|version| version >= GOOD));
        assert!(parse(debian).is_some_and(|version| version < GOOD));
        assert_eq!(parse("not QEMU"), None);
    }
}
