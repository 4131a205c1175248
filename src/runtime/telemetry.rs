//! What casestream tells about itself: every metric by name, and the log. No user stands in a label or a log line.
//! Serves nothing; `http.rs` does. What happened is told through the functions of `telemetry/events.rs`, which alone
//! name metrics and labels. Next: `telemetry/events.rs`.

use metrics::SetRecorderError;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use tracing_subscriber::EnvFilter;

mod events;

pub use events::*;

/// What kind of number a metric is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// A metric's entry in the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

/// Buckets of short waits, in seconds.
const FAST: &[f64] = &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0];
/// Buckets of end-to-end times, in seconds.
const END_TO_END: &[f64] = &[0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
/// Buckets of long work, in seconds.
const LONG: &[f64] = &[0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Buckets of sizes, in pieces.
const COUNT: &[f64] = &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0];

/// Names each metric once: a constant for those who record it and an entry in `METRICS`.
macro_rules! metrics {
    ($($constant:ident = $name:literal $kind:expr, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: &str = $name;
        )*
        /// Every metric.
        pub const METRICS: &[Metric] =
            &[$(Metric { name: $constant, kind: $kind, labels: &[$($label),*], help: $help }),*];
    };
}

metrics! {
    CONSUMER_LAG_RECORDS = "casestream_consumer_lag_records" Kind::Gauge, ["topic", "partition"],
        "Records between the position and the end of an input.";
    CONSUMER_LAG_SECONDS = "casestream_consumer_lag_seconds" Kind::Gauge, ["topic", "partition"],
        "Age of the oldest record of an input that was not handed to a worker; 0 when there is none.";
    TIME_TO_RETENTION_SECONDS = "casestream_time_to_retention_seconds" Kind::Gauge, ["topic", "partition"],
        "Time until the broker deletes the next record to be read, by the topology's retention.";
    PARTITION_IDLE = "casestream_partition_idle" Kind::Gauge, ["group", "partition"],
        "1 while all inputs of a partition number are drained.";
    RECORDS_CONSUMED_TOTAL = "casestream_records_consumed_total" Kind::Counter, ["topic"],
        "Input records committed.";
    RECORDS_INVALID_TOTAL = "casestream_records_invalid_total" Kind::Counter, ["topic", "reason"],
        "Input records that could not be taken.";
    DLQ_RECORDS_TOTAL = "casestream_dlq_records_total" Kind::Counter, ["reason"],
        "Dead letters written.";
    RECORDS_LATE_TOTAL = "casestream_records_late_total" Kind::Counter, [],
        "Signals that came after their day had left the state.";
    CLOCK_SKEW_CLAMPED_TOTAL = "casestream_clock_skew_clamped_total" Kind::Counter, [],
        "Signals from the future whose time was clamped.";
    MISPARTITIONED_TOTAL = "casestream_mispartitioned_total" Kind::Counter, ["topic"],
        "Records on another partition than their user's, written again to the right one.";
    EVENT_TIME_WATERMARK_SECONDS = "casestream_event_time_watermark_seconds" Kind::Gauge, ["partition"],
        "Stream time of a partition, in seconds since 1970.";
    WATERMARK_LAG_SECONDS = "casestream_watermark_lag_seconds" Kind::Gauge, ["partition"],
        "How far stream time is behind the clock.";
    E2E_LATENCY_SECONDS = "casestream_e2e_latency_seconds" Kind::Histogram(END_TO_END), ["from"],
        "From the event, or from its ingest, to the commit of what it caused; the first signal of each batch.";
    TIMERS_TOTAL = "casestream_timers_total" Kind::Counter, [],
        "Timers that did something.";
    PROCESS_SECONDS = "casestream_process_seconds" Kind::Histogram(FAST), ["worker"],
        "Folding one batch.";
    BATCH_RECORDS = "casestream_batch_records" Kind::Histogram(COUNT), ["worker"],
        "Records in a batch.";
    BATCH_DIRTY_USERS = "casestream_batch_dirty_users" Kind::Histogram(COUNT), ["worker"],
        "Users of one partition changed by a batch.";
    TXN_COMMIT_SECONDS = "casestream_txn_commit_seconds" Kind::Histogram(FAST), ["worker"],
        "Committing one transaction.";
    TXN_SEND_OFFSETS_SECONDS = "casestream_txn_send_offsets_seconds" Kind::Histogram(FAST), ["worker"],
        "Waiting for deliveries and adding offsets to one transaction.";
    TXN_TOTAL = "casestream_txn_total" Kind::Counter, ["outcome"],
        "Transactions by outcome: committed, aborted, unknown, fenced.";
    PRODUCER_EPOCH_RECYCLES_TOTAL = "casestream_producer_epoch_recycles_total" Kind::Counter, ["cause"],
        "Producers made (anew) so that nothing of an older transaction can arrive late.";
    REQUEST_RETRIES_TOTAL = "casestream_request_retries_total" Kind::Counter, ["client"],
        "Requests to brokers that were sent again, by producers and by group members.";
    FENCED_TOTAL = "casestream_fenced_total" Kind::Counter, ["kind"],
        "Times another process took over an identity of ours: producer, member.";
    REBALANCES_TOTAL = "casestream_rebalances_total" Kind::Counter, ["kind"],
        "Changes of the assignment: assigned, revoked, lost.";
    REBALANCE_SECONDS = "casestream_rebalance_seconds" Kind::Histogram(LONG), ["worker"],
        "From a change of the assignment until all of it is at work.";
    ASSIGNED_PARTITIONS = "casestream_assigned_partitions" Kind::Gauge, ["worker"],
        "Partitions a worker owns.";
    WORKER_STATE = "casestream_worker_state" Kind::Gauge, ["worker", "state"],
        "1 for the state a worker is in: waiting, restoring, running, halted (some partition is).";
    CHANGELOG_BYTES_TOTAL = "casestream_changelog_bytes_total" Kind::Counter, ["worker"],
        "Bytes written to the changelog, keys and values.";
    CHANGELOG_RECORDS_TOTAL = "casestream_changelog_records_total" Kind::Counter, ["worker"],
        "Records written to the changelog.";
    RESTORE_REMAINING_RECORDS = "casestream_restore_remaining_records" Kind::Gauge, ["partition"],
        "Changelog offsets a restore has yet to read.";
    RESTORE_SECONDS = "casestream_restore_seconds" Kind::Histogram(LONG), ["worker"],
        "Reading one partition's state from the copy and the changelog.";
    REDIS_APPLY_SECONDS = "casestream_redis_apply_seconds" Kind::Histogram(FAST), [],
        "Writing one chunk to Redis.";
    REDIS_LAG_OFFSETS = "casestream_redis_lag_offsets" Kind::Gauge, ["partition"],
        "Commits the copy in Redis is behind.";
    REDIS_LAG_SECONDS = "casestream_redis_lag_seconds" Kind::Gauge, ["partition"],
        "Time the copy in Redis is behind.";
    REDIS_REGRESSIONS_TOTAL = "casestream_redis_regressions_total" Kind::Counter, [],
        "Times Redis had lost acknowledged data and was written anew.";
    REDIS_STALE_WRITES_TOTAL = "casestream_redis_stale_writes_total" Kind::Counter, [],
        "Writes Redis refused because a newer owner had written.";
    STATE_USERS = "casestream_state_users" Kind::Gauge, ["worker"],
        "Users whose state a worker holds.";
    STATE_RESIDENT_BYTES = "casestream_state_resident_bytes" Kind::Gauge, ["worker"],
        "Memory that state takes, keys and maps included.";
    ALERTS_EMITTED_TOTAL = "casestream_alerts_emitted_total" Kind::Counter, ["severity", "policy"],
        "Alerts opened.";
    POLICY_VERSION_INFO = "casestream_policy_version_info" Kind::Gauge, ["partition", "policy_set"],
        "1 for the policy set a partition runs on.";
    LIMIT_REACHED_TOTAL = "casestream_limit_reached_total" Kind::Counter, ["limit"],
        "Times a named maximum was reached: of a user's state, a batch, a map or a queue.";
    MAP_RECORDS_TOTAL = "casestream_map_records_total" Kind::Counter, ["topic", "outcome"],
        "Raw records by what became of them: mapped, ignored or dead.";
    MAP_SIGNALS_TOTAL = "casestream_map_signals_total" Kind::Counter, ["topic"],
        "Signals made of a topic's raw records.";
    MAP_PEOPLE = "casestream_map_people" Kind::Gauge, [],
        "People the map role knows from the directory.";
    REGISTRY_REQUESTS_TOTAL = "casestream_registry_requests_total" Kind::Counter, ["outcome"],
        "Calls to the schema registry: answered, refused, failed.";
    REGISTRY_SERVED_TOTAL = "casestream_registry_served_total" Kind::Counter, ["status"],
        "Answers of the built-in registry, by HTTP status.";
    BUILD_INFO = "casestream_build_info" Kind::Gauge, ["version"],
        "1; the label names the version.";
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Makes the process's metrics recorder. The holder of the handle renders, and calls `run_upkeep` every 5 s. A second
/// call fails: a process has one recorder.
pub fn install() -> Result<PrometheusHandle, SetRecorderError<PrometheusRecorder>> {
    let recorder = recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder)?;
    describe();
    events::started();
    Ok(handle)
}

/// Starts logging to stderr; stdout belongs to commands' output. Does nothing when logging has started already.
pub fn init_logs(format: LogFormat, filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error means that a test or an earlier call was first.
    let _ = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}

fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for metric in METRICS {
        if let Kind::Histogram(buckets) = metric.kind {
            builder = builder
                .set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)
                .expect("the table's bucket lists are not empty");
        }
    }
    builder.build_recorder()
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing() -> String {
        let line = |metric: &Metric| {
            let (kind, buckets) = match metric.kind {
                Kind::Counter => ("counter", String::new()),
                Kind::Gauge => ("gauge", String::new()),
                Kind::Histogram(buckets) => ("histogram", format!(" {buckets:?}")),
            };
            format!("{} {kind} {{{}}}{buckets}: {}\n", metric.name, metric.labels.join(","), metric.help)
        };
        METRICS.iter().map(line).collect()
    }

    #[test]
    fn the_list_of_metrics_is_golden() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/metrics.txt");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap();
            std::fs::write(path, listing()).unwrap();
        }
        let golden = std::fs::read_to_string(path).expect("UPDATE=1 writes the golden");
        assert_eq!(listing(), golden, "dashboards and alarms use these names; UPDATE=1 accepts the change");
    }

    #[test]
    fn names_follow_the_convention() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        for metric in METRICS {
            assert!(metric.name.starts_with("casestream_"), "{}", metric.name);
            assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
            for label in metric.labels {
                assert!(!label.contains("user"), "{} must not name users", metric.name);
            }
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn names_are_rendered_as_they_stand() {
        let recorder = recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::counter!(TXN_TOTAL, "outcome" => "committed").increment(2);
            metrics::histogram!(TXN_COMMIT_SECONDS, "worker" => "0").record(0.003);
        });
        let text = recorder.handle().render();
        assert!(text.contains("casestream_txn_total{outcome=\"committed\"} 2"), "{text}");
        assert!(text.contains("casestream_txn_commit_seconds_bucket{worker=\"0\",le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("# HELP casestream_txn_commit_seconds Committing one transaction."), "{text}");
    }
}
