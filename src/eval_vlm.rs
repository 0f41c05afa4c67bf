//! `vela eval vqa` and `vela eval pope`: questions about unseen pictures of the simulator, with the truth known.

use crate::album::photographs;
use crate::answerer::{Answerer, Look};
use crate::stats::wilson95;
use anyhow::Result;
use rand::seq::{IndexedRandom, SliceRandom};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use vela_embodiment::{Clock, MonotonicClock, stream};
use vela_nn::threads;
use vela_sim::questions::{Kind, Phrasing, absent, ask, is_there, says_the_same};
use vela_sim::sayings::say;
use vela_sim::scene::{Colour, ObjectKind};
use vela_sim::sights::{EDGE_PX, Photo, Thing};
use vela_sim::tasks::Split;

/// Score a VLM on pictures that training never saw.
#[derive(clap::Args)]
pub struct Args {
    /// Pictures.
    #[arg(long, default_value_t = 400)]
    pictures: usize,
    /// Seed of the first episode; the others follow it.
    #[arg(long, default_value_t = 1_000_000)]
    seed: u64,
    /// builtin, or a VLM's folder.
    #[arg(long, default_value = "builtin")]
    pub model: String,
    /// So many tokens of each picture stay, those that are alike merged; all if nothing is said.
    #[arg(long, value_name = "N")]
    pub merge: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl Args {
    /// One picture of each of as many test episodes as it takes.
    fn photos(&self) -> Result<Vec<Photo>> {
        let mut found: Vec<Photo> = Vec::new();
        let mut first = self.seed;
        while found.len() < self.pictures {
            let next = first + (self.pictures - found.len()) as u64;
            for (photos, seed) in photographs(Split::Test, first..next)?.into_iter().zip(first..) {
                found.extend(photos.choose(&mut stream(seed, "picture of an episode")).cloned());
            }
            first = next;
        }
        Ok(found)
    }
}

/// Right answers of all.
#[derive(Clone, Copy, Default)]
pub struct Score {
    right: usize,
    all: usize,
}

impl Score {
    /// Counts one more.
    pub fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.all += 1;
    }

    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self { right: self.right + other.right, all: self.all + other.all }
    }

    fn rate(self) -> f64 {
        self.right as f64 / self.all.max(1) as f64
    }

    /// For programs.
    pub fn json(self) -> Value {
        json!({"right": self.right, "all": self.all, "rate": self.rate(), "ci95": wilson95(self.right, self.all)})
    }

    /// For people.
    pub fn text(self) -> String {
        let [low, high] = wilson95(self.right, self.all).map(|x| x * 1e2);
        format!("{:>5.1} % ({low:.0}-{high:.0} of {})", self.rate() * 1e2, self.all)
    }
}

/// What one kind of question scored.
#[derive(Clone, Default)]
struct Row {
    seen: Score,
    held_out: Score,
    grey: Score,
    /// Of all answers with the picture, looking apart.
    answer_secs: f64,
    answers: BTreeMap<String, usize>,
}

impl Row {
    fn plus(mut self, other: Self) -> Self {
        self.seen = self.seen.plus(other.seen);
        self.held_out = self.held_out.plus(other.held_out);
        self.grey = self.grey.plus(other.grey);
        self.answer_secs += other.answer_secs;
        other.answers.into_iter().for_each(|(answer, n)| *self.answers.entry(answer).or_default() += n);
        self
    }

    /// The commonest answer, given always.
    fn constant(&self) -> Score {
        Score { right: self.answers.values().copied().max().unwrap_or(0), all: self.seen.all }
    }
}

type Rows = BTreeMap<&'static str, Row>;

