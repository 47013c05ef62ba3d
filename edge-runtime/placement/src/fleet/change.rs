//! Changes of the fleet, each in time that does not grow with it.

use std::ops::Bound;
use std::sync::Arc;

use super::embeddings::Embeddings;
use super::kinds::{Block, DEVICES, EXACT, Key, Kind, LANES};
use super::rough::Layout;
use super::{Embedder, Entry, Fleet, FleetError, Machine};
use crate::check::Violation;
use crate::choose::{CandidateRef, Choice};
use crate::features::encode_node;
use crate::filter::is_owned;
use crate::model::{GpuDevice, LatencyMatrix, Node, Offer, Place, Request, Resources, Taint};
use crate::packing::Prices;
use crate::policy::Network;

/// Distance of the order of a machine that goes to an end.
const STRIDE: u64 = 1 << 24;

impl Fleet {
    /// Adds a node, or puts it in the place of the one with its id.
    pub fn upsert_node(&mut self, node: Node) {
        self.summary.add(&node);
        self.upsert(Machine::Node(Box::new(node)));
    }

    /// Adds an offer, or puts it in the place of the one with its id.
    pub fn upsert_offer(&mut self, offer: Offer) {
        self.upsert(Machine::Offer(Box::new(offer)));
    }

    /// Removes a node. False where there was none.
    pub fn remove_node(&mut self, id: &str) -> bool {
        self.nodes
            .get(id)
            .copied()
            .is_some_and(|handle| self.remove(handle))
    }

    /// Removes an offer. False where there was none.
    pub fn remove_offer(&mut self, id: &str) -> bool {
        self.offers
            .get(id)
            .copied()
            .is_some_and(|handle| self.remove(handle))
    }

    /// Replaces the round-trip times.
    pub fn set_latency(&mut self, latency: LatencyMatrix) {
        self.version += 1;
        for handle in self.places.set_latency(&latency) {
            self.settle(handle);
        }
        self.latency = latency;
    }

    /// Records one round trip, milliseconds.
    pub fn set_rtt(&mut self, a: &Place, b: &Place, ms: f32) {
        let mut latency = std::mem::take(&mut self.latency);
        latency.insert(a, b, ms);
        self.set_latency(latency);
    }

    /// Sets how many replicas wait for a place.
    pub const fn set_queue(&mut self, replicas: u32) {
        self.version += 1;
        self.summary.queue = replicas;
    }

    /// Takes what free GPU capacity is worth from now on.
    pub fn set_packing(&mut self, prices: Arc<Prices>) {
        self.version += 1;
        self.packing = prices;
    }

    /// Keeps this network's embeddings of all machines, or none.
    pub fn set_network(&mut self, network: Option<Arc<Network>>) {
        self.embeddings = Embeddings::default();
        self.embedder = network.and_then(|network| {
            let layout = Layout::new(&network)?;
            self.embeddings = Embeddings::new(layout.order.clone());
            Some(Embedder { network, layout })
        });
        let Some(embedder) = &self.embedder else {
            return;
        };
        for (id, block) in (0..).zip(&self.blocks) {
            self.embeddings.open(id, block.kind);
        }
        for entry in self.entries.iter().flatten() {
            let node = encode_node(&entry.machine.candidate());
            let vector = embedder.network.embed(&node);
            self.embeddings
                .store(entry.block, entry.lane as usize, &vector);
            self.embeddings.widen(&vector);
        }
        self.embeddings.spread();
    }

