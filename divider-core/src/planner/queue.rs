//! The keys that want an owner: higher priority first, then first come, first served.
//!
//! One list per priority in use, threaded through the key records, so that a key joins, leaves from the middle or is
//! taken from the front in the same small time however many wait.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::board::{Key, NONE};

#[derive(Clone, Copy, Debug)]
struct PriorityList {
    head: u32,
    tail: u32,
}

/// The waiting keys.
#[derive(Debug, Default)]
pub(super) struct Queue {
    lists: BTreeMap<Reverse<i32>, PriorityList>,
}

impl Queue {
    /// Appends a key to the list of its priority.
    pub(super) fn push(&mut self, keys: &mut [Key], prevs: &mut [u32], k: u32) {
        let priority = keys[k as usize].priority;
        let list = self.lists.entry(Reverse(priority)).or_insert(PriorityList { head: k, tail: NONE });
        let last = std::mem::replace(&mut list.tail, k);
        prevs[k as usize] = last;
        keys[k as usize].next = NONE;
        if last != NONE {
            keys[last as usize].next = k;
        }
    }

    /// Takes a key out, wherever it stands.
    pub(super) fn remove(&mut self, keys: &mut [Key], prevs: &mut [u32], k: u32) {
        let Key { priority, next, .. } = keys[k as usize];
        let prev = prevs[k as usize];
        if prev != NONE {
            keys[prev as usize].next = next;
        }
        if next != NONE {
            prevs[next as usize] = prev;
        }
        if prev != NONE && next != NONE {
            return;
        }
        if prev == NONE && next == NONE {
            self.lists.remove(&Reverse(priority));
        } else if let Some(list) = self.lists.get_mut(&Reverse(priority)) {
            if prev == NONE {
                list.head = next;
            } else {
                list.tail = prev;
            }
        }
    }

    /// Takes up to `count` keys from the front, in order. Says whether they were of more than one priority.
    pub(super) fn take(
        &mut self,
        keys: &[Key],
        prevs: &mut [u32],
        count: usize,
        mut each: impl FnMut(u32, &Key),
    ) -> bool {
        let mut left = count;
        let mut lists = 0;
        while left > 0 {
            let Some(mut list) = self.lists.first_entry() else {
                break;
            };
            lists += 1;
            let mut k = list.get().head;
            while k != NONE && left > 0 {
                let key = &keys[k as usize];
                each(k, key);
                k = key.next;
                left -= 1;
            }
            if k == NONE {
                list.remove();
            } else {
                list.get_mut().head = k;
                prevs[k as usize] = NONE;
            }
        }
        lists > 1
    }

    /// An estimate: the map does not tell what it has allocated.
    pub(super) fn heap_bytes(&self) -> usize {
        self.lists.len() * 2 * size_of::<(Reverse<i32>, PriorityList)>()
    }
}
