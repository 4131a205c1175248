//! Consumer groups, the classic protocol: join, sync, heartbeat, leave, session time-outs, static members. Only who is
//! a member now; offsets are in `state.rs`. Time is an argument. After a restart groups have no members and everybody
//! joins again. Next: `membership.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::codes;

/// Members of one group, those that were only given an id included.
const MEMBERS_MAX: usize = 1_000;
/// Groups with members.
const GROUPS_MAX: usize = 1_000;
/// How long a new group waits for others before its first generation.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// What Kafka allows for a session, in milliseconds.
const SESSION_MS: std::ops::RangeInclusive<i32> = 6_000..=1_800_000;

/// A request to join.
#[derive(Clone, Debug)]
pub struct Join {
    pub group: String,
    pub member: String,
    pub instance: Option<String>,
    pub client: String,
    pub kind: String,
    pub session_ms: i32,
    pub rebalance_ms: i32,
    pub protocols: Vec<(String, Bytes)>,
    /// Whether a member without an id is given one and asked to come again.
    pub id_first: bool,
}

/// An answer to it.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    pub error: i16,
    pub generation: i32,
    pub protocol: String,
    pub leader: String,
    pub member: String,
    /// For the leader: id, instance and metadata of everybody.
    pub members: Vec<(String, Option<String>, Bytes)>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub group: &'a str,
    pub member: &'a str,
    pub instance: Option<&'a str>,
    pub generation: i32,
}

type Assignment = Result<Bytes, i16>;

#[derive(Debug)]
struct Member {
    instance: Option<String>,
    client: String,
    protocols: Vec<(String, Bytes)>,
    session: Duration,
    rebalance: Duration,
    expires: Instant,
    joining: Option<oneshot::Sender<Joined>>,
    syncing: Option<oneshot::Sender<Assignment>>,
    assignment: Bytes,
}

impl Member {
    /// Whether it waits for others; it cannot send heartbeats then.
    fn waits(&self) -> bool {
        self.joining.as_ref().is_some_and(|answer| !answer.is_closed())
            || self.syncing.as_ref().is_some_and(|answer| !answer.is_closed())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Preparing { not_before: Instant, until: Instant },
    Completing { until: Instant },
    Stable,
}

#[derive(Debug)]
struct Group {
    phase: Phase,
    generation: i32,
    kind: String,
    protocol: String,
    leader: String,
    members: BTreeMap<String, Member>,
    pending: BTreeSet<String>,
}

/// A group for display.
#[derive(Debug)]
pub struct Description {
    pub state: &'static str,
    pub kind: String,
    pub protocol: String,
    /// Id, instance, client, metadata, assignment.
    pub members: Vec<(String, Option<String>, String, Bytes, Bytes)>,
}

/// All groups that have or had members.
#[derive(Debug, Default)]
pub struct Groups {
    groups: BTreeMap<String, Group>,
    /// Makes member ids of this process differ.
    counter: u64,
    /// Makes member ids of different runs differ.
    epoch: u64,
}

impl Groups {
    /// No groups; `epoch` differs between runs.
    pub fn new(epoch: u64) -> Groups {
        Groups { groups: BTreeMap::new(), counter: 0, epoch }
    }

    fn new_id(&mut self, join: &Join) -> String {
        self.counter += 1;
        let name = join.instance.as_ref().unwrap_or(&join.client);
        format!("{name}-{:016x}-{:08x}", self.epoch, self.counter)
    }

