//! A transactional producer that is watched: when each transaction was committed, how long its end took, how many input
//! records it covers, and what was written by topic. The same wrapper is around the bare loop's producer and the
//! engine's, so both are measured alike. Changes nothing about what is written. Next: `member.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::cpu::{Cost, Meter, Reading};
use crate::runtime::ports::{Error, InputOffset, Outgoing, TopicName, Txn};

/// Records and bytes (keys, values and headers) written to one topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub records: i64,
    pub bytes: i64,
}

/// One committed transaction that covers input records.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    pub at: Instant,
    pub records: i64,
    /// From the last record handed over to the end of the transaction: deliveries, offsets, commit.
    pub took: Duration,
}

/// What was seen of all producers of a run.
#[derive(Debug, Default)]
pub struct Seen {
    pub commits: Vec<Commit>,
    pub written: BTreeMap<TopicName, Written>,
    /// Next offset of the observed input, by partition.
    pub positions: BTreeMap<i32, i64>,
    /// Processor time at the first commit.
    pub first: Option<Reading>,
}

/// Throughput and cost between the first and the last commit: start-up is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Steady {
    pub records: i64,
    pub seconds: f64,
    pub per_second: f64,
    pub cost: Cost,
}

/// What the watched producers share with whoever waits for them.
#[derive(Clone)]
pub struct Observer {
    seen: Arc<Mutex<Seen>>,
    meter: Arc<Meter>,
    /// The input whose offsets are counted.
    input: TopicName,
}

impl Observer {
    /// An observer of transactions that read `input` from these offsets on (0 where none is given).
    pub fn new(input: TopicName, starts: &BTreeMap<i32, i64>, meter: &Meter) -> Observer {
        let seen = Seen { positions: starts.clone(), ..Seen::default() };
        Observer { seen: Arc::new(Mutex::new(seen)), meter: Arc::new(meter.clone()), input }
    }

    /// What was seen until now.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Input records covered by committed transactions.
    pub fn committed(&self) -> i64 {
        self.seen().commits.iter().map(|c| c.records).sum()
    }

    /// The steady state, with `end` as the last reading of processor time.
    pub fn steady(&self, end: &Reading) -> Steady {
        let seen = self.seen();
        let (Some(first), Some(last)) = (seen.commits.first(), seen.commits.last()) else { return Steady::default() };
        let records: i64 = seen.commits.iter().skip(1).map(|c| c.records).sum();
        let seconds = (last.at - first.at).as_secs_f64();
        let cost = seen.first.as_ref().map(|before| end.cost_since(before, records)).unwrap_or_default();
        Steady { records, seconds, per_second: records as f64 / seconds.max(1e-9), cost }
    }
}

/// Values of a share of the sorted list, such as the median for 0.5; zero for an empty list.
pub fn quantile<T: Copy + Default + Ord>(sorted: &[T], share: f64) -> T {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}

/// A watched producer.
pub struct Observed<T> {
    inner: T,
    observer: Observer,
    /// Of the open transaction.
    written: Vec<(TopicName, Written)>,
    offsets: Vec<(i32, i64)>,
    ending_since: Option<Instant>,
}

impl<T: Txn> Observed<T> {
    /// Watches `inner`.
    pub fn new(inner: T, observer: &Observer) -> Observed<T> {
        Observed { inner, observer: observer.clone(), written: Vec::new(), offsets: Vec::new(), ending_since: None }
    }

    fn forget(&mut self) {
        self.written.clear();
        self.offsets.clear();
        self.ending_since = None;
    }

    fn note(&mut self, took: Duration) {
        let mut seen = self.observer.seen();
        for (topic, written) in &self.written {
            let total = seen.written.entry(topic).or_default();
            total.records += written.records;
            total.bytes += written.bytes;
        }
        let mut records = 0;
        for (partition, next) in &self.offsets {
            let before = seen.positions.entry(*partition).or_insert(0);
            // What an earlier run left unread lies below the start and does not count.
            records += (next - *before).max(0);
            *before = (*before).max(*next);
        }
        if records > 0 {
            if seen.first.is_none() {
                seen.first = Some(self.observer.meter.read());
            }
            seen.commits.push(Commit { at: Instant::now(), records, took });
        }
    }
}

