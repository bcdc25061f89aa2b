//! Holdfast.

fn main() {}
