//! Who runs when. Processes of workers and copy writers are stepped in an order drawn from the seed; in the middle of a
//! port call of one, others may run, so a process can be held up for as long as it takes to lose its partitions.
//! Afterwards faults stop and everything must come to rest. Next: `check.rs`.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use casestream::domain::Timestamp;
use casestream::domain::time::{DAY_MS, HOUR_MS};
use casestream::runtime::checkpoint::{Copies, Handle, Writer};
use casestream::runtime::recovery::HaltCode;
use casestream::runtime::worker::{Config, Step, Worker};
use casestream::topology::{ENGINE_INPUTS, Topic};
use casestream::wire::avro::Schemas;

use super::broker::Broker;
use super::check::check;
use super::driver::START;
use super::inputs::{PARTITIONS, Producer, SETS, Sets, set};
use super::ports::{SimClock, SimGroup, SimLog, SimStore, SimTxn};
use super::world::{Client, Crash, Hits, Mutation, Rng, Shared, World, lock, set_others};

type SimWorker = Worker<SimGroup, SimTxn, SimLog, SimClock, Copies<SimStore>>;
type SimWriter = Writer<SimStore, SimClock>;

/// Steps of the schedule of one seed.
const TICKS: u32 = 450;
/// How far input may reach: signals stay clear of the lateness horizon, whatever the delay.
const SPAN_MS: i64 = 15 * DAY_MS;
/// Seconds of simulated time after which everything must be at rest once faults have stopped.
const REST_MAX: u32 = 1_500;
/// Seconds without a commit that count as rest: longer than a partition waits before it follows the clock.
const REST: u32 = 45;

/// What a seed came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub violations: Vec<String>,
    pub trace: Vec<String>,
    pub hits: Hits,
    pub digest: u64,
    pub transactions: i64,
    pub input_records: i64,
    pub alerts: i64,
}

/// One process: workers that share a handle, and the writer behind it.
struct Process {
    names: Vec<&'static str>,
    number: Cell<u64>,
    workers: RefCell<Vec<Option<SimWorker>>>,
    writer: RefCell<Option<SimWriter>>,
    handle: RefCell<Handle>,
    /// How many of its threads stand in the middle of something.
    busy: Cell<u32>,
    restart_at: Cell<Timestamp>,
}

struct Run {
    world: Shared,
    schemas: Arc<Schemas>,
    rng: RefCell<Rng>,
    producer: RefCell<Producer>,
    processes: Vec<Process>,
    /// Processes of which a second one was started under the same names; they go on until they notice.
    ghosts: RefCell<Vec<Option<SimWorker>>>,
    ghost_writers: RefCell<Vec<Option<SimWriter>>>,
    violations: RefCell<Vec<String>>,
    numbers: Cell<u64>,
    depth: Cell<u32>,
    /// How long a partition must have been drained before it follows the clock differs by seed, as do batches.
    config: Config,
}

/// Runs a seed.
pub fn run(seed: u64, mutation: Mutation, traced: bool) -> Outcome {
    let run = Rc::new(Run::new(seed, mutation, traced));
    let others = run.clone();
    set_others(Some(Rc::new(move || others.others())));
    run.begin();
    for _ in 0..TICKS {
        if run.violations.borrow().is_empty() {
            run.tick();
        }
    }
    run.end_of_faults();
    run.rest();
    lock(&run.world).advance(3 * DAY_MS);
    run.rest();
    set_others(None);
    run.outcome()
}

impl Run {
    fn new(seed: u64, mutation: Mutation, traced: bool) -> Run {
        let inputs = ENGINE_INPUTS.map(Topic::name);
        let world = World::new(Broker::new(&inputs, PARTITIONS, START), seed, mutation, traced);
        let schemas = Schemas::built_in();
        let mut rng = Rng(seed ^ 0x5eed);
        let process = |names: &[&'static str]| Process {
            names: names.to_vec(),
            number: Cell::new(0),
            workers: RefCell::default(),
            writer: RefCell::default(),
            handle: RefCell::default(),
            busy: Cell::new(0),
            restart_at: Cell::new(START),
        };
        let config = Config {
            partitions: PARTITIONS,
            batch_records_max: 3 + rng.below(30) as usize,
            mark_every: Duration::from_secs(1 + rng.below(10)),
            ..Config::default()
        };
        Run {
            world: Arc::new(Mutex::new(world)),
            producer: RefCell::new(Producer::new(seed ^ 0xf00d, &schemas)),
            schemas,
            rng: RefCell::new(rng),
            processes: vec![process(&["engine-0-0", "engine-0-1"]), process(&["engine-1-0"])],
            ghosts: RefCell::default(),
            ghost_writers: RefCell::default(),
            violations: RefCell::default(),
            numbers: Cell::new(0),
            depth: Cell::new(0),
            config,
        }
    }

