//! What the C library's allocator keeps: few arenas, and nothing once there is nothing to do.
#![allow(unsafe_code)] // mallopt and malloc_trim have no safe binding

/// Of glibc's arenas, each of which keeps what it has once had. Two suit pump and sender; the default is eight for each processor.
const ARENAS_MAX: i32 = 2;

/// Call once, before there are threads.
pub fn limit() {
    // SAFETY: plain numbers; an option that is not taken changes nothing.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX)
    };
}

/// Gives all free pages back to the server. Takes a millisecond or two after a mirror.
pub fn trim() {
    // SAFETY: takes the allocator's own locks; nothing that is in use moves.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
