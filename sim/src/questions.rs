//! Questions about a picture of the table, with answers from the simulator's truth. What cannot be seen well is not asked
//! about, and what has two answers is not asked.

use crate::language::noun;
use crate::scene::{Colour, ObjectKind};
use crate::sights::{Grip, Shown, Thing};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Which colours there are.
    Colours,
    /// Which shapes there are.
    Shapes,
    /// How many of a shape, of a colour, or of all.
    Count,
    /// What is left of something, in the picture.
    Left,
    /// What is right of something, in the picture.
    Right,
    /// What stands nearest to something, on the table.
    Nearest,
    /// Whether something is there.
    Exists,
    /// What the arm holds.
    Holding,
    /// The colour of a shape of which there is one.
    ColourOf,
    /// The shape of a colour of which there is one.
    ShapeOf,
    /// Everything on the table, from left to right, and what the arm holds.
    Describe,
    /// Whether one thing is left, or right, of another: a step towards [`Kind::Left`], asked in training only.
    Beside,
}

/// A question and its answer, both in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What it is about.
    pub kind: Kind,
    /// The question.
    pub question: String,
    /// The answer.
    pub answer: String,
}

/// Which phrasings are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phrasing {
    /// Those of training.
    #[default]
    Trained,
    /// The one of each kind that training never uses.
    HeldOut,
}

impl Kind {
    /// All that a model is scored by.
    pub const ALL: [Kind; 11] = [
        Kind::Colours,
        Kind::Shapes,
        Kind::Count,
        Kind::Left,
        Kind::Right,
        Kind::Nearest,
        Kind::Exists,
        Kind::Holding,
        Kind::ColourOf,
        Kind::ShapeOf,
        Kind::Describe,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Colours => "colours",
            Kind::Shapes => "shapes",
            Kind::Count => "count",
            Kind::Left => "left",
            Kind::Right => "right",
            Kind::Nearest => "nearest",
            Kind::Exists => "exists",
            Kind::Holding => "holding",
            Kind::ColourOf => "colour_of",
            Kind::ShapeOf => "shape_of",
            Kind::Describe => "describe",
            Kind::Beside => "beside",
        }
    }

    /// Its phrasings; `{}` stands for what is asked about. The last one is held out of training.
    pub fn phrasings(self) -> &'static [&'static str] {
        match self {
            Kind::Colours => &[
                "which colours are there?",
                "which colours do you see?",
                "what colours do the things have?",
                "which colors are there?",
                "name the colours you see.",
                "which colours are in the picture?",
                "what colours are on the table?",
                "what colours are there?",
            ],
            Kind::Shapes => &[
                "which shapes are there?",
                "which shapes do you see?",
                "what shapes do the things have?",
                "name the shapes you see.",
                "which shapes are in the picture?",
                "what shapes are on the table?",
                "what shapes are there?",
            ],
            Kind::Count => &[
                "how many {} are there?",
                "how many {} do you see?",
                "count the {}.",
                "what is the number of {}?",
                "how many {} are on the table?",
                "how many {} do you see in the picture?",
                "count the {} in the picture.",
                "how many {} are in the picture?",
            ],
            Kind::Left => &[
                "what is left of {}?",
                "what is to the left of {}?",
                "which things are left of {}?",
                "name what is left of {}.",
                "what is left of {} in the picture?",
                "which things do you see to the left of {}?",
                "which things are to the left of {}?",
            ],
            Kind::Right => &[
                "what is right of {}?",
                "what is to the right of {}?",
                "which things are right of {}?",
                "name what is right of {}.",
                "what is right of {} in the picture?",
                "which things do you see to the right of {}?",
                "which things are to the right of {}?",
            ],
            Kind::Nearest => &[
                "what is nearest to {}?",
                "what is closest to {}?",
                "which thing is nearest to {}?",
                "name the thing closest to {}.",
                "which thing on the table is closest to {}?",
                "which thing is closest to {}?",
            ],
            Kind::Exists => &[
                "is there {}?",
                "do you see {}?",
                "can you see {}?",
                "is there {} in the picture?",
                "is {} there?",
                "is there {} on the table?",
                "is {} in the picture?",
                "can you see {} in the picture?",
                "do you see {} in the picture?",
            ],
            Kind::Holding => &[
                "what is the arm holding?",
                "what does the arm hold?",
                "what is in the gripper?",
                "what is the gripper holding?",
                "what does the arm hold in the picture?",
                "what does the gripper hold?",
            ],
            Kind::ColourOf => &[
                "what colour is {}?",
                "which colour is {}?",
                "what is the colour of {}?",
                "what color is {}?",
                "which colour does {} have?",
                "what colour is {} in the picture?",
                "what colour does {} have?",
            ],
            Kind::ShapeOf => &[
                "what shape is {}?",
                "which shape is {}?",
                "what is the shape of {}?",
                "which shape does {} have?",
                "what shape is {} in the picture?",
                "what shape does {} have?",
            ],
            Kind::Describe => &[
                "what is on the table?",
                "describe the table.",
                "which things are on the table?",
                "what do you see?",
                "describe the picture.",
                "what is in the picture?",
                "describe what is on the table.",
                "which things are in the picture?",
                "what do you see in the picture?",
                "describe what you see.",
            ],
            Kind::Beside => &["is {}?", "is {} in the picture?"],
        }
    }

    fn phrase(self, phrasing: Phrasing, rng: &mut ChaCha8Rng) -> &'static str {
        let (held_out, trained) = self.phrasings().split_last().unwrap_or((&"", &[]));
        match phrasing {
            Phrasing::HeldOut => held_out,
            Phrasing::Trained => trained.choose(rng).copied().unwrap_or_default(),
        }
    }
}

