//! A partition's users put together from the copy and the changelog: per key the higher commit wins, tombstones
//! remove. Reads what it is handed; where from and up to where is the worker's choice.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::domain::Day;
use crate::domain::record::Journal;
use crate::runtime::copy_sink::DirtyUser;
use crate::runtime::ports::CopyUser;
use crate::runtime::recovery::Changelog;
use crate::topology::{META_KEY, Topic};
use crate::wire::avro::{DecodeError, Decoder};
use crate::wire::state::{self, Segment, UserBytes};

/// A restore under way.
#[derive(Default)]
pub struct Restore {
    users: HashMap<Arc<str>, UserBytes>,
    /// Users the changelog's tail said something about: the copy has to see them again.
    tail: HashSet<Arc<str>>,
    meta: Option<Box<Journal>>,
    fault: Option<Changelog>,
    unavailable: Option<String>,
}

impl Restore {
    /// Takes a user from the copy.
    pub fn copied(&mut self, user: CopyUser) {
        let key: Arc<str> = Arc::from(user.user_key);
        for (suffix, bytes) in user.segments {
            let segment = match suffix.as_str() {
                "" | "head" => Segment::Head,
                "seen" => Segment::Seen,
                day => match day.parse() {
                    Ok(day) => Segment::Day(Day(day)),
                    Err(_) => return self.fail(state::Error::Damaged { what: "a field of no segment" }),
                },
            };
            self.set(&key, segment, bytes);
        }
    }

    /// Takes a record of the changelog.
    pub fn logged(&mut self, key: &[u8], value: Option<&[u8]>, decoder: &mut Decoder) {
        if key == META_KEY {
            return self.logged_meta(value, decoder);
        }
        let Some((user_key, segment)) = state::parse_key(key) else { return };
        let key = match self.users.get_key_value(user_key) {
            Some((key, _)) => key.clone(),
            None => Arc::from(user_key),
        };
        match value {
            Some(value) => self.set(&key, segment, Arc::from(value)),
            None => self.remove(&key, segment),
        }
        self.tail.insert(key);
    }

    fn logged_meta(&mut self, value: Option<&[u8]>, decoder: &mut Decoder) {
        let Some(value) = value else { return };
        match decoder.decode::<Journal>(Topic::EngineJournal, value, &[]) {
            Ok(meta) => self.meta = Some(Box::new(meta)),
            Err(DecodeError::Unavailable(why)) => self.unavailable = Some(why),
            Err(error) => self.fault = Some(Changelog::Damaged { what: format!("the meta record: {error}") }),
        }
    }

    fn set(&mut self, key: &Arc<str>, segment: Segment, bytes: Arc<[u8]>) {
        let new = match state::commit_no(&bytes) {
            Ok(new) => new,
            Err(error) => return self.fail(error),
        };
        let user = self.users.entry(key.clone()).or_default();
        let newer = |old: &Arc<[u8]>| state::commit_no(old).is_ok_and(|old| old > new);
        match segment {
            Segment::Head if user.head.as_ref().is_none_or(|old| !newer(old)) => user.head = Some(bytes),
            Segment::Seen if user.seen.as_ref().is_none_or(|old| !newer(old)) => user.seen = Some(bytes),
            Segment::Head | Segment::Seen => {}
            Segment::Day(day) => match user.days.binary_search_by_key(&day, |(d, _)| *d) {
                Ok(at) if newer(&user.days[at].1) => {}
                Ok(at) => user.days[at].1 = bytes,
                Err(at) => user.days.insert(at, (day, bytes)),
            },
        }
    }

    fn remove(&mut self, key: &Arc<str>, segment: Segment) {
        let Some(user) = self.users.get_mut(key) else { return };
        match segment {
            Segment::Head => user.head = None,
            Segment::Seen => user.seen = None,
            Segment::Day(day) => user.days.retain(|(d, _)| *d != day),
        }
        if *user == UserBytes::default() {
            self.users.remove(key);
        }
    }

    fn fail(&mut self, error: state::Error) {
        self.fault = Some(match error {
            state::Error::Format { found } => Changelog::Format { found: found.into() },
            state::Error::Damaged { .. } => Changelog::Damaged { what: error.to_string() },
        });
    }

    /// Why the answer is not final: the schema of the meta record cannot be had now.
    pub fn unavailable(&self) -> Option<&str> {
        self.unavailable.as_deref()
    }

    /// What was found, for the decision.
    pub fn changelog(&self) -> Changelog {
        if let Some(fault) = &self.fault {
            return fault.clone();
        }
        if self.users.values().any(|u| u.head.is_none()) {
            return Changelog::Damaged { what: "a user without a head".into() };
        }
        Changelog::Read { meta: self.meta.clone(), users: self.users.len() as i64 }
    }

    /// The users, and those among them (or gone) that the changelog's tail changed.
    pub fn into_users(self) -> (HashMap<Arc<str>, UserBytes>, Vec<DirtyUser>) {
        let commit_no = self.meta.as_ref().map_or(0, |m| m.commit_no);
        let dirty = |key: Arc<str>| DirtyUser {
            bytes: self.users.get(&key).cloned().unwrap_or_default(),
            user_key: key,
            commit_no,
        };
        let tail = self.tail.into_iter().map(dirty).collect();
        (self.users, tail)
    }
}
