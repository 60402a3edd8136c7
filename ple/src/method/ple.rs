//! PLE.
