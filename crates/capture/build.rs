//! Compiles the kernel side (`bpf/capture.bpf.c`) to BPF bytecode, which the library embeds.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=bpf");
    println!("cargo::rerun-if-env-changed=STANDIN_CLANG");
    let target = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("capture.bpf.o");
    let chosen = env::var("STANDIN_CLANG").ok();
    let candidates =
        chosen.iter().map(String::as_str).chain(["clang-19", "clang", "clang-18", "clang-17", "clang-16", "clang-15", "clang-14"]);
    for clang in candidates {
        let mut command = Command::new(clang);
        // -g makes the BTF that relocation needs; v3 gives 32-bit jumps, without which the verifier loses bounds.
        command.args(["-target", "bpf", "-O2", "-g", "-mcpu=v3", "-Wall", "-Werror", "-Wno-unused-function", "-D__TARGET_ARCH_x86"]);
        command.args(["-c", "bpf/capture.bpf.c", "-o"]).arg(&target);
        match command.status() {
            Ok(status) if status.success() => return,
            Ok(status) => panic!("{clang} could not compile bpf/capture.bpf.c: {status}"),
            Err(_) => continue,
        }
    }
    panic!("no clang found: compiling the capture programs needs it (Debian package `clang-19` or `clang`)");
}
