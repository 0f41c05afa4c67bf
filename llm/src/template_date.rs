//! `strftime` for chat templates that name today's date.

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `strftime` in UTC for seconds since 1970.
///
/// # Errors
/// A code that is not known.
pub fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let days = seconds.div_euclid(86_400);
    let (year, month, day) = date(days);
    let clock = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let named = |names: &[&'static str], at: i64| names.get(at as usize).copied().unwrap_or_default();
    let (month_name, day_name) = (named(&MONTHS, month - 1), named(&DAYS, days.rem_euclid(7)));
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut code = letters.next().unwrap_or(' ');
        let bare = code == '-';
        if bare {
            code = letters.next().unwrap_or(' ');
        }
        let two = |x: i64| if bare { x.to_string() } else { format!("{x:02}") };
        out.push_str(&match code {
            'Y' => year.to_string(),
            'y' => two(year.rem_euclid(100)),
            'm' => two(month),
            'd' => two(day),
            'e' => format!("{day:2}"),
            'H' => two(hour),
            'I' => two((hour + 11) % 12 + 1),
            'M' => two(minute),
            'S' => two(second),
            'p' => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            'B' => month_name.to_owned(),
            'b' => month_name.chars().take(3).collect(),
            'A' => day_name.to_owned(),
            'a' => day_name.chars().take(3).collect(),
            'F' => format!("{year}-{month:02}-{day:02}"),
            '%' => "%".to_owned(),
            other => return Err(format!("strftime_now: the code %{other} is not known")),
        });
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
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
