//! Tokens that clients hold: places in the order of all changes, or in a room's timeline.
//!
//! Clients must treat them as opaque. The prefix names kind and version, so that a later version can
//! still read those that clients hold.

use std::{fmt, str::FromStr};

use engine::id::{Position, TimelineIndex};

/// A pagination or sync token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Everything up to this position was told. In a timeline: the boundary after that place.
    Sync(Position),
    /// The same, but of the to-device messages only those up to `inbox` were told.
    SyncInbox {
        /// Everything else up to here was told.
        position: Position,
        /// The last to-device message that was told.
        inbox: Position,
    },
    /// The boundary after this place of a room's timeline.
    Timeline(TimelineIndex),
}

/// Text is not a token of this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token of this server")]
pub struct InvalidToken;

impl Token {
    /// The boundary in a room's timeline that the token stands for: after this place.
    pub fn boundary(self) -> TimelineIndex {
        match self {
            Self::Sync(position) | Self::SyncInbox { position, .. } => position.into(),
            Self::Timeline(index) => index,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sync(position) => write!(f, "s1_{}", position.0),
            Self::SyncInbox { position, inbox } => write!(f, "s2_{}_{}", position.0, inbox.0),
            Self::Timeline(index) => write!(f, "t1_{}", index.0),
        }
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let (kind, number) = text.split_once('_').ok_or(InvalidToken)?;
        match kind {
            "s1" => number.parse().map(|number| Self::Sync(Position(number))).map_err(|_| InvalidToken),
            // A `pos` of sliding sync serves as the token of the same moment.
            "p1" => {
                let (_, number) = number.split_once('_').ok_or(InvalidToken)?;
                number.parse().map(|number| Self::Sync(Position(number))).map_err(|_| InvalidToken)
            }
            "s2" => {
                let (position, inbox) = number.split_once('_').ok_or(InvalidToken)?;
                let parse = |text: &str| text.parse().map(Position).map_err(|_| InvalidToken);
                Ok(Self::SyncInbox { position: parse(position)?, inbox: parse(inbox)? })
            }
            "t1" => {
                number.parse().map(|number| Self::Timeline(TimelineIndex(number))).map_err(|_| InvalidToken)
            }
            _ => Err(InvalidToken),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_being_text() {
        let inbox = Token::SyncInbox { position: Position(7), inbox: Position(5) };
        for token in [Token::Sync(Position(7)), inbox, Token::Timeline(TimelineIndex(-3))] {
            assert_eq!(token.to_string().parse(), Ok(token));
        }
        assert_eq!("p1_00ff_7".parse(), Ok(Token::Sync(Position(7))));
        for text in ["p1_7", "", "s1", "s1_", "s1_-1", "t2_3", "s2_3", "s2_3_", "s1_99999999999999999999"] {
            assert_eq!(text.parse::<Token>(), Err(InvalidToken), "{text}");
        }
    }
}
