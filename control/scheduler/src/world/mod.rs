//! Measured prices, latencies and traces.
