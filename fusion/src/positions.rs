//! Where the tokens of a prompt are along time, rows and columns: Qwen2-VL's M-RoPE (Wang et al. 2024,
//! <https://arxiv.org/abs/2409.12191>).

use vela_nn::{Error, Result};

/// A picture or video in the prompt, in merged tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// Steps of time, rows and columns.
    pub grid: [usize; 3],
    /// What a step of time counts.
    pub step: f64,
}

/// Time, row and column of each token, and the number at which an answer goes on: above the largest. Text counts on all three
/// alike; a span counts along its grid from where the text before it ends, and the text after it goes on above the largest row
/// or column (not above the time: the reference's own rule). `images` and `videos` come in the order of their placeholders.
///
/// # Errors
/// Placeholders that the spans do not fill, or spans without.
pub fn axes(
    ids: &[u32],
    (image, images): (u32, &[Span]),
    (video, videos): (Option<u32>, &[Span]),
) -> Result<(Vec<[u32; 3]>, u32)> {
    let (mut images, mut videos) = (images.iter(), videos.iter());
    let (mut places, mut next, mut at) = (Vec::with_capacity(ids.len()), 0, 0);
    while at < ids.len() {
        let span = match ids[at] {
            id if id == image => images.next(),
            id if Some(id) == video => videos.next(),
            _ => {
                places.push([next; 3]);
                next += 1;
                at += 1;
                continue;
            }
        };
        let nothing =
            || Error::invalid(format!("prompt: a placeholder at {at} and no picture or video for it"));
        let Span { grid: [steps, rows, columns], step } = *span.ok_or_else(nothing)?;
        let count = steps * rows * columns;
        if count == 0 || ids.len() < at + count || ids[at..at + count].iter().any(|id| *id != ids[at]) {
            return Err(Error::invalid(format!("prompt: expected {count} placeholders from {at} on")));
        }
        for i in 0..count {
            let time = ((i / (rows * columns)) as f64 * step) as u32;
            places.push([time, (i / columns % rows) as u32, (i % columns) as u32].map(|x| next + x));
        }
        next += rows.max(columns) as u32;
        at += count;
    }
    match images.len() + videos.len() {
        0 => {
            let beyond = places.iter().flatten().max().map_or(0, |most| most + 1);
            Ok((places, beyond))
        }
        left => Err(Error::invalid(format!("prompt: {left} pictures or videos without placeholders"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_counts_along_rows_and_columns_and_text_goes_on_above() -> Result<()> {
        let picture = [Span { grid: [1, 2, 3], step: 1.0 }];
        let ids = [5, 9, 9, 9, 9, 9, 9, 6];
        let (places, next) = axes(&ids, (9, &picture), (None, &[]))?;
        let drawn: Vec<String> = places.iter().map(|[t, r, c]| format!("{t}{r}{c}")).collect();
        assert_eq!(drawn.join(" "), "000 111 112 113 121 122 123 444");
        assert_eq!(next, 5);
        Ok(())
    }

    #[test]
    fn a_video_counts_its_seconds() -> Result<()> {
        let video = [Span { grid: [3, 1, 1], step: 2.0 }];
        let (places, next) = axes(&[8, 8, 8, 1], (9, &[]), (Some(8), &video))?;
        assert_eq!(places, [[0, 0, 0], [2, 0, 0], [4, 0, 0], [1, 1, 1]]);
        assert_eq!(next, 5, "an answer is after everything");
        Ok(())
    }

    #[test]
    fn rooms_and_spans_must_agree() {
        let one = [Span { grid: [1, 1, 2], step: 1.0 }];
        assert!(axes(&[9], (9, &one), (None, &[])).is_err_and(|e| e.to_string().contains("expected 2")));
        assert!(axes(&[9, 9], (9, &[]), (None, &[])).is_err());
        assert!(axes(&[1], (9, &one), (None, &[])).is_err_and(|e| e.to_string().contains("without")));
    }
}
