//! Scans: coded data to coefficients.

use super::bits::{Bits, Codes};
use super::frame::{Component, Frame};

/// Where the coefficients of a block stand, in the order in which they are coded.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// Huffman tables by number; first those for the constant parts.
pub(super) type Tables = [[Option<Codes>; 4]; 2];

/// What a scan's header says.
pub(super) struct Scan {
    /// Component, its table for the constant part, its table for the others.
    pub(super) parts: Vec<(usize, usize, usize)>,
    /// First and last coefficient.
    pub(super) band: (usize, usize),
    /// The bit that was coded before, and the one that is coded now; both 0 where all bits are.
    pub(super) bits: (u32, u32),
}

/// What goes from block to block.
struct Run<'a> {
    bits: Bits<'a>,
    band: (usize, usize),
    low: u32,
    /// Constant part of the block before, by component.
    before: [i32; 4],
    /// How many blocks are still to come that have nothing more in this band.
    empty: u32,
}

type Kind<'a> = fn(&mut Run<'a>, &mut [i16; 64], usize, &Codes, &Codes) -> Result<(), String>;

impl Scan {
    /// Reads the coded data from `at` into the frame; returns where it ends.
    pub(super) fn read(
        &self,
        frame: &mut Frame,
        tables: &Tables,
        restart: usize,
        data: &[u8],
        at: usize,
    ) -> Result<usize, String> {
        let kind: Kind<'_> = match (frame.progressive, self.band.0, self.bits.0) {
            (false, ..) => Run::whole,
            (true, 0, 0) => Run::constant,
            (true, 0, _) => Run::constant_bit,
            (true, _, 0) => Run::band,
            (true, ..) => Run::band_bit,
        };
        let needed = match (frame.progressive, self.band.0, self.bits.0) {
            (false, ..) => [true, true],
            (true, 0, before) => [before == 0, false],
            (true, ..) => [false, true],
        };
        let none = Codes::new(&[0; 16], &[])?;
        let table = |class: usize, number: usize| match &tables[class][number] {
            Some(codes) => Ok(codes),
            None if !needed[class] => Ok(&none),
            None => Err("a Huffman table is missing".to_owned()),
        };
        let mut coded = Vec::new();
        for (part, constant, others) in &self.parts {
            coded.push((*part, table(0, *constant)?, table(1, *others)?));
        }
        let mut run =
            Run { bits: Bits::new(data, at), band: self.band, low: self.bits.1, before: [0; 4], empty: 0 };
        // A scan of one component goes over its own blocks; one of many over what each has in a unit.
        let alone = self.parts.len() == 1;
        let (wide, high) = match &self.parts[..] {
            [(part, ..)] => frame.components[*part].own_blocks(),
            _ => frame.units,
        };
        for unit in 0..wide * high {
            if restart > 0 && unit > 0 && unit % restart == 0 {
                run.bits.restart()?;
                (run.before, run.empty) = ([0; 4], 0);
            }
            let (x, y) = (unit % wide, unit / wide);
            for (part, constant, others) in &coded {
                let component = &mut frame.components[*part];
                let (h, v) = if alone { (1, 1) } else { component.sampling };
                for row in y * v..(y + 1) * v {
                    for column in x * h..(x + 1) * h {
                        kind(&mut run, component.block(column, row), *part, constant, others)?;
                    }
                }
            }
        }
        if run.bits.overrun() {
            return Err("the coded data end too early".into());
        }
        Ok(run.bits.end())
    }
}