    /// Joins; the answer comes when everybody has joined.
    pub fn join(&mut self, mut join: Join, now: Instant) -> Result<oneshot::Receiver<Joined>, Joined> {
        let refuse =
            |error, member: &str| Err(Joined { error, generation: -1, member: member.to_owned(), ..Joined::default() });
        if join.group.is_empty() {
            return refuse(codes::INVALID_GROUP_ID, &join.member);
        }
        if !SESSION_MS.contains(&join.session_ms) {
            return refuse(codes::INVALID_SESSION_TIMEOUT, &join.member);
        }
        if !self.groups.contains_key(&join.group) && (self.groups.len() >= GROUPS_MAX || !join.member.is_empty()) {
            let full = self.groups.len() >= GROUPS_MAX;
            return refuse(if full { codes::GROUP_MAX_SIZE } else { codes::UNKNOWN_MEMBER_ID }, &join.member);
        }
        let new_id = self.new_id(&join);
        let group = self.groups.entry(join.group.clone()).or_insert_with(Group::new);
        if !group.accepts(&join) {
            return refuse(codes::INCONSISTENT_GROUP_PROTOCOL, &join.member);
        }
        if join.member.is_empty() {
            if group.members.len() + group.pending.len() >= MEMBERS_MAX {
                return refuse(codes::GROUP_MAX_SIZE, "");
            }
            let holder = join.instance.as_ref().and_then(|instance| group.holder(instance));
            if let Some(old) = holder {
                return Ok(group.replace(&old, new_id, join, now));
            }
            if join.instance.is_none() && join.id_first {
                group.pending.insert(new_id.clone());
                return refuse(codes::MEMBER_ID_REQUIRED, &new_id);
            }
            join.member = new_id;
        } else if !group.pending.remove(&join.member) {
            let error = group.check_member(&join.member, join.instance.as_deref());
            if error != codes::NONE {
                return refuse(error, &join.member);
            }
        }
        Ok(group.add(join, now))
    }

    /// Hands in assignments (the leader) and asks for one's own; the answer comes when the leader has.
    pub fn sync(
        &mut self,
        who: Who<'_>,
        assignments: Vec<(String, Bytes)>,
        now: Instant,
    ) -> Result<oneshot::Receiver<Assignment>, i16> {
        let error = self.check(who, now);
        if error != codes::NONE {
            return Err(error);
        }
        let group = self.groups.get_mut(who.group).ok_or(codes::UNKNOWN_MEMBER_ID)?;
        let (send, receive) = oneshot::channel();
        match group.phase {
            Phase::Empty => return Err(codes::UNKNOWN_MEMBER_ID),
            Phase::Preparing { .. } => return Err(codes::REBALANCE_IN_PROGRESS),
            Phase::Stable => {
                // Whoever asks may have gone.
                let _ = send.send(Ok(group.members[who.member].assignment.clone()));
            }
            Phase::Completing { .. } => {
                group.members.get_mut(who.member).ok_or(codes::UNKNOWN_MEMBER_ID)?.syncing = Some(send);
                if who.member == group.leader {
                    group.assign(assignments, now);
                }
            }
        }
        Ok(receive)
    }

    /// A sign of life.
    pub fn heartbeat(&mut self, who: Who<'_>, now: Instant) -> i16 {
        let error = self.check(who, now);
        let preparing = |group: &Group| matches!(group.phase, Phase::Preparing { .. });
        match error {
            codes::NONE if self.groups.get(who.group).is_some_and(preparing) => codes::REBALANCE_IN_PROGRESS,
            error => error,
        }
    }

    /// Takes members out by id or by instance; one error code each.
    pub fn leave(&mut self, group: &str, members: &[(String, Option<String>)], now: Instant) -> Vec<i16> {
        let Some(group) = self.groups.get_mut(group) else { return vec![codes::UNKNOWN_MEMBER_ID; members.len()] };
        let errors = members.iter().map(|(member, instance)| group.remove(member, instance.as_deref())).collect();
        group.shrunk(now);
        errors
    }

    /// Whether offsets may be committed.
    pub fn may_commit(&mut self, who: Who<'_>, transactional: bool, now: Instant) -> i16 {
        let anonymous = who.member.is_empty() && who.generation < 0 && who.instance.is_none();
        let Some(group) = self.groups.get(who.group) else {
            // A group that is not there has no generation; one without members takes anybody's offsets.
            return if who.generation < 0 { codes::NONE } else { codes::ILLEGAL_GENERATION };
        };
        if who.generation < 0 && group.phase == Phase::Empty {
            return codes::NONE;
        }
        if anonymous {
            return if transactional || group.phase == Phase::Empty { codes::NONE } else { codes::UNKNOWN_MEMBER_ID };
        }
        let completing = matches!(group.phase, Phase::Completing { .. });
        match self.check(who, now) {
            codes::NONE if completing && !transactional => codes::REBALANCE_IN_PROGRESS,
            error => error,
        }
    }