/// Two things this near in the picture are neither left nor right of each other, pixels.
const BESIDE_PX: f32 = 4.0;
/// The second nearest is at least so much farther, m.
const NEARER_M: f64 = 0.012;

/// One question of a kind about a picture, or `None` if the kind cannot be asked of it without ambiguity.
pub fn ask(shown: &Shown, kind: Kind, phrasing: Phrasing, rng: &mut ChaCha8Rng) -> Option<Asked> {
    let things = &shown.things;
    let (about, answer) = match kind {
        Kind::Colours => (String::new(), listed(&colours(things).map(|c| c.word().to_owned()))),
        Kind::Shapes => (String::new(), listed(&shapes(things).map(|k| k.word().to_owned()))),
        Kind::Count => count(things, rng)?,
        Kind::Left | Kind::Right => {
            let of = unique(things, rng)?;
            let off = |other: &Thing| other.at_px[0] - of.at_px[0];
            let others = || things.iter().filter(|other| *other != of);
            if others().any(|other| off(other).abs() < BESIDE_PX) {
                return None;
            }
            let found = others().filter(|other| (off(other) < 0.0) == (kind == Kind::Left));
            (named(of), several(found))
        }
        Kind::Nearest => {
            let of = unique(things, rng)?;
            let far = |other: &Thing| (other.xyz_m[0] - of.xyz_m[0]).hypot(other.xyz_m[1] - of.xyz_m[1]);
            let mut others: Vec<(f64, &Thing)> =
                things.iter().filter(|other| *other != of).map(|other| (far(other), other)).collect();
            others.sort_by(|a, b| a.0.total_cmp(&b.0));
            let [first, rest @ ..] = &others[..] else { return None };
            if of.held || first.1.held || rest.first().is_some_and(|second| second.0 - first.0 < NEARER_M) {
                return None;
            }
            (named(of), with_article(first.1))
        }
        Kind::Exists => exists(things, rng)?,
        Kind::Holding => (String::new(), held(shown)?),
        Kind::ColourOf => {
            let one = |thing: &&Thing| things.iter().filter(|other| other.kind == thing.kind).count() == 1;
            let found: Vec<&Thing> = things.iter().filter(one).collect();
            let thing = found.choose(rng)?;
            (format!("the {}", thing.kind.word()), thing.colour.word().to_owned())
        }
        Kind::ShapeOf => {
            let one =
                |thing: &&Thing| things.iter().filter(|other| other.colour == thing.colour).count() == 1;
            let found: Vec<&Thing> = things.iter().filter(one).collect();
            let thing = found.choose(rng)?;
            (format!("the {} thing", thing.colour.word()), thing.kind.word().to_owned())
        }
        Kind::Describe => (String::new(), describe(shown)?),
        Kind::Beside => beside(things, rng)?,
    };
    Some(Asked { kind, question: kind.phrase(phrasing, rng).replace("{}", &about), answer })
}

/// Whether something of this colour and shape is there: the question of the hallucination test.
pub fn is_there(pair: (Colour, ObjectKind), phrasing: Phrasing, rng: &mut ChaCha8Rng) -> String {
    Kind::Exists.phrase(phrasing, rng).replace("{}", &article(&noun(pair)))
}

