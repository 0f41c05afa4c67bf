//! Worker threads that share out one job at a time, spin for a few microseconds and then sleep.
//!
//! Tasks are claimed one by one, so a worker that the system has taken off its core costs at most the task that it holds;
//! the caller works too, and sleeps when nothing is left but to wait, which lets the system run the worker in its place.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long the caller looks for the end of a job before it sleeps.
const SPIN: Duration = Duration::from_micros(25);

/// How long a worker looks for the next job before it sleeps. Between two products of a decoded token lie some tens of
/// microseconds, and waking up takes as long.
const LOOK: Duration = Duration::from_micros(150);

/// What a caller may lose to workers that keep it waiting, besides a [`SHARE`] of the time of its jobs, before it works alone for
/// a while: the system has given a core to somebody else. A wait as long as the workers' tasks would have taken the caller is no
/// loss, nor is one for two tasks, since the worker may just have begun its last, and be slower at it.
const LOSS: Duration = Duration::from_micros(200);
const SHARE: u32 = 20;

/// The time of jobs after which the half of it, and of what was lost, is forgotten.
const MEMORY: Duration = Duration::from_millis(20);

/// How much of one wait counts: for so long the system gives a core to somebody else at a time. A longer wait is a page that
/// the system was slow to find (20 ms were seen on a virtual machine), and says nothing of the next job.
const SLICE: Duration = Duration::from_millis(4);

/// How long callers work alone: so many times what was lost, or so many times as long as before where less good time lay
/// between; and at most so long.
const ALONE: u32 = 8;
const AGAIN: u32 = 4;
const LONGEST: Duration = Duration::from_secs(1);

/// For how long callers go on alone when the time is over and every core is still at work ([`all_cores_work`]): to look costs
/// some microseconds, to try and be kept waiting a turn of the system.
const GO_ON: Duration = Duration::from_millis(20);

/// What working together has cost of late.
struct Pace {
    /// Time of jobs, and of it what callers waited.
    busy: Duration,
    lost: Duration,
    /// Time of jobs since callers last worked alone, and how long they did.
    together: Duration,
    alone: Duration,
    /// Whether callers worked alone until now.
    returns: bool,
}

impl Pace {
    const NEW: Self = Self {
        busy: Duration::ZERO,
        lost: Duration::ZERO,
        together: Duration::ZERO,
        alone: Duration::ZERO,
        returns: false,
    };

    /// A job took so long, and of that its caller waited so long. Gives for how long to work alone, if it is to be.
    fn after(&mut self, took: Duration, waited: Duration) -> Option<Duration> {
        self.busy += took;
        self.lost += waited.min(SLICE);
        self.together += took;
        if self.lost > LOSS + self.busy / SHARE {
            let again = if self.together < self.alone { AGAIN * self.alone } else { Duration::ZERO };
            *self = Self { alone: again.max(ALONE * self.lost).min(LONGEST), returns: true, ..Self::NEW };
            return Some(self.alone);
        }
        if self.busy > MEMORY {
            self.busy /= 2;
            self.lost /= 2;
        }
        None
    }
}

/// One parallel loop; it lives on its caller's stack.
struct Job<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    next: AtomicUsize,
    count: usize,
}

impl Job<'_> {
    /// Does tasks while there are any; gives how many it did.
    fn work(&self) -> u32 {
        let mut done = 0;
        loop {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            if i >= self.count {
                return done;
            }
            (self.task)(i);
            done += 1;
        }
    }
}

struct Posted {
    /// The address of the job, if there is one to join.
    job: Option<Address>,
    /// Workers that may still join.
    places: usize,
    workers: usize,
}

