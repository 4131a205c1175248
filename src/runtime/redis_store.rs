//! The readable copy in Redis: the `Store` port. Keys of a partition share one hash tag; writes go through `apply.lua`,
//! which refuses older epochs and older users. Holds no truth: everything here can be rebuilt from the changelog.
//! Does not decide when to write or rebuild; `checkpoint.rs` does. Next: `checkpoint.rs`.

use std::collections::HashMap;
use std::time::Duration;

use redis::{Client, Cmd, Connection, ErrorKind as RedisKind, FromRedisValue, RedisError, ServerErrorKind};

use super::checkpoint::CHUNK_USERS_MAX;
use super::ports::{Applied, CopyMeta, CopyUser, Error, ErrorKind, Store};
use crate::domain::Timestamp;

/// Version of the key layout.
pub const COPY_FORMAT: i64 = 1;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for an answer; after it the outcome is unknown and the same chunk is written again.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Users read or swept at a time.
const PAGE_USERS: usize = 500;

/// What runs on the server, each script called by its hash.
pub const SCRIPTS: [&str; 2] = [include_str!("apply.lua"), include_str!("sweep.lua")];

/// Keys of one partition. The tag is exactly `{p<N>}`.
pub mod keys {
    /// HASH: how far the copy has come.
    pub fn meta(partition: i32) -> String {
        format!("cs:{{p{partition}}}:meta")
    }

    /// ZSET: every user by score.
    pub fn top(partition: i32) -> String {
        format!("cs:{{p{partition}}}:top")
    }

    /// HASH: the user's score, for readers.
    pub fn score(partition: i32, user_key: &str) -> String {
        format!("cs:{{p{partition}}}:r:{user_key}")
    }

    /// HASH: the user's open alert windows, for readers.
    pub fn windows(partition: i32, user_key: &str) -> String {
        format!("cs:{{p{partition}}}:w:{user_key}")
    }

    /// HASH: the user's state as in the changelog, the engine's own.
    pub fn state(partition: i32, user_key: &str) -> String {
        format!("cs:{{p{partition}}}:s:{user_key}")
    }
}

/// One connection to Redis, made when needed and again after an error.
pub struct RedisStore {
    client: Client,
    connection: Option<Connection>,
    apply: Script,
    sweep: Script,
}

impl RedisStore {
    /// A store at a URL. Connects with its first call, so that a Redis that is down does not keep the engine from
    /// starting.
    pub fn new(url: &str) -> Result<RedisStore, Error> {
        // The URL may hold a password; it stands in no message.
        let client = Client::open(url).map_err(|e| Error::new(ErrorKind::Fatal, "could not use the redis url", e))?;
        let [apply, sweep] = SCRIPTS.map(Script::new);
        Ok(RedisStore { client, connection: None, apply, sweep })
    }

    /// Refuses a server that may evict keys: the copy would become half a state without anyone noticing.
    pub fn check_policy(&mut self) -> Result<(), Error> {
        let what = "could not read redis's maxmemory-policy";
        let mut ask = redis::cmd("CONFIG");
        ask.arg("GET").arg("maxmemory-policy");
        // Managed servers forbid CONFIG; INFO says the same.
        let configured = self.query::<HashMap<String, String>>(what, &ask).ok();
        let policy = match configured.and_then(|mut answer| answer.remove("maxmemory-policy")) {
            Some(policy) => policy,
            None => {
                let info: String = self.query(what, redis::cmd("INFO").arg("memory"))?;
                let line = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
                line.map(str::to_owned).ok_or_else(|| Error::new(ErrorKind::Fatal, what, "INFO does not name it"))?
            }
        };
        if policy == "noeviction" {
            return Ok(());
        }
        let cause = format!("maxmemory-policy is {policy}; set it to noeviction");
        Err(Error::new(ErrorKind::Fatal, "refused to use redis as the copy", cause))
    }

    fn query<T: FromRedisValue>(&mut self, what: &str, command: &Cmd) -> Result<T, Error> {
        self.run(what, |connection| command.query(connection))
    }