/// Questions of every kind: with the picture, in a phrasing that training never used, and with a grey picture.
pub fn vqa(args: &Args) -> Result<()> {
    let (model, photos) = (Answerer::choose(&args.model, args.merge)?, args.photos()?);
    let clock = MonotonicClock::new();
    let grey = model.look(&vec![128; photos.first().map_or(0, |photo| photo.rgb.len())], EDGE, EDGE)?;
    let of_picture = |(k, photo): (usize, &Photo)| -> Result<Rows> {
        threads::with_threads(1, || {
            let look = model.look(&photo.rgb, EDGE, EDGE)?;
            let mut rows = Rows::new();
            for kind in Kind::ALL {
                let mut rng = stream(args.seed + k as u64, &format!("vqa {}", kind.name()));
                let row = rows.entry(kind.name()).or_default();
                if let Some(asked) = ask(&photo.shown, kind, Phrasing::Trained, &mut rng) {
                    let right = |look| -> Result<bool> {
                        Ok(says_the_same(&model.answer(Some(look), &asked.question)?, &asked.answer))
                    };
                    let start = clock.now();
                    row.seen.add(right(&look)?);
                    row.answer_secs += clock.now().secs_since(start);
                    row.grey.add(right(&grey)?);
                    *row.answers.entry(asked.answer.clone()).or_default() += 1;
                }
                if let Some(asked) = ask(&photo.shown, kind, Phrasing::HeldOut, &mut rng) {
                    let said = model.answer(Some(&look), &asked.question)?;
                    row.held_out.add(says_the_same(&said, &asked.answer));
                }
            }
            Ok(rows)
        })
    };
    let rows =
        photos.par_iter().enumerate().map(|(k, photo)| of_picture((k, photo))).collect::<Result<Vec<_>>>()?;
    let mut sum = Rows::new();
    for (kind, row) in rows.into_iter().flatten() {
        let old = sum.remove(kind).unwrap_or_default();
        sum.insert(kind, old.plus(row));
    }
    let mut text = Score::default();
    for k in 0..args.pictures.min(300) as u64 {
        let (question, answer) = say(&mut stream(args.seed + k, "vqa text"));
        text.add(says_the_same(&model.answer(None, &question)?, &answer));
    }
    let all = sum.values().cloned().fold(Row::default(), Row::plus);
    let constant = sum.values().map(Row::constant).fold(Score::default(), Score::plus);
    let answer_ms = 1e3 * all.answer_secs / all.seen.all.max(1) as f64;
    if args.json {
        let one = |row: &Row, constant: Score| {
            json!({"picture": row.seen.json(), "held_out_phrasing": row.held_out.json(), "grey": row.grey.json(),
                "commonest_answer": constant.rate()})
        };
        let kinds: serde_json::Map<String, Value> =
            sum.iter().map(|(kind, row)| ((*kind).to_owned(), one(row, row.constant()))).collect();
        println!(
            "{}",
            json!({"model": args.model, "pictures": photos.len(), "seed": args.seed, "kinds": kinds,
                "all": one(&all, constant), "text_only": text.json(), "merge": args.merge,
                "answer_ms": answer_ms})
        );
        return Ok(());
    }
    println!(
        "{:<10} {:<26} {:<26} {:<26} commonest answer",
        "kind", "picture", "unseen phrasing", "grey picture"
    );
    let line = |name: &str, row: &Row, constant: Score| {
        let [seen, held_out, grey] = [row.seen, row.held_out, row.grey].map(Score::text);
        println!("{name:<10} {seen:<26} {held_out:<26} {grey:<26} {:>5.1} %", constant.rate() * 1e2);
    };
    sum.iter().for_each(|(kind, row)| line(kind, row, row.constant()));
    line("all", &all, constant);
    println!("without a picture: {}", text.text());
    println!("an answer about a picture: {answer_ms:.1} ms on one thread");
    Ok(())
}

const EDGE: usize = EDGE_PX as usize;

/// A colour and a shape.
type Pair = (Colour, ObjectKind);

/// How the absent ones are chosen (Li et al. 2023, <https://arxiv.org/abs/2305.10355>).
#[derive(Clone, Copy)]
enum Setting {
    /// Any.
    Random,
    /// Those that most pictures show.
    Popular,
    /// Those whose colour and whose shape are both there, on different things; then those that share one of them.
    Adversarial,
}

