//! The clients, inside the guest: `standin-e2e witness`. One line before each transaction and one behind its commit, with the guest's clock.
//!
//! Lines: `b ENGINE WRITER ID CENTISECONDS` (begins), `c …` (confirmed), `e …` (something failed; the program ends).

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::engine::Engine;
use super::record::WRITERS_MAX;

#[derive(clap::Args)]
pub struct WitnessArgs {
    /// Tells these clients' numbers from those of earlier ones.
    #[arg(long)]
    generation: u64,
    /// Milliseconds between a client's transactions.
    #[arg(long, default_value_t = 2000)]
    pause_ms: u64,
}

/// A database beside a guest's boot takes its time.
const START_LIMIT: Duration = Duration::from_secs(240);

pub fn run(arguments: &WitnessArgs) -> Result<()> {
    let pause = Duration::from_millis(arguments.pause_ms);
    let engines = Engine::ALL.map(|engine| {
        let first = arguments.generation * WRITERS_MAX;
        std::thread::spawn(move || ended(engine, serve(engine, first, pause)))
    });
    for engine in engines {
        engine.join().ok();
    }
    Ok(())
}

fn serve(engine: Engine, first: u64, pause: Duration) -> Result<()> {
    prepare(engine)?;
    let clients: Vec<_> =
        (first..first + engine.clients()).map(|writer| std::thread::spawn(move || ended(engine, write(engine, writer, pause)))).collect();
    for client in clients {
        client.join().ok();
    }
    Ok(())
}

/// One client's error ends all of them: whoever listens must not take the others for the whole.
fn ended(engine: Engine, done: Result<()>) {
    if let Err(error) = done {
        say(&format!("e {}: {error:#}", engine.name())).ok();
        std::process::exit(1);
    }
}

/// Waits for the database, and makes its tables.
fn prepare(engine: Engine) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let mut child = client(engine)?;
        child.stdin.take().context("no input")?.write_all(engine.tables().as_bytes()).ok();
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("it does not start: {}", String::from_utf8_lossy(&output.stdout).trim());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn client(engine: Engine) -> Result<std::process::Child> {
    let script = format!("cd / && exec 2>&1; {}", engine.client());
    Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a client")
}

fn write(engine: Engine, writer: u64, pause: Duration) -> Result<()> {
    let mut child = client(engine)?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let (mut input, mut output) = (input.context("no input")?, BufReader::new(output.context("no output")?).lines());
    input.write_all(engine.opening(writer).as_bytes())?;
    for id in 1.. {
        say(&format!("b {} {writer} {id} {}", engine.name(), centiseconds()?))?;
        // A client that has ended says why on its output.
        let asked = input.write_all(engine.transaction(writer, id).as_bytes()).and_then(|()| input.flush());
        let mut last = String::new();
        loop {
            let Some(line) = output.next() else { bail!("the client has ended: {last} {asked:?}") };
            last = line?;
            if last.trim() == id.to_string() {
                break;
            }
        }
        say(&format!("c {} {writer} {id} {}", engine.name(), centiseconds()?))?;
        std::thread::sleep(pause);
    }
    Ok(())
}

/// One whole line at once; it fails when nobody listens any more.
fn say(line: &str) -> Result<()> {
    std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).context("nobody listens")
}

/// The guest's time since its boot, rounded down.
fn centiseconds() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/uptime")?;
    let first = text.split_whitespace().next().context("an empty /proc/uptime")?;
    first.replace('.', "").parse().with_context(|| format!("an odd time {first:?}"))
}
