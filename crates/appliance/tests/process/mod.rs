//! The appliance as its own process, killed and started again; and just enough HTTP to speak with its API.

use crate::agent::FakeAgent;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use standin_model::{JobId, OpSeq};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_standin-appliance");

pub struct Process {
    dir: PathBuf,
    pub agents: String,
    api: String,
    child: Option<Child>,
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

impl Process {
    pub fn init(dir: &Path) -> Process {
        let process = Process { dir: dir.to_owned(), agents: free_address(), api: free_address(), child: None };
        let made = Command::new(PROGRAM).args(["init", "--address", &process.agents, "--dir"]).arg(dir).stdout(Stdio::null()).status();
        assert!(made.unwrap().success());
        process
    }

    /// A started appliance of a new folder with such a source and job; see [`Process::protected`].
    pub fn protecting(dir: &Path) -> (Process, FakeAgent, JobId, OpSeq) {
        let mut process = Process::init(dir);
        process.start();
        let (agent, job, last) = process.protected();
        (process, agent, job, last)
    }

    /// An enrolled source, web1, whose mirror is through and whose job is protected; the job; and the last position of its stream.
    pub fn protected(&self) -> (FakeAgent, JobId, OpSeq) {
        let mut agent = FakeAgent::enrol(&self.agents, &self.enrolment_token()).unwrap();
        agent.connect(None);
        self.wait_source(&agent);
        let (status, job) = self.request("POST", "/api/v1/jobs", r#"{"source": "web1"}"#).unwrap();
        assert_eq!(status, 201, "{job:#}");
        let order = agent.expect_start();
        agent.begin(&order);
        agent.mirror(b"content");
        let last = agent.seal();
        self.wait_job("web1", "protected", |view| view["state"] == "protected");
        (agent, order.job, last)
    }

    /// Starts it and waits until the API answers.
    pub fn start(&mut self) {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--emulate", "--listen-agents", &self.agents, "--listen-api", &self.api]);
        command.arg("--dir").arg(&self.dir).arg("--datastore").arg(self.dir.join("datastore"));
        self.child = Some(command.spawn().unwrap());
        let deadline = Instant::now() + LIMIT;
        while self.request("GET", "/api/v1/version", "").is_none() {
            assert!(Instant::now() < deadline, "the appliance does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn enrolment_token(&self) -> String {
        let output = Command::new(PROGRAM).args(["token", "--dir"]).arg(&self.dir).arg("enrolment").output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Status and body; `None` when nobody answers.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let token = std::fs::read_to_string(self.dir.join("admin.token")).unwrap();
        self.request_as(&token, method, path, body)
    }

    pub fn request_as(&self, token: &str, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.dir.join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let session = rustls::ClientConnection::new(Arc::new(config), ServerName::try_from("127.0.0.1").unwrap()).unwrap();
        let mut stream = rustls::StreamOwned::new(session, TcpStream::connect(&self.api).ok()?);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        let mut answer = Vec::new();
        // A server that closes without a farewell still has answered.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split_whitespace().nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    /// Waits until the appliance knows what the agent said of its source last.
    pub fn wait_source(&self, agent: &super::agent::FakeAgent) {
        let deadline = Instant::now() + LIMIT;
        let said = serde_json::to_value(&agent.inventory).unwrap();
        let known = |view: &Value| view["id"] == agent.id().as_str() && view["connected"] == true && view["inventory"] == said;
        while !self
            .request("GET", "/api/v1/agents", "")
            .is_some_and(|(_, agents)| agents.as_array().is_some_and(|all| all.iter().any(known)))
        {
            assert!(Instant::now() < deadline, "the agent's source is not known");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the job looks as wanted.
    pub fn wait_job(&self, job: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let view = self.request("GET", &format!("/api/v1/jobs/{job}"), "").map(|(_, view)| view).unwrap_or_default();
            if fits(&view) {
                return view;
            }
            assert!(Instant::now() < deadline, "{job} did not become {what}: {view:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
