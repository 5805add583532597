//! What happened, for whoever replays one seed.

use std::cell::Cell;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
}

pub fn switch_on() {
    ON.set(true);
}

pub fn is_on() -> bool {
    ON.get()
}

macro_rules! trace {
    ($($words:tt)*) => {
        if $crate::trace::is_on() {
            println!($($words)*);
        }
    };
}
pub(crate) use trace;

/// Debug output with ids as `#volume:inode.generation`, and without what makes lines long.
pub fn short(thing: &impl std::fmt::Debug) -> String {
    let long = format!("{thing:?}").replace("NodeId { volume: VolumeId(", "#");
    let long = long.replace("), subvolume: 0, inode: ", ":").replace(", generation: ", ".");
    let mut text = String::with_capacity(long.len());
    let mut rest = long.as_str();
    // An id ends with the digits of its generation and a brace.
    while let Some(at) = rest.find('#') {
        let end = rest[at..].find(" }").map_or(rest.len(), |end| at + end);
        text.push_str(&rest[..end]);
        rest = rest.get(end + 2..).unwrap_or_default();
    }
    text.push_str(rest);
    match text.find("data: [") {
        Some(at) => format!("{}…", &text[..at + 20.min(text.len() - at)]),
        None => text,
    }
}
