//! What each Rust file has to be: opened by a doc comment, short, named after something, and `unsafe` only with its reason.

use super::layers::BANNED;

const LINES_MAX: usize = 1000;

/// How far above an `unsafe` its SAFETY comment may stand.
const SAFETY_LINES: usize = 6;

/// Checks one file.
pub fn check(path: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if !text.starts_with("//!") {
        findings.push(format!("{path}:1: the first line is not a `//!` comment"));
    }
    let count = text.lines().count();
    if count > LINES_MAX {
        findings.push(format!("{path}: {count} lines, more than {LINES_MAX}"));
    }
    if path.split('/').any(|part| BANNED.contains(&part.trim_end_matches(".rs"))) {
        findings.push(format!("{path}: this name says nothing; name it after what it holds"));
    }
    findings.extend(bare_unsafe(path, text));
    findings
}

/// Every `unsafe` block, function or impl without a `SAFETY` comment on its line or shortly above.
fn bare_unsafe(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut findings = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        // A quoted word is text, such as in this rule itself.
        let opens = ["unsafe {", "unsafe impl", "unsafe extern"].iter().any(|word| code.contains(word) && !code.contains('"'));
        let above = &lines[at.saturating_sub(SAFETY_LINES)..=at];
        if opens && !above.iter().any(|line| line.contains("SAFETY")) {
            findings.push(format!("{path}:{}: `unsafe` without a SAFETY comment", at + 1));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_text(text: &str, expect: usize) {
        assert_eq!(check("crates/model/src/id.rs", text).len(), expect, "{text}");
    }

    #[test]
    fn rules_of_one_file() {
        check_text("//! What.\nfn f() {}\n", 0);
        check_text("fn f() {}\n", 1);
        let word = "unsafe";
        check_text(&format!("//! What.\nfn f() {{ {word} {{ g() }} }}\n"), 1);
        check_text(&format!("//! What.\n// SAFETY: g asks nothing.\nfn f() {{ {word} {{ g() }} }}\n"), 0);
        check_text(&format!("//! What.\n{}", "//\n".repeat(LINES_MAX)), 1);
    }

    #[test]
    fn a_name_that_says_nothing_is_found() {
        assert_eq!(check("crates/model/src/util.rs", "//! What.\n").len(), 1);
    }
}
