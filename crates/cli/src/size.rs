//! Sizes and times as people write and read them.

use standin_model::ByteLen;

/// `512M`, `4GiB`, `4GB` (binary as well), or bytes.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase();
    let shift = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{text:?} is not a size; write 512M or 4G")),
    };
    let number: f64 = digits.parse().map_err(|_| format!("{text:?} is not a size; write 512M or 4G"))?;
    let bytes = number * (1u64 << shift) as f64;
    if bytes.is_finite() && (0.0..9e15).contains(&bytes) { Ok(bytes as u64) } else { Err(format!("{text:?} is too large")) }
}

/// `MOUNT=SIZE`.
pub fn parse_volume_size(text: &str) -> Result<(String, u64), String> {
    let (mount, size) = text.rsplit_once('=').ok_or("write MOUNT=SIZE, for example /=20G")?;
    Ok((mount.to_owned(), parse(size)?))
}

pub fn bytes(value: u64) -> String {
    let ByteLen(bytes) = ByteLen(value);
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1000.0 {
            return if unit == "B" || value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

pub fn seconds(value: u64) -> String {
    match value {
        0..60 => format!("{value} s"),
        60..3600 => format!("{} min {} s", value / 60, value % 60),
        _ => format!("{} h {} min", value / 3600, value % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, value) in [("512", 512), ("1k", 1024), ("1.5G", 3 << 29), ("4GiB", 4 << 30), ("4GB", 4 << 30), ("0", 0)] {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
        for text in ["", "G", "1X", "-1", "1e99", "NaN"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(parse_volume_size("/var/lib=2G"), Ok(("/var/lib".into(), 2 << 30)));
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(seconds(3725), "1 h 2 min");
    }
}