    /// Member and generation; counts as a sign of life.
    fn check(&mut self, who: Who<'_>, now: Instant) -> i16 {
        let Some(group) = self.groups.get_mut(who.group) else { return codes::UNKNOWN_MEMBER_ID };
        let error = group.check_member(who.member, who.instance);
        if error != codes::NONE {
            return error;
        }
        if who.generation != group.generation {
            return codes::ILLEGAL_GENERATION;
        }
        if let Some(member) = group.members.get_mut(who.member) {
            member.expires = now + member.session;
        }
        codes::NONE
    }

    /// What is due: silent members go, rebalances end.
    pub fn tick(&mut self, now: Instant) {
        self.groups.values_mut().for_each(|group| group.tick(now));
        self.groups.retain(|_, group| !(group.members.is_empty() && group.pending.is_empty() && group.generation == 0));
    }

    /// When `tick` has something to do next, if nobody calls before.
    pub fn next_due(&self) -> Option<Instant> {
        self.groups.values().filter_map(Group::next_due).min()
    }

    /// Forgets a group; an error code.
    pub fn delete(&mut self, group: &str) -> i16 {
        match self.groups.get(group) {
            None => codes::GROUP_ID_NOT_FOUND,
            Some(found) if !found.members.is_empty() => codes::NON_EMPTY_GROUP,
            Some(_) => {
                self.groups.remove(group);
                codes::NONE
            }
        }
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.groups.keys()
    }

    pub fn describe(&self, group: &str) -> Option<Description> {
        let group = self.groups.get(group)?;
        let row = |(id, member): (&String, &Member)| {
            let metadata = member.metadata(&group.protocol);
            (id.clone(), member.instance.clone(), member.client.clone(), metadata, member.assignment.clone())
        };
        Some(Description {
            state: group.phase.name(),
            kind: group.kind.clone(),
            protocol: group.protocol.clone(),
            members: group.members.iter().map(row).collect(),
        })
    }
}

impl Phase {
    const fn name(self) -> &'static str {
        match self {
            Phase::Empty => "Empty",
            Phase::Preparing { .. } => "PreparingRebalance",
            Phase::Completing { .. } => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }
}

impl Member {
    fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols
            .iter()
            .find(|(name, _)| name == protocol)
            .map(|(_, metadata)| metadata.clone())
            .unwrap_or_default()
    }
}

impl Group {
    fn new() -> Group {
        Group {
            phase: Phase::Empty,
            generation: 0,
            kind: String::new(),
            protocol: String::new(),
            leader: String::new(),
            members: BTreeMap::new(),
            pending: BTreeSet::new(),
        }
    }

    /// Whether the member speaks what the others speak.
    fn accepts(&self, join: &Join) -> bool {
        if join.protocols.is_empty() {
            return false;
        }
        let others = || self.members.iter().filter(|(id, _)| **id != join.member).map(|(_, member)| member);
        let spoken = |name: &String| others().all(|member| member.protocols.iter().any(|(other, _)| other == name));
        others().next().is_none() || (self.kind == join.kind && join.protocols.iter().any(|(name, _)| spoken(name)))
    }

    fn holder(&self, instance: &str) -> Option<String> {
        self.members.iter().find(|(_, member)| member.instance.as_deref() == Some(instance)).map(|(id, _)| id.clone())
    }

    fn check_member(&self, member: &str, instance: Option<&str>) -> i16 {
        match instance.map(|instance| self.holder(instance)) {
            Some(None) => codes::UNKNOWN_MEMBER_ID,
            Some(Some(holder)) if holder != member => codes::FENCED_INSTANCE_ID,
            _ if self.members.contains_key(member) => codes::NONE,
            _ => codes::UNKNOWN_MEMBER_ID,
        }
    }

