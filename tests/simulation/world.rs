//! What lies outside the workers, and where faults strike: clients that die, ends of transactions that arrive late, a
//! store that loses what it acknowledged. All from one seed. Next: `ports.rs`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};

use casestream::domain::Timestamp;
use casestream::runtime::ports::{CopyMeta, CopyUser, Error, ErrorKind};

use super::broker::Broker;

/// Thrown through the worker in place of a crash of its process.
pub struct Crash;

/// Events kept for the report of a failed seed.
const TRACE_MAX: usize = 200;

/// splitmix64.
#[derive(Clone, Copy)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n`; never for 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

/// How often each fault struck: the run asserts that none was left out.
pub type Hits = BTreeMap<&'static str, u64>;

/// A guard taken out, to see that the checker notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Everything in place.
    None,
    /// G1: offsets go out under the generation of the moment, not of the batch.
    FreshMetadata,
    /// T2: a new producer does not fence the ends that are still on their way.
    NoEpochBump,
    /// T3: positions stay where they are after an abort.
    SeekIgnored,
    /// R1: the store takes lower epochs and older commits.
    StoreTakesOlder,
    /// R2: the store does not say that it lost what it acknowledged.
    StoreForgets,
}

/// A partition of the store.
#[derive(Clone, Default)]
pub struct Copy {
    pub meta: Option<CopyMeta>,
    /// With the generation each was written under.
    pub users: BTreeMap<String, (i64, CopyUser)>,
}

/// An end of a transaction on its way.
struct LateEnd {
    id: String,
    client: u64,
    epoch: i64,
    commit: bool,
}

/// Everything outside the workers.
pub struct World {
    pub broker: Broker,
    pub copies: BTreeMap<i32, Copy>,
    /// What a replica of the store had at some earlier moment.
    pub replica: BTreeMap<i32, Copy>,
    pub store_down: bool,
    pub policies_down: bool,
    pub rng: Rng,
    /// One fault in this many port calls; 0 for none.
    pub fault_one_in: u64,
    pub mutation: Mutation,
    pub hits: Hits,
    /// Clients whose process is gone.
    pub dead: BTreeSet<u64>,
    late: VecDeque<LateEnd>,
    trace: Option<VecDeque<String>>,
}

pub type Shared = Arc<Mutex<World>>;

impl World {
    pub fn new(broker: Broker, seed: u64, mutation: Mutation, traced: bool) -> World {
        let mut broker = broker;
        broker.keeps_epoch = mutation == Mutation::NoEpochBump;
        broker.any_generation = mutation == Mutation::FreshMetadata;
        World {
            broker,
            copies: BTreeMap::new(),
            replica: BTreeMap::new(),
            store_down: false,
            policies_down: false,
            rng: Rng(seed),
            fault_one_in: 0,
            mutation,
            hits: Hits::new(),
            dead: BTreeSet::new(),
            late: VecDeque::new(),
            trace: traced.then(VecDeque::new),
        }
    }

    /// Whether a fault strikes now; `rarer` times less often than usual.
    pub fn strikes(&mut self, rarer: u64) -> bool {
        let one_in = self.fault_one_in * rarer;
        self.rng.one_in(one_in)
    }

    pub fn hit(&mut self, what: &'static str) {
        *self.hits.entry(what).or_default() += 1;
        self.note(|| format!("fault: {what}"));
    }

    /// Keeps an event for the report, if there will be one.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let now = self.broker.now;
        if let Some(trace) = &mut self.trace {
            trace.push_back(format!("{} {}", now.rfc3339(), what()));
            if trace.len() > TRACE_MAX {
                trace.pop_front();
            }
        }
    }

    pub fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default().into()
    }

    pub fn advance(&mut self, ms: i64) {
        self.broker.now = self.broker.now.plus_ms(ms);
        if self.broker.expire_transactions() > 0 {
            self.hit("transaction expired");
        }
    }

    pub fn now(&self) -> Timestamp {
        self.broker.now
    }

    /// Sends an end on a long way.
    pub fn delay_end(&mut self, id: &str, client: u64, epoch: i64, commit: bool) {
        self.late.push_back(LateEnd { id: id.to_owned(), client, epoch, commit });
    }

    /// Delivers an end that was delayed.
    pub fn deliver_late(&mut self) {
        let Some(LateEnd { id, client, epoch, commit }) = self.late.pop_front() else { return };
        match self.broker.end_transaction(&id, client, epoch, commit) {
            Ok(()) => self.hit("late end accepted"),
            Err(_) => self.hit("late end refused"),
        }
    }
}

/// Locks the world; a crash may have come while it was locked.
pub fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

thread_local! {
    /// Lets others run in the middle of a port call.
    static OTHERS: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
}

/// Sets what runs in the middle of port calls on this thread.
pub fn set_others(others: Option<Rc<dyn Fn()>>) {
    OTHERS.with(|o| *o.borrow_mut() = others);
}

/// Who makes a port call.
#[derive(Clone)]
pub struct Client {
    pub world: Shared,
    /// Name that survives restarts: transactional id and member id.
    pub id: String,
    /// Differs with each start. 0 is an observer, whom nothing happens to.
    pub number: u64,
}

impl Client {
    /// An observer.
    pub fn observer(world: &Shared) -> Client {
        Client { world: world.clone(), id: "observer".into(), number: 0 }
    }

    pub fn lock(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// The beginning of every port call: others may run before it takes effect, and the process may end.
    pub fn call(&self, point: &'static str, rarer: u64) -> MutexGuard<'_, World> {
        if self.number == 0 {
            return self.lock();
        }
        let others = {
            let mut w = self.lock();
            if w.rng.one_in(40) {
                w.deliver_late();
            }
            w.strikes(rarer).then(|| OTHERS.with(|o| o.borrow().clone())).flatten()
        };
        if let Some(others) = others {
            self.lock().note(|| format!("{} is held up: {point}", self.id));
            others();
            self.lock().note(|| format!("{} goes on: {point}", self.id));
        }
        let mut w = self.lock();
        if w.strikes(3 * rarer) {
            w.hit(point);
            w.dead.insert(self.number);
        }
        if w.dead.contains(&self.number) {
            drop(w);
            std::panic::resume_unwind(Box::new(Crash));
        }
        w
    }

    /// Refuses a call from time to time.
    pub fn refuse(&self, w: &mut World, point: &'static str, kind: ErrorKind, rarer: u64) -> Result<(), Error> {
        if self.number != 0 && w.strikes(rarer) {
            w.hit(point);
            return Err(Error::new(kind, point, "injected"));
        }
        Ok(())
    }
}
