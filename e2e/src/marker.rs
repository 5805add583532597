//! A marker named on a live source, and the recovery point that it makes: the point is the source at that moment, not a write sooner or later.
//!
//! While one process appends lines to a file, `standin-agent mark` is called; the file's size is noted right before the call and right after it. In the
//! point the file must be a prefix of what was written, and its size must lie between the two.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::compare::{self, Kind, Log};
use crate::job::Site;
use crate::lab::{Run, command};

const NAME: &str = "lab-mark";
/// On the root volume.
const FILE: &str = "root/mark-proof";
const APPENDING: &str = "i=0; while :; do i=$((i+1)); echo line-$i >> /root/mark-proof; done";
const POINT_LIMIT: Duration = Duration::from_secs(300);

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Marked {
    pub bytes_before: u64,
    pub bytes_at_marker: u64,
    pub bytes_after: u64,
    pub held_ms: u64,
}

/// A marker that was named, and what the source said around it.
pub struct Named {
    before: u64,
    after: u64,
    written: PathBuf,
    point: Value,
}

/// Names the marker, and waits for its point.
pub fn name(run: &Run, site: &mut Site) -> Result<Named> {
    // The lab's datastore may not be able to share blocks, and its disks are small.
    site.appliance.json(&["point", "policy", &site.job, "--copy-up-to", "30G"])?;
    let script = format!(
        "rm -f /{FILE}; touch /{FILE}; ( {APPENDING} ) & writer=$!; sleep 3; before=$(stat -c %s /{FILE}); \
         /usr/local/sbin/standin-agent mark {NAME} >&2; status=$?; after=$(stat -c %s /{FILE}); sleep 2; kill $writer; \
         wait $writer 2>/dev/null; echo $status $before $after"
    );
    let said = site.source.ssh_within(&script, Duration::from_secs(120)).context("marking on the source")?;
    let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [0, before, after] = numbers[..] else { bail!("the source said {said:?}") };
    let written = run.scratch().join("mark-proof");
    std::fs::create_dir_all(&written)?;
    site.source.copy_out(&format!("/{FILE}"), &written.join("file"))?;
    let point = wait_for_point(site)?;
    ensure!(point["consistent"] == true && point["kind"] == "marker", "{point:#}");
    Ok(Named { before, after, written, point })
}

/// Reads the point, which must not happen while the replica is mounted: both have the same identity.
pub fn examine(site: &Site, named: &Named) -> Result<Marked> {
    let Named { before, after, written, point } = named;
    let id = point["id"].as_str().context("a point without an id")?;
    let disk = site.appliance.replica_disk(&site.job).with_file_name("points").join(id).join("disk.raw");
    let volumes = compare::volumes(&disk, Log::Ignored).context("reading the recovery point")?;
    let found = volumes.iter().find_map(|volume| volume.manifest.get(FILE)).context("the recovery point has no such file")?;
    let Kind::File { len, content, .. } = &found.kind else { bail!("{:?} is no file", found.kind) };
    ensure!(*before > 0 && (before..=after).contains(&len), "{len} bytes at the marker, {before} before the call and {after} after it");
    // What the source has written is cut to the same length, and read in the same way.
    let all = std::fs::read(written.join("file"))?;
    let prefix = all.get(..usize::try_from(*len)?).context("the point has more than was written")?;
    std::fs::write(written.join("file"), prefix)?;
    let same = compare::read_tree(written, &[])?;
    let Some(Kind::File { content: expected, .. }) = same.get("file").map(|entry| entry.kind.clone()) else { bail!("no prefix") };
    ensure!(*content == expected, "the file in the recovery point is no prefix of what was written");
    Ok(Marked { bytes_before: *before, bytes_at_marker: *len, bytes_after: *after, held_ms: point["held_ms"].as_u64().unwrap_or(0) })
}

fn wait_for_point(site: &Site) -> Result<Value> {
    let deadline = Instant::now() + POINT_LIMIT;
    loop {
        let all = site.appliance.json(&["point", "list", &site.job])?;
        let mut points = all["points"].as_array().into_iter().flatten();
        if let Some(point) = points.find(|point| point["name"] == NAME) {
            return Ok(point.clone());
        }
        ensure!(Instant::now() < deadline, "no recovery point for the marker: {all:#}");
        command::pause(Duration::from_millis(500))?;
    }
}
