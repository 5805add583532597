//! A scripted agent: enrols, connects, and sends what the test tells it.

use standin_journal::Sealer;
use standin_model::*;
use standin_wire::{Connection, Hello, Identity, Incoming, PROTOCOL, Receiver, Running, Sender, Timeouts, ToAgent, ToAppliance};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

pub struct FakeAgent {
    /// What the next connection says of the source.
    pub inventory: Inventory,
    pub protocol: u32,
    pub address: String,
    identity: Identity,
    link: Option<(Sender, Receiver)>,
    job: Option<JobId>,
    sealer: Option<Sealer>,
}

pub struct Start {
    pub job: JobId,
    pub next: OpSeq,
    pub epoch: u64,
    pub since: Option<Timestamp>,
}

pub fn root_node() -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode: 2, generation: 0 }
}

pub fn file_node() -> NodeId {
    NodeId { inode: 12, generation: 77, ..root_node() }
}

pub fn data(node: NodeId, offset: u64, data: &[u8]) -> Operation {
    Operation::Write { node, offset: ByteOffset(offset), data: data.to_vec() }
}

fn inventory() -> Inventory {
    let volume = Volume {
        mount_point: "/".into(),
        device: "/dev/vda1".into(),
        file_system: Some(FileSystem::Ext4),
        file_system_name: "ext4".into(),
        uuid: "3b0f2a52-6c1d-4a51-9a55-0123456789ab".into(),
        label: String::new(),
        size: ByteLen(128 << 20),
        used: ByteLen(4 << 20),
        nodes_used: 20,
        extra_subvolumes: 0,
        partition_uuid: None,
        subvolume: None,
        features: Vec::new(),
        capture_obstacle: None,
    };
    Inventory {
        hostname: "web1".into(),
        os_name: "Debian GNU/Linux 12".into(),
        kernel_release: "6.1.0".into(),
        architecture: "x86_64".into(),
        firmware: Firmware::Bios,
        cpus: 1,
        memory: ByteLen(512 << 20),
        volumes: vec![volume],
        swaps: Vec::new(),
        system_partition: None,
        network_cards: Vec::new(),
        capture_obstacles: Vec::new(),
        periodic: None,
    }
}

fn now() -> Timestamp {
    standin_appliance::layout::now()
}

impl FakeAgent {
    pub fn enrol(address: &str, token: &str) -> Result<FakeAgent, String> {
        let identity = standin_wire::enrol(address, token, "web1", Timeouts::default())
            .map_err(|error| format!("{}: {}", error.code(), standin_appliance::errors::chain(&error)))?;
        Ok(FakeAgent { inventory: inventory(), protocol: PROTOCOL, address: address.into(), identity, link: None, job: None, sealer: None })
    }

    pub fn id(&self) -> &AgentId {
        &self.identity.agent_id
    }

    pub fn try_connect(&mut self) -> Result<(), String> {
        self.greet(None)
    }

    /// A new connection whose greeting says what the agent still runs.
    pub fn connect_running(&mut self, epoch: u64) {
        let running = self.job.iter().map(|job| Running { job: job.clone(), epoch }).collect();
        self.greet(Some(running)).unwrap();
    }

    fn greet(&mut self, running: Option<Vec<Running>>) -> Result<(), String> {
        self.link = None;
        let mut connection = Connection::connect(&self.address, &self.identity, Timeouts::default())
            .map_err(|error| format!("{}: {}", error.code(), standin_appliance::errors::chain(&error)))?;
        let inventory = self.inventory.clone();
        let hello = Hello { protocol: self.protocol, agent_version: "test".into(), agent: self.id().clone(), inventory, running };
        standin_wire::open_session(&mut connection, hello)
            .map_err(|error| format!("{}: {}", error.code(), standin_appliance::errors::chain(&error)))?;
        self.link = Some(connection.split());
        Ok(())
    }

