//! Packages of Debian's archive, unpacked and not installed: fetched by an apt of its own, checked with Debian's keys.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::command;

const LIMIT: Duration = Duration::from_secs(300);
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
pub const SOURCES: &[(&str, &str)] = &[
    ("http://deb.debian.org/debian", "bookworm"),
    ("http://deb.debian.org/debian-security", "bookworm-security"),
    ("http://deb.debian.org/debian", "bookworm-backports"),
];

/// The archive as it is now. The host's sources stay as they are, and its lists are not touched.
pub struct Archive {
    folder: PathBuf,
    options: Vec<String>,
}

impl Archive {
    /// What is fetched comes into `folder`.
    pub fn open(folder: &Path) -> Result<Archive> {
        let source = |(address, release): &(&str, &str)| format!("deb [signed-by={KEYRING}] {address} {release} main\n");
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        fs::write(folder.join("sources.list"), SOURCES.iter().map(source).collect::<String>())?;
        let here = folder.display();
        let settings = [
            format!("Dir::Etc::sourcelist={here}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            "Dir::Etc::preferencesparts=/dev/null".into(),
            format!("Dir::State::lists={here}/lists"),
            format!("Dir::Cache={here}/cache"),
            // The folder is root's own.
            "APT::Sandbox::User=root".into(),
        ];
        let options = settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]).collect();
        let archive = Archive { folder: folder.to_owned(), options };
        archive.apt("apt-get", &["-qq", "update"])?;
        Ok(archive)
    }

    /// What the archive says of the newest version of a package in `release`.
    pub fn about(&self, package: &str, release: &str) -> Result<String> {
        self.apt("apt-cache", &["show", "--no-all-versions", &format!("{package}/{release}")])
    }

    /// Fetches packages, named as apt takes them, and unpacks them into `root`.
    pub fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        self.apt("apt-get", &[&["-qq", "download"], packages].concat())?;
        let is_package = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
        let found: Vec<PathBuf> = fs::read_dir(&self.folder)?.flatten().map(|entry| entry.path()).filter(is_package).collect();
        ensure!(found.len() == packages.len(), "{} packages came where {} were asked for", found.len(), packages.len());
        for package in found {
            command::checked(command::command(&["dpkg-deb", "-x"]).arg(package).arg(root), LIMIT)?;
        }
        Ok(())
    }

    fn apt(&self, program: &str, words: &[&str]) -> Result<String> {
        let mut command = command::command(&[program]);
        command.args(&self.options).args(words).current_dir(&self.folder);
        command::checked(&mut command, LIMIT)
    }
}