    fn below(&self, n: u64) -> u64 {
        self.rng.borrow_mut().below(n)
    }

    fn begin(&self) {
        let mut w = lock(&self.world);
        let mut producer = self.producer.borrow_mut();
        producer.switch(&mut w, SETS[0]);
        producer.one_each(&mut w);
        w.fault_one_in = [25, 60, 150][self.below(3) as usize];
    }

    // -- processes ----------------------------------------------------------------------------------------------

    fn start(&self, process: &Process) {
        let number = self.numbers.get() + 1;
        self.numbers.set(number);
        process.number.set(number);
        let handle = Handle::default();
        SETS.iter().filter_map(|s| set(s)).for_each(|s| handle.name_policies(&s));
        let client = |id: &str| Client { world: self.world.clone(), id: id.to_owned(), number };
        lock(&self.world).note(|| format!("process {number} starts: {:?}", process.names));
        let worker = |name: &&'static str| {
            let client = client(name);
            Some(Worker::new(
                Config { worker: client.id.clone(), transactional_id: client.id.clone(), ..self.config.clone() },
                &self.schemas,
                SimGroup::join(&client),
                SimTxn::new(&client),
                SimLog { client: client.clone() },
                SimClock { client: client.clone() },
                Copies::new(handle.clone(), SimStore { client: client.clone() }),
                Box::new(Sets::new(Some(self.world.clone()))),
                Box::new(|_, _| {}),
            ))
        };
        *process.workers.borrow_mut() = process.names.iter().map(worker).collect();
        let client = client(&format!("writer {number}"));
        let writer = Writer::new(handle.clone(), SimStore { client: client.clone() }, SimClock { client });
        *process.writer.borrow_mut() = Some(writer);
        *process.handle.borrow_mut() = handle;
    }

    fn is_alive(&self, number: u64) -> bool {
        number != 0 && !lock(&self.world).dead.contains(&number)
    }

    /// Starts a process that is down and due.
    fn revive(&self, process: &Process) {
        let due = process.busy.get() == 0 && lock(&self.world).now() >= process.restart_at.get();
        if due && !self.is_alive(process.number.get()) {
            self.start(process);
        }
    }

    fn kill(&self, process: &Process) {
        let mut w = lock(&self.world);
        w.dead.insert(process.number.get());
        process.restart_at.set(w.now().plus_ms(self.below(15_000) as i64));
    }

    /// Runs one piece of a process and notes how it ended. `None`: the process is gone.
    fn guarded<T>(&self, what: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(what)) {
            Ok(done) => Some(done),
            Err(panic) => {
                if !panic.is::<Crash>() {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
                    self.violations.borrow_mut().push(format!("a panic: {}", text.unwrap_or_default()));
                }
                None
            }
        }
    }

    /// One step of a worker. `None`: there is nothing to step.
    fn step(&self, process: &Process, n: usize) -> Option<Step> {
        self.revive(process);
        let number = process.number.get();
        let mut worker = process.workers.borrow_mut().get_mut(n)?.take()?;
        process.busy.set(process.busy.get() + 1);
        let stepped = self.guarded(|| worker.step());
        process.busy.set(process.busy.get() - 1);
        let stays = self.is_alive(number) && process.number.get() == number;
        match stepped {
            Some(Ok(step)) => {
                if step != Step::Idle {
                    lock(&self.world).note(|| format!("{} {step:?}", process.names[n]));
                }
                self.halts(process, &worker);
                if stays && self.is_alive(number) {
                    process.workers.borrow_mut()[n] = Some(worker);
                }
                return Some(step);
            }
            Some(Err(stop)) => {
                let mut w = lock(&self.world);
                w.hit("worker stopped");
                w.note(|| format!("{} stops: {stop}", process.names[n]));
            }
            None => {}
        }
        if process.number.get() == number {
            self.kill(process);
        }
        Some(Step::Waiting)
    }

    /// A partition may halt only because transactions kept failing; a restart is its remedy.
    fn halts(&self, process: &Process, worker: &SimWorker) {
        for halt in worker.halted() {
            if halt.code != HaltCode::TransactionAborted {
                self.violations.borrow_mut().push(format!("a halt: {halt}"));
            }
            lock(&self.world).hit("partition halted");
            self.kill(process);
        }
    }

    fn write_copies(&self, process: &Process) -> Option<()> {
        let mut writer = process.writer.borrow_mut().take()?;
        let number = process.number.get();
        process.busy.set(process.busy.get() + 1);
        let done = self.guarded(|| writer.round());
        process.busy.set(process.busy.get() - 1);
        if process.number.get() == number {
            match done {
                Some(_) if self.is_alive(number) => *process.writer.borrow_mut() = Some(writer),
                _ => self.kill(process),
            }
        }
        Some(())
    }

    fn close(&self, process: &Process) {
        if process.busy.get() > 0 {
            return;
        }
        for worker in process.workers.borrow_mut().iter_mut().flatten() {
            worker.close();
        }
        self.write_copies(process);
        lock(&self.world).hit("orderly restart");
        self.kill(process);
    }

    /// A second process under the same names, while the first goes on.
    fn haunt(&self, process: &Process) {
        if process.busy.get() > 0 || !self.is_alive(process.number.get()) {
            return;
        }
        lock(&self.world).hit("second process under the same names");
        self.ghosts.borrow_mut().append(&mut process.workers.borrow_mut());
        self.ghost_writers.borrow_mut().push(process.writer.borrow_mut().take());
        self.start(process);
    }

    fn step_ghost(&self) {
        let count = self.ghosts.borrow().len() as u64;
        if count > 0 {
            let n = self.below(count) as usize;
            let ghost = self.ghosts.borrow_mut()[n].take();
            if let Some(mut ghost) = ghost
                && let Some(Ok(_)) = self.guarded(|| ghost.step())
            {
                self.ghosts.borrow_mut()[n] = Some(ghost);
            }
        }
        let count = self.ghost_writers.borrow().len() as u64;
        if count > 0 {
            let n = self.below(count) as usize;
            let writer = self.ghost_writers.borrow_mut()[n].take();
            if let Some(mut writer) = writer
                && self.guarded(|| writer.round()).is_some()
            {
                self.ghost_writers.borrow_mut()[n] = Some(writer);
            }
        }
    }

    // -- the schedule -------------------------------------------------------------------------------------------

    fn any_process(&self) -> &Process {
        &self.processes[self.below(self.processes.len() as u64) as usize]
    }

    fn step_any(&self) {
        let process = self.any_process();
        let n = self.below(process.names.len() as u64) as usize;
        for _ in 0..1 + self.below(4) {
            self.step(process, n);
        }
    }

    fn tick(&self) {
        match self.below(100) {
            0..45 => self.step_any(),
            45..58 => drop(self.write_copies(self.any_process())),
            58..72 => self.producer.borrow_mut().produce(&mut lock(&self.world)),
            72..84 => lock(&self.world).advance(1 + self.below(2_500) as i64),
            84..86 => self.advance_far(),
            86..88 => self.step_ghost(),
            88 => self.kill_one(),
            89 => self.close(self.any_process()),
            90 => self.haunt(self.any_process()),
            91 => self.membership(),
            92 => self.switch(),
            _ => self.trouble_the_store(),
        }
    }

    fn kill_one(&self) {
        lock(&self.world).hit("process killed between steps");
        self.kill(self.any_process());
    }

    fn advance_far(&self) {
        let mut w = lock(&self.world);
        let ms = self.below(30) as i64 * HOUR_MS;
        if w.now().0 + ms < START.0 + SPAN_MS {
            w.advance(ms);
        }
    }

    fn membership(&self) {
        let expire = self.below(2) == 0;
        let process = self.any_process();
        let id = process.names[self.below(process.names.len() as u64) as usize];
        let mut w = lock(&self.world);
        if expire && w.broker.members.contains_key(id) {
            w.hit("session expired");
            w.broker.leave(id);
        } else {
            w.hit("rebalance");
            w.broker.rebalance();
        }
    }

    fn switch(&self) {
        let set = SETS[self.below(2) as usize];
        let mut w = lock(&self.world);
        w.hit("policy switch");
        self.producer.borrow_mut().switch(&mut w, set);
        if self.below(3) == 0 {
            w.policies_down = true;
        }
    }

    fn trouble_the_store(&self) {
        let (kind, partition) = (self.below(9), self.below(PARTITIONS as u64) as i32);
        let mut w = lock(&self.world);
        w.policies_down = false;
        match kind {
            0 => {
                w.hit("store flushed");
                w.copies.clear();
            }
            1 => {
                w.hit("store failed over to an older state");
                let replica = w.replica.clone();
                w.copies = replica;
            }
            2 => {
                w.store_down = true;
            }
            3 => {
                if let Some(meta) = w.copies.get_mut(&partition).and_then(|c| c.meta.as_mut()) {
                    meta.epoch -= 1;
                    w.hit("store lost an epoch");
                }
            }
            4 => {
                if let Some(meta) = w.copies.get_mut(&partition).and_then(|c| c.meta.as_mut()) {
                    meta.generation -= 1;
                    w.hit("store lost a generation");
                }
            }
            _ => {
                w.store_down = false;
                w.replica = w.copies.clone();
            }
        }
    }

    /// What others do while somebody is held up in the middle of a port call.
    fn others(&self) {
        if self.depth.get() >= 2 {
            return;
        }
        self.depth.set(self.depth.get() + 1);
        let long = self.below(3) == 0;
        if long {
            self.lose_the_busy();
        }
        for _ in 0..if long { 12 + self.below(20) } else { 1 + self.below(4) } {
            match self.below(10) {
                0..6 => self.step_any(),
                6 | 7 => drop(self.write_copies(self.any_process())),
                8 => lock(&self.world).advance(1 + self.below(if long { 3_000 } else { 300 }) as i64),
                _ => {
                    if let Ok(mut producer) = self.producer.try_borrow_mut() {
                        producer.produce(&mut lock(&self.world));
                    }
                }
            }
        }
        self.depth.set(self.depth.get() - 1);
    }

    /// The sessions of those who stand still run out.
    fn lose_the_busy(&self) {
        let mut w = lock(&self.world);
        for process in &self.processes {
            for (n, worker) in process.workers.borrow().iter().enumerate() {
                if worker.is_none() && w.broker.members.contains_key(process.names[n]) {
                    w.hit("session expired in the middle of a call");
                    w.broker.leave(process.names[n]);
                }
            }
        }
    }

    // -- the end ------------------------------------------------------------------------------------------------

    fn end_of_faults(&self) {
        self.ghosts.borrow_mut().clear();
        self.ghost_writers.borrow_mut().clear();
        let mut w = lock(&self.world);
        w.fault_one_in = 0;
        (w.store_down, w.policies_down) = (false, false);
        w.note(|| "faults end".into());
    }

    /// Runs until nothing has happened for a while.
    fn rest(&self) {
        let mut quiet = 0;
        for _ in 0..REST_MAX {
            if !self.violations.borrow().is_empty() {
                return;
            }
            let mut busy = false;
            let mut w = lock(&self.world);
            w.advance(1_000);
            w.deliver_late();
            drop(w);
            for process in &self.processes {
                self.revive(process);
                for n in 0..process.names.len() {
                    for _ in 0..3 {
                        busy |= !matches!(self.step(process, n), Some(Step::Idle));
                    }
                }
                self.write_copies(process);
                busy |= process.handle.borrow().freshness().values().any(|f| f.applied != f.committed || f.rebuilding);
            }
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet >= REST {
                return;
            }
        }
        let state = |p: &Process| {
            let ready: Vec<bool> =
                p.workers.borrow().iter().map(|w| w.as_ref().is_some_and(SimWorker::is_ready)).collect();
            format!("{:?} ready {ready:?} copies {:?}", p.names, p.handle.borrow().freshness())
        };
        let states: Vec<String> = self.processes.iter().map(state).collect();
        self.violations.borrow_mut().push(format!("INV-6: not at rest {REST_MAX} s after the last fault: {states:?}"));
    }

    fn outcome(&self) -> Outcome {
        let mut outcome = Outcome { violations: self.violations.take(), ..Outcome::default() };
        {
            let mut w = lock(&self.world);
            outcome.violations.append(&mut w.broker.violations);
            outcome.trace = w.take_trace();
            outcome.hits = w.hits.clone();
            outcome.digest = w.broker.digest();
        }
        if outcome.violations.is_empty() {
            check(&self.world, &self.schemas, &mut outcome);
        }
        outcome
    }
}
