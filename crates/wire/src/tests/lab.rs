//! An appliance for tests: an authority in a temporary directory, a listener on loopback, and sessions that echo.

use crate::*;
use standin_model::{AgentId, ByteLen, Firmware, Inventory};
use std::collections::HashMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

pub(super) const QUICK: Timeouts = Timeouts {
    connect: Duration::from_secs(10),
    write: Duration::from_secs(10),
    idle: Duration::from_secs(10),
    keepalive: Duration::from_millis(200),
};

pub(super) struct Lab {
    pub dir: TempDir,
    pub authority: Arc<Authority>,
    pub appliance: Arc<Appliance>,
    pub listening: Listening,
}

/// Tokens by hash, each good for one agent once.
#[derive(Default)]
pub(super) struct Appliance {
    tokens: Mutex<HashMap<String, AgentId>>,
    pub session_errors: Mutex<Vec<String>>,
}

impl Handler for Appliance {
    fn redeem(&self, secret: &str, _hostname: &str) -> Result<AgentId, Refusal> {
        let agent = self.tokens.lock().unwrap().remove(&Token::hash_of(secret));
        agent.ok_or_else(|| Refusal::new("STANDIN-E1011", "the token is unknown, used or expired"))
    }

    fn session(&self, agent: AgentId, mut connection: Connection) {
        if let Err(error) = echo(agent, &mut connection) {
            self.session_errors.lock().unwrap().push(error.code().to_owned());
        }
    }
}

/// Sends every segment back, until the agent closes.
fn echo(agent: AgentId, connection: &mut Connection) -> Result<(), ConnectionError> {
    accept_session(connection, &agent, "1.2.3")?;
    loop {
        match connection.receive::<ToAppliance>() {
            Ok(Incoming::Segment(bytes)) => connection.send_segment(&bytes)?,
            Ok(Incoming::Control(_)) => {}
            Err(ConnectionError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn authority(dir: &Path) -> Arc<Authority> {
    Arc::new(Authority::open_or_create(dir).unwrap())
}

impl Lab {
    pub fn new() -> Lab {
        Self::with(ServeOptions { timeouts: QUICK, names: vec!["localhost".into(), "127.0.0.1".into()], ..Default::default() })
    }

    pub fn with(options: ServeOptions) -> Lab {
        let dir = TempDir::new().unwrap();
        let authority = authority(dir.path());
        let appliance = Arc::new(Appliance::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listening = serve(listener, authority.clone(), options, appliance.clone()).unwrap();
        Lab { dir, authority, appliance, listening }
    }

    pub fn address(&self) -> String {
        self.listening.address().to_string()
    }

    pub fn token(&self, number: u8) -> Token {
        let token = Token::generate(self.authority.fingerprint()).unwrap();
        self.appliance.tokens.lock().unwrap().insert(token.secret_hash(), agent(number));
        token
    }

    pub fn enrol(&self, token: &str) -> Result<Identity, EnrolError> {
        enrol(&self.address(), token, "source.example", QUICK)
    }

    pub fn identity(&self, number: u8) -> Identity {
        self.enrol(&self.token(number).to_string()).unwrap()
    }

    pub fn connect(&self, identity: &Identity) -> Result<Connection, ConnectionError> {
        let mut connection = Connection::connect(&self.address(), identity, QUICK)?;
        let welcome = open_session(&mut connection, hello(&identity.agent_id))?;
        assert_eq!(welcome.appliance_version, "1.2.3");
        Ok(connection)
    }
}

pub(super) fn agent(number: u8) -> AgentId {
    AgentId::from_random([number; 8])
}

pub(crate) fn hello(agent: &AgentId) -> Hello {
    let inventory = Inventory {
        hostname: "source.example".into(),
        os_name: "Linux".into(),
        kernel_release: "6.1".into(),
        architecture: "x86_64".into(),
        firmware: Firmware::Uefi,
        cpus: 2,
        memory: ByteLen(1 << 30),
        volumes: vec![],
        swaps: vec![],
        system_partition: None,
        network_cards: vec![],
        capture_obstacles: vec![],
        periodic: None,
    };
    Hello { protocol: PROTOCOL, agent_version: "1".into(), agent: agent.clone(), inventory, running: None }
}

/// An identity signed by `authority` without going over the wire.
pub(super) fn signed(authority: &Authority, number: u8, validity: Duration) -> Identity {
    let (key, csr) = new_key_and_request().unwrap();
    let certificate = authority.sign_agent(&csr, &agent(number), validity).unwrap();
    Identity::new(certificate, key, authority.certificate_pem().to_owned()).unwrap()
}
