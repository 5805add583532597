//! Ends the agent in good order when it is told to: what has happened is drained, put on the source's disks, and delivered.
//!
//! A source that reboots in good order loses nothing, but the replica cannot know that and wants what is not settled. So the last thing that an agent says
//! is `Settled`, and the queue has a moment to be delivered. Every step has a bound, and whatever does not succeed leaves things as a killed agent
//! does. The unit is ordered so that this comes behind the end of the server's own services.

use crate::control::{Current, LiveJob};
use crate::runner::Order;
use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// For the syncs; half of what the unit waits for.
pub const SYNC_MAX: Duration = Duration::from_secs(30);
/// The pump may be reading from a disk when the order comes.
const ANSWER_MAX: Duration = Duration::from_secs(SYNC_MAX.as_secs() + 5);
/// For what waits in the queue.
const DELIVER_MAX: Duration = Duration::from_secs(10);
/// How often the connection is looked at meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// From now on SIGTERM and SIGINT end the process through `leave`; a second one ends it at once.
pub fn on_signal(current: Current, connected: Arc<AtomicBool>) -> Result<()> {
    let (mut told, teller) = UnixStream::pair().context("a pipe for signals")?;
    let again = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&again)).context("handling signals")?;
        signal_hook::flag::register(signal, Arc::clone(&again)).context("handling signals")?;
        signal_hook::low_level::pipe::register(signal, teller.try_clone()?).context("handling signals")?;
    }
    std::thread::Builder::new().name("stop".to_owned()).spawn(move || {
        if told.read(&mut [0]).is_ok()
            && let Some(live) = current.get()
        {
            leave(&live, &connected);
        }
        std::process::exit(0);
    })?;
    Ok(())
}

fn leave(live: &LiveJob, connected: &AtomicBool) {
    let (answer, answered) = sync_channel(1);
    let settled = match live.orders.try_send(Order::Leave { answer }) {
        Ok(()) => answered.recv_timeout(ANSWER_MAX).unwrap_or(false),
        Err(_) => false,
    };
    let last = live.queue.last();
    let until = Instant::now() + DELIVER_MAX;
    let mut delivered = live.queue.wait_durable(last, Duration::ZERO);
    while !delivered && connected.load(Ordering::Relaxed) && Instant::now() < until {
        delivered = live.queue.wait_durable(last, LOOK_EVERY);
    }
    tracing::info!(job = %live.job, %last, settled, delivered, "ending");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::SharedQueue;
    use standin_journal::{Queue, QueueOptions, Sealer};
    use standin_model::{JobId, Marker, OpSeq, Operation, Timestamp};
    use std::sync::mpsc::Receiver;

    struct Lab {
        live: LiveJob,
        orders: Receiver<Order>,
        connected: AtomicBool,
        _directory: tempfile::TempDir,
    }

    impl Lab {
        /// A job of which one item is queued.
        fn new(connected: bool) -> Lab {
            let directory = tempfile::tempdir().unwrap();
            let queue = SharedQueue::new(Queue::open(directory.path().join("queue"), QueueOptions::default()).unwrap());
            let mut sealer = Sealer::new(1, OpSeq(1), 0);
            sealer.push(Operation::Marker(Marker::Quiesced), Timestamp(1));
            queue.push(sealer.seal().unwrap()).unwrap();
            let (orders, received) = sync_channel(1);
            let live = LiveJob { job: JobId::parse("job-0123456789abcdef").unwrap(), orders, queue };
            Lab { live, orders: received, connected: AtomicBool::new(connected), _directory: directory }
        }

        fn answer(&self) {
            let Ok(Order::Leave { answer }) = self.orders.recv() else { panic!("another order") };
            answer.send(true).unwrap();
        }
    }

    #[test]
    fn the_end_waits_for_the_appliance_and_no_longer() {
        let lab = Lab::new(true);
        let ended = std::thread::scope(|scope| {
            let leaving = scope.spawn(|| leave(&lab.live, &lab.connected));
            lab.answer();
            std::thread::sleep(Duration::from_millis(300));
            assert!(!leaving.is_finished(), "the item is not delivered");
            lab.live.queue.acknowledge(OpSeq(1)).unwrap();
            let begun = Instant::now();
            leaving.join().unwrap();
            begun.elapsed()
        });
        assert!(ended < DELIVER_MAX / 2, "{ended:?}");
    }

    #[test]
    fn without_a_connection_nothing_is_waited_for() {
        let lab = Lab::new(false);
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| leave(&lab.live, &lab.connected));
            lab.answer();
        });
        assert!(begun.elapsed() < DELIVER_MAX / 2);
    }
}