#[derive(Clone, Copy)]
struct Address(*const Job<'static>);

// SAFETY: a worker reads through the address only between joining (under the lock, while the job is posted) and leaving
// (`inside`), and the caller waits for `inside` to become zero after it has withdrawn the job.
unsafe impl Send for Address {}

struct Pool {
    posted: Mutex<Posted>,
    /// Raised with every job, so that spinning workers see one without the lock.
    epoch: AtomicUsize,
    /// Workers inside the job.
    inside: AtomicUsize,
    sleeping: AtomicUsize,
    wake: Condvar,
    done: Condvar,
    /// Held by the one caller whose job is posted.
    turn: Mutex<Pace>,
    start: Instant,
    /// Nanoseconds after `start` until which callers work alone.
    alone_until: AtomicU64,
}

impl Pool {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Lets callers work alone for so long.
    fn leave_alone(&self, time: Duration) {
        self.alone_until.store(self.now() + time.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// Whether as many threads want to run now, this one among them, as the machine has cores: a worker would have to wait for one.
/// Where the system does not say (Linux does), no.
fn all_cores_work() -> bool {
    static CORES: OnceLock<Option<usize>> = OnceLock::new();
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let cores = CORES.get_or_init(|| cores(&read("/sys/devices/system/cpu/online")?));
    let running = || running(&read("/proc/loadavg")?);
    cores.is_some_and(|cores| running().is_some_and(|running| running >= cores))
}

/// How many there are in a list such as `0-3,6`.
fn cores(list: &str) -> Option<usize> {
    let one = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    list.trim().split(',').map(one).sum()
}

/// The threads that want to run, in the fourth field: `0.20 0.18 0.12 1/80 11206`.
fn running(load: &str) -> Option<usize> {
    load.split(' ').nth(3)?.split_once('/')?.0.parse().ok()
}

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        posted: Mutex::new(Posted { job: None, places: 0, workers: 0 }),
        epoch: AtomicUsize::new(0),
        inside: AtomicUsize::new(0),
        sleeping: AtomicUsize::new(0),
        wake: Condvar::new(),
        done: Condvar::new(),
        turn: Mutex::new(Pace::NEW),
        start: Instant::now(),
        alone_until: AtomicU64::new(0),
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a worker has kept a caller waiting just now, so that callers work alone for a while.
pub fn is_alone() -> bool {
    pool().now() < pool().alone_until.load(Ordering::Relaxed)
}

/// Runs `task(0..count)` on up to `threads` threads, this one included. When another job is under way, or a worker has kept
/// one waiting just now, this thread does it all: who does a task never changes its result. A task's panic on a worker
/// aborts the process (tasks are kernels, which do not panic).
pub fn run(threads: usize, count: usize, task: &(dyn Fn(usize) + Sync)) {
    let job = Job { task, next: AtomicUsize::new(0), count };
    let pool = pool();
    let helpers = threads.min(count).saturating_sub(1);
    let alone = helpers == 0 || is_alone();
    let turn = if alone { None } else { pool.turn.try_lock().ok() };
    let Some(mut pace) = turn else {
        job.work();
        return;
    };
    if pace.returns {
        if all_cores_work() {
            pool.leave_alone(GO_ON);
            job.work();
            return;
        }
        pace.returns = false;
    }
    {
        let mut posted = lock(&pool.posted);
        while posted.workers < helpers {
            let builder = std::thread::Builder::new().name("vela-kernel".into());
            if builder.spawn(|| serve(self::pool())).is_err() {
                break;
            }
            posted.workers += 1;
        }
        posted.job = Some(Address((&raw const job).cast::<Job<'static>>()));
        posted.places = helpers;
        pool.epoch.fetch_add(1, Ordering::Release);
    }
    if pool.sleeping.load(Ordering::SeqCst) > 0 {
        pool.wake.notify_all();
    }
    /// Withdraws the job and waits for those inside, also when a task of this thread panics.
    struct End<'a> {
        pool: &'a Pool,
        pace: MutexGuard<'a, Pace>,
        start: Instant,
        /// How long a wait is no loss.
        patience: Duration,
    }
    impl Drop for End<'_> {
        fn drop(&mut self) {
            let Self { pool, pace, start, patience } = self;
            lock(&pool.posted).job = None;
            let ready = Instant::now();
            while pool.inside.load(Ordering::Acquire) > 0 {
                if ready.elapsed() < SPIN {
                    std::hint::spin_loop();
                    continue;
                }
                let mut posted = lock(&pool.posted);
                while pool.inside.load(Ordering::Acquire) > 0 {
                    posted = pool.done.wait(posted).unwrap_or_else(PoisonError::into_inner);
                }
            }
            let waited = ready.elapsed().saturating_sub(*patience);
            if let Some(alone) = pace.after(start.elapsed(), waited) {
                pool.leave_alone(alone);
            }
        }
    }
    let start = Instant::now();
    let mut end = End { pool, pace, start, patience: SPIN };
    let done = job.work();
    let of_others = u32::try_from(count).unwrap_or(u32::MAX).saturating_sub(done);
    end.patience += of_others.max(2) * (start.elapsed() / done.max(1));
}

/// A worker's life.
fn serve(pool: &'static Pool) {
    let _abort = Abort;
    let mut seen = 0;
    loop {
        let start = Instant::now();
        while pool.epoch.load(Ordering::Acquire) == seen && start.elapsed() < LOOK {
            std::hint::spin_loop();
        }
        let mut posted = lock(&pool.posted);
        while pool.epoch.load(Ordering::Acquire) == seen {
            pool.sleeping.fetch_add(1, Ordering::SeqCst);
            posted = pool.wake.wait(posted).unwrap_or_else(PoisonError::into_inner);
            pool.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
        seen = pool.epoch.load(Ordering::Acquire);
        let Some(address) = posted.job.filter(|_| posted.places > 0) else { continue };
        posted.places -= 1;
        pool.inside.fetch_add(1, Ordering::AcqRel);
        drop(posted);
        // SAFETY: the job was posted under the lock that was just held, and its caller does not return before this worker
        // has left (`inside`).
        let job = unsafe { &*address.0 };
        crate::threads::with_threads(1, || {
            job.work();
        });
        if pool.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Under the lock, so that the caller is either before its look at `inside` or already asleep.
            let _posted = lock(&pool.posted);
            pool.done.notify_all();
        }
    }
}

/// Ends the process if it is dropped: a worker that unwound would leave its caller waiting for ever.
struct Abort;

impl Drop for Abort {
    fn drop(&mut self) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: Duration = Duration::from_micros(500);
    const TICK: Duration = Duration::from_millis(4);

    fn millis(count: u64) -> Option<Duration> {
        Some(Duration::from_millis(count))
    }

    #[test]
    fn a_shared_core_is_left_alone_for_longer_each_time() {
        let mut pace = Pace::NEW;
        assert_eq!(pace.after(JOB + TICK, TICK), millis(32));
        for _ in 0..10 {
            assert_eq!(pace.after(JOB, Duration::ZERO), None);
        }
        assert_eq!(pace.after(JOB + TICK, TICK), millis(4 * 32));
        assert_eq!(pace.after(JOB + TICK, TICK), millis(16 * 32));
        assert_eq!(pace.after(JOB + TICK, TICK), millis(1000));
        assert_eq!(pace.after(JOB + TICK, TICK), millis(1000));
        // After more good time than it was left alone it begins anew.
        for _ in 0..2500 {
            assert_eq!(pace.after(JOB, Duration::ZERO), None);
        }
        assert_eq!(pace.after(JOB + TICK, TICK), millis(32));
    }

    #[test]
    fn the_system_s_lists_are_read() {
        assert_eq!([cores("0-1\n"), cores("0"), cores("0-3,6,8-9\n")], [Some(2), Some(1), Some(7)]);
        assert_eq!([cores(""), cores("3-1"), cores("0-a")], [None; 3]);
        assert_eq!(running("0.20 0.18 0.12 3/80 11206\n"), Some(3));
        assert_eq!([running(""), running("0.20 0.18 0.12 many 1")], [None; 2]);
    }

    #[test]
    fn one_long_wait_counts_as_one_turn_of_somebody_else() {
        let mut pace = Pace::NEW;
        assert_eq!(pace.after(5 * TICK, 5 * TICK), millis(32));
    }

    #[test]
    fn small_waits_are_no_reason_to_work_alone() {
        let mut pace = Pace::NEW;
        for _ in 0..100_000 {
            assert_eq!(pace.after(JOB, JOB / (SHARE + 1)), None);
        }
        // But they are when they add up to more than that.
        assert!((0..1000).any(|_| pace.after(JOB, JOB / 5).is_some()));
    }
}
