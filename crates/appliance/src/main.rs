//! `standin-appliance`: makes an appliance, runs it, and hands out tokens on the spot.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use standin_appliance::appliance::{Appliance, Parts};
use standin_appliance::init::{self, Settings};
use standin_appliance::layout::{Layout, now};
use standin_appliance::session::Port;
use standin_appliance::store::{Role, Store, new_secret};
use standin_appliance::{api, unit, worker};
use standin_hypervisor::qemu::{Acceleration, QemuHypervisor};
use standin_model::Timestamp;
use standin_wire::{Authority, ServeOptions};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

#[derive(Parser)]
#[command(name = "standin-appliance", version, about = "Receives, keeps and launches the replicas of protected servers")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an appliance: directory, certificate authority, store, admin token.
    Init {
        #[arg(long, default_value = "/var/lib/standin")]
        dir: PathBuf,
        /// HOST:PORT under which agents reach this appliance.
        #[arg(long)]
        address: String,
        /// Further host names or addresses for the certificates.
        #[arg(long)]
        san: Vec<String>,
    },
    /// Run the appliance.
    Serve(Serve),
    /// Let systemd run the appliance with these options, now and after every boot of this host.
    Service {
        #[command(flatten)]
        options: Serve,
        /// Show the unit and change nothing.
        #[arg(long)]
        print: bool,
    },
    /// Hand out or take back tokens, without the API.
    Token {
        #[arg(long, default_value = "/var/lib/standin")]
        dir: PathBuf,
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Apply one job's journal; the appliance starts this.
    #[command(hide = true)]
    Worker,
}

#[derive(clap::Args)]
struct Serve {
    #[arg(long, default_value = "/var/lib/standin")]
    dir: PathBuf,
    #[arg(long, default_value = "[::]:7410")]
    listen_agents: SocketAddr,
    #[arg(long, default_value = "[::]:7411")]
    listen_api: SocketAddr,
    /// Directory of the replicas' disks.
    #[arg(long, default_value = "/var/lib/standin/datastore")]
    datastore: PathBuf,
    /// Run replicas without hardware virtualisation even where there is some.
    #[arg(long)]
    emulate: bool,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// A bearer token for the API; printed once.
    Create {
        name: String,
        #[arg(long, value_enum, default_value = "operator")]
        role: Role,
    },
    /// A one-time token with which an agent enrols within an hour.
    Enrolment,
    Remove {
        name: String,
    },
    List,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("STANDIN_LOG").unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let result = match cli.command {
        Command::Init { dir, address, san } => init::init(&dir, &address, &san),
        Command::Serve(options) => serve(options),
        Command::Service { options, print } => install(&options, print),
        Command::Token { dir, command } => token(&dir, command),
        Command::Worker => worker::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn install(options: &Serve, print: bool) -> Result<()> {
    Settings::load(&options.dir)?;
    let (dir, datastore) = (std::path::absolute(&options.dir)?, std::path::absolute(&options.datastore)?);
    let program = std::env::current_exe().context("finding this program")?;
    let words = [
        program.display().to_string(),
        "serve".into(),
        format!("--dir={}", dir.display()),
        format!("--datastore={}", datastore.display()),
        format!("--listen-agents={}", options.listen_agents),
        format!("--listen-api={}", options.listen_api),
    ];
    let emulate = options.emulate.then(|| "--emulate".to_owned());
    let text = unit::text(&words.into_iter().chain(emulate).collect::<Vec<_>>(), &[&dir, &datastore]);
    if print {
        print!("{text}");
        return Ok(());
    }
    unit::install(&text)
}

/// A process gets 1,024 unasked, of which the API's connections alone may take a quarter. Journals, agents and workers need the others.
const DESCRIPTORS_WANTED: u64 = 65_536;

fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS_WANTED, |maximum| maximum.min(DESCRIPTORS_WANTED));
    let enough = limit.current.is_none_or(|current| current >= wanted);
    if !enough && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }) {
        tracing::warn!(%error, "the number of descriptors stays as it is");
    }
}

fn serve(options: Serve) -> Result<()> {
    raise_descriptors();
    let settings = Settings::load(&options.dir)?;
    let authority = Arc::new(Authority::open_or_create(Layout::authority(&options.dir)).context("opening the certificate authority")?);
    std::fs::create_dir_all(&options.datastore).with_context(|| format!("making {}", options.datastore.display()))?;
    let acceleration = if options.emulate { Acceleration::Emulate } else { Acceleration::Probe };
    let hypervisor = QemuHypervisor::open(&options.datastore.join("machines"), acceleration).context("opening the hypervisor")?;
    let names = settings.all_names();
    let appliance = Appliance::start(Parts {
        layout: Layout { dir: options.dir.canonicalize()?, datastore: options.datastore.canonicalize()? },
        store: Store::open(&Layout::store(&options.dir))?,
        hypervisor: Box::new(hypervisor),
        agent_address: settings.address.clone(),
        authority: authority.clone(),
        program: std::env::current_exe().context("finding this program")?,
    })?;
    let agents = TcpListener::bind(options.listen_agents).with_context(|| format!("listening on {}", options.listen_agents))?;
    let port = Arc::new(Port(appliance.clone()));
    let listening = standin_wire::serve(agents, authority.clone(), ServeOptions { names: names.clone(), ..ServeOptions::default() }, port)?;
    tracing::info!(agents = %listening.address(), "listening for agents");
    let config = api::server_config(&authority, &names)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve_api(appliance, options.listen_api, config))?;
    listening.stop();
    Ok(())
}

/// Until the API fails or somebody asks this process to end. Workers end with our pipes, machines run on.
async fn serve_api(appliance: Arc<Appliance>, address: SocketAddr, config: Arc<rustls::ServerConfig>) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))?;
    tracing::info!(api = %listener.local_addr()?, "listening for the API");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        () = api::serve(listener, config, api::router(appliance), api::Limits::default()) => anyhow::bail!("the API has ended"),
        _ = terminate.recv() => Ok(()),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}

fn token(dir: &std::path::Path, command: TokenCommand) -> Result<()> {
    Settings::load(dir)?;
    let store = Store::open(&Layout::store(dir))?;
    match command {
        TokenCommand::Create { name, role } => {
            let secret = new_secret()?;
            let added = store.add_api_token(&name, role, &secret, now())?;
            anyhow::ensure!(added, "STANDIN-E5006: there is a token {name} already. Next: standin-appliance token remove {name}");
            store.log(now(), "console", None, None, &format!("made the API token {name} ({})", role.as_str()))?;
            println!("{secret}");
        }
        TokenCommand::Enrolment => {
            let authority = Authority::open_or_create(Layout::authority(dir))?;
            let token = standin_wire::Token::generate(authority.fingerprint()).map_err(|error| anyhow::anyhow!("{error}"))?;
            store.add_enrolment_token(token.secret(), now(), Timestamp(now().0 + 3_600_000_000_000))?;
            store.log(now(), "console", None, None, "made an enrolment token")?;
            println!("{token}");
        }
        TokenCommand::Remove { name } => {
            anyhow::ensure!(store.remove_api_token(&name)?, "STANDIN-E5004: there is no token {name}. Next: standin-appliance token list");
        }
        TokenCommand::List => {
            for (name, role) in store.api_tokens()? {
                println!("{name}\t{}", role.as_str());
            }
        }
    }
    Ok(())
}