/// A question of a kind about things that may be anywhere or nowhere.
pub fn any_question(kind: Kind, phrasing: Phrasing, rng: &mut ChaCha8Rng) -> String {
    let pair = (Colour::ALL[rng.random_range(0..Colour::ALL.len())], KINDS[rng.random_range(0..KINDS.len())]);
    let about = match kind {
        Kind::Count => plural(pair.1),
        Kind::Exists => article(&noun(pair)),
        Kind::ColourOf => format!("the {}", pair.1.word()),
        Kind::ShapeOf => format!("the {} thing", pair.0.word()),
        _ => format!("the {}", noun(pair)),
    };
    kind.phrase(phrasing, rng).replace("{}", &about)
}

/// Whether an answer says what is true: the same things, in whatever order, with or without articles.
pub fn says_the_same(said: &str, truth: &str) -> bool {
    let parts = |text: &str| {
        let text = text.trim().trim_end_matches('.').to_lowercase().replace(HOLDING, ", held ");
        let mut parts: Vec<String> = text
            .split(", ")
            .flat_map(|part| part.split(" and "))
            .map(|part| {
                let kept = part.split_whitespace().filter(|word| !["a", "an", "the"].contains(word));
                kept.collect::<Vec<_>>().join(" ")
            })
            .collect();
        parts.sort();
        parts
    };
    parts(said) == parts(truth)
}

/// Words that questions and answers can hold, in alphabetical order; punctuation is left out.
pub fn vocabulary() -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |text: &str| {
        let letters = |c: char| !c.is_alphanumeric();
        words.extend(text.split(letters).filter(|word| !word.is_empty()).map(str::to_owned));
    };
    Kind::ALL.iter().flat_map(|kind| kind.phrasings()).for_each(|text| add(text));
    Colour::ALL.iter().for_each(|colour| add(colour.word()));
    for kind in KINDS {
        add(kind.word());
        add(&plural(kind));
    }
    add("a an the and yes no nothing something anything thing things");
    add(HOLDING);
    words.sort();
    words.dedup();
    words
}

const KINDS: [ObjectKind; 4] = [ObjectKind::Cube, ObjectKind::Cylinder, ObjectKind::Ball, ObjectKind::Bowl];
const HOLDING: &str = "; the arm is holding ";

fn plural(kind: ObjectKind) -> String {
    format!("{}s", kind.word())
}

/// "a red cube", "an orange cube".
pub(crate) fn article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

fn with_article(thing: &Thing) -> String {
    article(&noun(thing.pair()))
}

fn named(thing: &Thing) -> String {
    format!("the {}", noun(thing.pair()))
}

/// "a, b and c"; "nothing" for none.
fn listed(items: &[String]) -> String {
    match items {
        [] => "nothing".to_owned(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn several<'a>(things: impl Iterator<Item = &'a Thing>) -> String {
    listed(&things.map(with_article).collect::<Vec<_>>())
}

/// The colours that are there, in the order of [`Colour::ALL`].
fn colours(things: &[Thing]) -> Found<Colour> {
    Found(Colour::ALL.into_iter().filter(|colour| things.iter().any(|t| t.colour == *colour)).collect())
}

/// The shapes that are there, in the order of [`KINDS`].
fn shapes(things: &[Thing]) -> Found<ObjectKind> {
    Found(KINDS.into_iter().filter(|kind| things.iter().any(|t| t.kind == *kind)).collect())
}

struct Found<T>(Vec<T>);

impl<T: Copy> Found<T> {
    fn map(&self, word: impl Fn(T) -> String) -> Vec<String> {
        self.0.iter().map(|found| word(*found)).collect()
    }
}

/// A thing that its colour and shape name: no two are alike.
fn unique<'a>(things: &'a [Thing], rng: &mut ChaCha8Rng) -> Option<&'a Thing> {
    let alike = |thing: &Thing| things.iter().filter(|other| other.pair() == thing.pair()).count();
    let found: Vec<&Thing> = things.iter().filter(|thing| alike(thing) == 1).collect();
    found.choose(rng).copied()
}

fn count(things: &[Thing], rng: &mut ChaCha8Rng) -> Option<(String, String)> {
    let (about, count) = match rng.random_range(0..5) {
        0 | 1 => {
            let kind = *KINDS.choose(rng)?;
            (plural(kind), things.iter().filter(|thing| thing.kind == kind).count())
        }
        2 | 3 => {
            // As often of a colour that is there as of any.
            let colour = match rng.random_bool(0.5) {
                true => things.choose(rng)?.colour,
                false => *Colour::ALL.choose(rng)?,
            };
            let count = things.iter().filter(|thing| thing.colour == colour).count();
            (format!("{} things", colour.word()), count)
        }
        _ => ("things".to_owned(), things.len()),
    };
    Some((about, count.to_string()))
}