    /// Runs one exchange. After an error the connection may hold half an answer, so it is dropped.
    fn run<T>(
        &mut self,
        what: &str,
        exchange: impl FnOnce(&mut Connection) -> Result<T, RedisError>,
    ) -> Result<T, Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().map_err(|e| error("could not connect to redis", &e))?,
        };
        let answer = exchange(&mut connection).map_err(|e| error(what, &e))?;
        self.connection = Some(connection);
        Ok(answer)
    }

    fn connect(&self) -> Result<Connection, RedisError> {
        let connection = self.client.get_connection_with_timeout(CONNECT_TIMEOUT)?;
        connection.set_read_timeout(Some(RESPONSE_TIMEOUT))?;
        connection.set_write_timeout(Some(RESPONSE_TIMEOUT))?;
        Ok(connection)
    }

    /// Hands every user of a partition over in pages, found through `top`.
    fn pages(
        &mut self,
        partition: i32,
        mut each: impl FnMut(&mut RedisStore, &[String]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let what = format!("could not list the users of partition {partition} in redis");
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("ZSCAN");
            scan.arg(keys::top(partition)).arg(cursor).arg("COUNT").arg(PAGE_USERS);
            let (next, members): (u64, Vec<String>) = self.query(&what, &scan)?;
            // Members and scores by turns.
            let users: Vec<String> = members.into_iter().step_by(2).collect();
            for page in users.chunks(PAGE_USERS) {
                each(self, page)?;
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }

    fn states(&mut self, partition: i32, page: &[String]) -> Result<Vec<CopyUser>, Error> {
        let mut pipe = redis::pipe();
        for user_key in page {
            pipe.cmd("HGETALL").arg(keys::state(partition, user_key));
        }
        let what = format!("could not read users of partition {partition} from redis");
        let states: Vec<Vec<(String, Vec<u8>)>> = self.run(&what, |connection| pipe.query(connection))?;
        Ok(page.iter().zip(states).filter_map(|(user_key, fields)| user_of(user_key, fields)).collect())
    }
}

impl Store for RedisStore {
    fn meta(&mut self, partition: i32) -> Result<Option<CopyMeta>, Error> {
        let what = format!("could not read the meta of partition {partition} from redis");
        let fields: HashMap<String, String> = self.query(&what, redis::cmd("HGETALL").arg(keys::meta(partition)))?;
        Ok((!fields.is_empty()).then(|| meta_of(&fields)))
    }

    fn users(&mut self, partition: i32, each: &mut dyn FnMut(CopyUser)) -> Result<(), Error> {
        self.pages(partition, |store, page| {
            store.states(partition, page)?.into_iter().for_each(&mut *each);
            Ok(())
        })
    }

    fn apply(&mut self, partition: i32, users: &[CopyUser], meta: &CopyMeta, last: bool) -> Result<Applied, Error> {
        assert!(users.len() <= CHUNK_USERS_MAX, "a chunk has {} users", users.len());
        let mut call = self.apply.call(partition, users.iter().map(|user| user.user_key.as_str()));
        push_meta(&mut call, meta, last);
        users.iter().for_each(|user| push_user(&mut call, user));
        let what = format!("could not write {} users of partition {partition} to redis", users.len());
        let script = self.apply.clone();
        let (code, number): (i64, i64) = self.run(&what, |connection| script.run(&call, connection))?;
        match code {
            0 => Ok(Applied::Ok { before: number }),
            1 => Ok(Applied::Fenced { epoch: number }),
            2 => Ok(Applied::Regressed),
            _ => Err(Error::new(ErrorKind::Fatal, what, format!("the script answered {code}"))),
        }
    }

    fn sweep(&mut self, partition: i32, meta: &CopyMeta) -> Result<(), Error> {
        let what = format!("could not sweep partition {partition} in redis");
        self.pages(partition, |store, page| {
            let mut call = store.sweep.call(partition, page.iter().map(String::as_str));
            call.arg(meta.epoch).arg(meta.generation).arg(page);
            let script = store.sweep.clone();
            let removed: i64 = store.run(&what, |connection| script.run(&call, connection))?;
            if removed < 0 {
                let cause = format!("the copy is no longer of epoch {}, generation {}", meta.epoch, meta.generation);
                return Err(Error::new(ErrorKind::Abort, what.as_str(), cause));
            }
            Ok(())
        })
    }
}

/// A script and its name on the server.
#[derive(Clone)]
struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Script {
        Script { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// A call with the keys of a partition and of some of its users; arguments follow.
    fn call<'a>(&self, partition: i32, users: impl ExactSizeIterator<Item = &'a str>) -> Cmd {
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.hash).arg(2 + 3 * users.len()).arg(keys::meta(partition)).arg(keys::top(partition));
        for user_key in users {
            call.arg(keys::score(partition, user_key));
            call.arg(keys::windows(partition, user_key));
            call.arg(keys::state(partition, user_key));
        }
        call
    }

    /// Runs a call; a server that does not know the script (restarted, failed over) is taught it first.
    fn run<T: FromRedisValue>(&self, call: &Cmd, connection: &mut Connection) -> Result<T, RedisError> {
        match call.query(connection) {
            Err(error) if error.kind() == RedisKind::Server(ServerErrorKind::NoScript) => {
                redis::cmd("SCRIPT").arg("LOAD").arg(self.code).exec(connection)?;
                call.query(connection)
            }
            answer => answer,
        }
    }
}

