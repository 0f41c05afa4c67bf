//! From linear light to sRGB bytes by a table that is computed while compiling, with `+ - * /` only: the
//! platform's power function never decides a byte. The curve is that of IEC 61966-2-1.

const STEPS: usize = 4096;
static BYTES: [u8; STEPS] = table();

/// The sRGB byte of a linear value; below 0 gives 0, above 1 gives 255.
#[inline(always)]
pub(super) fn encode(linear: f32) -> u8 {
    // The cast saturates, and sends NaN to zero.
    BYTES[((linear * STEPS as f32) as usize).min(STEPS - 1)]
}

const fn table() -> [u8; STEPS] {
    let mut bytes = [0; STEPS];
    let (mut step, mut level, mut threshold) = (0, 0u8, linear_of(0.5 / 255.0));
    while step < STEPS {
        let linear = (step as f64 + 0.5) / STEPS as f64;
        while level < 255 && linear >= threshold {
            level += 1;
            threshold = linear_of((level as f64 + 0.5) / 255.0);
        }
        bytes[step] = level;
        step += 1;
    }
    bytes
}

const fn linear_of(srgb: f64) -> f64 {
    if srgb <= 0.04045 {
        return srgb / 12.92;
    }
    // x^2.4 as the twelfth power of the fifth root, which Newton finds from above.
    let x = (srgb + 0.055) / 1.055;
    let mut root = 1.0;
    let mut turn = 0;
    while turn < 30 {
        let fourth = root * root * root * root;
        root -= (fourth * root - x) / (5.0 * fourth);
        turn += 1;
    }
    let cube = root * root * root;
    cube * cube * cube * cube
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn the_table_is_the_srgb_curve_to_one_level() {
        for step in 0..=1000 {
            let x = step as f64 / 1000.0;
            let curve = if x <= 0.0031308 { 12.92 * x } else { 1.055 * x.powf(1.0 / 2.4) - 0.055 };
            let byte = f64::from(encode(x as f32));
            assert!((byte - 255.0 * curve).abs() <= 1.0, "{x}: {byte} against {}", 255.0 * curve);
        }
        assert_eq!(
            [encode(-1.0), encode(f32::NAN), encode(0.0), encode(1.0), encode(9.0)],
            [0, 0, 0, 255, 255]
        );
    }
}
