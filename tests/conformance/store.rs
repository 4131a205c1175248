//! The readable copy's own scripts and commands on the embedded store and on Redis.

use std::sync::atomic::{AtomicI32, Ordering};

use casestream::runtime::ports::{Applied, CopyMeta, CopyUser, ErrorKind, Store};
use casestream::runtime::redis_store::{RedisStore, keys};

use crate::client::PATIENCE;
use crate::copies::{gone, meta, user, users};
use crate::support::{Devkit, Redis, wait_for};

/// One of the two.
pub enum Server {
    Redis(&'static Redis),
    Embedded(&'static Devkit),
    OwnRedis(Redis),
    OwnEmbedded(Devkit),
}

impl Server {
    pub fn redis() -> Server {
        Server::Redis(Redis::shared())
    }

    pub fn embedded() -> Server {
        Server::Embedded(Devkit::shared())
    }

    fn own(&self) -> Server {
        match self {
            Server::Redis(_) | Server::OwnRedis(_) => {
                Server::OwnRedis(Redis::start_with(&[("appendonly", "yes"), ("appendfsync", "always")]))
            }
            Server::Embedded(_) | Server::OwnEmbedded(_) => Server::OwnEmbedded(Devkit::start()),
        }
    }

    fn url(&self) -> String {
        match self {
            Server::Redis(redis) => redis.url(),
            Server::Embedded(devkit) => devkit.redis_url(),
            Server::OwnRedis(redis) => redis.url(),
            Server::OwnEmbedded(devkit) => devkit.redis_url(),
        }
    }

    fn kill_and_restart(&mut self) {
        match self {
            Server::OwnRedis(redis) => redis.restart(),
            Server::OwnEmbedded(devkit) => devkit.restart(),
            Server::Redis(_) | Server::Embedded(_) => panic!("shared: others use it"),
        }
    }

    fn store(&self) -> RedisStore {
        RedisStore::new(&self.url()).unwrap()
    }

    fn fields(&self, key: &str) -> Vec<(String, Vec<u8>)> {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        let mut fields: Vec<(String, Vec<u8>)> = redis::cmd("HGETALL").arg(key).query(&mut connection).unwrap();
        fields.sort();
        fields
    }
}

/// A partition that no other check uses.
fn partition() -> i32 {
    static NEXT: AtomicI32 = AtomicI32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

pub fn values_are_absolute_and_older_ones_are_skipped(server: &mut Server) {
    let (mut store, p) = (server.store(), partition());
    store.check_policy().unwrap();
    assert_eq!(store.meta(p).unwrap(), None);
    assert_eq!(store.apply(p, &[user("u", 5)], &meta(1, 5), true).unwrap(), Applied::Ok { before: 0 });
    assert_eq!(store.apply(p, &[user("u", 6)], &meta(1, 6), true).unwrap(), Applied::Ok { before: 5 });
    assert_eq!(server.fields(&keys::windows(p, "u")), [("alert-6".to_owned(), b"{}".to_vec())]);
    let state: Vec<String> = server.fields(&keys::state(p, "u")).into_iter().map(|(field, _)| field).collect();
    assert_eq!(state, ["6", "commit_no", "generation", "head", "top", "windows"]);
    store.apply(p, &[user("u", 4), gone("u", 3)], &meta(1, 6), true).unwrap();
    assert_eq!(users(&mut store, p), [("u".to_owned(), 6, 2)]);
    let mut read = Vec::new();
    store.users(p, &mut |user| read.extend(user.segments)).unwrap();
    read.sort();
    assert_eq!(read[0], (String::new(), vec![0, 255, 6].into()), "bytes are bytes");
    store.apply(p, &[user("v", 7)], &meta(1, 7), false).unwrap();
    assert_eq!(store.meta(p).unwrap().unwrap(), meta(1, 6));
}

pub fn an_older_epoch_is_refused(server: &mut Server) {
    let (mut store, p) = (server.store(), partition());
    store.apply(p, &[user("u", 5)], &meta(4, 5), true).unwrap();
    assert_eq!(store.apply(p, &[user("u", 6)], &meta(3, 6), true).unwrap(), Applied::Fenced { epoch: 4 });
    let ours = CopyMeta { cluster_id: "other".to_owned(), generation: 2, ..meta(1, 1) };
    assert_eq!(store.apply(p, &[user("u", 1)], &ours, true).unwrap(), Applied::Ok { before: 0 });
    assert_eq!(users(&mut store, p), [("u".to_owned(), 1, 2)]);
    let expecting = CopyMeta { expected_applied: 7, ..ours };
    assert_eq!(store.apply(p, &[user("u", 8)], &expecting, true).unwrap(), Applied::Regressed);
}

pub fn a_user_who_left_is_removed(server: &mut Server) {
    let (mut store, p) = (server.store(), partition());
    store.apply(p, &[user("u", 5), user("v", 5)], &meta(1, 5), true).unwrap();
    store.apply(p, &[gone("u", 6)], &meta(1, 6), true).unwrap();
    assert_eq!(users(&mut store, p), [("v".to_owned(), 5, 2)]);
    for key in [keys::score(p, "u"), keys::windows(p, "u"), keys::state(p, "u")] {
        assert_eq!(server.fields(&key), [], "{key}");
    }
}

pub fn a_rebuild_sweeps_the_rest(server: &mut Server) {
    let (mut store, p) = (server.store(), partition());
    store.apply(p, &[user("u", 6), user("left", 5)], &meta(1, 6), true).unwrap();
    let rebuild = CopyMeta { generation: 2, rebuilding: true, ..meta(1, 6) };
    store.apply(p, &[user("u", 6)], &rebuild, false).unwrap();
    let half = store.meta(p).unwrap().unwrap();
    assert_eq!((half.applied, half.rebuilding), (0, true));
    store.sweep(p, &rebuild).unwrap();
    assert_eq!(users(&mut store, p), [("u".to_owned(), 6, 2)]);
    assert_eq!(store.sweep(p, &meta(1, 6)).unwrap_err().kind, ErrorKind::Abort);
}

pub fn many_users_and_fields_fit(server: &mut Server) {
    let (mut store, p) = (server.store(), partition());
    for chunk in 0..3 {
        let mut users: Vec<CopyUser> = (0..500).map(|n| user(&format!("u{}", chunk * 500 + n), 5)).collect();
        users[0].segments = (0..2_500).map(|n| (format!("day-{n}"), vec![7].into())).collect();
        users[1].top_milli = None;
        store.apply(p, &users, &meta(1, 5), chunk == 2).unwrap();
    }
    let all = users(&mut store, p);
    assert_eq!((all.len(), all[0].clone()), (1_500, ("u0".to_owned(), 5, 2_500)));
}

pub fn a_restart_keeps_what_was_acknowledged(server: &mut Server) {
    let mut server = server.own();
    let mut store = server.store();
    for commit in 1..=50 {
        let users: Vec<CopyUser> = (0..20).map(|n| user(&format!("u{n}"), commit)).collect();
        store.apply(0, &users, &meta(1, commit), true).unwrap();
    }
    server.kill_and_restart();
    let found = wait_for("the store", PATIENCE, || store.meta(0).ok());
    assert_eq!(found, Some(meta(1, 50)));
    assert!(users(&mut store, 0).iter().all(|(_, commit, segments)| (*commit, *segments) == (50, 2)));
    assert_eq!(users(&mut store, 0).len(), 20);
    // The script is not known any more, which the store mends by itself.
    assert_eq!(store.apply(0, &[user("u0", 51)], &meta(1, 51), true).unwrap(), Applied::Ok { before: 50 });
}
