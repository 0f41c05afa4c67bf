//! Constrained decoding: whatever the model wants, what comes out satisfies the schema or the expression.

use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use vela_llm::{Constraint, Grammars, Sampler, SamplingParams, Tokenizer};
use vela_nn::{Error, Result, random};

const END: u32 = 2;

fn tokenizer() -> Result<Tokenizer> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tokenizer_smollm2");
    Tokenizer::load(&dir.join("tokenizer.json"))
}

/// A model that wants anything: random logits, every token of a padded vocabulary.
fn babble(
    tokenizer: &Tokenizer,
    mut constraint: Constraint,
    seed: u64,
    most: usize,
) -> Result<Option<String>> {
    let mut sampler = Sampler::new(&SamplingParams { temperature: 1.0, ..Default::default() }, seed)?;
    let mut ids = Vec::new();
    for step in 0..most {
        let noise = random::normal(seed, &format!("logits {step}"), tokenizer.vocab_size() + 7)?;
        // Sharp enough that some tokens are wanted badly.
        let mut logits = (noise * 4.0)?.to_vec1::<f32>()?;
        constraint.restrict(&mut logits)?;
        let token = sampler.next(&mut logits, &ids)?.token;
        if token == END {
            break;
        }
        ids.push(token);
        constraint.advance(token)?;
        if constraint.is_complete() {
            break;
        }
    }
    let whole = constraint.is_complete() || constraint.may_end();
    if whole { tokenizer.decode_all(&ids).map(Some) } else { Ok(None) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grasp {
    object: Object,
    score: u8,
    path: Vec<Point>,
    note: Option<String>,
}

#[derive(Deserialize, PartialEq, Debug)]
#[serde(rename_all = "lowercase")]
enum Object {
    Cube,
    Ball,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    // JSON's -0 is a whole number too.
    x: f64,
    #[serde(rename = "ok")]
    _ok: bool,
}

fn schema() -> Value {
    json!({
        "type": "object", "additionalProperties": false, "required": ["object", "score", "path"],
        "properties": {
            "object": {"enum": ["cube", "ball"]},
            "score": {"type": "integer", "minimum": 3, "maximum": 42},
            "path": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/point"}},
            "note": {"type": "string", "maxLength": 6}
        },
        "$defs": {"point": {"type": "object", "additionalProperties": false, "required": ["x", "ok"],
            "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 99}, "ok": {"type": "boolean"}}}}
    })
}

#[test]
fn random_logits_under_a_schema_always_give_json_that_satisfies_it() -> Result<()> {
    let tokenizer = tokenizer()?;
    let grammars = Grammars::new(&tokenizer, tokenizer.vocab_size() + 7, &[END])?;
    let constraint = grammars.json_schema(&schema())?;
    let mut notes = 0;
    for seed in 0..40 {
        let text = babble(&tokenizer, constraint.clone(), seed, 120)?
            .ok_or_else(|| Error::invalid(format!("seed {seed}: unfinished")))?;
        let made: Grasp = serde_json::from_str(&text).map_err(|e| Error::parse(&text, e))?;
        assert!((3..=42).contains(&made.score) && (1..=2).contains(&made.path.len()), "{text}");
        assert!(made.note.as_ref().is_none_or(|note| note.chars().count() <= 6), "{text}");
        assert!(made.path.iter().all(|point| point.x.fract() == 0.0 && (-9.0..=99.0).contains(&point.x)));
        assert!([Object::Cube, Object::Ball].contains(&made.object));
        notes += usize::from(made.note.is_some());
    }
    assert!(notes > 0, "optional fields are possible too");
    Ok(())
}

#[test]
fn random_logits_under_an_expression_always_match_it() -> Result<()> {
    let tokenizer = tokenizer()?;
    let grammars = Grammars::new(&tokenizer, tokenizer.vocab_size() + 7, &[END])?;
    let constraint = grammars.regex("(yes|no), [0-9]{1,3} (café|thé)!")?;
    for seed in 0..40 {
        let text = babble(&tokenizer, constraint.clone(), seed, 60)?
            .ok_or_else(|| Error::invalid(format!("seed {seed}: unfinished")))?;
        let rest = text.strip_prefix("yes, ").or(text.strip_prefix("no, ")).unwrap_or_default();
        let (number, drink) = rest.split_once(' ').unwrap_or_default();
        let number_fits = (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        assert!(number_fits && ["café!", "thé!"].contains(&drink), "{text}");
    }
    Ok(())
}

#[test]
fn invalid_schemas_and_expressions_are_one_clear_error_each() -> Result<()> {
    let tokenizer = tokenizer()?;
    let grammars = Grammars::new(&tokenizer, tokenizer.vocab_size(), &[END])?;
    let schema = |value: Value| {
        grammars.json_schema(&value).err().map(|e| e.to_string()).unwrap_or_else(|| "accepted".into())
    };
    assert_eq!(schema(json!([1])), "JSON schema: expected an object, got a list");
    for wrong in [
        json!({"type": "teapot"}),
        json!({"type": 7}),
        json!({"$ref": "#/$defs/absent"}),
        json!({"type": "integer", "minimum": 5, "maximum": 2}),
        json!({"type": "string", "pattern": "("}),
        json!({"properties": 3}),
    ] {
        let said = schema(wrong.clone());
        assert!(said.starts_with("JSON schema: ") && !said.contains('\n'), "{wrong}: {said}");
    }
    for wrong in ["(", "[z-a]", "a{9,1}"] {
        let said = grammars.regex(wrong).err().map(|e| e.to_string()).unwrap_or_else(|| "accepted".into());
        assert!(said.starts_with("regular expression: ") && !said.contains('\n'), "{wrong}: {said}");
    }
    assert!(Grammars::new(&tokenizer, 100, &[]).is_err());
    let mut constraint = grammars.regex("[0-9]")?;
    assert!(constraint.advance(tokenizer.id("Hello").unwrap_or(0)).is_err());
    Ok(())
}