/// Questions of a picture, for as many present as absent things.
const EACH: usize = 3;

/// Whether the model says that things are there which are not: three settings.
pub fn pope(args: &Args) -> Result<()> {
    let (model, photos) = (Answerer::choose(&args.model, args.merge)?, args.photos()?);
    let mut shown: BTreeMap<Pair, usize> = BTreeMap::new();
    photos
        .iter()
        .flat_map(|photo| &photo.shown.things)
        .for_each(|t| *shown.entry(t.pair()).or_default() += 1);
    let looks: Vec<Look> = photos
        .par_iter()
        .map(|photo| threads::with_threads(1, || model.look(&photo.rgb, EDGE, EDGE)))
        .collect::<Result<_>>()?;
    let mut report = serde_json::Map::new();
    let settings =
        [("random", Setting::Random), ("popular", Setting::Popular), ("adversarial", Setting::Adversarial)];
    if !args.json {
        println!("{:<12} {:<26} precision  recall     F1  yes-rate", "setting", "accuracy");
    }
    for (name, setting) in settings {
        // (said yes, is there)
        let answers: Vec<(bool, bool)> = photos
            .par_iter()
            .zip(&looks)
            .enumerate()
            .map(|(k, (photo, look))| {
                let mut rng = stream(args.seed + k as u64, &format!("pope {name}"));
                let mut there: Vec<Pair> = photo.shown.things.iter().map(Thing::pair).collect();
                there.shuffle(&mut rng);
                let mut not = absent(&photo.shown.things, false);
                not.shuffle(&mut rng);
                match setting {
                    Setting::Random => {}
                    Setting::Popular => not.sort_by_key(|pair| usize::MAX - shown.get(pair).unwrap_or(&0)),
                    Setting::Adversarial => not.sort_by_key(|pair| {
                        let things = &photo.shown.things;
                        let shares = [
                            things.iter().any(|t| t.colour == pair.0),
                            things.iter().any(|t| t.kind == pair.1),
                        ];
                        2 - shares.iter().filter(|share| **share).count()
                    }),
                }
                let count = EACH.min(there.len()).min(not.len());
                let asked =
                    there[..count].iter().map(|p| (*p, true)).chain(not[..count].iter().map(|p| (*p, false)));
                threads::with_threads(1, || {
                    asked
                        .map(|(pair, truth)| {
                            let question = is_there(pair, Phrasing::Trained, &mut rng);
                            let said = model.answer(Some(look), &question)?;
                            Ok((says_the_same(&said, "yes"), truth))
                        })
                        .collect::<Result<Vec<_>>>()
                })
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let count = |said: bool, truth: bool| answers.iter().filter(|a| **a == (said, truth)).count();
        let (yes, no) = (count(true, true), count(false, false));
        let share = |part: usize, of: usize| part as f64 / of.max(1) as f64;
        let (precision, recall) =
            (share(yes, yes + count(true, false)), share(yes, yes + count(false, true)));
        let f1 = 2.0 * precision * recall / (precision + recall).max(f64::MIN_POSITIVE);
        let accuracy = Score { right: yes + no, all: answers.len() };
        let yes_rate = share(yes + count(true, false), answers.len());
        if !args.json {
            println!(
                "{name:<12} {:<26} {precision:>9.3} {recall:>7.3} {f1:>6.3} {yes_rate:>9.3}",
                accuracy.text()
            );
        }
        report.insert(
            name.to_owned(),
            json!({"accuracy": accuracy.json(), "precision": precision, "recall": recall, "f1": f1,
                "yes_rate": yes_rate}),
        );
    }
    if args.json {
        println!(
            "{}",
            json!({"model": args.model, "pictures": photos.len(), "seed": args.seed, "merge": args.merge,
                "settings": report})
        );
    }
    Ok(())
}
