//! Whole shares by largest remainder (Hamilton's method).
//!
//! Among the ways to make shares whole it is the one that never gives a node less than the whole part of its exact share
//! or more than one unit above it, and it does not depend on the order in which keys came. Its known weakness, that one
//! more key may shrink somebody's share (the Alabama paradox), is harmless here: a share is no order to move anything.

use std::cmp::Reverse;

/// One node in a division.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) node: u32,
    pub(super) affinity: u32,
    /// What it has already, in the unit that is being divided.
    pub(super) load: u64,
    /// The answer.
    pub(super) quota: u64,
}

/// Room for the remainders, kept between divisions so that they allocate nothing.
pub(super) type Remainders = Vec<(Reverse<u64>, Reverse<u64>, u32)>;

/// Divides `units` among `shares` by affinity. Ties go to whoever has more, then to the lower place in `shares`.
///
/// Costs O(shares): a division each, and a selection instead of a sort.
pub(super) fn divide(units: u64, shares: &mut [Share], scratch: &mut Remainders) {
    let total: u64 = shares.iter().map(|share| u64::from(share.affinity)).sum();
    if total == 0 {
        shares.iter_mut().for_each(|share| share.quota = 0);
        return;
    }
    scratch.clear();
    let mut left = units;
    // Affinities are below 2^32, so below this bound every product fits into one machine word.
    let narrow = units <= u64::from(u32::MAX);
    let mut last = (0, 0, 0);
    for (at, share) in shares.iter_mut().enumerate() {
        // Most groups know one or two affinities only: the division before is often the same one.
        if last.0 != share.affinity {
            let (whole, rest) = if narrow {
                let product = units * u64::from(share.affinity);
                (product / total, product % total)
            } else {
                let product = u128::from(units) * u128::from(share.affinity);
                // Both are below: the quotient below `units`, the remainder below `total`.
                ((product / u128::from(total)) as u64, (product % u128::from(total)) as u64)
            };
            last = (share.affinity, whole, rest);
        }
        share.quota = last.1;
        left -= last.1;
        if last.2 > 0 {
            scratch.push((Reverse(last.2), Reverse(share.load), at as u32));
        }
    }
    let left = left as usize;
    if left == 0 {
        return;
    }
    if left < scratch.len() {
        scratch.select_nth_unstable(left);
        scratch.truncate(left);
    }
    for &(_, _, at) in scratch.iter() {
        shares[at as usize].quota += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(units: u64, members: &[(u32, u64)]) -> Vec<u64> {
        let mut shares: Vec<_> =
            (0u32..).zip(members).map(|(node, &(affinity, load))| Share { node, affinity, load, quota: 0 }).collect();
        divide(units, &mut shares, &mut Vec::new());
        shares.iter().map(|share| share.quota).collect()
    }

    #[test]
    fn shares_follow_affinity() {
        assert_eq!(whole(700, &[(1000, 0), (2000, 0), (3000, 0), (0, 0), (1000, 0)]), [100, 200, 300, 0, 100]);
    }

    #[test]
    fn ties_go_to_whoever_has_more_then_to_the_lower_index() {
        assert_eq!(whole(10, &[(1, 3), (1, 4), (1, 3)]), [3, 4, 3]);
        assert_eq!(whole(10, &[(1, 3), (1, 3), (1, 3)]), [4, 3, 3]);
        assert_eq!(whole(11, &[(1, 3), (1, 4), (1, 4)]), [3, 4, 4]);
    }

    #[test]
    fn the_largest_affinities_and_weights_do_not_overflow() {
        let top = i32::MAX as u32;
        let units = 4_000_000_000_000_000;
        assert_eq!(whole(units, &[(top, 0), (top, 0)]), [units / 2, units / 2]);
        assert_eq!(whole(units, &[(top, 0), (1, 0)]).iter().sum::<u64>(), units);
    }

    #[test]
    fn nobody_to_share_with_means_no_quota() {
        assert_eq!(whole(5, &[(0, 9)]), [0]);
        assert!(whole(5, &[]).is_empty());
    }
}
