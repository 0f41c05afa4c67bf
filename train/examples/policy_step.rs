//! The training step of the policy that ships, for `benches/train_step/torch_policy.py`, which does the same in PyTorch.
//!
//! `policy_step RUN.toml POLICY LESSONS KIND OUT STEPS`: begins with the weights of a policy folder and writes them, what the
//! next STEPS steps read, and the weights after those, to the folder OUT; a JSON line for each step. From then on each line of
//! its input is a number of threads and asks for a step more. KIND is the part that learns: `tower`, `rest` (the tower frozen)
//! or `all`.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;
use vela_embodiment::Embodiment;
use vela_llm::Tokenizer;
use vela_nn::{Tensor, threads};
use vela_policy::VlaPolicy;
use vela_train::batch::Lot;
use vela_train::{Lesson, Library, TrainConfig, Trainer};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, policy, lessons, kind, out, steps] = arguments.as_slice() else {
        return Err("usage: policy_step RUN.toml POLICY LESSONS tower|rest|all OUT STEPS".into());
    };
    let (policy, out) = (Path::new(policy), Path::new(out));
    threads::set(0);
    let mut config = TrainConfig::load(Path::new(run))?;
    (config.vision_steps, config.frozen_steps) = match kind.as_str() {
        "tower" => (usize::MAX, 0),
        "rest" => (0, usize::MAX),
        "all" => (0, 0),
        other => return Err(format!("{other}: expected tower, rest or all").into()),
    };
    let library = library(Path::new(lessons))?;
    let vla = VlaPolicy::load(policy)?.config().clone();
    let tokenizer = Tokenizer::load(&policy.join("tokenizer.json"))?;
    let mut trainer = Trainer::new(&config, &vla, &tokenizer, &Embodiment::so101()?)?;
    trainer.start_from(policy)?;
    trainer.save(&out.join("start.safetensors"))?;
    for step in 0..steps.parse()? {
        let lots = trainer.lots(&library)?;
        let tensors: Vec<(String, Tensor)> =
            lots.iter().enumerate().map(named).collect::<Result<Vec<_>, _>>()?.concat();
        vela_nn::save(&out.join(format!("lots.{step}.safetensors")), &tensors)?;
        println!("{}", serde_json::to_string(&trainer.step(&library)?)?);
    }
    trainer.save(&out.join("end.safetensors"))?;
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        let count: usize = line?.trim().parse()?;
        let start = Instant::now();
        let report = threads::with_threads(count, || trainer.step(&library))?;
        let ms = 1e3 * start.elapsed().as_secs_f64();
        println!("{{\"threads\": {count}, \"step_ms\": {ms:.2}, \"loss\": {}}}", report.loss);
    }
    Ok(())
}

/// Every lesson in a folder, as experts' lessons.
fn library(dir: &Path) -> Result<Library, Box<dyn Error>> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    paths.sort();
    let mut library = Library::default();
    for path in paths {
        library.add_expert(Lesson::load(&path)?);
    }
    Ok(library)
}

/// The tensors of one shard, by name.
fn named((shard, lot): (usize, &Lot)) -> vela_nn::Result<Vec<(String, Tensor)>> {
    let (inputs, labels) = (&lot.inputs, &lot.labels);
    let valid: Vec<u8> = inputs.word_valid.iter().map(|real| u8::from(*real)).collect();
    let valid = Tensor::from_vec(valid, inputs.words.shape(), inputs.words.device())?;
    let all = [
        ("frames", &inputs.frames),
        ("words", &inputs.words),
        ("word_valid", &valid),
        ("state", &inputs.state),
        ("actions", &lot.actions),
        ("noise", &lot.noise),
        ("times", &lot.times),
        ("patches", &labels.patches),
        ("offsets", &labels.offsets),
        ("offset_mask", &labels.offset_mask),
        ("grounding", &labels.grounding),
        ("positions", &labels.positions),
        ("position_mask", &labels.position_mask),
    ];
    Ok(all.into_iter().map(|(name, tensor)| (format!("{shard}.{name}"), tensor.clone())).collect())
}
