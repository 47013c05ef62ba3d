//! Who is alive: SWIM with suspicion, by foca.
