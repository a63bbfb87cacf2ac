//! Text from outside (file names, labels, reasons) made safe to display.
//!
//! The templates escape markup; this module takes care of characters that do not show, or show as
//! something else.

use std::fmt::Write;

use maud::{Markup, html};

/// Returns the text with every character that is invisible or changes its surroundings spelled out
/// as `\u{..}`: control characters, the marks that change the direction of writing (Unicode
/// Bidirectional Algorithm, 2), and the characters that XML 1.0 does not allow.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let is_bidi_control = matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        );
        let is_invisible = matches!(
            c,
            '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        );
        if c.is_control() || is_bidi_control || is_invisible {
            // Writing to a String does not fail.
            let _ = write!(out, "{}", c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Isolates a name from outside, whose direction of writing must not affect the text around it.
pub fn bdi(text: &str) -> Markup {
    html! { bdi { (visible(text)) } }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn invisible_and_bidi_characters_are_spelled_out() {
        assert_eq!(visible("a\u{202e}gpj.exe\n\u{1b}[2J"), "a\\u{202e}gpj.exe\\u{a}\\u{1b}[2J");
        assert_eq!(visible("süß 猫 שלום"), "süß 猫 שלום");
        assert_eq!(bdi("<b a='\"&'>").into_string(), "<bdi>&lt;b a='&quot;&amp;'&gt;</bdi>");
    }

    proptest! {
        #[test]
        fn any_text_is_text_to_an_xml_parser(text: String) {
            let wanted = visible(&text);
            let xml = html! { a b=(wanted) { (wanted) } }.into_string();
            let document = roxmltree::Document::parse(&xml).unwrap();
            let element = document.root_element();
            prop_assert_eq!(element.children().count(), usize::from(!wanted.is_empty()));
            prop_assert_eq!(element.text().unwrap_or(""), &wanted);
            prop_assert_eq!(element.attribute("b"), Some(wanted.as_str()));
        }
    }
}
