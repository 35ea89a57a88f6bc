//! Rooms of one worker: a vector of descriptors each.
//!
//! Rule: nothing here is clever. Leaving searches the vector, which is fast enough for rooms of a few ten thousand.

use std::collections::HashMap;
use std::os::fd::RawFd;

#[derive(Default)]
pub struct Rooms {
    ids: HashMap<Box<str>, u32>,
    members: Vec<Vec<RawFd>>,
}

impl Rooms {
    pub fn join(&mut self, name: &str, fd: RawFd) -> u32 {
        let id = self.find(name).unwrap_or_else(|| {
            let id = self.members.len() as u32;
            self.ids.insert(name.into(), id);
            self.members.push(Vec::new());
            id
        });
        self.members[id as usize].push(fd);
        id
    }

    pub fn find(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    pub fn leave(&mut self, id: u32, fd: RawFd) {
        let members = &mut self.members[id as usize];
        if let Some(position) = members.iter().position(|member| *member == fd) {
            members.swap_remove(position);
        }
    }

    /// Takes the list out while it is sent to, so that the sender may change the rest of the worker.
    pub fn take_members(&mut self, id: u32) -> Vec<RawFd> {
        std::mem::take(&mut self.members[id as usize])
    }

    pub fn give_back(&mut self, id: u32, members: Vec<RawFd>) {
        self.members[id as usize] = members;
    }
}