impl Run<'_> {
    fn difference(&mut self, part: usize, codes: &Codes) -> Result<i32, String> {
        let size = self.bits.symbol(codes)?;
        if size > 15 {
            return Err("a step of the constant part that is too large".into());
        }
        self.before[part] = self.before[part].wrapping_add(self.bits.signed(size.into()));
        Ok(self.before[part])
    }

    /// All coefficients of a block.
    fn whole(
        &mut self,
        block: &mut [i16; 64],
        part: usize,
        constant: &Codes,
        others: &Codes,
    ) -> Result<(), String> {
        block[0] = self.difference(part, constant)? as i16;
        let mut k = 1;
        while k < 64 {
            let symbol = self.bits.symbol(others)?;
            let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            match (zeros, size) {
                (15, 0) => k += 16,
                (_, 0) => break,
                _ => {
                    let place = ZIGZAG.get(k + zeros).ok_or("a coefficient outside its block")?;
                    block[usize::from(*place)] = self.bits.signed(size) as i16;
                    k += zeros + 1;
                }
            }
        }
        Ok(())
    }

    /// The high bits of the constant part.
    fn constant(
        &mut self,
        block: &mut [i16; 64],
        part: usize,
        codes: &Codes,
        _: &Codes,
    ) -> Result<(), String> {
        block[0] = (self.difference(part, codes)? << self.low) as i16;
        Ok(())
    }

    /// One more bit of the constant part.
    fn constant_bit(&mut self, block: &mut [i16; 64], _: usize, _: &Codes, _: &Codes) -> Result<(), String> {
        block[0] |= (self.bits.take(1) << self.low) as i16;
        Ok(())
    }

    /// The high bits of a band.
    fn band(&mut self, block: &mut [i16; 64], _: usize, _: &Codes, codes: &Codes) -> Result<(), String> {
        if self.empty > 0 {
            self.empty -= 1;
            return Ok(());
        }
        let (mut k, last) = self.band;
        while k <= last {
            let symbol = self.bits.symbol(codes)?;
            let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
            match (zeros, size) {
                (15, 0) => k += 16,
                (length, 0) => {
                    self.empty = (1 << length) - 1 + self.bits.take(length as u32) as u32;
                    break;
                }
                _ => {
                    let place = ZIGZAG.get(k + zeros).ok_or("a coefficient outside its block")?;
                    block[usize::from(*place)] = (self.bits.signed(size) << self.low) as i16;
                    k += zeros + 1;
                }
            }
        }
        Ok(())
    }

    /// One more bit of a band: of the coefficients that are not zero yet, and which ones come to them.
    fn band_bit(&mut self, block: &mut [i16; 64], _: usize, _: &Codes, codes: &Codes) -> Result<(), String> {
        let (mut k, last) = self.band;
        while self.empty == 0 && k <= last {
            let symbol = self.bits.symbol(codes)?;
            let (mut zeros, size) = (u32::from(symbol >> 4), symbol & 15);
            let new = match size {
                0 if zeros < 15 => {
                    self.empty = (1 << zeros) + self.bits.take(zeros) as u32;
                    break;
                }
                0 => 0,
                1 if self.bits.take(1) == 1 => 1 << self.low,
                1 => -1 << self.low,
                _ => return Err("a new coefficient of more than one bit".into()),
            };
            while k <= last {
                let value = &mut block[usize::from(ZIGZAG[k])];
                k += 1;
                if *value != 0 {
                    *value = refined(*value, self.bits.take(1), self.low);
                } else if zeros == 0 {
                    *value = new;
                    break;
                } else {
                    zeros -= 1;
                }
            }
        }
        if self.empty > 0 {
            for place in &ZIGZAG[k..=last] {
                let value = &mut block[usize::from(*place)];
                if *value != 0 {
                    *value = refined(*value, self.bits.take(1), self.low);
                }
            }
            self.empty -= 1;
        }
        Ok(())
    }
}

/// A coefficient with one more bit, away from zero.
fn refined(value: i16, bit: i32, low: u32) -> i16 {
    let step = (bit << low) as i16;
    // A bit that is there already comes from a broken file.
    if value & step != 0 && value > 0 { value } else { value.wrapping_add(step * value.signum()) }
}

impl Component {
    /// The coefficients of a block.
    fn block(&mut self, column: usize, row: usize) -> &mut [i16; 64] {
        &mut self.coefficients[row * self.blocks.0 + column]
    }
}
