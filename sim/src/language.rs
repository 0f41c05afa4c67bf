//! The sentences of the tabletop: templates, the closed vocabulary, and what a sentence asks for.

use crate::scene::{Colour, ObjectKind};
use crate::tasks::TaskKind;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::LazyLock;
use vela_embodiment::{Error, Result};

/// The zones that a sentence can name, left first.
pub const ZONES: [&str; 2] = ["left", "right"];

/// How one task is said and how long it may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskText {
    /// Seconds from the reset to failure.
    pub time_limit_secs: f64,
    /// Templates that training uses.
    pub phrasings: Vec<String>,
    /// The template that training never uses.
    pub held_out_phrasing: String,
}

/// `configs/tasks/tabletop.toml`: all five tasks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskBook {
    /// Targets that training never names.
    pub held_out_pairs: Vec<(Colour, ObjectKind)>,
    reach: TaskText,
    push: TaskText,
    pick: TaskText,
    place: TaskText,
    stack: TaskText,
}

static BOOK: LazyLock<std::result::Result<TaskBook, String>> = LazyLock::new(|| {
    toml::from_str(include_str!("../../configs/tasks/tabletop.toml")).map_err(|e| e.to_string())
});

impl TaskBook {
    /// The book that is inside the binary.
    pub fn builtin() -> Result<&'static TaskBook> {
        BOOK.as_ref()
            .map_err(|why| Error::Parse { what: "configs/tasks/tabletop.toml".into(), why: why.clone() })
    }

    /// One task's texts.
    pub fn text(&self, kind: TaskKind) -> &TaskText {
        match kind {
            TaskKind::Reach => &self.reach,
            TaskKind::Push => &self.push,
            TaskKind::Pick => &self.pick,
            TaskKind::Place => &self.place,
            TaskKind::Stack => &self.stack,
        }
    }

    /// Whether training never names this target.
    pub fn is_held_out(&self, pair: (Colour, ObjectKind)) -> bool {
        self.held_out_pairs.contains(&pair)
    }
}

/// Every word that an instruction can contain, in alphabetical order.
pub fn vocabulary() -> Result<Vec<String>> {
    let book = TaskBook::builtin()?;
    let mut words: BTreeSet<String> = BTreeSet::new();
    for kind in TaskKind::ALL {
        let text = book.text(kind);
        for template in text.phrasings.iter().chain([&text.held_out_phrasing]) {
            words.extend(template.split(' ').filter(|w| !w.starts_with('{')).map(str::to_owned));
        }
    }
    words.extend(Colour::ALL.map(|colour| colour.word().to_owned()));
    words.extend(ObjectKind::MOVABLE.map(|kind| kind.word().to_owned()));
    words.extend(ZONES.map(str::to_owned));
    words.insert(ObjectKind::Bowl.word().to_owned());
    Ok(words.into_iter().collect())
}

/// Where the target should go, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Goal {
    /// It need not go anywhere: reach and pick.
    Nowhere,
    /// Into the zone of this name.
    Zone(&'static str),
    /// Into the bowl of this colour.
    Bowl(Colour),
    /// On top of this object.
    On(Colour, ObjectKind),
}

/// What a sentence asks for, before any scene is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The task.
    pub kind: TaskKind,
    /// Colour and shape of the object that is touched or moved.
    pub target: (Colour, ObjectKind),
    /// Where it should go.
    pub goal: Goal,
}

/// "red cube".
pub fn noun(pair: (Colour, ObjectKind)) -> String {
    format!("{} {}", pair.0.word(), pair.1.word())
}

impl Command {
    /// The sentence of a template of this command's task.
    pub fn say(&self, template: &str) -> String {
        let sentence = template.replace("{object}", &noun(self.target));
        match self.goal {
            Goal::Nowhere => sentence,
            Goal::Zone(zone) => sentence.replace("{zone}", zone),
            Goal::Bowl(colour) => sentence.replace("{bowl}", &noun((colour, ObjectKind::Bowl))),
            Goal::On(colour, kind) => sentence.replace("{base}", &noun((colour, kind))),
        }
    }

