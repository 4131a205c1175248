//! One transaction, from begin to a known outcome. Every error becomes one of four answers; nothing is retried that
//! could write twice. Which records and offsets: the worker's choice.

use std::time::Duration;

use crate::runtime::partition::Outputs;
use crate::runtime::ports::{Clock, Error, ErrorKind, InputOffset, Txn};

/// Pause before the same call is made again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// Why a transaction did not commit.
#[derive(Clone, Debug)]
pub enum Failure {
    /// Aborted: nothing was written. `producer_lost`: it must be made anew.
    Aborted { error: Error, too_large: bool, producer_lost: bool },
    /// Nobody can tell: the log must be asked.
    Unknown(Error),
    /// Another process has our identity.
    Fenced(Error),
}

/// Runs one transaction. `limit` bounds each call that may be retried.
pub fn transact<T: Txn>(
    txn: &mut T,
    clock: &impl Clock,
    outputs: &Outputs,
    offsets: &[InputOffset],
    metadata: &T::Metadata,
    limit: Duration,
) -> Result<(), Failure> {
    let deadline = clock.monotonic() + limit;
    let written = retrying(clock, deadline, || txn.begin()).and_then(|()| {
        outputs.try_each(|record, _| retrying(clock, deadline, || txn.send(record)))?;
        retrying(clock, deadline, || txn.send_offsets(offsets, metadata))
    });
    if let Err(error) = written {
        return Err(abort(txn, clock, error, limit));
    }
    match retrying(clock, deadline, || txn.commit()) {
        Ok(()) => Ok(()),
        Err(error) => match error.kind {
            ErrorKind::Fenced => Err(Failure::Fenced(error)),
            // The commit was refused, not lost: the transaction is still open and can be aborted.
            ErrorKind::Abort | ErrorKind::TooLarge => Err(abort(txn, clock, error, limit)),
            ErrorKind::Retriable
            | ErrorKind::Unknown
            | ErrorKind::Unstable
            | ErrorKind::Timeout
            | ErrorKind::Missing
            | ErrorKind::Fatal => Err(Failure::Unknown(error)),
        },
    }
}

fn abort<T: Txn>(txn: &mut T, clock: &impl Clock, error: Error, limit: Duration) -> Failure {
    if error.kind == ErrorKind::Fenced {
        return Failure::Fenced(error);
    }
    let too_large = error.kind == ErrorKind::TooLarge;
    if error.kind == ErrorKind::Fatal {
        // The producer is gone, its transaction will be aborted by the next one's `init`: it never saw a commit.
        return Failure::Aborted { error, too_large, producer_lost: true };
    }
    let deadline = clock.monotonic() + limit;
    match retrying(clock, deadline, || txn.abort()) {
        Ok(()) => Failure::Aborted { error, too_large, producer_lost: false },
        Err(second) if second.kind == ErrorKind::Fenced => Failure::Fenced(second),
        Err(second) => {
            tracing::warn!(%second, "could not abort the transaction: the producer is made anew");
            Failure::Aborted { error, too_large, producer_lost: true }
        }
    }
}

fn retrying(clock: &impl Clock, deadline: Duration, mut call: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    loop {
        match call() {
            Err(error) if error.kind == ErrorKind::Retriable && clock.monotonic() < deadline => clock.wait(RETRY_PAUSE),
            result => return result,
        }
    }
}
