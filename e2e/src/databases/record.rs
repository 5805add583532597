//! What the clients have said, and the judgement of what a database holds by it. No I/O.
//!
//! A client's transactions have the numbers 1, 2, 3, … and follow each other, so what a database holds of it is one number, and a cut gives it two bounds: all that
//! were confirmed before the marker was asked for, and none that began when it had been answered. Times are the guest's, rounded down to
//! hundredths: "before" asks for an earlier hundredth, and so does "after", so that rounding can only widen the bounds.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use super::Kept;
use super::engine::Engine;

/// The guest's time since its boot, in hundredths of a second.
pub type Stamp = u64;

/// Writers of one generation have numbers below this, which tells generations apart.
pub const WRITERS_MAX: u64 = 100;
/// Lines that were on their way when the guest lost its power: a client begins one every two
/// seconds, and a connection holds back less than half a minute's worth.
const UNHEARD_MAX: u64 = 15;

/// A client of a database; its number holds its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    pub engine: Engine,
    pub number: u64,
}

impl Writer {
    fn generation(self) -> u64 {
        self.number / WRITERS_MAX
    }
}

/// Where a recovery point lies: between the guest's time before the marker was asked for and the time when it had been answered.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub generation: u64,
    pub before: Stamp,
    pub after: Stamp,
}

/// What a database says of one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub writer: Writer,
    pub rows: u64,
    pub lowest: u64,
    pub highest: u64,
    pub counter: u64,
}

impl Found {
    /// Reads `found ENGINE` and five numbers, whatever stands between them.
    pub fn parse(line: &str) -> Option<Found> {
        let (engine, rest) = line.strip_prefix("found ")?.split_once(' ')?;
        let numbers: Vec<u64> = rest.split(|sign: char| !sign.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        let [number, rows, lowest, highest, counter] = numbers[..] else { return None };
        Some(Found { writer: Writer { engine: Engine::named(engine)?, number }, rows, lowest, highest, counter })
    }

    /// The writer's transactions are all there up to one, each whole.
    fn is_whole(&self) -> bool {
        let lowest = u64::from(self.rows > 0);
        self.lowest == lowest && self.highest == self.rows && self.counter == self.rows
    }
}

/// When each of a writer's transactions began and was confirmed; the first has the number 1.
#[derive(Default)]
struct Said {
    begun: Vec<Stamp>,
    confirmed: Vec<Stamp>,
}

/// Everything that was said, by all generations.
#[derive(Default)]
pub struct Record {
    generation: u64,
    said: BTreeMap<Writer, Said>,
    complaint: String,
}

impl Record {
    /// New clients begin.
    pub fn begin(&mut self, generation: u64) {
        self.generation = generation;
        self.complaint.clear();
        for engine in Engine::ALL {
            for client in 0..engine.clients() {
                self.said.insert(Writer { engine, number: generation * WRITERS_MAX + client }, Said::default());
            }
        }
    }

    /// Takes a line. What is no line of ours is kept as a complaint.
    pub fn heed(&mut self, line: &str) {
        if self.take(line).is_none() {
            line.clone_into(&mut self.complaint);
        }
    }

    fn take(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [kind, engine, number, id, stamp] = words[..] else { return None };
        let writer = Writer { engine: Engine::named(engine)?, number: number.parse().ok()? };
        let said = self.said.get_mut(&writer)?;
        let list = match kind {
            "b" => &mut said.begun,
            "c" => &mut said.confirmed,
            _ => return None,
        };
        let follows = id.parse::<usize>().ok()? == list.len() + 1;
        follows.then(|| stamp.parse().ok().map(|stamp| list.push(stamp)))?
    }

    pub fn complaint(&self) -> &str {
        &self.complaint
    }

    fn now(&self) -> impl Iterator<Item = (&Writer, &Said)> {
        self.said.iter().filter(|(writer, _)| writer.generation() == self.generation)
    }

    pub fn all_confirmed(&self) -> bool {
        self.now().all(|(_, said)| !said.confirmed.is_empty())
    }

    pub fn heard_beyond(&self, moment: Stamp) -> bool {
        let beyond = |stamps: &[Stamp]| stamps.last().is_some_and(|last| *last > moment + 1);
        self.now().all(|(_, said)| beyond(&said.begun) || beyond(&said.confirmed))
    }

    pub fn confirmed_now(&self) -> BTreeMap<Writer, usize> {
        self.now().map(|(writer, said)| (*writer, said.confirmed.len())).collect()
    }

    /// How far each writer is, for a message.
    pub fn shown(&self) -> String {
        let each = self.now().map(|(writer, said)| format!("{} {}: {}", writer.engine.name(), writer.number, said.confirmed.len()));
        format!("{}; {}", each.collect::<Vec<_>>().join(", "), self.complaint)
    }

