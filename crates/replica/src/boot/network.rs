//! Keeps the guest's network working on another card: names by hardware address, and addresses in its configuration.

use super::profile::{BootRepairReport, NicMap};
use super::{BootError, GuestRoot};

/// Directories whose files may match a card by its hardware address.
const PLACES: [&str; 6] = [
    "/etc/netplan",
    "/etc/systemd/network",
    "/etc/network",
    "/etc/network/interfaces.d",
    "/etc/NetworkManager/system-connections",
    "/etc/sysconfig/network-scripts",
];
const PERSISTENT_RULES: [&str; 2] = ["/etc/udev/rules.d/70-persistent-net.rules", "/etc/udev/rules.d/70-persistent-cd.rules"];

/// The udev link file that gives the replica's card the source's name. `None` for values that no kernel would show.
fn link_file(nic: &NicMap) -> Option<String> {
    let name_ok = !nic.name.is_empty() && nic.name.len() < 16 && nic.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    (name_ok && is_mac(&nic.new_mac)).then(|| {
        format!(
            "# Made by Standin: the card keeps the name that it had on the source.\n[Match]\nMACAddress={}\n\n[Link]\nName={}\n",
            nic.new_mac, nic.name
        )
    })
}

fn is_mac(text: &str) -> bool {
    let groups: Vec<&str> = text.split(':').collect();
    groups.len() == 6 && groups.iter().all(|group| group.len() == 2 && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Replaces a hardware address wherever it stands, in either case.
pub(super) fn replace_mac(text: &str, old: &str, new: &str) -> Option<String> {
    let (lower, needle) = (text.to_ascii_lowercase(), old.to_ascii_lowercase());
    let mut out = String::new();
    let mut at = 0;
    while let Some(found) = lower.get(at..)?.find(&needle) {
        out.push_str(text.get(at..at + found)?);
        out.push_str(new);
        at += found + needle.len();
    }
    (at > 0).then(|| out + text.get(at..).unwrap_or_default())
}

/// Applies all of it.
pub fn repair(guest: &GuestRoot, nics: &[NicMap], report: &mut BootRepairReport) -> Result<(), BootError> {
    for nic in nics {
        let Some(text) = link_file(nic) else {
            report.warnings.push(format!("the card `{}` has an unusable name or address and was left alone", nic.name.escape_default()));
            continue;
        };
        let path = format!("/etc/systemd/network/10-standin-{}.link", nic.name);
        if guest.text(&path).as_deref() != Some(&text) {
            guest.write(&path, text.as_bytes())?;
            report.change(&path, format!("names the card {} `{}`", nic.new_mac, nic.name), "another PCI slot would give it another name");
        }
    }
    for path in PERSISTENT_RULES {
        if guest.exists(path) {
            let name = path.rsplit('/').next().unwrap_or(path);
            guest.rename(path, &format!("{name}.standin-original"))?;
            report.change(path, "set aside", "it ties names to the source's own devices");
        }
    }
    for nic in nics.iter().filter(|nic| is_mac(&nic.old_mac) && is_mac(&nic.new_mac) && !nic.old_mac.eq_ignore_ascii_case(&nic.new_mac)) {
        change_address(guest, nic, report)?;
    }
    Ok(())
}

fn change_address(guest: &GuestRoot, nic: &NicMap, report: &mut BootRepairReport) -> Result<(), BootError> {
    for place in PLACES {
        for name in guest.list(place).iter().filter(|name| !name.contains(".standin-")) {
            let path = format!("{place}/{name}");
            let Some(old) = guest.text(&path) else { continue };
            if let Some(new) = replace_mac(&old, &nic.old_mac, &nic.new_mac) {
                guest.replace(&path, old.as_bytes(), new.as_bytes())?;
                report.change(&path, format!("{} becomes {}", nic.old_mac, nic.new_mac), "the replica's card has another address");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_replaced_in_either_case() {
        let text = "match:\n  macaddress: 52:54:00:AA:bb:cc\n";
        let new = replace_mac(text, "52:54:00:aa:bb:cc", "52:54:00:00:00:01").unwrap();
        assert_eq!(new, "match:\n  macaddress: 52:54:00:00:00:01\n");
        assert!(replace_mac(&new, "52:54:00:aa:bb:cc", "x").is_none());
        assert!(replace_mac("é52:54:00:aa:bb:cc", "52:54:00:aa:bb:cc", "n").unwrap().ends_with('n'));
    }

    #[test]
    fn hostile_names_make_no_file() {
        let nic = |name: &str, mac: &str| NicMap { name: name.into(), old_mac: mac.into(), new_mac: mac.into() };
        assert!(link_file(&nic("eth0", "52:54:00:aa:bb:cc")).is_some());
        assert!(link_file(&nic("../x", "52:54:00:aa:bb:cc")).is_none());
        assert!(link_file(&nic("eth0", "x\n[Link]")).is_none());
    }
}
