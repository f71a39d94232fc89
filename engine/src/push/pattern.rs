//! Glob patterns: `*` stands for any number of characters, `?` for one.
//!
//! Whoever writes the text may be somebody else than who made the pattern, and both may mean harm: the work grows with the sum of
//! their lengths, or, where there are `?`s, with the text's times a sixty-fourth of the pattern's.
//!
//! Spec: appendices, "Glob-style matching"; client-server API, `event_match`.

use std::collections::BTreeMap;

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
        let (literal, chars) = match self {
            Self::Literal(literal) => (Some(literal_in(literal, text, from)), None),
            Self::Chars(wanted) => (None, Some(chars_in(wanted, text, from))),
        };
        literal.into_iter().flatten().chain(chars.into_iter().flatten())
    }
}

/// Where a text that is not empty is found in another.
fn literal_in<'a>(literal: &'a str, text: &'a str, from: usize) -> impl Iterator<Item = (usize, usize)> + 'a {
    let first = text.get(from..).and_then(|rest| rest.find(literal)).map(|at| from + at);
    let later = first.into_iter().flat_map(move |first| later_in(literal.as_bytes(), text.as_bytes(), first));
    first.into_iter().chain(later).map(|start| (start, start + literal.len()))
}

/// Where it is found after the first time, in time that is linear in the length of the text.
///
/// The algorithm of Knuth, Morris and Pratt.
fn later_in<'a>(literal: &'a [u8], text: &'a [u8], first: usize) -> impl Iterator<Item = usize> + 'a {
    let borders = borders(literal);
    let mut fitting = 0;
    text.iter().enumerate().skip(first + 1).filter_map(move |(at, byte)| {
        while fitting > 0 && literal.get(fitting) != Some(byte) {
            fitting = borders[fitting - 1];
        }
        fitting += usize::from(literal.get(fitting) == Some(byte));
        (fitting == literal.len()).then(|| at + 1 - literal.len())
    })
}

/// For each beginning of a text, the length of the longest shorter one that it ends with.
fn borders(literal: &[u8]) -> Vec<usize> {
    let mut borders = vec![0; literal.len()];
    let mut length = 0;
    for at in 1..literal.len() {
        while length > 0 && literal[length] != literal[at] {
            length = borders[length - 1];
        }
        length += usize::from(literal[length] == literal[at]);
        borders[at] = length;
    }
    borders
}

/// Where characters, some of which may be any, are found in a text.
fn chars_in<'a>(
    wanted: &'a [Option<char>],
    text: &'a str,
    from: usize,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    let rest = text.get(from..).unwrap_or_default();
    let mut fits = Fits::new(wanted);
    let mut starts = rest.char_indices();
    rest.char_indices().enumerate().filter_map(move |(number, (at, char))| {
        let start = if number + 1 < wanted.len() { None } else { starts.next() };
        let does_fit = fits.takes(char);
        start.filter(|_| does_fit).map(|(start, _)| (from + start, from + at + char.len_utf8()))
    })
}

/// Which beginnings of a row of characters fit what was last read of a text, a bit for each, so that 64 of them are one step.
///
/// The "shift-and" algorithm of Baeza-Yates and Gonnet.
struct Fits {
    /// Where each character may stand.
    places: BTreeMap<char, Vec<u64>>,
    /// Where any other may.
    any: Vec<u64>,
    fitting: Vec<u64>,
    last: usize,
}

impl Fits {
    fn new(wanted: &[Option<char>]) -> Self {
        let none = vec![0; wanted.len().div_ceil(64)];
        let mut any = none.clone();
        for (at, _) in wanted.iter().enumerate().filter(|(_, wanted)| wanted.is_none()) {
            any[at / 64] |= 1 << (at % 64);
        }
        let mut places = BTreeMap::new();
        for (at, wanted) in wanted.iter().enumerate() {
            if let Some(char) = wanted {
                places.entry(*char).or_insert_with(|| any.clone())[at / 64] |= 1 << (at % 64);
            }
        }
        Self { places, any, fitting: none, last: wanted.len().saturating_sub(1) }
    }

    /// Reads one character; says whether the whole row fits now.
    fn takes(&mut self, char: char) -> bool {
        let places = self.places.get(&char).unwrap_or(&self.any);
        // A row may begin at each character.
        let mut carried = 1;
        for (fitting, places) in self.fitting.iter_mut().zip(places) {
            let moved = (*fitting << 1) | carried;
            carried = *fitting >> 63;
            *fitting = moved & places;
        }
        self.fitting.get(self.last / 64).is_some_and(|fitting| (fitting >> (self.last % 64)) & 1 == 1)
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
