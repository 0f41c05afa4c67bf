//! `vela eval vqa --data FOLDER`: a VLM on published questions about pictures, through `vela serve`'s service, beside a
//! grey picture and what can be said without looking.

use crate::eval_vlm::{self, Score};
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vela_embodiment::MonotonicClock;
use vela_fusion::ChatModel;
use vela_serve::{Ask, Piece, Service, ServiceConfig};
use vela_train::adapt::PictureSet;
use vela_train::vlm::QuestionAnswer;

/// Score a VLM: on the simulator's unseen pictures, or with --data on published questions in the layout of easy-VQA.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    simulated: eval_vlm::Args,
    /// A folder with train/ and test/, each with questions.json and images/: the model answers the questions of test/.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// With --data: only the first so many pictures.
    #[arg(long, requires = "data")]
    limit: Option<usize>,
    /// With --data: threads; 0: as many as there are.
    #[arg(long, default_value_t = 0, requires = "data")]
    threads: usize,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    match &args.data {
        None => eval_vlm::vqa(&args.simulated),
        Some(data) => published(args, data),
    }
}

/// What one kind of question scored.
#[derive(Clone, Copy, Default)]
struct Row {
    picture: Score,
    grey: Score,
    blind: Score,
}

impl Row {
    fn plus(self, other: Self) -> Self {
        Self {
            picture: self.picture.plus(other.picture),
            grey: self.grey.plus(other.grey),
            blind: self.blind.plus(other.blind),
        }
    }
}

/// New tokens of one answer at most: a longer one is wrong anyway.
const LONGEST: usize = 12;
/// Answers at once.
const AT_ONCE: usize = 16;
/// Edge of the grey picture, pixels.
const GREY_PX: u32 = 64;

fn published(args: &Args, data: &Path) -> Result<()> {
    let (model, json) = (&args.simulated.model, args.simulated.json);
    if model == "builtin" {
        bail!("--data: expected --model FOLDER, the VLM that is to answer");
    }
    let (train, mut test) = (PictureSet::load(data, "train")?, PictureSet::load(data, "test")?);
    test.pictures.truncate(args.limit.unwrap_or(usize::MAX));
    vela_nn::threads::set(args.threads);
    let mut config = ServiceConfig::default();
    (config.engine.context, config.engine.max_running, config.engine.threads) = (1024, AT_ONCE, args.threads);
    let chat = ChatModel::load(Path::new(model), 1 << 24)
        .and_then(|chat| chat.keeping(args.simulated.merge))
        .with_context(|| model.clone())?;
    let service = Service::start(chat, model, config, Arc::new(MonotonicClock::new()))?;
    let mut grey = Cursor::new(Vec::new());
    image::RgbImage::from_pixel(GREY_PX, GREY_PX, image::Rgb([128; 3]))
        .write_to(&mut grey, image::ImageFormat::Png)?;
    let grey = grey.into_inner();
    let blind = train.blind();
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    // Without a picture that differs, equal questions have equal answers.
    let mut said_of_grey: HashMap<&str, String> = HashMap::new();
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} pictures, {eta} left  {msg}")?;
    let bar = ProgressBar::new(test.pictures.len() as u64).with_style(style);
    for picture in &test.pictures {
        let file = std::fs::read(&picture.path).with_context(|| picture.path.display().to_string())?;
        let asked: Vec<&str> = picture.asked.iter().map(|asked| asked.question.as_str()).collect();
        let said = answers(&service, &file, &asked)?;
        let new: Vec<&str> = asked.iter().copied().filter(|q| !said_of_grey.contains_key(q)).collect();
        said_of_grey.extend(new.iter().copied().zip(answers(&service, &grey, &new)?));
        for (QuestionAnswer { kind, question, answer }, said) in picture.asked.iter().zip(said) {
            let row = rows.entry(*kind).or_default();
            row.picture.add(same(&said, answer));
            row.grey.add(said_of_grey.get(question.as_str()).is_some_and(|said| same(said, answer)));
            row.blind.add(blind.get(question.as_str()).is_some_and(|said| same(said, answer)));
        }
        bar.inc(1);
        bar.set_message(rows.values().copied().fold(Row::default(), Row::plus).picture.text());
    }
    bar.finish_and_clear();
    service.engine().drain();
    let all = rows.values().copied().fold(Row::default(), Row::plus);
    if json {
        let one = |row: &Row| -> Value {
            let [picture, grey, blind] = [row.picture, row.grey, row.blind].map(Score::json);
            json!({"picture": picture, "grey": grey, "question_only": blind})
        };
        let kinds: Map<String, Value> =
            rows.iter().map(|(kind, row)| ((*kind).to_owned(), one(row))).collect();
        println!(
            "{}",
            json!({"model": model, "data": data, "pictures": test.pictures.len(), "questions": test.questions(),
                "kinds": kinds, "all": one(&all)})
        );
        return Ok(());
    }
    println!("{:<18} {:<28} {:<28} question only", "kind", "picture", "grey picture");
    let line = |name: &str, row: &Row| {
        println!("{name:<18} {:<28} {:<28} {}", row.picture.text(), row.grey.text(), row.blind.text());
    };
    rows.iter().for_each(|(kind, row)| line(kind, row));
    line("all", &all);
    Ok(())
}

fn same(said: &str, answer: &str) -> bool {
    said.trim() == answer
}

/// The greedy answers to questions about one picture. The first leaves the picture's keys and values to the others,
/// which are answered at once.
fn answers(service: &Service, picture: &[u8], questions: &[&str]) -> Result<Vec<String>> {
    let mut said = Vec::with_capacity(questions.len());
    let Some((first, others)) = questions.split_first() else { return Ok(said) };
    for group in std::iter::once(std::slice::from_ref(first)).chain(others.chunks(AT_ONCE)) {
        let begin = |question: &&str| -> Result<_> {
            let mut ask = Ask::about([("the picture".to_owned(), picture.to_vec())], question);
            ask.sampling.temperature = 0.0;
            ask.max_tokens = Some(LONGEST);
            service.begin(&ask)?.pop().context("no answer came")
        };
        for mut reply in group.iter().map(begin).collect::<Result<Vec<_>>>()? {
            let mut text = String::new();
            while let Some(piece) = reply.next_blocking(service) {
                match piece? {
                    Piece::Token { text: more, .. } => text += &more,
                    Piece::End { text: more, .. } => {
                        text += &more;
                        break;
                    }
                }
            }
            said.push(text);
        }
    }
    Ok(said)
}
