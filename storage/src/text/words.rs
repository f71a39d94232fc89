//! What a word is.

use tantivy::tokenizer::{AsciiFoldingFilter, TextAnalyzer, WhitespaceTokenizer};

/// Characters of a word; what is longer is no word that anybody types.
const WORD_MAX: usize = 64;

/// Splits text into words, and folds accents of the Latin alphabet away.
pub(super) fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(WhitespaceTokenizer::default()).filter(AsciiFoldingFilter).build()
}

/// The words of a text in lower case; scripts that put no spaces between words count letter by letter.
pub fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    for letter in text.chars() {
        if !letter.is_alphanumeric() || is_word_by_itself(letter) {
            words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty()));
        }
        if is_word_by_itself(letter) {
            words.push(letter.to_string());
        } else if letter.is_alphanumeric() {
            word.extend(letter.to_lowercase());
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words.retain(|word| word.chars().count() <= WORD_MAX);
    words
}

/// Han, Hiragana, Katakana, Hangul; Thai, Lao, Khmer and Burmese.
fn is_word_by_itself(letter: char) -> bool {
    let is_of_script = matches!(u32::from(letter),
        0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x4dbf
        | 0x4e00..=0x9fff | 0xac00..=0xd7af | 0xf900..=0xfaff | 0x20000..=0x3ffff);
    is_of_script && letter.is_alphanumeric()
}