    /// Understands a sentence made of the vocabulary's words (letter case and punctuation do not matter).
    ///
    /// # Errors
    /// A word outside the vocabulary; a shape without its colour; no task that fits what is named.
    pub fn parse(sentence: &str) -> Result<Self> {
        let words = tokenise(sentence)?;
        let refuse = |why: &str| {
            Err(Error::Parse {
                what: format!("instruction '{sentence}'"),
                why: format!(
                    "{why}; say for example 'touch the red cube', 'push the blue cylinder to the left zone', \
                     'pick up the green cube', 'put the yellow cube in the blue bowl' or \
                     'put the red cube on the green cube'"
                ),
            })
        };
        let has = |any: &[&str]| words.iter().any(|word| any.contains(&word.as_str()));
        let colour_of = |word: &str| Colour::ALL.into_iter().find(|colour| colour.word() == word);
        let mut movables = Vec::new();
        let mut bowls = Vec::new();
        for (k, word) in words.iter().enumerate() {
            let kinds = ObjectKind::MOVABLE.into_iter().chain([ObjectKind::Bowl]);
            let Some(kind) = kinds.into_iter().find(|kind| kind.word() == word) else { continue };
            let Some(colour) = k.checked_sub(1).and_then(|before| colour_of(&words[before])) else {
                return refuse(&format!("which {word}? name its colour"));
            };
            match kind {
                ObjectKind::Bowl => bowls.push(colour),
                kind => movables.push((colour, kind)),
            }
        }
        if words.iter().filter(|word| colour_of(word).is_some()).count() > movables.len() + bowls.len() {
            return refuse("a colour stands without its shape");
        }
        let zones: Vec<&'static str> =
            ZONES.into_iter().filter(|zone| words.iter().any(|word| word == zone)).collect();
        let moving = has(&["push", "slide", "move", "put", "place", "drop", "stack"]);
        let (kind, target, goal) = match (&movables[..], &bowls[..], &zones[..]) {
            ([target], [], [zone]) if moving => (TaskKind::Push, *target, Goal::Zone(zone)),
            ([target], [bowl], []) if moving && has(&["in", "into"]) => {
                (TaskKind::Place, *target, Goal::Bowl(*bowl))
            }
            ([target, base], [], []) if moving && has(&["on", "top"]) => {
                (TaskKind::Stack, *target, Goal::On(base.0, base.1))
            }
            ([target], [], []) if has(&["pick", "lift", "take", "grasp"]) => {
                (TaskKind::Pick, *target, Goal::Nowhere)
            }
            ([target], [], []) if has(&["touch", "reach", "go", "move", "gripper"]) => {
                (TaskKind::Reach, *target, Goal::Nowhere)
            }
            ([], ..) => return refuse("it names no object (a colour and cube, cylinder or ball)"),
            _ => return refuse("no task fits what it names"),
        };
        let flat = |pair: (Colour, ObjectKind)| pair.1 != ObjectKind::Ball;
        match goal {
            Goal::On(colour, kind) if !flat((colour, kind)) || !flat(target) => {
                refuse("a ball stacks on nothing and nothing on a ball")
            }
            Goal::On(colour, kind) if (colour, kind) == target => refuse("nothing stacks on itself"),
            Goal::Zone(_) if !flat(target) => {
                refuse("a ball rolls away when pushed: push a cube or a cylinder")
            }
            goal => Ok(Self { kind, target, goal }),
        }
    }
}

/// Lower-case words; every one in the vocabulary.
fn tokenise(sentence: &str) -> Result<Vec<String>> {
    let known = vocabulary()?;
    let words: Vec<String> = sentence
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    match words.iter().find(|word| !known.contains(word)) {
        Some(word) => Err(Error::Unknown { kind: "word", name: word.clone(), known: known.join(", ") }),
        None => Ok(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commands() -> Vec<Command> {
        let red = (Colour::Red, ObjectKind::Cube);
        vec![
            Command { kind: TaskKind::Reach, target: red, goal: Goal::Nowhere },
            Command { kind: TaskKind::Push, target: red, goal: Goal::Zone("left") },
            Command { kind: TaskKind::Pick, target: red, goal: Goal::Nowhere },
            Command { kind: TaskKind::Place, target: red, goal: Goal::Bowl(Colour::Blue) },
            Command {
                kind: TaskKind::Stack,
                target: red,
                goal: Goal::On(Colour::Green, ObjectKind::Cylinder),
            },
        ]
    }

    #[test]
    fn every_phrasing_is_understood_as_what_it_was_made_from() -> Result<()> {
        let book = TaskBook::builtin()?;
        for command in commands() {
            let text = book.text(command.kind);
            for template in text.phrasings.iter().chain([&text.held_out_phrasing]) {
                let sentence = command.say(template);
                assert!(!sentence.contains('{'), "{sentence}");
                assert_eq!(Command::parse(&sentence)?, command, "{sentence}");
                assert_eq!(Command::parse(&format!("{}!", sentence.to_uppercase()))?, command);
            }
        }
        Ok(())
    }

    #[test]
    fn held_out_phrasings_use_only_trained_words() -> Result<()> {
        let book = TaskBook::builtin()?;
        let trained: Vec<&str> = TaskKind::ALL
            .iter()
            .flat_map(|kind| &book.text(*kind).phrasings)
            .flat_map(|template| template.split(' '))
            .collect();
        for kind in TaskKind::ALL {
            for word in book.text(kind).held_out_phrasing.split(' ') {
                assert!(trained.contains(&word), "{word}");
            }
        }
        Ok(())
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_a_reason() {
        for (sentence, why) in [
            ("juggle the red cube", "unknown word 'juggle'"),
            ("pick up the cube", "which cube"),
            ("pick up the red", "colour stands without"),
            ("put the red cube on the green ball", "nothing on a ball"),
            ("push the red ball to the left zone", "rolls away"),
            ("", "names no object"),
            ("put the red cube on the red cube", "itself"),
        ] {
            let error = Command::parse(sentence).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(error.contains(why), "{sentence}: {error}");
        }
    }
}