    /// A new connection; `epoch` is what the agent still runs.
    pub fn connect(&mut self, epoch: Option<u64>) {
        self.try_connect().unwrap();
        if let (Some(job), Some(epoch)) = (self.job.clone(), epoch) {
            self.send(&ToAppliance::Started { job, epoch });
        }
    }

    pub fn say(&self, message: &ToAppliance) {
        self.send(message);
    }

    fn send(&self, message: &ToAppliance) {
        self.link.as_ref().unwrap().0.send(message).unwrap();
    }

    /// Skips messages until one fits.
    pub fn expect(&mut self, fits: impl Fn(&ToAgent) -> bool) -> ToAgent {
        let deadline = Instant::now() + LIMIT;
        let (_, receiver) = self.link.as_mut().unwrap();
        while Instant::now() < deadline {
            if let Incoming::Control(message) = receiver.receive::<ToAgent>().unwrap()
                && fits(&message)
            {
                return message;
            }
        }
        panic!("the message did not come");
    }

    pub fn expect_start(&mut self) -> Start {
        match self.expect(|message| matches!(message, ToAgent::StartJob { .. })) {
            ToAgent::StartJob { spec, next, epoch, since, .. } => Start { job: spec.job, next, epoch, since },
            _ => unreachable!("it was matched"),
        }
    }

    pub fn begin(&mut self, start: &Start) {
        self.job = Some(start.job.clone());
        self.sealer = Some(Sealer::new(start.epoch, start.next, 1));
        self.send(&ToAppliance::Started { job: start.job.clone(), epoch: start.epoch });
    }

    pub fn push(&mut self, operation: Operation) {
        self.sealer.as_mut().unwrap().push(operation, now());
    }

    /// Sends what was pushed, and returns its last number.
    pub fn seal(&mut self) -> OpSeq {
        let segment = self.sealer.as_mut().unwrap().seal().unwrap();
        self.link.as_ref().unwrap().0.send_segment(&segment.bytes).unwrap();
        segment.last_seq()
    }

    /// A root with one file, up to `Consistent`.
    pub fn mirror(&mut self, content: &[u8]) {
        let attributes = |mode| Attributes { mode, owner: 0, group: 0, modified: Timestamp(1_700_000_000_000_000_000) };
        let node = |node, kind, mode, size| Operation::MirrorNode {
            node,
            kind,
            attributes: attributes(mode),
            accessed: Timestamp(1_700_000_000_000_000_000),
            flags: 0,
            project: 0,
            size: ByteLen(size),
            xattrs: Vec::new(),
        };
        let entry =
            DirectoryEntry { name: Name::new("hello").unwrap(), node: file_node(), kind: NodeKind::File, device: 0, target: Vec::new() };
        self.push(node(root_node(), NodeKind::Directory, 0o755, 4096));
        self.push(Operation::MirrorDirectory { node: root_node(), entries: vec![entry], first: true, last: true });
        self.push(node(file_node(), NodeKind::File, 0o644, content.len() as u64));
        self.push(Operation::MirrorData { node: file_node(), offset: ByteOffset(0), data: content.to_vec() });
        self.push(Operation::Marker(Marker::Consistent));
    }

    pub fn refuse(&self, code: &str, cause: &str) {
        self.send(&ToAppliance::Refused { job: self.job.clone(), code: code.into(), cause: cause.into() });
    }

    pub fn quiesced(&self, seq: OpSeq) {
        self.send(&ToAppliance::Quiesced { job: self.job.clone().unwrap(), seq });
    }

    pub fn thawed(&self, reason: &str) {
        self.send(&ToAppliance::Thawed { job: self.job.clone().unwrap(), reason: reason.into() });
    }

    /// Reads until the appliance ends the session.
    pub fn is_cut_off(&mut self) -> bool {
        let deadline = Instant::now() + LIMIT;
        let (_, receiver) = self.link.as_mut().unwrap();
        while Instant::now() < deadline {
            if receiver.receive::<ToAgent>().is_err() {
                return true;
            }
        }
        false
    }

    pub fn fenced(&self) {
        self.send(&ToAppliance::Fenced { job: self.job.clone().unwrap() });
    }
}
