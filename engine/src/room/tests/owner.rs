//! A room's owner as a server is one, without a store: it shows its room's machine no more than what that asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ruma::{MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, RoomId, UInt, UserId};

use super::*;
use crate::{
    id::{ShortEventId, ShortRoomId, TimelineIndex},
    pdu::{self, Draft, SigningKey},
    room::{
        Context, Findings, Head, LookUp, Merged, Need, Room, StoredEvent,
        admit::{Admission, MemberMoved, Place, Placement},
        event::Standing,
        local::{Author, Refusal},
        receive::{Advice, Arriving, Received, Step},
        reset::ResetRecord,
    },
    state::{self, Node, NodeId, NodeSource, Salt, StateRoot},
};

pub(super) struct Owner {
    pub(super) rules: &'static RoomVersion,
    pub(super) root: StateRoot,
    pub(super) tips: Vec<Arc<StoredEvent>>,
    pub(super) lacks_members: bool,
    pub(super) resets: Vec<ResetRecord>,
    /// By how much its clock is behind.
    pub(super) set_back: u32,
    server_name: OwnedServerName,
    merged: Merged,
    nodes: BTreeMap<NodeId, Arc<Node>>,
    events: BTreeMap<ShortEventId, Arc<StoredEvent>>,
    numbers: BTreeMap<OwnedEventId, ShortEventId>,
    clock: u32,
}

/// What of the owner's was asked for.
#[derive(Default)]
struct Shown {
    nodes: BTreeMap<NodeId, Arc<Node>>,
    events: BTreeMap<ShortEventId, Arc<StoredEvent>>,
    ids: BTreeMap<OwnedEventId, Option<Arc<StoredEvent>>>,
}

impl NodeSource for Shown {
    fn node(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes.get(&id).cloned()
    }
}

impl Context for Shown {
    fn event(&self, short: ShortEventId) -> Option<Arc<StoredEvent>> {
        self.events.get(&short).cloned()
    }

    fn event_by_id(&self, id: &ruma::EventId) -> LookUp {
        self.ids.get(id).cloned().map_or(LookUp::Open, LookUp::of)
    }
}

impl Owner {
    /// A server that knows nothing of the room yet.
    pub(super) fn new(server_name: &str, version: &str) -> Self {
        Self {
            rules: rules(version),
            root: StateRoot::default(),
            tips: Vec::new(),
            lacks_members: false,
            resets: Vec::new(),
            set_back: 0,
            server_name: server_name.try_into().unwrap(),
            merged: Merged::new(),
            nodes: BTreeMap::new(),
            events: BTreeMap::new(),
            numbers: BTreeMap::new(),
            clock: 0,
        }
    }

    /// A room of alice's, as her server has it.
    pub(super) fn with_room(version: &str) -> Self {
        let mut owner = Self::new("one", version);
        owner.admit(&Event::create().arc(), &Placement::default());
        owner.send(ALICE, "m.room.member", Some(ALICE), json!({ "membership": "join" }));
        let levels = json!({ "users": { ALICE: 100 } });
        owner.send(ALICE, "m.room.power_levels", Some(""), levels);
        owner.send(ALICE, "m.room.join_rules", Some(""), json!({ "join_rule": "public" }));
        owner
    }

