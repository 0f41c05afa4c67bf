//! Python pickles as plain data, for files that people have and nobody should run: opcodes and names are taken from two
//! lists, everything else is refused, and nothing is ever called.

use std::collections::HashMap;
use vela_nn::{Error, Result};

/// A value of a pickle: its parts are places in [`Pickle::values`], so that nothing nests.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// None.
    None,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A list, a tuple or a set.
    List(Vec<usize>),
    /// Keys and values, in order.
    Dict(Vec<(usize, usize)>),
    /// A name from the list, `module.name`.
    Global(String),
    /// What a name would make of its arguments; `state` is what would be set on it.
    Made {
        /// The name.
        global: String,
        /// The arguments: a list.
        arguments: usize,
        /// Its state, if there is one.
        state: Option<usize>,
    },
    /// Something outside the pickle, such as a tensor's storage.
    Outside(usize),
}

/// A pickle, read.
#[derive(Clone, Debug)]
pub struct Pickle {
    /// Every value.
    pub values: Vec<Value>,
    /// Where the whole is.
    pub root: usize,
}

/// Names that may occur. None of them is called: each is recognised by those who read the value.
const GLOBALS: [&str; 38] = [
    "collections.OrderedDict",
    "collections.defaultdict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.FloatStorage",
    "torch.DoubleStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
    "torch.Size",
    "torch.device",
    "torch.float32",
    "torch.float64",
    "torch.float16",
    "torch.bfloat16",
    "torch.int64",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.nodes.AnyNode",
    "typing.Any",
    "builtins.dict",
    "builtins.list",
    "__builtin__.dict",
    "__builtin__.list",
];