fn push_meta(call: &mut Cmd, meta: &CopyMeta, last: bool) {
    let CopyMeta {
        applied,
        changelog_offset,
        applied_at: Timestamp(applied_at),
        epoch,
        generation,
        users,
        cluster_id,
        format,
        rebuilding,
        expected_applied,
    } = meta;
    call.arg(epoch).arg(generation).arg(expected_applied).arg(i64::from(last));
    call.arg(cluster_id).arg(format).arg(i64::from(*rebuilding));
    call.arg(applied).arg(changelog_offset).arg(applied_at).arg(users);
}

fn push_user(call: &mut Cmd, user: &CopyUser) {
    let CopyUser { user_key, commit_no, score, windows, segments, top_milli } = user;
    call.arg(user_key).arg(commit_no);
    match top_milli {
        Some(milli) => call.arg(milli),
        None => call.arg(""),
    };
    call.arg(score.len());
    for (field, value) in score {
        call.arg(*field).arg(value);
    }
    call.arg(windows.len());
    for (alert_id, json) in windows {
        call.arg(alert_id).arg(json);
    }
    call.arg(segments.len());
    for (suffix, bytes) in segments {
        call.arg(if suffix.is_empty() { HEAD } else { suffix }).arg(&bytes[..]);
    }
}

/// The field of the head, whose suffix in the changelog is empty.
const HEAD: &str = "head";

fn user_of(user_key: &str, fields: Vec<(String, Vec<u8>)>) -> Option<CopyUser> {
    let mut user = CopyUser { user_key: user_key.to_owned(), ..CopyUser::default() };
    let mut found = false;
    for (field, value) in fields {
        match field.as_str() {
            "commit_no" => {
                user.commit_no = std::str::from_utf8(&value).ok()?.parse().ok()?;
                found = true;
            }
            "generation" | "top" | "windows" => {}
            HEAD => user.segments.push((String::new(), value.into())),
            _ => user.segments.push((field, value.into())),
        }
    }
    found.then_some(user)
}

/// A field that is missing or no number reads as 0: a copy that is not ours is then of no known cluster and not
/// trusted.
fn meta_of(fields: &HashMap<String, String>) -> CopyMeta {
    let number = |name: &str| fields.get(name).and_then(|value| value.parse().ok()).unwrap_or(0);
    CopyMeta {
        applied: number("applied"),
        changelog_offset: number("changelog_offset"),
        applied_at: Timestamp(number("applied_at")),
        epoch: number("epoch"),
        generation: number("generation"),
        users: number("users"),
        cluster_id: fields.get("cluster_id").cloned().unwrap_or_default(),
        format: number("format"),
        rebuilding: number("rebuilding") != 0,
        expected_applied: -1,
    }
}

/// Nearly everything passes (loading, read-only after a failover, out of memory, a timeout); what an operator must
/// change does not.
fn error(what: &str, cause: &RedisError) -> Error {
    let kind = match cause.kind() {
        RedisKind::AuthenticationFailed | RedisKind::InvalidClientConfig => ErrorKind::Fatal,
        RedisKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::CrossSlot | ServerErrorKind::Moved) => {
            ErrorKind::Fatal
        }
        _ => ErrorKind::Retriable,
    };
    Error::new(kind, what, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_carry_the_tag_of_their_partition() {
        assert_eq!(keys::meta(17), "cs:{p17}:meta");
        assert_eq!(keys::top(0), "cs:{p0}:top");
        assert_eq!(keys::score(17, "u1"), "cs:{p17}:r:u1");
        assert_eq!(keys::windows(17, "u1"), "cs:{p17}:w:u1");
        assert_eq!(keys::state(17, "u1"), "cs:{p17}:s:u1");
    }

    #[test]
    fn a_copy_of_unknown_shape_is_of_no_cluster() {
        let meta = meta_of(&HashMap::from([("applied".to_owned(), "many".to_owned())]));
        assert_eq!(meta, CopyMeta { expected_applied: -1, ..CopyMeta::default() });
    }

    #[test]
    fn what_an_operator_must_change_is_fatal() {
        for (kind, expected) in [
            (RedisKind::AuthenticationFailed, ErrorKind::Fatal),
            (RedisKind::Server(ServerErrorKind::CrossSlot), ErrorKind::Fatal),
            (RedisKind::Server(ServerErrorKind::BusyLoading), ErrorKind::Retriable),
            (RedisKind::Server(ServerErrorKind::ReadOnly), ErrorKind::Retriable),
            (RedisKind::Extension, ErrorKind::Retriable),
            (RedisKind::Io, ErrorKind::Retriable),
        ] {
            assert_eq!(error("x", &RedisError::from((kind, "y"))).kind, expected, "{kind:?}");
        }
    }
}
