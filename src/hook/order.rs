//! The order in which hooks run: by file name, except where a hook says after
//! or before which others it comes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::definition::Hook;

/// Hooks that want to come after one another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("after and before contradict each other: {}; take one of them out", names.join(" comes before "))]
pub struct Cycle {
    /// Their names, the first of them again at the end.
    pub names: Vec<String>,
}

/// What a name is sorted by: itself in small letters, by code point. Ties, which
/// other engines leave to chance, go by the name itself.
#[must_use]
pub fn sort_key(name: &str) -> (String, String) {
    // One letter for one, as Go does it: no rule of a language, no two letters for one.
    let small = name.chars().map(|letter| letter.to_lowercase().next().unwrap_or(letter)).collect();
    (small, name.to_owned())
}

/// Where each of `hooks` comes: indices, in order. Of those that may come next,
/// the one whose name is first does. Names that nobody has are passed over.
///
/// # Errors
/// If some wait for one another.
pub fn order(hooks: &[&Hook]) -> Result<Vec<usize>, Cycle> {
    let mut by_name: Vec<usize> = (0..hooks.len()).collect();
    by_name.sort_by_cached_key(|at| hooks.get(*at).map(|hook| sort_key(&hook.name)));
    // From here on a hook is known by its rank among the names.
    let ranked: Vec<&Hook> = by_name.iter().filter_map(|at| hooks.get(*at).copied()).collect();
    let followers = followers(&ranked);
    let mut waits_for = vec![0_usize; ranked.len()];
    for follower in followers.iter().flatten() {
        if let Some(count) = waits_for.get_mut(*follower) {
            *count += 1;
        }
    }

    let free = waits_for.iter().enumerate().filter(|(_, count)| **count == 0);
    let mut next: BinaryHeap<_> = free.map(|(rank, _)| Reverse(rank)).collect();
    let mut placed = Vec::with_capacity(ranked.len());
    while let Some(Reverse(rank)) = next.pop() {
        placed.extend(by_name.get(rank).copied());
        for follower in followers.get(rank).into_iter().flatten() {
            let Some(count) = waits_for.get_mut(*follower) else { continue };
            *count -= 1;
            if *count == 0 {
                next.push(Reverse(*follower));
            }
        }
    }
    if placed.len() == ranked.len() { Ok(placed) } else { Err(cycle(&ranked, &followers, &waits_for)) }
}

/// For each hook, those that come after it.
fn followers(ranked: &[&Hook]) -> Vec<Vec<usize>> {
    let ranks: HashMap<&str, usize> =
        ranked.iter().enumerate().map(|(rank, hook)| (hook.name.as_str(), rank)).collect();
    let mut followers = vec![Vec::new(); ranked.len()];
    for (rank, hook) in ranked.iter().enumerate() {
        let earlier = hook.options.after.iter().filter_map(|name| ranks.get(name.as_str()));
        let later = hook.options.before.iter().filter_map(|name| ranks.get(name.as_str()));
        let edges = earlier.map(|other| (*other, rank)).chain(later.map(|other| (rank, *other)));
        for (first, second) in edges {
            if let Some(list) = followers.get_mut(first) {
                list.push(second);
            }
        }
    }
    followers
}