impl<T: Txn> Txn for Observed<T> {
    type Metadata = T::Metadata;

    fn init(&mut self) -> Result<(), Error> {
        self.forget();
        self.inner.init()
    }

    fn begin(&mut self) -> Result<(), Error> {
        self.forget();
        self.inner.begin()
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<(), Error> {
        self.inner.send(record)?;
        let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let bytes = (record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + headers) as i64;
        // Names live as long as the process, so their addresses tell them apart.
        match self.written.iter_mut().find(|(topic, _)| std::ptr::eq(*topic, record.topic)) {
            Some((_, written)) => {
                written.records += 1;
                written.bytes += bytes;
            }
            None => self.written.push((record.topic, Written { records: 1, bytes })),
        }
        Ok(())
    }

    fn send_offsets(&mut self, offsets: &[InputOffset], metadata: &T::Metadata) -> Result<(), Error> {
        let input = self.observer.input;
        self.offsets.clear();
        self.offsets.extend(offsets.iter().filter(|o| o.topic == input).map(|o| (o.partition, o.offset)));
        self.ending_since.get_or_insert_with(Instant::now);
        self.inner.send_offsets(offsets, metadata)
    }

    fn commit(&mut self) -> Result<(), Error> {
        self.inner.commit()?;
        let took = self.ending_since.map_or(Duration::ZERO, |since| since.elapsed());
        self.note(took);
        self.forget();
        Ok(())
    }

    fn abort(&mut self) -> Result<(), Error> {
        self.forget();
        self.inner.abort()
    }

    fn wants_recycling(&self) -> bool {
        self.inner.wants_recycling()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes everything.
    struct Sink;

    impl Txn for Sink {
        type Metadata = ();

        fn init(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn begin(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn send(&mut self, _: &Outgoing<'_>) -> Result<(), Error> {
            Ok(())
        }

        fn send_offsets(&mut self, _: &[InputOffset], _: &()) -> Result<(), Error> {
            Ok(())
        }

        fn commit(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn abort(&mut self) -> Result<(), Error> {
            Ok(())
        }

        fn wants_recycling(&self) -> bool {
            false
        }
    }

    fn transaction(txn: &mut Observed<Sink>, records: usize, next: i64) {
        txn.begin().unwrap();
        for _ in 0..records {
            let headers: &[(&str, &[u8])] = &[("id", b"12")];
            let (key, value) = (Some(&b"k"[..]), Some(&b"value"[..]));
            txn.send(&Outgoing { topic: "out", partition: 0, key, value, headers, timestamp: None }).unwrap();
        }
        let offset = |topic, offset| InputOffset { topic, partition: 0, offset, metadata: String::new() };
        txn.send_offsets(&[offset("in", next), offset("other", 7)], &()).unwrap();
    }

    #[test]
    fn only_committed_transactions_count_and_the_first_is_start_up() {
        let observer = Observer::new("in", &BTreeMap::from([(0, 10)]), &Meter::default());
        let mut txn = Observed::new(Sink, &observer);
        transaction(&mut txn, 3, 13);
        txn.commit().unwrap();
        transaction(&mut txn, 100, 113);
        txn.abort().unwrap();
        transaction(&mut txn, 5, 18);
        txn.commit().unwrap();
        // Offsets unchanged: no input record was read.
        transaction(&mut txn, 1, 18);
        txn.commit().unwrap();
        assert_eq!(observer.committed(), 8);
        assert_eq!(observer.seen().written["out"], Written { records: 9, bytes: 90 });
        assert_eq!(observer.seen().commits.len(), 2);
        assert_eq!(observer.steady(&Reading::default()).records, 5);
    }

    #[test]
    fn quantiles_are_values_of_the_list() {
        let sorted: Vec<u32> = (1..=101).collect();
        assert_eq!((quantile(&sorted, 0.5), quantile(&sorted, 0.99), quantile(&sorted, 1.0)), (51, 100, 101));
        assert_eq!(quantile::<u32>(&[], 0.5), 0);
    }
}