    /// Asks the machine, and shows it what it needs until it answers.
    pub(super) fn ask<T>(&mut self, question: impl Fn(&mut Room<'_>) -> Result<T, Need>) -> T {
        let mut shown = Shown::default();
        for _ in 0..1000 {
            let head = Head {
                id: <&RoomId>::try_from(ROOM).unwrap(),
                number: ShortRoomId(1),
                rules: self.rules,
                salt: Salt(7),
                root: self.root,
                tips: &self.tips,
                lacks_members: self.lacks_members,
                merged: &self.merged,
            };
            let mut room = Room::new(head, &shown);
            match question(&mut room) {
                Ok(answer) => {
                    let Findings { nodes, merged, resets } = room.into_findings();
                    self.nodes.extend(nodes);
                    self.merged.extend(merged);
                    self.resets.extend(resets);
                    return answer;
                }
                Err(need) => self.show(need, &mut shown),
            }
        }
        panic!("it never has enough");
    }

    fn show(&self, need: Need, shown: &mut Shown) {
        match need {
            Need::Nodes(ids) => {
                for id in ids {
                    assert!(shown.nodes.insert(id, self.nodes[&id].clone()).is_none(), "asked for twice");
                }
            }
            Need::Events(shorts) => {
                for short in shorts {
                    let event = self.events[&short].clone();
                    assert!(shown.events.insert(short, event).is_none(), "asked for twice");
                }
            }
            Need::Ids(ids) => {
                for id in ids {
                    let event = self.event(&id);
                    assert!(shown.ids.insert(id, event).is_none(), "asked for twice");
                }
            }
            Need::Chains(ids) => {
                for id in ids {
                    let event = self.event(&id).expect("auth events of known events are known");
                    assert!(shown.ids.insert(id, Some(event)).is_none(), "asked for twice");
                }
            }
        }
    }

    pub(super) fn event(&self, id: &OwnedEventId) -> Option<Arc<StoredEvent>> {
        self.numbers.get(id).map(|short| self.events[short].clone())
    }

    fn keep(&mut self, event: &Arc<StoredEvent>) {
        self.numbers.insert(event.pdu.event_id().clone(), event.short);
        self.events.insert(event.short, event.clone());
    }

    fn tick(&mut self) -> u32 {
        self.clock += 1;
        self.clock
    }

    /// Takes an event in; returns it, and whom that moved.
    pub(super) fn admit(
        &mut self,
        pdu: &Arc<Pdu>,
        placement: &Placement,
    ) -> (Arc<StoredEvent>, Vec<MemberMoved>) {
        let now = self.tick();
        let place = Place {
            short: ShortEventId(now.into()),
            index: TimelineIndex(now.into()),
            sent_by: None,
            has_relations: false,
        };
        let Admission { event, tips, moves } = self.ask(|room| room.admit(pdu, placement, &place));
        self.keep(&event);
        self.tips = tips;
        self.root = moves.root;
        (event, moves.members)
    }

    /// Keeps an event that is not part of the room.
    pub(super) fn hide(&mut self, pdu: &Arc<Pdu>, standing: Standing, placement: &Placement) {
        let short = ShortEventId(self.tick().into());
        self.keep(&Arc::new(placement.event(ShortRoomId(1), pdu, standing, short)));
    }

    /// Gives an event's ID to an event of another room.
    pub(super) fn hold_elsewhere(&mut self, pdu: &Arc<Pdu>) {
        let short = ShortEventId(self.tick().into());
        let event = Placement::default().event(ShortRoomId(2), pdu, Standing::Accepted, short);
        self.keep(&Arc::new(event));
    }

    /// What becomes of a local user's event.
    pub(super) fn make(&mut self, sender: &str, draft: &Draft) -> Result<(Pdu, Placement), Refusal> {
        let server_name = self.server_name.clone();
        let key = SigningKey::new(&[7; 32], "1").unwrap();
        let tick = self.tick();
        let now = MilliSecondsSinceUnixEpoch(UInt::from(1000 + tick - self.set_back));
        let author = Author { server_name: &server_name, key: &key, now, seed: format!("e{tick}") };
        let sender = <&UserId>::try_from(sender).unwrap();
        self.ask(|room| room.make(sender, draft, &author))
    }

    /// A local user's event, taken in.
    pub(super) fn send(
        &mut self,
        sender: &str,
        kind: &str,
        key: Option<&str>,
        content: impl Into<Value>,
    ) -> Arc<StoredEvent> {
        let (pdu, placement) = self.make(sender, &draft(kind, key, &content.into())).unwrap();
        self.admit(&Arc::new(pdu), &placement).0
    }

    /// Marks an event as one at which the states lack members.
    pub(super) fn give_up(&mut self, event: &StoredEvent) {
        self.keep(&Arc::new(StoredEvent { lacks_members: true, ..event.clone() }));
    }

    /// Strips an event, wherever it stands.
    pub(super) fn redact(&mut self, id: &OwnedEventId, redaction: ShortEventId) -> Arc<StoredEvent> {
        let event = self.event(id).unwrap();
        let pdu = Arc::new(pdu::redact(&event.pdu, self.rules).unwrap());
        let event = Arc::new(StoredEvent { pdu, redacted_by: Some(redaction), ..(*event).clone() });
        self.keep(&event);
        event
    }

    /// What the machine says of another server's event.
    pub(super) fn judge(&mut self, pdu: &Pdu, hole: Option<TimelineIndex>) -> Step {
        let prev_states = BTreeMap::new();
        let arriving = Arriving { pdu, prev_states: &prev_states, advice: Advice::Recommended, hole };
        self.ask(|room| room.receive(arriving))
    }

    /// The same with states of prev events that came along.
    pub(super) fn judge_with(
        &mut self,
        pdu: &Pdu,
        prev_states: &BTreeMap<OwnedEventId, Vec<OwnedEventId>>,
    ) -> Step {
        let arriving = Arriving { pdu, prev_states, advice: Advice::Recommended, hole: None };
        self.ask(|room| room.receive(arriving))
    }

    /// Another server's event, taken in as it stands.
    pub(super) fn receive(&mut self, pdu: &Arc<Pdu>) -> Received {
        match self.judge(pdu, None) {
            Step::Answer(answer) => answer,
            Step::Fill(..) => panic!("no hole was told of"),
            Step::Settle { standing, received, placement, .. } => {
                match standing {
                    Standing::Accepted => drop(self.admit(pdu, &placement)),
                    standing => self.hide(pdu, standing, &placement),
                }
                received
            }
        }
    }

    /// The same room, to go on apart from this one.
    pub(super) fn fork(&self) -> Self {
        Self {
            rules: self.rules,
            root: self.root,
            tips: self.tips.clone(),
            lacks_members: self.lacks_members,
            resets: Vec::new(),
            set_back: self.set_back,
            server_name: self.server_name.clone(),
            merged: self.merged.clone(),
            nodes: self.nodes.clone(),
            events: self.events.clone(),
            numbers: self.numbers.clone(),
            clock: self.clock + 1000,
        }
    }

    /// The current state without one of its keys.
    pub(super) fn without(&mut self, key: &(String, String)) -> StateRoot {
        let shelf = Shown { nodes: self.nodes.clone(), ..Shown::default() };
        let change = BTreeMap::from([(key.clone(), None)]);
        let applied = state::apply(&shelf, self.root, Salt(7), &change).unwrap();
        self.nodes.extend(applied.new_nodes);
        applied.root
    }

    /// The events of a state by their keys.
    pub(super) fn state(&self) -> BTreeMap<(String, String), OwnedEventId> {
        let shelf = Shown { nodes: self.nodes.clone(), ..Shown::default() };
        let entries = state::entries(&shelf, self.root).unwrap();
        let id = |short: ShortEventId| self.events[&short].pdu.event_id().clone();
        entries.into_iter().map(|entry| ((entry.kind, entry.state_key), id(entry.event))).collect()
    }

    /// The events that are part of the room, in the order in which they came.
    pub(super) fn accepted(&self) -> Vec<Arc<Pdu>> {
        let accepted = self.events.values().filter(|event| event.standing == Standing::Accepted);
        accepted.map(|event| event.pdu.clone()).collect()
    }

    /// The IDs of the forward extremities.
    pub(super) fn tip_ids(&self) -> BTreeSet<OwnedEventId> {
        self.tips.iter().map(|tip| tip.pdu.event_id().clone()).collect()
    }
}

pub(super) fn draft(kind: &str, state_key: Option<&str>, content: &Value) -> Draft {
    let state_key = state_key.map(ToOwned::to_owned);
    let content = serde_json::value::to_raw_value(content).unwrap();
    Draft { kind: kind.into(), state_key, content, redacts: None, dated: None }
}
