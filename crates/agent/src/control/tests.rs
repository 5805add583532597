//! The socket in front of a real pump, with a scripted kernel behind it.

use super::*;
use crate::pump::{Capture, Captured, Pump, PumpReader};
use standin_journal::{Queue, QueueOptions, Sealer};
use standin_mirror::{Content, Exclusions, ListedEntry, Mirror, NodeFacts, ReadError, Scope, SourceReader};
use standin_model::*;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::Receiver;

fn root() -> NodeId {
    NodeId { volume: VolumeId(0), subvolume: 0, inode: 2, generation: 0 }
}

/// The kernel's side: operations in the order in which they ended.
#[derive(Clone, Default)]
struct Kernel(Arc<Mutex<Vec<Operation>>>);

impl Capture for Kernel {
    fn barrier(&mut self, sink: &mut Vec<Captured>) -> Result<()> {
        let operations = std::mem::take(&mut *self.0.lock().unwrap());
        sink.extend(operations.into_iter().map(|operation| Captured::Operation { operation, touched: vec![(root(), Timestamp(1))] }));
        Ok(())
    }
    fn wait(&mut self, bound: Duration) -> Result<()> {
        std::thread::sleep(bound.min(Duration::from_millis(1)));
        Ok(())
    }
}

/// An empty file system.
struct Empty;

impl PumpReader for Empty {
    fn note_direct_io(&mut self, _: NodeId) {}
}

impl SourceReader for Empty {
    fn list(&mut self, node: NodeId) -> Result<Option<Vec<ListedEntry>>, ReadError> {
        Ok((node == root()).then(Vec::new))
    }
    fn look(&mut self, node: NodeId) -> Result<Option<NodeFacts>, ReadError> {
        let attributes = Attributes { mode: 0o755, owner: 0, group: 0, modified: Timestamp(1) };
        let facts = NodeFacts {
            kind: NodeKind::Directory,
            named: true,
            links: 1,
            attributes,
            accessed: Timestamp(1),
            changed: Timestamp(1),
            flags: 0,
            project: 0,
            size: ByteLen(0),
            xattrs: Vec::new(),
        };
        Ok((node == root()).then_some(facts))
    }
    fn read(&mut self, _: NodeId, _: u64, _: usize) -> Result<Option<Content>, ReadError> {
        Ok(None)
    }
}

/// A pump on its thread, as the runner has it, and the socket.
struct Lab {
    directory: tempfile::TempDir,
    kernel: Kernel,
    queue: SharedQueue,
    current: Current,
    live: LiveJob,
    stop: Arc<AtomicBool>,
    pump: Option<std::thread::JoinHandle<()>>,
}

/// Without `walk` the pump answers orders and mirrors nothing.
fn lab(walk: bool) -> Lab {
    let directory = tempfile::tempdir().unwrap();
    let queue = SharedQueue::new(Queue::open(directory.path().join("queue"), QueueOptions::default()).unwrap());
    let (kernel, stop) = (Kernel::default(), Arc::new(AtomicBool::new(false)));
    let (orders, received) = sync_channel(64);
    let live = LiveJob { job: JobId::from_random([1; 8]), orders, queue: queue.clone() };
    let pump = std::thread::spawn({
        let (kernel, queue, stop) = (kernel.clone(), queue.clone(), Arc::clone(&stop));
        move || run_pump(kernel, queue, &received, &stop, walk)
    });
    let current = Current::default();
    serve(&directory.path().join("run/socket"), None, current.clone()).unwrap();
    Lab { directory, kernel, queue, current, live, stop, pump: Some(pump) }
}

fn run_pump(kernel: Kernel, queue: SharedQueue, orders: &Receiver<Order>, stop: &AtomicBool, walk: bool) {
    let mirror = Mirror::new(&[(root(), b"/".to_vec())], Scope::Everything, Exclusions::new::<&str>(&[]).unwrap());
    let clock = Box::new(crate::pump::now);
    let mut pump = Pump::new(kernel, Empty, mirror, vec![root()], Sealer::new(1, OpSeq(1), 1), queue, clock);
    while !stop.load(Ordering::Acquire) {
        if let Ok(Order::Mark { name, answer }) = orders.try_recv() {
            answer.try_send(pump.mark(&name).unwrap()).unwrap();
        }
        if walk {
            pump.turn(Duration::from_millis(1)).unwrap();
        }
    }
}

impl Lab {
    fn mark(&self, name: &str, wait_seconds: u64) -> Result<Marked, String> {
        ask_mark(&self.directory.path().join("run/socket"), name, wait_seconds).map_err(|refusal| refusal.code)
    }

    /// Marks once the walk is through.
    fn mark_protected(&self, name: &str) -> Marked {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        loop {
            match self.mark(name, 0) {
                Ok(marked) => return marked,
                Err(code) => assert_eq!(code, "STANDIN-E6022"),
            }
            assert!(std::time::Instant::now() < deadline, "the walk does not end");
        }
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.pump.take().unwrap().join().unwrap();
    }

    fn segments(&self) -> Vec<Vec<Item>> {
        let (mut all, mut at) = (Vec::new(), OpSeq::ZERO);
        while let Some(segment) = self.queue.next_after(at, Duration::from_millis(200)).unwrap() {
            at = segment.last_seq();
            all.push(segment.items().unwrap());
        }
        all
    }
}

