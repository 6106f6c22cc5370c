//! A daemon that comes after a killed one.