    /// Takes the measured share of CPU in use, 0 to 1.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_telemetry(&mut self, id: &str, cpu_utilization: f32) -> Result<(), FleetError> {
        self.edit(id, |node| node.cpu_utilization = cpu_utilization)
    }

    /// Takes whether the node's agent is in reach.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_ready(&mut self, id: &str, ready: bool) -> Result<(), FleetError> {
        self.edit(id, |node| node.ready = ready)
    }

    /// Takes whether the node may be given replicas: not while cordoned, draining or revoked.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_schedulable(&mut self, id: &str, schedulable: bool) -> Result<(), FleetError> {
        self.edit(id, |node| node.schedulable = schedulable)
    }

    /// Takes a node's price, US dollars per hour for the whole node.
    ///
    /// # Errors
    /// There is no such node.
    pub fn set_price(&mut self, id: &str, price_per_hour: f64) -> Result<(), FleetError> {
        let handle = self.node_handle(id)?;
        self.edit(id, |node| node.price_per_hour = price_per_hour)?;
        self.settle(handle);
        Ok(())
    }

    /// Promises to a replica what was chosen for it: the decision may have been made some time ago,
    /// or together with others. Of an offer nothing is taken, since it is bought anew each time.
    ///
    /// # Errors
    /// The constraints that the choice breaks by now; then nothing is promised.
    pub fn reserve(&mut self, request: &Request, choice: &Choice) -> Result<(), Vec<Violation>> {
        self.check(request, choice)?;
        let CandidateRef::Node(id) = &choice.candidate else {
            return Ok(());
        };
        self.take(id, request.resources, &choice.gpus).map_err(|e| {
            vec![Violation {
                constraint: "node",
                detail: e.to_string(),
            }]
        })
    }

    /// Promises resources and thousandths of devices of a node.
    ///
    /// # Errors
    /// There is no such node or device, or less is left; then nothing is promised.
    pub fn take(
        &mut self,
        id: &str,
        resources: Resources,
        gpus: &[(String, u32)],
    ) -> Result<(), FleetError> {
        let node = self.node(id).ok_or_else(|| FleetError::NoNode(id.into()))?;
        let short = |what: &str| FleetError::Short {
            node: id.into(),
            what: what.into(),
        };
        if node.free.cpu_millis < resources.cpu_millis {
            return Err(short("cpu"));
        }
        if node.free.memory_bytes < resources.memory_bytes {
            return Err(short("memory"));
        }
        for (uuid, _) in gpus {
            let asked: u64 = gpus
                .iter()
                .filter(|(other, _)| other == uuid)
                .map(|(_, millis)| u64::from(*millis))
                .sum();
            if u64::from(device(node, uuid)?.free_millis) < asked {
                return Err(short(uuid));
            }
        }
        self.edit(id, |node| {
            node.free.cpu_millis -= resources.cpu_millis;
            node.free.memory_bytes -= resources.memory_bytes;
            for device in &mut node.gpus {
                let taken = gpus.iter().filter(|(uuid, _)| *uuid == device.uuid);
                let taken: u32 = taken.map(|(_, millis)| *millis).sum();
                // Two devices of one name may have less left than the first of them.
                device.free_millis = device.free_millis.saturating_sub(taken);
            }
        })
    }

    /// Gives promised resources back, up to what the node has.
    ///
    /// # Errors
    /// There is no such node or device; then nothing is given back.
    pub fn release(
        &mut self,
        id: &str,
        resources: Resources,
        gpus: &[(String, u32)],
    ) -> Result<(), FleetError> {
        let node = self.node(id).ok_or_else(|| FleetError::NoNode(id.into()))?;
        for (uuid, _) in gpus {
            device(node, uuid)?;
        }
        let back = |free: u64, given: u64, all: u64| free.saturating_add(given).min(all.max(free));
        self.edit(id, |node| {
            let (free, all) = (&mut node.free, node.allocatable);
            free.cpu_millis = back(free.cpu_millis, resources.cpu_millis, all.cpu_millis);
            free.memory_bytes = back(free.memory_bytes, resources.memory_bytes, all.memory_bytes);
            for (uuid, millis) in gpus {
                for device in node.gpus.iter_mut().filter(|g| g.uuid == *uuid) {
                    let most = device.free_millis.max(crate::gpu::WHOLE);
                    device.free_millis = device.free_millis.saturating_add(*millis).min(most);
                }
            }
        })
    }

    fn node_handle(&self, id: &str) -> Result<u32, FleetError> {
        let handle = self.nodes.get(id).copied();
        handle.ok_or_else(|| FleetError::NoNode(id.to_owned()))
    }

    /// Changes what differs between nodes of a kind.
    fn edit(&mut self, id: &str, change: impl FnOnce(&mut Node)) -> Result<(), FleetError> {
        let handle = self.node_handle(id)?;
        self.version += 1;
        let entry = self.entries[handle as usize].as_mut();
        if let Some(Machine::Node(node)) = entry.map(|e| &mut e.machine) {
            self.summary.remove(node);
            change(node);
            self.summary.add(node);
        }
        self.write_lane(handle);
        Ok(())
    }

    fn upsert(&mut self, machine: Machine) {
        self.version += 1;
        let by_id = if machine.is_offer() {
            &self.offers
        } else {
            &self.nodes
        };
        if let Some(handle) = by_id.get(machine.candidate().id).copied() {
            self.replace(handle, machine);
            return;
        }
        let id: Arc<str> = machine.candidate().id.into();
        let handle = self.unused_entries.pop().unwrap_or_else(|| {
            self.entries.push(None);
            self.entries.len() as u32 - 1
        });
        if machine.is_offer() {
            self.offers.insert(id.clone(), handle);
        } else {
            self.nodes.insert(id.clone(), handle);
        }
        let order = self.order_for(&id, machine.is_offer());
        self.sorted.insert((id.clone(), machine.is_offer()), handle);
        let (place, moved) = self.places.join(machine.candidate().location, handle);
        let (images, labels) = self.intern(&machine);
        self.entries[handle as usize] = Some(Entry {
            machine,
            id,
            block: 0,
            lane: 0,
            place,
            images,
            labels,
            order,
        });
        if order == u64::MAX {
            self.number();
        }
        let kind = self.kind_for(handle);
        self.put(handle, kind);
        self.settle_others(handle, &moved);
    }

    fn replace(&mut self, handle: u32, machine: Machine) {
        let old = self.entry(handle);
        let (place, images, labels) = (old.place, old.images, old.labels.clone());
        let (block, lane) = (old.block, old.lane as usize);
        if let Some(Machine::Node(node)) =
            self.entries[handle as usize].as_ref().map(|e| &e.machine)
        {
            self.summary.remove(node);
        }
        self.places.leave(place, handle);
        let (place, moved) = self.places.join(machine.candidate().location, handle);
        let (new_images, new_labels) = self.intern(&machine);
        if images > 0 {
            self.images.leave(images);
        }
        for label in &labels {
            self.labels.take(*label, block, lane);
        }
        for label in &new_labels {
            self.labels.put(*label, block, lane);
        }
        for label in &labels {
            self.labels.forget_unused(*label);
        }
        let entry = self.entry_mut(handle);
        entry.machine = machine;
        entry.place = place;
        entry.images = new_images;
        entry.labels = new_labels;
        self.settle(handle);
        self.settle_others(handle, &moved);
    }

    fn remove(&mut self, handle: u32) -> bool {
        self.version += 1;
        self.pull(handle);
        let Some(entry) = self.entries[handle as usize].take() else {
            return false;
        };
        match &entry.machine {
            Machine::Node(node) => {
                self.summary.remove(node);
                self.nodes.remove(&entry.id);
            }
            Machine::Offer(_) => {
                self.offers.remove(&entry.id);
            }
        }
        self.sorted
            .remove(&(entry.id.clone(), entry.machine.is_offer()));
        self.places.leave(entry.place, handle);
        if entry.images > 0 {
            self.images.leave(entry.images);
        }
        for label in &entry.labels {
            self.labels.forget_unused(*label);
        }
        self.unused_entries.push(handle);
        true
    }

    fn intern(&mut self, machine: &Machine) -> (u32, Box<[u32]>) {
        match machine {
            Machine::Offer(_) => (0, Box::default()),
            Machine::Node(node) => {
                let images = if node.images.is_empty() {
                    0
                } else {
                    self.images.join(&node.images)
                };
                let labels = node.labels.iter();
                let labels = labels.map(|(k, v)| self.labels.intern(k, v)).collect();
                (images, labels)
            }
        }
    }

    /// A number between those of its neighbours; `u64::MAX` where all have to be numbered anew.
    fn order_for(&self, id: &Arc<str>, offer: bool) -> u64 {
        let key = (id.clone(), offer);
        let order = |handle: &u32| self.entry(*handle).order;
        let before = (Bound::Unbounded, Bound::Excluded(&key));
        let after = (Bound::Excluded(&key), Bound::Unbounded);
        let before = self.sorted.range(before).next_back().map(|(_, h)| order(h));
        let after = self.sorted.range(after).next().map(|(_, h)| order(h));
        let fresh = match (before, after) {
            (None, None) => Some(1 << 62),
            (Some(before), None) => before.checked_add(STRIDE).filter(|o| *o < u64::MAX),
            (None, Some(after)) => after.checked_sub(STRIDE),
            (Some(before), Some(after)) => {
                let middle = before + (after - before) / 2;
                (middle > before).then_some(middle)
            }
        };
        fresh.unwrap_or(u64::MAX)
    }

    fn number(&mut self) {
        for (n, handle) in self.sorted.values().enumerate() {
            if let Some(entry) = &mut self.entries[*handle as usize] {
                entry.order = (1 << 61) + n as u64 * STRIDE;
            }
        }
    }

    fn settle_others(&mut self, handle: u32, moved: &[u32]) {
        for other in moved.iter().filter(|other| **other != handle) {
            self.settle(*other);
        }
        // Its own class may have changed by its coming.
        if !moved.is_empty() {
            self.settle(handle);
        }
    }

    /// Brings a machine to the kind that it is of.
    fn settle(&mut self, handle: u32) {
        let now = self.blocks[self.entry(handle).block as usize].kind;
        let kind = self.kind_for(handle);
        if kind == now {
            self.write_lane(handle);
        } else {
            self.pull(handle);
            self.put(handle, kind);
        }
    }

    fn kind_for(&mut self, handle: u32) -> u32 {
        let entry = self.entry(handle);
        let place = entry.place;
        let candidate = entry.machine.candidate();
        let taints: Vec<Taint> = candidate.node.map_or_else(Vec::new, |n| {
            let hard = n.taints.iter().filter(|t| t.effect != "PreferNoSchedule");
            hard.cloned().collect()
        });
        let key = Key {
            offer: candidate.node.is_none(),
            cluster: candidate.node.is_some_and(Node::in_cluster),
            class: self.places.class(place, candidate.location),
            tier: candidate.location.tier,
            capacity_type: candidate.capacity_type,
            arch: candidate.arch.into(),
            cpu_millis: candidate.allocatable.cpu_millis,
            memory_bytes: candidate.allocatable.memory_bytes,
            gpus: candidate.gpus.len(),
            price: candidate.price_per_hour.to_bits(),
            supply: [
                candidate.supply.reclaim_rate.to_bits(),
                candidate.supply.reclaims_per_hour.to_bits(),
                candidate.supply.obtainable.to_bits(),
            ],
            startup: candidate.startup_s.to_bits(),
            taints: written(&taints).into(),
        };
        if let Some(id) = self.kind_ids.get(&key) {
            return *id;
        }
        let kind = Kind {
            class: 0,
            location: candidate.location.clone(),
            allocatable: candidate.allocatable,
            price_per_hour: candidate.price_per_hour,
            supply: candidate.supply,
            startup_s: candidate.startup_s,
            owned: is_owned(&candidate),
            taints,
            blocks: Vec::new(),
            key: key.clone(),
        };
        let class = self.places.hold(place, &kind.location);
        let id = self.unused_kinds.pop().unwrap_or_else(|| {
            self.kinds.push(None);
            self.kinds.len() as u32 - 1
        });
        self.kinds[id as usize] = Some(Kind { class, ..kind });
        self.embeddings.forget_kind(id);
        self.kind_ids.insert(key, id);
        id
    }

    /// Puts a machine that is nowhere on the first lane that its kind has left.
    fn put(&mut self, handle: u32, kind: u32) {
        let last = self.kind(kind).blocks.last().copied();
        let block = match last.filter(|b| self.blocks[*b as usize].len < LANES) {
            Some(block) => block,
            None => self.add_block(kind),
        };
        let lanes = &mut self.blocks[block as usize];
        let lane = lanes.len;
        lanes.len += 1;
        self.place(handle, block, lane);
    }

    fn add_block(&mut self, kind: u32) -> u32 {
        let id = self.unused_blocks.pop().unwrap_or_else(|| {
            self.blocks.push(Block::new(kind));
            self.blocks.len() as u32 - 1
        });
        self.blocks[id as usize] = Block::new(kind);
        if self.embedder.is_some() {
            self.embeddings.open(id, kind);
        }
        if let Some(kind) = &mut self.kinds[kind as usize] {
            kind.blocks.push(id);
        }
        id
    }

    fn place(&mut self, handle: u32, block: u32, lane: usize) {
        self.blocks[block as usize].handles[lane] = handle;
        let entry = self.entry_mut(handle);
        entry.block = block;
        entry.lane = lane as u32;
        let labels = std::mem::take(&mut entry.labels);
        for label in &labels {
            self.labels.put(*label, block, lane);
        }
        self.entry_mut(handle).labels = labels;
        self.write_lane(handle);
    }

    /// Takes a machine off its lane; the last one of its kind gets the lane.
    fn pull(&mut self, handle: u32) {
        let entry = self.entry(handle);
        let (block, lane) = (entry.block, entry.lane as usize);
        let kind = self.blocks[block as usize].kind;
        self.forget_lane(handle);
        let last = self.kind(kind).blocks.last().copied().unwrap_or(block);
        let end = self.blocks[last as usize].len - 1;
        let mover = self.blocks[last as usize].handles[end];
        if mover != handle {
            self.forget_lane(mover);
            self.place(mover, block, lane);
        }
        let lanes = &mut self.blocks[last as usize];
        lanes.len = end;
        if end == 0 {
            self.unused_blocks.push(last);
            self.drop_block(kind);
        }
    }

    fn drop_block(&mut self, kind: u32) {
        let slot = &mut self.kinds[kind as usize];
        let Some(left) = slot else { return };
        left.blocks.pop();
        if left.blocks.is_empty()
            && let Some(kept) = slot.take()
        {
            self.kind_ids.remove(&kept.key);
            self.places.release(kept.class);
            self.unused_kinds.push(kind);
        }
    }

    fn forget_lane(&mut self, handle: u32) {
        let entry = self.entry(handle);
        let (block, lane) = (entry.block, entry.lane as usize);
        let labels = entry.labels.clone();
        for label in &labels {
            self.labels.take(*label, block, lane);
        }
    }

    /// Writes what differs within a kind.
    fn write_lane(&mut self, handle: u32) {
        let entry = self.entry(handle);
        let (block, lane, images) = (entry.block as usize, entry.lane as usize, entry.images);
        let candidate = entry.machine.candidate();
        let (free, all) = (candidate.free, candidate.allocatable);
        let used = candidate.node.map_or(0.0, |n| n.cpu_utilization);
        let ready = candidate.node.is_none_or(|n| n.ready);
        let schedulable = candidate.node.is_none_or(|n| n.schedulable);
        let odd = free.cpu_millis > all.cpu_millis
            || free.memory_bytes > all.memory_bytes
            || free.cpu_millis >= EXACT
            || free.memory_bytes >= EXACT
            || !used.is_finite();
        let mut gpus = [0_u16; DEVICES];
        for (lane, gpu) in gpus.iter_mut().zip(candidate.gpus) {
            *lane = gpu.free_millis.min(crate::gpu::WHOLE) as u16;
        }
        let lanes = &mut self.blocks[block];
        let bit = 1_u16 << lane;
        let set = |mask: &mut u16, on: bool| *mask = if on { *mask | bit } else { *mask & !bit };
        set(&mut lanes.ready, ready);
        set(&mut lanes.schedulable, schedulable);
        set(&mut lanes.odd, odd);
        lanes.cpu_free[lane] = free.cpu_millis.min(EXACT) as f64;
        lanes.memory_free[lane] = free.memory_bytes.min(EXACT) as f64;
        // What is not a number counts as busy, as the queueing formula takes it.
        lanes.cpu_used[lane] = if used.is_finite() { used } else { 2.0 };
        lanes.images[lane] = images;
        for (device, free) in lanes.gpu_free.iter_mut().zip(gpus) {
            device[lane] = free;
        }
        self.embed(handle);
    }

    fn embed(&mut self, handle: u32) {
        let entry = self.entry(handle);
        let (block, lane) = (entry.block, entry.lane as usize);
        let Some(embedder) = &self.embedder else {
            return;
        };
        let vector = embedder
            .network
            .embed(&encode_node(&entry.machine.candidate()));
        self.embeddings.set(block, lane, &vector);
    }
}

fn device<'a>(node: &'a Node, uuid: &str) -> Result<&'a GpuDevice, FleetError> {
    node.gpus
        .iter()
        .find(|g| g.uuid == uuid)
        .ok_or_else(|| FleetError::NoGpu {
            node: node.id.clone(),
            uuid: uuid.to_owned(),
        })
}

/// Taints as one string, in which no two lists look the same.
fn written(taints: &[Taint]) -> String {
    let mut out = String::new();
    for taint in taints {
        for part in [&taint.key, &taint.value, &taint.effect] {
            out.push_str(&format!("{}:{part}", part.len()));
        }
    }
    out
}
