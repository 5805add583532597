//! What a guest's console said, as rows: one for each case, passed only if it ended well and said its result.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// What every boot has to bring, by file system.
const CASES: &[&str] = &["writers", "containers", "unseen", "housekeeping"];

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    pub kernel: String,
    /// As the guest names it.
    pub release: String,
    pub preemption: String,
    pub file_system: String,
    pub case: String,
    pub pass: bool,
    /// The probe's own words.
    pub result: String,
}

impl Row {
    pub fn name(&self) -> String {
        format!("{} {} {} {}", self.kernel, self.preemption, self.file_system, self.case)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.pass { "pass" } else { "FAIL" };
        write!(f, "{word} {:<5} {:<9} {:<5} {:<12} {}", self.kernel, self.preemption, self.file_system, self.case, self.result)
    }
}

/// Reads the console of a guest that was started with this kernel and mode.
pub fn rows(kernel: &str, mode: &str, console: &str) -> Result<Vec<Row>> {
    let said = |mark: &str| console.lines().find_map(|line| line.split_once(mark)).map(|(_, rest)| rest.trim());
    let release = said("standin: kernel ").context("the guest did not come to its programs")?;
    ensure!(release.starts_with(&format!("{kernel}.")), "the guest runs {release}");
    let preemption = said("standin: preemption ").context("the guest did not tell its preemption mode")?;
    ensure!(preemption.contains(&format!("({mode})")), "the guest's preemption is {preemption}");
    ensure!(said("standin: done").is_some(), "the guest did not come to its end");
    let mut rows = Vec::new();
    for part in console.split("standin: begin ").skip(1) {
        let (name, rest) = part.split_once('\n').unwrap_or((part, ""));
        let (file_system, case) = name.trim().split_once('/').with_context(|| format!("the case {name} has no file system"))?;
        let (body, status) = rest.split_once(&format!("standin: end {} ", name.trim())).unwrap_or((rest, ""));
        let result = body.lines().rev().find_map(|line| line.strip_prefix("RESULT ")).unwrap_or_default();
        rows.push(Row {
            kernel: kernel.to_owned(),
            release: release.to_owned(),
            preemption: mode.to_owned(),
            file_system: file_system.to_owned(),
            case: case.to_owned(),
            pass: status.lines().next().map(str::trim) == Some("0") && !result.is_empty(),
            result: result.trim().to_owned(),
        });
    }
    let file_systems: Vec<String> = rows.iter().filter(|row| row.case == CASES[0]).map(|row| row.file_system.clone()).collect();
    ensure!(!file_systems.is_empty(), "the guest ran no case");
    let has = |kind: &str, case: &str| rows.iter().any(|row| row.file_system == kind && row.case == case);
    for kind in &file_systems {
        ensure!(CASES.iter().all(|case| has(kind, case)), "a case of {kind} is missing");
    }
    Ok(rows)
}

/// One line for each case.
pub fn table(rows: &[Row]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "[ 1.0] noise\nstandin: kernel 6.12.95+deb12-cloud-amd64\nstandin: preemption none voluntary (full)\n\
        standin: begin ext4/writers\nRESULT 84 nodes, 0 problems\nstandin: end ext4/writers 0\n\
        standin: begin ext4/containers\nRESULT 84 nodes, 2 problems\nstandin: end ext4/containers 1\n\
        standin: begin ext4/unseen\nRESULT 3 nodes, 1 problems, 2 lost\nstandin: end ext4/unseen 0\n\
        standin: begin ext4/housekeeping\nstandin: end ext4/housekeeping 0\nstandin: done\n";

    #[test]
    fn a_case_passes_only_with_its_status_and_its_result() {
        let rows = rows("6.12", "full", CONSOLE).unwrap();
        assert_eq!(rows.iter().map(|row| row.pass).collect::<Vec<_>>(), [true, false, true, false]);
        assert_eq!((rows[0].release.as_str(), rows[0].result.as_str()), ("6.12.95+deb12-cloud-amd64", "84 nodes, 0 problems"));
        assert!(table(&rows).contains("FAIL 6.12"));
    }

    #[test]
    fn a_guest_that_is_not_the_one_asked_for_or_not_whole_is_an_error() {
        assert!(rows("6.1", "full", CONSOLE).is_err());
        assert!(rows("6.12", "voluntary", CONSOLE).is_err());
        for gone in ["standin: done", "standin: begin ext4/housekeeping", "standin: begin ext4/writers"] {
            assert!(rows("6.12", "full", &CONSOLE.replace(gone, "")).is_err(), "{gone}");
        }
    }
}
