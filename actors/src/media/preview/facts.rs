//! From what pages say to the properties of a preview.

use ruma::OwnedMxcUri;
use serde_json::{Map, Value};
use url::Url;

use super::{
    Embedded,
    html::{self, Document},
};

/// The longest property, in characters.
const PROPERTY_MAX: usize = 1000;

/// The longest description that is taken from a page's text, in characters.
const SUMMARY_MAX: usize = 400;

/// Properties of a preview, at most.
const PROPERTIES_MAX: usize = 60;

/// Vocabularies that are passed on.
///
/// Spec: The Open Graph protocol, "Object Types".
const VOCABULARIES: [&str; 6] = ["og:", "article:", "book:", "music:", "profile:", "video:"];

/// What stands in for what, where a page speaks to others only.
const STAND_INS: [(&str, &[&str]); 4] = [
    ("og:title", &["twitter:title"]),
    ("og:description", &["twitter:description", "description", "dc.description"]),
    ("og:image", &["og:image:secure_url", "og:image:url", "twitter:image", "twitter:image:src", "image"]),
    ("og:site_name", &["application-name"]),
];

/// An image that is kept.
pub(super) struct Image {
    pub(super) uri: OwnedMxcUri,
    pub(super) size: u64,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) content_type: &'static str,
}

/// What is known of a page.
#[derive(Default)]
pub(super) struct Facts {
    properties: Map<String, Value>,
    /// What is used if nobody says more.
    fallbacks: Vec<(&'static str, String)>,
    /// Where to ask for more, if something is missing.
    pub(super) oembed: Option<Url>,
    /// Where the image is.
    pub(super) image_url: Option<Url>,
    /// The image, once it is kept.
    pub(super) image: Option<Image>,
}

impl Facts {
    /// What a page says.
    pub(super) fn of(document: &Document, url: &Url) -> Self {
        let base = document.base.as_ref().and_then(|base| url.join(base).ok()).unwrap_or_else(|| url.clone());
        let said = |wanted: &str| {
            let found = document.statements.iter().find(|(name, _)| name == wanted);
            found.map(|(_, content)| content.as_str())
        };
        let mut facts = Self::default();
        for (name, content) in &document.statements {
            let is_known = VOCABULARIES.iter().any(|vocabulary| name.starts_with(vocabulary));
            let is_image = name == "og:image" || name.starts_with("og:image:");
            if is_known && !is_image && facts.properties.len() < PROPERTIES_MAX {
                facts.say(name, content);
            }
        }
        for (name, others) in STAND_INS {
            if let Some(content) = others.iter().find_map(|other| said(other)).filter(|_| name != "og:image")
            {
                facts.say(name, content);
            }
        }
        let image = STAND_INS[2].1.iter().find_map(|other| said(other));
        let image = said("og:image").or(image).or(document.image.as_deref());
        facts.image_url = image.and_then(|image| web(&base, image));
        facts.fallbacks = vec![
            ("og:title", document.title.clone()),
            ("og:title", document.heading.clone()),
            ("og:description", summary(&document.text)),
        ];
        if facts.image_url.is_none() || !facts.properties.contains_key("og:title") {
            facts.oembed = document.oembed.as_ref().and_then(|place| web(&base, place));
        }
        facts
    }

    /// The same with what the site says for those who embed the page.
    pub(super) fn with(mut self, embedded: Embedded, place: &Url) -> Self {
        let said = [
            ("og:title", embedded.title),
            ("og:site_name", embedded.provider_name),
            ("og:title", embedded.author_name),
            ("og:description", embedded.html.map(|html| summary(&html::read(&html).text))),
        ];
        for (name, content) in said {
            self.say(name, &content.unwrap_or_default());
        }
        if self.image_url.is_none() {
            let photo = embedded.url.filter(|_| embedded.kind == "photo");
            let image = embedded.thumbnail_url.or(photo);
            self.image_url = image.and_then(|image| web(place, &image));
        }
        self
    }

    /// Notes a property, unless there is one of that name.
    fn say(&mut self, name: &str, content: &str) {
        let content: String = content.split_whitespace().collect::<Vec<_>>().join(" ");
        if !content.is_empty() && name.len() < 100 && !self.properties.contains_key(name) {
            self.properties.insert(name.to_owned(), shortened(&content, PROPERTY_MAX).into());
        }
    }

