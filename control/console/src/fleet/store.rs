//! A table of rows with stable slots: rows keep their number while others come and go.

use std::collections::HashMap;

use serde::{Serialize, Serializer};

use super::column::Row;

/// Rows by id and by slot.
#[derive(Debug, Clone)]
pub struct Store<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    by_id: HashMap<String, u32>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
        }
    }
}

impl<T: Serialize> Serialize for Store<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.slots.iter().flatten())
    }
}

impl<T: Row> Store<T> {
    /// Adds or replaces a row; gives what was there.
    pub fn put(&mut self, row: T) -> Option<T> {
        if let Some(&slot) = self.by_id.get(row.id()) {
            return self.slots[slot as usize].replace(row);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.by_id.insert(row.id().to_owned(), slot);
        self.slots[slot as usize] = Some(row);
        None
    }

    /// Removes a row.
    pub fn remove(&mut self, id: &str) -> Option<T> {
        let slot = self.by_id.remove(id)?;
        self.free.push(slot);
        self.slots[slot as usize].take()
    }

    /// Row by id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&T> {
        self.by_id.get(id).and_then(|&slot| self.at(slot))
    }

    /// Row by id, to change. Its id must stay.
    pub fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        let slot = *self.by_id.get(id)?;
        self.slots[slot as usize].as_mut()
    }

    /// Slot of a row.
    #[must_use]
    pub fn slot(&self, id: &str) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// One more than the highest slot in use.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Row by slot.
    #[must_use]
    pub fn at(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// Slots in use with their rows.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.slots
            .iter()
            .enumerate()
            .filter_map(|(i, row)| Some((i as u32, row.as_ref()?)))
    }

    /// Ids of all rows.
    pub fn ids(&self) -> impl Iterator<Item = &String> {
        self.by_id.keys()
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// No rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }
}
