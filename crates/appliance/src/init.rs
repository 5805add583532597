//! Makes an appliance: its directory, its CA, its store and the first token. Doing it again keeps what is there.

use crate::layout::{Layout, now};
use crate::store::{Role, Store, new_secret};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use standin_wire::Authority;
use std::path::{Path, PathBuf};

/// What `serve` has to know beyond its options.
#[derive(Debug, Serialize, Deserialize)]
pub struct Settings {
    /// `HOST:PORT` under which agents reach this appliance.
    pub address: String,
    /// Further names and addresses in the certificates.
    pub names: Vec<String>,
}

fn settings_path(dir: &Path) -> PathBuf {
    dir.join("appliance.json")
}

impl Settings {
    pub fn load(dir: &Path) -> Result<Settings> {
        let path = settings_path(dir);
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "STANDIN-E5010: {} is no appliance. Next: standin-appliance init --dir {} --address HOST:PORT",
                dir.display(),
                dir.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Names for certificates: the host of the address, and what else was named.
    pub fn all_names(&self) -> Vec<String> {
        let host = self.address.rsplit_once(':').map_or(self.address.as_str(), |(host, _)| host);
        let mut names = vec![host.trim_matches(['[', ']']).to_owned(), "localhost".into(), "127.0.0.1".into(), "::1".into()];
        names.extend(self.names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

pub fn init(dir: &Path, address: &str, names: &[String]) -> Result<()> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    ensure!(port.is_some(), "STANDIN-E5011: {address:?} is not HOST:PORT. Next: standin-appliance init --address HOST:PORT");
    standin_journal::durable::create_directory(dir).with_context(|| format!("making {}", dir.display()))?;
    restrict(dir)?;
    let authority = Authority::open_or_create(Layout::authority(dir)).context("making the certificate authority")?;
    // The CA's certificate alone, for people and their tools.
    let public = dir.join("ca.pem");
    standin_journal::durable::write_atomically(&public, authority.certificate_pem().as_bytes())
        .with_context(|| format!("writing {}", public.display()))?;
    let store = Store::open(&Layout::store(dir))?;
    let token_file = Layout::admin_token(dir);
    if !token_file.exists() {
        let secret = new_secret()?;
        // The file first: a token that nobody can read is of no use, one that is not yet known does no harm.
        standin_journal::durable::write_secret(&token_file, secret.as_bytes())
            .with_context(|| format!("writing {}", token_file.display()))?;
        store.remove_api_token("admin")?;
        ensure!(store.add_api_token("admin", Role::Admin, &secret, now())?, "the admin token was made by somebody else meanwhile");
    }
    let settings = Settings { address: address.into(), names: names.to_vec() };
    let path = settings_path(dir);
    standin_journal::durable::write_atomically(&path, &serde_json::to_vec_pretty(&settings)?)
        .with_context(|| format!("writing {}", path.display()))?;
    println!("appliance       {}\nCA certificate  {}\nadmin token     {}", dir.display(), public.display(), token_file.display());
    println!("CA fingerprint  {}", authority.fingerprint());
    Ok(())
}

/// Keys, hashes and journals are nobody else's business.
fn restrict(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).with_context(|| format!("protecting {}", dir.display()))
}