    /// The preview.
    pub(super) fn properties(mut self) -> Map<String, Value> {
        for (name, content) in std::mem::take(&mut self.fallbacks) {
            self.say(name, &content);
        }
        if let Some(image) = self.image {
            self.properties.extend([
                ("og:image".to_owned(), image.uri.as_str().into()),
                ("og:image:type".to_owned(), image.content_type.into()),
                ("og:image:width".to_owned(), image.width.into()),
                ("og:image:height".to_owned(), image.height.into()),
                ("matrix:image:size".to_owned(), image.size.into()),
            ]);
        }
        self.properties
    }
}

/// A URL of the web, if it is one.
fn web(base: &Url, text: &str) -> Option<Url> {
    base.join(text.trim()).ok().filter(|url| ["http", "https"].contains(&url.scheme()))
}

/// The beginning of a text, up to the end of a word.
fn summary(text: &str) -> String {
    shortened(text.trim(), SUMMARY_MAX)
}

fn shortened(text: &str, max: usize) -> String {
    let Some((end, _)) = text.char_indices().nth(max) else { return text.to_owned() };
    let cut = &text[..end];
    let words = cut.rsplit_once(' ').map_or(cut, |(words, _)| words);
    format!("{}…", words.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(html: &str) -> Facts {
        Facts::of(&html::read(html), &"https://example.org/a/page".parse().unwrap())
    }

    #[test]
    fn a_page_that_says_nothing_is_described_by_what_it_shows() {
        let properties = facts("<title> Tea </title><h1>Cups</h1><p>All about tea.").properties();
        assert_eq!(properties["og:title"], "Tea");
        assert_eq!(properties["og:description"], "All about tea.");
        let long = format!("<h1>Cups</h1>{}", "word ".repeat(500));
        let properties = facts(&long).properties();
        assert_eq!(properties["og:title"], "Cups");
        let description = properties["og:description"].as_str().unwrap();
        assert!(description.len() <= SUMMARY_MAX + 3 && description.ends_with("word…"), "{description}");
        assert!(facts("").properties().is_empty());
    }

    #[test]
    fn what_a_page_says_counts_before_what_it_shows() {
        let page = "<title>Shown</title><meta property=og:title content=Said><meta property=og:title content=Again>\
                    <meta name=twitter:description content=Tweeted><meta name=description content=Described>\
                    <meta name=twitter:image content=/tea.png><meta property=og:image:width content=7>\
                    <meta name=other content=x><meta property=og:type content=article>\
                    <meta property=article:author content=alice>";
        let facts = facts(page);
        assert_eq!(facts.image_url.as_ref().unwrap().as_str(), "https://example.org/tea.png");
        let expected = serde_json::json!({
            "og:title": "Said", "og:description": "Tweeted", "og:type": "article", "article:author": "alice",
        });
        assert_eq!(Value::Object(facts.properties()), expected);
    }

    #[test]
    fn images_are_only_fetched_from_the_web() {
        for (image, expected) in [
            ("cup.png", Some("https://other.org/base/cup.png")),
            ("//cdn.org/cup.png", Some("https://cdn.org/cup.png")),
            ("data:image/png;base64,AAAA", None),
            ("file:///etc/passwd", None),
            ("javascript:alert(1)", None),
        ] {
            let page =
                format!("<base href=https://other.org/base/><meta property=og:image content='{image}'>");
            assert_eq!(facts(&page).image_url.as_ref().map(Url::as_str), expected, "{image}");
        }
    }

    #[test]
    fn who_embeds_a_page_is_told_more() {
        let link = "<link rel=alternate type=application/json+oembed href=/oembed>";
        let page = facts(&format!("<title>Shown</title>{link}"));
        let place = page.oembed.clone().unwrap();
        let embedded = serde_json::from_str(
            r#"{"version":"1.0","type":"photo","title":"Embedded","url":"cup.jpg","html":"<b>Rich</b> text"}"#,
        );
        let page = page.with(embedded.unwrap(), &place);
        assert_eq!(page.image_url.as_ref().unwrap().as_str(), "https://example.org/cup.jpg");
        let properties = page.properties();
        assert_eq!(
            (&properties["og:title"], &properties["og:description"]),
            (&"Embedded".into(), &"Rich text".into())
        );
        let complete =
            format!("{link}<meta property=og:title content=Tea><meta property=og:image content=/tea.png>");
        assert!(facts(&complete).oembed.is_none());
    }
}
