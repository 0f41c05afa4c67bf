//! A tiny VLM learns what it is shown, goes on where it stopped, and is a folder that any reader of its family opens.

use std::collections::HashMap;
use std::path::Path;
use vela_fusion::{Visual, Vlm};
use vela_llm::{ChatTemplate, Tokenizer};
use vela_nn::{Activation, Tensor, Weights};
use vela_train::vlm::{Album, Folder, QuestionAnswer, Spot, VlmSizes, VlmTrainConfig, VlmTrainer, tokenizer};
use vela_vision::{Picture, Pooling, Preprocessor, VisionConfig, Vit};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const EDGE: usize = 16;

/// Pictures of one colour.
struct Colours(Vec<Vec<u8>>);

impl Colours {
    fn new() -> Self {
        let plain = |rgb: [u8; 3]| rgb.repeat(EDGE * EDGE);
        Self(vec![plain([200, 20, 20]), plain([20, 20, 200]), plain([20, 200, 20])])
    }

    fn name(index: usize) -> &'static str {
        ["red", "blue", "green"][index]
    }
}

impl Album for Colours {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn picture(&self, index: usize) -> &[u8] {
        &self.0[index]
    }

    fn spots(&self, index: usize) -> Vec<Spot> {
        vec![Spot { colour: index as u32, shape: 0, held: false, at_px: [8.0, 8.0], pixels: 200 }]
    }

    fn questions(&self, index: usize, _count: usize, seed: u64) -> Vec<QuestionAnswer> {
        let asked = |kind, question: &str, answer: &str| QuestionAnswer {
            kind,
            question: question.into(),
            answer: answer.into(),
        };
        let other = Self::name((index + (seed % 3) as usize) % 3);
        let yes = if other == Self::name(index) { "yes" } else { "no" };
        vec![
            asked("colour", "what colour is it?", Self::name(index)),
            asked("is", &format!("is it {other}?"), yes),
        ]
    }

    fn texts(&self, _count: usize, _seed: u64) -> Vec<QuestionAnswer> {
        vec![QuestionAnswer { kind: "text", question: "is red a colour?".into(), answer: "yes".into() }]
    }
}

fn config() -> VlmTrainConfig {
    VlmTrainConfig {
        seed: 1,
        tower: "none".into(),
        start: None,
        episodes: 0,
        text_steps: 5,
        look_steps: 5,
        look_pictures: 2,
        dense: 0.2,
        shift_px: 1,
        steps: 300,
        pictures: 3,
        questions: 2,
        conversations: 0.3,
        learning_rate: 5e-3,
        tower_share: 0.2,
        warmup_steps: 5,
        weight_decay: 0.01,
        clip_norm: 1.0,
        ema: 0.9,
        checkpoint_every: 50,
        model: VlmSizes {
            shuffle: 2,
            width: 32,
            inner_width: 64,
            layers: 2,
            heads: 2,
            kv_heads: 1,
            head_dim: 16,
            positions: 256,
        },
    }
}

fn words() -> Result<Tokenizer, vela_nn::Error> {
    let words = "what colour is it red blue green yes no a";
    tokenizer(&words.split(' ').map(str::to_owned).collect::<Vec<_>>())
}

fn trainer() -> Result<VlmTrainer, Box<dyn std::error::Error>> {
    let tower = VisionConfig {
        image_size: EDGE,
        patch_size: 4,
        width: 16,
        inner_width: 32,
        layers: 1,
        heads: 2,
        activation: Activation::GeluTanh,
        pooling: Pooling::None,
        ..VisionConfig::default()
    };
    let weights = Weights::fresh(7);
    Vit::new(&weights.pp("vision"), &tower)?;
    let tensors: HashMap<String, Tensor> =
        weights.trainable().into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    let config = config();
    let folder = Folder::new(&tower, &config.model, &words()?)?;
    Ok(VlmTrainer::new(&config, folder, &tensors)?)
}

fn answer(dir: &Path, rgb: &[u8], question: &str) -> Result<String, Box<dyn std::error::Error>> {
    let vlm = Vlm::load(dir)?;
    let tokenizer = Tokenizer::load(&dir.join("tokenizer.json"))?;
    let template = ChatTemplate::from_dir(dir)?.ok_or("no chat template")?;
    let picture = Picture { width: EDGE, height: EDGE, rgb: rgb.to_vec() };
    let prepared = Preprocessor::load(dir)?.apply(&picture)?;
    let encoded = vlm.encode(&Visual::picture(&prepared)?)?;
    let room = vela_fusion::Room::of(&prepared, &encoded)?;
    let options = vela_llm::RenderOptions { add_generation_prompt: true, ..Default::default() };
    let text = template.render(&[vela_llm::Message::new("user", format!("<image>{question}"))], &options)?;
    let ids = tokenizer.encode_rendered(&vela_fusion::Wording::of("idefics3")?.expand(&text, &[room])?)?;
    let stop = tokenizer.id("<end_of_utterance>").ok_or("no end")?;
    Ok(tokenizer.decode(&vlm.answer(&vlm.prompt(&ids, &[encoded])?, 8, &[stop])?)?)
}

#[test]
fn a_tiny_model_learns_and_its_folder_answers() -> Outcome {
    let (mut trainer, album) = (trainer()?, Colours::new());
    let dir = tempfile::tempdir()?;
    let mut losses = Vec::new();
    let mut right = (0, 0);
    while trainer.steps() < 300 {
        let report = trainer.step(&album)?;
        losses.push(report.loss);
        if report.step > 280 {
            let answers = report.right.iter().filter(|(kind, _)| !kind.starts_with("seen"));
            right = answers.fold(right, |sum, (_, counts)| (sum.0 + counts.0, sum.1 + counts.1));
        }
    }
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    let (first, last) = (mean(&losses[10..20]), mean(&losses[280..]));
    assert!(last < 0.1 * first, "from {first} to {last}");
    assert!(right.0 * 10 >= right.1 * 9, "{right:?}");
    trainer.export(dir.path())?;
    for index in 0..3 {
        let said = answer(dir.path(), album.picture(index), "What colour is it?")?;
        assert_eq!(said, Colours::name(index));
    }
    assert_eq!(answer(dir.path(), album.picture(0), "is it blue?")?, "no");
    // Words that it does not know are read all the same.
    answer(dir.path(), album.picture(0), "wer bist Du, Räuber?")?;
    Ok(())
}

#[test]
fn a_stopped_run_goes_on_to_the_same_weights() -> Outcome {
    let album = Colours::new();
    let dir = tempfile::tempdir()?;
    let (state, one, two) = (dir.path().join("state"), dir.path().join("one"), dir.path().join("two"));
    let mut whole = trainer()?;
    for step in 0..14 {
        if step == 8 {
            whole.save(&state)?;
        }
        whole.step(&album)?;
    }
    let mut again = trainer()?;
    again.resume(&state)?;
    assert_eq!(again.steps(), 8);
    while again.steps() < 14 {
        again.step(&album)?;
    }
    whole.export(&one)?;
    again.export(&two)?;
    let bytes = |dir: &Path| std::fs::read(dir.join("model.safetensors"));
    assert_eq!(bytes(&one)?, bytes(&two)?);
    Ok(())
}
