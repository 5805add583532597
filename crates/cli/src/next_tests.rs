//! Every `standin …` command that an error text or its page tells an operator to type is one that this program understands.

use crate::args::Cli;
use clap::Parser;
use std::path::{Path, PathBuf};

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() && !matches!(name.as_str(), "target" | "tests" | "examples" | ".git") {
            files(&path, found);
        } else if name.ends_with(".md") || (name.ends_with(".rs") && !name.ends_with("tests.rs")) {
            found.push(path);
        }
    }
}

/// Commands in a text: what stands behind a quote, backquote, colon or "with" and begins with this program's name.
fn commands(text: &str) -> Vec<String> {
    let starts = ["\"standin ", "`standin ", ": standin ", ", standin ", "then standin "];
    let mut found = Vec::new();
    for start in starts {
        for (at, _) in text.match_indices(start) {
            let Some(from) = text.get(at..).and_then(|rest| rest.find("standin ")).map(|offset| at + offset) else { continue };
            let rest = text.get(from..).unwrap_or_default();
            // Two blanks or a bracket begin a remark.
            let end = rest.find(['"', '`', '\n', ';', '(']).unwrap_or(rest.len()).min(rest.find("  ").unwrap_or(rest.len()));
            found.push(rest.get(..end).unwrap_or_default().trim().trim_end_matches(['.', ',', '?']).to_owned());
        }
    }
    found
}

/// Words of a shell line; what stands for something becomes a word that fits everywhere it is used.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut quoted = false;
    let mut word = String::new();
    for character in command.chars() {
        match character {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            other => word.push(other),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    for at in 1..words.len() {
        let numeric = matches!(words[at - 1].as_str(), "--cpus" | "--memory" | "--timeout");
        let bytes = words[at - 1] == "--copy-up-to";
        let size = words[at - 1] == "--disk-size";
        if numeric || bytes {
            words[at] = "1".into();
        } else if size {
            words[at] = "/=1".into();
        }
    }
    words
}

/// The first word behind the program's name tells a command from a sentence about the product.
fn is_command(command: &str) -> bool {
    let second = command.split_whitespace().nth(1).unwrap_or_default();
    !second.is_empty() && second.chars().all(|c| c.is_ascii_lowercase())
}

#[test]
fn every_command_that_an_error_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut found = Vec::new();
    for directory in ["crates", "docs/errors"] {
        files(&root.join(directory), &mut found);
    }
    let (mut seen, mut wrong) = (0, Vec::new());
    for path in found {
        let text = std::fs::read_to_string(&path).unwrap();
        // Comments speak about commands, and do not tell anybody to type them.
        let text: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect();
        for command in commands(&text).into_iter().filter(|command| is_command(command)) {
            // Mount points go between the words; the text has a blank in them.
            let plain =
                command.replace("<mount point>", "/").replace("{mount_point}", "/").replace("<job>", "JOB").replace("<source>", "SOURCE");
            seen += 1;
            if let Err(error) = Cli::try_parse_from(words(&plain))
                && !matches!(error.kind(), clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion)
            {
                let why = error.to_string();
                wrong.push(format!("{}: {command:?}: {}", path.display(), why.lines().next().unwrap_or_default()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 50, "only {seen} commands were found; the search no longer finds them");
}

#[test]
fn commands_are_found_and_split() {
    let text = "next(\"standin failover JOB --waive-fence 'YOUR NAME' 'WHY'\") `standin jobs`. Do: standin watch JOB   (now)";
    assert_eq!(commands(text).len(), 3);
    assert_eq!(words("standin x 'a b'"), ["standin", "x", "a b"]);
    assert!(!is_command("standin Agent"));
}
