//! `strftime` for chat templates that name today's date.

use chrono::DateTime;
use chrono::format::{Item, StrftimeItems};

/// Python's `strftime` in UTC for seconds since 1970.
///
/// # Errors
/// A code that is not known; a year that no calendar has.
pub fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let items: Vec<Item> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(format!("strftime_now: '{format}' has a code that is not known"));
    }
    let moment = DateTime::from_timestamp(seconds, 0);
    let moment = moment.ok_or_else(|| format!("strftime_now: no date is {seconds} s from 1970"))?;
    Ok(moment.format_with_items(items.iter()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let said = |seconds| strftime("%A, %-d %B %Y %H:%M:%S|%d %b %y %I%p", seconds);
        assert_eq!(said(0).as_deref(), Ok("Thursday, 1 January 1970 00:00:00|01 Jan 70 12AM"));
        assert_eq!(
            said(951_782_400 + 86_399).as_deref(),
            Ok("Tuesday, 29 February 2000 23:59:59|29 Feb 00 11PM")
        );
        assert_eq!(said(-1).as_deref(), Ok("Wednesday, 31 December 1969 23:59:59|31 Dec 69 11PM"));
        assert!(strftime("%Q", 0).is_err());
    }
}