    fn new_member(join: &Join, now: Instant) -> Member {
        let session = Duration::from_millis(join.session_ms.max(0) as u64);
        let rebalance = if join.rebalance_ms > 0 { Duration::from_millis(join.rebalance_ms as u64) } else { session };
        Member {
            instance: join.instance.clone(),
            client: join.client.clone(),
            protocols: join.protocols.clone(),
            session,
            rebalance,
            expires: now + session,
            joining: None,
            syncing: None,
            assignment: Bytes::new(),
        }
    }

    /// Lets a new or known member join.
    fn add(&mut self, join: Join, now: Instant) -> oneshot::Receiver<Joined> {
        let (send, receive) = oneshot::channel();
        let fresh = Group::new_member(&join, now);
        self.kind = join.kind;
        let changed = self.members.get(&join.member).is_none_or(|member| member.protocols != fresh.protocols);
        let is_leader = join.member == self.leader;
        let assignment = self.members.get(&join.member).map(|member| member.assignment.clone()).unwrap_or_default();
        let member = Member { joining: Some(send), assignment, ..fresh };
        self.members.insert(join.member.clone(), member);
        let repeats = match self.phase {
            Phase::Stable => !changed && !is_leader,
            // It did not get the answer.
            Phase::Completing { .. } => !changed,
            Phase::Empty | Phase::Preparing { .. } => false,
        };
        if repeats {
            self.answer(&join.member);
        } else {
            self.prepare(now);
        }
        receive
    }

    /// A static member is back under a new id: the old one is fenced. Nothing else changes if it speaks as before.
    fn replace(&mut self, old: &str, new_id: String, join: Join, now: Instant) -> oneshot::Receiver<Joined> {
        let Some(mut member) = self.members.remove(old) else { return self.add(Join { member: new_id, ..join }, now) };
        let fenced =
            Joined { error: codes::FENCED_INSTANCE_ID, generation: -1, member: old.to_owned(), ..Joined::default() };
        // Whoever waited may have gone.
        let _ = member.joining.take().map(|answer| answer.send(fenced));
        let _ = member.syncing.take().map(|answer| answer.send(Err(codes::FENCED_INSTANCE_ID)));
        let (send, receive) = oneshot::channel();
        let same = member.metadata(&self.protocol) == Group::new_member(&join, now).metadata(&self.protocol);
        let was_leader = self.leader == old;
        let fresh = Group::new_member(&join, now);
        self.members.insert(new_id.clone(), Member { joining: Some(send), assignment: member.assignment, ..fresh });
        if self.phase == Phase::Stable && same {
            self.answer(&new_id);
            // Told who led, it does not believe itself to be the leader and keeps its assignment.
            if was_leader {
                self.leader = new_id;
            }
            return receive;
        }
        if was_leader {
            self.leader = new_id;
        }
        self.prepare(now);
        receive
    }

    /// Answers one member with the generation as it is.
    fn answer(&mut self, id: &str) {
        let joined = self.joined(id);
        let answer = self.members.get_mut(id).and_then(|member| member.joining.take());
        // Whoever waited may have gone; its session ends in time.
        let _ = answer.map(|answer| answer.send(joined));
    }

    fn joined(&self, id: &str) -> Joined {
        let everybody = || {
            let row = |(id, member): (&String, &Member)| {
                (id.clone(), member.instance.clone(), member.metadata(&self.protocol))
            };
            self.members.iter().map(row).collect()
        };
        Joined {
            error: codes::NONE,
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            member: id.to_owned(),
            members: if id == self.leader { everybody() } else { Vec::new() },
        }
    }

