//! A number of places that containers share, so that none of them can take all.
//!
//! A container gets more only while what it has then is no more than what is free
//! before: of many places one that takes all it can leaves half, and two leave a third.
//! So whoever comes later finds a place, and nothing has to be set aside for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use tokio::sync::{Mutex, Notify};

/// See the module.
#[derive(Debug)]
pub(crate) struct Shares {
    all: usize,
    free: Cell<usize>,
    containers: RefCell<HashMap<Rc<str>, Rc<Share>>>,
    freed: Notify,
}

/// What one container has.
#[derive(Debug, Default)]
struct Share {
    held: Cell<usize>,
    /// Whoever has it is the first in the container's line.
    first: Mutex<()>,
}

/// Places that a container has, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    shares: Rc<Shares>,
    share: Rc<Share>,
    count: usize,
}

impl Shares {
    /// `all` places.
    pub(crate) fn new(all: usize) -> Rc<Self> {
        Rc::new(Self { all, free: Cell::new(all), containers: RefCell::default(), freed: Notify::new() })
    }

    /// `count` places for `container`, or all if that is less, once it may have them.
    /// Of one container, who came first gets them first.
    pub(crate) async fn acquire(self: &Rc<Self>, container: &Rc<str>, count: usize) -> Permit {
        let share = self.share(container);
        let _first = share.first.lock().await;
        loop {
            // Before the look, so that what is given back in between is not missed.
            let freed = self.freed.notified();
            if let Some(permit) = self.take(&share, count) {
                return permit;
            }
            freed.await;
        }
    }

    /// The same, if it may have them now.
    pub(crate) fn try_acquire(self: &Rc<Self>, container: &Rc<str>, count: usize) -> Option<Permit> {
        self.take(&self.share(container), count)
    }

    fn share(&self, container: &Rc<str>) -> Rc<Share> {
        let mut containers = self.containers.borrow_mut();
        if let Some(share) = containers.get(container) {
            return Rc::clone(share);
        }
        if containers.len() == containers.capacity() {
            containers.retain(|_, share| Rc::strong_count(share) > 1);
        }
        Rc::clone(containers.entry(Rc::clone(container)).or_default())
    }

    fn take(self: &Rc<Self>, share: &Rc<Share>, count: usize) -> Option<Permit> {
        let (count, free, held) = (count.min(self.all), self.free.get(), share.held.get());
        // Who wants more than half would wait for ever, were it not for the second.
        if held.saturating_add(count) > free && free < self.all {
            return None;
        }
        self.free.set(free - count);
        share.held.set(held + count);
        Some(Permit { shares: Rc::clone(self), share: Rc::clone(share), count })
    }
}

