//! Makes the appliance a service of systemd, so that it is there after a reboot of its host and machines outlive its own restarts.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::Command;

const TEMPLATE: &str = include_str!("standin-appliance.service");
const UNIT: &str = "standin-appliance.service";
const UNIT_PATH: &str = "/etc/systemd/system/standin-appliance.service";

/// The unit that runs `command`, once the file systems of `directories` are mounted.
pub fn text(command: &[String], directories: &[&Path]) -> String {
    let quoted = |words: &mut dyn Iterator<Item = String>| words.map(|word| quote(&word)).collect::<Vec<_>>().join(" ");
    let mounts = quoted(&mut directories.iter().map(|path| path.display().to_string()));
    TEMPLATE.replace("@MOUNTS@", &mounts).replace("@COMMAND@", &quoted(&mut command.iter().map(|word| word.replace('$', "$$"))))
}

/// As systemd.syntax(7) and systemd.unit(5) want it: `%` begins a specifier.
fn quote(word: &str) -> String {
    format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

pub fn install(text: &str) -> Result<()> {
    let path = Path::new(UNIT_PATH);
    let failed = "STANDIN-E5012: the service was not installed. Next: standin-appliance service --print";
    ensure!(path.parent().is_some_and(Path::is_dir), "{failed}: this host has no /etc/systemd/system");
    standin_journal::durable::write_atomically(path, text.as_bytes()).with_context(|| format!("{failed}: writing {UNIT_PATH}"))?;
    for words in [&["daemon-reload"][..], &["enable", "--now", UNIT]] {
        let status = Command::new("systemctl").args(words).status().with_context(|| format!("{failed}: running systemctl"))?;
        ensure!(status.success(), "{failed}: `systemctl {}` ended with {status}", words.join(" "));
    }
    println!("{UNIT} is installed and runs; look with: systemctl status {UNIT}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> String {
        let command = ["/bin/true", "serve", "--dir", "/srv/a b%c$d\"e"].map(str::to_owned);
        text(&command, &[Path::new("/srv/a b%c$d\"e"), Path::new("/data")])
    }

    #[test]
    fn a_restart_leaves_machines_alone_and_paths_stay_whole() {
        let unit = made();
        assert!(unit.lines().any(|line| line == "KillMode=process"), "{unit}");
        assert!(unit.contains(r#"ExecStart="/bin/true" "serve" "--dir" "/srv/a b%%c$$d\"e""#), "{unit}");
        assert!(unit.contains(r#"RequiresMountsFor="/srv/a b%%c$d\"e" "/data""#), "{unit}");
    }

    #[test]
    fn systemd_takes_the_unit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(UNIT);
        std::fs::write(&path, made()).unwrap();
        let Ok(output) = Command::new("systemd-analyze").arg("verify").arg(&path).output() else {
            return eprintln!("SKIPPED: systemd-analyze is not installed");
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains(UNIT), "{said}");
    }
}
