//! What is being decoded: its components and their coefficients.

/// One colour of the picture.
pub(super) struct Component {
    pub(super) id: u8,
    /// Blocks in a unit, across and down.
    pub(super) sampling: (usize, usize),
    /// Number of its quantisation table.
    pub(super) table: usize,
    /// The table as it stood when its first scan began, in the order of the coefficients in a block.
    pub(super) steps: Option<[u16; 64]>,
    /// Samples that belong to the picture.
    pub(super) width: usize,
    pub(super) height: usize,
    /// Blocks across and down, with those that only fill up the last unit.
    pub(super) blocks: (usize, usize),
    pub(super) coefficients: Vec<[i16; 64]>,
}

impl Component {
    /// Blocks that belong to the picture, across and down.
    pub(super) fn own_blocks(&self) -> (usize, usize) {
        (self.width.div_ceil(8), self.height.div_ceil(8))
    }
}

/// The picture and its components.
pub(super) struct Frame {
    pub(super) progressive: bool,
    pub(super) width: usize,
    pub(super) height: usize,
    /// Largest sampling of all components.
    pub(super) most: (usize, usize),
    /// Units across and down.
    pub(super) units: (usize, usize),
    pub(super) components: Vec<Component>,
}

impl Frame {
    /// From the body of an SOF segment, if it is of the size that is expected.
    pub(super) fn new(body: &[u8], progressive: bool, size: (usize, usize)) -> Result<Self, String> {
        let [bits, h1, h0, w1, w0, count, parts @ ..] = body else {
            return Err("a short frame header".into());
        };
        if *bits != 8 {
            return Err(format!("expected 8 bits a sample, got {bits}"));
        }
        let width = usize::from(u16::from_be_bytes([*w1, *w0]));
        let height = usize::from(u16::from_be_bytes([*h1, *h0]));
        if (width, height) != size || width == 0 || height == 0 {
            return Err("two frame headers that differ".into());
        }
        if !matches!(count, 1 | 3 | 4) || parts.len() != usize::from(*count) * 3 {
            return Err(format!("expected 1, 3 or 4 components, got {count}"));
        }
        let sampling = |part: &[u8]| (usize::from(part[1] >> 4), usize::from(part[1] & 15));
        let parts: Vec<&[u8]> = parts.chunks_exact(3).collect();
        if parts
            .iter()
            .any(|p| !(1..=4).contains(&sampling(p).0) || !(1..=4).contains(&sampling(p).1) || p[2] > 3)
        {
            return Err("a component with a sampling or a table that does not exist".into());
        }
        let most = parts.iter().map(|p| sampling(p)).fold((1, 1), |a, b| (a.0.max(b.0), a.1.max(b.1)));
        if parts.iter().any(|p| most.0 % sampling(p).0 != 0 || most.1 % sampling(p).1 != 0) {
            return Err("a sampling that is no fraction of the largest".into());
        }
        let units = (width.div_ceil(8 * most.0), height.div_ceil(8 * most.1));
        let component = |part: &&[u8]| {
            let (h, v) = sampling(part);
            let blocks = (units.0 * h, units.1 * v);
            Component {
                id: part[0],
                sampling: (h, v),
                table: part[2].into(),
                steps: None,
                width: (width * h).div_ceil(most.0),
                height: (height * v).div_ceil(most.1),
                blocks,
                coefficients: vec![[0; 64]; blocks.0 * blocks.1],
            }
        };
        let components = parts.iter().map(component).collect();
        Ok(Self { progressive, width, height, most, units, components })
    }
}
