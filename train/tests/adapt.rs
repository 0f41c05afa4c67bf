//! Projector and adapter between parts that stay as they are: what they read, that they learn, and that what is written
//! down is the same model to whoever opens it.

mod tiny_vlm;

use std::path::Path;
use tiny_vlm::{Outcome, run, write_parts, write_questions};
use vela_fusion::{ChatModel, Part, PictureLimits, Turn, Vlm};
use vela_llm::engine::PromptItem;
use vela_llm::{Cache, RenderOptions};
use vela_nn::{D, Device, Mask, Tensor, Weights, cross_entropy};
use vela_train::adapt::{AdaptReport, Adaptation, Features, Parts, PictureSet};
use vela_train::vlm::QuestionAnswer;

struct Bench {
    dir: tempfile::TempDir,
    set: PictureSet,
}

impl Bench {
    fn new() -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        write_parts(&dir.path().join("parts"))?;
        write_questions(&dir.path().join("data"))?;
        let set = PictureSet::load(&dir.path().join("data"), "train")?;
        Ok(Self { dir, set })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn adaptation(&self) -> Outcome<Adaptation> {
        Ok(Adaptation::new(&run(&self.path().join("parts"), &self.path().join("data")), &self.set)?)
    }

    fn features(&self, adaptation: &Adaptation) -> Outcome<Features> {
        Ok(Features::of(adaptation.parts(), &self.set, &self.path().join("features.safetensors"), &|| {})?)
    }

    /// Trained to the end.
    fn trained(&self) -> Outcome<(Adaptation, Features, Vec<AdaptReport>)> {
        let mut adaptation = self.adaptation()?;
        let features = self.features(&adaptation)?;
        let reports = (0..150).map(|_| adaptation.step(&self.set, &features)).collect::<Result<_, _>>()?;
        Ok((adaptation, features, reports))
    }

    /// A folder of the whole model.
    fn exported(&self, adaptation: &Adaptation) -> Outcome<std::path::PathBuf> {
        let dir = self.path().join("model");
        write_parts(&dir)?;
        adaptation.export(&dir)?;
        Ok(dir)
    }
}

fn tokens(adaptation: &Adaptation, features: &Features, picture: usize) -> Outcome<Tensor> {
    Ok(adaptation.parts().vlm.projector().forward(&features.get(picture)?)?.squeeze(0)?)
}

#[test]
fn questions_that_share_a_picture_lose_as_much_as_one_by_one() -> Outcome {
    let bench = Bench::new()?;
    let (adaptation, features, _) = bench.trained()?;
    let asked: Vec<&QuestionAnswer> = bench.set.pictures[1].asked.iter().collect();
    for lora in [None, Some(adaptation.lora())] {
        let loss = |asked: &[&QuestionAnswer]| -> Outcome<f32> {
            let (loss, _) = adaptation.answers(asked, tokens(&adaptation, &features, 1)?, lora)?;
            Ok(loss.to_scalar::<f32>()?)
        };
        let together = loss(&asked)?;
        // Every answer is a word and its end.
        let apart = asked.iter().map(|one| loss(&[one])).sum::<Outcome<f32>>()? / asked.len() as f32;
        assert!((together - apart).abs() < 1e-5, "{together} {apart}");
    }
    Ok(())
}

#[test]
fn features_on_disk_are_the_towers() -> Outcome {
    let bench = Bench::new()?;
    let adaptation = bench.adaptation()?;
    let (made, read) = (bench.features(&adaptation)?, bench.features(&adaptation)?);
    for (i, picture) in bench.set.pictures.iter().enumerate() {
        let seen = adaptation.parts().look(&picture.path)?;
        assert_eq!(seen.dims(), [16, 16]);
        let most = seen.abs()?.max_all()?.to_scalar::<f32>()?;
        for kept in [&made, &read] {
            let off = (kept.get(i)?.squeeze(0)? - &seen)?.abs()?.max_all()?.to_scalar::<f32>()?;
            assert!(off <= most / 1024.0, "{off} of {most}");
        }
    }
    let fewer = PictureSet { pictures: bench.set.pictures[..2].to_vec() };
    let path = bench.path().join("features.safetensors");
    let refused = Features::of(adaptation.parts(), &fewer, &path, &|| {});
    assert!(refused.is_err_and(|e| e.to_string().contains("expected the features of 2 pictures")));
    Ok(())
}

#[test]
fn it_learns_and_goes_on_where_it_stopped() -> Outcome {
    let bench = Bench::new()?;
    let (whole, features, reports) = bench.trained()?;
    let share = |reports: &[AdaptReport]| -> f64 {
        let counts = reports.iter().flat_map(|report| report.right.values());
        let (right, all) = counts.fold((0, 0), |sum, (right, all)| (sum.0 + right, sum.1 + all));
        right as f64 / all as f64
    };
    assert!(
        reports[29].loss < 0.5 * reports[0].loss,
        "named words: {} {}",
        reports[0].loss,
        reports[29].loss
    );
    assert!(share(&reports[140..]) > 0.95, "{}", share(&reports[140..]));
    let mut part = bench.adaptation()?;
    for _ in 0..70 {
        part.step(&bench.set, &features)?;
    }
    let state = bench.path().join("state.safetensors");
    part.save(&state)?;
    let mut rest = bench.adaptation()?;
    rest.resume(&state)?;
    assert_eq!(rest.steps(), 70);
    for report in &reports[70..] {
        assert_eq!(&rest.step(&bench.set, &features)?, report);
    }
    assert_eq!(whole.steps(), rest.steps());
    std::fs::write(&state, b"torn")?;
    assert!(bench.adaptation()?.resume(&state).is_err());
    Ok(())
}

