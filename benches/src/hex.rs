//! Ids on a command line.

/// Reads pairs of hexadecimal digits; `None` where the text is something else.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
    digits.chunks_exact(2).map(|pair| Some(value(pair[0])? << 4 | value(pair[1])?)).collect()
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn digits_become_bytes() {
        assert_eq!(decode("00fFa5"), Some(vec![0, 0xff, 0xa5]));
        assert_eq!(decode(""), Some(vec![]));
    }

    #[test]
    fn anything_else_is_refused() {
        assert_eq!(decode("abc"), None);
        assert_eq!(decode("0g"), None);
        assert_eq!(decode("+1"), None);
    }
}
