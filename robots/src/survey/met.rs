//! Who serves and who asks whom, by their tokens; nothing of it depends on the random IDs in them.

use super::SeenRobot;
use crate::link::base_of;
use std::collections::{BTreeMap, BTreeSet};

/// One policy: the base keys under which it waits, and those of the robots that ask it.
#[derive(Default)]
struct Met {
    keys: BTreeSet<String>,
    robots: BTreeSet<String>,
}

/// Base keys of policies, and robots, by the tokens of policies, of robots and of who asks whom.
///
/// Two peers that are linked by a third do not see each other's tokens: such a policy is known by the robot that asks it.
pub(super) fn met(policies: &[String], robots: &[String], asks: &[String]) -> (Vec<String>, Vec<SeenRobot>) {
    let part = |token: &str, back: usize| token.rsplit('/').nth(back).unwrap_or_default().to_owned();
    let base = |token: &str| base_of(token).unwrap_or_default().to_owned();
    // BASE/policy/ID/alive, BASE/robot/NAME/alive, BASE/robot/NAME/asks/ID
    let mut known: BTreeMap<String, Met> = BTreeMap::new();
    for token in policies {
        known.entry(part(token, 1)).or_default().keys.insert(base(token));
    }
    let told: BTreeSet<String> =
        asks.iter().map(|token| part(token, 0)).filter(|id| !known.contains_key(id)).collect();
    for token in asks {
        let id = part(token, 0);
        let is_told = told.contains(&id);
        let policy = known.entry(id).or_default();
        policy.robots.insert(base(token));
        if is_told {
            policy.keys.insert(base(token));
        }
    }
    let mut bases: Vec<String> = known.values().flat_map(|policy| policy.keys.iter().cloned()).collect();
    bases.sort();
    let names = names(&known);
    let asked: BTreeMap<String, String> = asks.iter().map(|token| (part(token, 2), part(token, 0))).collect();
    let asks = |token: &String| asked.get(&part(token, 1)).and_then(|id| names.get(id)).cloned();
    let mut robots: Vec<SeenRobot> =
        robots.iter().map(|token| SeenRobot { key: base(token), asks: asks(token) }).collect();
    robots.sort();
    (bases, robots)
}

/// What to call each policy, by its ID: its base keys and, of several with the same ones, which of them it is. Those that
/// somebody asks come first, in the order of who asks.
fn names(known: &BTreeMap<String, Met>) -> BTreeMap<String, String> {
    let mut alike: BTreeMap<&BTreeSet<String>, Vec<(&String, &Met)>> = BTreeMap::new();
    for (id, policy) in known {
        alike.entry(&policy.keys).or_default().push((id, policy));
    }
    let mut names = BTreeMap::new();
    for (keys, mut policies) in alike {
        policies.sort_by_key(|&(id, policy)| (policy.robots.is_empty(), &policy.robots, id));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let (keys, of) = (keys.join(", "), policies.len());
        for (k, (id, _)) in policies.into_iter().enumerate() {
            let name = if of == 1 { keys.clone() } else { format!("{keys} ({} of {of})", k + 1) };
            names.insert(id.clone(), name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(tokens: &[&str]) -> Vec<String> {
        tokens.iter().map(ToString::to_string).collect()
    }

    fn robot(key: &str, asks: Option<&str>) -> SeenRobot {
        SeenRobot { key: key.into(), asks: asks.map(Into::into) }
    }

    #[test]
    fn policies_and_robots_are_known_by_their_tokens() {
        let (policies, robots) = met(
            &tokens(&["vela/*/policy/p1/alive", "vela/arm1/policy/p2/alive"]),
            &tokens(&["vela/arm2/robot/r2-0/alive", "vela/arm1/robot/r1-0/alive", "shop/a/robot/r3-0/alive"]),
            &tokens(&["vela/arm1/robot/r1-0/asks/p1", "shop/a/robot/r3-0/asks/p9"]),
        );
        assert_eq!(policies, ["shop/a", "vela/*", "vela/arm1"], "p9 is known by whom it answers");
        let asking =
            [robot("shop/a", Some("shop/a")), robot("vela/arm1", Some("vela/*")), robot("vela/arm2", None)];
        assert_eq!(robots, asking);
    }

    /// Sessions draw their IDs by lot: whichever they drew, the same is said.
    #[test]
    fn two_surveys_of_the_same_network_say_the_same() {
        let said = |ids: [&str; 4]| {
            let [one, two, three, both] = ids;
            let policy = |base: &str, id: &str| format!("{base}/policy/{id}/alive");
            let robots = ["a", "b", "c"].map(|name| format!("vela/{name}/robot/{one}{name}-0/alive"));
            let asks = |name: &str, id: &str| format!("vela/{name}/robot/{one}{name}-0/asks/{id}");
            met(
                &[
                    policy("vela/*", one),
                    policy("vela/*", two),
                    policy("vela/*", three),
                    policy("vela/c", both),
                    policy("vela/d", both),
                ],
                &robots,
                &[asks("a", two), asks("b", one), asks("c", both)],
            )
        };
        let (policies, robots) = said(["p1", "p2", "p3", "p4"]);
        assert_eq!(policies, ["vela/*", "vela/*", "vela/*", "vela/c", "vela/d"]);
        let asking = [
            robot("vela/a", Some("vela/* (1 of 3)")),
            robot("vela/b", Some("vela/* (2 of 3)")),
            robot("vela/c", Some("vela/c, vela/d")),
        ];
        assert_eq!(robots, asking);
        assert_eq!(said(["p9", "p7", "p8", "p1"]), (policies.clone(), robots.clone()));
        assert_eq!(said(["p3", "p4", "p1", "p2"]), (policies, robots));
    }
}
