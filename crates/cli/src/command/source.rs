//! `standin source add`: puts the agent on a source over the system's own ssh, enrols it with a one-time token, and starts it.
//!
//! The token travels on ssh's stdin, not on the command line of ssh. Every remote step is one fixed script; what varies is quoted.

use crate::args::SourceAdd;
use crate::client::Client;
use crate::exit::{Failure, Result};
use crate::render::{self, text};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const UNIT: &str = include_str!("standin-agent.service");
/// Needs root; `sudo -n` where the user is not.
const AS_ROOT: &str = "if [ \"$(id -u)\" = 0 ]; then S=; else S='sudo -n'; fi;";

pub fn add(client: &Client, options: &SourceAdd, as_json: bool) -> Result<()> {
    let target = Target::parse(options)?;
    let agent = find_agent_program(&options.agent)?;
    let say = |text: &str| {
        if !as_json {
            println!("{text}");
        }
    };
    say(&format!("connecting to {}", target.destination));
    target.run("true", None)?;
    say("copying the agent");
    let copy = format!(
        "{AS_ROOT} set -e; $S mkdir -p /usr/local/sbin; $S sh -c 'cat > /usr/local/sbin/standin-agent.new && chmod 755 /usr/local/sbin/standin-agent.new && mv /usr/local/sbin/standin-agent.new /usr/local/sbin/standin-agent'"
    );
    target.run(&copy, Some(Input::File(agent)))?;
    let token = client.post("/enrolment-tokens", &json!({}))?;
    let appliance = options.appliance.clone().unwrap_or_else(|| text(&token, "/appliance"));
    say(&format!("enrolling with {appliance}"));
    let enrol = format!(
        "{AS_ROOT} set -e; IFS= read -r T; $S systemctl stop standin-agent.service 2>/dev/null || true; \
         printf '%s\\n' \"$T\" | $S sh -c 'IFS= read -r T; exec /usr/local/sbin/standin-agent enrol --appliance \"$1\" --token \"$T\"' sh {}",
        quoted(&appliance)
    );
    let before = Instant::now();
    target.run(&enrol, Some(Input::Text(format!("{}\n", text(&token, "/token")))))?;
    say("starting standin-agent.service");
    let start = format!(
        "{AS_ROOT} set -e; $S sh -c 'cat > /etc/systemd/system/standin-agent.service'; $S systemctl daemon-reload; \
         $S systemctl enable --quiet standin-agent.service; $S systemctl restart standin-agent.service; hostname"
    );
    let hostname = target.run(&start, Some(Input::Text(UNIT.into())))?;
    let agent = wait_for(client, hostname.trim(), before, Duration::from_secs(options.timeout))?;
    if as_json {
        render::json(&agent);
    } else {
        println!(
            "{} is connected as {}\nprotect it with: standin protect {}",
            text(&agent, "/inventory/hostname"),
            text(&agent, "/id"),
            hostname.trim()
        );
    }
    Ok(())
}

/// The newest agent of that host, once it is connected.
fn wait_for(client: &Client, hostname: &str, began: Instant, limit: Duration) -> Result<Value> {
    loop {
        let agents = client.get("/agents")?;
        let found = agents.as_array().into_iter().flatten().rev().find(|agent| {
            let name = text(agent, "/inventory/hostname");
            agent["connected"] == true && (name == hostname || name.split('.').next() == hostname.split('.').next())
        });
        if let Some(agent) = found {
            return Ok(agent.clone());
        }
        if began.elapsed() > limit {
            let text = format!(
                "the agent was installed but did not connect within {} s. Next: ssh {hostname} journalctl -u standin-agent",
                limit.as_secs()
            );
            return Err(Failure::Failed(text));
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// As given, or beside this program.
fn find_agent_program(path: &std::path::Path) -> Result<File> {
    let beside = std::env::current_exe().ok().and_then(|own| own.parent().map(|dir| dir.join("standin-agent")));
    let default = path.as_os_str() == "standin-agent";
    let candidates: Vec<PathBuf> = if default { beside.into_iter().collect() } else { vec![path.to_owned()] };
    let opened = candidates.iter().find_map(|path| File::open(path).ok());
    opened.ok_or_else(|| Failure::Usage("the agent's program was not found; name it with --agent FILE".into()))
}

enum Input {
    File(File),
    Text(String),
}

struct Target {
    destination: String,
    arguments: Vec<String>,
}

impl Target {
    fn parse(options: &SourceAdd) -> Result<Target> {
        let wrong = |why: &str| Failure::Usage(format!("{:?} is not USER@HOST[:PORT]: {why}", options.destination));
        let (destination, port) = match options.destination.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') => (host, Some(port.parse::<u16>().map_err(|_| wrong("the port is no number"))?)),
            _ => (options.destination.as_str(), None),
        };
        // ssh would take it for an option.
        if destination.starts_with('-') || destination.is_empty() {
            return Err(wrong("it has no host"));
        }
        let mut arguments: Vec<String> = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=15"].map(str::to_owned).into();
        for option in &options.options {
            arguments.extend(["-o".to_owned(), option.clone()]);
        }
        if let Some(port) = options.port.or(port) {
            arguments.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(identity) = &options.identity {
            arguments.extend(["-i".to_owned(), identity.display().to_string()]);
        }
        Ok(Target { destination: destination.to_owned(), arguments })
    }

    fn run(&self, script: &str, input: Option<Input>) -> Result<String> {
        let mut command = Command::new("ssh");
        command.args(&self.arguments).arg("--").arg(&self.destination).arg(script);
        let text = match input {
            Some(Input::File(file)) => {
                command.stdin(file);
                None
            }
            Some(Input::Text(text)) => {
                command.stdin(Stdio::piped());
                Some(text)
            }
            None => {
                command.stdin(Stdio::null());
                None
            }
        };
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::Failed(format!("cannot run ssh: {error}")))?;
        if let (Some(text), Some(mut stdin)) = (text, child.stdin.take()) {
            // The other end may have failed already; its own words say more than a broken pipe.
            let _ = stdin.write_all(text.as_bytes());
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Failure::Failed(format!("on {}: {words} ({})", self.destination, output.status)))
    }
}

/// One word of a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(destination: &str) -> SourceAdd {
        SourceAdd {
            destination: destination.into(),
            agent: "standin-agent".into(),
            identity: None,
            port: None,
            options: Vec::new(),
            appliance: None,
            timeout: 1,
        }
    }

    #[test]
    fn destinations() {
        let target = Target::parse(&options("root@web1:2222")).unwrap();
        assert_eq!(target.destination, "root@web1");
        assert!(target.arguments.windows(2).any(|pair| pair == ["-p", "2222"]));
        for wrong in ["", "-oProxyCommand=x", "root@web1:x"] {
            assert!(Target::parse(&options(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(quoted("a'b"), "'a'\\''b'");
    }
}
