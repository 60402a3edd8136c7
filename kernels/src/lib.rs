//! First floor: one room per op.
