//! How far the actions of a published shape, or of a folder, move when its matrices are kept in fewer bits:
//! `action_error smolvla|DIR [VIEWS]`. Weights of a shape are made up.

use std::path::Path;
use vela_nn::{Error, Result, Tensor};
use vela_policy::quantised::ActionError;
use vela_policy::stages::{Setting, of_arch, of_folder};
use vela_policy::{Storage, arch};

fn main() -> Result<()> {
    vela_nn::threads::set(0);
    let args: Vec<String> = std::env::args().skip(1).collect();
    let name = args.first().ok_or_else(|| Error::invalid("expected a shape or a folder"))?;
    let views = args.get(1).map(|n| n.parse().map_err(Error::invalid)).transpose()?;
    let actions = |storage| -> Result<Tensor> {
        let setting = Setting { views, storage, ..Setting::default() };
        let mut run = match arch::KNOWN.contains(&name.as_str()) {
            true => of_arch(name, &setting)?,
            false => of_folder(Path::new(name), &setting)?,
        };
        run.see()?;
        run.read()?;
        run.answer()
    };
    let want = actions(Storage::Float32)?;
    for storage in [Storage::Bf16, Storage::Int8] {
        let error = ActionError::between(&want, &actions(storage)?)?;
        println!("{}: {:.3} % rms, {:.3} % worst", storage.name(), error.rms * 100.0, error.worst * 100.0);
    }
    Ok(())
}
