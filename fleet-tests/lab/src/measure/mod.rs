//! What `hyperion-bench` measures on a whole fleet.
