//! The five tasks: what is asked in which scene, and whether it has been done.

mod judge;
mod sampling;

pub use judge::{BOWL_INSIDE_M, Judge};
pub(crate) use judge::{rests_on, stack_height_m};
pub use sampling::Sampler;

use crate::language::{Command, Goal, TaskBook, ZONES, noun};
use crate::scene::{Colour, ObjectKind, Scene};
use serde::{Deserialize, Serialize};
use vela_embodiment::{Error, Result};

/// The tasks of the tabletop suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Touch an object.
    Reach,
    /// Push an object into a zone.
    Push,
    /// Lift an object and hold it.
    Pick,
    /// Put an object in a bowl.
    Place,
    /// Put an object on another.
    Stack,
}

impl TaskKind {
    /// All of them, easiest first.
    pub const ALL: [TaskKind; 5] =
        [TaskKind::Reach, TaskKind::Push, TaskKind::Pick, TaskKind::Place, TaskKind::Stack];

    /// Its name in commands and tables.
    pub fn name(self) -> &'static str {
        match self {
            TaskKind::Reach => "reach",
            TaskKind::Push => "push",
            TaskKind::Pick => "pick",
            TaskKind::Place => "place",
            TaskKind::Stack => "stack",
        }
    }

    /// The task of a name.
    ///
    /// # Errors
    /// Names the tasks that are known.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| Error::Unknown {
            kind: "task",
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// Which episodes: what training draws from, and what it never sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Training phrasings and targets.
    Train,
    /// The same phrasings and targets, other scenes.
    #[default]
    Test,
    /// The phrasing that training never uses.
    HeldOutPhrasing,
    /// Targets that training never names.
    HeldOutPair,
    /// A test scene, with the sentence changed to name another of its objects.
    Swap,
}

impl Split {
    /// All of them.
    pub const ALL: [Split; 5] =
        [Split::Train, Split::Test, Split::HeldOutPhrasing, Split::HeldOutPair, Split::Swap];

    /// Its name in commands and tables.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Test => "test",
            Split::HeldOutPhrasing => "held_out_phrasing",
            Split::HeldOutPair => "held_out_pair",
            Split::Swap => "swap",
        }
    }

    /// The split of a name.
    ///
    /// # Errors
    /// Names the splits that are known.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|split| split.name() == name).ok_or_else(|| Error::Unknown {
            kind: "split",
            name: name.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// Where the target should end up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Anywhere: reach and pick.
    Nowhere,
    /// In the scene's zone of this index.
    Zone(usize),
    /// In the bowl that is the scene's object of this index.
    Bowl(usize),
    /// On the scene's object of this index.
    Object(usize),
}

/// What is asked in one scene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Which of the five.
    pub kind: TaskKind,
    /// Index of the scene's object that is touched or moved.
    pub target: usize,
    /// Where it should end up.
    pub destination: Destination,
    /// The sentence that asks for it.
    pub instruction: String,
}

impl Task {
    /// Understands a sentence in a scene.
    ///
    /// # Errors
    /// The sentence is not understood, or names what does not stand in the scene.
    pub fn parse(sentence: &str, scene: &Scene) -> Result<Self> {
        Self::of(&Command::parse(sentence)?, sentence, scene)
    }

    /// The task of a command, said with `sentence`, in a scene that holds what it names.
    pub(crate) fn of(command: &Command, sentence: &str, scene: &Scene) -> Result<Self> {
        let find = |pair: (Colour, ObjectKind)| {
            scene.objects.iter().position(|o| (o.colour, o.kind) == pair).ok_or_else(|| Error::Unknown {
                kind: "object (not in this scene)",
                name: noun(pair),
                known: scene.objects.iter().map(|o| noun((o.colour, o.kind))).collect::<Vec<_>>().join(", "),
            })
        };
        let destination = match command.goal {
            Goal::Nowhere => Destination::Nowhere,
            Goal::Bowl(colour) => Destination::Bowl(find((colour, ObjectKind::Bowl))?),
            Goal::On(colour, kind) => Destination::Object(find((colour, kind))?),
            Goal::Zone(zone) => {
                let index = scene.zones.iter().position(|z| z.name == zone);
                Destination::Zone(index.ok_or_else(|| Error::Unknown {
                    kind: "zone (not in this scene)",
                    name: zone.to_owned(),
                    known: scene.zones.iter().map(|z| z.name.as_str()).collect::<Vec<_>>().join(", "),
                })?)
            }
        };
        Ok(Self {
            kind: command.kind,
            target: find(command.target)?,
            destination,
            instruction: sentence.to_owned(),
        })
    }

    /// The same sentence about another object of the same scene, for the test that the sentence decides.
    /// Never names a held-out target. `None` when no other object can take the target's place.
    pub fn swapped(&self, scene: &Scene) -> Option<Task> {
        let book = TaskBook::builtin().ok()?;
        let pair = |index: usize| scene.objects.get(index).map(|o| (o.colour, o.kind));
        let own = pair(self.target)?;
        let balls = matches!(self.kind, TaskKind::Reach | TaskKind::Pick | TaskKind::Place);
        let fits = |index: &usize| {
            let is_base = self.destination == Destination::Object(*index);
            let Some(other) = pair(*index) else { return false };
            let movable = other.1 != ObjectKind::Bowl && (balls || other.1 != ObjectKind::Ball);
            *index != self.target && !is_base && movable && !book.is_held_out(other)
        };
        // The one that is most easily confused with the target says the most.
        let shared = |index: &usize| {
            pair(*index).map_or(0, |other| i32::from(other.0 == own.0) + i32::from(other.1 == own.1))
        };
        let target = (0..scene.objects.len()).filter(fits).min_by_key(|index| -shared(index))?;
        let instruction = self.instruction.replacen(&noun(own), &noun(pair(target)?), 1);
        Some(Task { target, instruction, ..self.clone() })
    }

    /// Seconds from the reset to failure.
    pub fn time_limit_secs(&self) -> f64 {
        TaskBook::builtin().map_or(15.0, |book| book.text(self.kind).time_limit_secs)
    }
}

/// All commands of a task that a split may ask for.
pub(crate) fn targets(kind: TaskKind, split: Split) -> Result<Vec<(Colour, ObjectKind)>> {
    let book = TaskBook::builtin()?;
    let balls = matches!(kind, TaskKind::Reach | TaskKind::Pick | TaskKind::Place);
    let pairs = Colour::ALL.into_iter().flat_map(|colour| ObjectKind::MOVABLE.map(|shape| (colour, shape)));
    Ok(pairs
        .filter(|pair| book.is_held_out(*pair) == (split == Split::HeldOutPair))
        .filter(|pair| balls || pair.1 != ObjectKind::Ball)
        .collect())
}

/// Centres of the left and the right zone before the seed moves them a little, m.
pub(crate) const ZONE_CENTRES_M: [(&str, [f64; 2]); 2] =
    [(ZONES[0], [0.185, 0.13]), (ZONES[1], [0.185, -0.13])];

/// Half the edge of a zone, m.
pub(crate) const ZONE_HALF_M: f64 = 0.035;
