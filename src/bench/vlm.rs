//! `vela bench vlm`: from a picture and a question to the first word, and the second question about the same picture.

use super::resident_mb;
use crate::serve::{self, Loading};
use crate::stats::quantile;
use anyhow::{Context, Result, bail};
use image::{ImageFormat, RgbImage};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use vela_embodiment::{Clock, MonotonicClock};
use vela_serve::{Ask, Fault, Piece, Service};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    loading: Loading,
    /// A picture; without it, made-up ones of --side.
    #[arg(long)]
    image: Option<PathBuf>,
    /// Pixels of a made-up picture's side.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=4096))]
    side: u32,
    /// Pictures to measure, each new to the model, after one that does not count.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pictures: u32,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..))]
    decode_tokens: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Medians over the pictures.
#[derive(Serialize)]
struct Measured {
    /// Unpacking, preprocessing and encoding.
    vision_ms: f64,
    /// From the encoded picture to the first token.
    prefill_ms: f64,
    /// Both.
    ttft_ms: f64,
    /// To the first token of another question about the same picture.
    second_question_ttft_ms: f64,
    /// After the first token; nothing if all answers were of one.
    decode_tok_s: Option<f64>,
    image_tokens: usize,
    rss_mb: f64,
    threads: usize,
}

/// How long the parts of an answer took.
struct Took {
    first_ms: f64,
    rest_ms: f64,
    tokens: usize,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let clock = Arc::new(MonotonicClock::new());
    let service = serve::service(&args.loading, 1, clock.clone())?;
    if !service.model().sees() {
        bail!("{}: expected a model that sees, got one of text", service.name());
    }
    let (mut vision, mut prefill, mut ttft, mut second, mut rates) = (vec![], vec![], vec![], vec![], vec![]);
    let mut image_tokens = 0;
    for number in 0..=args.pictures {
        let file = picture(args, number)?;
        let start = clock.now();
        let seen = service.model().look(&file, &service.config().picture)?;
        let vision_ms = clock.now().secs_since(start) * 1e3;
        image_tokens = seen.encoded.tokens.dim(0)?;
        let first = answer(args, &service, &*clock, &file, "What is in the picture?")?;
        let again = answer(args, &service, &*clock, &file, "How many things are there?")?;
        if number == 0 {
            continue;
        }
        vision.push(vision_ms);
        prefill.push(first.first_ms);
        ttft.push(vision_ms + first.first_ms);
        second.push(again.first_ms);
        if first.tokens > 1 {
            rates.push((first.tokens - 1) as f64 / first.rest_ms * 1e3);
        }
    }
    let median = |values: &mut Vec<f64>| quantile(values, 0.5);
    let measured = Measured {
        vision_ms: median(&mut vision),
        prefill_ms: median(&mut prefill),
        ttft_ms: median(&mut ttft),
        second_question_ttft_ms: median(&mut second),
        decode_tok_s: (!rates.is_empty()).then(|| median(&mut rates)),
        image_tokens,
        rss_mb: resident_mb().context("the resident memory is not to be had on this system")?,
        threads: vela_nn::threads::current(),
    };
    if args.json {
        println!("{}", serde_json::to_string(&measured)?);
        return Ok(());
    }
    println!("picture        {:8.1} ms, {image_tokens} tokens", measured.vision_ms);
    println!("prompt         {:8.1} ms", measured.prefill_ms);
    println!("first token    {:8.1} ms", measured.ttft_ms);
    println!("second question{:8.1} ms", measured.second_question_ttft_ms);
    if let Some(rate) = measured.decode_tok_s {
        println!("writing        {rate:8.1} tokens/s");
    }
    println!("{:.0} MB resident, {} thread(s)", measured.rss_mb, measured.threads);
    Ok(())
}

/// The file of picture `number`. One given by name is told apart by bytes behind its end, which no reader minds.
fn picture(args: &Args, number: u32) -> Result<Vec<u8>> {
    if let Some(path) = &args.image {
        let mut file = std::fs::read(path).with_context(|| path.display().to_string())?;
        file.extend(number.to_le_bytes());
        return Ok(file);
    }
    let shade =
        |x: u32, y: u32| [x * 7 + number * 40, y * 5 + number, (x / 16 + y / 16) % 2 * 200].map(|v| v as u8);
    let made = RgbImage::from_fn(args.side, args.side, |x, y| image::Rgb(shade(x, y)));
    let mut file = std::io::Cursor::new(Vec::new());
    made.write_to(&mut file, ImageFormat::Png)?;
    Ok(file.into_inner())
}

fn answer(args: &Args, service: &Service, clock: &dyn Clock, file: &[u8], question: &str) -> Result<Took> {
    let mut ask = Ask::about([("the picture".to_owned(), file.to_vec())], question);
    ask.max_tokens = Some(args.decode_tokens as usize);
    let start = clock.now();
    let Some(mut reply) = service.begin(&ask)?.pop() else { bail!("no answer came") };
    let mut first = None;
    loop {
        let piece =
            reply.next_blocking(service).unwrap_or_else(|| Err(Fault::internal("the answer broke off")));
        match piece? {
            Piece::Token { .. } => {
                first.get_or_insert_with(|| clock.now());
            }
            Piece::End { usage, .. } => {
                let end = clock.now();
                let first = first.unwrap_or(end);
                return Ok(Took {
                    first_ms: first.secs_since(start) * 1e3,
                    rest_ms: end.secs_since(first) * 1e3,
                    tokens: usage.generated_tokens,
                });
            }
        }
    }
}
