//! Sizes as people write them.

/// What [`parse_size_bytes`] takes, for an error.
pub const EXPECTED: &str = "a size in bytes (`1073741824`) or with a binary unit (`64M`, `1GiB`)";

/// Reads a size: a whole number of bytes, or a number with K, M, G or T (1024 based; `KiB`, `KB` and `k` mean the same).
pub fn parse_size_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.replace('_', "");
    let unit = unit.trim().to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(1 << shift),
        // A fraction of a byte is a slip; a fraction of a unit is a habit.
        Err(_) if shift > 0 => {
            let bytes = number.parse::<f64>().ok()? * (1u64 << shift) as f64;
            (bytes < u64::MAX as f64).then_some(bytes as u64)
        }
        Err(_) => None,
    }
}

/// Writes a size with the largest unit that leaves at least 1: `1.50 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let step = (63 - bytes.max(1).leading_zeros()) / 10;
    match step {
        0 => format!("{bytes} B"),
        _ => format!("{:.2} {}", bytes as f64 / (1u64 << (10 * step)) as f64, units[step as usize]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_their_forms() {
        for (text, bytes) in [
            ("0", 0),
            ("1073741824", 1 << 30),
            ("1_000", 1000),
            ("64M", 64 << 20),
            ("64 MiB", 64 << 20),
            ("2kb", 2048),
            ("1.5G", 3 << 29),
            ("1T", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size_bytes(text), Some(bytes), "{text}");
        }
        for bad in ["", "G", "-1", "1.5", "1X", "1.2.3M", "18446744073709551616", "99999999999T", "1e9"] {
            assert_eq!(parse_size_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_for_people() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (3 << 29, "1.50 GiB"), (u64::MAX, "16.00 EiB")]
        {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
