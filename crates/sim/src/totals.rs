//! What the seeds went through, so that a pass can be judged.

use std::fmt;

macro_rules! totals {
    ($($name:ident: $words:literal,)*) => {
        #[derive(Clone, Copy, Default)]
        pub struct Totals {
            $(pub $name: u64,)*
        }

        impl Totals {
            pub fn add(&mut self, other: Totals) {
                $(self.$name += other.$name;)*
            }
        }

        impl fmt::Display for Totals {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let parts = [$(format!(concat!("{} ", $words), self.$name),)*];
                f.write_str(&parts.join(", "))
            }
        }
    };
}

totals! {
    operations: "operations",
    prefixes: "states equal to a prefix",
    comparisons: "final trees equal",
    losses: "ring losses",
    overflows: "full queues",
    restarts: "agent kills",
    reboots: "source reboots",
    source_power_cuts: "source power cuts",
    worker_crashes: "worker kills",
    power_cuts: "appliance power cuts",
    partitions: "partitions",
    wants: "wanted nodes",
    answers: "comparisons",
    equal_answers: "without a difference",
    different_blocks: "blocks found different",
    lost_answers: "lost answers",
    patches: "patches",
    refused_patches: "of them refused",
    unproven_patches: "unproven in a redo",
    verified: "verifications without a difference",
    mended: "damages found and mended",
}