fn create(writer: u64, number: u64) -> Operation {
    Operation::Create {
        parent: root(),
        name: Name::new(format!("{writer}-{number}")).unwrap(),
        node: NodeId { inode: 1000 + writer * 1_000_000 + number, ..root() },
        attributes: Attributes { mode: 0o644, owner: 0, group: 0, modified: Timestamp(1) },
    }
}

#[test]
fn every_refusal_has_its_code() {
    let lab = lab(false);
    let nowhere = ask_mark(&lab.directory.path().join("nowhere"), "a", 0).unwrap_err();
    assert_eq!(nowhere.code, "STANDIN-E6020");
    assert_eq!(lab.mark("a", 0), Err("STANDIN-E6021".into()), "no job");
    lab.current.set(Some(lab.live.clone()));
    assert_eq!(lab.mark("../a", 0), Err("STANDIN-E6023".into()));
    assert_eq!(lab.mark("a", 0), Err("STANDIN-E6022".into()), "the mirror has not ended");
    let mut dead = lab;
    dead.end();
    assert_eq!(dead.mark("a", 0), Err("STANDIN-E6021".into()), "the pump is gone");
    // Garbage is answered too, and the socket goes on.
    let stream = UnixStream::connect(dead.directory.path().join("run/socket")).unwrap();
    (&stream).write_all(b"{\"ask\":\"format\"}\n").unwrap();
    let mut text = String::new();
    (&stream).read_to_string(&mut text).unwrap();
    assert!(text.contains("STANDIN-E6026"), "{text}");
    assert_eq!(dead.mark("a", 0), Err("STANDIN-E6021".into()));
}

#[test]
fn the_socket_is_for_root_and_its_group_and_outlives_a_killed_agent() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("deep/socket");
    drop(listen(&socket, None).unwrap());
    let mode = |socket: &Path| std::fs::metadata(socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    // Its file is still there, and nobody listens on it.
    if rustix::process::geteuid().is_root() {
        let listener = listen(&socket, Some("root")).unwrap();
        assert_eq!(mode(&socket), 0o660);
        assert!(listen(&socket, None).is_err(), "one agent at a time");
        drop(listener);
    }
    assert!(listen(&socket, Some("no-such-group")).is_err());
}

#[test]
fn a_wait_ends_when_the_appliance_has_the_marker() {
    let lab = lab(true);
    lab.current.set(Some(lab.live.clone()));
    let first = lab.mark_protected("first");
    assert!(!first.durable);
    assert_eq!(lab.mark("second", 1), Err("STANDIN-E6027".into()));
    let queue = lab.queue.clone();
    let acknowledging = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        queue.acknowledge(OpSeq(1 << 40)).unwrap();
    });
    assert!(lab.mark("third", 60).unwrap().durable);
    acknowledging.join().unwrap();
}

/// Writers never stop; what had ended before the request is before the marker, what begins after the answer is behind it.
#[test]
fn a_marker_divides_what_was_before_from_what_comes_after() {
    const WRITERS: usize = 3;
    const MARKS: usize = 40;
    let mut lab = lab(true);
    lab.current.set(Some(lab.live.clone()));
    lab.mark_protected("protected");
    let begun: Arc<[AtomicU64; WRITERS]> = Arc::default();
    let ended: Arc<[AtomicU64; WRITERS]> = Arc::default();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (kernel, begun, ended, stop) = (lab.kernel.clone(), begun.clone(), ended.clone(), stop.clone());
            std::thread::spawn(move || {
                for number in 1.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    begun[writer].store(number, Ordering::SeqCst);
                    kernel.0.lock().unwrap().push(create(writer as u64, number));
                    ended[writer].store(number, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_micros(50));
                }
            })
        })
        .collect();
    let now = |counters: &[AtomicU64; WRITERS]| [0, 1, 2].map(|writer| counters[writer].load(Ordering::SeqCst));
    let marks: Vec<_> = (0..MARKS)
        .map(|number| {
            let before = now(&ended);
            let marked = lab.mark(&format!("mark-{number}"), 0).unwrap();
            (marked.seq, before, now(&begun))
        })
        .collect();
    stop.store(true, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    lab.end();

    let segments = lab.segments();
    let mut places = [vec![OpSeq::ZERO], vec![OpSeq::ZERO], vec![OpSeq::ZERO]];
    for item in segments.iter().flatten() {
        if let Operation::Create { node, .. } = &item.operation {
            let (writer, number) = ((node.inode - 1000) / 1_000_000, (node.inode - 1000) % 1_000_000);
            let places = &mut places[writer as usize];
            assert_eq!(places.len() as u64, number, "operations of one writer come in their order, none missing");
            places.push(item.seq);
        }
    }
    for (mark, before, begun) in &marks {
        for writer in 0..WRITERS {
            let is_before = |number: u64| places[writer].get(number as usize).is_some_and(|seq| seq < mark);
            assert!(before[writer] == 0 || is_before(before[writer]), "{mark}: {} of {writer} had ended", before[writer]);
            assert!(!is_before(begun[writer] + 1), "{mark}: {} of {writer} had not begun", begun[writer] + 1);
        }
        let segment = segments.iter().find(|segment| segment.iter().any(|item| item.seq == *mark)).unwrap();
        assert_eq!(segment.last().unwrap().seq, *mark, "nothing of its segment is behind it");
        assert!(matches!(&segment.last().unwrap().operation, Operation::Marker(Marker::Named(name)) if name.starts_with("mark-")));
    }
    let written: u64 = now(&ended).iter().sum();
    assert!(written > 100, "only {written} operations beside {MARKS} markers");
}
