//! Huffman codes and the bits that they are read from.

/// Codes up to this long are looked up at once.
const QUICK: u32 = 9;

/// One table of a DHT segment.
#[derive(Clone)]
pub(super) struct Codes {
    /// Length and symbol by the next `QUICK` bits; length 0: a longer code.
    quick: Vec<(u8, u8)>,
    /// For each length, the first 16 bits that are too large for it, and what leads from a code to its symbol.
    ends: [(u32, i32); 17],
    symbols: Vec<u8>,
}

impl Codes {
    /// From how many codes there are of each length, and their symbols.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, String> {
        let mut quick = vec![(0, 0); 1 << QUICK];
        let mut ends = [(0, 0); 17];
        let (mut code, mut index) = (0u32, 0usize);
        for (length, count) in (1u32..).zip(counts) {
            code <<= 1;
            let first = code;
            for _ in 0..*count {
                let symbol = *symbols.get(index).ok_or("a Huffman table without all its symbols")?;
                if code >> length != 0 {
                    return Err("a Huffman table with more codes than there are bits".into());
                }
                if length <= QUICK {
                    let from = (code << (QUICK - length)) as usize;
                    quick[from..from + (1 << (QUICK - length))].fill((length as u8, symbol));
                }
                (code, index) = (code + 1, index + 1);
            }
            let to_symbol = index as i32 - usize::from(*count) as i32 - first as i32;
            ends[length as usize] = (code << (16 - length), to_symbol);
        }
        Ok(Self { quick, ends, symbols: symbols[..index].to_vec() })
    }
}

/// The coded data of a scan, bit by bit. After its end come zeros, and `overrun` tells.
pub(super) struct Bits<'a> {
    data: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    /// How many of the bits that were taken in are zeros after the end.
    made_up: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(data: &'a [u8], at: usize) -> Self {
        Self { data, at, held: 0, count: 0, made_up: 0 }
    }

    /// Makes sure of 48 bits and more.
    fn fill(&mut self) {
        while self.count <= 56 {
            let byte = match self.data.get(self.at..self.at + 2) {
                Some([0xFF, 0]) => {
                    self.at += 2;
                    0xFF
                }
                Some([byte, _]) if *byte != 0xFF => {
                    self.at += 1;
                    *byte
                }
                _ => {
                    self.made_up = self.made_up.saturating_add(8);
                    0
                }
            };
            self.held |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    fn peek(&self, count: u32) -> u32 {
        (self.held >> 32 >> (32 - count)) as u32
    }

    fn skip(&mut self, count: u32) {
        self.held <<= count;
        self.count -= count;
    }

    /// The next `count` bits, at most 16.
    pub(super) fn take(&mut self, count: u32) -> i32 {
        if self.count < 16 {
            self.fill();
        }
        let bits = self.peek(count);
        self.skip(count);
        bits as i32
    }

    /// A value of so many bits, at most 15, the lower half of them negative.
    pub(super) fn signed(&mut self, count: u32) -> i32 {
        let bits = self.take(count);
        if count > 0 && bits >> (count - 1) == 0 { bits + 1 - (1 << count) } else { bits }
    }

    /// The next symbol.
    pub(super) fn symbol(&mut self, codes: &Codes) -> Result<u8, String> {
        if self.count < 16 {
            self.fill();
        }
        let (length, symbol) = codes.quick[self.peek(QUICK) as usize];
        if length > 0 {
            self.skip(length.into());
            return Ok(symbol);
        }
        let next = self.peek(16);
        for length in QUICK + 1..=16 {
            let (end, to_symbol) = codes.ends[length as usize];
            if next < end {
                self.skip(length);
                let index = (next >> (16 - length)) as i32 + to_symbol;
                return codes.symbols.get(index as usize).copied().ok_or_else(|| "a broken code".into());
            }
        }
        Err("bits that are no code".into())
    }

    /// Whether more was read than there is.
    pub(super) fn overrun(&self) -> bool {
        self.made_up > self.count
    }

    /// Goes on after the restart marker that must come next.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        match self.data.get(self.at..self.at + 2) {
            Some([0xFF, 0xD0..=0xD7]) if !self.overrun() => {
                *self = Self::new(self.data, self.at + 2);
                Ok(())
            }
            _ => Err("a restart marker is missing".into()),
        }
    }

    /// Where the marker after the coded data stands, or the end of the file.
    pub(super) fn end(&self) -> usize {
        let rest = self.data.get(self.at..).unwrap_or_default();
        let marker = |pair: &[u8]| pair[0] == 0xFF && !matches!(pair[1], 0 | 0xD0..=0xD7 | 0xFF);
        rest.windows(2).position(marker).map_or(self.data.len(), |n| self.at + n)
    }
}
