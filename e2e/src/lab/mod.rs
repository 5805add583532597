//! The lab's parts, in the order a run uses them: `cache` and `recipe` give a root file system, `image` makes a disk of it, `vm`
//! boots the disk, `ssh` talks to the guest. `command` and `space` carry them: processes with time limits, and private mounts.

pub mod accel;
pub mod boot;
pub mod cache;
pub mod command;
pub mod customise;
pub mod debian;
pub mod disk;
pub mod emulator;
pub mod guest;
pub mod image;
pub mod qmp;
pub mod recipe;
pub mod repository;
pub mod run;
pub mod space;
pub mod ssh;
pub mod vm;

pub use disk::{Disk, DiskFormat};
pub use guest::Guest;
pub use image::{Combo, FileSystem, Firmware, Image};
pub use recipe::Content;
pub use run::Run;
pub use vm::{Vm, VmOptions};
