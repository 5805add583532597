//! `standin debug journal grep`: the items of a journal that are about something.

use super::{Out, files, operation};
use crate::args::Grep;
use crate::exit::{Failure, Result};
use serde_json::json;
use standin_journal::{Finding, Summary};
use standin_model::Item;

pub fn grep(out: &mut Out, options: &Grep) -> Result<()> {
    if options.is_empty() {
        return Err(Failure::Usage("say what to look for: --node, --name, --content, --kind or --items FROM..TO".into()));
    }
    let mut summary = Summary::default();
    let mut matches = 0u64;
    files::walk(&options.path, |finding| {
        match &finding {
            Finding::Segment { items: Ok(items), .. } => {
                for item in items.iter().filter(|item| is_wanted(item, options)) {
                    matches += 1;
                    out.line(|| operation::text(item), || operation::json(item))?;
                }
            }
            // What cannot be read may hold more of them, so it stands where it lies.
            Finding::Problem(problem) => files::show_problem(out, problem)?,
            _ => {}
        }
        summary.note(finding);
        Ok(())
    })?;
    out.line(|| format!("{matches} items match"), || json!({"matches": matches}))?;
    files::finish(out, &options.path, &summary, files::JOURNAL)
}

/// All that is asked for, at once.
fn is_wanted(item: &Item, options: &Grep) -> bool {
    let operation = &item.operation;
    let contains = |text: &[u8], part: &str| part.is_empty() || text.windows(part.len()).any(|window| window == part.as_bytes());
    let node = |wanted: &String| operation::names_node(operation, |node| node.to_string() == *wanted || node.inode.to_string() == *wanted);
    options.items.is_none_or(|(from, to)| (from..=to).contains(&item.seq.0))
        && (options.kinds.is_empty() || options.kinds.iter().any(|kind| kind == operation::kind(operation)))
        && options.node.as_ref().is_none_or(node)
        && options.name.as_ref().is_none_or(|part| operation::names(operation).iter().any(|name| contains(name, part)))
        && options.content.as_ref().is_none_or(|part| operation::content(operation).iter().any(|bytes| contains(bytes, part)))
}

/// `7` or `7..12`, both ends included; either may be left out.
pub fn parse_items(text: &str) -> std::result::Result<(u64, u64), String> {
    let number = |text: &str, absent| {
        if text.is_empty() { Ok(absent) } else { text.parse::<u64>().map_err(|_| format!("{text:?} is no item number")) }
    };
    match text.split_once("..") {
        Some((from, to)) => Ok((number(from, 0)?, number(to, u64::MAX)?)),
        None if text.is_empty() => Err("write 7 or 7..12".into()),
        None => number(text, 0).map(|one| (one, one)),
    }
}
