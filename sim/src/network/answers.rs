//! What hosts answer to transactions that come again.

use std::collections::{BTreeMap, BTreeSet};

use ruma::{OwnedServerName, ServerName};

/// Two hosts: who asks, and who answers.
pub(super) type Pair = (OwnedServerName, OwnedServerName);

/// The last transaction that arrived over each link, and what it was answered with.
#[derive(Default)]
pub(super) struct Answers {
    last: BTreeMap<Pair, Last>,
    seen: BTreeSet<(Pair, String)>,
    contradictions: Vec<String>,
}

struct Last {
    path: String,
    answer: Option<String>,
    /// Whether another transaction came between it and its duplicate.
    is_late: bool,
}

impl Answers {
    /// A request arrives.
    pub(super) fn arrives(&mut self, pair: &Pair, path: &str) {
        // Servers know a transaction until another one follows: before that its sender had an answer to it.
        if is_transaction(path) && self.last.get(pair).is_none_or(|last| last.path != path) {
            let is_late = !self.seen.insert((pair.clone(), path.to_owned()));
            self.last.insert(pair.clone(), Last { path: path.to_owned(), answer: None, is_late });
        }
    }

    /// A host starts, and remembers no transactions.
    pub(super) fn forgets(&mut self, host: &ServerName) {
        self.last.retain(|(_, to), _| to != host);
    }

    /// A request that arrived is answered with success.
    pub(super) fn is_answered(&mut self, pair: &Pair, path: &str, body: &[u8]) {
        let Some(last) = self.last.get_mut(pair).filter(|last| last.path == path && !last.is_late) else {
            return;
        };
        let answer = String::from_utf8_lossy(body).into_owned();
        match &last.answer {
            Some(first) if *first != answer => {
                let (from, to) = pair;
                let what = format!("{to} answers {path} of {from} with {first}, and then with {answer}");
                self.contradictions.push(what);
            }
            Some(_) => {}
            None => last.answer = Some(answer),
        }
    }

    /// Transactions that were answered in two ways.
    pub(super) fn contradictions(&self) -> &[String] {
        &self.contradictions
    }
}

pub(super) fn is_transaction(path: &str) -> bool {
    path.starts_with("/_matrix/federation/v1/send/")
}

#[cfg(test)]
mod tests {
    use ruma::owned_server_name;

    use super::*;

    #[test]
    fn only_a_transaction_that_comes_again_at_once_must_be_answered_as_before() {
        let pair = (owned_server_name!("a"), owned_server_name!("b"));
        let path = |id: &str| format!("/_matrix/federation/v1/send/{id}");
        let mut answers = Answers::default();
        for (id, body) in [("1", "x"), ("1", "x"), ("2", "y"), ("1", "z"), ("1", "x"), ("2", "x")] {
            answers.arrives(&pair, &path(id));
            answers.is_answered(&pair, &path(id), body.as_bytes());
        }
        // A late duplicate of the one before arrives between the two.
        for id in ["3", "2", "3"] {
            answers.arrives(&pair, &path(id));
        }
        for body in ["x", "z"] {
            answers.is_answered(&pair, &path("3"), body.as_bytes());
        }
        assert!(answers.contradictions().is_empty(), "{:?}", answers.contradictions());
        for body in ["x", "z"] {
            answers.arrives(&pair, &path("4"));
            answers.is_answered(&pair, &path("4"), body.as_bytes());
        }
        assert_eq!(answers.contradictions().len(), 1);
    }

    #[test]
    fn a_host_that_starts_again_remembers_no_transaction() {
        let pair = (owned_server_name!("a"), owned_server_name!("b"));
        let path = "/_matrix/federation/v1/send/1";
        let mut answers = Answers::default();
        for body in ["x", "y", "z"] {
            answers.arrives(&pair, path);
            answers.is_answered(&pair, path, body.as_bytes());
            answers.forgets(&pair.1);
        }
        assert!(answers.contradictions().is_empty(), "{:?}", answers.contradictions());
    }
}
