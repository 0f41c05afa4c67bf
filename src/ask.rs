//! `vela ask`: a question about pictures, answered on the spot.

use crate::serve::{self, Loading};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use vela_embodiment::{Clock, MonotonicClock, Stamp};
use vela_serve::{Ask, Fault, Finish, Piece};

/// Ask a question about pictures (or about nothing); the answer streams to stdout, what it cost goes to stderr.
#[derive(clap::Args)]
pub struct Args {
    /// JPEG, PNG or WebP files, and last the question.
    #[arg(required = true, num_args = 1.., value_name = "IMAGE... QUESTION")]
    words: Vec<String>,
    #[command(flatten)]
    loading: Loading,
    /// At most so many new tokens.
    #[arg(long, default_value_t = 256)]
    max_tokens: usize,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Of the draws; equal seeds give equal answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let Some((question, pictures)) = args.words.split_last() else { bail!("expected a question") };
    let read = |path: &String| -> Result<(String, Vec<u8>)> {
        let file = std::fs::read(path).with_context(|| path.clone())?;
        Ok((path.clone(), file))
    };
    let pictures = pictures.iter().map(read).collect::<Result<Vec<_>>>()?;
    let clock = Arc::new(MonotonicClock::new());
    let service = serve::service(&args.loading, 1, clock.clone())?;
    if pictures.is_empty() && PathBuf::from(question).is_file() {
        bail!("expected a question after the pictures, got the file {question}");
    }
    if pictures.is_empty() && args.loading.merge.is_some() {
        bail!("--merge: expected a picture whose tokens are to be merged, got none");
    }
    let mut ask = Ask::about(pictures, question);
    ask.max_tokens = Some(args.max_tokens);
    ask.sampling.temperature = args.temperature;
    ask.seed = Some(args.seed);
    let start = clock.now();
    let Some(mut reply) = service.begin(&ask)?.pop() else { bail!("no answer came") };
    let (mut text, mut first): (String, Option<Stamp>) = (String::new(), None);
    let mut show = |piece: &str| {
        if !args.json && !piece.is_empty() {
            print!("{piece}");
            // A reader that went away is noticed when the answer ends.
            std::io::stdout().flush().ok();
        }
        text.push_str(piece);
    };
    let (finish, usage) = loop {
        let piece =
            reply.next_blocking(&service).unwrap_or_else(|| Err(Fault::internal("the answer broke off")));
        match piece? {
            Piece::Token { text, .. } => {
                first.get_or_insert_with(|| clock.now());
                show(&text);
            }
            Piece::End { text, finish, usage } => {
                show(&text);
                break (finish, usage);
            }
        }
    };
    let end = clock.now();
    let first = first.unwrap_or(end);
    let (to_first, made) = (first.secs_since(start), usage.generated_tokens);
    let rate = made.saturating_sub(1) as f64 / end.secs_since(first).max(1e-9);
    if args.json {
        let cost = json!({"text": text, "finish": finish.word(), "model": service.name(),
            "prompt_tokens": usage.prompt_tokens, "tokens": made, "time_to_first_s": to_first, "tokens_per_s": rate});
        println!("{cost}");
        return Ok(());
    }
    println!();
    let cut = if finish == Finish::Length { "; cut off" } else { "" };
    let read = usage.prompt_tokens;
    eprintln!(
        "[{read} prompt tokens, first token after {to_first:.2} s; {made} tokens, {rate:.1} per second{cut}]"
    );
    Ok(())
}
