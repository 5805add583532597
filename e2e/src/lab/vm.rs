//! A guest in QEMU: started from disks, watched on its serial console and QMP, spoken to by ssh, and ended with this process.
//!
//! The network is QEMU's user network with `restrict=on`: no packet of a test leaves the machine. The guest's ssh port is
//! forwarded to the loopback, and ports of the loopback that are named in the options are reachable from the guest at
//! `GUEST_VIEW_OF_HOST`; each connection there starts one `standin-e2e pipe`, so any number of them can come and go.
//!
//! `setpriv --pdeathsig` makes the kernel end QEMU when the thread that started it ends: keep a VM in the thread that starts it.

use std::fs;
use std::net::TcpListener;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::accel;
use super::command;
use super::disk::Disk;
use super::emulator;
use super::guest::Guest;
use super::image::Firmware;
use super::qmp::Qmp;
use super::run::Run;

/// Where the guest finds the host's forwarded ports, at the same port numbers.
pub const GUEST_VIEW_OF_HOST: &str = "10.0.2.100";

/// Emulated and with both cores busy with other work, a boot to ssh was never seen to take half of this.
pub const BOOT_LIMIT: Duration = Duration::from_secs(300);

/// The controller that the guest's disks hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DiskBus {
    VirtioBlk,
    VirtioScsi,
    /// VMware's paravirtual SCSI.
    Pvscsi,
    /// SATA, as on many physical machines.
    Ahci,
    Nvme,
}

/// The guest's network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NetworkCard {
    Virtio,
    E1000,
    Vmxnet3,
}

/// How a VM is to be.
#[derive(Clone, Debug)]
pub struct VmOptions {
    /// Names the serial log and the messages.
    pub name: String,
    pub firmware: Firmware,
    pub disks: Vec<Disk>,
    pub memory_mib: u32,
    pub cpus: u32,
    pub bus: DiskBus,
    pub card: NetworkCard,
    /// Ports of this machine's loopback that the guest may reach.
    pub host_ports: Vec<u16>,
    /// The VM outlives this process.
    pub keep: bool,
}

impl VmOptions {
    pub fn new(name: &str, firmware: Firmware, disks: Vec<Disk>) -> Self {
        VmOptions {
            name: name.to_owned(),
            firmware,
            disks,
            memory_mib: 1024,
            cpus: 2,
            bus: DiskBus::VirtioBlk,
            card: NetworkCard::Virtio,
            host_ports: Vec::new(),
            keep: false,
        }
    }
}

/// A running VM; dropping it ends it, like pulling the plug.
pub struct Vm {
    guest: Guest,
    qemu: Child,
    keep: bool,
    monitor: PathBuf,
    serial: PathBuf,
    said: PathBuf,
    begun: Instant,
    _watch: PanicWatch,
}

impl Vm {
    /// Starts QEMU; the guest's boot goes on by itself.
    pub fn start(run: &Run, options: VmOptions) -> Result<Vm> {
        let ssh_port = free_port()?;
        let folder = run.scratch().join(&options.name);
        fs::create_dir_all(&folder)?;
        let monitor = folder.join("qmp");
        let serial = run.artifacts().join(format!("{}-serial.log", options.name));
        let said = run.artifacts().join(format!("{}-qemu.log", options.name));
        let mut words = machine(&options, &folder)?;
        words.extend(network(&options, ssh_port)?);
        words.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", monitor.display())]);
        words.extend(["-serial".into(), format!("file:{}", serial.display())]);
        let mut qemu = if options.keep { Command::new("setsid") } else { Command::new("setpriv") };
        if !options.keep {
            qemu.args(["--pdeathsig", "KILL", "--"]);
        }
        let log = fs::File::create(&said)?;
        let qemu = qemu
            .arg(emulator::program()?)
            .args(words)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting QEMU")?;
        let guest = Guest::at(&options.name, ssh_port, &folder)?;
        let watch = PanicWatch::start(&options.name, serial.clone());
        Ok(Vm { guest, qemu, keep: options.keep, monitor, serial, said, begun: Instant::now(), _watch: watch })
    }

    /// The process id of QEMU.
    pub fn pid(&self) -> u32 {
        self.qemu.id()
    }

    /// Time since QEMU was started.
    pub fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Waits until the guest takes commands.
    pub fn wait_for_ssh(&mut self, limit: Duration) -> Result<()> {
        let (qemu, said) = (&mut self.qemu, &self.said);
        let waited = self.guest.wait(limit, || still_running(qemu, said));
        waited.with_context(|| format!("the console ends with: {}", console_tail(&self.serial)))
    }

    /// Waits until the serial console shows `text`.
    pub fn wait_for_console(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.console().contains(text) {
                return Ok(());
            }
            still_running(&mut self.qemu, &self.said)?;
            command::pause(Duration::from_millis(200))?;
        }
        bail!("{}: `{text}` was not on the console within {} s; it ends with: {}", self.name(), limit.as_secs(), console_tail(&self.serial))
    }

    /// What the serial console has shown so far.
    pub fn console(&self) -> String {
        fs::read(&self.serial).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// A fresh connection to QEMU's monitor.
    pub fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.monitor)
    }

    /// Asks the guest to shut down, and waits for its end.
    pub fn shut_down(&mut self, limit: Duration) -> Result<()> {
        self.qmp()?.command("system_powerdown", json!({}))?;
        self.wait_for_end(limit)
    }

    /// Waits until QEMU has ended by itself.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<()> {
        match command::wait(&mut self.qemu, limit)? {
            Some(_) => Ok(()),
            None => bail!("{}: the guest did not switch off within {} s", self.name(), limit.as_secs()),
        }
    }

    /// Whether QEMU still runs.
    pub fn is_running(&mut self) -> bool {
        self.qemu.try_wait().is_ok_and(|ended| ended.is_none())
    }

    /// Pulls the plug.
    pub fn kill(mut self) {
        self.keep = false;
    }

    /// Pulls the plug, and keeps what can be said about the machine.
    pub fn pull_plug(&mut self) {
        self.qemu.kill().ok();
        self.qemu.wait().ok();
    }
}

