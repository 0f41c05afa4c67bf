//! Tokenizers from GGUF vocabularies against llama.cpp's own expectations: `cargo run --example vocabulary DIR`, where DIR
//! has `ggml-vocab-*.gguf` with `.inp` and `.out` beside them (llama.cpp's `models/`).

use std::path::Path;
use vela_llm::Tokenizer;
use vela_nn::{Error, Gguf, Result};

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_path_buf(), source })
}

/// Texts that agree, of how many, and the first that does not.
fn compare(path: &Path) -> Result<(usize, usize, String)> {
    let tokenizer = Tokenizer::from_gguf(Gguf::open(path)?.metadata())?;
    let beside = |end: &str| read(Path::new(&format!("{}{end}", path.display())));
    let (texts, wanted) = (beside(".inp")?, beside(".out")?);
    let (mut same, mut all, mut first) = (0, 0, String::new());
    for (text, line) in texts.split("\n__ggml_vocab_test__\n").zip(wanted.lines()) {
        let wanted: Vec<u32> = line.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        let got = tokenizer.encode_rendered(text)?;
        all += 1;
        if got == wanted {
            same += 1;
        } else if first.is_empty() {
            first = format!("{text:?}: expected {wanted:?}, got {got:?}");
        }
    }
    Ok((same, all, first))
}

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let entries = std::fs::read_dir(&dir).map_err(|source| Error::Io { path: dir.into(), source })?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "gguf"));
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match compare(&path) {
            Ok((same, all, first)) => println!("{name}: {same} of {all} {first}"),
            Err(error) => println!("{name}: {error}"),
        }
    }
    Ok(())
}
