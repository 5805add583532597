//! Error codes and their pages: every code in the source has `docs/errors/CODE.md`, and every page has a code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

const PREFIX: &str = "STANDIN-E";

/// Compares the codes in the sources with the pages.
pub fn check(root: &Path, sources: &[PathBuf]) -> Result<Vec<String>> {
    let mut codes: BTreeMap<String, String> = BTreeMap::new();
    // Tests make codes up; what they expect of the product stands in the product too.
    let counts = |path: &&PathBuf| !path.starts_with(root.join("xtask")) && !path.ends_with("tests.rs");
    for path in sources.iter().filter(counts) {
        let shown = path.strip_prefix(root).unwrap_or(path).display().to_string();
        for code in codes_in(&fs::read_to_string(path)?) {
            codes.entry(code).or_insert_with(|| shown.clone());
        }
    }
    let pages = pages(&root.join("docs/errors"))?;
    let mut findings = Vec::new();
    for (code, place) in codes.iter().filter(|(code, _)| !pages.contains(*code)) {
        findings.push(format!("{place}: {code} has no page docs/errors/{code}.md"));
    }
    for page in pages.iter().filter(|page| !codes.contains_key(*page)) {
        findings.push(format!("docs/errors/{page}.md: no source has this code"));
    }
    Ok(findings)
}

/// The codes in a text: the prefix and exactly four digits, or their short form as a string of its own (`"E` and four digits), to which
/// `Problem::new` adds the prefix.
fn codes_in(text: &str) -> BTreeSet<String> {
    let digits = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
    let long = text.split(PREFIX).skip(1).map(digits);
    let short = text.split("\"E").skip(1).map(digits);
    long.chain(short).filter(|digits| digits.len() == 4).map(|digits| format!("{PREFIX}{digits}")).collect()
}

fn pages(folder: &Path) -> Result<BTreeSet<String>> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(BTreeSet::new()) };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter_map(|name| name.strip_suffix(".md").map(str::to_owned)).filter(|name| name.starts_with(PREFIX)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_codes_count() {
        let one = format!("{PREFIX}1234");
        let found = codes_in(&format!("{one} {PREFIX}12 \"{one}\" {PREFIX}{{}}"));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [one]);
    }
}