impl Pickle {
    /// Reads a pickle of protocol 2 to 5.
    ///
    /// # Errors
    /// An opcode or a name that is not on the list (the error names it); a torn or senseless stream.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
        .run()
    }

    /// The value at a place.
    pub fn value(&self, at: usize) -> &Value {
        self.values.get(at).unwrap_or(&Value::None)
    }

    /// The entry of a dictionary by its text key.
    pub fn entry(&self, dict: usize, key: &str) -> Option<usize> {
        let entries = self.entries(dict)?;
        entries.iter().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value)
    }

    /// The entries of a dictionary, also of one that a dictionary's name made.
    pub fn entries(&self, at: usize) -> Option<&[(usize, usize)]> {
        match self.value(at) {
            Value::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self, at: usize) -> Option<&str> {
        match self.value(at) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The parts of a list or tuple.
    pub fn list(&self, at: usize) -> Option<&[usize]> {
        match self.value(at) {
            Value::List(parts) => Some(parts),
            _ => None,
        }
    }

    /// A whole number that is not negative.
    pub fn count(&self, at: usize) -> Option<usize> {
        match self.value(at) {
            Value::Int(x) => usize::try_from(*x).ok(),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<usize>,
    marks: Vec<usize>,
    memo: HashMap<u64, usize>,
}

fn bad(what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("pickle: {what}"))
}

impl<'a> Machine<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| bad(format!("torn at byte {}", self.at)))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A little-endian number of `count` bytes (at most 8).
    fn number(&mut self, count: usize) -> Result<u64> {
        Ok(self.take(count)?.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn sized(&mut self, count: usize) -> Result<&'a [u8]> {
        let length = self.number(count)?;
        self.take(usize::try_from(length).map_err(bad)?)
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|b| *b == b'\n').ok_or_else(|| bad("a name without an end"))?;
        self.at += end + 1;
        Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<usize> {
        // Nothing below the last mark belongs to what is being made.
        match self.stack.len() > self.marks.last().copied().unwrap_or(0) {
            true => self.stack.pop().ok_or_else(|| bad("nothing on the stack")),
            false => Err(bad("nothing on the stack")),
        }
    }

    fn top(&self) -> Result<usize> {
        self.stack.last().copied().ok_or_else(|| bad("nothing on the stack"))
    }

    fn since_mark(&mut self) -> Result<Vec<usize>> {
        let mark = self.marks.pop().ok_or_else(|| bad("no mark"))?;
        if mark > self.stack.len() {
            return Err(bad("a mark beyond the stack"));
        }
        Ok(self.stack.split_off(mark))
    }

    fn text(&mut self, bytes: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(bytes).map_err(|_| bad("a text that is not UTF-8"))?;
        self.push(Value::Text(text.to_owned()));
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let full = format!("{module}.{name}");
        if !GLOBALS.contains(&full.as_str()) {
            return Err(bad(format!("it names '{full}', which is not on the list; nothing was run")));
        }
        self.push(Value::Global(full));
        Ok(())
    }

    fn append(&mut self, list: usize, parts: Vec<usize>) -> Result<()> {
        match self.values.get_mut(list) {
            Some(Value::List(old)) => old.extend(parts),
            // A subclass of list: its parts are not needed by anyone.
            Some(Value::Made { .. }) => {}
            _ => return Err(bad("appends to what is no list")),
        }
        Ok(())
    }

    fn set(&mut self, dict: usize, parts: &[usize]) -> Result<()> {
        if !parts.len().is_multiple_of(2) {
            return Err(bad("a key without a value"));
        }
        match self.values.get_mut(dict) {
            Some(Value::Dict(old)) => old.extend(parts.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            Some(Value::Made { .. }) => {}
            _ => return Err(bad("sets items of what is no dictionary")),
        }
        Ok(())
    }

    /// What a name would make: of dictionaries the dictionary, of all else a record of what was asked.
    fn make(&mut self) -> Result<()> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        if !matches!(self.values.get(arguments), Some(Value::List(_))) {
            return Err(bad("arguments that are no tuple"));
        }
        let Some(Value::Global(global)) = self.values.get(callee).cloned() else {
            return Err(bad("it calls what is no name; nothing was run"));
        };
        let is_dict = ["collections.OrderedDict", "collections.defaultdict"].contains(&global.as_str());
        self.push(if is_dict {
            Value::Dict(Vec::new())
        } else {
            Value::Made { global, arguments, state: None }
        });
        Ok(())
    }

    fn run(mut self) -> Result<Pickle> {
        loop {
            let opcode = self.number(1)? as u8;
            match opcode {
                0x80 => match self.number(1)? {
                    2..=5 => {}
                    other => return Err(bad(format!("protocol {other}; known: 2 to 5"))),
                },
                0x95 => drop(self.take(8)?),
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle { values: self.values, root });
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => drop(self.pop()?),
                b'1' => drop(self.since_mark()?),
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                b'J' => {
                    let value = self.number(4)? as u32 as i32;
                    self.push(Value::Int(value.into()));
                }
                b'K' => {
                    let value = self.number(1)?;
                    self.push(Value::Int(value as i64));
                }
                b'M' => {
                    let value = self.number(2)?;
                    self.push(Value::Int(value as i64));
                }
                0x8a => {
                    let bytes = self.sized(1)?;
                    if bytes.len() > 8 {
                        return Err(bad("a whole number of more than 64 bits"));
                    }
                    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
                    let start = if negative { -1i64 } else { 0 };
                    let value = bytes.iter().rev().fold(start, |n, byte| n << 8 | i64::from(*byte));
                    self.push(Value::Int(value));
                }
                b'G' => {
                    let value = f64::from_bits(self.number(8)?.swap_bytes());
                    self.push(Value::Float(value));
                }
                b'X' => {
                    let bytes = self.sized(4)?;
                    self.text(bytes)?;
                }
                0x8c => {
                    let bytes = self.sized(1)?;
                    self.text(bytes)?;
                }
                0x8d => {
                    let bytes = self.sized(8)?;
                    self.text(bytes)?;
                }
                b'B' | 0x8e | b'C' | b'U' | b'T' => {
                    let width = match opcode {
                        b'B' | b'T' => 4,
                        0x8e => 8,
                        _ => 1,
                    };
                    let bytes = self.sized(width)?.to_vec();
                    self.push(Value::Bytes(bytes));
                }
                b'}' => self.push(Value::Dict(Vec::new())),
                b']' | b')' | 0x8f => self.push(Value::List(Vec::new())),
                b't' => {
                    let parts = self.since_mark()?;
                    self.push(Value::List(parts));
                }
                0x85..=0x87 => {
                    let mut parts = Vec::new();
                    for _ in 0..opcode - 0x84 {
                        parts.push(self.pop()?);
                    }
                    parts.reverse();
                    self.push(Value::List(parts));
                }
                b'a' => {
                    let part = self.pop()?;
                    let list = self.top()?;
                    self.append(list, vec![part])?;
                }
                b'e' | 0x90 => {
                    let parts = self.since_mark()?;
                    let list = self.top()?;
                    self.append(list, parts)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    let dict = self.top()?;
                    self.set(dict, &[key, value])?;
                }
                b'u' => {
                    let parts = self.since_mark()?;
                    let dict = self.top()?;
                    self.set(dict, &parts)?;
                }
                b'q' | b'r' => {
                    let key = self.number(if opcode == b'q' { 1 } else { 4 })?;
                    let top = self.top()?;
                    self.memo.insert(key, top);
                }
                0x94 => {
                    let (key, top) = (self.memo.len() as u64, self.top()?);
                    self.memo.insert(key, top);
                }
                b'h' | b'j' => {
                    let key = self.number(if opcode == b'h' { 1 } else { 4 })?;
                    let value = self.memo.get(&key).copied();
                    self.stack.push(value.ok_or_else(|| bad(format!("nothing remembered as {key}")))?);
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.values.get(module).cloned(), self.values.get(name).cloned()) {
                        (Some(Value::Text(module)), Some(Value::Text(name))) => {
                            self.global(&module, &name)?
                        }
                        _ => return Err(bad("a name that is no text")),
                    }
                }
                b'R' | 0x81 => self.make()?,
                b'b' => {
                    let state = self.pop()?;
                    let top = self.top()?;
                    match self.values.get_mut(top) {
                        Some(Value::Made { state: place, .. }) => *place = Some(state),
                        // An ordered dictionary's attributes (torch keeps versions there).
                        Some(Value::Dict(_)) => {}
                        _ => return Err(bad("it sets the state of what has none")),
                    }
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Outside(id));
                }
                other => {
                    let at = self.at - 1;
                    return Err(bad(format!(
                        "opcode 0x{other:02x} at byte {at} is not on the list; nothing was run"
                    )));
                }
            }
        }
    }
}