fn beside(things: &[Thing], rng: &mut ChaCha8Rng) -> Option<(String, String)> {
    let (one, other) = (unique(things, rng)?, unique(things, rng)?);
    let off = one.at_px[0] - other.at_px[0];
    let left = rng.random_bool(0.5);
    let side = if left { "left" } else { "right" };
    let answer = if (off < 0.0) == left { "yes" } else { "no" };
    (off.abs() >= BESIDE_PX)
        .then(|| (format!("{} {side} of {}", named(one), named(other)), answer.to_owned()))
}

fn exists(things: &[Thing], rng: &mut ChaCha8Rng) -> Option<(String, String)> {
    let there = rng.random_bool(0.5);
    let answer = if there { "yes" } else { "no" }.to_owned();
    let about = match rng.random_range(0..5) {
        0 => {
            let fits = |kind: &ObjectKind| things.iter().any(|thing| thing.kind == *kind) == there;
            let found: Vec<ObjectKind> = KINDS.into_iter().filter(fits).collect();
            article(found.choose(rng)?.word())
        }
        1 => {
            let fits = |colour: &Colour| things.iter().any(|thing| thing.colour == *colour) == there;
            let found: Vec<Colour> = Colour::ALL.into_iter().filter(fits).collect();
            let word = found.choose(rng)?.word();
            if rng.random_bool(0.5) { format!("something {word}") } else { article(&format!("{word} thing")) }
        }
        _ if there => with_article(things.choose(rng)?),
        // Every other time both the colour and the shape are there, on different things.
        _ => {
            let mixed = absent(things, true);
            let found = if rng.random_bool(0.5) && !mixed.is_empty() { mixed } else { absent(things, false) };
            article(&noun(*found.choose(rng)?))
        }
    };
    Some((about, answer))
}

/// Pairs of colour and shape that are not there; `mixed`: both are, on different things.
pub fn absent(things: &[Thing], mixed: bool) -> Vec<(Colour, ObjectKind)> {
    let all = Colour::ALL.into_iter().flat_map(|colour| KINDS.map(|kind| (colour, kind)));
    let there = |pair: &(Colour, ObjectKind)| things.iter().any(|thing| thing.pair() == *pair);
    let parts = |pair: &(Colour, ObjectKind)| {
        things.iter().any(|t| t.colour == pair.0) && things.iter().any(|t| t.kind == pair.1)
    };
    all.filter(|pair| !there(pair) && (!mixed || parts(pair))).collect()
}

fn held(shown: &Shown) -> Option<String> {
    match shown.grip {
        Grip::Unclear => None,
        Grip::Empty => Some("nothing".to_owned()),
        Grip::Holds => shown.things.iter().find(|thing| thing.held).map(with_article),
    }
}

