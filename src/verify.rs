//! `vela verify`: a checkpoint against a reference run, stage by stage.

use anyhow::{Result, bail};
use std::path::PathBuf;
use vela_nn::parity::BOUND;
use vela_policy::verify;

/// Compare a checkpoint with a reference run stage by stage; fails if a stage differs or is left out.
#[derive(clap::Args)]
pub struct Args {
    /// The checkpoint: a Hugging Face or LeRobot folder.
    dir: PathBuf,
    /// The reference run: a safetensors file with `in.*` and `out.*`, or a folder with golden.safetensors.
    golden: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<()> {
    let verdict = verify(&args.dir, &args.golden)?;
    if args.json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        println!("{:<44} {:>12} {:>12}  pass", "stage", "max|d|/std", "cosine");
        for stage in &verdict.stages {
            let mark = if stage.pass { "yes" } else { "NO" };
            println!(
                "{:<44} {:>12.2e} {:>12.8}  {mark}",
                stage.name, stage.max_abs_over_spread, stage.cosine
            );
        }
        println!("{} of {} outputs compared; bound {BOUND:.0e}", verdict.stages.len(), verdict.present);
    }
    if !verdict.left_out.is_empty() {
        bail!("not compared: {}", verdict.left_out.join(", "));
    }
    if !verdict.pass {
        let failed: Vec<_> = verdict.stages.iter().filter(|s| !s.pass).map(|s| s.name.as_str()).collect();
        bail!("differs from the reference: {}", failed.join(", "));
    }
    Ok(())
}