impl Permit {
    /// Gives back all but `count` places.
    pub(crate) fn keep(&mut self, count: usize) {
        let rest = self.count.saturating_sub(count);
        if rest > 0 {
            self.count -= rest;
            self.share.held.set(self.share.held.get() - rest);
            self.shares.free.set(self.shares.free.get() + rest);
            // The first of each container's line: one that gets on lets the next one look.
            self.shares.freed.notify_waiters();
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.keep(0);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::{JoinHandle, spawn_local, yield_now};
    use tokio::time::timeout;

    use super::*;

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::LocalRuntime::new().unwrap().block_on(work)
    }

    /// As many as `container` gets, one by one.
    fn most(shares: &Rc<Shares>, container: &str) -> Vec<Permit> {
        let container = container.into();
        std::iter::from_fn(|| shares.try_acquire(&container, 1)).collect()
    }

    /// Waits in line, on a task.
    fn wait(shares: &Rc<Shares>, container: &str, count: usize) -> JoinHandle<Permit> {
        let (shares, container) = (Rc::clone(shares), Rc::from(container));
        spawn_local(async move { shares.acquire(&container, count).await })
    }

    /// Lets everybody look who can.
    async fn settle() {
        for _ in 0..100 {
            yield_now().await;
        }
    }

    async fn got(waiting: JoinHandle<Permit>) -> Permit {
        timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap()
    }

    #[test]
    fn nobody_takes_all_and_whoever_comes_finds_a_place() {
        let shares = Shares::new(600);
        let one = most(&shares, "a");
        assert_eq!(one.len(), 300, "half");
        let two = most(&shares, "b");
        assert_eq!(two.len(), 150, "half of the rest");
        drop(one);
        let one = most(&shares, "a");
        assert_eq!(one.len(), 225);
        drop(two);
        let two = most(&shares, "b");
        assert!(two.len().abs_diff(187) <= 1, "{}", two.len());
        assert!(shares.try_acquire(&"newcomer".into(), 100).is_some());
        drop((one, two));
        assert_eq!(shares.free.get(), 600);
    }

    #[test]
    fn the_only_place_goes_to_one_after_the_other() {
        block_on(async {
            let shares = Shares::new(1);
            let held = got(wait(&shares, "a", 1)).await;
            let again = wait(&shares, "a", 1);
            settle().await;
            let once_more = wait(&shares, "a", 1);
            let other = wait(&shares, "b", 1);
            settle().await;
            assert!(!again.is_finished() && !other.is_finished());
            drop(held);
            drop(got(again).await);
            drop(got(other).await);
            drop(got(once_more).await);
            assert_eq!(shares.free.get(), 1);
        });
    }

    #[test]
    fn what_is_given_back_at_once_serves_a_whole_line_in_order() {
        block_on(async {
            let shares = Shares::new(64);
            let mut held = got(wait(&shares, "a", 32)).await;
            let mut line: Vec<_> = (0..20).map(|_| wait(&shares, "a", 1)).collect();
            settle().await;
            assert!(line.iter().all(|waiting| !waiting.is_finished()));
            // Two more can be had: 30 are held, and 34 are free.
            held.keep(30);
            settle().await;
            assert!(line[..2].iter().all(JoinHandle::is_finished));
            assert!(line[2..].iter().all(|waiting| !waiting.is_finished()));
            held.keep(0);
            settle().await;
            assert!(line.iter().all(JoinHandle::is_finished));
            line.clear();
        });
    }

    #[test]
    fn one_that_wants_much_is_not_passed_by_its_own_and_more_than_all_is_all() {
        block_on(async {
            let shares = Shares::new(100);
            let held = got(wait(&shares, "a", 30)).await;
            let great = wait(&shares, "a", 1000);
            let small = wait(&shares, "a", 1);
            settle().await;
            assert!(!great.is_finished() && !small.is_finished());
            // Others have their share of what it waits for.
            drop(got(wait(&shares, "b", 1)).await);
            drop(held);
            let great = got(great).await;
            assert_eq!((great.count, shares.free.get()), (100, 0));
            drop(great);
            drop(got(small).await);
        });
    }

    #[test]
    fn who_gives_up_leaves_no_gap_in_the_line() {
        block_on(async {
            let shares = Shares::new(2);
            let held = got(wait(&shares, "a", 1)).await;
            let line: Vec<_> = (0..4).map(|_| wait(&shares, "a", 1)).collect();
            settle().await;
            // The first, one in the middle, and one just when it is its turn.
            line[0].abort();
            line[2].abort();
            settle().await;
            drop(held);
            line[1].abort();
            drop(got(line.into_iter().next_back().unwrap()).await);
            assert_eq!(shares.free.get(), 2);
        });
    }

    #[test]
    fn containers_that_have_nothing_are_forgotten() {
        let shares = Shares::new(8);
        let held = shares.try_acquire(&"held".into(), 1).unwrap();
        for number in 0..1000 {
            drop(shares.try_acquire(&number.to_string().into(), 1).unwrap());
        }
        assert!(shares.containers.borrow().len() < 16);
        assert_eq!(shares.try_acquire(&"held".into(), 3).unwrap().share.held.get(), 4);
        drop(held);
    }
}
