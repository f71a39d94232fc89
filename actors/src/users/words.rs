//! The words that users are found by.

use std::collections::BTreeSet;

use ruma::UserId;

/// Words that one user is found by in one room, at most.
const WORDS_MAX: usize = 12;

/// Characters of a word, at most.
const WORD_MAX: usize = 64;

/// The words that a user is found by.
pub(super) fn words(user_id: &UserId, name: Option<&str>) -> BTreeSet<String> {
    let localpart = user_id.localpart().to_lowercase();
    let name = name.unwrap_or_default().to_lowercase();
    let mut words = BTreeSet::from([cut(&user_id.as_str().to_lowercase()), cut(&localpart)]);
    for word in split(&localpart).chain(split(&name)).take(WORDS_MAX) {
        words.insert(cut(word));
    }
    words
}

/// The words of a name, which need not be that of a room.
pub(crate) fn name_words(name: &str) -> BTreeSet<String> {
    split(&name.to_lowercase()).take(WORDS_MAX).map(cut).collect()
}

fn split(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty())
}

fn cut(word: &str) -> String {
    word.chars().take(WORD_MAX).collect()
}

/// The words of a search term; all of them must begin a word of who is found.
pub(super) fn wanted(term: &str) -> Vec<String> {
    let term = term.trim().to_lowercase();
    if term.starts_with('@') || term.contains(':') {
        // A user ID, or the beginning of one.
        let id = if term.starts_with('@') { term } else { format!("@{term}") };
        return vec![cut(&id)];
    }
    split(&term).map(cut).collect()
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;

    #[test]
    fn users_are_found_by_the_beginnings_of_their_words() {
        let has = words(user_id!("@ada.l:example.org"), Some("Countess Ada Lovelace"));
        let finds = |term: &str| {
            let wanted = wanted(term);
            !wanted.is_empty() && wanted.iter().all(|wanted| has.iter().any(|word| word.starts_with(wanted)))
        };
        for term in
            ["ada", "ADA", "love", "lovelace count", "@ada", "@ada.l:ex", "ada.l:example.org", "ada.l"]
        {
            assert!(finds(term), "{term}");
        }
        for term in ["", " ", "lace", "ada byron", "@lovelace", "@ada:example.org"] {
            assert!(!finds(term), "{term}");
        }
    }
}
