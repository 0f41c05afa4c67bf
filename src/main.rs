//! The `vela` command line: one file per verb. Only here is anything printed or a device picked.
//!
//! Exit status: 0 done, 1 failed (one sentence on stderr), 2 wrong usage, 141 nobody reads what is printed. What runs until
//! Ctrl-C or SIGTERM ends in order, as done; a second signal ends what moves an arm at once, with 130 or 143.

#[macro_use]
mod out;

mod act;
mod adapt_vlm;
mod album;
mod answerer;
mod ask;
mod bench;
mod builtin;
mod calibrate;
mod chat;
mod chooser;
mod demo;
mod doctor;
mod episodes;
mod eval;
mod eval_heads;
mod eval_pairs;
mod eval_rtc;
mod eval_vlm;
mod inspect;
mod leading;
mod live;
mod openpi;
mod operator;
mod outside;
mod quantize;
mod realtime;
mod record;
mod recording;
mod replay;
mod robot;
mod serve;
mod showing;
mod sim;
mod stats;
mod teacher;
mod train;
mod train_policy;
mod train_vlm;
mod verdicts;
mod verify;
mod video;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// A VLM and VLA robotics runtime: it sees, reads an instruction and moves an arm.
#[derive(Parser)]
#[command(name = "vela", version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Demo(demo::Args),
    Eval(eval::Args),
    Sim(sim::Args),
    Act(act::Args),
    Robot(robot::Args),
    Doctor(doctor::Args),
    Record(record::Args),
    Replay(replay::Args),
    Episodes(episodes::Args),
    Train(train::Args),
    Verify(verify::Args),
    Ask(ask::Args),
    Serve(serve::Args),
    Chat(chat::Args),
    Inspect(inspect::Args),
    Quantize(quantize::Args),
    Bench(bench::Args),
}

fn main() -> ExitCode {
    // First of all, while this is the only thread: it also takes Candle's own pool out of the way.
    vela_nn::threads::set(0);
    let done = match Cli::parse().verb {
        Verb::Demo(args) => demo::run(&args),
        Verb::Eval(args) => eval::run(&args),
        Verb::Sim(args) => sim::run(&args),
        Verb::Act(args) => act::run(&args),
        Verb::Robot(args) => robot::run(&args),
        Verb::Doctor(args) => doctor::run(&args),
        Verb::Record(args) => record::run(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Episodes(args) => episodes::run(&args),
        Verb::Train(args) => train::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Ask(args) => ask::run(&args),
        Verb::Serve(args) => serve::run(&args),
        Verb::Chat(args) => chat::run(&args),
        Verb::Inspect(args) => inspect::run(&args),
        Verb::Quantize(args) => quantize::run(&args),
        Verb::Bench(args) => bench::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vela: {error:#}");
            ExitCode::FAILURE
        }
    }
}
