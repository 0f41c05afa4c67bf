//! LeRobot datasets with pictures and with video (AV1, H.264): the first byte says which file of which sound dataset is
//! replaced by the rest.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use vela_episodes::{Dataset, check};

/// A copy of a sound dataset and its files, with what they hold.
struct Sound {
    folder: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

static SOUND: LazyLock<Vec<Sound>> = LazyLock::new(|| {
    // The readers of outside crates panic; ours catches that, and a fuzzer that ends there would never get to ours.
    std::panic::set_hook(Box::new(|panic| {
        let ours = panic.location().is_some_and(|place| place.file().contains("episodes/src"));
        if ours {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
    ["lerobot_v21", "lerobot_v30", "lerobot_v21_av1", "lerobot_v30_av1", "lerobot_v30_h264"]
        .iter()
        .map(|name| {
            let folder = std::env::temp_dir().join(format!("vela-fuzz-{}-{name}", std::process::id()));
            let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(name);
            let mut files = Vec::new();
            copy(&golden, &folder, &mut files).expect("a copy of the golden dataset");
            files.sort();
            Sound { folder, files }
        })
        .collect()
});

fn copy(from: &Path, to: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (from, to) = (entry.as_ref().map(|e| e.path()), to);
        let from = from.map_err(|e| std::io::Error::other(e.to_string()))?;
        let to = to.join(from.file_name().unwrap_or_default());
        if from.is_dir() {
            copy(&from, &to, files)?;
        } else if from.extension().is_none_or(|ending| ending != "rgb") {
            // The decoded pictures beside the videos are not of the dataset.
            let bytes = std::fs::read(&from)?;
            std::fs::write(&to, &bytes)?;
            files.push((to, bytes));
        }
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, rest)) = bytes.split_first() else { return };
    let which = usize::from(*which);
    let sound = &SOUND[which % SOUND.len()];
    let (path, whole) = &sound.files[which / SOUND.len() % sound.files.len()];
    std::fs::write(path, rest).expect("writing the copy");
    if let Ok(dataset) = Dataset::open(&sound.folder) {
        let _ = check::check(&dataset, &mut || ());
        for index in 0..dataset.len().min(4) {
            let _ = dataset.episode(index);
        }
    }
    std::fs::write(path, whole).expect("mending the copy");
});