    /// The least and the most transactions of a writer that may be there; without a cut, everything that was confirmed has to be.
    fn bounds(&self, writer: Writer, said: &Said, cut: Option<&Cut>) -> (u64, u64) {
        let (begun, confirmed) = (said.begun.len() as u64, said.confirmed.len() as u64);
        match cut {
            Some(cut) if writer.generation() == cut.generation => {
                let least = said.confirmed.iter().filter(|stamp| **stamp < cut.before).count();
                // A hundredth more: what began in the same hundredth may have begun before.
                let most = said.begun.iter().filter(|stamp| **stamp <= cut.after + 1).count();
                (least as u64, most as u64)
            }
            Some(cut) if writer.generation() > cut.generation => (0, 0),
            _ => (confirmed, begun + UNHEARD_MAX),
        }
    }

    /// Judges what was found in all databases. Returns how much each has kept.
    pub fn judge(&self, found: &[Found], cut: Option<&Cut>) -> Result<Vec<Kept>> {
        let torn: Vec<_> = found.iter().filter(|found| !found.is_whole() || !self.said.contains_key(&found.writer)).collect();
        ensure!(torn.is_empty(), "transactions are torn, or no client's: {torn:?}");
        let mut kept: Vec<Kept> = Engine::ALL.map(|engine| Kept { engine, transactions: 0 }).into();
        for (writer, said) in &self.said {
            let (least, most) = self.bounds(*writer, said, cut);
            let rows = found.iter().find(|found| found.writer == *writer).map_or(0, |found| found.rows);
            let where_cut = cut.map_or_else(|| "the end".to_owned(), |cut| format!("{cut:?}"));
            ensure!(rows >= least, "{writer:?} has {rows} transactions, but {least} were confirmed before {where_cut}");
            ensure!(rows <= most, "{writer:?} has {rows} transactions, but only {most} had begun at {where_cut}");
            kept.iter_mut().filter(|kept| kept.engine == writer.engine).for_each(|kept| kept.transactions += rows);
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every client of generation 1 commits one transaction a second, confirmed after half of one; the first begins at 1 s.
    fn recorded(seconds: u64) -> Record {
        let mut record = Record::default();
        record.begin(1);
        let writers: Vec<Writer> = record.said.keys().copied().collect();
        for writer in writers {
            for id in 1..=seconds {
                record.heed(&format!("b {} {} {id} {}", writer.engine.name(), writer.number, id * 100));
                record.heed(&format!("c {} {} {id} {}", writer.engine.name(), writer.number, id * 100 + 50));
            }
        }
        assert_eq!(record.complaint(), "");
        record
    }

    fn found(record: &Record, rows: u64) -> Vec<Found> {
        let whole = |writer: &Writer| Found { writer: *writer, rows, lowest: u64::from(rows > 0), highest: rows, counter: rows };
        record.said.keys().map(whole).collect()
    }

    #[test]
    fn a_cut_has_two_bounds() {
        let record = recorded(10);
        let cut = Cut { generation: 1, before: 451, after: 520 };
        let check = |rows, expect: bool| assert_eq!(record.judge(&found(&record, rows), Some(&cut)).is_ok(), expect, "{rows} rows");
        check(3, false);
        check(4, true);
        check(5, true);
        check(6, false);
        assert!(record.heard_beyond(1040) && !record.heard_beyond(1050));
    }

    #[test]
    fn one_writer_that_lacks_one_is_seen_and_so_is_a_torn_one() {
        let record = recorded(10);
        assert!(record.judge(&found(&record, 10), None).is_ok());
        let mut short = found(&record, 10);
        (short[2].rows, short[2].highest, short[2].counter) = (9, 9, 9);
        assert!(record.judge(&short, None).unwrap_err().to_string().contains("has 9 transactions"));
        let mut gap = found(&record, 10);
        gap[0].rows = 9;
        assert!(record.judge(&gap, None).unwrap_err().to_string().contains("torn"));
        let mut counter = found(&record, 10);
        counter[0].counter = 9;
        assert!(record.judge(&counter, None).is_err());
    }

    #[test]
    fn clients_after_a_power_cut_are_others() {
        let mut record = recorded(3);
        record.begin(2);
        let cut = Cut { generation: 2, before: 100, after: 200 };
        let earlier: Vec<Found> = found(&recorded(3), 3);
        assert!(record.judge(&earlier, Some(&cut)).is_ok());
        assert!(record.judge(&found(&recorded(3), 2), Some(&cut)).is_err(), "what was confirmed before the power cut must be there");
        assert!(record.judge(&found(&recorded(3), 3), Some(&Cut { generation: 1, before: 251, after: 260 })).is_err());
    }

    #[test]
    fn lines_of_all_clients_are_read() {
        let expect = Found { writer: Writer { engine: Engine::Mariadb, number: 101 }, rows: 7, lowest: 1, highest: 7, counter: 7 };
        assert_eq!(Found::parse("found mariadb 101\t7\t1\t7\t7"), Some(expect));
        assert_eq!(Found::parse("found sqlite 100|0|0|0|0").map(|found| found.rows), Some(0));
        assert_eq!(Found::parse("found sqlite 100|0"), None);
        let mut record = recorded(1);
        record.heed("e mariadb: it does not start");
        assert_eq!(record.complaint(), "e mariadb: it does not start");
    }
}
