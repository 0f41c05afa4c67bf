//! Texts that end an answer, however they are spread over tokens.

/// Watches a text for stop strings; holds back what may be the beginning of one.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for these; empty ones are left out.
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// More text: what may be given out, and whether a stop string has come. Nothing after it counts.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let may_begin = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let keep = self
            .held
            .char_indices()
            .map(|(at, _)| at)
            .filter(|at| *at >= from)
            .find(|at| self.held.get(*at..).is_some_and(may_begin))
            .unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The text has ended: what was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut watch = StopStrings::new(&stops);
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = watch.push(piece);
            out.push(text);
            if stopped {
                return (out, true, watch.finish());
            }
        }
        (out, false, watch.finish())
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_found_and_never_shown() {
        let (out, stopped, rest) = feed(&["\nUser:"], &["Hi", "\n", "Us", "er", ": more"]);
        assert_eq!((out.concat().as_str(), stopped, rest.as_str()), ("Hi", true, ""));
        let (out, stopped, rest) = feed(&["\nUser:"], &["Hi", "\n", "Us", "ing é", "\nU"]);
        assert_eq!((out.concat().as_str(), stopped, rest.as_str()), ("Hi\nUsing é", false, "\nU"));
        // The earliest of several counts, and what cannot become a stop string is given out at once.
        let (out, stopped, _) = feed(&["b", "ab"], &["xab"]);
        assert_eq!((out.concat().as_str(), stopped), ("x", true));
        assert_eq!(feed(&["é!"], &["aé", "?"]).0, ["a", "é?"]);
        assert_eq!(feed(&[""], &["plain"]).0, ["plain"]);
    }
}
