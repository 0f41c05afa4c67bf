//! Printing that ends as tools end: `vela … | head` is no panic. These macros stand before the standard ones everywhere
//! in this binary.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// What a shell reports of a tool that wrote to a pipe nobody reads: 128 and the number of SIGPIPE.
const NOBODY_READS: i32 = 141;

macro_rules! print {
    ($($words:tt)*) => { $crate::out::print(::std::format_args!($($words)*)) };
}

macro_rules! println {
    () => { $crate::out::print(::std::format_args!("\n")) };
    ($($words:tt)*) => { $crate::out::print(::std::format_args!("{}\n", ::std::format_args!($($words)*))) };
}

macro_rules! eprintln {
    ($($words:tt)*) => { $crate::out::tell(::std::format_args!($($words)*)) };
}

/// Writes to standard output. If nobody reads it any more the program ends here, quietly; if it cannot be written for
/// another reason (a full disk) it ends with that reason.
pub fn print(words: Arguments) {
    let Err(error) = std::io::stdout().lock().write_fmt(words) else { return };
    if error.kind() != ErrorKind::BrokenPipe {
        tell(format_args!("vela: writing to standard output: {error}"));
        std::process::exit(1);
    }
    std::process::exit(NOBODY_READS);
}

/// Writes a line to standard error. If nobody reads it the work goes on: an arm must not be left because of it.
pub fn tell(words: Arguments) {
    let _ = writeln!(std::io::stderr().lock(), "{words}");
}
