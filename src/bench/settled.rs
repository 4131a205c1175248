//! A group member that takes up an assignment only once it is the share it will keep. Members that start together are
//! otherwise first given everything and then half of it, and a run would measure that. Next: `pipeline.rs`.

use std::time::Duration;

use crate::runtime::ports::{Changes, Error, Group, InputOffset, Polled, RecordRef, TopicName};

/// Hides assignments of another size than `share`.
pub struct Settled<G> {
    inner: G,
    /// Partitions of all inputs.
    share: usize,
}

impl<G: Group> Settled<G> {
    /// Wraps a member.
    pub fn new(inner: G, share: usize) -> Settled<G> {
        Settled { inner, share }
    }
}

impl<G: Group> Group for Settled<G> {
    type Metadata = G::Metadata;

    fn poll(&mut self, wait: Duration, each: &mut dyn FnMut(RecordRef<'_>)) -> Result<Polled, Error> {
        self.inner.poll(wait, each)
    }

    fn changes(&mut self) -> Changes {
        let mut changes = self.inner.changes();
        if changes.assigned.as_ref().is_some_and(|assigned| assigned.len() != self.share) {
            changes.assigned = None;
            // Taken up with nothing: the client joins no further rebalance while an assignment is unanswered.
            if let Err(error) = self.inner.start(&[]) {
                tracing::warn!(%error, "could not decline an assignment");
            }
        }
        changes
    }

    fn start(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        self.inner.start(positions)
    }

    fn seek(&mut self, positions: &[InputOffset]) -> Result<(), Error> {
        self.inner.seek(positions)
    }

    fn pause(&mut self, inputs: &[(TopicName, i32)]) -> Result<(), Error> {
        self.inner.pause(inputs)
    }

    fn resume(&mut self, inputs: &[(TopicName, i32)]) -> Result<(), Error> {
        self.inner.resume(inputs)
    }

    fn metadata(&self) -> Result<G::Metadata, Error> {
        self.inner.metadata()
    }

    fn owns(&self, topic: TopicName, partition: i32) -> bool {
        self.inner.owns(topic, partition)
    }

    fn close(&mut self) {
        self.inner.close();
    }
}