fn describe(shown: &Shown) -> Option<String> {
    if shown.grip == Grip::Unclear {
        return None;
    }
    let lying = several(shown.things.iter().filter(|thing| !thing.held));
    Some(match shown.things.iter().find(|thing| thing.held) {
        Some(thing) => format!("{lying}{HOLDING}{}", with_article(thing)),
        None => lying,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use Colour::{Blue, Green, Red};
    use ObjectKind::{Ball, Bowl, Cube};
    use vela_embodiment::stream;

    fn thing(colour: Colour, kind: ObjectKind, x_px: f32, y_m: f64) -> Thing {
        Thing { colour, kind, at_px: [x_px, 50.0], xyz_m: [0.2, y_m, 0.0], pixels: 50, held: false }
    }

    fn made() -> Shown {
        let things =
            vec![thing(Red, Cube, 20.0, 0.1), thing(Blue, Ball, 50.0, 0.0), thing(Red, Bowl, 70.0, -0.08)];
        Shown { things, grip: Grip::Empty }
    }

    /// All answers that a kind gives over many draws, by question.
    fn all(shown: &Shown, kind: Kind) -> std::collections::BTreeMap<String, String> {
        let draw = |seed| ask(shown, kind, Phrasing::Trained, &mut stream(seed, "questions"));
        (0..2000).filter_map(draw).map(|asked| (asked.question, asked.answer)).collect()
    }

    #[test]
    fn the_truth_of_a_made_scene() {
        let shown = made();
        for (kind, question, answer) in [
            (Kind::Colours, "which colours are there?", "red and blue"),
            (Kind::Shapes, "which shapes do you see?", "cube, ball and bowl"),
            (Kind::Count, "how many red things are there?", "2"),
            (Kind::Count, "count the cubes.", "1"),
            (Kind::Count, "how many cylinders do you see?", "0"),
            (Kind::Count, "what is the number of things?", "3"),
            (Kind::Left, "what is left of the blue ball?", "a red cube"),
            (Kind::Left, "what is left of the red cube?", "nothing"),
            (Kind::Left, "what is to the left of the red bowl?", "a red cube and a blue ball"),
            (Kind::Right, "what is right of the red cube?", "a blue ball and a red bowl"),
            (Kind::Nearest, "what is nearest to the red cube?", "a blue ball"),
            (Kind::Nearest, "what is closest to the red bowl?", "a blue ball"),
            (Kind::Exists, "is there a red cube?", "yes"),
            (Kind::Exists, "is there a blue cube?", "no"),
            (Kind::Exists, "do you see something green?", "no"),
            (Kind::Exists, "can you see a bowl?", "yes"),
            (Kind::Holding, "what is the arm holding?", "nothing"),
            (Kind::ColourOf, "what colour is the ball?", "blue"),
            (Kind::ShapeOf, "what shape is the blue thing?", "ball"),
            (Kind::Beside, "is the red cube left of the blue ball?", "yes"),
            (Kind::Beside, "is the blue ball right of the red bowl?", "no"),
            (Kind::Describe, "what is on the table?", "a red cube, a blue ball and a red bowl"),
        ] {
            assert_eq!(all(&shown, kind).get(question).map(String::as_str), Some(answer), "{question}");
        }
    }

    #[test]
    fn what_has_two_answers_is_not_asked() {
        let mut shown = made();
        // Two red things: no shape of "the red thing".
        assert!(all(&shown, Kind::ShapeOf).keys().all(|question| !question.contains("red")));
        // As far to either side.
        shown.things[2].xyz_m[1] = -0.1;
        assert!(all(&shown, Kind::Nearest).keys().all(|question| !question.contains("blue ball")));
        // One above the other in the picture.
        shown.things[1].at_px[0] = 68.5;
        assert!(all(&shown, Kind::Left).keys().all(|question| question.contains("cube")));
        // Two alike.
        shown.things[1] = thing(Red, Cube, 50.0, 0.0);
        assert!(all(&shown, Kind::Left).keys().all(|question| question.contains("bowl")));
        shown.grip = Grip::Unclear;
        assert!(all(&shown, Kind::Holding).is_empty() && all(&shown, Kind::Describe).is_empty());
    }

    #[test]
    fn what_the_arm_holds_is_not_on_the_table() {
        let mut shown = made();
        shown.things[1].held = true;
        shown.grip = Grip::Holds;
        let answer = |kind| all(&shown, kind).into_values().next().unwrap_or_default();
        assert_eq!(answer(Kind::Holding), "a blue ball");
        assert_eq!(answer(Kind::Describe), "a red cube and a red bowl; the arm is holding a blue ball");
    }

    #[test]
    fn held_out_phrasings_use_trained_words_and_answers_are_known() {
        let trained: Vec<&str> = Kind::ALL
            .iter()
            .flat_map(|kind| kind.phrasings().split_last().map_or(&[][..], |(_, trained)| trained))
            .flat_map(|text| text.split(|c: char| !c.is_alphanumeric()))
            .collect();
        for kind in Kind::ALL {
            let last = kind.phrasings().last().copied().unwrap_or_default();
            for word in last.split(|c: char| !c.is_alphanumeric()) {
                assert!(trained.contains(&word), "{kind:?}: {word}");
            }
        }
        let known = vocabulary();
        for kind in Kind::ALL {
            for (question, answer) in all(&made(), kind) {
                for word in format!("{question} {answer}").split(|c: char| !c.is_alphabetic()) {
                    assert!(word.is_empty() || known.iter().any(|k| k == word), "{word}");
                }
            }
        }
    }

    #[test]
    fn answers_are_compared_as_sets() {
        assert!(says_the_same("a blue ball and a red cube", "a red cube and a blue ball"));
        assert!(says_the_same("Blue, red.", "red and blue"));
        assert!(!says_the_same("a red cube", "a red cube and a blue ball"));
        let holding = "a red cube; the arm is holding a blue ball";
        assert!(says_the_same(holding, holding) && !says_the_same("a red cube and a blue ball", holding));
    }

    #[test]
    fn what_is_absent_is_absent() {
        let things = made().things;
        assert_eq!(absent(&things, false).len(), 21);
        assert_eq!(absent(&things, true), [(Red, Ball), (Blue, Cube), (Blue, Bowl)]);
        assert!(!absent(&things, true).iter().any(|pair| pair.0 == Green));
    }
}
