//! Bad input through the public interface: an error that says what is wrong, never a panic.
