//! Limits as people write them.

use crate::Problem;
use standin_model::{BITS_PER_SECOND_MAX, BITS_PER_SECOND_MIN};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    None,
    BitsPerSecond(u64),
    BytesPerHour(u64),
    /// Hundredths of a per cent of the stated link.
    Percent(u32),
}

impl Limit {
    /// `link` in bits a second.
    pub fn bits_per_second(self, link: Option<u64>) -> Result<Option<u64>, Problem> {
        let bits = match self {
            Limit::None => return Ok(None),
            Limit::BitsPerSecond(bits) => u128::from(bits),
            Limit::BytesPerHour(bytes) => u128::from(bytes) * 8 / 3600,
            Limit::Percent(hundredths) => {
                let cause = "a limit in per cent needs the speed of the link";
                let link = link.ok_or_else(|| Problem::new("E4101", cause, "standin network set --limit 20% --link 100Mbit/s"))?;
                u128::from(link) * u128::from(hundredths) / 10_000
            }
        };
        match u64::try_from(bits) {
            Ok(bits) if (BITS_PER_SECOND_MIN..=BITS_PER_SECOND_MAX).contains(&bits) => Ok(Some(bits)),
            _ => Err(bad(&format!("{bits} bit/s"), "it is not from 64 kbit/s (28.8 MB/h) to 1 Tbit/s")),
        }
    }
}

pub fn bad(text: &str, why: &str) -> Problem {
    let cause = format!("the limit {:?} cannot be used: {why}", super::shortened(text));
    Problem::new("E4100", cause, "standin network set --limit 10Mbit/s   (or 5GB/h, 20%, none)")
}

/// `10Mbit/s`, `1.5 Mbit/s`, `500MB/h`, `2GiB/h`, `20%`, `none`, or nothing. k, M, G and T are decimal, with an `i` binary.
pub fn parse(text: &str) -> Result<Limit, Problem> {
    let text = text.trim();
    if text.is_empty() || text.eq_ignore_ascii_case("none") {
        return Ok(Limit::None);
    }
    let wrong = || bad(text, "write a number and bit/s, B/s, B/h or %, such as 10Mbit/s, 5GB/h or 20%");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let (number, unit) = (text.get(..digits).unwrap_or_default(), text.get(digits..).unwrap_or_default().trim());
    let number: f64 = number.parse().map_err(|_| wrong())?;
    if unit == "%" {
        let hundredths = (number * 100.0).round();
        let sound = (1.0..=10_000.0).contains(&hundredths);
        return if sound { Ok(Limit::Percent(hundredths as u32)) } else { Err(bad(text, "it is not above 0 and up to 100 %")) };
    }
    let (scale, unit) = scale(unit);
    let (factor, per_hour) = match unit {
        "bit/s" | "bits/s" | "bps" => (1.0, false),
        "B/s" => (8.0, false),
        "B/h" => (1.0, true),
        _ => return Err(wrong()),
    };
    let value = number * scale * factor;
    if !value.is_finite() || value >= 9e18 {
        return Err(bad(text, "it is too large"));
    }
    Ok(if per_hour { Limit::BytesPerHour(value.round() as u64) } else { Limit::BitsPerSecond(value.round() as u64) })
}

/// The factor of a unit's prefix, and the unit without it.
fn scale(unit: &str) -> (f64, &str) {
    let power = |letter: u8| match letter.to_ascii_uppercase() {
        b'K' => Some(1),
        b'M' => Some(2),
        b'G' => Some(3),
        b'T' => Some(4),
        _ => None,
    };
    let Some(power) = unit.bytes().next().and_then(power) else { return (1.0, unit) };
    let rest = unit.get(1..).unwrap_or_default();
    match rest.strip_prefix('i') {
        // "bit" begins with no i, so an i here is always the binary prefix.
        Some(rest) => (1024f64.powi(power), rest),
        None => (1000f64.powi(power), rest),
    }
}
