//! What a run costs: processor time of this process and of its threads by name, of the broker and of Redis when they
//! run on this machine, and memory. Reads `/proc`; what it cannot read is unknown, never zero. Measures no wall time.
//! Next: `observed.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::net::ToSocketAddrs;
use std::time::Duration;

use serde::Serialize;

/// Kernel ticks in a second, as `/proc/<pid>/stat` counts: 100 on every Linux this is built for.
const TICKS_PER_SECOND: f64 = 100.0;
/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

/// Whose processor time is read. A service that is spread over machines, or is not on this one, is unknown.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    brokers: Option<Vec<u32>>,
    redis: Option<u32>,
}

/// Processor seconds used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    pub client: f64,
    pub broker: Option<f64>,
    pub redis: Option<f64>,
}

/// Processor seconds per million records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    pub client: f64,
    pub broker: Option<f64>,
    pub redis: Option<f64>,
}

impl Meter {
    /// A meter of the processes that listen on these addresses (`host:port`).
    pub fn new<'a>(brokers: impl IntoIterator<Item = &'a str>, redis: Option<&str>) -> Meter {
        Meter { brokers: brokers.into_iter().map(listener).collect(), redis: redis.and_then(listener) }
    }

    /// What was used until now.
    pub fn read(&self) -> Reading {
        let brokers = self.brokers.as_deref().filter(|pids| !pids.is_empty());
        Reading {
            client: used("self").unwrap_or(0.0),
            broker: brokers.and_then(|pids| pids.iter().map(|pid| used(&pid.to_string())).sum()),
            redis: self.redis.and_then(|pid| used(&pid.to_string())),
        }
    }
}

impl Reading {
    /// What was used since an earlier reading, per million of `records`.
    pub fn cost_since(&self, before: &Reading, records: i64) -> Cost {
        let millions = records.max(1) as f64 / 1e6;
        let per = |now: Option<f64>, then: Option<f64>| Some((now? - then?) / millions);
        Cost {
            client: (self.client - before.client) / millions,
            broker: per(self.broker, before.broker),
            redis: per(self.redis, before.redis),
        }
    }
}

/// Processor seconds of this process's threads that still run, by name; numbers at the end of a name are left out, so
/// that threads of one kind add up.
pub fn threads() -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("stat")) else { continue };
        let Some((name, seconds)) = parse_stat(&text) else { continue };
        *found.entry(kind_of(name).to_owned()).or_default() += seconds;
    }
    found
}

fn kind_of(name: &str) -> &str {
    name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-')
}

/// Processor time of the calling thread, to the nanosecond; unlike the wall clock it does not count the time others had
/// the core. `None` where the kernel does not tell.
pub fn thread_time() -> Option<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// Memory of this process that is resident, in bytes.
pub fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

fn used(process: &str) -> Option<f64> {
    parse_stat(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?).map(|(_, seconds)| seconds)
}

/// Name and user plus system seconds. The name stands in parentheses and may hold anything, parentheses included.
fn parse_stat(text: &str) -> Option<(&str, f64)> {
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    // The first field after the name is the third of the line; utime and stime are the 14th and 15th.
    let mut fields = text.get(close + 1..)?.split_ascii_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some((text.get(open + 1..close)?, ticks as f64 / TICKS_PER_SECOND))
}

/// The process that listens on an address of this machine.
fn listener(address: &str) -> Option<u32> {
    let resolved = address.to_socket_addrs().ok()?.next()?;
    if !resolved.ip().is_loopback() {
        return None;
    }
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| listening(&text, resolved.port()))
        .collect();
    owner(&inodes)
}

/// Inodes of the sockets that listen on a port, from the text of `/proc/net/tcp`.
fn listening(text: &str, port: u16) -> Vec<String> {
    let suffix = format!(":{port:04X}");
    let inode = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let listens = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == LISTEN;
        listens.then(|| fields.get(9).map(|inode| (*inode).to_owned())).flatten()
    };
    text.lines().skip(1).filter_map(inode).collect()
}

fn owner(inodes: &[String]) -> Option<u32> {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has_one = |pid: &u32| {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.any(|target| target.to_str().is_some_and(|target| links.iter().any(|link| link == target)))
    };
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(has_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_past_a_name_with_anything_in_it() {
        let line = "42 (rdk:broker (1) x) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1";
        assert_eq!(parse_stat(line), Some(("rdk:broker (1) x", 2.0)));
        assert_eq!(parse_stat("42 (short) S 1"), None);
        assert_eq!((kind_of("rdk:broker12"), kind_of("worker-0")), ("rdk:broker", "worker"));
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:2384 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 111 1\n\
            1: 0100007F:2384 0100007F:9999 01 00000000:00000000 00:00000000 00000000 0 0 222 1\n\
            2: 0100007F:2385 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 333 1\n";
        assert_eq!(listening(text, 0x2384), ["111"]);
    }

    #[test]
    fn the_listener_of_a_port_of_ours_is_this_process() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let found = listener(&address);
        assert_eq!(found, Some(std::process::id()));
        drop(socket);
        assert_eq!(listener(&address), None);
    }

    #[test]
    fn costs_are_per_million_and_unknown_stays_unknown() {
        let before = Reading { client: 1.0, broker: Some(2.0), redis: None };
        let after = Reading { client: 2.0, broker: Some(2.5), redis: Some(1.0) };
        let cost = after.cost_since(&before, 500_000);
        assert_eq!(cost, Cost { client: 2.0, broker: Some(1.0), redis: None });
    }

    #[test]
    fn this_process_has_memory_and_threads() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(!threads().is_empty());
        assert!(thread_time().is_some());
    }
}
