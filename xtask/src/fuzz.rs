//! Runs one fuzz target under libFuzzer, on the stable compiler. An ordinary test run feeds the same targets their corpus and random bytes; this
//! follows the coverage, for as long as one likes.
//!
//! What it learns goes to `target/fuzz/corpus`, what fails to the target's `crashes` beside its corpus, where every test run tries it again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::process;

/// As `cargo bolero` has them; counters are compiled in by the stable compiler's own pass.
const FLAGS: &str = "--cfg fuzzing --cfg fuzzing_libfuzzer -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// A target, by what stands in the sources.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    package: String,
    name: String,
    /// Of the test function, from its crate's root.
    test: String,
    /// Holds `corpus` and `crashes`.
    folder: PathBuf,
}

/// Runs the target for so long; without one, lists them all.
pub fn run(root: &Path, wanted: Option<&str>, seconds: u64) -> Result<String> {
    let targets = targets(&root.join("crates"))?;
    let listed = || targets.iter().map(|target| format!("{}/{}", target.package, target.name)).collect::<Vec<_>>().join("\n  ");
    let Some(wanted) = wanted else {
        println!("targets:\n  {}", listed());
        return Ok(format!("{} targets", targets.len()));
    };
    let target = targets.iter().find(|target| format!("{}/{}", target.package, target.name) == wanted);
    let target = target.with_context(|| format!("there is no target {wanted}; there are:\n  {}", listed()))?;
    let (compiler, _, _) = process::collect(&["c++", "--version"]).unwrap_or_default();
    ensure!(compiler, "libFuzzer is C++, and there is no c++; type: apt-get install -y g++");
    let learned = root.join("target/fuzz/corpus").join(&target.package).join(&target.name);
    let crashes = target.folder.join("crashes");
    fs::create_dir_all(&learned)?;
    fs::create_dir_all(&crashes)?;
    let corpus = target.folder.join("corpus");
    let folders = [&learned, &corpus].into_iter().filter(|folder| folder.exists()).map(|folder| folder.display().to_string());
    let mut words: Vec<String> = folders.collect();
    words.push(format!("-artifact_prefix={}/", crashes.display()));
    words.extend(["-timeout=10", "-rss_limit_mb=2048", "-max_len=8192"].map(str::to_owned));
    words.push(format!("-max_total_time={seconds}"));
    let package = format!("standin-{}", target.package);
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // A target is named, so that build scripts and macros are built without counters.
    let build = ["cargo", "test", "--profile", "fuzz", "--target", &triple, "--target-dir", "target/fuzz", "--package", &package, "--lib"];
    let words = words.join(" ");
    let environment = [("RUSTFLAGS", FLAGS), ("BOLERO_LIBFUZZER_ARGS", words.as_str())];
    let done = process::run_with(&[&build[..], &["--", "--exact", &target.test, "--nocapture"]].concat(), &environment);
    let failed = fs::read_dir(&crashes)?.count();
    if failed == 0 {
        fs::remove_dir(&crashes)?;
    }
    ensure!(failed == 0, "{failed} inputs fail, see {}", crashes.display());
    done.map(|()| format!("{wanted} held for {seconds} s, {} inputs were worth keeping", fs::read_dir(&learned).map_or(0, Iterator::count)))
}

fn targets(folder: &Path) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files(&package.join("src"), &mut |path| {
            let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            let below = path.strip_prefix(package.join("src"))?.with_extension("");
            let module = below.to_string_lossy().replace('/', "::");
            let beside = path.parent().unwrap_or(path).join("__fuzz__");
            found.extend(in_text(&module, &text).into_iter().map(|(test, target)| Target {
                package: name.clone(),
                folder: beside.join(&target),
                name: target,
                test,
            }));
            Ok(())
        })?;
    }
    if found.is_empty() {
        bail!("no target below {}", folder.display());
    }
    found.sort_by(|one, other| (&one.package, &one.name).cmp(&(&other.package, &other.name)));
    // Two tests that share a corpus: the first is the one that takes it apart.
    found.dedup_by(|one, other| (&one.package, &one.name) == (&other.package, &other.name));
    Ok(found)
}

fn files(folder: &Path, each: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, each)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            each(&path)?;
        }
    }
    Ok(())
}

/// Test and target of every `check!(name = "…")`.
fn in_text(module: &str, text: &str) -> Vec<(String, String)> {
    let (mut function, mut inner) = ("", "");
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("fn ") {
            function = rest.split('(').next().unwrap_or_default();
        } else if line == "mod tests {" {
            inner = "tests::";
        }
        if let Some(name) = line.split("check!(name = \"").nth(1).and_then(|rest| rest.split('"').next()) {
            found.push((format!("{module}::{inner}{function}"), name.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_found_with_their_tests() {
        let text =
            "fn other() {}\nmod tests {\n    #[test]\n    fn any() {\n        standin_fuzz::check!(name = \"ring\").for_each(|_| ());\n";
        assert_eq!(in_text("ring", text), [("ring::tests::any".to_owned(), "ring".to_owned())]);
    }

    #[test]
    fn every_corpus_has_a_target() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates");
        let targets = targets(&crates).unwrap();
        assert!(targets.len() >= 20, "{targets:?}");
        let (mut bytes, mut lost) = (0, Vec::new());
        let mut visit = |path: &Path| {
            bytes += fs::metadata(path).map_or(0, |data| data.len());
            let folder = path.ancestors().nth(2).unwrap_or(path);
            if !targets.iter().any(|target| target.folder == folder) {
                lost.push(path.to_owned());
            }
        };
        corpora(&crates, &mut visit);
        assert!(lost.is_empty(), "of no target: {lost:?}");
        assert!(bytes > 0 && bytes < 200 << 10, "{bytes} bytes of corpus; it stays small");
    }

    fn corpora(folder: &Path, visit: &mut impl FnMut(&Path)) {
        for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                corpora(&path, visit);
            } else if path.to_string_lossy().contains("/__fuzz__/") {
                visit(&path);
            }
        }
    }
}