/// Names a cycle among those that still wait: whoever waits is waited for by
/// somebody who waits, so going back along them comes around.
fn cycle(ranked: &[&Hook], followers: &[Vec<usize>], waits_for: &[usize]) -> Cycle {
    let waits = |rank: usize| waits_for.get(rank).is_some_and(|count| *count > 0);
    let earlier = |rank: usize| {
        let lists = followers.iter().enumerate();
        lists.filter(move |(_, list)| list.contains(&rank)).map(|(other, _)| other)
    };
    let mut path = Vec::new();
    let mut at = (0..ranked.len()).find(|rank| waits(*rank));
    while let Some(rank) = at {
        path.push(rank);
        if path.iter().filter(|seen| **seen == rank).count() > 1 {
            break;
        }
        at = earlier(rank).find(|other| waits(*other));
    }
    let start = path.last().and_then(|last| path.iter().position(|seen| seen == last)).unwrap_or_default();
    let around = path.iter().skip(start).rev();
    Cycle { names: around.filter_map(|rank| ranked.get(*rank)).map(|hook| hook.name.clone()).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::definition::{Options, When};
    use proptest::prelude::*;

    fn hook(name: &str, after: &[&str], before: &[&str]) -> Hook {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Hook {
            name: name.to_owned(),
            path: "/bin/true".into(),
            args: Vec::new(),
            env: Vec::new(),
            timeout: None,
            when: When::always(),
            stages: Vec::new(),
            options: Options { after: names(after), before: names(before), ..Options::default() },
        }
    }

    fn ordered(hooks: &[Hook]) -> Result<Vec<&str>, Cycle> {
        let borrowed: Vec<_> = hooks.iter().collect();
        order(&borrowed).map(|order| order.into_iter().map(|at| hooks[at].name.as_str()).collect())
    }

    #[test]
    fn names_are_sorted_in_small_letters_by_code_point() {
        let names = ["b", "C", "a", "10", "é", "_", "Z", "B", "É0", "9", "İ", "j"];
        let hooks: Vec<_> = names.iter().map(|name| hook(name, &[], &[])).collect();
        let expected = vec!["10", "9", "_", "a", "B", "b", "C", "İ", "j", "Z", "é", "É0"];
        assert_eq!(ordered(&hooks), Ok(expected));
    }

    #[test]
    fn after_and_before_move_as_little_as_they_must() {
        let hooks = [
            hook("a", &["c"], &[]),
            hook("b", &[], &[]),
            hook("c", &["nobody"], &[]),
            hook("d", &[], &["b"]),
            hook("e", &[], &[]),
        ];
        assert_eq!(ordered(&hooks), Ok(vec!["c", "a", "d", "b", "e"]));
    }

    #[test]
    fn a_cycle_is_named() {
        let hooks = [
            hook("a", &[], &[]),
            hook("b", &["d"], &[]),
            hook("c", &["b"], &[]),
            hook("d", &["c"], &["z"]),
            hook("z", &[], &[]),
        ];
        let cycle = ordered(&hooks).unwrap_err();
        assert_eq!(cycle.names.first(), cycle.names.last());
        let mut members = cycle.names.clone();
        members.sort();
        members.dedup();
        assert_eq!(members, ["b", "c", "d"], "{cycle}");
        for pair in cycle.names.windows(2) {
            let second = hooks.iter().find(|hook| hook.name == pair[1]).unwrap();
            assert!(second.options.after.contains(&pair[0]), "{cycle}");
        }
        assert!(ordered(&[hook("a", &["a"], &[])]).unwrap_err().to_string().contains("a comes before a"));
    }

    proptest! {
        #[test]
        fn every_constraint_holds_or_there_is_a_cycle(
            edges in prop::collection::vec((0_usize..8, 0_usize..8, any::<bool>()), 0..12)
        ) {
            let name = |at: usize| format!("h{at}");
            let mut hooks: Vec<_> = (0..8).map(|at| hook(&name(at), &[], &[])).collect();
            for (one, other, is_after) in &edges {
                let options = &mut hooks[*one].options;
                let list = if *is_after { &mut options.after } else { &mut options.before };
                list.push(name(*other));
            }
            match ordered(&hooks) {
                Ok(order) => {
                    let place = |name: &str| order.iter().position(|known| *known == name).unwrap();
                    prop_assert_eq!(order.len(), 8);
                    for hook in &hooks {
                        prop_assert!(hook.options.after.iter().all(|o| place(o) < place(&hook.name)));
                        prop_assert!(hook.options.before.iter().all(|o| place(o) > place(&hook.name)));
                    }
                }
                Err(cycle) => {
                    prop_assert!(cycle.names.len() >= 2);
                    for pair in cycle.names.windows(2) {
                        let of = |name: &str| &hooks.iter().find(|h| h.name == name).unwrap().options;
                        prop_assert!(of(&pair[1]).after.contains(&pair[0])
                            || of(&pair[0]).before.contains(&pair[1]));
                    }
                }
            }
        }
    }
}
