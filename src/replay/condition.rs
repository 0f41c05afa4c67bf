//! When a replay counts as failed: `mae>0.05`.

use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::str::FromStr;

/// A figure, a comparison and a number.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    text: String,
    figure: String,
    comparison: Comparison,
    number: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Above,
    AtLeast,
    Below,
    AtMost,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("expected a condition like mae>0.05 (>, >=, < or <=), got '{text}'");
        let place = text.find(['<', '>']).ok_or_else(wrong)?;
        let (figure, rest) = text.split_at(place);
        let comparison = match (rest.starts_with('>'), rest[1..].starts_with('=')) {
            (true, false) => Comparison::Above,
            (true, true) => Comparison::AtLeast,
            (false, false) => Comparison::Below,
            (false, true) => Comparison::AtMost,
        };
        let number = rest[1..].trim_start_matches('=').trim().parse::<f64>().map_err(|_| wrong())?;
        let figure = figure.trim().to_owned();
        if figure.is_empty() || !number.is_finite() {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), figure, comparison, number })
    }
}

impl Condition {
    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The figure's value when the condition holds.
    ///
    /// # Errors
    /// There is no such figure, or nothing was compared.
    pub fn holds(&self, figures: &BTreeMap<String, f64>) -> Result<Option<f64>> {
        let Some(value) = figures.get(&self.figure) else {
            let known = figures.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            bail!("--fail-if {}: unknown figure '{}'; known: {known}", self.text, self.figure);
        };
        if !value.is_finite() {
            bail!("--fail-if {}: nothing was compared, so there is no '{}'", self.text, self.figure);
        }
        let holds = match self.comparison {
            Comparison::Above => *value > self.number,
            Comparison::AtLeast => *value >= self.number,
            Comparison::Below => *value < self.number,
            Comparison::AtMost => *value <= self.number,
        };
        Ok(holds.then_some(*value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_holds_or_not_and_bad_ones_are_refused() -> Result<()> {
        let figures = BTreeMap::from([("mae".to_owned(), 0.05), ("max".to_owned(), f64::NAN)]);
        for (text, holds) in
            [("mae>0.05", false), ("mae >= 0.05", true), ("mae<0.06", true), ("mae<=0.01", false)]
        {
            let condition: Condition = text.parse().map_err(anyhow::Error::msg)?;
            assert_eq!(condition.holds(&figures)?.is_some(), holds, "{text}");
        }
        for wrong in ["", "mae", "mae=3", ">3", "mae>x", "mae>>1", "mae>inf"] {
            assert!(wrong.parse::<Condition>().is_err(), "{wrong}");
        }
        for text in ["max>1", "mea>1"] {
            let condition: Condition = text.parse().map_err(anyhow::Error::msg)?;
            assert!(condition.holds(&figures).is_err(), "{text}");
        }
        Ok(())
    }
}
