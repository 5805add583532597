//! `standin protect`: the protection summary, the question, the job.

use crate::args::Protect;
use crate::client::Client;
use crate::exit::Result;
use crate::render::{self, list, number, text};
use crate::size;
use serde_json::{Map, Value, json};

fn request(options: &Protect) -> Value {
    let sizes: Map<String, Value> = options.sizes.iter().map(|(mount, size)| (mount.clone(), json!(size))).collect();
    json!({
        "source": options.source, "name": options.name, "volumes": options.volumes, "exclusions": options.exclusions, "no_default_exclusions": options.no_default_exclusions,
        "wanted": options.wanted,
        "cpus": options.cpus, "memory": options.memory, "sizes": sizes, "firmware": options.firmware, "network": options.network,
    })
}

pub fn protect(client: &Client, options: &Protect, as_json: bool) -> Result<()> {
    let request = request(options);
    let summary = client.post("/jobs/plan", &request)?;
    if !as_json {
        print_summary(&summary);
    } else if options.plan {
        render::json(&summary);
    }
    if options.plan {
        return Ok(());
    }
    render::confirm("Protect it so?", options.yes)?;
    let job = client.post("/jobs", &request)?;
    if as_json {
        render::json(&job);
    } else {
        let name = text(&job, "/name");
        println!("\njob {name} ({}) is made\nfollow it with: standin watch {name}", text(&job, "/id"));
    }
    Ok(())
}

fn print_summary(summary: &Value) {
    println!("Protection summary\n");
    println!("  source     {}, {}", text(summary, "/source"), text(summary, "/system"));
    let memory = size::bytes(number(summary, "/memory"));
    println!("  replica    {}: {} CPUs, {memory} memory, {}", text(summary, "/name"), text(summary, "/cpus"), text(summary, "/firmware"));
    let (needed, free) = (size::bytes(number(summary, "/needed")), size::bytes(number(summary, "/datastore_free")));
    println!("  datastore  {}: needs {needed} of {free} free\n", text(summary, "/datastore"));
    let volumes = summary["volumes"].as_array().cloned().unwrap_or_default();
    let row = |volume: &Value| {
        vec![
            format!("  {}", text(volume, "/mount_point")),
            text(volume, "/file_system"),
            size::bytes(number(volume, "/used")),
            size::bytes(number(volume, "/source_size")),
            size::bytes(number(volume, "/size")),
        ]
    };
    render::table(&["  VOLUME", "TYPE", "USED", "SOURCE", "REPLICA"], &volumes.iter().map(row).collect::<Vec<_>>());
    let defaults = summary["left_out"].as_array().cloned().unwrap_or_default();
    let by_default = |pattern: &String| defaults.iter().any(|left| left["pattern"] == pattern.as_str());
    for pattern in list(summary, "/exclusions").iter().filter(|pattern| !by_default(pattern)) {
        println!("\n  left out   {pattern}");
    }
    for left in &defaults {
        println!("  left out   {}: {}", text(left, "/pattern"), text(left, "/reason"));
    }
    println!("\nWhat will be done");
    for (index, action) in list(summary, "/actions").iter().enumerate() {
        println!("  {}. {action}", index + 1);
    }
    for warning in list(summary, "/warnings") {
        println!("  warning: {warning}");
    }
    println!();
}
