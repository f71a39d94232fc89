//! The binary `ganglion`: arguments and wiring only.

fn main() {}