    /// Begins a rebalance, unless one is under way, and ends it if everybody is there.
    fn prepare(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::Preparing { .. }) {
            let first_wait = if self.phase == Phase::Empty { FIRST_WAIT } else { Duration::ZERO };
            let rebalance = self.members.values().map(|member| member.rebalance).max().unwrap_or_default();
            self.phase = Phase::Preparing { not_before: now + first_wait, until: now + rebalance.max(first_wait) };
            for member in self.members.values_mut() {
                // Whoever waited may have gone.
                let _ = member.syncing.take().map(|answer| answer.send(Err(codes::REBALANCE_IN_PROGRESS)));
            }
        }
        self.try_complete(now);
    }

    fn try_complete(&mut self, now: Instant) {
        let Phase::Preparing { not_before, until } = self.phase else { return };
        let waiting = |member: &Member| member.joining.as_ref().is_some_and(|answer| !answer.is_closed());
        let complete = self.members.values().all(waiting);
        if now < not_before || (!complete && now < until) {
            return;
        }
        // A static member that is away keeps its place until its session ends.
        self.members.retain(|_, member| waiting(member) || member.instance.is_some());
        if self.members.is_empty() {
            return self.shrunk(now);
        }
        self.generation += 1;
        let rebalance = self.members.values().map(|member| member.rebalance).max().unwrap_or_default();
        self.phase = Phase::Completing { until: now + rebalance };
        self.protocol = self.choose();
        if !self.members.get(&self.leader).is_some_and(waiting) {
            let first = self.members.iter().find(|(_, member)| waiting(member)).or(self.members.iter().next());
            self.leader = first.map(|(id, _)| id.clone()).unwrap_or_default();
        }
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            if let Some(member) = self.members.get_mut(&id).filter(|member| member.joining.is_some()) {
                member.expires = now + member.session;
            }
            self.answer(&id);
        }
    }

    /// The first protocol of the first member that all speak.
    fn choose(&self) -> String {
        let spoken = |name: &&String| {
            self.members.values().all(|member| member.protocols.iter().any(|(other, _)| other == *name))
        };
        let first = self.members.values().next().into_iter().flat_map(|member| &member.protocols);
        first.map(|(name, _)| name).find(spoken).cloned().unwrap_or_default()
    }

    fn assign(&mut self, assignments: Vec<(String, Bytes)>, now: Instant) {
        for (id, assignment) in assignments {
            self.members.entry(id).and_modify(|member| member.assignment = assignment);
        }
        self.phase = Phase::Stable;
        for member in self.members.values_mut() {
            if let Some(answer) = member.syncing.take() {
                member.expires = now + member.session;
                // Whoever waited may have gone.
                let _ = answer.send(Ok(member.assignment.clone()));
            }
        }
    }

    fn remove(&mut self, member: &str, instance: Option<&str>) -> i16 {
        if self.pending.remove(member) {
            return codes::NONE;
        }
        let id = match instance.map(|instance| self.holder(instance)) {
            Some(None) => return codes::UNKNOWN_MEMBER_ID,
            Some(Some(holder)) if !member.is_empty() && holder != member => return codes::FENCED_INSTANCE_ID,
            Some(Some(holder)) => holder,
            None => member.to_owned(),
        };
        if self.members.remove(&id).is_some() { codes::NONE } else { codes::UNKNOWN_MEMBER_ID }
    }

    /// After members went: the others join anew, or the group is empty.
    fn shrunk(&mut self, now: Instant) {
        if !self.members.is_empty() {
            return self.prepare(now);
        }
        if self.phase != Phase::Empty {
            self.phase = Phase::Empty;
            self.generation += 1;
            self.protocol.clear();
            self.leader.clear();
        }
    }

    fn tick(&mut self, now: Instant) {
        let before = self.members.len();
        self.members.retain(|_, member| member.waits() || now < member.expires);
        if let Phase::Completing { until } = self.phase
            && now >= until
        {
            self.members.retain(|_, member| member.syncing.is_some());
        }
        if self.members.len() != before {
            self.shrunk(now);
        }
        self.try_complete(now);
    }

    fn next_due(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Preparing { not_before, until } => {
                let complete = self.members.values().all(|member| member.joining.is_some());
                Some(if complete { not_before } else { until })
            }
            Phase::Completing { until } => Some(until),
            Phase::Empty | Phase::Stable => None,
        };
        let sessions = self.members.values().filter(|member| !member.waits()).map(|member| member.expires).min();
        phase.into_iter().chain(sessions).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Duration = Duration::from_secs(10);

    fn join(member: &str, instance: Option<&str>) -> Join {
        Join {
            group: "g".to_owned(),
            member: member.to_owned(),
            instance: instance.map(str::to_owned),
            client: "client".to_owned(),
            kind: "consumer".to_owned(),
            session_ms: SESSION.as_millis() as i32,
            rebalance_ms: 30_000,
            protocols: vec![("range".to_owned(), Bytes::from_static(b"topics"))],
            id_first: false,
        }
    }

    fn who<'a>(joined: &'a Joined, instance: Option<&'a str>) -> Who<'a> {
        Who { group: "g", member: &joined.member, instance, generation: joined.generation }
    }

    /// A group of static members `a` and `b`, synced.
    fn two(now: Instant) -> (Groups, Joined, Joined) {
        let mut groups = Groups::new(1);
        let [mut a, mut b] = ["a", "b"].map(|instance| groups.join(join("", Some(instance)), now).unwrap());
        groups.tick(now + FIRST_WAIT);
        let (a, b) = (a.try_recv().unwrap(), b.try_recv().unwrap());
        let (leader, follower) = if a.leader == a.member { (&a, &b) } else { (&b, &a) };
        let mut waits = groups.sync(who(follower, None), Vec::new(), now).unwrap();
        let shares = vec![(a.member.clone(), Bytes::from_static(b"1")), (b.member.clone(), Bytes::from_static(b"2"))];
        let mut own = groups.sync(who(leader, None), shares, now).unwrap();
        assert!(own.try_recv().unwrap().is_ok() && waits.try_recv().unwrap().is_ok());
        (groups, a, b)
    }

    #[test]
    fn a_generation_begins_when_all_have_joined_and_ends_when_one_falls_silent() {
        let now = Instant::now();
        let (mut groups, a, b) = two(now);
        assert_eq!((a.generation, b.generation, a.members.len() + b.members.len()), (1, 1, 2));
        let later = now + SESSION - Duration::from_millis(1);
        assert_eq!(groups.heartbeat(who(&a, Some("a")), later), codes::NONE);
        assert_eq!(groups.next_due(), Some(now + SESSION), "b's session");
        groups.tick(now + SESSION);
        assert_eq!(groups.heartbeat(who(&a, Some("a")), now + SESSION), codes::REBALANCE_IN_PROGRESS);
        assert_eq!(groups.heartbeat(who(&b, None), now + SESSION), codes::UNKNOWN_MEMBER_ID);
    }

    #[test]
    fn a_static_member_comes_back_to_its_share_and_fences_its_past() {
        let now = Instant::now();
        let (mut groups, a, b) = two(now);
        let again = groups.join(join("", Some("b")), now).unwrap().try_recv().unwrap();
        assert_eq!((again.error, again.generation), (codes::NONE, b.generation));
        assert_ne!(again.leader, again.member, "it does not assign anew");
        let share = groups.sync(who(&again, Some("b")), Vec::new(), now).unwrap().try_recv().unwrap();
        assert_eq!(share, Ok(Bytes::from_static(b"2")));
        assert_eq!(groups.heartbeat(who(&b, Some("b")), now), codes::FENCED_INSTANCE_ID);
        assert_eq!(groups.heartbeat(who(&a, Some("a")), now), codes::NONE, "the other is not disturbed");
    }

    #[test]
    fn commits_are_checked_for_member_and_generation() {
        let now = Instant::now();
        let (mut groups, a, _) = two(now);
        let stale = Who { generation: 0, ..who(&a, None) };
        assert_eq!(groups.may_commit(who(&a, None), true, now), codes::NONE);
        assert_eq!(groups.may_commit(stale, true, now), codes::ILLEGAL_GENERATION);
        assert_eq!(groups.may_commit(Who { member: "x", ..stale }, true, now), codes::UNKNOWN_MEMBER_ID);
        let nobody = Who { member: "", generation: -1, ..stale };
        assert_eq!(groups.may_commit(nobody, false, now), codes::UNKNOWN_MEMBER_ID);
        assert_eq!(groups.may_commit(Who { group: "none", ..nobody }, false, now), codes::NONE);
    }
}
