//! Which appliance, and as whom: flags before environment before `~/.config/standin/config.json`.

use crate::args::Connection;
use crate::exit::{Failure, Result};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    url: Option<String>,
    token_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

pub struct Settings {
    pub url: String,
    pub token: String,
    pub ca: Vec<u8>,
}

/// Clap has taken flags and environment already.
pub fn resolve(connection: &Connection) -> Result<Settings> {
    let file = file()?;
    let url = connection.url.clone().or(file.url);
    let token_file = connection.token_file.clone().or(file.token_file);
    let ca_file = connection.ca_file.clone().or(file.ca_file);
    let missing = |what: &str, name: &str| {
        Failure::Usage(format!("no {what} is given. Next: export {name}=… or add it to ~/.config/standin/config.json"))
    };
    let url = url.ok_or_else(|| missing("appliance", "STANDIN_URL"))?;
    if !url.starts_with("https://") {
        return Err(Failure::Usage(format!("{url} is not an https address")));
    }
    let token = read(&token_file.ok_or_else(|| missing("token file", "STANDIN_TOKEN_FILE"))?)?;
    let ca = read(&ca_file.ok_or_else(|| missing("CA file", "STANDIN_CA_FILE"))?)?;
    let token = String::from_utf8_lossy(&token).trim().to_owned();
    Ok(Settings { url: url.trim_end_matches('/').to_owned(), token, ca })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))
}

fn file() -> Result<File> {
    let home =
        std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let Some(path) = home.map(|home| home.join("standin/config.json")) else { return Ok(File::default()) };
    match std::fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| Failure::Usage(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(File::default()),
        Err(error) => Err(Failure::Usage(format!("cannot read {}: {error}", path.display()))),
    }
}
