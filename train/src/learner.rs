//! Variables with what training keeps beside them: the optimiser's moments, running averages, the count of steps. One file
//! holds it all, so that a run resumes bit for bit.

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use vela_nn::{AdamW, AdamWConfig, Device, Gradients, Tensor, Var};

/// Variables that learn at one rate.
struct Group {
    vars: Vec<(String, Var)>,
    optimizer: AdamW,
    /// Of the step's learning rate.
    share: f64,
}

/// Variables in training, in groups that learn at rates of their own and not at every step.
pub struct Learner {
    groups: Vec<Group>,
    /// Averaged values, in the order of the groups' variables.
    average: Vec<Vec<f32>>,
    step: usize,
}

impl Learner {
    /// Groups of variables, each with its share of the learning rate. Starts with zero moments; the averages are the values
    /// themselves.
    pub fn new(groups: Vec<(Vec<(String, Var)>, f64)>, config: AdamWConfig) -> Result<Self> {
        let group = |(vars, share): (Vec<(String, Var)>, f64)| Group {
            optimizer: AdamW::new(vars.clone(), config),
            vars,
            share,
        };
        let groups: Vec<Group> = groups.into_iter().map(group).collect();
        let all = groups.iter().flat_map(|group| &group.vars);
        let average = all.map(|(_, var)| flat(var.as_tensor())).collect::<Result<_>>()?;
        Ok(Self { groups, average, step: 0 })
    }

    /// The variables of the groups of these numbers (rising), in the order of the gradients that [`Self::step`] expects.
    pub fn vars(&self, groups: &[usize]) -> Vec<(String, Var)> {
        groups.iter().filter_map(|k| self.groups.get(*k)).flat_map(|group| group.vars.clone()).collect()
    }

    fn all(&self) -> impl Iterator<Item = &(String, Var)> {
        self.groups.iter().flat_map(|group| &group.vars)
    }

    /// Steps so far.
    pub fn steps(&self) -> usize {
        self.step
    }

    /// One step of the groups of these numbers; the averages keep `ema` of themselves. Gradients are clipped by group. Returns
    /// their norm before clipping.
    ///
    /// # Errors
    /// A loss that is not finite: nothing has changed then. A gradient that is not.
    pub fn step(
        &mut self,
        groups: &[usize],
        gradients: Gradients,
        learning_rate: f64,
        ema: f64,
    ) -> Result<f32> {
        let Gradients { loss, values } = gradients;
        if !loss.is_finite() {
            return Err(Error::Diverged(self.step));
        }
        let (mut values, mut norm) = (values.into_iter(), 0f32);
        for k in groups {
            let Some(group) = self.groups.get_mut(*k) else { continue };
            let own = Gradients { loss, values: values.by_ref().take(group.vars.len()).collect() };
            norm = norm.hypot(group.optimizer.step(&own, (learning_rate * group.share) as f32)?);
        }
        self.step += 1;
        // The average starts short, so that it forgets the beginning.
        let decay = ema.min((1.0 + self.step as f64) / (10.0 + self.step as f64)) as f32;
        let vars = self.groups.iter().flat_map(|group| &group.vars);
        for (average, (_, var)) in self.average.iter_mut().zip(vars) {
            for (a, x) in average.iter_mut().zip(flat(var.as_tensor())?) {
                *a += (1.0 - decay) * (x - *a);
            }
        }
        Ok(norm)
    }

    /// Gives variables new values, and their averages with them; moments and steps stay.
    pub fn set(&mut self, values: &[(usize, Tensor)]) -> Result<()> {
        for (k, tensor) in values {
            let var = self.all().nth(*k).map(|(_, var)| var.clone());
            if let (Some(var), Some(average)) = (var, self.average.get_mut(*k)) {
                var.set(tensor)?;
                *average = flat(tensor)?;
            }
        }
        Ok(())
    }

    /// The averages, by the variables' names.
    pub fn averaged(&self) -> Result<Vec<(String, Tensor)>> {
        let one = |((name, var), average): (&(String, Var), &Vec<f32>)| {
            let tensor = Tensor::from_slice(average, var.as_tensor().shape(), &Device::Cpu)?;
            Ok((name.clone(), tensor))
        };
        self.all().zip(&self.average).map(one).collect()
    }

    /// Writes everything that resuming needs: one file, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for ((name, var), (_, average)) in self.all().zip(self.averaged()?) {
            tensors.push((format!("weight.{name}"), var.as_tensor().clone()));
            tensors.push((format!("average.{name}"), average));
        }
        for (k, group) in self.groups.iter().enumerate() {
            let state = group.optimizer.state()?;
            tensors.extend(state.into_iter().map(|(name, tensor)| (format!("optimizer{k}.{name}"), tensor)));
        }
        tensors.push(("step".into(), Tensor::new(&[self.step as f32], &Device::Cpu)?));
        Ok(vela_nn::save(path, &tensors)?)
    }

    /// Takes up training where [`Self::save`] left it.
    ///
    /// # Errors
    /// A torn file, or one of another model.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu)?;
        let missing = |name: &str| Error::Parse {
            what: path.display().to_string(),
            why: format!("tensor '{name}' is missing or has another shape"),
        };
        let get = |name: String, like: &Tensor| -> Result<Tensor> {
            let found = tensors.get(&name).filter(|t| t.shape() == like.shape());
            found.cloned().ok_or_else(|| missing(&name))
        };
        let mut average = Vec::with_capacity(self.average.len());
        for (name, var) in self.all() {
            var.set(&get(format!("weight.{name}"), var.as_tensor())?)?;
            average.push(flat(&get(format!("average.{name}"), var.as_tensor())?)?);
        }
        for (k, group) in self.groups.iter_mut().enumerate() {
            let start = format!("optimizer{k}.");
            let state: HashMap<String, Tensor> = tensors
                .iter()
                .filter_map(|(name, t)| Some((name.strip_prefix(&start)?.to_owned(), t.clone())))
                .collect();
            group.optimizer.load_state(&state)?;
        }
        self.average = average;
        let step = tensors.get("step").ok_or_else(|| missing("step"))?.to_vec1::<f32>()?;
        self.step = step.first().copied().ok_or_else(|| missing("step"))? as usize;
        Ok(())
    }
}

fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}