/// A VM is spoken to as its guest.
impl Deref for Vm {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl DerefMut for Vm {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.keep {
            self.qemu.kill().ok();
            self.qemu.wait().ok();
        }
    }
}

/// Ends every wait of this process when the guest's kernel has panicked: no wait for it can end well.
struct PanicWatch(Arc<AtomicBool>);

impl PanicWatch {
    fn start(name: &str, serial: PathBuf) -> PanicWatch {
        let over = Arc::new(AtomicBool::new(false));
        let (name, ended) = (name.to_owned(), Arc::clone(&over));
        std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_secs(2));
                let console = fs::read(&serial).unwrap_or_default();
                if let Some(line) = panic_line(&String::from_utf8_lossy(&console)) {
                    command::abandon(format!("{name}: the guest's kernel panicked: {line}; see {}", serial.display()));
                    return;
                }
            }
        });
        PanicWatch(over)
    }
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The line with which Linux says that it has given up.
fn panic_line(console: &str) -> Option<&str> {
    console.lines().map(str::trim).find(|line| line.contains("Kernel panic - not syncing"))
}

fn machine(options: &VmOptions, folder: &Path) -> Result<Vec<String>> {
    let mut words: Vec<String> = accel::choose()?.options().map(str::to_owned).into();
    words.extend([
        "-name".into(),
        options.name.clone(),
        "-display".into(),
        "none".into(),
        "-nodefaults".into(),
        "-vga".into(),
        "std".into(),
    ]);
    words.extend(["-m".into(), options.memory_mib.to_string(), "-smp".into(), options.cpus.to_string()]);
    words.extend(["-device".into(), "virtio-rng-pci".into(), "-machine".into()]);
    match options.firmware {
        Firmware::Bios => words.push("pc".into()),
        Firmware::Uefi => {
            words.push("q35".into());
            let variables = folder.join("efi-variables");
            fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).context("package ovmf is missing")?;
            words.extend(["-drive".into(), "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd".into()]);
            words.extend(["-drive".into(), format!("if=pflash,format=raw,file={}", variables.display())]);
        }
    }
    words.extend(disks(options));
    Ok(words)
}

fn disks(options: &VmOptions) -> Vec<String> {
    let mut words = Vec::new();
    let mut device = |text: String| words.extend(["-device".to_owned(), text]);
    match options.bus {
        DiskBus::VirtioScsi => device("virtio-scsi-pci,id=bus".into()),
        DiskBus::Pvscsi => device("pvscsi,id=bus".into()),
        DiskBus::Ahci => device("ahci,id=bus".into()),
        DiskBus::VirtioBlk | DiskBus::Nvme => {}
    }
    for number in 0..options.disks.len() {
        device(match options.bus {
            DiskBus::VirtioBlk => format!("virtio-blk-pci,drive=disk{number},bootindex={}", number + 1),
            DiskBus::VirtioScsi | DiskBus::Pvscsi => format!("scsi-hd,bus=bus.0,lun={number},drive=disk{number},bootindex={}", number + 1),
            DiskBus::Ahci => format!("ide-hd,bus=bus.{number},drive=disk{number},bootindex={}", number + 1),
            DiskBus::Nvme => format!("nvme,serial=disk{number},drive=disk{number},bootindex={}", number + 1),
        });
    }
    for (number, disk) in options.disks.iter().enumerate() {
        let format = disk.format.name();
        words.extend([
            "-drive".into(),
            format!("if=none,id=disk{number},format={format},cache=writeback,discard=unmap,file={}", disk.path.display()),
        ]);
    }
    words
}

fn network(options: &VmOptions, ssh_port: u16) -> Result<Vec<String>> {
    let mut user = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{ssh_port}-:22");
    let own = std::env::current_exe()?;
    for port in &options.host_ports {
        user.push_str(&format!(",guestfwd=tcp:{GUEST_VIEW_OF_HOST}:{port}-cmd:{} pipe 127.0.0.1:{port}", own.display()));
    }
    let card = match options.card {
        NetworkCard::Virtio => "virtio-net-pci",
        NetworkCard::E1000 => "e1000",
        NetworkCard::Vmxnet3 => "vmxnet3",
    };
    Ok(vec!["-netdev".into(), user, "-device".into(), format!("{card},netdev=net,romfile=")])
}

fn still_running(qemu: &mut Child, said: &Path) -> Result<()> {
    if let Some(status) = qemu.try_wait()? {
        bail!("QEMU ended with {status}: {}", fs::read_to_string(said).unwrap_or_default().trim());
    }
    Ok(())
}

fn console_tail(serial: &Path) -> String {
    let bytes = fs::read(serial).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(3).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
}

/// A TCP port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::panic_line;

    #[test]
    fn a_panic_is_seen_and_an_oops_is_not_one() {
        let console = "login:\n[  12.5] BUG: kernel NULL pointer dereference\r\n[  12.6] Kernel panic - not syncing: Fatal exception in interrupt\r\n";
        assert_eq!(panic_line(console), Some("[  12.6] Kernel panic - not syncing: Fatal exception in interrupt"));
        assert_eq!(panic_line("[ 1.0] BUG: kernel NULL pointer dereference\n"), None);
    }
}
