//! Splitting the command strings that Ray passes in flags (`--python_worker_command` and the like).

/// A string that isn't a whole command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandLineError {
    /// A quote that nothing closes.
    #[error("a {quote} at byte {at} is never closed")]
    OpenQuote {
        /// The quote.
        quote: char,
        /// Where it stands, in bytes from the start.
        at: usize,
    },
    /// A backslash with nothing after it.
    #[error("it ends in a backslash, which escapes the character after it")]
    OpenEscape,
    /// A zero byte, which no argument can hold.
    #[error("it has a zero byte")]
    Zero,
}

/// Splits as a raylet of Ray 2.60 does, which is as a POSIX shell does without expansions: spaces and tabs separate,
/// `'...'` is literal, in `"..."` a backslash escapes only `"` and `\`, elsewhere it escapes any character, and adjacent
/// pieces are one argument.
///
/// # Errors
/// Where a quote or an escape is left open, or there is a zero byte: the command would not be what its author meant.
pub fn split_command(text: &str) -> Result<Vec<String>, CommandLineError> {
    let mut arguments = Vec::new();
    let mut current: Option<String> = None;
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\0' => return Err(CommandLineError::Zero),
            ' ' | '\t' => arguments.extend(current.take()),
            '\'' | '"' => {
                let piece = quoted(character, at, &mut characters)?;
                current.get_or_insert_default().push_str(&piece);
            }
            '\\' => {
                let (_, escaped) = characters.next().ok_or(CommandLineError::OpenEscape)?;
                current.get_or_insert_default().push(escaped);
            }
            other => current.get_or_insert_default().push(other),
        }
    }
    arguments.extend(current);
    Ok(arguments)
}

fn quoted(quote: char, at: usize, rest: &mut std::str::CharIndices) -> Result<String, CommandLineError> {
    let open = CommandLineError::OpenQuote { quote, at };
    let mut piece = String::new();
    loop {
        match rest.next().ok_or_else(|| open.clone())?.1 {
            '\0' => return Err(CommandLineError::Zero),
            c if c == quote => return Ok(piece),
            '\\' if quote == '"' => match rest.next().ok_or_else(|| open.clone())?.1 {
                c @ ('"' | '\\') => piece.push(c),
                c => piece.extend(['\\', c]),
            },
            c => piece.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(text: &str) -> Vec<String> {
        split_command(text).unwrap()
    }

    #[test]
    fn the_rules() {
        assert_eq!(split(""), Vec::<String>::new());
        assert_eq!(split(" \t "), Vec::<String>::new());
        assert_eq!(split("a  b\tc "), ["a", "b", "c"]);
        assert_eq!(split(r#"a"b"'c'"#), ["abc"]);
        assert_eq!(split(r#"x "" '' y"#), ["x", "", "", "y"]);
        assert_eq!(split(r#"\x\\y "\x\\y\"" '\x\\y'"#), [r"x\y", r#"\x\y""#, r"\x\\y"]);
        assert_eq!(split(r"a\ b|c;$d"), ["a b|c;$d"]);
        assert_eq!(split("--webui=é ü"), ["--webui=é", "ü"]);
    }

    #[test]
    fn what_is_left_open_is_an_error() {
        assert_eq!(split_command("a 'b"), Err(CommandLineError::OpenQuote { quote: '\'', at: 2 }));
        assert_eq!(split_command("\"a\\"), Err(CommandLineError::OpenQuote { quote: '"', at: 0 }));
        assert_eq!(split_command("a\\"), Err(CommandLineError::OpenEscape));
        assert_eq!(split_command("a\0b"), Err(CommandLineError::Zero));
    }

    proptest! {
        #[test]
        fn quoting_each_argument_gives_the_arguments_back(arguments in proptest::collection::vec("[^\0]{0,12}", 0..6)) {
            let line: Vec<String> =
                arguments.iter().map(|a| format!("'{}'", a.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(split(&line.join(" ")), arguments);
        }

        #[test]
        fn no_text_panics(text in ".{0,64}") {
            let _ = split_command(&text);
        }
    }
}
