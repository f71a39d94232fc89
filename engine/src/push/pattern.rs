//! Glob patterns: `*` stands for any number of characters, `?` for one.
//!
//! Spec: appendices, "Glob-style matching"; client-server API, `event_match`.

/// A pattern, taken apart at its `*`s and in lower case.
#[derive(Debug)]
pub(super) struct Pattern {
    /// What must come first, what must follow in order, and what must come last; one alone has no `*`.
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
    /// Without `?`.
    Literal(String),
    /// `None` is a `?`.
    Chars(Vec<Option<char>>),
}

impl Part {
    fn new(text: &str) -> Self {
        if text.contains('?') {
            Self::Chars(text.chars().map(|char| Some(char).filter(|char| *char != '?')).collect())
        } else {
            Self::Literal(text.to_owned())
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, Self::Literal(text) if text.is_empty())
    }

    /// The length of what it matches at the beginning of `text`, in bytes.
    fn prefix_of(&self, text: &str) -> Option<usize> {
        match self {
            Self::Literal(literal) => text.starts_with(literal.as_str()).then_some(literal.len()),
            Self::Chars(wanted) => {
                let mut chars = text.chars();
                let fits = wanted.iter().all(|wanted| {
                    chars.next().is_some_and(|char| wanted.is_none_or(|wanted| wanted == char))
                });
                fits.then(|| text.len() - chars.as_str().len())
            }
        }
    }

    /// The beginnings and ends of what it matches in `text` from `from` on; they may overlap.
    fn found_in<'a>(&'a self, text: &'a str, from: usize) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut at = Some(from);
        std::iter::from_fn(move || {
            let start = self.next_in(text, at?)?;
            let end = start + self.prefix_of(text.get(start..)?)?;
            at = text[start..].chars().next().map(|char| start + char.len_utf8());
            Some((start, end))
        })
    }

    fn next_in(&self, text: &str, from: usize) -> Option<usize> {
        let rest = text.get(from..)?;
        match self {
            Self::Literal(literal) => rest.find(literal.as_str()).map(|at| from + at),
            Self::Chars(_) => {
                let starts = rest.char_indices().map(|(at, _)| from + at);
                starts.into_iter().find(|at| self.prefix_of(&text[*at..]).is_some())
            }
        }
    }
}

impl Pattern {
    pub(super) fn new(pattern: &str) -> Self {
        Self { parts: pattern.to_lowercase().split('*').map(Part::new).collect() }
    }

    /// Whether it stands for all of `text`, which is in lower case.
    pub(super) fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.parts.split_first() else { return text.is_empty() };
        let Some(begun) = first.prefix_of(text) else { return false };
        let Some((last, middle)) = rest.split_last() else { return begun == text.len() };
        let Some(at) = find_in_order(middle, text, begun) else { return false };
        // The last part's matches all have as many characters: the one that ends the text is the last.
        last.is_empty() || last.found_in(text, at).any(|(_, end)| end == text.len())
    }

    /// Whether it stands for a word, or words, of `text`, which is in lower case.
    pub(super) fn is_in(&self, text: &str) -> bool {
        let is_word = |at| is_boundary(text, at);
        match self.parts.as_slice() {
            [] => text.is_empty(),
            [only] if only.is_empty() => text.is_empty(),
            [only] => only.found_in(text, 0).any(|(start, end)| is_word(start) && is_word(end)),
            [first, middle @ .., last] => {
                // The earliest beginning leaves most to the rest.
                let begun = if first.is_empty() {
                    Some(0)
                } else {
                    first.found_in(text, 0).find(|(start, _)| is_word(*start)).map(|(_, end)| end)
                };
                let Some(at) = begun.and_then(|at| find_in_order(middle, text, at)) else { return false };
                last.is_empty() || last.found_in(text, at).any(|(_, end)| is_word(end))
            }
        }
    }
}

/// Where the last of `parts` ends if they follow each other in `text`, as early as they can.
fn find_in_order(parts: &[Part], text: &str, from: usize) -> Option<usize> {
    parts.iter().try_fold(from, |at, part| {
        if part.is_empty() {
            return Some(at);
        }
        part.found_in(text, at).next().map(|(_, end)| end)
    })
}

/// Whether `text` contains `word` (both in lower case) as words of their own.
pub(super) fn contains_word(text: &str, word: &str) -> bool {
    !word.is_empty() && {
        let part = Part::Literal(word.to_owned());
        part.found_in(text, 0).any(|(start, end)| is_boundary(text, start) && is_boundary(text, end))
    }
}

/// Whether no word goes on across a place in a text.
///
/// Spec: "A word boundary is defined as the start or end of the value, or any character not in the sets `[A-Z]`,
/// `[a-z]`, `[0-9]` or `_`."
fn is_boundary(text: &str, at: usize) -> bool {
    let is_word = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    let bytes = text.as_bytes();
    !(is_word(at.checked_sub(1).and_then(|before| bytes.get(before))) && is_word(bytes.get(at)))
}