#[test]
fn what_is_exported_answers_as_what_was_trained() -> Outcome {
    let bench = Bench::new()?;
    let (adaptation, features, _) = bench.trained()?;
    let vlm = Vlm::load(&bench.exported(&adaptation)?)?;
    let parts = Parts::load(&bench.path().join("parts"), &Weights::fresh(1))?;
    for (i, picture) in bench.set.pictures.iter().enumerate() {
        for asked in &picture.asked {
            let shown = tokens(&adaptation, &features, i)?;
            let (loss, right) = adaptation.answers(&[asked], shown.clone(), Some(adaptation.lora()))?;
            let written = parts.ask(&asked.question, &asked.answer, shown.dim(0)?)?;
            let seen = vela_fusion::Encoded { tokens: shown.detach(), video: false, span: None };
            // The same by the folder, from the prompt's last token on.
            let ids = [&written.prompt[..], &written.answer].concat();
            let embeds = vlm.embed(&ids, &[seen])?;
            let positions = Tensor::arange(0, ids.len() as u32, &Device::Cpu)?;
            let decoder = vlm.decoder()?;
            let hidden = decoder.forward(&embeds, &positions, &Mask::Causal, &mut Cache::new())?;
            let (from, count) = (written.prompt.len() - 1, written.answer.len());
            let logits =
                decoder.logits(&decoder.normalise(&hidden.narrow(1, from, count)?.contiguous()?)?)?;
            let logits = logits.squeeze(0)?;
            let targets = Tensor::from_slice(&written.answer, count, &Device::Cpu)?;
            let again = cross_entropy(&logits, &targets, None)?.to_scalar::<f32>()?;
            let loss = loss.to_scalar::<f32>()?;
            assert!((loss - again).abs() < 0.01 * (1.0 + loss), "{loss} {again}");
            assert_eq!(logits.argmax(D::Minus1)?.to_vec1::<u32>()? == written.answer, right[0].1);
        }
    }
    Ok(())
}

#[test]
fn training_writes_a_question_as_the_server_does() -> Outcome {
    let bench = Bench::new()?;
    let dir = bench.exported(&bench.adaptation()?)?;
    let (model, parts) = (ChatModel::load(&dir, 1 << 20)?, Parts::load(&dir, &Weights::fresh(1))?);
    let seen = model.look(&std::fs::read(&bench.set.pictures[0].path)?, &PictureLimits::default())?;
    for question in ["is it red?", "what color is it?"] {
        let turn = Turn {
            role: "user".into(),
            parts: vec![Part::Picture(seen.clone()), Part::Text(question.into())],
            ..Turn::default()
        };
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let mut served: Vec<u32> = Vec::new();
        for item in model.prompt(&[turn], &options)?.items {
            match item {
                PromptItem::Token(id) => served.push(id),
                PromptItem::Embeds { rows, .. } => {
                    served.extend(std::iter::repeat_n(parts.vlm.config().image_token, rows.dim(0)?));
                }
            }
        }
        let asked = parts.ask(question, "yes", seen.room.tokens)?;
        assert_eq!(asked.prompt, served);
        assert!(asked.answer.len() == 2 && model.stop().contains(&asked.answer[1]));
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_refused() -> Outcome {
    let bench = Bench::new()?;
    let parts = bench.path().join("parts");
    let mut config = run(&parts, &bench.path().join("data"));
    config.adapter.targets = vec!["w_proj".into()];
    let refused = Adaptation::new(&config, &bench.set).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(refused.contains("no matrix called w_proj"), "{refused}");
    let missing = PictureSet::load(&bench.path().join("data"), "validation");
    assert!(missing.is_err_and(|e| e.to_string().contains("questions.json")));
    std::fs::write(bench.path().join("data/test/questions.json"), "[[1, 2]]")?;
    let odd = PictureSet::load(&bench.path().join("data"), "test");
    assert!(odd.is_err_and(|e| e.to_string().contains("expected a list of [question, answer")));
    Ok(())
}

#[test]
fn without_looking_the_commonest_answer_is_given() -> Outcome {
    let bench = Bench::new()?;
    let blind = bench.set.blind();
    let answer = |question: &str| blind.get(question).copied();
    assert_eq!(answer("is it red?"), Some("no"));
    assert_eq!(answer("is it not blue?"), Some("yes"));
    assert_eq!(answer("what color is it?"), Some("blue"));
    assert_eq!(bench.set.questions(), 9);
    assert_eq!(bench.set.pictures[2].named(), ["green"]);
    Ok(())
}
